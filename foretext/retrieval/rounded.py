"""Candidates of many queries from products of rounded numbers (bf16), with a bound that says whose neighbours are all among them.

A product of rounded vectors is off by at most |q - q'| |d'| + |q| |d - d'| (Cauchy-Schwarz), its own rounding aside. So once more than
that lies between the k-th best and the last candidate, no other document can be one of the k best.

Legend: Q queries, D dimensions, R rows of a piece.
"""

import numpy as np

from foretext.retrieval.best import check_finite, join, merge

ROWS = 4096  # of a piece: what is rounded stays in the cache for its products with all queries
TOGETHER = 256  # queries multiplied with a piece at once: 2 MB of products
BF16 = 2.0**-9  # largest relative error of rounding


def candidates_for(k: int) -> int:
    """How many candidates are kept of each query."""
    return 2 * k + 32


class RoundedScan:
    """Collects candidates of `queries`, fp32 (Q, D), for the k nearest of each: `add` every block, then `candidates`."""

    def __init__(self, queries, k: int):
        import torch

        self.k, self.wide, self.longest = k, candidates_for(k), 0.0
        self.buffer = torch.empty(ROWS, queries.shape[1], dtype=torch.bfloat16)
        self.parts = [_Part(part, k, self.wide) for part in queries.split(TOGETHER)]

    def add(self, block, start: int) -> None:
        """Look at the rows of a block, fp32 (any number, D), whose first has number `start`."""
        import torch

        for first in range(0, len(block), ROWS):
            piece = block[first:first + ROWS]
            piece = self.buffer[:len(piece)].copy_(piece)
            length = float(torch.linalg.vector_norm(piece, dim=1).max())
            self.longest = max(self.longest, length * (1 + 4 * BF16))  # what rounding takes off the length, and the norm itself
            for part in self.parts:
                part.add(piece, start + first, self.longest)

    def candidates(self):
        """Document numbers (Q, 2 k + 32), -1 for none, and for each query whether its k nearest are certainly among them."""
        import torch

        for part in self.parts:
            part.merge(self.longest)
        return torch.cat([part.near(self.longest) for part in self.parts]), torch.cat([part.certain(self.longest) for part in self.parts])


class _Part:
    """Queries that are multiplied at once. Scores above `limits` wait until there are enough to be worth a sort."""

    def __init__(self, queries, k: int, wide: int):
        import torch

        self.k, self.wide, self.queries = k, wide, queries.bfloat16()
        sums = queries.shape[1] * 2.0**-23  # adding up in fp32
        self.slack = (queries - self.queries.float()).norm(dim=1) + queries.norm(dim=1) * (BF16 + sums)  # times |d|: error of a product
        self.best, self.numbers = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        self.waiting: list[tuple] = []
        self.limits: np.ndarray | None = None  # bits of a bf16 number for each query

    def add(self, piece, start: int, longest: float) -> None:
        import torch

        scores = piece @ self.queries.T  # (R, Q): this way round it is twice as fast
        check_finite(scores[:, 0], start)
        if self.limits is None:
            self.best, self.numbers = merge(self.best, self.numbers, scores.T.float().contiguous(), start, self.wide)
            return self._raise_limits(longest)
        bits = scores.view(torch.int16).numpy()  # positive floats are in the order of their bits, negative ones are below them
        flat = np.flatnonzero(bits >= self.limits)
        if len(flat):
            row, query = np.divmod(flat, len(self.queries))
            self.waiting.append((query, row + start, scores.view(-1)[torch.from_numpy(flat)].float()))
            if sum(len(entry[0]) for entry in self.waiting) > len(self.queries) * self.wide // 2:
                self.merge(longest)
        return None

    def merge(self, longest: float) -> None:
        import torch

        if self.waiting:
            queries, rows, scores = zip(*self.waiting)
            query = np.concatenate(queries)
            order = np.argsort(query, kind="stable")
            self.best, self.numbers = join(self.best, self.numbers, *map(torch.from_numpy, (query[order], np.concatenate(rows)[order])),
                                           torch.cat(scores)[torch.from_numpy(order)], self.wide)
            self.waiting = []
            self._raise_limits(longest)

    def near(self, longest: float):
        """(Q, 2 k + 32) numbers of the candidates that may be among the k nearest, -1 in place of the others."""
        return self.numbers.masked_fill(self.best < self._least(longest)[:, None], -1)

    def certain(self, longest: float):
        """(Q,) bool: nothing below the last candidate can be among the k nearest."""
        import torch

        return torch.zeros(len(self.best), dtype=torch.bool) if self.limits is None else self.best[:, -1] < self._least(longest)

    def _least(self, longest: float):
        """(Q,): products below it, exact ones being within the bound, are of documents that k others beat."""
        kth = self.best[:, self.k - 1]
        return kth - 2 * self.slack * longest - 4 * BF16 * kth.abs()  # the products themselves are rounded too

    def _raise_limits(self, longest: float) -> None:
        import torch

        if self.best.shape[1] == self.wide:
            limits = torch.maximum(self._least(longest), self.best[:, -1])
            if (limits > 0).all():
                self.limits = limits.bfloat16().view(torch.int16).numpy() - 1  # one down, as it may have been rounded up
