"""Heads: tokens to vocabulary (tied, chunked cross-entropy), tokens to one vector."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretext.model.encoder import Encoder, EncoderConfig, Tokens
from foretext.model.layers import LayerNorm, Linear
from foretext.model.layout import Layout

CHUNK_LOGITS = 1 << 26  # logits that exist at once: 128 MB in bf16
CACHED_LOGITS = 1 << 19  # of these, what a CPU takes from logits to gradient while they stay in its cache (docs/LOG.md)

Pooling = Literal["cls", "mean", "last"]

Look = Callable[[int, Tensor], None]
"""Called with the number of a chunk's first row and its logits (rows, V) in fp32, which it may read and not change."""


class TokenHead(nn.Module):
    """Masked-language-model head LN(gelu(W h)) E^T + c, its output matrix tied to the encoder's word table (BERT section 3.1)."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        config = encoder.config
        self.dense = Linear(config.width, config.table_width, bias=not config.prenorm)
        self.norm = LayerNorm(config.table_width, config.norm_eps, bias=not config.prenorm)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def transform(self, hidden: Tensor) -> Tensor:
        """(K, D) -> (K, E)"""
        return self.norm(F.gelu(self.dense(hidden)))

    def forward(self, hidden: Tensor, words: nn.Embedding) -> Tensor:
        """All logits, (K, D) -> (K, V), for looking at; training uses `loss`."""
        return F.linear(self.transform(hidden), words.weight.to(hidden.dtype), self.bias.to(hidden.dtype))

    def loss(self, hidden: Tensor, words: nn.Embedding, labels: Tensor, look: Look | None = None) -> tuple[Tensor, Tensor]:
        """Cross-entropy of (K, D) states against (K,) labels: (sum in nats, number predicted right)."""
        return cross_entropy_sum(self.transform(hidden), words.weight, self.bias, labels, look)


class TiedHead(nn.Module):
    """Next-token logits h E^T + c of a decoder, its output matrix the encoder's word table; h is projected where that table is narrower."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        config = encoder.config
        self.project = Linear(config.width, config.table_width) if config.width != config.table_width else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, words: nn.Embedding) -> Tensor:
        """All logits, (K, D) -> (K, V), for generating; training uses `loss`."""
        return F.linear(self.project(hidden), words.weight.to(hidden.dtype), self.bias.to(hidden.dtype))

    def loss(self, hidden: Tensor, words: nn.Embedding, labels: Tensor, look: Look | None = None) -> tuple[Tensor, Tensor]:
        """Cross-entropy of (K, D) states against (K,) labels: (sum in nats, number predicted right)."""
        return cross_entropy_sum(self.project(hidden), words.weight, self.bias, labels, look)


