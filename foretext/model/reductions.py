"""From token states to the vector of a text: reductions and the feed-forward stack of a dual encoder's side.

    T tokens   B texts   D width   A attention width
"""

from typing import Literal

import torch
from torch import Tensor, nn

from foretext.model.attention import attend
from foretext.model.convert import quick_gelu
from foretext.model.layers import LayerNorm, Linear
from foretext.model.layout import Layout

Reduce = Literal["cls", "mean", "max", "sha", "2ha"]
ReductionScale = Literal["inv_sqrt", "sqrt", "mean"]

ATTENTION_WIDTH = 64  # of a reduction head's queries and keys (ConveRT, arXiv 1911.03688, section 3.1)
STACK = 3  # hidden layers of a feed-forward stack (section 3.2)


class Reduction(nn.Module):
    """Token states (T, D) -> one vector per text (B, D), or (B, 2D) for `2ha`.

    `sha`: A = softmax(q k^T) over the text, each token weighs what all tokens together give it, times `scale` of the length n:
    1/sqrt(n) (`inv_sqrt`), sqrt(n) (`sqrt`) or 1/n (`mean`). `2ha`: two such heads side by side. No value matrix.
    """

    def __init__(self, how: Reduce, width: int, scale: ReductionScale = "inv_sqrt"):
        super().__init__()
        self.how, self.scale = how, scale
        self.width = width * (2 if how == "2ha" else 1)
        heads = {"sha": 1, "2ha": 2}.get(how, 0)
        self.heads = nn.ModuleList(
            nn.ModuleDict({"query": Linear(width, ATTENTION_WIDTH), "key": Linear(width, ATTENTION_WIDTH)}) for _ in range(heads))

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """(B, width) in fp32."""
        if self.how == "cls":
            return hidden.index_select(0, layout.first_rows).float()
        if self.how == "max":
            return layout.largest(hidden.float())
        sizes = (layout.cu_seqlens[1:] - layout.cu_seqlens[:-1])[:, None].float()
        if self.how == "mean":
            return layout.sums(hidden.float()) / sizes
        scale = sizes ** {"inv_sqrt": -0.5, "sqrt": 0.5, "mean": -1.0}[self.scale]
        return torch.cat([layout.sums(self.mixed(head, hidden, layout).float()) * scale for head in self.heads], dim=1)

    def mixed(self, head: nn.ModuleDict, hidden: Tensor, layout: Layout) -> Tensor:
        """(T, D): what each token attends to. Their sum over a text weighs its tokens by the attention that they receive."""
        q = head["query"](hidden) * ATTENTION_WIDTH**0.5  # undoes the primitive's scaling: the paper has none here
        return attend(q[:, None], head["key"](hidden)[:, None], hidden[:, None], layout)


class FeedForwardStack(nn.Module):
    """LN; three layers z = LN(act(W z + b) + z); h = W_f z + b_f + P x (ConveRT section 3.2). Orthogonal start.

    Args:
        width, out: of the vector that comes in, and of the one that leaves.
        input_norm: normalise what comes in before the first layer.
    """

    def __init__(self, width: int, out: int, dropout: float = 0.0, input_norm: bool = True, eps: float = 1e-6):
        super().__init__()
        self.input_norm = LayerNorm(width, eps) if input_norm else nn.Identity()
        self.layers = nn.ModuleList(Linear(width, width) for _ in range(STACK))
        self.norms = nn.ModuleList(LayerNorm(width, eps) for _ in range(STACK))
        self.last, self.skip = Linear(width, out), Linear(width, out, bias=False)
        self.dropout = nn.Dropout(dropout)
        for linear in (*self.layers, self.last, self.skip):
            nn.init.orthogonal_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, out)"""
        z = self.input_norm(x)
        for layer, norm in zip(self.layers, self.norms):
            z = self.dropout(norm(quick_gelu(layer(z)) + z))
        return self.last(z) + self.skip(x)
