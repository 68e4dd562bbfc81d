"""The training loop, for every objective: it knows batches, sums and counts, and no objective by name."""

import ctypes
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from foretext.errors import UserError
from foretext.model.precision import has_bf16
from foretext.objectives.base import Batch, Objective
from foretext.progress import console, progress
from foretext.text.batches import Source, split_evenly
from foretext.text.randomness import example_keys
from foretext.training import checkpoint
from foretext.training.distributed import World
from foretext.training.folder import describe, open_run
from foretext.training.optim import OptimConfig, clip_gradients, learning_rate, make_optimizer, set_rate
from foretext.training.probe import SMALLEST, choose_micro_tokens
from foretext.training.recompute import recompute_activations
from foretext.training.refresh import Rounds
from foretext.training.sharding import sharded
from foretext.training.step import Sums, backward, measure
from foretext.training.telemetry import Log, Speed

PATIENCE = 20  # steps in a row without a finite gradient before giving up
PROBED = 6  # steps timed to turn minutes into a number of steps


class TrainingConfig(BaseModel):
    """How long, how much at a time, and what is kept. One of steps, tokens, epochs and minutes says how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_budget: ClassVar[dict[str, float]] = {"steps": 2000}

    steps: int | None = Field(None, gt=0, description="number of updates; 2000 if nothing says how long")
    tokens: float | None = Field(None, gt=0, description="tokens of text to read")
    epochs: float | None = Field(None, gt=0, description="passes over the data")
    minutes: float | None = Field(None, gt=0, description="wall-clock time; turned into steps once, by timing a few")
    batch_size: int = Field(256, gt=0, description="examples of one update, over all micro-batches and processes")
    micro_tokens: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        16_384, description="tokens that pass through the model at once; changes memory, not the result; auto: measured once")
    optim: OptimConfig = OptimConfig()
    precision: Literal["fp32", "bf16"] | None = Field(None, description="of activations and matmuls; default: bf16 where the device has it")
    seed: int = Field(1, ge=0)
    log_every: int = Field(20, gt=0, description="updates between reports")
    valid_every: int = Field(200, gt=0, description="updates between validations")
    valid_examples: int = Field(1024, gt=0, description="held-out examples used, at most")
    patience: int | None = Field(None, gt=0, description="validations in a row without an improvement after which the run ends")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="with several processes: each holds the whole model, or a part of it")
    checkpoint_activations: bool = Field(False, description="keep only what enters each layer, compute the rest again on the way back: "
                                                            "less memory, a third more time, the same result")
    checkpoint_every: int = Field(500, gt=0, description="updates between checkpoints")
    keep: int = Field(2, gt=0, description="newest checkpoints kept, besides the best")

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, values: Any) -> Any:
        given = [name for name in ("steps", "tokens", "epochs", "minutes") if values.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"say how long by one of steps, tokens, epochs and minutes, found {' and '.join(given)}")
        return values if given else values | cls.default_budget


Judge = Callable[[], dict[str, float]]
"""Measures of the model by name, higher is better; the first says which checkpoint is the best."""


@dataclass
class Result:
    """What a finished run knows about itself."""

    steps: int
    seconds: float  # of this process, not of what earlier ones did
    tokens: int  # read over the whole run
    last: dict[str, float]  # the last validation, or the last report
    best_step: int | None


class Stopped(Exception):
    """A signal asked the run to stop; it finished its step and wrote a checkpoint."""

    exit_code = 75  # EX_TEMPFAIL: run the same command again


def train(objective: Objective, source: Source, output: str | Path, config: TrainingConfig, valid: Source | None = None,
          world: World | None = None, overwrite: bool = False, judge: Judge | None = None) -> Result:
    """Train `objective` on `source` and leave a run folder; a run that was interrupted goes on where its last checkpoint is.

    Args:
        valid: held-out examples, measured every `valid_every` updates with the masks of epoch 0.
        world: this process among others; by default what torchrun says.
        judge: measures the objective's encoder as it is, at each validation; without it the best is the one with the lowest loss.
    Returns:
        `Result`; the weights are in `objective` and in checkpoints/.
    Raises:
        UserError: the folder holds another run. Stopped: a signal came. FloatingPointError: the loss stays not finite.
    """
    world = world or World.join()
    output = Path(output)
    tune_allocator()
    torch.backends.cuda.enable_cudnn_sdp(False)  # its gradients with a mask may be nan (torch 2.11 to 2.13, H100 and H200)
    objective.train()
    objective.encoder.compute_dtype = compute_dtype(config, world.device)
    if config.checkpoint_activations:
        recompute_activations(objective)
    measured = config.micro_tokens == "auto"
    model, given = world.wrap(objective, config.parallel), objective
    if sharded(model):
        if judge:
            raise UserError("training.parallel: fsdp cannot search while it trains (training.patience, valid_split): take ddp")
        if measured:
            raise UserError("training.micro_tokens: auto may run out of memory while it tries, and then processes that share weights would "
                            "wait for each other for ever: set a number with training.parallel fsdp")
        objective = model
    optimizer = make_optimizer(objective, config.optim)
    rounds = Rounds(objective, source, valid, config.batch_size, SMALLEST if measured else config.micro_tokens, config.seed, world)
    state = {"step": 0, "updates": 0, "tokens": 0, "best": None, "best_step": None, "waited": 0, "valid": {}}

    def decide() -> dict[str, int]:
        chosen = {}
        if measured:
            rounds.begin()
            chosen["micro_tokens"] = choose_micro_tokens(model, rounds.batches, world)
        return {"steps": budget(config, model, rounds, world)} | chosen

    run = open_run(output, describe(objective, source, config), overwrite, world, decide)
    total = run["steps"]
    if measured:
        rounds.split_at(run["micro_tokens"])
        config = config.model_copy(update={"micro_tokens": run["micro_tokens"]})
    torch.manual_seed(config.seed + world.rank)  # dropout alone draws from it; after the budget's probe, which may not have run
    if saved := world.gather(checkpoint.steps(output))[0]:  # not each rank's own: a network's file system may show them late
        state = checkpoint.load(output, saved[-1], objective, optimizer, world)
        if config.patience and state["waited"] >= config.patience:
            total = state["updates"]
        if objective.refresh_every:
            rounds.restore(state["round"], checkpoint.load_rows(output, saved[-1]))
        if world.first:
            console.print(f"{output}: " + (f"going on from step {saved[-1]} of {total}" if state["updates"] < total else "already trained"))
    log = Log(output, state["step"]) if world.first else None
    speed = Speed(world.device, objective.encoder.compute_dtype)
    stop = StopSignal()
    start, sums, bad, latest = time.monotonic(), {}, 0, dict(state["valid"])

    def save() -> None:
        writer.save(objective, optimizer, state | {"round": rounds.first}, rounds.rows)

    what = f"{objective.name} ({'bf16' if objective.encoder.compute_dtype == torch.bfloat16 else 'fp32'})"
    writer = checkpoint.Writer(output, config.keep, world)
    with stop, writer, progress(what, total) if world.first else nullcontext(lambda *_, **__: None) as advance:
        advance(state["updates"])
        for micro_batches in rounds.steps(state, total, ahead=2 if world.device.type == "cuda" else 0):
            rate = learning_rate(config.optim, state["updates"], total)
            set_rate(optimizer, rate)  # before the step, so that the first update has the first rate
            with speed.count() if speed.flops_per_token is None else nullcontext() as counter:
                part = backward(model, micro_batches, world)
            read = sum(batch.tokens for batch in micro_batches)
            if speed.flops_per_token is None:
                speed.counted(counter, read)
            norm = clip_gradients(objective, config.optim)
            state["step"] += 1
            state["tokens"] += read * world.size  # ranks hold about equal shares
            if not torch.isfinite(norm):  # the one place where a step waits for a GPU: weights must not follow such a gradient
                bad += 1
                optimizer.zero_grad()
                refuse_endless(bad, state, micro_batches, output)
                continue
            bad = 0
            optimizer.step()
            optimizer.zero_grad()
            objective.updated()
            state["updates"] += 1
            merge(sums, part)
            speed.add(read)
            done = state["updates"]

            if done % config.log_every == 0 or done == total:
                latest = report(sums, objective, world) | {"lr": rate, "gradient_norm": float(norm)} | speed.report() | rounds.report
                sums = {}
                if log:
                    log.write(state["step"], latest)
            if (rounds.valid is not None or judge) and (done % config.valid_every == 0 or done == total):
                state["valid"] = validate(objective, rounds.valid, config, world) if rounds.valid is not None else {}
                judged = judgement(judge, objective, world) if judge else {}
                state["valid"] |= judged
                penalty = -next(iter(judged.values())) if judged else state["valid"]["valid_loss"]
                state["waited"] += 1
                if state["best"] is None or penalty < state["best"]:
                    state["best"], state["best_step"], state["waited"] = penalty, state["step"], 0
                    save()
                if log:
                    log.write(state["step"], state["valid"])
                speed.restart()
            advance(1, note=speed_line(latest, state["valid"]))
            if config.patience and state["waited"] >= config.patience:
                save()
                break
            stopped = world.any(stop.asked)
            if done % config.checkpoint_every == 0 or done == total or stopped:
                save()
            if stopped and done < total:
                writer.wait()
                world.wait()  # torchrun ends everybody when the first process is gone
                raise Stopped(f"stopped at step {state['step']} of {total}; a checkpoint is written: the same command goes on from there")
    world.wait()  # the last checkpoint is on disk for all
    if log:
        log.close()
    if sharded(model):
        given.load_state_dict(checkpoint.tensors(objective, checkpoint.to_host), strict=False)  # a tensor with two names is there once
    return Result(state["step"], time.monotonic() - start, state["tokens"], latest | state["valid"], state["best_step"])


def budget(config: TrainingConfig, model: torch.nn.Module, rounds: Rounds, world: World) -> int:
    """How many updates the run makes."""
    if config.steps:
        return config.steps
    rounds.begin()
    if counted := counted_steps(config, rounds.source):
        return counted
    seconds = []
    for step in range(PROBED):
        begin = time.perf_counter()
        backward(model, rounds.batches.step(step), world)
        if world.device.type == "cuda":
            torch.cuda.synchronize()  # a step only queues its work
        seconds.append(time.perf_counter() - begin)
        model.zero_grad()
    # The first two steps warm up caches and are not counted; ranks must agree, so they take their mean.
    usual = median(seconds[2:])
    if rounds.every:
        usual += rounds.report["refresh_seconds"] / rounds.every
    usual = world.sum(torch.tensor(usual, device=world.device)).item() / world.size
    return max(1, int(config.minutes * 60 / usual))


def counted_steps(config: TrainingConfig, source: Source) -> int | None:
    """The updates that steps, epochs or tokens ask for; None where minutes do, which have to be measured."""
    if config.steps:
        return config.steps
    if config.epochs:
        return max(1, round(config.epochs * len(source.lengths) / config.batch_size))
    if config.tokens:
        return max(1, round(config.tokens / (float(np.mean(source.lengths)) * config.batch_size)))
    return None


def validate(objective: Objective, valid: Source, config: TrainingConfig, world: World) -> dict[str, float]:
    """Losses and metrics over the held-out examples, epoch 0's masks, all ranks sharing the work (with fsdp: doing the same)."""
    objective.eval()
    count = min(len(valid.lengths), config.valid_examples)
    rows = np.arange(count) * len(valid.lengths) // count  # evenly over all
    steps = [rows[i : i + config.batch_size] for i in range(0, count, config.batch_size)]
    sums: Sums = {}
    for step in steps if sharded(objective) else steps[world.rank :: world.size]:  # ranks that hold parts of weights have to do the same
        keys = example_keys(config.seed, 0, torch.from_numpy(step))
        parts = split_evenly(valid.lengths[step], config.micro_tokens, 1)
        micro = [objective.collate(valid.read(step[p], keys[torch.from_numpy(p)])) for p in parts]
        merge(sums, measure(objective, micro, world.device))
    objective.train()
    return {f"valid_{name}": value for name, value in report(sums, objective, world).items()}


