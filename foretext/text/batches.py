"""Which documents form step s, and how they travel: flat ids, lengths, and one key per example.

The order of an epoch is an addressed permutation; example g of the whole run is place g mod N of epoch g // N; step s owns examples
s*B .. (s+1)*B - 1, sorted by length and cut into micro-batches of about `micro_tokens` tokens. Nothing is remembered between
steps, so a run resumes at any step, and what a step contains does not depend on how many ranks or workers make it.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from foretext.errors import UserError
from foretext.text.randomness import example_keys, integers, permutation, uniform
from foretext.text.store import Store

SHORTEST_PIECE = 8  # tokens; a shorter remainder of a split row is left out


@dataclass(frozen=True)
class Documents:
    """B token sequences end to end.

    `keys` address the random choices about each sequence; `documents` name where it came from.
    """

    ids: Tensor  # (T,) int64
    lengths: Tensor  # (B,) int64
    keys: Tensor  # (B,) int64
    documents: Tensor  # (B,) int64

    @property
    def sequence(self) -> Tensor:
        """(T,) the sequence each token belongs to."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)

    @property
    def starts(self) -> Tensor:
        """(B,) where each sequence begins in `ids`."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def positions(self) -> Tensor:
        """(T,) 0, 1, 2, ... within each sequence."""
        return torch.arange(len(self.ids)) - self.starts.repeat_interleave(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def part(self, starts: Tensor, lengths: Tensor) -> "Documents":
        """Of each sequence the `lengths` (B,) tokens from its own position `starts` (B,) on."""
        return replace(self, ids=self.ids[spans(self.starts + starts, lengths)], lengths=lengths)

    def select(self, rows: Tensor) -> "Documents":
        """The sequences `rows`, in that order."""
        ids = self.ids[spans(self.starts[rows], self.lengths[rows])]
        return Documents(ids, self.lengths[rows], self.keys[rows], self.documents[rows])

    def window(self, longest: int) -> "Documents":
        """Of each sequence over `longest` tokens a random stretch of that many."""
        room = (self.lengths - longest).clamp(min=0)
        starts = integers(self.keys, "window", torch.zeros_like(self.keys), room + 1)
        return self.part(starts, self.lengths - room)

    def framed(self, first: int | list[int], last: int, max_len: int) -> "Documents":
        """`first` x `last`, with x cut so that at most `max_len` tokens remain; `first` may be several tokens (CLS and a prompt)."""
        head = torch.as_tensor([first] if isinstance(first, int) else first)
        kept = self.part(torch.zeros_like(self.lengths), self.lengths.clamp(max=max_len - len(head) - 1))
        lengths = kept.lengths + len(head) + 1
        ends = lengths.cumsum(0)
        ids = torch.full((int(lengths.sum()),), last)
        ids[spans(ends - lengths + len(head), kept.lengths)] = kept.ids
        ids[((ends - lengths)[:, None] + torch.arange(len(head))).flatten()] = head.repeat(len(lengths))
        return replace(self, ids=ids, lengths=lengths)


def spans(starts: Tensor, lengths: Tensor) -> Tensor:
    """The indices starts[0] .. starts[0]+lengths[0]-1, starts[1] .. , end to end."""
    ends = lengths.cumsum(0)
    return torch.arange(int(ends[-1]) if len(ends) else 0) + (starts - ends + lengths).repeat_interleave(lengths)


class Source(Protocol):
    """Something that training reads: documents of a store, or pairs."""

    lengths: np.ndarray  # (N,) tokens of each example, for balancing micro-batches

    def read(self, rows: np.ndarray, keys: Tensor) -> Any:
        """The examples `rows`, carrying `keys`."""


class StoreSource:
    """The rows of a store as `Documents`, rows over `max_tokens` split into pieces of equal length.

    Args:
        part: "train" or "valid": whole documents are held out by an addressed draw; "all": every row.
        valid_share: the share of documents held out.
    """

    def __init__(self, store: Store, max_tokens: int, part: str = "all", valid_share: float = 0.0):
        rows = rows_of(store, part, valid_share)
        lengths = np.diff(store.offsets)[rows]
        pieces = np.maximum(1, -(-lengths // max_tokens))
        row = np.repeat(np.arange(len(rows)), pieces)
        piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begin, end = piece * lengths[row] // pieces[row], (piece + 1) * lengths[row] // pieces[row]
        keep = end - begin >= min(SHORTEST_PIECE, max_tokens)
        self.left_out = int((~keep).sum())
        self.starts = (np.asarray(store.offsets)[rows][row] + begin)[keep]
        self.lengths = (end - begin)[keep]
        self.documents = np.asarray(store.documents)[rows][row][keep]
        self.tokens = store.tokens

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, rows: np.ndarray, keys: Tensor) -> Documents:
        lengths = torch.from_numpy(self.lengths[rows])
        where = spans(torch.from_numpy(self.starts[rows]), lengths)
        ids = torch.from_numpy(self.tokens[where.numpy()].astype(np.int64))
        return Documents(ids, lengths, keys, torch.from_numpy(self.documents[rows]))


def rows_of(store: Store, part: str, valid_share: float) -> np.ndarray:
    """Row numbers of the training or the held-out part of a store; a document is never on both sides."""
    documents = torch.from_numpy(np.array(store.documents))  # a copy: torch wants writable memory
    held_out = uniform_of_documents(documents) < valid_share
    wanted = {"train": ~held_out, "valid": held_out, "all": torch.ones_like(held_out)}[part]
    return wanted.nonzero().squeeze(1).numpy()


def uniform_of_documents(documents: Tensor) -> Tensor:
    """One number in [0, 1) per document, the same in every run: who is held out does not depend on the seed."""
    return uniform(example_keys(0, 0, torch.tensor([-2])), "valid", documents)


class Batches:
    """The micro-batches of every step of a run, for one rank.

    Args:
        collate: examples -> batch; an objective's.
        batch_size: examples of one step over all ranks.
        micro_tokens: about how many tokens a micro-batch holds; it never changes what a step computes.
        first: the step whose examples open the first epoch: the source begins there (steps are numbered over the whole run).
        static: every epoch has the keys, so the random choices, of epoch 0; its order stays its own.
    """

    def __init__(self, source: Source, collate: Callable[[Any], Any], batch_size: int, micro_tokens: int, seed: int,
                 rank: int = 0, world: int = 1, first: int = 0, static: bool = False):
        self.source, self.collate, self.batch_size, self.micro_tokens = source, collate, batch_size, micro_tokens
        self.seed, self.rank, self.world, self.first, self.static = seed, rank, world, first, static
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(len(source.lengths), seed, epoch))

    def step(self, step: int) -> list[Any]:
        """This rank's micro-batches of a step, longest examples first."""
        rows, keys = self.examples(step)
        parts = split_evenly(self.source.lengths[rows], self.micro_tokens, self.world)
        return [self.collate(self.source.read(rows[p], keys[torch.from_numpy(p)])) for p in parts[self.rank :: self.world]]

    def examples(self, step: int) -> tuple[np.ndarray, Tensor]:
        """Rows and keys of all examples of a step, over all ranks."""
        count = len(self.source.lengths)
        places = np.arange((step - self.first) * self.batch_size, (step - self.first + 1) * self.batch_size)
        epochs = places // count + (self.first << 20)  # a source that begins later has epochs of its own
        rows = np.concatenate([self._order(int(e))[places[epochs == e] % count] for e in np.unique(epochs)])
        return rows, example_keys(self.seed, 0 if self.static else torch.from_numpy(epochs), torch.from_numpy(rows))

    def prefetched(self, first: int, last: int, ahead: int = 2) -> Iterator[list[Any]]:
        """Steps first .. last-1, made `ahead` of time by a thread, so that an accelerator never waits for them.

        With `ahead` 0 each is made when it is wanted: where the model runs on the same cores, a thread would only get in its way.
        """
        if not ahead:
            yield from map(self.step, range(first, last))
            return
        ready: queue.Queue = queue.Queue(maxsize=ahead)
        stop = threading.Event()

        def put(item: Any) -> None:
            while not stop.is_set():
                with suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    return

        def work() -> None:
            try:
                for step in range(first, last):
                    if stop.is_set():
                        return
                    put(self.step(step))
            except BaseException as error:  # raised again where the step is wanted
                put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            for _ in range(first, last):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


def split_evenly(lengths: np.ndarray, micro_tokens: int, world: int) -> list[np.ndarray]:
    """Cut the examples of a step into micro-batches of about equal tokens, each at most about `micro_tokens`.

    Returns:
        Index arrays, longest examples first; their number is a multiple of `world`.
    """
    order = np.argsort(-lengths, kind="stable")
    tokens = np.cumsum(lengths[order])
    parts = -(-int(tokens[-1]) // micro_tokens)
    parts = min(-(-parts // world) * world, len(order) // world * world)
    if parts == 0:
        raise UserError(f"training.batch_size: a step of {len(order)} examples cannot be shared by {world} processes")
    middles = tokens - lengths[order] / 2
    owner = np.minimum((middles * parts / tokens[-1]).astype(int), parts - 1)
    owner = np.maximum.accumulate(owner)
    if len(np.unique(owner)) < parts:  # one example longer than a whole share: fall back to equal numbers
        owner = np.arange(len(order)) * parts // len(order)
    return [order[owner == part] for part in range(parts)]
