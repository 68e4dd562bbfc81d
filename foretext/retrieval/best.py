"""The best documents of each query so far, and how those of more rows join them.

A candidate is one integer, its key: the score's bits above, what is left of 2^32 - 1 after the document's number below. Keys are in the
order of scores, and of equal scores the lower number is the better, so that sorting keys is all there is to do (NumPy does it several
times as fast as torch sorts numbers with their places).

Legend: Q queries, R rows (documents) that are looked at together.
"""

import copy
import math

import numpy as np
import torch

from foretext.errors import UserError

LAST = 2**32 - 1  # highest document number
POSITIVE = 2**31 - 1  # all bits but the sign
LOWEST = -(2**23)  # the bits of -inf: as integers, floats from 0 on are in their order, those below 0 are below them, and some nan between
EMPTY = (LOWEST ^ POSITIVE) << 32  # the key of an empty place: the lowest there is, of -inf
WORD = 8  # flags looked at together


class Best:
    """The `keep` best documents of each of Q queries; of equal scores the lower numbers.

    Nearly all products fall short of a limit: at least that of a query's `keep`-th best so far. What does not waits until there is
    enough to be worth a sort.

    Attributes:
        keys: (Q, keep), rising: the best is the last.
        least: (Q,), what a product should be above from the beginning; None: the first rows decide.
        limits: those of now, (Q,); None: nothing is known yet.
        bias: -limits, what is to be added to the products; None: nothing. Numbers are compared with zero twice as fast as with limits.
            Limits below zero are not subtracted: a product may be too small beside them to be found again.
    """

    def __init__(self, queries: int, keep: int, device="cpu"):
        self.keep, self.keys = keep, torch.full((queries, keep), EMPTY, device=device)
        self.least = self.limits = self.bias = None
        self.singles: list = []  # of products that wait: their places (from query 0 of row 0 on), and they themselves,
        self.words: dict[int, list] = {}  # or, by products in a word, the places of words, flags of which products count, and these
        self.count = 0  # of the words and single products that wait
        self.above = np.empty(0, bool)  # which products are, on a CPU; kept, as new memory costs as much as comparing

    def twin(self):
        """One like this, before it has seen any rows."""
        twin = copy.copy(self)
        twin.keys, twin.singles, twin.words, twin.count = torch.full_like(self.keys, EMPTY), [], {}, 0
        twin.above = np.empty(0, bool)
        return twin

    @property
    def filled(self):
        """(Q,) which queries have their `keep`."""
        return self.keys[:, 0] != EMPTY

    @property
    def numbers(self):
        """(Q, keep) document numbers, the best last; -1 is an empty place."""
        return numbers_of(self.keys)

    @property
    def left_out(self):
        """(Q,): nothing that was left out has a score above it, but for what `keep` others beat."""
        worst = scores_of(self.keys[:, 0])
        return worst if self.least is None else torch.maximum(worst, self.least)

    def expect(self, limits) -> None:
        """A product should be above these, fp32 (Q,)."""
        self.least = limits
        self.limit(limits)

    def limit(self, limits) -> None:
        """From now on only what is above `limits` is looked at."""
        self.limits, self.bias = limits, -limits if (limits >= 0).all() else None

    def add(self, margins, start: int) -> None:
        """Look at the products plus `bias`, (R, Q), of the rows from `start` on, which come after all before.

        Raises:
            UserError: a row whose products are not finite (or when it is settled).
        """
        if margins.device.type == "cpu" and self.bias is not None:
            self.reaching(margins.view(torch.int32), LOWEST, margins, start)
            return
        if self.limits is None:
            places = self._highest(margins)
        elif self.bias is None:
            places = (~(margins < self.limits) | ~torch.isfinite(margins)).flatten().nonzero().flatten()
        else:
            places = (margins.view(torch.int32) >= LOWEST).flatten().nonzero().flatten()
        self.singles.append((places + start * len(self.keys), margins.view(-1)[places]))
        self._waits(len(places))

    def reaching(self, numbers, least, products, start: int, scale: float = 1.0) -> None:
        """Let those of products on a CPU, (R, Q), wait whose whole numbers, of the same shape, are at least `least`, one or (Q,): few are.

        After the comparison only words of flags are looked at, and single products when they are settled.

        Args:
            scale: what the products are in.
        """
        if len(self.above) < numbers.numel():
            self.above = np.empty(numbers.numel(), bool)
        above = self.above[: numbers.numel()]
        np.greater_equal(numbers.numpy(), least, out=above.reshape(numbers.shape))  # NumPy is several times as fast as torch
        width = math.gcd(len(above), WORD)
        flags = above.view(f"u{width}")
        some = np.flatnonzero(flags != 0)  # of booleans, which takes a quarter of the time
        words = np.take(products.numpy().reshape(-1, width), some, axis=0).astype(np.float32, copy=False)
        words *= np.float32(scale)
        self.words.setdefault(width, []).append((some * width + start * len(self.keys), flags[some], words))
        self._waits(len(some))

    def settle(self) -> None:
        """Sort what waits in among the best."""
        found, self.singles, self.count = self.singles, [], 0
        for width, pieces in self.words.items():
            first, flags, words = map(np.concatenate, zip(*pieces))
            place = np.flatnonzero(flags.view(bool))
            found.append((torch.from_numpy(first[place // width] + place % width), torch.from_numpy(words.ravel()[place])))
        self.words = {}
        if found:
            self._take(*map(torch.cat, zip(*found)))

    def _waits(self, count: int) -> None:
        self.count += count
        if self.count > 4 * self.keys.numel() or self.limits is None:
            self.settle()

    def join(self, other: "Best") -> None:
        """Take over what was found in other rows."""
        self.settle()
        other.settle()
        self._join(other.keys)

    def set_limits(self) -> None:
        """The limits that follow from the best so far, once there are `keep`."""
        if self.least is not None or self.filled.all():
            self.limit(torch.nextafter(self.left_out, torch.full_like(self.left_out, torch.inf)))  # what is at the limit comes too late

    def _take(self, places, margins) -> None:
        """Sort in margins, each at its place."""
        Q = len(self.keys)
        number = places // Q
        if not (finite := torch.isfinite(margins)).all():
            row = int(number[~finite].min())
            raise UserError(f"the vector of document number {row} is not finite (nan or inf), or its product overflows")
        query = places - number * Q
        order = _grouped(query)
        query, number, scores = query[order], number[order], margins[order]
        if self.bias is not None:
            scores += self.limits[query]
        counts = torch.bincount(query, minlength=Q)
        place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        new = self.keys.new_full((Q, int(counts.max())), EMPTY)
        new[query, place] = keys_of(scores, number)
        self._join(new)

    def _join(self, keys) -> None:
        """Sort in other keys (Q, any)."""
        if keys.shape[1] < self.keep or (self.keys[:, -1] != EMPTY).any():
            keys = torch.cat([self.keys, keys], dim=1)
        self.keys = sorted_keys(keys)[:, -self.keep:]
        self.set_limits()

    def _highest(self, products):
        """Flat places of each query's `keep` highest products, of what equals the last of them, and of what is not finite."""
        by_query, spare = products.T.contiguous(), len(products) - self.keep
        if spare <= 0:
            return torch.arange(products.numel(), device=products.device)
        if products.device.type == "cpu":
            least = torch.from_numpy(np.partition(by_query.numpy(), spare, axis=1)[:, spare])  # NumPy is several times as fast at this too
        else:
            least = by_query.topk(self.keep, dim=1).values[:, -1]
        return ((products >= least) | ~torch.isfinite(products)).flatten().nonzero().flatten()


def keys_of(scores, numbers):
    """fp32 scores and document numbers of any shape, -1 for none -> int64 keys."""
    bits = (scores + 0.0).view(torch.int32)  # -0 becomes 0
    bits = torch.where(bits < 0, bits ^ POSITIVE, bits)  # negative numbers are in the order of their bits, turned round
    return torch.where(numbers < 0, EMPTY, (bits.long() << 32) | (LAST - numbers))


def scores_of(keys):
    """The fp32 scores in keys."""
    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ POSITIVE, bits).view(torch.float32)


def numbers_of(keys):
    """The document numbers in keys; -1 for none."""
    return (LAST - (keys & LAST)).masked_fill(keys == EMPTY, -1)


def sorted_keys(keys):
    """(Q, any), each row rising."""
    return torch.from_numpy(np.sort(keys.numpy(), axis=1)) if keys.device.type == "cpu" else keys.sort(dim=1).values


def _grouped(query):
    """An order that brings the entries of each query (fewer than 32,768) together."""
    if query.device.type == "cpu":
        return torch.from_numpy(query.numpy().astype(np.int16).argsort(kind="stable"))  # by digits
    return query.argsort()
