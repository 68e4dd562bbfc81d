"""Fully sharded training (FSDP, arXiv 2304.11277, in its second form `fully_shard`): every rank keeps a part of each weight, gradient
and moment, and borrows the rest of a block while it computes it. For models that one device cannot hold.
"""

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from foretext.errors import UserError
from foretext.model.encoder import Encoder
from foretext.objectives.base import Objective

_meshes: list[DeviceMesh] = []


def shard(objective: Objective, device: torch.device) -> Objective:
    """A sharded copy of `objective`; encoders' blocks are gathered one at a time, everything else together.

    Raises:
        UserError: the objective runs its encoder outside `forward`, where nothing would gather the weights.
    """
    if objective.refresh_every:
        raise UserError(f"training.parallel: {objective.name} embeds the corpus while it trains, which fsdp cannot do: take ddp")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    _meshes.append(mesh)
    copied = copy.deepcopy(objective, {id(objective.tokenizer): objective.tokenizer})
    if not objective.calls_block_parts:
        for module in list(copied.modules()):
            if isinstance(module, Encoder):
                for block in module.blocks:
                    fully_shard(block, mesh=mesh)
    fully_shard(copied, mesh=mesh)
    for method in ("represent", "couple"):
        register_fsdp_forward_method(copied, method)
    return copied


def sharded(module: nn.Module) -> bool:
    """Whether `shard` made it."""
    return isinstance(module, FSDPModule)


def forget_meshes() -> None:
    """Take the process group from the meshes, which DTensor's caches keep to the end of the process; there is no public way."""
    for mesh in _meshes:
        getattr(mesh, "_pg_registry", {}).clear()
    _meshes.clear()


def whole(value: Tensor) -> Tensor:
    """A tensor with all its parts; every rank has to ask at the same time."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def part(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, shared out as `like` is."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
