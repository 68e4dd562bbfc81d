"""Candidates of many queries from products of rounded numbers (bf16), with a bound that says whose neighbours are all among them.

A product of rounded vectors is off by at most |q - q'| |d'| + |q| |d - d'| (Cauchy-Schwarz), its own rounding aside. So once more than
that lies between the k-th best and the last candidate, no other document can be one of the k best.

Legend: Q queries, D dimensions, R rows of a piece.
"""

from foretext.retrieval.best import Best, scores_of
from foretext.retrieval.scan import ROWS, TOGETHER, pieces

BF16 = 2.0**-9  # largest relative error of rounding
CERTAIN = 0.75  # share of the queries that the first block has to decide


class TooMuchAlike(Exception):
    """Rounding hides which vectors are nearer."""


def candidates_for(k: int) -> int:
    """How many candidates are kept of each query."""
    return 2 * k + 32


class RoundedScan:
    """Collects candidates of `queries`, fp32 (Q, D), for the k nearest of each: `add` every block, then `candidates`."""

    def __init__(self, queries, k: int):
        import torch

        self.seen, self.longest = 0, 0.0
        self.buffer = torch.empty(ROWS, queries.shape[1], dtype=torch.bfloat16)
        self.parts = [_Part(part, k) for part in queries.split(TOGETHER)]

    def add(self, block, start: int) -> None:
        """Look at the rows of a block, fp32 (any number, D), whose first has number `start`.

        Raises:
            TooMuchAlike: most queries are undecided after the first block.
        """
        import torch

        begins = not self.seen
        for first, last in pieces(len(block), self.seen):
            piece = self.buffer[:last - first].copy_(block[first:last])
            length = float(torch.linalg.vector_norm(piece, dim=1).max())
            self.longest = max(self.longest, length * (1 + 4 * BF16))  # what rounding takes off the length, and the norm itself
            for part in self.parts:
                part.longest = self.longest
                part.add(piece @ part.queries.T, start + first)  # (R, Q): this way round it is twice as fast
        self.seen += len(block)
        if begins and self.candidates()[1].float().mean() < CERTAIN:
            raise TooMuchAlike

    def candidates(self):
        """Document numbers (Q, 2 k + 32), -1 for none, and for each query whether its k nearest are certainly among them."""
        import torch

        for part in self.parts:
            part.settle()
        return torch.cat([part.near() for part in self.parts]), torch.cat([part.certain() for part in self.parts])


class _Part(Best):
    """Queries that are multiplied at once, and the candidates of each."""

    def __init__(self, queries, k: int):
        super().__init__(len(queries), candidates_for(k))
        self.k, self.queries, self.longest = k, queries.bfloat16(), 0.0
        sums = queries.shape[1] * 2.0**-23  # adding up in fp32
        self.slack = (queries - self.queries.float()).norm(dim=1) + queries.norm(dim=1) * (BF16 + sums)  # times |d|: error of a product

    def near(self):
        """(Q, 2 k + 32) numbers of the candidates that may be among the k nearest, -1 in place of the others."""
        return self.numbers.masked_fill(scores_of(self.keys) < self._least()[:, None], -1)

    def certain(self):
        """(Q,) bool: nothing below the last candidate can be among the k nearest."""
        import torch

        return torch.zeros(len(self.keys), dtype=torch.bool) if self.limits is None else scores_of(self.keys[:, 0]) < self._least()

    def _least(self):
        """(Q,): products below it, exact ones being within the bound, are of documents that k others beat."""
        kth = scores_of(self.keys[:, -self.k])
        return kth - 2 * self.slack * self.longest - 4 * BF16 * kth.abs()  # the products themselves are rounded too

    def _raise_limits(self) -> None:
        import torch

        limits = torch.maximum(self._least(), scores_of(self.keys[:, 0]))
        if (limits > 0).all():
            self.limits = limits.bfloat16().view(torch.int16) - 2  # as bits: one less may have been rounded up to it, and has to pass

    def _above(self, products):
        import torch

        # Positive floats are in the order of their bits, and negative ones are below them.
        return self._places(products.view(torch.int16).numpy(), self.limits.numpy())
