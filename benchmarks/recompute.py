"""What `training.checkpoint_activations` saves and costs: masked language modelling, activations kept and computed again, in turns.

    python benchmarks/recompute.py [--encoder bert-base] [--texts 8] [--length 512] [--rounds 3]

Bytes that autograd holds for the backward pass at most (weights excepted, counted with saved-tensor hooks), the time of both passes of
one thread, and how far the gradients are apart. Made-up tokens, in the precision that is fastest here.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from large_batch import Saved
from made_up import write
from turns import clock

from foretext.model.encoder import Encoder
from foretext.model.precision import has_bf16
from foretext.model.presets import preset
from foretext.objectives.mlm import MLM
from foretext.text.batches import Batches
from foretext.text.pairs import Texts
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.training.loop import tune_allocator
from foretext.training.recompute import recompute_activations
from foretext.training.step import backward

ALONE = World(0, 1, torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="bert-base")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="tokens of a text, special tokens included")
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    now, draw = clock(1), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), 0.1)
        tokenizer = Tokenizer.load(Path(folder) / "tokenizer")
    ids = draw.choice(np.flatnonzero(~tokenizer.special), (given.texts, given.length - 2))

    ways = {}
    for name in ("kept", "computed again"):
        torch.manual_seed(0)
        objective = MLM(Encoder(preset(given.encoder, tokenizer.size, max_len=given.length)), tokenizer).train()
        objective.encoder.compute_dtype = torch.bfloat16 if has_bf16(ALONE.device) else torch.float32
        ways[name] = objective
    recompute_activations(ways["computed again"])
    batches = Batches(Texts(list(ids), tokenizer), ways["kept"].collate, given.texts, ids.size * 2, seed=1).step(0)

    spent, held, gradients = {name: [] for name in ways}, {}, {}
    for turn in range(given.rounds + 1):
        for name, objective in ways.items():
            objective.zero_grad()
            saved, begin = Saved(objective), now()
            with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda kept: kept.x):
                backward(objective, batches, ALONE)
            if turn:
                spent[name].append(now() - begin)
            held[name] = saved.most
            gradients[name] = [p.grad for p in objective.parameters()]
    distance, length = (torch.stack([x.norm() for x in some]).norm() for some in (
        [a - b for a, b in zip(*gradients.values())], gradients["kept"]))
    print(f"{given.encoder}, {given.texts} texts of {given.length} tokens\n")
    print(f"{'activations':<16}{'saved for backward':>20}{'share':>8}{'seconds':>9}{'times':>8}")
    for name in ways:
        seconds, ratio = median(spent[name]), median(b / a for a, b in zip(spent["kept"], spent[name]))
        print(f"{name:<16}{held[name] / 2**20:>17,.0f} MB{held[name] / held['kept']:>8.1%}{seconds:>9.2f}{ratio:>7.2f}x")
    print(f"gradients apart: {distance / length:.1e} of their norm")


if __name__ == "__main__":
    main()
