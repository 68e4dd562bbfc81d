"""The run folder: one run lives in it, and only the same run may go on there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from foretext.errors import UserError
from foretext.files import read_json, refuse_existing, write_json
from foretext.objectives.base import Objective
from foretext.progress import console
from foretext.text.batches import Source
from foretext.training.distributed import World

SAME_RUN = {"log_every", "checkpoint_every", "keep", "parallel", "checkpoint_activations"}  # may change while a run goes on


def open_run(output: Path, settings: dict[str, Any], overwrite: bool, world: World,
             decide: Callable[[], dict[str, int]]) -> dict[str, Any]:
    """Make the run folder, or recognise it as the same run; returns what was decided when it began ("steps", the updates to make)."""
    file = output / "run.json"
    if overwrite and world.first and output.exists():
        if file.exists() and begun_here(read_json(file)):
            console.print(f"{output}: begun by this launch ({launch()}), so it goes on and --overwrite waits for another")
        else:
            shutil.rmtree(output)
    if world.any(world.first and file.exists()):  # the first one's answer for all: it may have made the file before another looks
        run = read_json(file)
        if run["settings"] != settings:
            raise UserError(f"{output} holds a run with other settings ({difference(run['settings'], settings)}): "
                            "name another output, or add --overwrite to replace it")
        return run
    if world.first:
        refuse_existing(output)
    run = decide() | {"settings": settings, "launch": launch()}
    if world.first:
        write_json(file, run)
    world.wait()
    return run


def launch() -> str | None:
    """What tells this start, with all its restarts, from others: torchrun's or SLURM's name for it."""
    if torchrun := os.environ.get("TORCHELASTIC_RUN_ID"):
        return f"torchrun {torchrun if torchrun != 'none' else os.getppid()}"  # none is named: the agent, whose children all starts are
    return f"SLURM {job}" if (job := os.environ.get("SLURM_JOB_ID")) else None


def begun_here(run: dict[str, Any]) -> bool:
    """Whether torchrun or SLURM types a command again that began this run before a fault: it goes on, also with `--overwrite`."""
    again = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    return again and run.get("launch") == launch()


def describe(objective: Objective, source: Source, config: BaseModel) -> dict[str, Any]:
    """What makes a run this run, JSON-ready."""
    return {"objective": {"name": objective.name} | objective.config.model_dump(mode="json"),
            "encoder": objective.encoder.config.model_dump(mode="json"),
            "training": config.model_dump(mode="json", exclude=SAME_RUN),
            "data": {"examples": len(source.lengths), "tokens": int(source.lengths.sum())}}


def difference(old: Any, new: Any, at: str = "") -> str:
    """The first setting that differs: `training.lr: 0.1 there, 0.2 here`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            if old.get(key) != new.get(key):
                return difference(old.get(key), new.get(key), f"{at}.{key}".lstrip("."))
    return f"{at}: {old} there, {new} here"
