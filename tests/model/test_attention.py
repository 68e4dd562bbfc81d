"""Attention against a loop over sequences and heads, on every path; and that padding and batch mates change nothing."""

import math

import pytest
import torch

from foretext.model import attention
from foretext.model.attention import attend, make_bias, near_columns
from foretext.model.layout import Layout

H, D = 3, 8
LENGTHS = {"mixed": [9, 30, 31, 30, 5, 5, 5, 1, 17], "equal": [12, 12, 12], "one": [1], "sorted": [31, 30, 25, 24, 9, 3, 2]}


def tensors(total: int, seed: int = 0, parts: int = 3, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(total, H, D, generator=generator).to(dtype) for _ in range(parts))


def naive(q, k, v, lengths, kv_lengths=None, added=None):
    """The definition: `added(b, i, j, head)` is put on the score of query i and key j of sequence b."""
    kv_lengths = kv_lengths or lengths
    rows, first, kv_first = [], 0, 0
    for b, (n, m) in enumerate(zip(lengths, kv_lengths)):
        for i in range(n):
            heads = []
            for head in range(H):
                keys, values = k[kv_first : kv_first + m, head].float(), v[kv_first : kv_first + m, head].float()
                scores = keys @ q[first + i, head].float() / math.sqrt(D)
                if added is not None:
                    scores = scores + torch.tensor([added(b, i, j, head) for j in range(m)])
                heads.append(scores.softmax(0) @ values)
            rows.append(torch.cat(heads))
        first, kv_first = first + n, kv_first + m
    return torch.stack(rows)


def close(found, expected, dtype=torch.float32):
    assert (found.float() - expected).abs().max() <= (2e-6 if dtype == torch.float32 else 2e-2)


@pytest.fixture(params=["sdpa fp32", "written out bf16", "sdpa bf16"])
def path(request, monkeypatch):
    """The dtype of one path of `attend` on a CPU."""
    monkeypatch.setattr(attention, "AMX", False)
    if request.param == "sdpa bf16":
        monkeypatch.setattr(attention, "WRITTEN_OUT_BELOW", 0)
    return torch.float32 if "fp32" in request.param else torch.bfloat16


@pytest.mark.parametrize("name", LENGTHS)
def test_plain(name, path):
    lengths = LENGTHS[name]
    q, k, v = tensors(sum(lengths), dtype=path)
    close(attend(q, k, v, Layout.of(lengths)), naive(q, k, v, lengths), path)


@pytest.mark.parametrize("name", LENGTHS)
def test_values_wider_than_keys(name, path):
    lengths = LENGTHS[name]
    q, k, *v = tensors(sum(lengths), parts=4, dtype=path)
    each = [naive(q, k, some, lengths).view(-1, H, D) for some in v]
    close(attend(q, k, torch.cat(v, -1), Layout.of(lengths)), torch.cat(each, -1).flatten(1), path)


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("window", [0, 2, 11])
def test_window(name, window, path):
    lengths = LENGTHS[name]
    q, k, v = tensors(sum(lengths), dtype=path)
    expected = naive(q, k, v, lengths, added=lambda b, i, j, head: 0.0 if abs(i - j) <= window else -math.inf)
    close(attend(q, k, v, Layout.of(lengths), window=window), expected, path)


def test_additive_bias_per_head(path):
    lengths = LENGTHS["mixed"]
    layout = Layout.of(lengths)
    q, k, v = tensors(sum(lengths), dtype=path)
    table = torch.randn(H, 40, generator=torch.Generator().manual_seed(3))

    def rule(a, b):
        apart = torch.arange(a.width)[:, None] - torch.arange(b.width)
        return table[:, apart.abs()][None]  # (1, H, Lq, Lk)

    expected = naive(q, k, v, lengths, added=lambda b, i, j, head: table[head, abs(i - j)].item())
    close(attend(q, k, v, layout, bias=make_bias(layout, layout, rule, path)), expected, path)


def test_boolean_bias_causal(path):
    lengths = LENGTHS["mixed"]
    layout = Layout.of(lengths)
    q, k, v = tensors(sum(lengths), dtype=path)
    bias = make_bias(layout, layout, lambda a, b: torch.ones(a.width, b.width, dtype=torch.bool).tril()[None, None], path)
    expected = naive(q, k, v, lengths, added=lambda b, i, j, head: 0.0 if j <= i else -math.inf)
    close(attend(q, k, v, layout, bias=bias), expected, path)


