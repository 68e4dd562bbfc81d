"""`training.micro_tokens: auto`: how many tokens to send through the model at once, by trying."""

import resource
import time
from pathlib import Path

import torch
from torch import nn

from foretext.progress import console
from foretext.text.batches import Batches
from foretext.training.distributed import World
from foretext.training.step import backward

SMALLEST = 2048  # tokens
GAIN = 1.03  # twice the tokens have to be this much faster, or they are not worth their memory
SHARE = {"cuda": 0.8, "cpu": 0.5}  # of the memory that is free before; a CPU's is shared with others
TRIES = 3  # of which the fastest counts: whatever else the machine does only ever adds time


def choose_micro_tokens(model: nn.Module, batches: Batches, world: World) -> int:
    """Double the micro-batch until it is no faster, a share of the memory is used, or it is the whole step; says what it chose.

    All ranks choose the same. Only gradients are computed, by each rank for itself, and thrown away: a step sends them once however it
    is cut, and a rank that runs out of memory leaves nobody waiting.

    Args:
        model: an objective, or what `World.wrap` made of one.
        batches: of the run, whose first step is used; their `micro_tokens` is set to the result.
    """
    free, before = free_memory(world), used_memory(world.device)
    chosen, best, tried = SMALLEST, 0.0, []
    tokens = SMALLEST
    while True:
        batches.micro_tokens = tokens
        whole_step = batches.step(0)
        micro = whole_step[:2]  # the longest examples; two, as a step of several costs more where rows are compared (GradCache)
        try:
            seconds = min(timed(model, micro, world.device) for _ in range(TRIES))
        except torch.cuda.OutOfMemoryError:
            seconds = float("inf")
            model.zero_grad()
            torch.cuda.empty_cache()
        used = (used_memory(world.device) - before) / free
        # The slowest and the fullest rank speak for all, so that all decide alike.
        rate, used = agreed(sum(batch.tokens for batch in micro) / seconds, used, world)
        tried.append(f"{tokens:,}: {rate:,.0f}")
        if rate <= GAIN * best:
            break
        chosen, best = tokens, rate
        if 2 * used > SHARE[world.device.type] or len(whole_step) == 1:
            break
        tokens *= 2
    batches.micro_tokens = chosen
    if world.first:
        console.print(f"training.micro_tokens: {chosen:,}, measured (tokens/s of each process by tokens at once: {'; '.join(tried)})")
    return chosen


def timed(model: nn.Module, micro: list, device: torch.device) -> float:
    """Seconds of one forward and backward pass of this rank alone over micro-batches."""
    start = time.perf_counter()
    backward(getattr(model, "module", model), micro, World(0, 1, device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    model.zero_grad()
    return seconds


def agreed(rate: float, used: float, world: World) -> tuple[float, float]:
    """The lowest rate and the largest share of memory of all ranks."""
    worst = torch.tensor([[-rate, used]], dtype=torch.float64, device=world.device)
    rate, used = world.gather_rows(worst)[0].amax(0).tolist()
    return -rate, used


def free_memory(world: World) -> int:
    """Bytes for this process that nobody uses, of its device or as its part of main memory."""
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable"))  # what files are cached in counts as free
    return int(available.split()[1]) * 1024 // world.size


def used_memory(device: torch.device) -> int:
    """Bytes that this process has used at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
