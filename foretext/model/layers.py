"""What the layers of every network here are made of: linear maps and norms in the activations' dtype, rotary and relative positions.

    T tokens   D width   H heads   d head width
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSED: tuple[torch.dtype, ...] = ()  # dtypes in which oneDNN does more with a product than to write it
if torch.backends.mkldnn.is_available():
    FUSED = (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)
TOKENS = 4096  # for products of so many oneDNN chooses the order of a weight; any number may follow


class Linear(nn.Linear):
    """A linear map whose fp32 master weights follow the activations' dtype; initialised N(0, .02), bias 0."""

    frozen: tuple[Tensor, int, tuple[Tensor, Tensor | None]] | None = None  # by `freeze`: weight, its version, both as products read them

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, then: Literal["none", "gelu"] = "none") -> Tensor:
        """x W^T + b, and `then` maybe its GELU."""
        fused = x.device.type == "cpu" and x.dtype in FUSED and torch.is_inference_mode_enabled() and not torch.jit.is_tracing()
        weight, bias = self._in(x.dtype, fused)
        if fused:  # adds the bias before results are written, where F.linear takes a pass over memory; it has no gradient
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")
        x = F.linear(x, weight, bias)
        return F.gelu(x) if then == "gelu" else x

    def freeze(self, dtype: torch.dtype) -> None:
        """Take no gradients from now on, and keep a copy in `dtype`, in oneDNN's order on a CPU: neither cast nor sorted at every call.

        A weight that changes is read anew, but for one that is changed through `.data`, of which nothing tells.
        """
        self.requires_grad_(False)
        weight, bias = self._in(dtype)
        if weight.device.type == "cpu" and dtype in FUSED:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), TOKENS)
        if weight is not self.weight and not self.weight.is_inference():  # an inference tensor does not tell when it changes
            self.frozen = self.weight, self._changes, (weight, bias)

    def _in(self, dtype: torch.dtype, fused: bool = False) -> tuple[Tensor, Tensor | None]:
        if self.frozen and not self.weight.requires_grad:  # else it may change, and a fused optimizer tells no version
            weight, version, kept = self.frozen
            same = weight is self.weight and version == self._changes and kept[0].device == weight.device
            if same and kept[0].dtype == dtype and (fused or not kept[0].is_mkldnn):
                return kept
        return self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)

    @property
    def _changes(self) -> int:
        return self.weight._version + (0 if self.bias is None else self.bias._version)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"frozen": None}  # oneDNN's order can be neither copied nor pickled


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in the activations' dtype (statistics are fp32 inside the kernel)."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class Rotary:
    """cos and sin of one rotary base at given positions (RoFormer, arXiv 2104.09864), rotating halves of the head."""

    def __init__(self, positions: Tensor, head_width: int, theta: float, dtype: torch.dtype):
        rates = theta ** -(torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width)
        angles = positions[:, None].float() * rates  # (T, d/2)
        self.cos = angles.cos().to(dtype)[:, None]  # (T, 1, d/2)
        self.sin = angles.sin().to(dtype)[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x (T, H, d): feature k turns with feature k + d/2."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), dim=-1)


BUCKET_EDGES = (8, 12, 16, 23, 32, 46, 64, 91)  # distances at which f(a) steps from 7 + i to 8 + i


def relative_bucket(apart: Tensor) -> Tensor:
    """MPNet's bucket of key position - query position (T5's rule with 32 buckets up to 128), from integers only."""
    furthest = BUCKET_EDGES[-1]  # all beyond are alike, so that a small table knows the answers
    every = torch.arange(-furthest, furthest + 1, device=apart.device)
    distance = every.abs()
    far = 7 + sum(distance >= edge for edge in BUCKET_EDGES)  # by numbers of the host: to copy a tensor of edges would wait for a GPU
    known = torch.where(distance < 8, distance, far) + 16 * (every > 0)
    return known[apart.clamp(-furthest, furthest) + furthest]
