"""How much memory a large contrastive batch needs, at once, in micro-batches (GradCache), and with activations computed again.

Peak bytes that autograd holds for the backward pass, counted with saved-tensor hooks (weights excepted), and how far the gradients are
apart: fp32's rounding, since fresh weights give all texts nearly one vector (tests/objectives/test_contrastive.py has the network in fp64
and holds them within 1e-6). Made-up tokens, no data needed:

    python benchmarks/large_batch.py [--encoder bert-mini] [--queries 64] [--length 128]
"""

import argparse
import time

import numpy as np
import torch

from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.objectives.contrastive import Contrastive
from foretext.text.batches import Batches
from foretext.text.grouped import GroupedPairs, Lists
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.training.recompute import recompute_activations
from foretext.training.step import backward


class Saved:
    """Bytes that autograd holds, now and at most."""

    def __init__(self, model: torch.nn.Module):
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.storages: dict[int, list[int]] = {}  # of what is held: how often, bytes
        self.held = self.most = 0

    def keep(self, x: torch.Tensor) -> "Kept":
        return Kept(self, x)

    def add(self, x: torch.Tensor, sign: int) -> None:
        storage = x.untyped_storage()
        if storage.data_ptr() in self.weights:
            return
        uses = self.storages.setdefault(storage.data_ptr(), [0, storage.nbytes()])
        before, uses[0] = uses[0], uses[0] + sign
        self.held += uses[1] * ((uses[0] > 0) - (before > 0))  # several views of one storage count once
        if not uses[0]:
            del self.storages[storage.data_ptr()]
        self.most = max(self.most, self.held)


class Kept:
    """A saved tensor that says when it is let go."""

    def __init__(self, saved: Saved, x: torch.Tensor):
        self.saved, self.x = saved, x
        saved.add(x, 1)

    def __del__(self):
        self.saved.add(self.x, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="bert-mini")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="tokens of a passage")
    options = parser.parse_args()
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]
    draw = np.random.default_rng(0)
    passages = [" ".join(draw.choice(words, options.length - 2)) for _ in range(2 * options.queries)]
    queries = [" ".join(draw.choice(words, 14)) for _ in range(options.queries)]
    tokenizer = Tokenizer.train(passages, kind="wordpiece", vocab_size=256)
    numbers = np.arange(options.queries)
    lists = Lists.of(numbers[:, None]), Lists.of(numbers[:, None] + options.queries)
    groups = GroupedPairs(queries, passages, numbers, *lists, tokenizer, 2)

    reference, plain = None, None
    print(f"{options.encoder}, {options.queries} queries and {2 * options.queries} passages of {options.length} tokens\n")
    print(f"{'':<34}{'saved for backward':>20}{'share':>8}{'seconds':>9}{'gradient apart':>16}")
    for name, parts, again in (("at once", 1, False), ("8 micro-batches", 8, False), ("16 micro-batches", 16, False),
                               ("at once, activations again", 1, True), ("16 micro-batches, both", 16, True)):
        torch.manual_seed(0)
        encoder = Encoder(preset(options.encoder, tokenizer.size, max_len=options.length))
        objective = Contrastive(encoder, tokenizer, Contrastive.Config(temperature=0.1))
        if again:
            recompute_activations(objective)
        tokens = int(groups.lengths.sum())
        batches = Batches(groups, objective.collate, options.queries, -(-tokens // parts), seed=1).step(0)
        saved, begin = Saved(objective), time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda kept: kept.x):
            backward(objective, batches, World(0, 1, torch.device("cpu")))
        seconds = time.perf_counter() - begin
        gradient = torch.cat([p.grad.flatten() for p in objective.parameters()])
        reference, plain = (gradient, saved.most) if reference is None else (reference, plain)
        apart = float((gradient - reference).norm() / reference.norm())
        print(f"{name:<34}{saved.most / 2**20:>17.1f} MB{saved.most / plain:>8.1%}{seconds:>9.1f}{apart:>16.1e}", flush=True)


if __name__ == "__main__":
    main()
