"""Candidates of many queries from products of vectors rounded to 8 bits, with a bound that says whose neighbours are all among them.

Whole numbers are multiplied exactly, so that a product of rounded vectors is off by at most |q - q'| |d'| + |q| |d - d'| (Cauchy-Schwarz).
Once k documents are scored exactly, those whose rounded products are further below the k-th score than that are out.

Legend: Q queries, D dimensions, R rows of a piece.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from foretext.retrieval.best import Best, numbers_of, scores_of
from foretext.retrieval.limits import highest, likely
from foretext.retrieval.rescore import best_of
from foretext.retrieval.scan import ROWS, Scan

STEPS = 127  # the highest whole number; the lowest is -127
DIMENSIONS = range(2, 2**31 // STEPS**2)  # whose products are right: `_int_mm` adds up in int32, and of one dimension it made nonsense
TINY = 1e-19  # numbers below have squares that are lost, or inexact
SAFE = 1 + 2.0**-10  # lengths are rounded too
CERTAIN = 0.75  # share of the queries that rounding has to leave certain


def candidates_for(k: int) -> int:
    """How many candidates are kept of each query."""
    return 6 * k + 200


@dataclass
class Rounded:
    """Rows d as whole numbers c, d' = scale c, and what that took from them."""

    codes: Any = None  # int8 (R, D)
    scale: float = 1.0
    length: float = 0.0  # at least the greatest |d'|
    error: float = 0.0  # at least the greatest |d - d'|

    @classmethod
    def of(cls, rows, scale: float | None = None, into=None, room=None) -> "Rounded":
        """fp32 rows (R, D) rounded.

        Args:
            scale: the step between whole numbers; None: `scale_of` these rows. into: int8 (R, D), what they are written to.
            room: fp32 (2, R, D), to work in.
        """
        scale = scale_of(rows) if scale is None else scale
        steps, whole = torch.empty(2, *rows.shape) if room is None else room
        torch.round(torch.mul(rows, 1 / scale, out=steps), out=whole)
        codes = whole.to(torch.int8) if into is None else into.copy_(whole)
        length, error = (float(_lengths(x).max()) * scale * SAFE for x in (whole, steps.sub_(whole)))
        if not math.isfinite(length + error):  # so are some rows
            length = error = math.inf
        return cls(codes, scale, length, error + 2.0**-20 * length)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, some: slice | np.ndarray) -> "Rounded":
        """Some of the rows; the bounds hold for them too."""
        return replace(self, codes=self.codes[some])

    def include(self, other: "Rounded") -> bool:
        """Make the bounds hold for other rows too; whether they had not."""
        if other.length <= self.length and other.error <= self.error:
            return False
        self.length, self.error = max(self.length, other.length), max(self.error, other.error)
        return True


def scale_of(rows) -> float:
    """The step with which the highest number of the rows is the highest whole number."""
    low, high = torch.aminmax(rows)
    highest = max(-float(low), float(high))
    return highest / STEPS if highest > TINY else 1.0


class RoundedPart(Best):
    """Queries that are multiplied at once, and the candidates of each. Each is measured in a unit in which whole numbers come near it."""

    def __init__(self, queries, k: int):
        super().__init__(len(queries), candidates_for(k))
        self.k, self.unit = k, queries.abs().amax(dim=1).clamp(min=TINY) / STEPS
        queries = queries / self.unit[:, None]
        whole = queries.round()
        self.order = whole.to(torch.int8).T
        self.lengths, self.errors = _lengths(queries) * SAFE, _lengths(queries - whole) * SAFE
        self.sums = (queries.shape[1] + 8) * 2.0**-22  # relative error of what is added up, multiplied and scaled in fp32
        self.apart = None  # (Q,) whether the candidates are likely to be few enough, once a sample was seen
        self.lengthen(0.0, 0.0)

    def lengthen(self, length: float, error: float) -> None:
        """Rows may now be this long, and this far from what was rounded: with others a product may be further off."""
        self.settle()
        highest = self.lengths * (length + error)  # (Q,) product
        self.usable = bool(torch.isfinite(highest * self.unit.clamp(min=1)).all())
        self.fp32_error = self.sums * highest  # (Q,) of a product
        self.error = self.errors * length + self.lengths * error + self.fp32_error  # (Q,) of a product of rounded vectors
        self.set_limits()

    def highest(self, rows: Rounded, groups: int):
        """fp32 (groups, Q): the highest products of groups of rows."""
        return highest(torch._int_mm(rows.codes, self.order), groups) * rows.scale

    def sampled(self, highest, sample: int, size: int) -> None:
        """Expect what is likely of all `size` rows by the highest products, (groups, Q), of `sample` of them."""
        low, nearest = likely(highest, sample, size, self.k)
        self.expect(low - self.error)
        self.apart = (highest >= nearest - self.error).sum(dim=0) * (size / sample) < self.keep

    def look(self, rows: Rounded, start: int) -> None:
        """Look at rows, the first of which has number `start`."""
        if not self.usable:
            return  # nothing would be certain
        products = torch._int_mm(rows.codes, self.order)
        if self.limits is None:
            self.add(products * rows.scale, start)
        else:
            self.reaching(products, self._whole(rows.scale), products, start, rows.scale)

    def limit(self, limits) -> None:
        self.limits, self.whole = limits, {}  # never subtracted, as whole numbers are compared with a row of limits

    def _whole(self, scale: float) -> np.ndarray:
        """int32 (Q,): limits of products of whole numbers."""
        if scale not in self.whole:
            self.whole = {scale: (self.limits.double() / scale).ceil().clamp(-(2**31), 2**31 - 1).int().numpy()}
        return self.whole[scale]

    def set_limits(self) -> None:
        """What is further below the k-th product than both may be off has k better ones."""
        if self.least is not None or self.filled.all():
            self.limit(torch.maximum(scores_of(self.keys[:, -self.k]) - 2 * self.error, self.left_out))


