"""The best documents of each query so far, and how those of more rows join them.

A candidate is one integer, its key: the score's bits above, what is left of 2^32 - 1 after the document's number below. Keys are in the
order of scores, and of equal scores the lower number is the better, so that sorting keys is all there is to do (NumPy does it several
times as fast as torch sorts numbers with their places).

Legend: Q queries, R rows (documents) that are looked at together.
"""

import math

import numpy as np
import torch

from foretext.errors import UserError

LAST = 2**32 - 1  # highest document number
POSITIVE = 2**31 - 1  # all bits but the sign
EMPTY = (-(2**23) ^ POSITIVE) << 32  # the key of an empty place: the lowest there is, of -inf
WORD = 8  # margins looked at together
# As integers, floats from 0 on are in their order, those below 0 are below them, and between are -inf, the lowest here, and some nan.
BITS = {torch.float32: (torch.int32, -(2**23)), torch.bfloat16: (torch.int16, -(2**7))}


class Best:
    """The `keep` best documents of each of Q queries; of equal scores the lower numbers.

    Nearly all products fall short of a limit: at least that of a query's `keep`-th best so far. It is subtracted inside the product, as
    numbers are compared with zero twice as fast as with limits. What is left, the margins, waits where it is not below zero until there
    is enough to be worth a sort. Limits below zero are not subtracted: a product may be too small beside them to be found again.

    Args:
        limits: fp32 (Q,), what a product should be above from the beginning; None: the first rows decide.

    Attributes:
        least: the limits that were given.
        limits: those of now, (Q,); None: nothing is known yet.
        bias: -limits, what is to be added to the products; None: nothing.
    """

    dtype = torch.float32  # of the products

    def __init__(self, queries: int, keep: int, limits=None, device="cpu"):
        self.keep, self.least = keep, limits
        self.keys = torch.full((queries, keep), EMPTY, device=device)  # rising: the best is the last
        self.limits = self.bias = None
        if limits is not None:
            self._limit(limits)
        self.waiting: dict[int, list] = {}  # by margins in a word: per piece words, and the place of each (from query 0 of row 0 on)
        self.count = 0  # of the words that wait
        self.above = np.empty(0, bool)  # which margins are, on a CPU; kept, as new memory costs as much as comparing

    @property
    def filled(self):
        """(Q,) which queries have their `keep`."""
        return self.keys[:, 0] != EMPTY

    @property
    def numbers(self):
        """(Q, keep) document numbers, the best last; -1 is an empty place."""
        return (LAST - (self.keys & LAST)).masked_fill(self.keys == EMPTY, -1)

    def add(self, margins, start: int) -> None:
        """Look at the products plus `bias`, (R, Q), of the rows from `start` on, which come after all before.

        Raises:
            UserError: a row whose products are not finite (or when it is settled).
        """
        first = start * len(self.keys)
        if self.limits is None:
            places = self._highest(margins)
            self._take(places + first, margins.view(-1)[places])
            return
        words = margins.view(-1, math.gcd(margins.numel(), WORD) if self.bias is not None else 1)
        some = self._above(margins, words.shape[1])
        self.waiting.setdefault(words.shape[1], []).append((words[some], some * words.shape[1] + first))
        self.count += len(some)
        if self.count > 2 * len(self.keys) * self.keep:
            self.settle()

    def settle(self) -> None:
        """Sort what waits in among the best."""
        found = []
        for pieces in self.waiting.values():
            words, first = map(torch.cat, zip(*pieces))
            if words.shape[1] > 1:
                word, column = _nonzero(_reaches_zero(words))
                words, first = words[word, column], first[word] + column
            found.append((first, words.view(-1)))
        self.waiting, self.count = {}, 0
        if found:
            self._take(*map(torch.cat, zip(*found)))

    def join(self, other: "Best") -> None:
        """Take over what was found in other rows."""
        self.settle()
        other.settle()
        self._join(other.keys)

    def _take(self, places, margins) -> None:
        """Sort in margins, each at its place."""
        Q = len(self.keys)
        number = places // Q
        if not (finite := torch.isfinite(margins)).all():
            row = int(number[~finite].min())
            raise UserError(f"the vector of document number {row} is not finite (nan or inf), or its product overflows")
        query = places - number * Q
        order = _grouped(query)
        query, number, scores = query[order], number[order], margins.float()[order]
        if self.bias is not None:
            scores += self.limits[query]
        counts = torch.bincount(query, minlength=Q)
        place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        new = self.keys.new_full((Q, int(counts.max())), EMPTY)
        new[query, place] = keys_of(scores, number)
        self._join(new)

    def _join(self, keys) -> None:
        """Sort in other keys (Q, any)."""
        keys = torch.cat([self.keys, keys], dim=1)
        if keys.device.type == "cpu":
            keys.numpy().sort(axis=1)
        else:
            keys = keys.sort(dim=1).values
        self.keys = keys[:, -self.keep:]
        self._set_limits()

    def _set_limits(self) -> None:
        if self.least is not None or self.filled.all():
            least = scores_of(self.keys[:, 0])
            least = least if self.least is None else torch.maximum(least, self.least)
            self._limit(torch.nextafter(least, torch.full_like(least, torch.inf)))  # what is at the limit comes too late

    def _limit(self, limits) -> None:
        self.limits, self.bias = limits, -limits.to(self.dtype) if (limits >= 0).all() else None

    def _highest(self, products):
        """Flat places of each query's `keep` highest products, of what equals the last of them, and of what is not finite."""
        by_query, spare = products.T.float().contiguous(), len(products) - self.keep
        if spare <= 0:
            return torch.arange(products.numel(), device=products.device)
        if products.device.type == "cpu":
            least = torch.from_numpy(np.partition(by_query.numpy(), spare, axis=1)[:, spare])  # NumPy is several times as fast at this too
        else:
            least = by_query.topk(self.keep, dim=1).values[:, -1]
        return ((products >= least) | ~torch.isfinite(products)).flatten().nonzero().flatten()

    def _above(self, margins, width: int):
        """Which words, of so many margins each, have one that reaches zero (or, where nothing was subtracted, the limit)."""
        if self.bias is None:
            return (~(margins < self.limits.to(self.dtype)) | ~torch.isfinite(margins)).flatten().nonzero().flatten()
        if margins.device.type != "cpu":
            return _reaches_zero(margins.view(-1, width)).any(dim=1).nonzero().flatten()
        dtype, lowest = BITS[margins.dtype]
        if len(self.above) < margins.numel():
            self.above = np.empty(margins.numel(), bool)
        above = np.greater_equal(margins.view(dtype).view(-1).numpy(), lowest, out=self.above[: margins.numel()])
        return torch.from_numpy(np.flatnonzero(above.view(f"u{width}") != 0))  # NumPy is several times as fast


def _reaches_zero(margins):
    """Which margins are not below zero, or not finite."""
    dtype, lowest = BITS[margins.dtype]
    return margins.view(dtype) >= lowest


def _nonzero(flags):
    """Rows and columns where (W, C) flags are set."""
    places = torch.from_numpy(np.flatnonzero(flags.numpy())) if flags.device.type == "cpu" else flags.flatten().nonzero().flatten()
    row = places // flags.shape[1]
    return row, places - row * flags.shape[1]


def keys_of(scores, numbers):
    """fp32 scores and document numbers of any shape -> int64 keys."""
    bits = (scores + 0.0).view(torch.int32)  # -0 becomes 0
    bits = torch.where(bits < 0, bits ^ POSITIVE, bits)  # negative numbers are in the order of their bits, turned round
    return (bits.long() << 32) | (LAST - numbers)


def scores_of(keys):
    """The fp32 scores in keys."""
    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ POSITIVE, bits).view(torch.float32)


def _grouped(query):
    """An order that brings the entries of each query (fewer than 32,768) together."""
    if query.device.type == "cpu":
        return torch.from_numpy(query.numpy().astype(np.int16).argsort(kind="stable"))  # by digits
    return query.argsort()

