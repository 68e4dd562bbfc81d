"""The decoder: causal self-attention, cross-attention over what an encoder made of other texts, feed-forward. For seq2seq and MARGE.

It is built of the encoder's own layers and reads through the encoder's embeddings, so it has the layout of the encoder's family: post-norm
with learned positions (BART, arXiv 1910.13461), or pre-norm with rotary positions and a final norm (ModernBERT). Cross-attention
knows no positions. All of it goes through `attention.attend`.

    T target tokens   B targets   S source tokens   M sources   N hypotheses while generating   D width   H heads   d = D/H
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretext.model.attention import Bias, attend
from foretext.model.encoder import Block, Encoder, EncoderConfig, Tokens
from foretext.model.layers import LayerNorm, Linear, Rotary
from foretext.model.layout import Layout

KeysValues = tuple[Tensor, Tensor]  # twice (rows, H, d)


@dataclass(frozen=True)
class Memory:
    """What cross-attention reads, and which target tokens read which part of it.

    `queries` and `keys` say who meets whom; padding is never seen. `one_each` and `shared` make the two usual cases.

    Attributes:
        states: (S, D) the sources' last hidden states, end to end.
        queries: of the target tokens, in their flat order: its i-th sequence reads the i-th of `keys`, in the same buckets.
        keys: of the rows of `states`.
        biases: for every layer with cross-attention an additive bias from `make_bias` or None; None: no layer has one.
    """

    states: Tensor
    queries: Layout
    keys: Layout
    biases: Sequence[Bias | None] | None = None

    @classmethod
    def one_each(cls, states: Tensor, sources: Layout, targets: Layout) -> "Memory":
        """The b-th target reads the b-th source; `targets` was laid out with `splits=sources.splits`."""
        assert targets.splits == sources.splits, "targets and sources need the same buckets"
        return cls(states, targets, sources)

    @classmethod
    def shared(cls, states: Tensor, sources: Layout, targets: Layout, biases: Sequence[Bias | None] | None = None) -> "Memory":
        """Every target reads all tokens of all sources, with one softmax over them (MARGE); see `segment_bias`."""
        device = states.device
        return cls(states, Layout.of([sum(targets.lengths)], device=device), Layout.of([len(states)], device=device), biases)

    def hypotheses(self, each: int) -> "Memory":
        """For generation: `each` hypotheses, one token each, read every sequence of keys; N = each * number of sequences of `keys`.

        Biases must not differ between target tokens (their Lq is 1).
        """
        queries = Layout.of([each] * len(self.keys.lengths), self.keys.splits, self.states.device)
        return replace(self, queries=queries)


def segment_bias(scores: Tensor, targets: Layout, sources: Layout, hidden: Tensor | None = None,
                 dtype: torch.dtype = torch.float32) -> Bias:
    """The bias of `Memory.shared` from one number per (target, source), with gradient to it (MARGE, arXiv 2006.15020, equation 4).

    Args:
        scores: (B, M) fp32, or (B, M, H) where heads differ.
        hidden: (B, M) bool, True where the target must not see the source. A target that sees none gets a meaningless mixture, not NaN.
        dtype: of the activations.
    Returns:
        one tensor (1, 1 or H, T, S).
    """
    if scores.ndim == 2:
        scores = scores[:, :, None]
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, :, None], torch.finfo(dtype).min)
    spread = scores.to(dtype).permute(2, 0, 1)[:, targets.sequence][:, :, sources.sequence]  # (H, T, S)
    return [spread[None]]


class CrossAttention(nn.Module):
    """Queries of the target over keys and values of the sources, with residual and norm as in the encoder's layers."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D, bias, self.prenorm = config.width, not config.prenorm, config.prenorm
        self.heads, self.dropout, self.attention_dropout = config.heads, config.dropout, config.attention_dropout
        self.q = Linear(D, D, bias=bias)
        self.kv = Linear(D, 2 * D, bias=bias)
        self.out = Linear(D, D, bias=bias)
        self.norm = LayerNorm(D, config.norm_eps, bias=bias)

    def keys_values(self, states: Tensor) -> KeysValues:
        """(S, D) -> twice (S, H, d)"""
        k, v = self.kv(states).view(len(states), 2, self.heads, -1).unbind(1)
        return k, v

    def forward(self, x: Tensor, keys_values: KeysValues, memory: Memory, bias: Bias | None) -> Tensor:
        """(T, D) -> (T, D)"""
        q = self.q(self.norm(x) if self.prenorm else x).view(len(x), self.heads, -1)
        mixed = attend(q, *keys_values, memory.queries, memory.keys, bias, dropout=self.attention_dropout if self.training else 0.0)
        x = x + F.dropout(self.out(mixed), self.dropout, self.training)
        return x if self.prenorm else self.norm(x)


class DecoderBlock(Block):
    """A layer of the encoder's kind that may read a memory between its self-attention and its feed-forward part."""

    def __init__(self, config: EncoderConfig, cross: bool, first: bool = False):
        super().__init__(config, first)
        self.cross = CrossAttention(config) if cross else None

    def forward(self, x: Tensor, layout: Layout, bias: Bias | None = None, rotary: Rotary | None = None, memory: Memory | None = None,
                cross_bias: Bias | None = None, past: "Past | None" = None, past_layout: Layout | None = None) -> Tensor:
        """(T, D) -> (T, D); with `past` the tokens are the newest of each hypothesis, and see what is kept there as well."""
        q, k, v = self.queries_keys_values(self.enter(x))
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        if past is not None:
            k, v = past.extend(k, v)
        x = self.attended(x, self.mix(q, k, v, layout, past_layout, bias=bias))
        if self.cross is not None:
            read = self.cross.keys_values(memory.states) if past is None else past.read
            x = self.cross(x, read, memory, cross_bias)
        return self.feed_forward(x)