def test_some_buckets_without_bias(path):
    lengths = LENGTHS["mixed"]
    layout = Layout.of(lengths)
    q, k, v = tensors(sum(lengths), dtype=path)
    only = layout.buckets[1]
    rule = lambda a, b: torch.ones(a.width, b.width, dtype=torch.bool).tril()[None, None] if a is only else None  # noqa: E731
    inside = set(range(only.first, only.last))
    expected = naive(q, k, v, lengths, added=lambda b, i, j, head: 0.0 if b not in inside or j <= i else -math.inf)
    close(attend(q, k, v, layout, bias=make_bias(layout, layout, rule, path)), expected, path)
    assert make_bias(layout, layout, lambda a, b: None, path) is None


def test_queries_and_keys_of_different_lengths(path):
    lengths, kv_lengths = [4, 9, 1, 20, 2], [11, 3, 30, 20, 1]
    layout = Layout.of(lengths)
    kv_layout = Layout.of(kv_lengths, splits=layout.splits)
    (q,), (k, v) = tensors(sum(lengths), 0, 1, path), tensors(sum(kv_lengths), 1, 2, path)
    close(attend(q, k, v, layout, kv_layout), naive(q, k, v, lengths, kv_lengths), path)
    bias = make_bias(layout, kv_layout, lambda a, b: (torch.arange(a.width)[:, None] >= torch.arange(b.width) - 2)[None, None], path)
    expected = naive(q, k, v, lengths, kv_lengths, lambda b, i, j, head: 0.0 if i >= j - 2 else -math.inf)
    close(attend(q, k, v, layout, kv_layout, bias=bias), expected, path)


def test_a_row_that_sees_nothing_is_finite(path):
    layout = Layout.of([3, 5])
    q, k, v = tensors(8, dtype=path)
    bias = make_bias(layout, layout, lambda a, b: torch.zeros(1, 1, a.width, b.width, dtype=torch.bool), path)
    assert attend(q, k, v, layout, bias=bias).isfinite().all()


def test_gradients(path):
    lengths = LENGTHS["mixed"]
    ones = [x.requires_grad_() for x in tensors(sum(lengths), dtype=path)]
    others = [x.detach().float().requires_grad_() for x in ones]
    weights = torch.randn(sum(lengths), H * D, generator=torch.Generator().manual_seed(4))
    (attend(*ones, Layout.of(lengths), window=4).float() * weights).sum().backward()
    (naive(*others, lengths, added=lambda b, i, j, head: 0.0 if abs(i - j) <= 4 else -math.inf) * weights).sum().backward()
    for one, other in zip(ones, others):
        assert (one.grad.float() - other.grad).norm() <= (1e-5 if path == torch.float32 else 2e-2) * other.grad.norm()


def test_layout():
    lengths = [100, 90, 80, 70, 30, 30, 120]
    layout = Layout.of(lengths)
    assert [(bucket.first, bucket.last) for bucket in layout.buckets] == [(0, 3), (3, 4), (4, 6), (6, 7)]
    assert layout.splits == [3, 4, 6] and layout.max_len == 120
    assert layout.first_rows.tolist() == [0, 100, 190, 270, 340, 370, 400]
    assert layout.positions.tolist() == [i for n in lengths for i in range(n)]
    assert layout.sequence.tolist() == [b for b, n in enumerate(lengths) for _ in range(n)]
    flat = torch.arange(float(sum(lengths)))[:, None]
    for bucket in layout.buckets:
        assert torch.equal(bucket.unpad(bucket.pad(flat)), flat[bucket.start : bucket.stop])


def test_short_sequences_share_a_bucket():
    assert Layout.of([64, 20, 3, 1]).splits == []
    assert Layout.of([65, 20, 3, 1]).splits == [1]


def test_near_columns_hides_nothing_within_reach():
    assert near_columns(5, 5, 4, torch.device("cpu")) is None
    assert near_columns(6, 6, 4, torch.device("cpu")).sum() == 36 - 2


def test_the_fused_kernel_takes_what_needs_no_gradient_where_it_is_fast(monkeypatch):
    monkeypatch.setattr(attention, "AMX", True)
    k, mask = torch.zeros(1, 1, attention.WRITTEN_OUT_BELOW, 4), torch.zeros(1, requires_grad=True)
    assert not attention.written_out(k, None, 0.0)
    assert attention.written_out(k, None, 0.1)  # its dropout draws other numbers than ours
    assert attention.written_out(k, mask, 0.0)
    with torch.no_grad():
        assert not attention.written_out(k, mask, 0.0)
    k.requires_grad_()
    assert attention.written_out(k, None, 0.0)
    assert not attention.written_out(torch.cat([k, k], 2), None, 0.0)
