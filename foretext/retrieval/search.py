"""Exact nearest neighbours over vectors in memory or on disk.

Legend: Q queries, N documents, D dimensions, R rows of a piece.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from foretext.errors import UserError
from foretext.progress import progress
from foretext.retrieval.lanes import lanes_for, left_to_lanes, side_by_side
from foretext.retrieval.limits import FEWEST, GROUPS, LEAST, SAMPLE, sampled
from foretext.retrieval.rescore import products, rescored
from foretext.retrieval.rounded import DIMENSIONS, Rounded, RoundedScan, candidates_for, scale_of
from foretext.retrieval.scan import ROWS, Scan, piece_rows
from foretext.retrieval.vectors import BLOCK_ROWS, blocks, check_shapes, rows_of, split_rows

MANY = 512  # queries from which on rounding the documents for them all pays,
ROWS_PER_PLACE = 1000  # if there are as many documents for each of the k asked for: below, candidates take longer than products;
HELD_ROWS_PER_PLACE = 250  # and where they are rounded already
LANE_PRODUCTS, LANE_ROWS = 5_000_000, 16_384  # a lane for fewer products, or rows to round, costs more than it saves
PART_ROWS = 8192  # that a lane reads before it asks for more, so that all end at the same time
UNIT_ROWS = 4096  # brought to length 1 at once: more do not stay in the cache until they are multiplied
CHUNKS = 8  # of a sample, looked at in lanes
SPARE = 16  # candidates kept beyond k, so that rounding inside the block products cannot push a true neighbour out
HELD_SAMPLE = 4 * SAMPLE  # rows, as products of 8 bits are cheap


def search(queries: np.ndarray, vectors: np.ndarray | Sequence[np.ndarray], k: int, similarity: str = "dot",
           block_rows: int = BLOCK_ROWS, device: str = "cpu", show_progress: bool = False,
           rounded: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest documents of each query, exactly: `ExactSearch` used once. Arguments, result and errors are as there."""
    return ExactSearch(vectors, similarity, block_rows, device).search(queries, k, show_progress, rounded)


