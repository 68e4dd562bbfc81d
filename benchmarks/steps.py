"""A training step of foretext, of any objective, as the loop makes it; a process that `turns.py` asks.

    python benchmarks/steps.py OBJECTIVE [--folder runs/bench/data] [--threads 2]    # alone, for a quick look or under a profiler

FLOPs are those that have to be done: for real tokens and needed rows of the head only. Where no formula is written down here they are
counted from the matrix products of one step, as far as they are not padding between texts of equal length ("counted").
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from turns import Answer, clock, peak_memory, serve

from foretext.model.encoder import Encoder
from foretext.model.precision import has_bf16
from foretext.model.presets import preset
from foretext.model.towers import new_encoder
from foretext.objectives import OBJECTIVES
from foretext.objectives.base import Objective
from foretext.text.batches import Batches
from foretext.text.clusters import ClusterSource, texts_of
from foretext.text.evidence import Clusters
from foretext.text.pairs import NOTHING_KNOWN, Pairs, Texts
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.training.loop import tune_allocator
from foretext.training.optim import OptimConfig, clip_gradients, make_optimizer
from foretext.training.step import backward

ALONE = World(0, 1, torch.device("cpu"))
EVIDENCE = 4  # texts of each cluster


class Halves:
    """Each text as a pair of its two halves."""

    def __init__(self, texts: Texts):
        self.texts, self.lengths = texts, texts.lengths

    def read(self, rows: np.ndarray, keys: torch.Tensor) -> Pairs:
        whole = self.texts.read(rows, keys)
        middle = whole.lengths // 2
        return Pairs(whole.part(middle * 0, middle), whole.part(middle, whole.lengths - middle), NOTHING_KNOWN)


def read_texts(folder: Path, case: str, tokenizer: Tokenizer, count: int) -> Texts:
    """The first `count` texts of a seeded file."""
    found = np.load(folder / f"{case}.npz")
    return Texts(np.split(found["ids"], np.cumsum(found["lengths"])[:-1])[:count], tokenizer)


def clusters(texts: Texts, shared: bool) -> ClusterSource:
    """A quarter of the texts are targets, which have their own evidence each, or share it by fours."""
    count = len(texts.lengths)
    targets, rest = list(range(count // 4)), count - count // 4
    size = 4 if shared else 1
    evidence = [[count // 4 + (i * EVIDENCE + j) % rest for j in range(EVIDENCE)] for i in range(len(targets))]
    groups = [(targets[i:i + size], evidence[i]) for i in range(0, len(targets), size)]
    return ClusterSource(*2 * [texts_of(texts, np.arange(count))], Clusters.of(groups))


def real_tokens(objective: Objective, source) -> int:
    """Of one step over all of `source`, special tokens included; of MARGE those of the targets."""
    if objective.reads == "clusters":
        return int((source.targets.lengths[source.clusters.targets] + 2).sum())
    return int((source.lengths + (4 if objective.reads == "pairs" else 2)).sum())


def flops(objective: Objective, batch, lengths: np.ndarray, tokens: int) -> float | None:
    """Of one step by the formulas of the field: three times those of the forward pass; None: no formula here.

    Per token ENC = 72 L d^2 + 12 L S d, S the mean of S_i^2 / S_i; a row of the head 6 d V + 6 d^2.
    """
    def layers(count: float, d: int) -> float:
        return count * (72 * d * d + 12 * spread * d)

    c = objective.encoder.config
    L, d, V = c.layers, c.width, c.vocab_size
    spread = float((lengths.astype(float) ** 2).sum() / lengths.sum())
    head, rows = 6 * d * V + 6 * d * d, batch.counts
    if objective.name == "mlm":
        return tokens * layers(L, d) + rows["mlm"] * head
    if objective.name == "mpnet":
        p = rows["mpnet"] / tokens
        return tokens * ((1 + 2 * p) * 72 * L * d * d + 12 * L * d * (1 + 2 * p) * (1 + p) * spread) + rows["mpnet"] * head
    if objective.name == "retromae":
        return tokens * layers(L + 1, d) + (rows["encoder"] + rows["decoder"]) * head
    if objective.name == "electra":
        g, e = objective.generator.config, c.table_width
        generator = tokens * layers(g.layers, g.width) + rows["generator"] * (6 * e * V + 6 * g.width * e)
        return tokens * (layers(L, d) + 6 * d * d) + generator
    if objective.name == "contrastive":
        return tokens * layers(L, d)
    return None


def compile_parts(encoder: Encoder) -> None:
    """What follows attention in each layer, forward and backward, as one compiled function of any number of tokens."""
    for block in encoder.blocks:
        block.attended, block.feed_forward = (torch.compile(part, dynamic=True) for part in (block.attended, block.feed_forward))


def make(about: dict):
    """A contender: {objective, settings, cases, texts, threads, data, precision, max_len, compile}."""
    torch.set_num_threads(about["threads"])
    torch.manual_seed(0)
    tune_allocator()
    now, data = clock(about["threads"]), Path(about["data"])
    kind = OBJECTIVES[about["objective"]]
    tokenizer = Tokenizer.load(data / "tokenizer")
    start = kind.start or ("mpnet-mini" if kind.name == "mpnet" else "bert-mini")
    encoder = new_encoder(preset(start, tokenizer.size, **({} if kind.start else {"max_len": about.get("max_len", 128)})))
    objective = kind(encoder, tokenizer, kind.Config(**about.get("settings", {}))).train()
    precision = about.get("precision") or ("bf16" if has_bf16(ALONE.device) else "fp32")
    objective.encoder.compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if about.get("compile"):
        compile_parts(encoder)
    config = OptimConfig()
    optimizer = make_optimizer(objective, config)
    sources, counted = {}, {}
    for case in about["cases"]:
        texts = read_texts(data, case.split()[0], tokenizer, about["texts"])
        form = {"documents": lambda t: t, "pairs": Halves, "clusters": lambda t, c=case: clusters(t, "shared" in c)}[objective.reads]
        sources[case] = form(texts)
    steps = dict.fromkeys(sources, 0)

    def run(case: str) -> Answer:
        source = sources[case]
        batches = Batches(source, objective.collate, len(source.lengths), 16_384, seed=1)
        first, begin = case not in counted, now()
        micro = batches.step(steps[case])
        steps[case] += 1
        made = now()
        counter = None
        if first and not about.get("compile"):  # a function that is first called while something counts is never compiled
            with FlopCounterMode(display=False) as counter:
                backward(objective, micro, ALONE)
        else:
            backward(objective, micro, ALONE)
        went = now()
        norm = clip_gradients(objective, config)
        clipped = now()
        assert torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad()
        objective.updated()
        end = now()
        tokens = real_tokens(objective, source)
        if first:
            formula = flops(objective, micro[0], lengths_of(source), tokens) if len(micro) == 1 else None
            counted[case] = (formula, "formula") if formula else (counter and counter.get_total_flops(), "counted")
        work, how = counted[case]
        return {"seconds": end - begin, "tokens": tokens, "rows": micro[0].counts, "flops": work, "how": how, "precision": precision,
                "loading": made - begin, "passes": went - made, "clip": clipped - went, "optimizer": end - clipped}

    def lengths_of(source) -> np.ndarray:
        """Of the sequences that attend."""
        if isinstance(source, Halves):
            half = source.lengths // 2
            return np.concatenate((half, source.lengths - half)) + 2
        return source.lengths + 2

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objective", choices=OBJECTIVES)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/data"), help="as `made_up.py` writes it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    case = "full shared" if given.objective == "marge" else "full"
    run = make({"objective": given.objective, "cases": [case], "texts": given.texts, "threads": given.threads, "data": str(given.folder)})
    for turn in range(given.rounds + 1):
        a = run(case)
        seconds = a["seconds"]
        print(f"{turn or 'warm-up'}: {a['tokens'] / seconds:,.0f} tokens/s, {a['flops'] / seconds / 1e9:.0f} GFLOP/s ({a['how']}), loading "
              f"{a['loading'] / seconds:.1%}, optimizer {a['optimizer'] / seconds:.1%}, {peak_memory():,.0f} MB at most")


if __name__ == "__main__":
    import sys

    serve(make) if sys.argv[1:2] and sys.argv[1].startswith("{") else main()
