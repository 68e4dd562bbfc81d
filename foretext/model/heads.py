"""Heads: tokens to vocabulary (tied, chunked cross-entropy), tokens to one vector."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretext.model.attention import Layout
from foretext.model.encoder import Encoder, LayerNorm, Linear

CHUNK_LOGITS = 1 << 24  # logits that exist at once: 64 MB in fp32

Pooling = Literal["cls", "mean"]


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

    def loss(self, hidden: Tensor, words: nn.Embedding, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of (K, D) states against (K,) labels: (sum in nats, number predicted right)."""
        return cross_entropy_sum(self.transform(hidden), words.weight, self.bias, labels)


def cross_entropy_sum(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax(x weight^T + bias)[labels] without ever holding all logits.

    Args:
        x: (K, E). weight: (V, E). bias: (V,). labels: (K,) int64.
    Returns:
        (sum, correct), two fp32 scalars; the second carries no gradient.
    """
    return _ChunkedCrossEntropy.apply(x, weight, bias, labels)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Takes the gradient of each chunk of rows while its logits are there, so nothing is recomputed and nothing large is kept."""

    @staticmethod
    def forward(ctx, x, weight, bias, labels):
        need = any(ctx.needs_input_grad)
        matrix = weight.to(x.dtype)  # cast here, so that its gradient stays fp32
        rows = max(1, CHUNK_LOGITS // weight.shape[0])
        total, correct = x.new_zeros((), dtype=torch.float32), x.new_zeros((), dtype=torch.float32)
        grad_x = torch.empty_like(x) if need else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=x.device) if need else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need else None
        for part in range(0, x.shape[0], rows):
            h, label = x[part : part + rows], labels[part : part + rows, None]
            logits = F.linear(h, matrix).float()
            logits += bias
            correct += (logits.argmax(1, keepdim=True) == label).sum()
            lse = logits.logsumexp(1, keepdim=True)
            total += (lse - logits.gather(1, label)).sum()
            if need:
                grad = logits.sub_(lse).exp_()  # softmax
                grad.scatter_add_(1, label, grad.new_full(label.shape, -1.0))
                grad_bias += grad.sum(0)
                grad = grad.to(x.dtype)
                torch.mm(grad, matrix, out=grad_x[part : part + rows])
                grad_weight += grad.T @ h
        if need:
            ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx, scale, _):
        grad_x, grad_weight, grad_bias = ctx.saved_tensors
        return grad_x * scale.to(grad_x.dtype), grad_weight * scale, grad_bias * scale, None


def pool(hidden: Tensor, layout: Layout, how: Pooling) -> Tensor:
    """One vector per sequence: (T, D) -> (B, D), by its first token or by the mean over its tokens."""
    if how == "cls":
        return hidden.index_select(0, layout.first_rows)
    sums = hidden.new_zeros(len(layout.lengths), hidden.shape[1], dtype=torch.float32)
    sums = sums.index_add(0, layout.sequence, hidden.float())
    return sums / layout.cu_seqlens.diff()[:, None]