class RoundedScan(Scan):
    """Candidates of `queries`, fp32 (Q, D), for the k nearest of each.

    Args:
        rows: rounded ones, some of which will be added: those of all, or a sample.
    """

    part = RoundedPart

    def __init__(self, queries, k: int, rows: Rounded | None = None):
        super().__init__(queries, k)
        self.bounds, self.room = Rounded(), None
        if rows is not None:
            self._include(rows)

    def add(self, rows, start: int) -> None:
        """Look at rows, fp32 (R, D) or rounded before, the first of which has number `start`."""
        if isinstance(rows, Rounded):
            super().add(rows, start)
            return
        if self.room is None:
            self.room = torch.empty(ROWS, rows.shape[1], dtype=torch.int8), torch.empty(2, ROWS, rows.shape[1])
        codes, room = self.room
        for piece in rows.split(ROWS):
            rounded = Rounded.of(piece, None, codes[: len(piece)], room[:, : len(piece)])
            self._include(rounded)
            super().add(rounded, start)
            start += len(piece)

    @property
    def promising(self) -> bool:
        """Whether most queries' k nearest are likely to be certain."""
        if not all(part.usable for part in self.parts):
            return False
        return self.parts[0].apart is None or float(self.of_all("apart").float().mean()) >= CERTAIN

    def twin(self) -> "RoundedScan":
        twin = super().twin()
        twin.bounds, twin.room = replace(self.bounds), None
        return twin

    def join(self, other: "RoundedScan") -> None:
        """Take over what was found in other rows."""
        self._include(other.bounds)
        super().join(other)

    def nearest(self, score: Callable[[np.ndarray, type], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k nearest of each query, all rows having been added.

        Args:
            score: products, in the type it is asked for, of the queries with documents of the numbers (Q, any), -inf for -1.

        Returns:
            exact scores (Q, k) and numbers, as `rescore.best_of` gives them, and (Q,) whether they are certain.
        """
        k = self.parts[0].k
        unit, error, fp32_error, left_out, keys = map(self.of_all, ("unit", "error", "fp32_error", "left_out", "keys"))
        first, others = numbers_of(keys).numpy()[:, -k:], numbers_of(keys).numpy()[:, :-k]
        exact = score(first, np.float64)
        kth = torch.from_numpy(exact.min(axis=1).astype(np.float32)) / unit
        certain = left_out < kth - error
        others = _only(others, (scores_of(keys[:, :-k]) >= (kth - error)[:, None]) & certain[:, None])
        rest = torch.from_numpy(score(others, np.float32)) / unit[:, None]
        others = _only(others, rest >= (kth - fp32_error)[:, None])
        exact, numbers = np.concatenate([score(others, np.float64), exact], axis=1), np.concatenate([others, first], axis=1)
        return *best_of(exact, numbers, k), certain.numpy()

    def _include(self, rows: Rounded) -> None:
        if self.bounds.include(rows):
            for part in self.parts:
                part.lengthen(self.bounds.length, self.bounds.error)


def _only(numbers: np.ndarray, some) -> np.ndarray:
    """Some of the numbers (Q, C), -1 in place of others, in the columns that then are of use."""
    numbers = np.where(some.numpy(), numbers, -1)
    return numbers[:, (numbers >= 0).any(axis=0)]


def _lengths(rows):
    """(R,) at least the lengths of fp32 (R, D), but for rounding; inf where a square is."""
    return torch.linalg.vector_norm(rows, dim=1) + TINY * rows.shape[1] ** 0.5
