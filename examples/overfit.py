"""Can this objective learn anything from this store? One batch, read again and again: its loss has to fall towards the least there is.

Run: `python examples/overfit.py convert stores/chats --set encoder.start=convert-mini --set objective.score_scale=learned`. A loss that
stays where it was says that the data, the objective and the settings do not fit together, in a minute instead of after a night. With label
smoothing the least is not 0: it is printed.
"""

import argparse
import math

import numpy as np
import torch

from foretext.objectives import OBJECTIVES
from foretext.text.randomness import example_keys
from foretext.text.store import Store
from foretext.training.distributed import World
from foretext.training.refresh import arranged
from foretext.training.step import backward
from foretext.verbs.pretrain import longest_row, make_objective, settings, sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("objective", choices=OBJECTIVES)
    parser.add_argument("store")
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    config = settings(None, {"objective.name": chosen.objective, "store": chosen.store, "output": ""}, chosen.sets)
    store = Store.open(chosen.store)
    objective = make_objective(config, store.tokenizer, longest_row(store))
    source, _ = sources(config, store, objective)
    source = arranged(objective, source, seed=1)  # marge's examples are clusters of texts, which it looks for itself
    rows = np.arange(min(chosen.examples, len(source.lengths)))
    batch = objective.collate(source.read(rows, example_keys(1, 0, torch.from_numpy(rows))))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=chosen.lr)  # not the recipe's: asked is whether it can be learnt
    alone = World(0, 1, torch.device("cpu"))
    for step in range(chosen.steps + 1):
        optimizer.zero_grad()
        sums = backward(objective, [batch], alone)
        if step % max(1, chosen.steps // 10) == 0:
            values = {name: float(value) / float(count) for name, (value, count) in sums.items() if count}
            print(f"step {step:4}  " + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))
        optimizer.step()
    if smoothing := getattr(objective.config, "smoothing", 0.0):
        least = -(1 - smoothing) * math.log(1 - smoothing) - smoothing * math.log(smoothing / (len(rows) - 1))
        print(f"with smoothing {smoothing} no term can fall below {least:.3f}; an annealed scale stands at 1 here: set it learned or fixed")


if __name__ == "__main__":
    main()
