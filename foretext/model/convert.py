"""ConveRT's encoder (Henderson et al., arXiv 1911.03688, section 3): six light windowed blocks over subwords.

It presents the face of `model.encoder.Encoder` (config, compute_dtype, words, forward) and calls the same attention primitive.

    T tokens of the flat batch   D width   A attention width   V vocabulary   w window of a block   b, L a bucket and its longest text
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from foretext.model.attention import Bias, attend, make_bias
from foretext.model.encoder import Tokens
from foretext.model.layers import LayerNorm, Linear
from foretext.model.layout import Bucket

PERIODS = (47, 11)  # of the two position tables; co-prime, so that the pair repeats after 517 positions only (section 3.1)


class ConvertConfig(BaseModel):
    """Everything that shapes the network; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["convert"] = "convert"
    vocab_size: int = Field(gt=0, description="subwords and hash buckets")
    width: int = Field(512, gt=0, description="D, features of a token")
    attention_width: int = Field(64, gt=0, description="A, features of queries and keys")
    ffn_width: int = Field(2048, gt=0, description="features inside the feed-forward part")
    windows: tuple[int, ...] = Field((3, 5, 48, 48, 48, 48), description="how far each block sees, in tokens (section 3.1)")
    max_len: int = Field(62, gt=0, description="longest input in tokens: the paper's 60 subwords and two special tokens")
    value: Literal["full", "low_rank"] = Field("full", description="values: D -> D, or D -> A -> D")
    relative: Literal["scalar_bias", "shaw_key", "none"] = Field(
        "scalar_bias", description="what attention knows of offsets: a number for each; a key vector for each (arXiv 1803.02155); nothing")
    norm_eps: float = 1e-6
    dropout: float = Field(0.0, ge=0, lt=1, description="of token vectors before the first block; the paper's 0 is for 700 million pairs")

    @property
    def layers(self) -> int:
        return len(self.windows)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the paper's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


class ConvertBlock(nn.Module):
    """x = LN(x + attention(x));  x = LN(x + W2 act(W1 x)). One head; what is attended to is not projected again."""

    def __init__(self, config: ConvertConfig, window: int):
        super().__init__()
        D, A, self.window, self.relative = config.width, config.attention_width, window, config.relative
        self.query, self.key = Linear(D, A), Linear(D, A)
        self.value = Linear(D, D) if config.value == "full" else nn.Sequential(Linear(D, A), Linear(A, D))
        offsets = 2 * window + 1
        if config.relative == "scalar_bias":
            self.offsets = nn.Parameter(torch.zeros(offsets))
        elif config.relative == "shaw_key":
            self.offsets = nn.Parameter(torch.randn(offsets, A) * 0.02)
        self.attention_norm, self.ffn_norm = LayerNorm(D, config.norm_eps), LayerNorm(D, config.norm_eps)
        self.up, self.down = Linear(D, config.ffn_width), Linear(config.ffn_width, D)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """(T, D) -> (T, D)"""
        q, k, v = (part(x)[:, None] for part in (self.query, self.key, self.value))  # (T, D) -> (T, 1, A) or (T, 1, D)
        x = self.attention_norm(x + attend(q, k, v, tokens.layout, bias=self.bias(q, tokens)))
        return self.ffn_norm(x + self.down(quick_gelu(self.up(x))))

    def bias(self, q: Tensor, tokens: Tokens) -> Bias:
        """Per bucket (b or 1, 1, L, L): the number of each offset key - query, and no key beyond the window."""

        def rule(a: Bucket, _: Bucket) -> Tensor:
            place = torch.arange(a.width, device=q.device)
            apart = place - place[:, None]  # (L, L) key - query
            near, offset = apart.abs() <= self.window, apart.clamp(-self.window, self.window) + self.window
            if self.relative == "none":
                return near[None, None]
            if self.relative == "scalar_bias":
                scores = self.offsets[offset][None, None]
            else:
                with_offsets = a.pad(q).squeeze(2) @ self.offsets.to(q.dtype).T * q.shape[-1] ** -0.5  # (b, L, 2w+1)
                scores = with_offsets.gather(2, offset.expand(a.size, -1, -1))[:, None]
            return scores.masked_fill(~near, torch.finfo(q.dtype).min)

        return make_bias(tokens.layout, tokens.layout, rule, q.dtype)


class ConvertEncoder(nn.Module):
    """Token ids in, one vector per token out; an embedding never depends on what else is in the batch."""

    def __init__(self, config: ConvertConfig):
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.ModuleList(nn.Embedding(period, config.width) for period in PERIODS)
        self.blocks = nn.ModuleList(ConvertBlock(config, window) for window in config.windows)
        # Words of length about 1, positions shorter: a new network tells texts apart by their words, also by those it hardly ever saw.
        nn.init.normal_(self.words.weight, std=config.width**-0.5)
        for table in self.positions:
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tokens, rows: Tensor | None = None) -> Tensor:
        """Last hidden states (T, D), or those of the flat indices `rows` (K,): (K, D)."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, tokens)
        return x if rows is None else x.index_select(0, rows)

    def embed(self, tokens: Tokens) -> Tensor:
        """(T, D): word row + one row of each position table; no norm; dropout."""
        x = self.words(tokens.ids)
        for table, period in zip(self.positions, PERIODS):
            x = x + table(tokens.positions % period)
        return F.dropout(x.to(self.compute_dtype), self.config.dropout, self.training)
