"""The network of a text encoder over a padded rectangle, to be traced: what travels flat elsewhere is (B, L) here.

    B texts   L longest   T = B * L   d features of a vector
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from foretext.model.encoder import Tokens
from foretext.model.layout import Bucket, Layout
from foretext.retrieval.embed import TextEncoder


@dataclass(frozen=True)
class Rectangle(Layout):
    """One bucket in which padding travels like tokens; it is hidden as a key and left out of sums."""

    @classmethod
    def around(cls, mask: Tensor) -> "Rectangle":
        """Of a mask (B, L), True where a token lies."""
        texts, length = mask.shape
        ends = torch.cat((mask.new_zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)))
        return cls((), ends, (Bucket(0, texts, 0, texts * length, length, None, mask),))

    @property
    def mask(self) -> Tensor:
        return self.buckets[0].real

    @property
    def max_len(self) -> int:
        return self.buckets[0].width

    @cached_property
    def first_rows(self) -> Tensor:
        return torch.arange(self.mask.shape[0]) * self.mask.shape[1]

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.mask.shape[1]).expand(self.mask.shape).reshape(-1)

    def sums(self, x: Tensor) -> Tensor:
        return (x.view(*self.mask.shape, -1) * self.mask[:, :, None]).sum(1)

    def largest(self, x: Tensor) -> Tensor:
        return x.view(*self.mask.shape, -1).masked_fill(~self.mask[:, :, None], float("-inf")).amax(1)


class Graph(nn.Module):
    """ids (B, L) and mask (B, L) -> vectors (B, d) of one kind of text; of "contexts": twice two of them, messages and turns."""

    def __init__(self, model: TextEncoder, kind: str):
        super().__init__()
        self.model, self.kind = model, kind
        parts = (getattr(model, "towers", model.encoder), model.document_encoder)
        self.network = nn.ModuleList(part for part in parts if part is not None)

    def forward(self, ids: Tensor, mask: Tensor, earlier_ids: Tensor | None = None, earlier_mask: Tensor | None = None) -> Tensor:
        tokens = rectangle(ids, mask)
        if self.kind != "contexts":
            return self.model.embed(tokens, self.kind).float()
        place = torch.arange(ids.shape[0])
        made = self.model.towers([("query", tokens), ("earlier", rectangle(earlier_ids, earlier_mask))], (place, place))
        return made[2] if self.model.towers.config.joint == "both" else torch.stack(made).mean(0)


def rectangle(ids: Tensor, mask: Tensor) -> Tokens:
    """All (B, L) places as one flat batch."""
    layout = Rectangle.around(mask.bool())
    return Tokens(ids.reshape(-1), layout.positions, layout)
