"""The encoder: one network, configured to be BERT, RoBERTa, ELECTRA, MPNet or ModernBERT. Read this file first.

    T tokens of the flat batch   D width   H heads   d = D/H   F feed-forward width   V vocabulary   E embedding width
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from foretext.model.attention import Bias, attend, make_bias
from foretext.model.layers import LayerNorm, Linear, Rotary, relative_bucket
from foretext.model.layout import Bucket, Layout


class EncoderConfig(BaseModel):
    """Everything that shapes the network. `presets.py` names the combinations that exist in the field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["bert", "roberta", "electra", "mpnet", "modernbert"] = "bert"
    vocab_size: int = Field(gt=0, description="tokens in the vocabulary")
    width: int = Field(768, gt=0, description="D, features of a token")
    layers: int = Field(12, gt=0)
    heads: int = Field(12, gt=0)
    ffn_width: int = Field(3072, gt=0, description="F, features inside the feed-forward part")
    max_len: int = Field(512, gt=0, description="longest input in tokens, special tokens included")
    embedding_width: int | None = Field(None, description="E, features of the embedding tables (ELECTRA); default: width")
    types: int = Field(2, ge=0, description="token types (segments); 0: none")
    norm_eps: float = 1e-12
    window: int | None = Field(None, description="local layers see keys this far away, in tokens (ModernBERT: 64)")
    global_every: int = Field(3, description="with a window: every n-th layer, from the first, sees everything")
    rope_theta: float = Field(160_000.0, description="rotary base of global layers")
    local_rope_theta: float = Field(10_000.0, description="rotary base of local layers")
    qkv_init: Literal["normal", "xavier_fused"] | None = Field(
        None, description="query, key and value weights: N(0, .02), or Xavier over all three (MPNet's code); default: by family")
    dropout: float = Field(0.0, ge=0, lt=1, description="after embeddings, attention and feed-forward")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="on attention weights")

    @model_validator(mode="after")
    def _fits(self) -> "EncoderConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def prenorm(self) -> bool:
        """Pre-norm residual blocks, rotary positions, gated feed-forward, no biases: ModernBERT's layout."""
        return self.family == "modernbert"

    @property
    def table_width(self) -> int:
        return self.embedding_width or self.width


@dataclass(frozen=True)
class Tokens:
    """A flat batch of token sequences."""

    ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, from 0 within each sequence
    layout: Layout
    types: Tensor | None = None  # (T,) int64; None: all 0

    @classmethod
    def of(cls, ids: Tensor, lengths: list[int], types: Tensor | None = None, splits: Sequence[int] | None = None) -> "Tokens":
        layout = Layout.of(lengths, splits, ids.device)
        return cls(ids, layout.positions, layout, types)

    def with_ids(self, ids: Tensor) -> "Tokens":
        """The same places, other tokens."""
        return replace(self, ids=ids)

    def to(self, device: str | torch.device) -> "Tokens":
        move = lambda x: None if x is None else x.to(device, non_blocking=True)  # noqa: E731
        return Tokens(move(self.ids), move(self.positions), self.layout.to(device), move(self.types))


