"""The best documents of each query so far, and how those of more rows join them.

A candidate is one integer, its key: the score's bits above, what is left of 2^32 - 1 after the document's number below. Keys are in the
order of scores, and of equal scores the lower number is the better, so that sorting keys is all there is to do (NumPy does it several
times as fast as torch sorts numbers with their places).

Legend: Q queries, R rows (documents) that are looked at together.
"""

import numpy as np

from foretext.errors import UserError

LAST = 2**32 - 1  # highest document number
POSITIVE = 2**31 - 1  # all bits but the sign
NOTHING = -(2**63)  # the key of an empty place


class Best:
    """The `keep` best documents of each of Q queries; of equal scores the lower numbers.

    Nearly all scores fall short of a query's `keep`-th best so far. Those above it wait until there are enough to be worth a sort.
    """

    def __init__(self, queries: int, keep: int, device="cpu"):
        import torch

        self.keep = keep
        self.keys = torch.empty(queries, 0, dtype=torch.int64, device=device)  # (Q, <= keep), rising: the best is the last
        self.limits = None  # (Q,) what a score has to be above
        self.waiting: list[tuple] = []  # per piece: number of its first row, products with one query, places and products above
        self.count = 0  # of the products that wait
        self.above = np.empty((0, queries), bool)  # where scores were, on a CPU; kept, as new memory costs as much as comparing

    @property
    def full(self) -> bool:
        """Whether every query has its `keep`."""
        return self.keys.shape[1] == self.keep

    @property
    def numbers(self):
        """(Q, <= keep) document numbers, the best last."""
        return LAST - (self.keys & LAST)

    def add(self, products, start: int) -> None:
        """Look at the products (R, Q) of the rows from `start`, which come after all before.

        Raises:
            UserError: a row whose products are not finite, when it is settled.
        """
        places = self._highest(products) if self.limits is None else self._above(products)
        self.waiting.append((start, products[:, 0].clone(), places, products.view(-1)[places]))
        self.count += len(places)
        if self.limits is None or self.count > len(self.keys) * self.keep:
            self.settle()

    def settle(self) -> None:
        """Sort what waits in among the best."""
        import torch

        if not self.waiting:
            return
        if not torch.isfinite(torch.cat([column for _, column, *_ in self.waiting])).all():
            for start, column, *_ in self.waiting:
                check_finite(column, start)
        Q = len(self.keys)
        places = torch.cat([places + start * Q for start, _, places, _ in self.waiting])
        scores = torch.cat([scores for *_, scores in self.waiting]).float()
        self.waiting, self.count = [], 0
        number = places // Q
        query = places - number * Q
        order = _grouped(query)
        query, keys = query[order], keys_of(scores, number)[order]
        counts = torch.bincount(query, minlength=Q)
        place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        new = self.keys.new_full((Q, int(counts.max())), NOTHING)
        new[query, place] = keys
        self._join(new)

    def join(self, other: "Best") -> None:
        """Take over what was found in other rows."""
        self._join(other.keys)

    def _join(self, keys) -> None:
        """Sort in other keys (Q, any)."""
        import torch

        keys = torch.cat([self.keys, keys], dim=1)
        if keys.device.type == "cpu":
            keys.numpy().sort(axis=1)
        else:
            keys = keys.sort(dim=1).values
        self.keys = keys[:, -self.keep:]
        if self.full:
            self._set_limits()

    def _set_limits(self) -> None:
        self.limits = scores_of(self.keys[:, 0])

    def _above(self, products):
        """Flat places of the products above their query's limit."""
        if products.device.type == "cpu":
            return self._places(products.numpy(), self.limits.numpy())
        return (products > self.limits).flatten().nonzero().flatten()

    def _highest(self, products):
        """Flat places of each query's `keep` highest products and of what equals the last of them."""
        import torch

        by_query, spare = products.T.float().contiguous(), len(products) - self.keep
        if spare <= 0:
            return torch.arange(products.numel(), device=products.device)
        if products.device.type == "cpu":
            least = torch.from_numpy(np.partition(by_query.numpy(), spare, axis=1)[:, spare])  # NumPy is several times as fast at this too
        else:
            least = by_query.topk(self.keep, dim=1).values[:, -1]
        return (products >= least).flatten().nonzero().flatten()

    def _places(self, products: np.ndarray, limits: np.ndarray):
        import torch

        if len(self.above) < len(products):
            self.above = np.empty(products.shape, bool)
        above = np.greater(products, limits, out=self.above[: len(products)])
        return torch.from_numpy(np.flatnonzero(above))  # NumPy does this several times as fast as torch


def keys_of(scores, numbers):
    """fp32 scores and document numbers of any shape -> int64 keys."""
    import torch

    bits = (scores + 0.0).view(torch.int32)  # -0 becomes 0
    bits = torch.where(bits < 0, bits ^ POSITIVE, bits)  # negative numbers are in the order of their bits, turned round
    return (bits.long() << 32) | (LAST - numbers)


def scores_of(keys):
    """The fp32 scores in keys."""
    import torch

    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ POSITIVE, bits).view(torch.float32)


def _grouped(query):
    """An order that brings the entries of each query (fewer than 32,768) together."""
    import torch

    if query.device.type == "cpu":
        return torch.from_numpy(query.numpy().astype(np.int16).argsort(kind="stable"))  # by digits
    return query.argsort()


def check_finite(products, start: int) -> None:
    """Raise a `UserError` unless one query's products with the rows from `start` are numbers: a faulty row shows in any query's."""
    import torch

    if not torch.isfinite(products).all():
        row = int((~torch.isfinite(products)).nonzero()[0, 0]) + start
        raise UserError(f"the vector of document number {row} is not finite (nan or inf), or its product overflows")
