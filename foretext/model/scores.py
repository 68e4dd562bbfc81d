"""Scores between two sides: how sharp they are, and the losses of a dual encoder over them.

    B queries   P documents, the i-th of which belongs to query i
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

ScaleKind = Literal["annealed", "learned", "fixed"]

ANNEALING = 10_000  # updates until an annealed scale has reached its end (ConveRT, arXiv 1911.03688, section 4.1)


class Scale(nn.Module):
    """The factor c of a cosine: a number; exp(t) with t trained; or 1 -> sqrt(d) over the first 10,000 updates.

    Args:
        start: of the fixed and the learned scale.
        dimension: d.
    """

    def __init__(self, kind: ScaleKind, start: float, dimension: int):
        super().__init__()
        self.kind, self.start, self.dimension = kind, start, dimension
        if kind == "learned":
            self.log = nn.Parameter(torch.tensor([math.log(start)]))  # (1,), not (): fully sharded training takes no scalars
        elif kind == "annealed":
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # in the checkpoint; advanced by training updates alone

    def forward(self) -> Tensor | float:
        """c"""
        if self.kind == "learned":
            return self.log.exp()
        if self.kind == "annealed":
            return 1 + (math.sqrt(self.dimension) - 1) * (self.updates / ANNEALING).clamp(max=1)
        return self.start

    def updated(self) -> None:
        """One more training update is done."""
        if self.kind == "annealed":
            self.updates += 1


def no_negatives(queries: Tensor, documents: Tensor, known: Tensor | None = None) -> Tensor:
    """(B, B) bool, True where another row's document is the same text as the row's own, or known to answer its query.

    Args:
        queries, documents: (B,) numbers of the texts. known: sorted codes query number * 2^32 + document number.
    """
    hidden = documents[:, None] == documents
    if known is not None and len(known):
        hidden = hidden | among((queries[:, None] << 32) + documents, known)
    return hidden & ~torch.eye(len(documents), dtype=torch.bool, device=documents.device)


def among(codes: Tensor, known: Tensor) -> Tensor:
    """Which codes are among the `known`, of which there is one or more, sorted: `torch.isin`, for which a GPU would be waited for."""
    return known[torch.searchsorted(known, codes).clamp(max=len(known) - 1)] == codes


def cross_entropy(scores: Tensor, smoothing: float, hidden: Tensor) -> Tensor:
    """-(1 - e) S_ii - e / (K_i - 1) * sum of the other S_ij + logsumexp S_i, for every row: (B,).

    Args:
        scores: (B, B). smoothing: e. hidden: (B, B) bool, documents that take no part; K_i counts the rest. A row alone is not smoothed.
    """
    own = scores.diagonal()
    normal = scores.masked_fill(hidden, float("-inf")).logsumexp(1)
    if not smoothing:
        return normal - own
    others = (~hidden).sum(1) - 1
    mean = (scores.masked_fill(hidden, 0.0).sum(1) - own) / others.clamp(min=1)
    share = torch.where(others > 0, smoothing, 0.0)
    return normal - (1 - share) * own - share * mean


def right_answers(scores: Tensor, hidden: Tensor) -> dict[str, tuple[Tensor, int]]:
    """Rows whose own document scores highest: among all of the step, and in each full hundred of rows."""
    found = {"in_batch_top1": hits(scores.masked_fill(hidden, float("-inf")))}
    if hundreds := len(scores) // 100:
        blocks = [scores[i : i + 100, i : i + 100] for i in range(0, 100 * hundreds, 100)]
        found["top1_of_100"] = (sum(hits(block)[0] for block in blocks), 100 * hundreds)
    return found


def hits(scores: Tensor) -> tuple[Tensor, int]:
    """(how many rows of (B, B) scores are highest on the diagonal, B)"""
    return (scores.argmax(1) == torch.arange(len(scores), device=scores.device)).sum(), len(scores)
