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


class Scan:
    """The `keep` best of each of `queries`, fp32 (Q, D), by fp32 products: `add` every piece, then `candidates`.

    Args:
        limits: fp32 (Q,), what a product has to be above from the beginning (`limits.py`); None: no limit.
    """

    def __init__(self, queries, keep: int, limits=None):
        limits = [None] * len(queries) if limits is None else limits.split(TOGETHER)
        self.parts = [(in_order(part), Best(len(part), keep, least, queries.device))
                      for part, least in zip(queries.split(TOGETHER), limits)]

    def add(self, rows, start: int) -> None:
        """Look at rows, fp32 (R, D), the first of which has number `start`."""
        for queries, best in self.parts:
            best.add(margins(rows, queries, best.bias), start)

    def join(self, other: "Scan") -> None:
        """Take over what was found in other rows."""
        for (_, mine), (_, theirs) in zip(self.parts, other.parts):
            mine.join(theirs)

    def settle(self) -> None:
        """Sort in what was found in the rows so far."""
        for _, best in self.parts:
            best.settle()

    def candidates(self):
        """Document numbers (Q, keep), -1 for none, and which queries have as many as are kept, once all is settled."""
        return torch.cat([best.numbers for _, best in self.parts]), torch.cat([best.filled for _, best in self.parts])


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