def cross_entropy_sum(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, look: Look | None = None) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax(x weight^T + bias)[labels] without ever holding all logits.

    Args:
        x: (K, E). weight: (V, E). bias: (V,). labels: (K,) int64.
        look: shown every chunk of logits while it is there.
    Returns:
        (sum, correct), two fp32 scalars; the second counts the labels that no other word's logit is above, and carries no gradient.
    """
    return _ChunkedCrossEntropy.apply(x, weight, bias, labels, look)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Takes the gradient of each chunk of rows while its logits are there, so nothing is recomputed and nothing large is kept."""

    @staticmethod
    def forward(ctx, x, weight, bias, labels, look):
        need = any(ctx.needs_input_grad)
        matrix = weight.to(x.dtype)  # cast here, so that its gradient stays fp32
        rows, few = (max(1, logits // weight.shape[0]) for logits in (CHUNK_LOGITS, CHUNK_LOGITS if x.is_cuda else CACHED_LOGITS))
        total, correct = x.new_zeros((), dtype=torch.float32), x.new_zeros((), dtype=torch.float32)
        grad_x = torch.empty_like(x) if need else None
        grad_weight = None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need else None
        for part in range(0, max(1, x.shape[0]), rows):
            h = x[part : part + rows]
            logits = F.linear(h, matrix)
            for first, piece in zip(range(part, part + rows, few), logits.split(few)):
                label = labels[first : first + len(piece), None]
                exact = piece.float().add_(bias)
                if look is not None:
                    look(first, exact)
                own, largest = exact.gather(1, label), exact.amax(1, keepdim=True)
                correct += (own == largest).sum()
                scale = exact.sub_(largest).exp_().sum(1, keepdim=True)
                total += (scale.log() + largest - own).sum()
                if need:
                    exact.scatter_add_(1, label, -scale).mul_(1 / scale)  # softmax, less 1 at the label
                    grad_bias += exact.sum(0)
                    piece.copy_(exact)  # the gradient takes the logits' place
            if need:
                torch.mm(logits, matrix, out=grad_x[part : part + rows])
                product = logits.T @ h
                grad_weight = product.float() if grad_weight is None else grad_weight.add_(product)
        ctx.gradients = grad_x, grad_weight, grad_bias
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx, scale, _):
        (grad_x, grad_weight, grad_bias), ctx.gradients = ctx.gradients, None  # scaled in place, so this is done once
        return grad_x.mul_(scale.to(grad_x.dtype)), grad_weight.mul_(scale), grad_bias.mul_(scale), None, None


def max_logits(x: Tensor, weight: Tensor, bias: Tensor, layout: Layout) -> Tensor:
    """For every sequence and word the largest logit x weight^T + bias over the sequence's tokens, the first token left out.

    One sequence's logits exist at a time (a stretch of it where they are over `CHUNK_LOGITS`).

    Args:
        x: (T, E). weight: (V, E). bias: (V,).
    Returns:
        (B, V) fp32; a sequence of one token has no largest logit, and gets the bias alone.
    """
    return _MaxLogits.apply(x, weight, bias, layout)


class _MaxLogits(torch.autograd.Function):
    """Keeps which token was the largest: the gradient is one product x[token] * weight[word] per sequence and word, not per token."""

    @staticmethod
    def forward(ctx, x, weight, bias, layout):
        matrix = weight.to(x.dtype)
        B, V = len(layout.lengths), len(weight)
        rows = max(1, CHUNK_LOGITS // V)
        largest = x.new_full((B, V), float("-inf"), dtype=torch.float32)
        token = torch.zeros(B, V, dtype=torch.int64, device=x.device)
        start = 0
        for b, n in enumerate(layout.lengths):
            for part in range(start + 1, start + n, rows):
                best, place = F.linear(x[part : min(part + rows, start + n)], matrix).max(0)
                best, place = best.float(), place + part
                if part == start + 1:
                    largest[b], token[b] = best, place
                else:
                    better = best > largest[b]
                    largest[b] = torch.where(better, best, largest[b])
                    token[b] = torch.where(better, place, token[b])
            start += n
        alone = largest == float("-inf")
        ctx.save_for_backward(x, weight, token, alone)
        return largest.masked_fill_(alone, 0.0) + bias

    @staticmethod
    def backward(ctx, grad):
        x, weight, token, alone = ctx.saved_tensors
        V, T = len(weight), len(x)
        grad_bias = grad.sum(0)
        grad = grad.masked_fill(alone, 0.0)
        grad_weight = F.embedding_bag(token.T.contiguous(), x.float(), mode="sum", per_sample_weights=grad.T.contiguous())
        order = token.flatten().argsort(stable=True)  # the same pairs, token by token
        ends = torch.searchsorted(token.flatten()[order], torch.arange(T, device=x.device))
        grad_x = F.embedding_bag(order % V, weight, ends, mode="sum", per_sample_weights=grad.flatten()[order])
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


def pool(hidden: Tensor, layout: Layout, how: Pooling) -> Tensor:
    """One vector per sequence: (T, D) -> (B, D), by its first token, its last, or by the mean over its tokens."""
    if how != "mean":
        return hidden.index_select(0, pooled_rows(layout, how))
    return layout.sums(hidden.float()) / (layout.cu_seqlens[1:] - layout.cu_seqlens[:-1])[:, None]


def pooled_rows(layout: Layout, how: Pooling) -> Tensor | None:
    """(B,) flat indices of the tokens that `pool` reads; None: all."""
    return {"cls": layout.first_rows, "last": layout.cu_seqlens[1:].long() - 1}.get(how)


def sequence_vectors(encoder: Encoder, tokens: Tokens, how: Pooling) -> Tensor:
    """`pool` of the last hidden states, (B, D) in fp32; the last layer computes nothing but the tokens that it reads."""
    rows = pooled_rows(tokens.layout, how)
    return pool(encoder(tokens), tokens.layout, how).float() if rows is None else encoder(tokens, rows=rows).float()


class SequenceHead(nn.Module):
    """One vector per sequence to K logits.

    "stock" is the head that transformers' `*ForSequenceClassification` has in this family: BERT out(tanh(dense x)) (its pooler);
    RoBERTa and MPNet the same with dropout before as well; ELECTRA out(gelu(dense x)); ModernBERT out(LN(gelu(dense x))).
    "linear" is out(x) alone, as Google's ELECTRA does it.

    Args:
        outputs: K.
        pooling: which vector: of the first token, or the mean over all.
        dropout: on what the matrices read.
    """

    def __init__(self, config: EncoderConfig, outputs: int, kind: Literal["stock", "linear"] = "stock", pooling: Pooling = "cls",
                 dropout: float = 0.0):  # fmt: skip
        super().__init__()
        stock = kind == "stock"
        self.pooling, self.dropout, self.family = pooling, dropout, config.family
        self.dense = Linear(config.width, config.width, bias=not config.prenorm) if stock else None
        self.norm = LayerNorm(config.width, config.norm_eps, bias=False) if stock and config.prenorm else None
        self.out = Linear(config.width, outputs)

    def forward(self, encoder: Encoder, tokens: Tokens) -> Tensor:
        """(B, K) fp32"""
        if self.pooling == "cls":
            x = encoder(tokens, rows=tokens.layout.first_rows)  # the last layer computes nothing but these rows
        else:
            x = pool(encoder(tokens), tokens.layout, self.pooling).to(encoder.compute_dtype)
        if self.dense is not None:
            x = self._drop(x) if self.family in ("roberta", "mpnet", "electra") else x
            x = self.dense(x)
            x = F.gelu(x) if self.family in ("electra", "modernbert") else x.tanh()
            x = x if self.norm is None else self.norm(x)
        return self.out(self._drop(x)).float()

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
