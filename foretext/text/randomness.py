"""Addressed random numbers: a pure function of (seed, epoch, document, stream, position), the same everywhere.

There is no generator state. The number at an address is splitmix64's (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
number generators"): the 64-bit finaliser `mix` applied to key + position * golden ratio, where the key already mixes seed,
epoch, document and stream. All arithmetic is on int64 tensors modulo 2^64, so CPU and GPU agree bit for bit.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def example_keys(seed: int, epoch: Tensor | int, document: Tensor) -> Tensor:
    """One 64-bit key per example, from which all its random choices follow.

    Args:
        epoch: int64, broadcastable to document. document: (B,) int64.
    Returns:
        (B,) int64
    """
    key = mix(torch.tensor([seed], dtype=torch.int64))
    key = mix(key + _signed(GOLDEN) + torch.as_tensor(epoch, dtype=torch.int64))
    return mix(key + _signed(GOLDEN) + document)


def bits(keys: Tensor, stream: str, positions: Tensor) -> Tensor:
    """64 random bits per address, int64; `keys` and `positions` broadcast against each other.

    Args:
        stream: what the number is for ("select", "replace", ...): different streams are independent.
    """
    keys = mix(keys ^ _signed(zlib.crc32(stream.encode()) * GOLDEN))
    return mix(keys + positions * _signed(GOLDEN))


def uniform(keys: Tensor, stream: str, positions: Tensor) -> Tensor:
    """Numbers in [0, 1) with 53 random bits, float64."""
    return shift_right(bits(keys, stream, positions), 11).double() * 2.0**-53


def integers(keys: Tensor, stream: str, positions: Tensor, below: Tensor | int) -> Tensor:
    """Whole numbers 0 .. below-1, int64 (below at least 1)."""
    return (uniform(keys, stream, positions) * below).long()


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: 0 .. count-1 shuffled, int64 (count,)."""
    key = example_keys(seed, epoch, torch.tensor([-1]))
    return np.argsort(bits(key, "order", torch.arange(count)).numpy(), kind="stable")


def shift_right(x: Tensor, places: int) -> Tensor:
    """Logical shift of int64 bit patterns (torch's own keeps the sign)."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 bit patterns."""
    return _mix_numpy(x) if x.device.type == "cpu" else _mix_torch(x)


def _mix_torch(x: Tensor) -> Tensor:
    x = (x ^ shift_right(x, 30)) * _signed(FIRST)
    x = (x ^ shift_right(x, 27)) * _signed(SECOND)
    return x ^ shift_right(x, 31)


def _mix_numpy(x: Tensor) -> Tensor:
    """The same with NumPy's unsigned shifts, five times as fast on a CPU (docs/LOG.md)."""
    y = x.contiguous().numpy().view(np.uint64)
    y = (y ^ (y >> np.uint64(30))) * np.uint64(FIRST)
    y ^= y >> np.uint64(27)
    y *= np.uint64(SECOND)
    y ^= y >> np.uint64(31)
    return torch.from_numpy(y.view(np.int64))


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x
