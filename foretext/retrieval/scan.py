"""Reading all rows once for all queries, by fp32 products.

Legend: Q queries, D dimensions, R rows of a piece.
"""

import torch

from foretext.retrieval.best import Best

ROWS = 2048  # least rows of a piece on a CPU: products of more with many queries do not stay in the cache until they are compared
MOST_ROWS = 32_768  # with few queries, as Python takes as long for a small piece, and lanes wait for each other in it
TOGETHER = 256  # queries multiplied with a piece at once


def piece_rows(queries: int) -> int:
    """Rows to multiply at once on a CPU."""
    return min(max(ROWS * TOGETHER // queries, ROWS), MOST_ROWS)


class Part(Best):
    """Queries, fp32 (Q, D), that are multiplied at once, and the `keep` best of each."""

    def __init__(self, queries, keep: int, limits=None):
        super().__init__(len(queries), keep, limits, queries.device)
        self.order = in_order(queries.to(self.dtype))

    def near(self):
        """(Q, keep) numbers of the candidates, -1 for none."""
        return self.numbers

    def certain(self):
        """(Q,) bool: the best are among the candidates."""
        return self.filled


class Scan:
    """The `keep` best of each of `queries`, fp32 (Q, D), by fp32 products: `add` every piece, then `candidates`.

    Args:
        limits: fp32 (Q,), what a product has to be above from the beginning (`limits.py`); None: no limit.
    """

    part = Part

    def __init__(self, queries, keep: int, limits=None):
        limits = [None] * len(queries) if limits is None else limits.split(TOGETHER)
        self.parts = [self.part(some, keep, least) for some, least in zip(queries.split(TOGETHER), limits)]

    def add(self, rows, start: int) -> None:
        """Look at rows, (R, D), the first of which has number `start`."""
        for part in self.parts:
            part.add(margins(rows, part.order, part.bias), start)

    def join(self, other: "Scan") -> None:
        """Take over what was found in other rows."""
        for mine, theirs in zip(self.parts, other.parts):
            mine.join(theirs)

    def settle(self) -> None:
        """Sort in what was found in the rows so far."""
        for part in self.parts:
            part.settle()

    def candidates(self):
        """Document numbers (Q, candidates), -1 for none, and whether a query's best are certainly among them, once all is settled."""
        return torch.cat([part.near() for part in self.parts]), torch.cat([part.certain() for part in self.parts])


def in_order(queries):
    """(Q, D) in the order in which products read them."""
    multiplies = torch.backends.mkldnn.is_available() and (queries.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if queries.device.type == "cpu" and multiplies:
        return torch.ops.mkldnn._reorder_linear_weight(queries, ROWS)
    return queries


def margins(rows, queries, bias=None):
    """(R, D), (Q, D) as `in_order` gives them, (Q,) -> (R, Q): products, plus what is added to all of a query."""
    if queries.is_mkldnn:  # reads the rows as they lie; `@` packs them first, which takes 1.1 to 1.5 times as long (docs/LOG.md)
        return torch.ops.mkldnn._linear_pointwise(rows, queries, bias, "none", [], "none")
    return rows @ queries.T if bias is None else torch.addmm(bias, rows, queries.T)
