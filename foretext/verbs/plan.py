"""`foretext plan`: how long a pre-training takes and what it needs, from its settings and half a minute of measuring."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from foretext.errors import UserError
from foretext.objectives.base import Objective
from foretext.progress import duration
from foretext.text.batches import Source
from foretext.text.store import Store
from foretext.training.distributed import World
from foretext.training.loop import TrainingConfig, compute_dtype, counted_steps, tune_allocator
from foretext.training.optim import make_optimizer
from foretext.training.probe import SMALLEST, choose_micro_tokens, used_memory
from foretext.training.refresh import Rounds
from foretext.training.step import backward
from foretext.training.telemetry import Speed
from foretext.verbs.pretrain import PretrainConfig, longest_row, make_objective, sources

GPUS = {  # dense bf16 FLOP/s and memory by the makers' data sheets
    "l4": (121e12, 24), "a10": (125e12, 24), "rtx4090": (165e12, 24), "a100": (312e12, 80), "l40s": (362e12, 48),
    "h100": (989e12, 80), "h200": (989e12, 141), "b200": (2250e12, 180),
}  # fmt: skip
UTILISATION = 0.4  # of a GPU's peak: what well-made trainers of this size reach
SHORTEST_STEP = 0.02  # seconds: about what launching the some thousand kernels of a step takes
BYTES_TRAINED = 16  # per parameter: fp32 weight, gradient and the two moments of AdamW
BYTES_SAVED = 12  # per parameter of a checkpoint: the same without the gradient


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    tokens_per_second: float
    flops_per_token: float
    share_of_peak: float
    loading_share: float  # of a step's time that making its batches takes
    refresh_seconds: float  # per step, where the objective chooses its examples
    peak_bytes: int  # memory of the process (CPU) or of the device
    micro_tokens: int  # in the largest micro-batch


def plan(config: PretrainConfig, gpu: str = "h100", gpus: int = 1, seconds: float = 30) -> list[str]:
    """Steps, hours, memory and disk of the run that `config` describes, here and on `gpus` of a kind of GPU.

    Args:
        gpu: a name in `GPUS`.
        seconds: about how long to measure.
    Returns:
        lines for a person; nothing is written.
    """
    gpu = gpu.lower()
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu}: its peak is not known here; choose one of {', '.join(GPUS)}")
    store, world = Store.open(config.store), World.join()
    objective = make_objective(config, store.tokenizer, longest_row(store))
    source, _ = sources(config, store, objective)
    found, source = probe(objective, source, config.training, world, seconds)
    step_tokens = float(np.mean(source.lengths)) * config.training.batch_size
    step_seconds = step_tokens / found.tokens_per_second + found.refresh_seconds
    steps = counted_steps(config.training, source) or max(1, int(config.training.minutes * 60 / step_seconds))
    tokens = steps * step_tokens
    parameters = sum(parameter.numel() for parameter in objective.parameters())
    encoder = sum(parameter.numel() for parameter in objective.encoder.parameters())
    peak, room = GPUS[gpu]
    there = found.flops_per_token * tokens / (peak * UTILISATION * gpus)
    launched = steps * SHORTEST_STEP
    reached = f"at best, if {UTILISATION:.0%} of {peak / 1e12:,.0f} TFLOP/s (data sheet) is reached"
    if there < launched:
        reached += f"; more like {duration(launched)}, as launching a step's kernels takes longer than computing it"
    state = BYTES_TRAINED * parameters
    disk = BYTES_SAVED * parameters * (config.training.keep + 1) + 4 * encoder
    return [
        f"{objective.name} on {config.encoder.start}: {parameters / 1e6:,.1f} M parameters ({encoder / 1e6:,.1f} M in the encoder)",
        f"data:    {len(source.lengths):,} examples, {source.lengths.sum() / 1e6:,.1f} M tokens; one pass is "
        f"{len(source.lengths) / config.training.batch_size:,.0f} steps",
        f"run:     {steps:,} steps of {config.training.batch_size} examples = {tokens / 1e6:,.1f} M tokens "
        f"({tokens / max(1, source.lengths.sum()):.1f} passes), {found.flops_per_token * tokens:.2e} FLOP",
        f"here:    {duration(steps * step_seconds)} at the measured {found.tokens_per_second:,.0f} tokens/s "
        f"({found.share_of_peak:.0%} of the matrix-product peak measured here; {found.loading_share:.1%} of it is loading data)",
        f"{f'{gpus} x {gpu}:':8} {duration(there)} {reached}",
        f"memory:  {found.peak_bytes / 1e9:,.1f} GB at the peak here, with {found.micro_tokens:,} tokens at once; {state / 1e9:,.2f} GB of "
        f"it for weights, gradients and moments, the rest grows with training.micro_tokens; of {room} GB on each {gpu}"
        + (": too much for one, take training.parallel=fsdp" if state > room * 1e9 else ""),
        f"disk:    {disk / 1e9:,.2f} GB for {config.training.keep} checkpoints, the best one and the exported encoder",
        "assumed: steps later in the run take as long as those measured; validation and checkpoints are not counted",
    ]


def probe(objective: Objective, source: Source, config: TrainingConfig, world: World, seconds: float) -> tuple[Probe, Source]:
    """Train for about `seconds` and measure; the weights are thrown away with the objective.

    A step that would take too long is measured on its first micro-batches.

    Returns:
        what was measured, and the examples it was measured on: those of the first round, where the objective chooses them.
    """
    tune_allocator()
    objective.to(world.device).train()
    objective.encoder.compute_dtype = compute_dtype(config, world.device)
    optimizer = make_optimizer(objective, config.optim)
    measured = config.micro_tokens == "auto"
    rounds = Rounds(objective, source, None, config.batch_size, SMALLEST if measured else config.micro_tokens, config.seed, world)
    rounds.begin()
    batches = rounds.batches
    if measured:
        choose_micro_tokens(objective, batches, world)
    speed = Speed(world.device, objective.encoder.compute_dtype)
    begin, parts, step = time.perf_counter(), 1, 0
    tokens = loading = working = 0.0
    while step < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        micro = batches.step(step)
        made = time.perf_counter()
        used = micro[:parts]
        read = sum(batch.tokens for batch in used)
        if step == 0:  # the first also warms caches up, and is not timed
            with speed.count() as counter:
                backward(objective, used, world)
            speed.counted(counter, read)
        else:
            backward(objective, used, world)
            optimizer.step()
        optimizer.zero_grad()
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        done = time.perf_counter()
        if step == 0:
            fitting = int(seconds / 5 / (done - made))  # a few steps have to fit into the time
            parts = min(len(micro), max(2, fitting))  # two at least: a step of several costs more where rows are compared (GradCache)
            largest = max(batch.tokens for batch in used)
        else:
            tokens, working = tokens + read, working + done - made
            loading += (made - start) * read / sum(batch.tokens for batch in micro)
        step += 1
    rate = tokens / (working + loading)
    refresh = rounds.report["refresh_seconds"] / rounds.every if rounds.every else 0.0
    return Probe(rate, speed.flops_per_token, rate * speed.flops_per_token / speed.peak, loading / (working + loading), refresh,
                 used_memory(world.device), largest), rounds.source
