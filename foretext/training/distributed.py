"""The only file that knows about processes: torchrun's contract, and the few collective operations training needs."""

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foretext.training.sharding import forget_meshes, shard, sharded

PATIENCE = timedelta(hours=2)  # that others wait for what one process does alone, and at most for a node that vanished


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
            dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
        return cls(rank, size, place)

    @classmethod
    def alone(cls) -> "World":
        """One process on the CPU, whatever torchrun says."""
        return cls(0, 1, torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def wrap(self, module: nn.Module, parallel: Literal["ddp", "fsdp"] = "ddp") -> nn.Module:
        """`module` on this rank's device, with its gradients averaged over all ranks; each holds all of it (ddp), or a part in a copy
        (fsdp), of which nothing but the part goes to the device."""
        if self.size > 1 and parallel == "fsdp":
            return shard(module, self.device)
        module.to(self.device)
        if self.size == 1:
            return module
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
        parts = self._parts(rows)
        return torch.cat(parts), sum(map(len, parts[: self.rank]))

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Every rank's rows."""
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(rows)]))
        sizes = [int(count) for count in counts]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return [part[:size] for part, size in zip(parts, sizes)]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything that pickles), by rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, items: Sequence, work: Callable[[Any], np.ndarray | tuple[np.ndarray, ...]]) -> np.ndarray | tuple[np.ndarray, ...]:
        """`work(items)`, arrays with a row per item: each rank does every `size`-th item, and all get the rows of all, in order."""
        if self.size == 1:
            return work(items)
        done = work(items[self.rank :: self.size])
        arrays = []
        for mine in done if isinstance(done, tuple) else (done,):
            arrays.append(np.empty((len(items), *mine.shape[1:]), mine.dtype))
            for rank, part in enumerate(self._parts(torch.from_numpy(np.ascontiguousarray(mine)))):
                arrays[-1][rank :: self.size] = part.numpy()
        return tuple(arrays) if isinstance(done, tuple) else arrays[0]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    @staticmethod
    def leave() -> None:
        """End the process group, at the end of a process: its threads are gone when this returns.

        A thread that still lets go of a tensor while Python ends would abort the process, after everything had gone well.
        """
        if dist.is_initialized():
            dist.destroy_process_group()
            forget_meshes()
            gc.collect()  # DistributedDataParallel holds the group in a cycle
