"""Reading all rows once for all queries, by fp32 products.

Legend: Q queries, D dimensions, R rows of a piece.
"""

import copy

import torch

from foretext.retrieval.best import Best
from foretext.retrieval.limits import highest, likely

ROWS = 2048  # least rows of a piece on a CPU: products of more with many queries do not stay in the cache until they are compared
MOST_ROWS = 8192  # with few queries, as Python takes as long for a small piece, and lanes wait for each other in it
TOGETHER = 256  # queries multiplied with a piece at once


def piece_rows(queries: int) -> int:
    """Rows to multiply at once on a CPU."""
    return min(max(ROWS * TOGETHER // queries, ROWS), MOST_ROWS)


class Part(Best):
    """Queries, fp32 (Q, D), that are multiplied at once, and the `keep` best of each."""

    def __init__(self, queries, keep: int):
        super().__init__(len(queries), keep, queries.device)
        self.order = in_order(queries)

    def highest(self, rows, groups: int):
        """fp32 (groups, Q): the highest products of groups of rows."""
        return highest(margins(rows, self.order), groups)

    def sampled(self, highest, sample: int, size: int) -> None:
        """Expect what is likely of all `size` rows by the highest products, (groups, Q), of `sample` of them."""
        limits, _ = likely(highest, sample, size, self.keep)
        if torch.isfinite(limits).all():  # or else the scan will find the row that is at fault
            self.expect(limits)

    def look(self, rows, start: int) -> None:
        """Look at rows, (R, D), the first of which has number `start`."""
        self.add(margins(rows, self.order, self.bias), start)


class Scan:
    """The `keep` best of each of `queries`, fp32 (Q, D), by fp32 products: `add` every piece, then `settle`, and they are in `parts`."""

    part = Part

    def __init__(self, queries, keep: int):
        self.parts = [self.part(some, keep) for some in queries.split(TOGETHER)]

    def __len__(self) -> int:
        return sum(len(part.keys) for part in self.parts)

    def twin(self) -> "Scan":
        """One like this, before it has seen any rows."""
        twin = copy.copy(self)
        twin.parts = [part.twin() for part in self.parts]
        return twin

    def add(self, rows, start: int) -> None:
        """Look at rows, (R, D), the first of which has number `start`."""
        for part in self.parts:
            part.look(rows, start)

    def join(self, other: "Scan") -> None:
        """Take over what was found in other rows."""
        for mine, theirs in zip(self.parts, other.parts):
            mine.join(theirs)

    def settle(self) -> None:
        """Sort in what was found in the rows so far."""
        for part in self.parts:
            part.settle()

    def of_all(self, found: str):
        """What `found` of each part is, of all queries together."""
        return torch.cat([getattr(part, found) for part in self.parts])


def in_order(queries):
    """fp32 (Q, D) in the order in which products read them."""
    if queries.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._reorder_linear_weight(queries, ROWS)
    return queries


def margins(rows, queries, bias=None):
    """(R, D), (Q, D) as `in_order` gives them, (Q,) -> (R, Q): products, plus what is added to all of a query."""
    if queries.is_mkldnn:  # reads the rows as they lie; `@` packs them first, which takes 1.1 to 1.5 times as long (docs/LOG.md)
        return torch.ops.mkldnn._linear_pointwise(rows, queries, bias, "none", [], "none")
    return rows @ queries.T if bias is None else torch.addmm(bias, rows, queries.T)
