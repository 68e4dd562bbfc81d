"""The flat layout of a batch: where its sequences begin and end, and how neighbours of like length share a rectangle.

Tokens travel flat: B sequences of n_b tokens are one tensor of T = sum n_b rows, without padding. Only `Bucket` ever pads, for the paths
of `attention.py` that need a rectangle.

    B sequences   T tokens   b sequences of one bucket   L longest of the bucket
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

TIGHT = 0.75  # a bucket holds neighbours down to this share of its longest sequence,
SHORT = 64  # tokens; but sequences this short share one: more operations would cost more than the padding (docs/LOG.md)


@dataclass(frozen=True)
class Bucket:
    """Neighbouring sequences first..last-1 (tokens start..stop-1 of the flat batch) that share one rectangle (b, L)."""

    first: int
    last: int
    start: int
    stop: int
    width: int
    slots: Tensor | None  # (stop-start,) where each token lies in the flattened (b * L) rectangle; None: it fills it exactly
    real: Tensor | None  # (b, L) bool, True = a token lies there; None: no padding

    @property
    def size(self) -> int:
        return self.last - self.first

    def pad(self, flat: Tensor) -> Tensor:
        """(T, ...) -> (b, L, ...): this bucket's tokens as a rectangle, zeros in the padding."""
        return self.rectangle(flat[self.start : self.stop])

    def rectangle(self, own: Tensor) -> Tensor:
        """(stop-start, ...) -> (b, L, ...): `pad` of this bucket's tokens alone."""
        if self.slots is None:
            return own.view(self.size, self.width, *own.shape[1:])
        grid = own.new_zeros(self.size * self.width, *own.shape[1:])
        return grid.index_copy_(0, self.slots, own).view(self.size, self.width, *own.shape[1:])

    def unpad(self, grid: Tensor) -> Tensor:
        """(b, L, ...) -> (stop-start, ...)."""
        flat = grid.reshape(self.size * self.width, *grid.shape[2:])
        return flat if self.slots is None else flat.index_select(0, self.slots)


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a flat batch begin and end.

    Any order of sequences is right; sorting them by length (longest first) makes the buckets few and tight.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor  # (B+1,) int32
    buckets: tuple[Bucket, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], splits: Sequence[int] | None = None, device: str | torch.device = "cpu") -> "Layout":
        """Lay out sequences of these lengths.

        Args:
            lengths: tokens of each sequence, each at least 1.
            splits: first sequence of each bucket after the first. Two layouts that attend to each other need the same splits;
                by default a bucket ends where the next sequence is longer than its first, or under three quarters of it and that is long.
        """
        sizes = torch.as_tensor(lengths, dtype=torch.int64)
        lengths = tuple(sizes.tolist())
        if splits is None:
            splits, longest = [], lengths[0] if lengths else 0
            for i, n in enumerate(lengths):
                if n > longest or (n < TIGHT * longest and longest > SHORT):
                    splits.append(i)
                    longest = n
        ends = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        torch.cumsum(sizes, 0, out=ends[1:])
        edges = [0, *splits, len(lengths)] if lengths else []
        buckets = [cls._bucket(first, last, sizes, ends) for first, last in zip(edges, edges[1:])]
        return cls(lengths, ends.to(torch.int32), tuple(buckets)).to(device)

    @classmethod
    def of_ones(cls, count: int, splits: Sequence[int], device: str | torch.device) -> "Layout":
        """`of([1] * count, splits, device)`, made where it is wanted: a copy from the host would wait for a GPU."""
        edges = [0, *splits, count]
        buckets = tuple(Bucket(first, last, first, last, 1, None, None) for first, last in zip(edges, edges[1:]))
        return cls((1,) * count, torch.arange(count + 1, dtype=torch.int32, device=device), buckets)

    @staticmethod
    def _bucket(first: int, last: int, sizes: Tensor, ends: Tensor) -> Bucket:
        start, stop = int(ends[first]), int(ends[last])
        width = int(sizes[first:last].max())
        if width * (last - first) == stop - start:
            return Bucket(first, last, start, stop, width, None, None)
        real = torch.arange(width) < sizes[first:last, None]
        return Bucket(first, last, start, stop, width, real.flatten().nonzero().squeeze(1), real)

    def to(self, device: str | torch.device) -> "Layout":
        if self.cu_seqlens.device == torch.device(device):
            return self
        move = lambda x: None if x is None else x.to(device, non_blocking=True)  # noqa: E731
        buckets = [Bucket(k.first, k.last, k.start, k.stop, k.width, move(k.slots), move(k.real)) for k in self.buckets]
        return Layout(self.lengths, self.cu_seqlens.to(device, non_blocking=True), tuple(buckets))

    @property
    def splits(self) -> list[int]:
        """First sequence of each bucket after the first, for a second layout that must match this one."""
        return [bucket.first for bucket in self.buckets[1:]]

    @property
    def max_len(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def first_rows(self) -> Tensor:
        """(B,) flat index of each sequence's first token."""
        return self.cu_seqlens[:-1].long()

    @cached_property
    def sequence(self) -> Tensor:
        """(T,) the sequence that each token belongs to."""
        counts = self.cu_seqlens.diff()
        total = sum(self.lengths)  # known on the host, so the device need not be asked
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=counts.device), counts, output_size=total)

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """(T, ...) -> the tokens of each bucket, (stop-start, ...)."""
        if len(self.buckets) == 1:  # the gradient of a split is a copy
            return (flat,)
        return flat.split([bucket.stop - bucket.start for bucket in self.buckets])

    def sums(self, x: Tensor) -> Tensor:
        """(T, D) -> (B, D), summed over each sequence's tokens."""
        return x.new_zeros(len(self.lengths), x.shape[1]).index_add(0, self.sequence, x)

    def largest(self, x: Tensor) -> Tensor:
        """(T, D) -> (B, D), the largest over each sequence's tokens."""
        index = self.sequence[:, None].expand_as(x)
        return x.new_full((len(self.lengths), x.shape[1]), float("-inf")).scatter_reduce(0, index, x, "amax")

    @property
    def positions(self) -> Tensor:
        """(T,) 0, 1, 2, ... within each sequence."""
        return torch.arange(sum(self.lengths), device=self.cu_seqlens.device) - self.first_rows[self.sequence]
