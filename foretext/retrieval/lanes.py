"""Batches side by side on a CPU, each on cores of its own.

A product keeps all cores busy; the hundreds of small operations around it do not, and each waits for the slowest core. Batches that share
nothing need not wait: on two cores encoding is about a sixth faster (docs/LOG.md).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item, Result = TypeVar("Item"), TypeVar("Result")

SMALLEST = 1024  # tokens that are worth a lane
MOST = 8  # lanes; with more cores each has several, as activations need room in caches and Python runs one lane at a time


def lanes_for(tokens: int, device: torch.device) -> int:
    """How many batches to compute at a time."""
    return max(1, min(torch.get_num_threads(), tokens // SMALLEST, MOST)) if device.type == "cpu" else 1


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

    with ThreadPoolExecutor(lanes, "lane", torch.set_num_threads, (threads // lanes,)) as pool:
        try:
            yield from pool.map(run, items)  # which cancels what has not begun if the caller breaks off
        finally:
            torch.set_num_threads(threads)  # for threads to come: this one's own number never changed
