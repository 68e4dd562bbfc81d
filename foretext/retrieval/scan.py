"""Reading all rows once for all queries, by fp32 products.

Legend: Q queries, D dimensions, R rows of a piece.
"""

import torch

from foretext.retrieval.best import EMPTY, Best

ROWS = 2048  # of a piece on a CPU: its products stay in the cache until they are compared
TOGETHER = 256  # queries multiplied with a piece at once


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
            best.add(margins(rows, queries, best.limits), start)

    def join(self, other: "Scan") -> None:
        """Take over what was found in other rows."""
        for (_, mine), (_, theirs) in zip(self.parts, other.parts):
            mine.join(theirs)

    def candidates(self):
        """Document numbers (Q, <= keep), and which queries have as many as are kept."""
        for _, best in self.parts:
            best.settle()
        return torch.cat([best.numbers for _, best in self.parts]), torch.cat([best.keys[:, 0] != EMPTY for _, best in self.parts])


def in_order(queries):
    """(Q, D) in the order in which products read them."""
    if queries.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._reorder_linear_weight(queries, ROWS)
    return queries


def margins(rows, queries, limits=None):
    """(R, D), (Q, D) as `in_order` gives them, (Q,) -> (R, Q): by how much each product is above its query's limit."""
    bias = None if limits is None else -limits.to(rows.dtype)
    if queries.is_mkldnn:  # reads the rows as they lie; `@` packs them first, which takes 1.1 to 1.5 times as long (docs/LOG.md)
        return torch.ops.mkldnn._linear_pointwise(rows, queries, bias, "none", [], "none")
    return rows @ queries.T if bias is None else torch.addmm(bias, rows, queries.T)
