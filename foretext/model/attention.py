"""The one attention primitive, over the flat batches of `layout.py`.

    B sequences   T tokens   H heads   d head width   b sequences of one bucket   L longest of the bucket
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foretext.model.layout import Bucket, Layout

Bias = Sequence[Tensor]
"""One additive tensor per bucket, broadcastable to (b, H, Lq, Lk), with padded keys already at the dtype's minimum."""

WRITTEN_OUT_BELOW = 512  # tokens: up to here softmax(q k^T) v by hand beats the fused kernel in bf16 on CPUs (docs/LOG.md),
AMX = torch.cpu._is_amx_tile_supported()  # but for its forward pass alone on those with matrix tiles, where that is twice as fast
STEP = 16  # keys: there its softmax takes up to twice as long over a row of bf16 that does not end with a whole step (docs/LOG.md)


def make_bias(
    q_layout: Layout,
    kv_layout: Layout,
    rule: Callable[[Bucket, Bucket], Tensor | None],
    dtype: torch.dtype,
) -> Bias | None:
    """Build the additive bias of every bucket once, to be shared by all layers.

    Args:
        rule: (query bucket, key bucket) -> a bool tensor (True = visible) or an additive float tensor, broadcastable to
            (b, H, Lq, Lk); None where the bucket needs nothing.
        dtype: of the activations.
    Returns:
        None if no bucket needs a bias (then attention takes its fast path). Hidden and padded keys hold the dtype's minimum,
        which is finite, so that a row that sees nothing gives no NaN.
    """
    tensors = [rule(q, kv) for q, kv in zip(q_layout.buckets, kv_layout.buckets)]
    if all(tensor is None for tensor in tensors):
        return None
    finished = []
    for tensor, kv in zip(tensors, kv_layout.buckets):
        device = kv_layout.cu_seqlens.device
        if tensor is None:
            tensor = torch.zeros(1, 1, 1, kv.width, dtype=dtype, device=device)
        lowest = torch.finfo(dtype).min
        if tensor.dtype == torch.bool:
            visible = tensor if kv.real is None else tensor & kv.real[:, None, None, :]
            tensor = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, lowest)
        else:
            tensor = tensor.to(dtype)
            if kv.real is not None:
                tensor = tensor.masked_fill(~kv.real[:, None, None, :], lowest)
        finished.append(tensor)
    return finished


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    kv_layout: Layout | None = None,
    bias: Bias | None = None,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, each sequence of queries over its own sequence of keys.

    Args:
        q: (Tq, H, d). k: (Tk, H, d). v: (Tk, H, e), usually as wide as k.
        layout: of the queries. kv_layout: of the keys, with the same buckets; default: the queries' own.
        bias: from `make_bias`; None is the fast path.
        window: a query sees keys at most this far from its own column; only without `bias`, and for equal lengths.
        dropout: probability of dropping an attention weight.
    Returns:
        (Tq, H * e)
    """
    kv_layout = kv_layout or layout
    # With queries and keys of different lengths the flash kernel would count columns from the end; put the window into the bias.
    assert window is None or kv_layout.lengths == layout.lengths, "a window needs queries and keys in the same places"
    flash = q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] == v.shape[-1] <= 192 and q.shape[-1] % 8 == 0
    if flash and bias is None and not dropout and torch.cuda.get_device_capability(q.device) >= (8, 0):
        from torch.nn.attention.varlen import varlen_attn  # no padding at all; here, as it takes a second to import

        sides = (-1, -1) if window is None else (window, window)
        mixed = varlen_attn(q, k, v, layout.cu_seqlens, kv_layout.cu_seqlens, layout.max_len, kv_layout.max_len, window_size=sides)
        return mixed.flatten(1)
    if bias is None and window is not None and kv_layout.max_len > window + 1:
        bias = make_bias(layout, kv_layout, lambda a, b: near_columns(a.width, b.width, window, q.device), q.dtype)
    # Split once: the gradient of a split is one copy, that of a slice per bucket is a whole tensor of zeros for each.
    own = zip(layout.split(q), kv_layout.split(k), kv_layout.split(v))
    parts = []
    for i, (a, b, (own_q, own_k, own_v)) in enumerate(zip(layout.buckets, kv_layout.buckets, own)):
        heads = [x.transpose(1, 2) for x in (a.rectangle(own_q), b.rectangle(own_k), b.rectangle(own_v))]  # (b, L, H, d) -> (b, H, L, d)
        mask = bias[i] if bias is not None else _padding_mask(b, q.dtype)
        parts.append(a.unpad(_rectangle(*heads, mask, dropout).transpose(1, 2).flatten(2)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def near_columns(queries: int, keys: int, window: int, device: torch.device) -> Tensor | None:
    """(1, 1, Lq, Lk) bool, True where |i - j| <= window; None where the window hides nothing."""
    if max(queries, keys) <= window + 1:
        return None
    apart = torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)
    return (apart.abs() <= window)[None, None]


def _padding_mask(bucket: Bucket, dtype: torch.dtype) -> Tensor | None:
    """(b, 1, 1, L) additive, or None for a bucket without padding."""
    if bucket.real is None:
        return None
    hidden = ~bucket.real[:, None, None, :]
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


def _rectangle(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention over one rectangle: (b, H, Lq, d), (b, H, Lk, d) twice -> (b, H, Lq, d)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and written_out(k, mask, dropout):
        scores = (q * q.shape[-1] ** -0.5) @ k.contiguous().transpose(2, 3)  # left to itself the product copies k transposed
        if mask is not None:
            scores = scores + mask
        weights = scores.softmax(-1)
        if dropout:
            weights = F.dropout(weights, dropout)
        return weights @ v
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and mask is None and k.shape[2] % STEP and not k.requires_grad:
        k, v, mask = _whole_steps(k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _whole_steps(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of one rectangle with hidden zeros up to the next whole step, and the mask that hides them."""
    more = -k.shape[2] % STEP
    mask = F.pad(k.new_zeros(1, 1, 1, k.shape[2]), (0, more), value=torch.finfo(k.dtype).min)
    k, v = (F.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, more)).transpose(1, 2) for x in (k, v))  # heads beside each other, as they came
    return k, v, mask


def written_out(k: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether plain operations on bf16 are faster than the CPU's fused kernel, which is slow at gradients, most of all at the mask's."""
    if torch.is_grad_enabled() and mask is not None and mask.requires_grad:
        return True
    return k.shape[2] <= WRITTEN_OUT_BELOW and (k.requires_grad or dropout > 0 or not AMX)
