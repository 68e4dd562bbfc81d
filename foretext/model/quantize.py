"""Eight-bit weights: seen by the network while it trains, and stored in the file that it leaves (ConveRT, arXiv 1911.03688, section 3.1).

`tables`: word and position tables in 8 bits with one range each, everything else in 16 bits (the paper). `all`: every other matrix in 8
bits as well, with a range for each output. Masters stay fp32; the gradient passes straight through the rounding.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Quantized = Literal["tables", "all"]

STEPS = 255


class Codes(NamedTuple):
    """W = codes * scale + low, to half a scale."""

    codes: Tensor  # uint8, of W's shape
    low: Tensor  # fp32, () or (rows, 1)
    scale: Tensor  # fp32, as `low`

    def weights(self) -> Tensor:
        return self.codes.float() * self.scale + self.low


@torch.no_grad()
def quantize(weight: Tensor, by_row: bool = False) -> Codes:
    """Nearest of 256 evenly spaced values between the smallest and the largest weight, of the tensor or of each row; ties go to even."""
    low, high = weight.aminmax(dim=1, keepdim=True) if by_row else weight.aminmax()
    span = torch.where(high > low, high - low, torch.full_like(low, STEPS))
    return Codes(((weight - low) * STEPS / span).round().to(torch.uint8), low, span / STEPS)  # multiplied first: halves stay halves


def straight_through(weight: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of `weight`."""
    return rounded.detach() + (weight - weight.detach())


def tables(module: nn.Module) -> set[str]:
    """Names of the embedding tables of a module."""
    return {f"{name}.weight" if name else "weight" for name, part in module.named_modules() if isinstance(part, nn.Embedding)}


def rounded(name: str, weight: Tensor, how: Quantized, table_names: set[str]) -> Codes | Tensor:
    """What the file holds of a weight: 8-bit codes, or fp16."""
    if name in table_names:
        return quantize(weight)
    if how == "all" and weight.ndim == 2:
        return quantize(weight, by_row=True)
    return weight.detach().half()


def fake_quantized(module: nn.Module, how: Quantized) -> dict[str, Tensor]:
    """Every parameter as it will be stored, with the gradient of the fp32 master; for `torch.func.functional_call`."""
    names = tables(module)
    weights = {}
    for name, weight in module.named_parameters():
        stored = rounded(name, weight, how, names)
        weights[name] = straight_through(weight, stored.weights() if isinstance(stored, Codes) else stored.float())
    return weights


def pack(module: nn.Module, how: Quantized | None) -> dict[str, Tensor]:
    """The tensors of a file: as they are, or uint8 `name` with fp32 `name.low` and `name.scale`, and fp16."""
    if how is None:
        return {name: weight.detach() for name, weight in module.named_parameters()}
    names, tensors = tables(module), {}
    for name, weight in module.named_parameters():
        stored = rounded(name, weight, how, names)
        if isinstance(stored, Codes):
            tensors |= {name: stored.codes, f"{name}.low": stored.low, f"{name}.scale": stored.scale}
        else:
            tensors[name] = stored
    return tensors


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `pack` wrote, in fp32."""
    weights = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.uint8:
            weights[name] = Codes(tensor, tensors[f"{name}.low"], tensors[f"{name}.scale"]).weights()
        elif not (name.endswith((".low", ".scale")) and name.rpartition(".")[0] in tensors):
            weights[name] = tensor.float()
    return weights