class ExactSearch:
    """Vectors to search exactly.

    A search reads them once, block by block, so that memory does not grow with them: for each lane (`lanes.py`) a block of rows, its
    candidates, and Q*(k + 16) numbers.
    Block products in fp32 choose k + 16 candidates, whose products are then taken again in fp64. So equal vectors have
    equal scores, and the result does not depend on block size, device or shards (unless more than 16 documents tie at
    the last place, as far as fp32 tells them apart). Many queries are scanned with products of 8 bits first
    (`rounded.py`) where these are fast, and again in fp32 if their neighbours are not certainly among the candidates:
    the result is the same.

    Args:
        vectors: float (N, D), an array or memmap, or a list of them, numbered through.
        similarity: "dot", or "cosine" (of vectors of any length; the zero vector has cosine 0 with all).
        device: where the products run, for example "cuda".
        hold: keep the vectors rounded to 8 bits in memory as well, N D bytes, for many searches of few queries. Only where a CPU
            multiplies 8 bits (VNNI); elsewhere it changes nothing.

    Raises:
        UserError: an unknown similarity, vectors of different dimensions, or none.
    """

    def __init__(self, vectors: np.ndarray | Sequence[np.ndarray], similarity: str = "dot", block_rows: int = BLOCK_ROWS,
                 device: str = "cpu", hold: bool = False):
        self.shards = [vectors] if isinstance(vectors, np.ndarray) else list(vectors)
        self.size, self.similarity, self.block_rows, self.device = check_shapes(self.shards, "vectors"), similarity, block_rows, device
        if similarity not in ("dot", "cosine"):
            raise UserError(f"similarity: expected dot or cosine, found {similarity!r}")
        self.held: Rounded | None = None
        if hold and self._multiplies_8_bits:
            self.held = self._rounded()

    def search(self, queries: np.ndarray, k: int, show_progress: bool = False,
               rounded: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest documents of each query.

        Args:
            queries: float (Q, D).
            rounded: scan with products of 8 bits first; None: if vectors are held and more than 250 k, or on a CPU that multiplies 8 bits
                if there are more than 1,000 k and at least 512 queries. Only on a CPU.

        Returns:
            scores float32 (Q, min(k, N)), falling, and document numbers int64 of the same shape; ties by document number.

        Raises:
            UserError: dimensions that do not fit, or numbers that are not finite.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if k < 1:
            raise UserError(f"k = {k}: expected at least 1")
        if queries.ndim != 2 or queries.shape[1] != self.shards[0].shape[1]:
            raise UserError(f"queries of shape {queries.shape} do not fit vectors of {self.shards[0].shape[1]} dimensions; were"
                            " both made by the same model?")
        if not np.isfinite(queries).all():
            number = np.argwhere(~np.isfinite(queries))[0, 0]
            raise UserError(f"the vector of query number {number} is not finite (nan or inf)")
        if not len(queries):
            return np.empty((0, min(k, self.size)), np.float32), np.empty((0, min(k, self.size)), np.int64)
        if rounded is None:
            most = self.size // (ROWS_PER_PLACE if self.held is None else HELD_ROWS_PER_PLACE)
            rounded = k < most and (self.held is not None or len(queries) >= MANY and self._multiplies_8_bits)
        rounded = rounded and candidates_for(k) < self.size and queries.shape[1] in DIMENSIONS
        with _full_precision(), torch.inference_mode(), left_to_lanes(self._lanes(len(queries))):
            return self._nearest(queries, min(k, self.size), rounded, show_progress)

    def _nearest(self, queries: np.ndarray, k: int, rounded: bool, show_progress: bool) -> tuple[np.ndarray, np.ndarray]:
        ready, some = self._ready(queries), np.arange(len(queries))  # whose neighbours are not found yet
        scores, numbers = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        if rounded:
            scan = RoundedScan(ready, k, self._rounded_sample if self.held is None and self.size >= LEAST else self.held)
            self._guess(scan)
            if scan.promising:
                def score(found: np.ndarray, dtype: type) -> np.ndarray:
                    dtype = np.float64 if self.similarity == "cosine" else dtype  # squares of lengths may be lost in fp32
                    return products(queries, self.shards, found, self.similarity, dtype)

                scores, numbers, certain = self._scanned(scan, show_progress).nearest(score)
                some = some[~certain]
        for guess in (self._guess, lambda scan: False):
            if len(some):
                scan = Scan(ready[some], min(k + SPARE, self.size))
                guessed = guess(scan)
                scan = self._scanned(scan, show_progress)
                found = scan.of_all("numbers").cpu().numpy()
                scores[some], numbers[some] = rescored(queries[some], self.shards, found, k, self.similarity)
                some = some[guessed & ~scan.of_all("filled").cpu().numpy()]
        return scores, numbers

    def _guess(self, scan: Scan) -> bool:
        """Begin a scan with what a sample makes likely, where this pays."""
        if self.size < LEAST or len(scan) < FEWEST:
            return False
        sample = self._rounded_sample if isinstance(scan, RoundedScan) else self._sample
        chunks = [sample[first:first + len(sample) // CHUNKS] for first in range(0, len(sample), len(sample) // CHUNKS)]
        for part in scan.parts:
            found = side_by_side(partial(part.highest, groups=GROUPS // CHUNKS), chunks, self._lanes(len(scan)))
            part.sampled(torch.cat(list(found)), len(sample), self.size)
        return True

    def _scanned(self, scan: Scan, show_progress: bool) -> Scan:
        """The scan, once it has seen all rows; each lane has one of its own, and takes part after part."""
        held = self.held if isinstance(scan, RoundedScan) else None
        scans, lane = [], threading.local()
        lanes, at_once = self._lanes(len(scan)), piece_rows(len(scan))
        parts = self._parts(lanes, at_once)

        def read(part: int) -> None:
            if not hasattr(lane, "scan"):
                lane.scan, lane.room = scan.twin(), self._room() if held is None else None
                scans.append(lane.scan)
            for start, rows in self._pieces(part, parts, at_once, held, lane.room):
                lane.scan.add(rows, start)
                advance(len(rows))

        with progress("searching", self.size) if show_progress else contextlib.nullcontext(lambda rows: None) as advance:
            for _ in side_by_side(read, range(parts), lanes):
                pass
        for _ in side_by_side(lambda scan: scan.settle(), scans, lanes):
            pass
        first, *others = scans
        for other in others:
            first.join(other)
        return first

    def _lanes(self, queries: int) -> int:
        """How many lanes read the rows for so many queries."""
        return lanes_for(self.size * queries, LANE_PRODUCTS, torch.device(self.device))

    def _parts(self, lanes: int, at_once: int) -> int:
        """In how many parts."""
        rows = self.block_rows if lanes == 1 else min(self.block_rows, max(at_once, PART_ROWS))
        return lanes * -(-self.size // (rows * lanes))

    def _room(self):
        """For rows of length 1, where they are made on a CPU: new memory for each piece would cost more than they do."""
        return torch.empty(UNIT_ROWS, self.shards[0].shape[1]) if self.similarity == "cosine" and self.device == "cpu" else None

    def _pieces(self, part: int, parts: int, at_once: int, held: Rounded | None = None, room=None) -> Iterator[tuple[int, Any]]:
        """(number of the first row, rows) of one of equal parts of all rows: those held in 8 bits, or fp32 ones as products want them."""
        if held is not None:
            first, last = self.size * part // parts, self.size * (part + 1) // parts
            yield from ((start, held[start:min(start + at_once, last)]) for start in range(first, last, at_once))
            return
        rows, start = split_rows(self.shards, part, parts)
        for first, block in blocks(rows, self.block_rows):
            step = len(block) if self.device != "cpu" else at_once if room is None else min(at_once, UNIT_ROWS)
            for piece in range(0, len(block), step):
                yield start + first + piece, self._ready(block[piece:piece + step], room)

    def _ready(self, rows: np.ndarray, room=None):
        """fp32 rows as a tensor on the device, of length 1 for cosines."""
        found = torch.from_numpy(rows).to(self.device)
        if self.similarity == "dot":
            return found
        lengths = torch.linalg.vector_norm(found, dim=1, keepdim=True)
        return torch.mul(found, torch.where(lengths > 0, 1 / lengths, 0), out=None if room is None else room[:len(rows)])

    @cached_property
    def _sample(self):
        return self._ready(rows_of(self.shards, sampled(self.size)).astype(np.float32, copy=False))

    @cached_property
    def _rounded_sample(self) -> Rounded:
        return self.held[sampled(self.size, HELD_SAMPLE)] if self.held is not None else Rounded.of(self._sample)

    @property
    def _multiplies_8_bits(self) -> bool:
        return self.device == "cpu" and torch.cpu._is_vnni_supported() and self.shards[0].shape[1] in DIMENSIONS

    def _rounded(self) -> Rounded:
        """All rows in 8 bits."""
        lanes = lanes_for(self.size, LANE_ROWS, torch.device(self.device))
        parts = self._parts(lanes, ROWS)

        def each(work: Callable[[int, Any], Any]) -> Iterator:
            yield from chain.from_iterable(side_by_side(
                lambda part: [work(start, rows) for start, rows in self._pieces(part, parts, ROWS)], range(parts), lanes))

        with torch.inference_mode(), left_to_lanes(lanes):
            scale = max(each(lambda start, rows: scale_of(rows)))
            held = Rounded(torch.empty(self.size, self.shards[0].shape[1], dtype=torch.int8), scale)
            for piece in each(lambda start, rows: Rounded.of(rows, scale, held.codes[start:start + len(rows)])):
                held.include(piece)
        return held


@contextlib.contextmanager
def _full_precision():
    """fp32 products in fp32, also where a training loop has allowed TF32 or bf16 for them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