def judgement(judge: Judge, objective: Objective, world: World) -> dict[str, float]:
    """What `judge` says on the first rank; all take part, so that it can share out its work."""
    objective.eval()
    values = judge()
    objective.train()
    return world.gather(values)[0]


def merge(sums: Sums, part: Sums) -> None:
    """Add sums and counts to sums and counts."""
    for name, (value, count) in part.items():
        before = sums.get(name, (0.0, 0))
        sums[name] = (before[0] + value, before[1] + count)


def report(sums: Sums, objective: Objective, world: World) -> dict[str, float]:
    """Means over all ranks, and `loss`: the weighted sum of the loss terms, in nats."""
    names = sorted(sums)
    pairs = [[float(value), float(count)] for value, count in (sums[name] for name in names)]
    pairs = world.sum(torch.tensor(pairs, dtype=torch.float64, device=world.device).reshape(-1, 2))
    means = {name: (value / count if count else 0.0) for name, (value, count) in zip(names, pairs.tolist())}
    loss = sum(objective.weights.get(name, 1.0) * means[name] for name in objective.terms if name in means)
    return {"loss": loss} | means | (objective.summary(means) if means else {})


def speed_line(values: dict[str, float], valid: dict[str, float]) -> str:
    """`loss 3.21  valid 3.40  12,300 tokens/s  250 GFLOP/s (58 % of peak)`"""
    if "tokens_per_second" not in values:
        return ""
    held_out = f"  valid {valid['valid_loss']:.3f}" if "valid_loss" in valid else ""
    return (f"loss {values['loss']:.3f}{held_out}  {values['tokens_per_second']:,.0f} tokens/s  "
            f"{values['flops_per_second'] / 1e9:,.0f} GFLOP/s ({values['share_of_peak']:.0%} of the measured peak)")


