"""Batches side by side on a CPU, each on cores of its own.

A product keeps all cores busy; the hundreds of small operations around it do not, and each waits for the slowest core. Batches that share
nothing need not wait: on two cores encoding is about a sixth faster (docs/LOG.md).
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

Item, Result = TypeVar("Item"), TypeVar("Result")

TOKENS = 1024  # a lane for fewer costs more than it saves
AHEAD = 4  # items per lane that are in line: whoever else wants the lanes waits for no more
MOST = 8  # lanes; with more cores each has several, as activations need room in caches and Python runs one lane at a time

_open: dict[tuple[int, int], ThreadPoolExecutor] = {}
_opening = threading.Lock()
_here = threading.local()  # `lane`: whether this thread is one; `cores`: how many it has left to lanes


def lanes_for(amount: int, least: int, device: torch.device) -> int:
    """How many parts of an amount of work to do at a time, each of at least `least`."""
    cores = _cores()
    if device.type != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < min(cores, os.cpu_count() or 1):
        return 1  # OpenMP tied this thread to a core: others would share it
    return max(1, min(cores, amount // least, MOST))


def _cores() -> int:
    return getattr(_here, "cores", None) or torch.get_num_threads()


@contextmanager
def left_to_lanes(lanes: int):
    """What this thread computes itself, between lanes, is done on one core: OpenMP's threads keep theirs for milliseconds afterwards."""
    if lanes < 2 or getattr(_here, "cores", None):
        yield
        return
    with _opening:
        _here.cores = torch.get_num_threads()
        torch.set_num_threads(1)
        _of_others(_here.cores)
    try:
        yield
    finally:
        with _opening:
            torch.set_num_threads(_here.cores)
        _here.cores = None


def _of_others(cores: int) -> None:
    """Threads to come have so many cores, whatever this one has."""
    thread = threading.Thread(target=torch.set_num_threads, args=(cores,))
    thread.start()
    thread.join()


def even_budget(tokens: int, longest: int, budget: int, lanes: int) -> int:
    """Tokens per batch, at most `budget`, so that the lanes end at the same time; no sequence is longer than `longest`."""
    batches = lanes * -(-tokens // (budget * lanes))
    return min(budget, tokens // batches + longest)


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> Iterator[Result]:
    """`work(item)` of every item, in order, `lanes` at a time, in inference mode where the caller is; torch's threads are shared out.

    What has not begun when the caller breaks off is not done, and what has is waited for.
    """
    inference, lanes = torch.is_inference_mode_enabled(), min(lanes, len(items))
    if lanes < 2 or getattr(_here, "lane", False):  # a lane that waited for lanes would wait for itself
        yield from map(work, items)
        return

    def run(item: Item) -> Result:
        with torch.inference_mode(inference):  # a thread is without
            return work(item)

    pool, rest = _threads(lanes, max(1, _cores() // lanes)), iter(items)
    begun = deque(pool.submit(run, item) for item in islice(rest, AHEAD * lanes))
    try:
        while begun:
            yield begun[0].result()
            begun.popleft()
            begun.extend(pool.submit(run, item) for item in islice(rest, 1))
    finally:
        for future in begun:
            future.cancel()
        wait(begun)


def _threads(lanes: int, cores: int) -> ThreadPoolExecutor:
    """So many threads, of so many cores each. They stay, as new ones begin with memory that is not theirs yet."""
    def begin() -> None:
        _here.lane = True
        torch.set_num_threads(cores)
        torch.get_num_threads()  # a thread takes the latest number when it first asks, and keeps it
        everyone.wait()

    with _opening:
        if (lanes, cores) not in _open:
            before, everyone = torch.get_num_threads(), threading.Barrier(lanes + 1)
            pool = ThreadPoolExecutor(lanes, "lane", begin)
            try:
                for _ in range(lanes):
                    pool.submit(int)  # each begins a thread, as none is idle before all have
                everyone.wait()
            except BaseException:
                everyone.abort()
                raise
            finally:
                torch.set_num_threads(before)
                _of_others(_cores())
            _open[lanes, cores] = pool
        return _open[lanes, cores]


def _forget() -> None:
    """A process that forked has no threads."""
    global _opening
    _opening = threading.Lock()
    _open.clear()


os.register_at_fork(after_in_child=_forget)
