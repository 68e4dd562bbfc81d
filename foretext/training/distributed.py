"""The only file that knows about processes: torchrun's contract, and the few collective operations training needs."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foretext.training.sharding import shard, sharded


@dataclass(frozen=True)
class World:
    """This process among all of a run. One process alone is rank 0 of 1, and no call below then does anything."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str | None = None) -> "World":
        """Take RANK, WORLD_SIZE and LOCAL_RANK from the environment (torchrun sets them); gloo between CPUs, nccl between GPUs."""
        rank, size, local = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(place)
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
        return cls(rank, size, place)

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def wrap(self, module: nn.Module, parallel: Literal["ddp", "fsdp"] = "ddp") -> nn.Module:
        """`module` with its gradients averaged over all ranks; each holds all of it (ddp), or a part in a copy (fsdp)."""
        if self.size == 1:
            return module
        if parallel == "fsdp":
            return shard(module, self.device)
        return DistributedDataParallel(module, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def sync(self, model: nn.Module, now: bool) -> AbstractContextManager:
        """A context for one backward pass: gradients travel between ranks with it, or only add up here for now."""
        if sharded(model):
            model.set_requires_gradient_sync(now)
            return nullcontext()
        return nullcontext() if now or self.size == 1 else model.no_sync()

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place; what is in main memory travels from there and waits for no GPU."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))) > 0)

    def gather_rows(self, rows: Tensor) -> tuple[Tensor, int]:
        """All ranks' rows end to end, and where this rank's begin; ranks may hold different numbers of rows."""
        if self.size == 1:
            return rows, 0
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(rows)]))
        sizes = [int(count) for count in counts]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)]), sum(sizes[: self.rank])

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
