"""The chunked cross-entropy is the plain one; pooling is the plain mean and the first token."""

import pytest
import torch
import torch.nn.functional as F

from foretext.model import heads
from foretext.model.encoder import Encoder
from foretext.model.heads import TokenHead, cross_entropy_sum, pool
from foretext.model.layout import Layout
from foretext.model.presets import preset

V, E = 50, 16


@pytest.mark.parametrize("rows_at_once", [1, 4, 7, 1000])
def test_cross_entropy_in_chunks(rows_at_once, monkeypatch):
    monkeypatch.setattr(heads, "CHUNK_LOGITS", rows_at_once * V)
    monkeypatch.setattr(heads, "CACHED_LOGITS", 3 * V)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((23, E), (V, E), (V,)))
    labels = torch.randint(V, (23,), generator=generator)
    ones = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    others = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    total, correct = cross_entropy_sum(*ones, labels)
    logits = F.linear(*others)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    assert torch.allclose(total, expected, rtol=1e-6)
    assert correct == (logits.argmax(1) == labels).sum()
    (3 * total).backward()  # the factor shows that the incoming gradient is used
    (3 * expected).backward()
    for one, other in zip(ones, others):
        assert torch.allclose(one.grad, other.grad, atol=1e-5, rtol=1e-5)


def test_cross_entropy_of_nothing_and_without_gradients():
    weight, bias = torch.randn(V, E, requires_grad=True), torch.zeros(V, requires_grad=True)
    total, correct = cross_entropy_sum(torch.zeros(0, E), weight, bias, torch.zeros(0, dtype=torch.long))
    assert total == 0 and correct == 0
    total.backward()
    assert weight.grad.abs().sum() == 0
    with torch.no_grad():
        assert cross_entropy_sum(torch.zeros(2, E), weight, bias, torch.tensor([1, 2]))[0] > 0


def test_cross_entropy_in_bf16_keeps_its_master_gradients_in_fp32():
    torch.manual_seed(0)
    x = torch.randn(64, E).bfloat16().requires_grad_()
    weight, bias = torch.randn(V, E, requires_grad=True), torch.randn(V, requires_grad=True)
    labels = torch.randint(V, (64,))
    cross_entropy_sum(x, weight, bias, labels)[0].backward()
    assert x.grad.dtype == torch.bfloat16 and weight.grad.dtype == bias.grad.dtype == torch.float32
    exact = [tensor.detach().float().requires_grad_() for tensor in (x, weight, bias)]
    F.cross_entropy(F.linear(*exact), labels, reduction="sum").backward()
    for one, other in zip((x, weight, bias), exact):
        assert (one.grad.float() - other.grad).norm() <= 0.01 * other.grad.norm()


@pytest.mark.parametrize("name", ["bert-tiny", "modernbert-tiny"])
def test_token_head_loss_is_cross_entropy_of_its_logits(name):
    torch.manual_seed(0)
    encoder = Encoder(preset(name, V, width=E))
    head = TokenHead(encoder)
    hidden, labels = torch.randn(9, E), torch.randint(V, (9,))
    logits = head(hidden, encoder.words)
    total, correct = head.loss(hidden, encoder.words, labels)
    assert torch.allclose(total, F.cross_entropy(logits, labels, reduction="sum"))
    assert correct == (logits.argmax(1) == labels).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pool(dtype):
    lengths = [4, 1, 7]
    hidden = torch.randn(12, E, generator=torch.Generator().manual_seed(0)).to(dtype)
    layout = Layout.of(lengths)
    parts = hidden.split(lengths)
    assert torch.equal(pool(hidden, layout, "cls"), torch.stack([part[0] for part in parts]))
    assert torch.allclose(pool(hidden, layout, "mean"), torch.stack([part.float().mean(0) for part in parts]), atol=1e-6)
