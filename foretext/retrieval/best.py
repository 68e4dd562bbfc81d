"""The best documents of each query so far, and how those of more rows join them.

A candidate is one integer, its key: the score's bits above, what is left of 2^32 - 1 after the document's number below. Keys are in the
order of scores, and of equal scores the lower number is the better, so that sorting keys is all there is to do (NumPy does it several
times as fast as torch sorts numbers with their places).

Legend: Q queries, R rows (documents) that are looked at together.
"""

import numpy as np
import torch

from foretext.errors import UserError

LAST = 2**32 - 1  # highest document number
POSITIVE = 2**31 - 1  # all bits but the sign
EMPTY = (-(2**23) ^ POSITIVE) << 32  # the key of an empty place: the lowest there is, of -inf
WORD = 8  # comparisons looked at together


class Best:
    """The `keep` best documents of each of Q queries; of equal scores the lower numbers.

    Nearly all products fall short of a limit: at least that of a query's `keep`-th best so far. It is subtracted inside the product, as
    numbers are compared with zero twice as fast as with limits. What is above waits until there is enough to be worth a sort.

    Args:
        limits: fp32 (Q,), what a product has to be above from the beginning; None: the first rows decide.
    """

    def __init__(self, queries: int, keep: int, limits=None, device="cpu"):
        self.keep, self.least = keep, limits
        self.keys = torch.empty(queries, 0, dtype=torch.int64, device=device)  # (Q, <= keep), rising: the best is the last
        self.limits = limits  # (Q,) what is subtracted from products; None: nothing
        self.waiting: list[tuple] = []  # per piece: places of the margins above zero (from query 0 of row 0 on), and these margins
        self.count = 0  # of the margins that wait
        self.above = np.empty(0, bool)  # which margins are, on a CPU; kept, as new memory costs as much as comparing

    @property
    def full(self) -> bool:
        """Whether every query has its `keep`."""
        return self.keys.shape[1] == self.keep and bool((self.keys[:, 0] != EMPTY).all())

    @property
    def numbers(self):
        """(Q, <= keep) document numbers, the best last; -1 is an empty place."""
        return (LAST - (self.keys & LAST)).masked_fill(self.keys == EMPTY, -1)

    def add(self, margins, start: int) -> None:
        """Look at the products less `limits`, (R, Q), of the rows from `start` on, which come after all before."""
        places = self._highest(margins) if self.limits is None else self._above(margins)
        self.waiting.append((places + start * len(self.keys), margins.view(-1)[places]))
        self.count += len(places)
        if self.limits is None or self.count > len(self.keys) * self.keep:
            self.settle()

    def settle(self) -> None:
        """Sort what waits in among the best.

        Raises:
            UserError: a row whose products are not finite.
        """
        if not self.count:
            return
        Q = len(self.keys)
        places, margins = (torch.cat(parts) for parts in zip(*self.waiting))
        self.waiting, self.count = [], 0
        number = places // Q
        if not (finite := torch.isfinite(margins)).all():
            row = int(number[~finite].min())
            raise UserError(f"the vector of document number {row} is not finite (nan or inf), or its product overflows")
        query = places - number * Q
        order = _grouped(query)
        query, number, scores = query[order], number[order], margins.float()[order]
        if self.limits is not None:
            scores += self.limits[query]
        counts = torch.bincount(query, minlength=Q)
        place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        new = self.keys.new_full((Q, int(counts.max())), EMPTY)
        new[query, place] = keys_of(scores, number)
        self._join(new)

    def join(self, other: "Best") -> None:
        """Take over what was found in other rows."""
        self.settle()
        other.settle()
        self._join(other.keys)

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
        if self.keys.shape[1] == self.keep:
            least = scores_of(self.keys[:, 0])
            least = least if self.least is None else torch.maximum(least, self.least)
            self.limits = torch.nextafter(least, torch.full_like(least, torch.inf))  # what is at the limit comes too late

    def _highest(self, products):
        """Flat places of each query's `keep` highest products and of what equals the last of them."""
        by_query, spare = products.T.float().contiguous(), len(products) - self.keep
        if spare <= 0:
            return torch.arange(products.numel(), device=products.device)
        if products.device.type == "cpu":
            least = torch.from_numpy(np.partition(by_query.numpy(), spare, axis=1)[:, spare])  # NumPy is several times as fast at this too
        else:
            least = by_query.topk(self.keep, dim=1).values[:, -1]
        return ((products >= least) | ~torch.isfinite(products)).flatten().nonzero().flatten()

    def _above(self, margins):
        """Flat places of the margins that are not below zero, or not finite."""
        # As integers, floats from 0 on are in their order, those below 0 are below them, and between are -inf and some nan.
        bits = margins.view(torch.int16 if margins.element_size() == 2 else torch.int32).view(-1)
        lowest = torch.tensor(-torch.inf, dtype=margins.dtype).view(bits.dtype).item()
        if bits.device.type != "cpu":
            return (bits >= lowest).nonzero().flatten()
        words = -(-len(bits) // WORD)
        if len(self.above) < words * WORD:
            self.above = np.zeros(words * WORD, bool)
        above = self.above[: words * WORD]
        above[len(bits):] = False
        np.greater_equal(bits.numpy(), lowest, out=above[: len(bits)])
        some = np.flatnonzero(above.view(np.uint64) != 0)  # few words have any: looking at each place takes longer than comparing
        found = np.flatnonzero(above.reshape(-1, WORD)[some])
        return torch.from_numpy(some[found // WORD] * WORD + found % WORD)


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

