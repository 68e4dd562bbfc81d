"""Eight-bit weights: in training and in the file."""

import pytest
import torch
from torch import nn

from foretext.model.quantize import fake_quantized, pack, quantize, straight_through, unpack


def test_worked_by_hand():
    codes = quantize(torch.tensor([-1.0, 0.0, 1.0]))
    assert codes.codes.tolist() == [0, 128, 255]  # 127.5 goes to the even code
    assert codes.weights().tolist() == pytest.approx([-1.0, 0.0039216, 1.0], abs=1e-7)


def test_rows_have_ranges_of_their_own_and_constants_stay():
    weight = torch.tensor([[0.0, 1.0], [10.0, 30.0], [5.0, 5.0]])
    torch.testing.assert_close(quantize(weight, by_row=True).weights(), weight)


def test_the_gradient_passes_straight_through():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    seen = straight_through(weight, quantize(weight).weights())
    target = torch.randn(6, 4)
    (seen * target).sum().backward()
    torch.testing.assert_close(weight.grad, target)
    assert not torch.equal(seen, weight)
    assert (seen - weight).detach().abs().max() <= quantize(weight).scale * 0.5001


@pytest.mark.parametrize("how", ["tables", "all"])
def test_the_file_holds_what_training_saw(how):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 8), nn.LayerNorm(8))
    packed = pack(module, how)
    assert packed["0.weight"].dtype == torch.uint8
    assert packed["1.weight"].dtype == (torch.uint8 if how == "all" else torch.float16)
    assert packed["1.bias"].dtype == torch.float16
    seen, read = fake_quantized(module, how), unpack(packed)
    assert seen.keys() == read.keys()
    for name in seen:
        torch.testing.assert_close(seen[name].detach(), read[name], rtol=0, atol=1e-7)
