"""Batches side by side on a CPU, each on cores of its own.

A product keeps all cores busy; the hundreds of small operations around it do not, and each waits for the slowest core. Batches that share
nothing need not wait: on two cores encoding is about a sixth faster (docs/LOG.md).
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item, Result = TypeVar("Item"), TypeVar("Result")

TOKENS = 1024  # a lane for fewer costs more than it saves
MOST = 8  # lanes; with more cores each has several, as activations need room in caches and Python runs one lane at a time

_beginning = threading.Lock()


def lanes_for(amount: int, least: int, device: torch.device) -> int:
    """How many parts of an amount of work to do at a time, each of at least `least`."""
    cores = torch.get_num_threads()
    if device.type != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < min(cores, os.cpu_count() or 1):
        return 1  # OpenMP tied this thread to a core: others would share it
    return max(1, min(cores, amount // least, MOST))


def even_budget(tokens: int, longest: int, budget: int, lanes: int) -> int:
    """Tokens per batch, at most `budget`, so that the lanes end at the same time; no sequence is longer than `longest`."""
    batches = lanes * -(-tokens // (budget * lanes))
    return min(budget, tokens // batches + longest)


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> Iterator[Result]:
    """`work(item)` of every item, in order, `lanes` at a time, in inference mode where the caller is; torch's threads are shared out."""
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    lanes = min(lanes, len(items))
    if lanes < 2:
        yield from map(work, items)
        return

    def run(item: Item) -> Result:
        with torch.inference_mode(inference):  # a thread begins without
            return work(item)

    def begin() -> None:
        torch.set_num_threads(max(1, threads // lanes))
        torch.get_num_threads()  # a thread takes the latest number when it first asks, and keeps it
        everyone.wait()

    everyone = threading.Barrier(lanes + 1)
    with ThreadPoolExecutor(lanes, "lane", begin) as pool:
        with _beginning:
            results = pool.map(run, items)
            everyone.wait()
            torch.set_num_threads(threads)  # for threads to come
        yield from results  # which cancels what has not begun if the caller breaks off