class Decoder(nn.Module):
    """Target ids and a memory in, one vector per target token out.

    Args:
        config: of the encoder that it goes with.
        layers: with cross-attention.
        base_layers: before them, without (MARGE: 4).
        ffn_width: of the layers with cross-attention; default: the encoder's (MARGE: four times that).
    """

    def __init__(self, config: EncoderConfig, layers: int, base_layers: int = 0, ffn_width: int | None = None):
        super().__init__()
        wide = config.model_copy(update={"ffn_width": ffn_width or config.ffn_width})
        self.blocks = nn.ModuleList(DecoderBlock(wide if i >= base_layers else config, i >= base_layers, first=i == 0)
                                    for i in range(base_layers + layers))
        self.base_layers = base_layers
        self.final_norm = LayerNorm(config.width, config.norm_eps, bias=False) if config.prenorm else nn.Identity()

    def forward(self, encoder: Encoder, target: Tokens, memory: Memory | None) -> Tensor:
        """Last hidden states (T, D); each token sees itself, what is before it in its own target, and the memory.

        Args:
            encoder: whose embeddings (and relative positions, in MPNet's layout) are shared.
            memory: None only where there is no layer with cross-attention.
        """
        x = encoder.embed(target)
        squares = (torch.ones(1, 1, k.width, k.width, dtype=torch.bool, device=x.device).tril() for k in target.layout.buckets)
        bias = encoder.biases(target, target, visible=list(squares))[0]
        return self._run(encoder, x, target, bias, memory)

    def begin(self, memory: Memory | None) -> "Generation":
        """Start generating: the keys and values of the memory (see `Memory.hypotheses`) are computed once."""
        pasts = [Past(block.cross.keys_values(memory.states) if block.cross is not None else None) for block in self.blocks]
        return Generation(memory, pasts)

    def step(self, encoder: Encoder, ids: Tensor, generation: "Generation") -> Tensor:
        """One more token for each of N hypotheses, all of equal length: (N,) ids -> (N, D), the same as `forward` gives at that place."""
        past, N = generation.length, len(ids)
        positions = torch.full_like(ids, past)
        newest = Tokens(ids, positions, Layout.of([1] * N, device=ids.device))
        everything = Tokens(ids, torch.arange(past + 1, device=ids.device).repeat(N), Layout.of([past + 1] * N, device=ids.device))
        bias = encoder.biases(newest, everything)[0] if encoder.relative is not None else None
        generation.length += 1
        return self._run(encoder, encoder.embed(newest), newest, bias, generation.memory, generation.pasts, everything.layout)

    def _run(self, encoder: Encoder, x: Tensor, target: Tokens, bias: Bias | None, memory: Memory | None,
             pasts: "list[Past] | None" = None, past_layout: Layout | None = None) -> Tensor:
        rotary = encoder.rotaries(target.positions)[0]  # that of global layers: the decoder has no local ones
        biases = memory.biases if memory is not None else None
        for i, block in enumerate(self.blocks):
            cross_bias = biases[i - self.base_layers] if biases is not None and block.cross is not None else None
            x = block(x, target.layout, bias, rotary, memory, cross_bias, pasts[i] if pasts else None, past_layout)
        return self.final_norm(x)


@dataclass
class Past:
    """The keys and values of one layer while N hypotheses are generated."""

    read: KeysValues | None  # of the memory
    keys: Tensor | None = None  # (N, length, H, d)
    values: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> KeysValues:
        """Append (N, H, d) of the newest tokens: all there are now, flat."""
        k, v = k[:, None], v[:, None]
        self.keys = k if self.keys is None else torch.cat((self.keys, k), 1)
        self.values = v if self.values is None else torch.cat((self.values, v), 1)
        return self.keys.flatten(0, 1), self.values.flatten(0, 1)


@dataclass
class Generation:
    """The state of hypotheses that grow token by token."""

    memory: Memory | None
    pasts: list[Past]
    length: int = 0

    def select(self, rows: Tensor) -> None:
        """Go on with the hypotheses `rows` (N,); each stays with the memory of its own group of `Memory.hypotheses`."""
        for past in self.pasts:
            if past.keys is not None:
                past.keys, past.values = past.keys.index_select(0, rows), past.values.index_select(0, rows)


@dataclass
class Hypotheses:
    """A decoder and the head on it as `model.generation` wants them."""

    encoder: Encoder  # whose embeddings the decoder shares
    decoder: Decoder
    output: nn.Module  # (N, D) and the encoder's word table -> logits (N, V)
    generation: Generation

    def step(self, ids: Tensor) -> Tensor:
        """See `generation.Steps`."""
        for newest in ids.unbind(1):
            hidden = self.decoder.step(self.encoder, newest, self.generation)
        return self.output(hidden, self.encoder.words)

    def select(self, rows: Tensor) -> None:
        """See `generation.Steps`."""
        self.generation.select(rows)
