"""Candidates of many queries from products of rounded numbers (bf16), with a bound that says whose neighbours are all among them.

A product of rounded vectors is off by at most |q - q'| |d'| + |q| |d - d'| (Cauchy-Schwarz), its own rounding aside. So once more than
that lies between the k-th best and the last candidate, no other document can be one of the k best.

Legend: Q queries, D dimensions, R rows of a piece.
"""

from foretext.retrieval.best import Best, scores_of
from foretext.retrieval.scan import ROWS, TOGETHER

BF16 = 2.0**-8  # largest relative error of rounding
CERTAIN = 0.75  # share of the queries that the first rows have to decide


class TooMuchAlike(Exception):
    """Rounding hides which vectors are nearer."""


def candidates_for(k: int) -> int:
    """How many candidates are kept of each query."""
    return 2 * k + 32


class RoundedScan:
    """Collects candidates of `queries`, fp32 (Q, D), for the k nearest of each: `add` every block, then `candidates`."""

    def __init__(self, queries, k: int):
        import torch

        self.length = self.error = 0.0  # of the rows: the greatest |d'| and |d - d'|
        self.decided = None  # whether it is known that rounding serves these vectors: the scan of the very first rows finds out
        self.buffer, self.lost = (torch.empty(ROWS, queries.shape[1], dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
        self.parts = [_Part(part, k) for part in queries.split(TOGETHER)]

    def add(self, block, start: int) -> None:
        """Look at the rows of a block, fp32 (any number, D), whose first has number `start`.

        Raises:
            TooMuchAlike: most queries are undecided after the first rows.
        """
        import torch

        if self.decided is None:
            self.decided = start > 0
        for first in range(0, len(block), ROWS):
            exact = block[first:first + ROWS]
            piece = self.buffer[:len(exact)].copy_(exact)
            length = float(torch.linalg.vector_norm(piece, dim=1).max()) * (1 + 2 * BF16)  # that is rounded too
            error = float(torch.linalg.vector_norm(self.lost[:len(exact)].copy_(piece).sub_(exact), dim=1).max())
            if length > self.length or error > self.error:
                self.length, self.error = max(length, self.length), max(error, self.error)
                for part in self.parts:
                    part.lengthen(self.length, self.error)
            for part in self.parts:
                part.add(piece @ part.queries.T, start + first)  # (R, Q): this way round it is twice as fast
        for part in self.parts:
            part.settle()
        if not self.decided and self.parts[0].full:
            self.decided = True
            if torch.cat([part.certain() for part in self.parts]).float().mean() < CERTAIN:
                raise TooMuchAlike

    def join(self, other: "RoundedScan") -> None:
        """Take over what was found in other rows."""
        self.length, self.error = max(self.length, other.length), max(self.error, other.error)
        for mine, theirs in zip(self.parts, other.parts):
            mine.lengthen(self.length, self.error)
            mine.join(theirs)

    def candidates(self):
        """Document numbers (Q, 2 k + 32), -1 for none, and for each query whether its k nearest are certainly among them."""
        import torch

        return torch.cat([part.near() for part in self.parts]), torch.cat([part.certain() for part in self.parts])


class _Part(Best):
    """Queries that are multiplied at once, and the candidates of each."""

    def __init__(self, queries, k: int):
        super().__init__(len(queries), candidates_for(k))
        self.k, self.queries = k, queries.bfloat16()
        self.lengths, self.errors = queries.norm(dim=1), (queries - self.queries.float()).norm(dim=1)
        self.sums = queries.shape[1] * 2.0**-23  # relative error of adding up in fp32
        self.slack = self.lengths * 0  # (Q,) greatest error of a product with the rows so far, but for its own rounding

    def lengthen(self, length: float, error: float) -> None:
        """Rows may now be this long, and this far from what was rounded: with others a product may be further off."""
        self.slack = self.errors * length + self.lengths * (error + self.sums * (length + error))
        if self.full:
            self._set_limits()

    def near(self):
        """(Q, 2 k + 32) numbers of the candidates that may be among the k nearest, -1 in place of the others."""
        return self.numbers.masked_fill(scores_of(self.keys) < self._least()[:, None], -1)

    def certain(self):
        """(Q,) bool: nothing below the last candidate can be among the k nearest."""
        return scores_of(self.keys[:, 0]) < self._least()

    def _least(self):
        """(Q,): products below it, exact ones being within the bound, are of documents that k others beat."""
        kth = scores_of(self.keys[:, -self.k])
        return kth - 2 * self.slack - 2 * BF16 * (kth.abs() + 2 * self.slack)  # the products themselves are rounded too

    def _set_limits(self) -> None:
        import torch

        limits = torch.maximum(self._least(), scores_of(self.keys[:, 0]))
        # As bits, less one, so that a product at the limit is above. A limit that is not positive has no place among bits: then none.
        self.limits = limits.bfloat16().view(torch.int16) - 1 if (limits > 0).all() else None

    def _above(self, products):
        import torch

        # Positive floats are in the order of their bits, and negative ones are below them.
        return self._places(products.view(torch.int16).numpy(), self.limits.numpy())
