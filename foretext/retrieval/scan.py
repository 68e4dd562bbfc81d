"""Reading all rows once for all queries, by fp32 products.

Legend: Q queries, D dimensions, R rows of a piece.
"""

from foretext.retrieval.best import Best

ROWS = 2048  # of a piece on a CPU: its products stay in the cache until they are compared
TOGETHER = 256  # queries multiplied with a piece at once


class Scan:
    """The `keep` best of each of `queries`, fp32 (Q, D), by fp32 products: `add` every block, then `candidates`."""

    def __init__(self, queries, keep: int):
        self.parts = [(in_order(part), Best(len(part), keep, queries.device)) for part in queries.split(TOGETHER)]

    def add(self, block, start: int) -> None:
        """Look at the rows of a block, fp32 (any number, D), whose first has number `start`."""
        rows = ROWS if block.device.type == "cpu" else len(block)
        for first in range(0, len(block), rows):
            for queries, best in self.parts:
                best.add(products(block[first:first + rows], queries), start + first)
        for _, best in self.parts:
            best.settle()

    def join(self, other: "Scan") -> None:
        """Take over what was found in other rows."""
        for (_, mine), (_, theirs) in zip(self.parts, other.parts):
            mine.join(theirs)

    def candidates(self):
        """Document numbers (Q, <= keep)."""
        import torch

        return torch.cat([best.numbers for _, best in self.parts])


def in_order(queries):
    """fp32 (Q, D) in the order in which products read them."""
    import torch

    if queries.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._reorder_linear_weight(queries, ROWS)
    return queries


def products(rows, queries):
    """fp32 (R, D), (Q, D) as `in_order` gives them -> (R, Q)."""
    import torch

    if queries.is_mkldnn:  # reads the rows as they lie; `@` packs them first, which takes 1.1 to 1.5 times as long (docs/LOG.md)
        return torch.ops.mkldnn._linear_pointwise(rows, queries, None, "none", [], "none")
    return rows @ queries.T
