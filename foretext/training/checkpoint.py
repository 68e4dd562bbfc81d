"""Checkpoints: everything a run needs to go on bit for bit, written whole or not at all.

checkpoints/step-N/ holds `objective.safetensors` (encoder and heads), `optimizer.pt` (optimiser and random states, read with
`weights_only`), `state.json` (counters) and, where the objective chooses its examples, `rows.safetensors` (those of this round).
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from foretext.errors import UserError
from foretext.files import read_json, whole_folder, write_json
from foretext.training.distributed import World
from foretext.training.sharding import part, whole
from foretext.training.step import random_state, set_random_state


class Writer:
    """Writes the checkpoints of a run beside it: `save` copies the state and returns, a thread brings it to disk.

    One write at most is under way, and it ends before this context does, also where an error ends the training. A process that is
    killed before leaves the checkpoint before whole. Costs a second copy of weights and moments in main memory.
    """

    def __init__(self, folder: Path, keep: int, world: World):
        self.folder, self.keep, self.world = folder, keep, world
        self.last: int | None = None  # step of the latest `save`, the same on every rank, whether it is on disk or not yet
        self.thread, self.writing = ThreadPoolExecutor(1), None

    def __enter__(self) -> "Writer":
        return self

    def save(self, objective: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any],
             rows: Mapping[str, np.ndarray] | None = None) -> None:
        """Begin checkpoints/step-N, unless the latest is of this step; all but the last `keep` and the best are deleted when it is whole.

        Args:
            state: counters, JSON-ready; must hold "step", and "best_step" (or None).
            rows: the examples that the objective arranged (`training.refresh`), which nobody changes in place.
        Raises:
            OSError: the write before failed.
        """
        if state["step"] == self.last:
            return
        self.wait()
        self.last = state["step"]
        random = [self.world.gather_rows(part[None])[0] for part in random_state(self.world.device)]  # every rank's own
        kept = to_host if self.world.first else lambda value: None
        weights, moments = tensors(objective, kept), whole_state(optimizer, kept)  # where they are sharded, all ranks have to ask
        if self.world.first:
            rest = {"optimizer": moments, "random": list(map(to_host, random))}
            self.writing = self.thread.submit(write, self.folder, weights, rest, state, rows, self.keep)

    def wait(self) -> None:
        """Until what is being written is on disk."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def __exit__(self, *_) -> None:
        self.thread.shutdown()
        self.wait()


def to_host(value: torch.Tensor) -> torch.Tensor:
    """A copy in main memory."""
    return value.detach().to("cpu", copy=True)


def write(folder: Path, weights: dict[str, torch.Tensor], rest: dict[str, Any], state: dict[str, Any],
          rows: Mapping[str, np.ndarray] | None, keep: int) -> None:
    """Write checkpoints/step-N under `folder`, then delete all but the last `keep` and the best."""
    with whole_folder(folder / "checkpoints" / f"step-{state['step']}", overwrite=True) as new:
        save_file(weights, new / "objective.safetensors")
        torch.save(rest, new / "optimizer.pt")
        if rows:
            safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in rows.items()}, new / "rows.safetensors")
        write_json(new / "state.json", state)
    for old in steps(folder)[:-keep]:
        if old != state["best_step"]:
            shutil.rmtree(folder / "checkpoints" / f"step-{old}")


def steps(folder: Path) -> list[int]:
    """The steps of all whole checkpoints of a run, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def load(folder: Path, step: int, objective: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> dict[str, Any]:
    """Put a run back where its checkpoint `step` left it; returns the counters.

    Raises:
        UserError: the checkpoint was written by another number of processes with dropout in the model.
    """
    path = folder / "checkpoints" / f"step-{step}"
    load_objective(path, objective)
    saved = torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu")  # each rank moves what it needs to its device
    load_moments(optimizer, saved["optimizer"])
    if len(saved["random"][0]) == world.size:
        set_random_state([part[world.rank] for part in saved["random"]], world.device)
    elif any(getattr(module, "dropout", 0) for module in objective.modules()):
        raise UserError(f"{path}: written by {len(saved['random'][0])} processes and read by {world.size}, "
                        "and dropout draws its numbers per process: start as many, or set dropout to 0")
    return read_json(path / "state.json")


def load_rows(folder: Path, step: int) -> dict[str, np.ndarray]:
    """The examples of the round that a checkpoint is in; {} where the objective arranges none."""
    path = folder / "checkpoints" / f"step-{step}" / "rows.safetensors"
    return safetensors.numpy.load_file(path) if path.is_file() else {}


def load_objective(path: Path, objective: nn.Module) -> None:
    """Load the weights of a checkpoint folder into an objective of the same shape."""
    state = objective.state_dict()
    found = load_file(path / "objective.safetensors")
    found = {name: part(value, state[name]) if name in state else value for name, value in found.items()}
    missing, unknown = objective.load_state_dict(found, strict=False)
    if unknown or set(missing) & own_names(objective):
        raise UserError(f"{path}: holds the weights of another model (missing {missing[:3]}, unknown {unknown[:3]})")


def tensors(module: nn.Module, kept: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    """The state of a module, a tensor with several names (ELECTRA's shared embeddings) once, under the first.

    Args:
        kept: what to keep of each whole tensor; on a rank that writes nothing its parts come together one tensor at a time.
    """
    own = own_names(module)
    return {name: kept(whole(value).contiguous()) for name, value in module.state_dict().items() if name in own}


def own_names(module: nn.Module) -> set[str]:
    """The first name of every parameter and buffer."""
    return {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}


def whole_state(optimizer: torch.optim.Optimizer, kept: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    """The optimiser's state with whole tensors, the same however they are sharded; `kept` as in `tensors`."""
    state = optimizer.state_dict()
    moments = {i: {name: kept(whole(value)) if torch.is_tensor(value) else value for name, value in values.items()}
               for i, values in state["state"].items()}
    return state | {"state": moments}


def load_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Undo `whole_state`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {i: {name: part(value, parameters[i]) if torch.is_tensor(value) else value for name, value in values.items()}
               for i, values in saved["state"].items()}
    optimizer.load_state_dict(saved | {"state": moments})
