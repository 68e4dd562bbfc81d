"""Run by torchrun: the gradient of one step of every objective, shared by the processes, written by the first."""

import os
import sys
from itertools import product
from pathlib import Path

import torch

from foretext.training.distributed import World
from foretext.training.loop import report
from foretext.training.sharding import whole
from foretext.training.step import backward
from tests.objectives.table import EVERY, make_objective, one_step


def main(folder: Path) -> None:
    world = World.join("cpu")
    for name, parallel in product(EVERY, ("ddp", "fsdp")):
        objective = make_objective(name)
        if parallel == "fsdp" and objective.refresh_every:
            continue  # refused: it embeds the corpus between steps
        model = world.wrap(objective, parallel)
        sums = backward(model, one_step(objective, micro_tokens=400, rank=world.rank, world=world.size), world)
        values = report(sums, objective, world)
        gradient = torch.cat([whole(p.grad).flatten() for p in model.parameters()])
        if world.first:
            torch.save({"gradient": gradient, "loss": values["loss"]}, folder / f"{name}-{parallel}.pt")
    world.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    World.leave()
    left = [Path("/proc/self/task", thread, "comm").read_text() for thread in os.listdir("/proc/self/task")]
    assert not any("gloo" in name for name in left), left  # one that has something left to do when Python ends aborts the process
