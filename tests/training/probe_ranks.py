"""Run by torchrun: each process measures something else, and writes what it then takes."""

import sys
from pathlib import Path

from foretext.files import write_json
from foretext.text.batches import Batches
from foretext.training import probe
from foretext.training.distributed import World
from tests.objectives.table import make_objective, make_source

RATES = [{100: 10, 200: 20, 400: 40, 800: 80}, {100: 10, 200: 20, 400: 20, 800: 80}]  # of each process, by tokens at once


def main(folder: Path) -> None:
    world = World.join("cpu")
    probe.SMALLEST = 100
    objective = make_objective("mlm")
    batches = Batches(make_source(objective), objective.collate, 32, 100, 1, world.rank, world.size)
    probe.timed = lambda model, micro, device: sum(b.tokens for b in micro) / RATES[world.rank][batches.micro_tokens]
    chosen = probe.choose_micro_tokens(world.wrap(objective), batches, world)
    documents = sum(len(batch.documents) for batch in batches.step(0))
    write_json(folder / f"{world.rank}.json", {"micro_tokens": chosen, "documents": documents})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    World.leave()