class Block(nn.Module):
    """One layer: attention and feed-forward, each with a residual and a norm.

    Post-norm (BERT, arXiv 1810.04805):     x = LN(x + Wo attention(x));  x = LN(x + W2 gelu(W1 x))
    Pre-norm (ModernBERT, arXiv 2412.13663): x = x + Wo attention(LN x);   x = x + W2 (gelu(a) * b), [a b] = W1 LN x

    Objectives that attend across two token streams call the parts (`queries`, `keys_values`, `finish`) themselves.
    """

    def __init__(self, config: EncoderConfig, first: bool = False):
        super().__init__()
        D, bias, self.prenorm = config.width, not config.prenorm, config.prenorm
        self.heads, self.dropout, self.attention_dropout = config.heads, config.dropout, config.attention_dropout
        self.qkv = Linear(D, 3 * D, bias=bias)
        if (config.qkv_init or ("xavier_fused" if config.family == "mpnet" else "normal")) == "xavier_fused":
            nn.init.xavier_uniform_(self.qkv.weight)
        self.out = Linear(D, D, bias=bias)
        # ModernBERT's first layer follows the embedding norm directly and has none of its own.
        self.attention_norm = nn.Identity() if first and self.prenorm else LayerNorm(D, config.norm_eps, bias=bias)
        self.up = Linear(D, config.ffn_width * (2 if self.prenorm else 1), bias=bias)
        self.down = Linear(config.ffn_width, D, bias=bias)
        self.ffn_norm = LayerNorm(D, config.norm_eps, bias=bias)

    def forward(self, x: Tensor, layout: Layout, bias: Bias | None = None, rotary: Rotary | None = None,
                window: int | None = None, rows: Tensor | None = None) -> Tensor:
        """(T, D) -> (T, D), or (K, D) when only `rows` (K,) are wanted: nothing is computed for the others after attention."""
        q, k, v = self.queries_keys_values(self.enter(x))
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        return self.finish(x, self.mix(q, k, v, layout, bias=bias, window=window), rows)

    def enter(self, x: Tensor) -> Tensor:
        """What attention reads: x itself (post-norm) or LN(x) (pre-norm)."""
        return self.attention_norm(x) if self.prenorm else x

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) -> three times (T, H, d); x as given by `enter`."""
        return self._split(self.qkv(x), 3)

    def queries(self, x: Tensor) -> Tensor:
        """(T, D) -> (T, H, d); x as given by `enter`."""
        D = x.shape[-1]
        return self._split(self._part(x, 0, D), 1)[0]

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> twice (T, H, d); x as given by `enter`."""
        D = x.shape[-1]
        return self._split(self._part(x, D, 3 * D), 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout | None = None,
            bias: Bias | None = None, window: int | None = None) -> Tensor:
        """`attend` with this layer's dropout: -> (Tq, D)."""
        return attend(q, k, v, layout, kv_layout, bias, window, self.attention_dropout if self.training else 0.0)

    def finish(self, x: Tensor, mixed: Tensor, rows: Tensor | None = None) -> Tensor:
        """Everything after attention: output projection, residual, feed-forward, residual. x, mixed: (T, D)."""
        if rows is not None:
            x, mixed = x.index_select(0, rows), mixed.index_select(0, rows)
        return self.feed_forward(self.attended(x, mixed))

    def attended(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The attention's output projection and residual."""
        x = x + self._drop(self.out(mixed))
        return x if self.prenorm else self.attention_norm(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward part and its residual."""
        if self.prenorm:
            a, b = self.up(self.ffn_norm(x)).chunk(2, dim=-1)
            return x + self._drop(self.down(F.gelu(a) * b))
        return self.ffn_norm(x + self._drop(self.down(self._gelu_up(x))))

    def _gelu_up(self, x: Tensor) -> Tensor:
        # With a LoRA adapter around it the matrix alone is not all that comes before GELU.
        return self.up(x, then="gelu") if isinstance(self.up, Linear) else F.gelu(self.up(x))

    def _part(self, x: Tensor, start: int, stop: int) -> Tensor:
        bias = None if self.qkv.bias is None else self.qkv.bias[start:stop].to(x.dtype)
        return F.linear(x, self.qkv.weight[start:stop].to(x.dtype), bias)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.view(x.shape[0], parts, self.heads, x.shape[1] // (parts * self.heads)).unbind(1)  # (T, parts*D) -> parts x (T, H, d)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Encoder(nn.Module):
    """Token ids in, one vector per token out; an embedding never depends on what else is in the batch, but for rounding.

    `compute_dtype` (fp32 or bf16) is what activations and matmuls use; parameters stay fp32. Products of other sizes sum in another order:
    that moves a vector by some 1e-6 of its length in fp32 and 5e-3 in bf16, whose digits end there.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        E = config.table_width
        self.words = nn.Embedding(config.vocab_size, E)
        self.positions = None if config.prenorm else nn.Embedding(config.max_len, E)
        self.types = nn.Embedding(config.types, E) if config.types else None
        self.norm = LayerNorm(E, config.norm_eps, bias=not config.prenorm)
        self.project = Linear(E, config.width) if config.width != E else nn.Identity()
        self.relative = nn.Embedding(32, config.heads) if config.family == "mpnet" else None
        self.blocks = nn.ModuleList(Block(config, first=i == 0) for i in range(config.layers))
        self.final_norm = LayerNorm(config.width, config.norm_eps, bias=False) if config.prenorm else nn.Identity()
        for table in (self.words, self.positions, self.types, self.relative):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tokens, rows: Tensor | None = None, visible: list[Tensor] | None = None) -> Tensor:
        """Last hidden states.

        Args:
            rows: (K,) flat indices of the tokens that someone reads; the last layer then computes only those (exactly the same).
            visible: per bucket a bool tensor broadcastable to (b, 1, L, L), what each token sees; None: its whole sequence.
        Returns:
            (T, D), or (K, D) with `rows`.
        """
        x = self.embed(tokens)
        biases, rotaries = self.biases(tokens, tokens, visible), self.rotaries(tokens.positions)
        for i, block in enumerate(self.blocks):
            last = rows if i == len(self.blocks) - 1 else None
            x = block(x, tokens.layout, biases[i], rotaries[i], self.window(i), last)
        return self.final_norm(x)

    def states(self, tokens: Tokens, rows: Tensor | None = None) -> list[Tensor]:
        """[h_0, ..., h_N], each (T, D): the embeddings and every layer's output, all before the final norm of pre-norm encoders.

        With `rows` (K,) the last of them is (K, D), as in `forward`.
        """
        biases, rotaries = self.biases(tokens, tokens), self.rotaries(tokens.positions)
        states = [self.embed(tokens)]
        for i, block in enumerate(self.blocks):
            last = rows if i == len(self.blocks) - 1 else None
            states.append(block(states[-1], tokens.layout, biases[i], rotaries[i], self.window(i), last))
        return states

    def embed(self, tokens: Tokens, vectors: Tensor | None = None) -> Tensor:
        """h_0 (T, D): word + position + type rows, norm, dropout. `vectors` (T, E) stands in for the word rows."""
        x = self.words(tokens.ids) if vectors is None else vectors.float()
        if self.positions is not None:
            x = x + self.positions(tokens.positions)
        if self.types is not None:
            x = x + (self.types.weight[0] if tokens.types is None else self.types(tokens.types))
        x = self.norm(x).to(self.compute_dtype)
        return self.project(F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x)

    def biases(self, queries: Tokens, keys: Tokens, visible: list[Tensor] | None = None) -> list[Bias | None]:
        """The attention bias of every layer for queries over keys; equal biases are one shared tensor.

        Args:
            visible: per bucket a bool tensor broadcastable to (b, 1, Lq, Lk); None: every key of the sequence.
        """
        plain = self._bias(queries, keys, visible, None)
        if self.config.window is None:
            return [plain] * self.config.layers
        if visible is None:  # a window alone needs no bias: `attend` knows it
            return [plain] * self.config.layers
        local = self._bias(queries, keys, visible, self.config.window)
        return [plain if self.window(i) is None else local for i in range(self.config.layers)]

    def _bias(self, queries: Tokens, keys: Tokens, visible: list[Tensor] | None, window: int | None) -> Bias | None:
        hidden_by = dict(zip(keys.layout.buckets, visible)) if visible is not None else {}

        def rule(a: Bucket, b: Bucket) -> Tensor | None:
            seen = hidden_by.get(b)
            if self.relative is None and window is None:
                return seen
            apart = b.pad(keys.positions)[:, None, :] - a.pad(queries.positions)[:, :, None]  # (b, Lq, Lk) key - query
            if window is not None:
                seen = seen & (apart.abs() <= window)[:, None]
            if self.relative is None:
                return seen
            number = relative_bucket(apart)
            if seen is not None:
                number = torch.where(seen[:, 0], number, len(self.relative.weight))
            # One more row for what is hidden. A gather per head, because the gradient of rows of H numbers takes six times as long.
            table = F.pad(self.relative.weight.T, (0, 1), value=torch.finfo(self.compute_dtype).min).expand(number.shape[0], -1, -1)
            scores = table.gather(2, number.flatten(1)[:, None].expand(-1, table.shape[1], -1))
            return scores.view(*table.shape[:2], *number.shape[1:])  # (b, H, Lq, Lk)

        return make_bias(queries.layout, keys.layout, rule, self.compute_dtype)

    def window(self, layer: int) -> int | None:
        """How far layer `layer` sees, in tokens; None: everything."""
        return None if layer % self.config.global_every == 0 else self.config.window

    def rotaries(self, positions: Tensor) -> list[Rotary | None]:
        """The rotation of every layer at these positions (T,); None for encoders with a position table."""
        if not self.config.prenorm:
            return [None] * self.config.layers
        d = self.config.width // self.config.heads
        wide = Rotary(positions, d, self.config.rope_theta, self.compute_dtype)
        near = Rotary(positions, d, self.config.local_rope_theta, self.compute_dtype)
        return [wide if self.window(i) is None else near for i in range(self.config.layers)]

    def new_block(self) -> Block:
        """A fresh layer of the same kind, for an objective's decoder or head."""
        return Block(self.config)