def refuse_endless(bad: int, state: dict[str, Any], micro_batches: list[Batch], output: Path) -> None:
    """Count steps without a finite gradient; too many in a row are an error that names the place."""
    documents = torch.cat([batch.documents for batch in micro_batches])[:8].tolist()
    console.print(f"step {state['step']}: the gradient is not finite, step skipped (documents {documents} ...)")
    if bad == PATIENCE:
        raise FloatingPointError(f"{PATIENCE} steps in a row up to step {state['step']} had no finite gradient (last documents: "
                                 f"{documents}); the last good checkpoint is kept in {output / 'checkpoints'}: lower optim.lr, or use "
                                 "precision fp32")


class StopSignal:
    """Inside this context SIGTERM and SIGINT only set `asked`; the step is finished first."""

    asked = False

    def __enter__(self) -> "StopSignal":
        try:
            self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: signals are somebody else's business
            self.before = {}
        return self

    def _ask(self, *_) -> None:
        self.asked = True

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def compute_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype:
    """What activations and matmuls use."""
    return torch.bfloat16 if (config.precision or ("bf16" if has_bf16(device) else "fp32")) == "bf16" else torch.float32


def tune_allocator() -> None:
    """Keep freed memory in the process: page faults on large temporaries cost 10 to 20 % of a CPU step (docs/LOG.md)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # not glibc
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
        libc.mallopt(option, value)
