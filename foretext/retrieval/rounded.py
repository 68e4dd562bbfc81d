"""Candidates of many queries from products of rounded numbers (bf16), with a bound that says whose neighbours are all among them.

A product of rounded vectors is off by at most |q - q'| |d'| + |q| |d - d'| (Cauchy-Schwarz), its own rounding aside. So once more than
that lies between the k-th best and the last candidate, no other document can be one of the k best.

Legend: Q queries, D dimensions, R rows of a piece.
"""

from dataclasses import dataclass
from typing import Any

import torch

from foretext.retrieval.best import scores_of
from foretext.retrieval.limits import Likely
from foretext.retrieval.scan import ROWS, TOGETHER, Part, Scan

BF16 = 2.0**-8  # largest relative error of rounding
TINY = 1e-19  # numbers below have squares that are lost, or inexact
CERTAIN = 0.75  # share of the queries that rounding has to leave certain


def candidates_for(k: int) -> int:
    """How many candidates are kept of each query."""
    return 2 * k + 32


@dataclass
class Rounded:
    """Rows d in bf16, d', and what that took from them."""

    rows: Any = None  # bf16 (R, D)
    length: float = 0.0  # at least the greatest |d'|
    error: float = 0.0  # at least the greatest |d - d'|

    @classmethod
    def of(cls, rows, into=None, lost=None) -> "Rounded":
        """fp32 rows (R, D) rounded.

        Args:
            into: bf16 (R, D), what the rounded rows are written to. lost: fp32 (R, D), room for what they lose.
        """
        into = rows.bfloat16() if into is None else into.copy_(rows)
        lost = (torch.empty_like(rows) if lost is None else lost).copy_(into).sub_(rows)
        length, error = (float(_lengths(x).max()) for x in (rows, lost))
        return cls(into, (length + error) * (1 + BF16), error * (1 + BF16))  # these too are rounded, if far less

    def include(self, other: "Rounded") -> bool:
        """Make the bounds hold for other rows too; whether they had not."""
        if not (other.length > self.length or other.error > self.error):
            return False
        self.length, self.error = max(self.length, other.length), max(self.error, other.error)
        return True


class _Part(Part):
    """Queries that are multiplied at once, and the candidates of each."""

    dtype = torch.bfloat16

    def __init__(self, queries, k: int, limits=None):
        super().__init__(queries, candidates_for(k), None if limits is None else _bf16_below(limits))
        self.k, self.lengths, self.errors = k, _lengths(queries), _lengths(queries - queries.bfloat16().float())
        self.sums = queries.shape[1] * 2.0**-23  # relative error of adding up in fp32
        self.slack = torch.zeros_like(self.lengths)  # (Q,) greatest error of a product with the rows so far, but for its own rounding

    def lengthen(self, length: float, error: float) -> None:
        """Rows may now be this long, and this far from what was rounded: with others a product may be further off."""
        self.settle()
        self.slack = (self.errors * length + self.lengths * (error + self.sums * (length + error))).nan_to_num(nan=torch.inf)
        self._set_limits()

    def near(self):
        """(Q, 2 k + 32) numbers of the candidates that may be among the k nearest, -1 in place of the others."""
        return self.numbers.masked_fill(scores_of(self.keys) < self._least()[:, None], -1)

    def certain(self):
        """(Q,) bool: nothing that was left out can be among the k nearest."""
        return self._left_out() < self._least()

    def lowered(self, kth):
        """(Q,): products below it, exact ones being within the bound, are of documents that k others beat, the last by `kth`."""
        # Products are rounded too, and margins above a limit, which are smaller.
        return kth - 2 * self.slack - 2 * BF16 * (kth.abs() + 2 * self.slack)

    def _least(self):
        return self.lowered(scores_of(self.keys[:, -self.k]))

    def _left_out(self):
        """(Q,): no product that was left out is above it, but for those that k others beat."""
        sorted_out = scores_of(self.keys[:, 0])
        return sorted_out if self.least is None else torch.maximum(sorted_out, self.least)

    def _set_limits(self) -> None:
        if self.least is not None or self.filled.all():
            self._limit(_bf16_below(torch.maximum(self._least(), self._left_out())))


class RoundedScan(Scan):
    """Candidates of `queries`, fp32 (Q, D), for the k nearest of each, 2 k + 32 at the most.

    Args:
        limits: fp32 (Q,), what a product has to be above from the beginning (`limits.py`); None: no limit.
        held: rows, some of which will be added; None: those that are added are not rounded yet.
    """

    part = _Part

    def __init__(self, queries, k: int, limits=None, held: Rounded | None = None):
        super().__init__(queries, k, limits)
        self.bounds = Rounded()  # of the rows so far
        self.room = [torch.empty(0 if held else ROWS, queries.shape[1], dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
        if held:
            self._include(held)

    def add(self, rows, start: int) -> None:
        """Look at rows, fp32 (R, D) or held ones, the first of which has number `start`."""
        if rows.dtype == torch.bfloat16:
            super().add(rows, start)
            return
        for piece in rows.split(ROWS):
            rounded = Rounded.of(piece, *(room[: len(piece)] for room in self.room))
            self._include(rounded)
            super().add(rounded.rows, start)
            start += len(piece)

    def tells_apart(self, likely: Likely) -> bool:
        """Whether most queries' k nearest will be certain, if all is as is likely."""
        certain = [part.lowered(nearest) > limits for part, nearest, limits in
                   zip(self.parts, likely.nearest.split(TOGETHER), likely.limits.split(TOGETHER))]
        return float(torch.cat(certain).float().mean()) >= CERTAIN

    def join(self, other: "RoundedScan") -> None:
        """Take over what was found in other rows."""
        self._include(other.bounds)
        super().join(other)

    def _include(self, rows: Rounded) -> None:
        if self.bounds.include(rows):
            for part in self.parts:
                part.lengthen(self.bounds.length, self.bounds.error)


def _lengths(rows):
    """(R,) at least the lengths of fp32 (R, D), inf where a square is."""
    return torch.linalg.vector_norm(rows, dim=1) + TINY * rows.shape[1] ** 0.5


def _bf16_below(numbers):
    """fp32 numbers, bf16 ones, that are not above these."""
    return (numbers - numbers.abs() * BF16).bfloat16().float()
