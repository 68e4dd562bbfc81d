"""Where a training step goes: CPU time of one thread by kind of operation, for texts of 128 tokens and of mixed length.

Run: `OMP_NUM_THREADS=1 python benchmarks/step_profile.py [objective ...] [--mixed] [--operations 25]`
A network of 4 layers x 256 with a vocabulary of 30,528 random ids, 4,096 tokens a step, bf16, AdamW, one thread. `products at` is the rate
of the step's own matrix products; `ceiling` is that rate as a share of the best square product of this minute: what the step would reach
of the peak if everything but its products took no time.
"""

import argparse
import time
from statistics import median

import gemm
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from foretext.model.presets import preset
from foretext.model.towers import new_encoder
from foretext.objectives import OBJECTIVES
from foretext.objectives.base import Objective
from foretext.text.batches import Documents
from foretext.text.pairs import NOTHING_KNOWN, Pairs
from foretext.text.randomness import example_keys
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.training.loop import tune_allocator
from foretext.training.optim import OptimConfig, clip_gradients, make_optimizer
from foretext.training.step import backward

TEXTS, LENGTH, VOCABULARY, ROUNDS = 32, 128, 30_528, 7
GEMM = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "linear")


def make(name: str, tokenizer: Tokenizer) -> Objective:
    """The objective on the network that it is made for."""
    torch.manual_seed(0)
    start = OBJECTIVES[name].start or ("mpnet-mini" if name == "mpnet" else "bert-mini")
    encoder = new_encoder(preset(start, VOCABULARY, **({} if OBJECTIVES[name].start else {"max_len": LENGTH})))
    objective = OBJECTIVES[name](encoder, tokenizer).train()
    encoder.compute_dtype = torch.bfloat16
    return objective


def texts(tokenizer: Tokenizer, mixed: bool) -> Documents:
    """Random ids; all full, or log-normal lengths with the same number of tokens in more texts."""
    draw = np.random.default_rng(1)
    lengths = np.full(TEXTS, LENGTH - 2)
    if mixed:
        lengths = np.clip(draw.lognormal(4.2, 0.6, 4 * TEXTS), 6, LENGTH - 2).astype(int)
        lengths = -np.sort(-lengths[np.cumsum(lengths + 2) <= TEXTS * LENGTH])
    ids = draw.choice(np.flatnonzero(~tokenizer.special), lengths.sum())
    numbers = torch.arange(len(lengths))
    return Documents(torch.from_numpy(ids), torch.from_numpy(lengths), example_keys(1, 0, numbers), numbers)


def examples(objective: Objective, documents: Documents) -> Documents | Pairs:
    """In the form the objective reads; both sides of a pair hold half of the texts."""
    if objective.reads != "pairs":
        return documents
    rows = torch.arange(len(documents) // 2)
    first, second = documents.select(rows * 2), documents.select(rows * 2 + 1)
    return Pairs(first, second, NOTHING_KNOWN)


def step(objective: Objective, data: Documents | Pairs, optimizer: torch.optim.Optimizer, world: World) -> list[float]:
    """One update: seconds to make the batch, for the gradient, for the update; and its tokens."""
    marks = [time.thread_time()]
    batch = objective.collate(data)
    marks.append(time.thread_time())
    backward(objective, [batch], world)
    marks.append(time.thread_time())
    clip_gradients(objective, OptimConfig())
    optimizer.step()
    optimizer.zero_grad()
    marks.append(time.thread_time())
    return [*np.diff(marks), batch.tokens]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[name for name, kind in OBJECTIVES.items() if kind.reads in ("documents", "pairs")])
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--operations", type=int, default=0, help="also list so many operations")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    tokenizer = Tokenizer.train(["a b c " * 100], kind="wordpiece", vocab_size=64)
    world, console = World.join("cpu"), Console()
    best = gemm.make({"threads": 1})
    columns = ("objective", "tokens/s", "step ms", "collate", "matrix products", "optimizer", "the rest", "products at", "ceiling")
    table = Table(*columns, title="processor time of a step")
    for name in given.names:
        objective = make(name, tokenizer)
        data, optimizer = examples(objective, texts(tokenizer, given.mixed)), make_optimizer(objective, OptimConfig())
        step(objective, data, optimizer, world)
        rounds = [step(objective, data, optimizer, world) for _ in range(ROUNDS)]
        collate, work, update, tokens = (median(values) for values in zip(*rounds))
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            step(objective, data, optimizer, world)
            step(objective, data, optimizer, world)
        spent = {e.key.removeprefix("aten::"): e.self_cpu_time_total / 2e6 for e in seen.key_averages()}
        with FlopCounterMode(display=False) as counter:
            backward(objective, [objective.collate(data)], world)
        products, total = sum(spent.get(key, 0.0) for key in GEMM), collate + work + update
        share = products / sum(spent.values())
        rate = counter.get_total_flops() / (share * (work + update))  # the profiler's own clock runs while others work
        table.add_row(name, f"{tokens / total:,.0f}", f"{1000 * total:.0f}", f"{collate / total:.1%}", f"{share:.0%}",
                      f"{update / total:.1%}", f"{1 - share - (collate + update) / total:.0%}",
                      f"{rate / 1e9:.0f} GFLOP/s", f"{rate / best('')['bf16']:.0%}")
        if given.operations:
            console.print(name, seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=given.operations))
    console.print(table)


if __name__ == "__main__":
    main()
