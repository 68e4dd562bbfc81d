"""Run by torchrun: the gradient of one step of every objective, shared by the processes, written by the first."""

import sys
from pathlib import Path

import torch

from foretext.objectives import OBJECTIVES
from foretext.training.distributed import World
from foretext.training.loop import report
from foretext.training.step import backward
from tests.objectives.table import make_objective, one_step


def main(folder: Path) -> None:
    world = World.join("cpu")
    for name in OBJECTIVES:
        objective = make_objective(name)
        model = world.wrap(objective)
        sums = backward(model, one_step(objective, micro_tokens=400, rank=world.rank, world=world.size), world)
        values = report(sums, objective, world)
        if world.first:
            gradient = torch.cat([p.grad.flatten() for p in objective.parameters()])
            torch.save({"gradient": gradient, "loss": values["loss"]}, folder / f"{name}.pt")
    world.wait()
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
