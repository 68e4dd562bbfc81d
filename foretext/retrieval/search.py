"""Exact nearest neighbours over vectors in memory or on disk.

Legend: Q queries, N documents, D dimensions, R rows of a piece.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from foretext.errors import UserError
from foretext.progress import progress
from foretext.retrieval.lanes import lanes_for, side_by_side
from foretext.retrieval.limits import FEWEST, LEAST, Likely, likely, sampled
from foretext.retrieval.rounded import Rounded, RoundedScan, candidates_for
from foretext.retrieval.scan import ROWS, Scan, piece_rows
from foretext.retrieval.vectors import BLOCK_ROWS, blocks, check_shapes, rows_of, split_rows

MANY = 128  # queries from which on rounding the documents for them all pays,
ROWS_PER_PLACE = 500  # if there are as many documents for each of the k asked for: below, candidates take longer than products
LANE_PRODUCTS, LANE_ROWS = 20_000_000, 16_384  # a lane for fewer products, or rows to round, costs more than it saves
PART_ROWS = 8192  # that a lane reads before it asks for more, so that all end at the same time
RESCORED_TOGETHER = 8  # queries whose candidates are taken to fp64 at once
RESCORED_BY_LANE = 32  # queries: a lane for fewer costs more than it saves
SPARE = 16  # candidates kept beyond k, so that rounding inside the block products cannot push a true neighbour out


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
    the last place). Many queries are scanned with rounded products first (`rounded.py`) where these are fast, and again in
    fp32 if their neighbours are not certainly among the candidates: the result is the same.

    Args:
        vectors: float (N, D), an array or memmap, or a list of them, numbered through.
        similarity: "dot", or "cosine" (of vectors of any length; the zero vector has cosine 0 with all).
        device: where the products run, for example "cuda".
        hold: keep the vectors rounded to bf16 in memory as well, 2 N D bytes, for many searches of few queries. Only where a CPU
            multiplies bf16; elsewhere it changes nothing.

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
        if hold and device == "cpu" and torch.cpu._is_avx512_bf16_supported():
            self.held = self._rounded()

    def search(self, queries: np.ndarray, k: int, show_progress: bool = False,
               rounded: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest documents of each query.

        Args:
            queries: float (Q, D).
            rounded: scan with bf16 products first; None: vectors that are held or at least 128 queries, 500 k documents, a CPU that
                multiplies bf16. Only on a CPU.

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
            fast = self.held or len(queries) >= MANY and self.device == "cpu" and torch.cpu._is_avx512_bf16_supported()
            rounded = bool(fast) and self.size > ROWS_PER_PLACE * k
        with _full_precision(), torch.inference_mode():
            candidates = self._candidates(self._ready(queries), k, rounded, show_progress)
        return rescored(queries, self.shards, candidates, k, self.similarity)

    def _candidates(self, queries, k: int, rounded: bool, show_progress: bool) -> np.ndarray:
        """Numbers (Q, C) of documents among which are the k nearest; -1 is an empty place."""
        keep, some, limits = min(k + SPARE, self.size), np.arange(len(queries)), None
        found = np.full((len(queries), min(self.size, max(keep, candidates_for(k)))), -1)

        def scan(some: np.ndarray, make: Callable) -> np.ndarray:
            """Scan for some queries; those whose nearest are not certain."""
            numbers, certain = self._scanned(make, len(some), show_progress)
            found[some] = -1
            found[some, :numbers.shape[1]] = numbers
            return some[~certain]

        if self.size >= LEAST and len(queries) >= FEWEST:
            guess = likely(queries, self._sample, self.size, k, candidates_for(k) if rounded else keep)
            limits = guess.limits if torch.isfinite(guess.limits).all() else None  # a scan will find the row that is at fault
        if rounded and candidates_for(k) < self.size and (limits is None or self._tells_apart(queries, k, guess)):
            some = scan(some, lambda: RoundedScan(queries, k, limits, self.held))
        if len(some) and limits is not None:
            some = scan(some, lambda: Scan(queries[some], keep, limits[some]))
        if len(some):
            scan(some, lambda: Scan(queries[some], keep))
        return found

    def _scanned(self, make: Callable, queries: int, show_progress: bool) -> tuple[np.ndarray, np.ndarray]:
        """What a scan finds in all rows; each lane has a scan of its own and takes part after part."""
        scans: dict[int, Any] = {}

        def read(part: int) -> None:
            scan = scans.get(threading.get_ident()) or scans.setdefault(threading.get_ident(), make())
            for start, rows in self._pieces(part, parts, piece_rows(queries), self.held if isinstance(scan, RoundedScan) else None):
                scan.add(rows, start)
                advance(len(rows))

        with progress("searching", self.size) if show_progress else contextlib.nullcontext(lambda rows: None) as advance:
            lanes, parts = self._lanes(self.size * queries // LANE_PRODUCTS, piece_rows(queries))
            for _ in side_by_side(read, range(parts), lanes):
                pass
        for _ in side_by_side(lambda scan: scan.settle(), list(scans.values()), lanes):
            pass
        scan, *others = scans.values()
        for other in others:
            scan.join(other)
        numbers, certain = scan.candidates()
        return numbers.cpu().numpy(), certain.cpu().numpy()

    def _lanes(self, most: int, at_once: int) -> tuple[int, int]:
        """How many lanes read the rows, and in how many parts."""
        lanes = lanes_for(most, 1, torch.device(self.device))
        rows = self.block_rows if lanes == 1 else min(self.block_rows, max(at_once, PART_ROWS))
        return lanes, lanes * -(-self.size // (rows * lanes))

    def _pieces(self, part: int, parts: int, at_once: int, held: Rounded | None = None) -> Iterator[tuple[int, Any]]:
        """(number of the first row, rows) of one of equal parts of all rows: those held in bf16, or fp32 ones as products want them."""
        rows, start = split_rows(self.shards if held is None else [held.rows], part, parts)
        if held is not None:
            yield from ((start + first, rows[0][first:first + at_once]) for first in range(0, len(rows[0]), at_once))
            return
        for first, block in blocks(rows, self.block_rows):
            step = at_once if self.device == "cpu" else len(block)
            for piece in range(0, len(block), step):
                yield start + first + piece, self._ready(block[piece:piece + step])

    def _ready(self, rows: np.ndarray):
        """fp32 rows as a tensor on the device, of length 1 for cosines."""
        found = torch.from_numpy(rows).to(self.device)
        if self.similarity == "dot":
            return found
        lengths = torch.linalg.vector_norm(found, dim=1, keepdim=True)
        return found * torch.where(lengths > 0, 1 / lengths, 0)

    @cached_property
    def _sample(self):
        return self._ready(rows_of(self.shards, sampled(self.size)).astype(np.float32, copy=False))

    def _tells_apart(self, queries, k: int, guess: Likely) -> bool:
        """Whether rounding leaves most queries certain of their neighbours, as far as the sample shows."""
        scan = RoundedScan(queries, k, held=self.held or Rounded.of(self._sample))
        return scan.tells_apart(guess)

    def _rounded(self) -> Rounded:
        held = Rounded(torch.empty(self.size, self.shards[0].shape[1], dtype=torch.bfloat16))

        def read(part: int) -> list[Rounded]:
            return [Rounded.of(rows, into=held.rows[start:start + len(rows)]) for start, rows in self._pieces(part, parts, ROWS)]

        lanes, parts = self._lanes(self.size // LANE_ROWS, ROWS)
        with torch.inference_mode():
            for pieces in side_by_side(read, range(parts), lanes):
                for piece in pieces:
                    held.include(piece)
        return held


def rescored(queries: np.ndarray, shards: list[np.ndarray], candidates: np.ndarray, k: int,
             similarity: str) -> tuple[np.ndarray, np.ndarray]:
    """Products of each query with its candidates (Q, C) in fp64, and the best k of them; -1 is an empty place."""
    k = min(k, candidates.shape[1])
    scores = np.empty((len(queries), k), dtype=np.float32)
    indices = np.empty((len(queries), k), dtype=np.int64)

    def rescore(some: slice) -> None:
        numbers, query = np.sort(candidates[some], axis=1), queries[some].astype(np.float64)
        numbers = numbers[:, min(int((numbers < 0).sum(axis=1).min()), numbers.shape[1] - k):]  # places that are empty for all
        documents = rows_of(shards, numbers).astype(np.float64)
        products = np.einsum("qcd,qd->qc", documents, query)  # row by row: a matrix product may round equal rows differently
        if similarity == "cosine":
            lengths = np.sqrt(np.einsum("qcd,qcd->qc", documents, documents) * (query * query).sum(axis=1, keepdims=True))
            products = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        products = np.where(numbers < 0, -np.inf, products).astype(np.float32)
        order = np.argsort(-products, axis=1, kind="stable")[:, :k]
        scores[some], indices[some] = np.take_along_axis(products, order, 1), np.take_along_axis(numbers, order, 1)

    parts = [slice(first, first + RESCORED_TOGETHER) for first in range(0, len(queries), RESCORED_TOGETHER)]
    for _ in side_by_side(rescore, parts, lanes_for(len(queries), RESCORED_BY_LANE, torch.device("cpu"))):
        pass
    return scores, indices


def merge_found(scores: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k of results of several parts side by side, (Q, parts * k) with numbers through all parts; -1 is an empty place.

    Exactly what one search over everything finds: scores do not depend on the split, and ties go to the lower number there as here.
    """
    order = np.lexsort((indices, -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)


@contextlib.contextmanager
def _full_precision():
    """fp32 products in fp32, also where a training loop has allowed TF32 or bf16 for them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
