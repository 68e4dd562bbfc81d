"""Do dual encoders choose responses? Trained on the conversations of a folder (train.jsonl.gz, test.jsonl.gz: PolyAI's JSON lines) and
measured on its test part, beside BM25 and the mean of the model's own word vectors. 1-of-100 and the full set, with intervals.

    python benchmarks/response_selection.py FOLDER [--objective convert|dual|contrastive] [--multi] [--quantize] [--minutes 26]

`--multi` trains convert twice side by side, a core each, without and with earlier turns. `--quantize` goes on from the first of them for
a few updates with weights of 8 bits, and compares sizes and scores. Writes runs/response-selection/; a store or a finished run that is
there is used again.
"""

import argparse
import copy
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from foretext.config import check, gather
from foretext.files import whole_file
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.response_selection import MeanEmbeddings, bm25_scorer, difference, select, table, vector_scorer
from foretext.text.dialogues import read_examples
from foretext.text.prepare import prepare
from foretext.verbs.pretrain import PretrainConfig, pretrain

ADAMW = {"batch_size": 512, "micro_tokens": 32_768, "valid_every": 60, "optim": {
    "kind": "adamw", "lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.01, "warmup": 0.05, "schedule": "linear", "end_lr": 0.0,
    "clip": 1.0, "clip_what": "all"}}
RECIPES: dict[str, dict[str, Any]] = {  # what the few minutes of a small corpus ask for; Adadelta's 10,000 updates are out of reach here
    "contrastive": {"encoder": {"start": "bert-tiny", "max_len": 64}, "objective": {"temperature": 0.05, "symmetric": True}},
    "dual": {"encoder": {"start": "convert", "dropout": 0.5, "options": {"windows": [3], "ffn_width": 512}},  # wide and shallow
             "objective": {"reduction": "2ha"}},
    "convert": {"encoder": {"start": "convert-mini", "dropout": 0.4, "options": {"windows": [3, 5, 48], "ffn_width": 512}},
                "objective": {"score_scale": "learned"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objective", choices=list(RECIPES), default="convert")
    parser.add_argument("--multi", action="store_true", help="convert: also with earlier turns")
    parser.add_argument("--quantize", action="store_true", help="convert: also with weights of 8 bits")
    parser.add_argument("--minutes", type=float, default=26, help="of each training")
    parser.add_argument("--output", type=Path, default=Path("runs/response-selection"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of pretrain")
    options = parser.parse_args()
    store = options.output / "store"
    if not store.exists():
        print(prepare(options.folder / "train.jsonl.gz", store, dialogues=True, vocab_size=16_000))
    examples = list(read_examples(options.folder / "test.jsonl.gz"))
    name = options.objective
    runs = {name: {"turns": 0}, f"{name}-turns": {"turns": 10}} if options.multi else {name: {"turns": 0} if name == "convert" else {}}
    with ProcessPoolExecutor(len(runs), get_context("spawn")) as pool:  # side by side: each of so small a network fills one core at most
        folders = dict(zip(runs, pool.map(partial(train, options), runs, runs.values())))

    single = TextEncoder.load(folders[name])
    words = MeanEmbeddings(single.encoder.words.weight.detach().cpu().numpy(), single.tokenizer)
    found = [select(name, vector_scorer(single, examples), examples)]
    if options.multi:
        multi = TextEncoder.load(folders[f"{name}-turns"])
        found = [select(f"{name}, earlier turns", vector_scorer(multi, examples, earlier=True), examples), *found,
                 select(f"{name}, earlier turns not shown", vector_scorer(multi, examples), examples)]
    if options.quantize:
        short = {"minutes": None, "steps": 40, "optim": ADAMW["optim"] | {"lr": 1e-4}}
        plain, coded = (train(options, f"{name}-{kind}", runs[name] | {"quantize": quantize}, {"start": str(folders[name])}, short)
                        for kind, quantize in (("longer", None), ("8-bit", "all")))
        found += [select(f"{name}, 40 updates more", vector_scorer(TextEncoder.load(plain), examples), examples),
                  select(f"{name}, 40 more in 8 bits", vector_scorer(TextEncoder.load(coded), examples), examples)]
    found += [select("mean of its embeddings", vector_scorer(words, examples), examples),
              select("BM25", bm25_scorer(examples), examples), select("BM25, earlier turns", bm25_scorer(examples, earlier=True), examples)]
    lines = table(found)
    if options.quantize:
        sizes = [(folder / "model.safetensors").stat().st_size / 1e6 for folder in (plain, coded)]
        lines += ["", difference(found[-4], found[-5]), f"weights {sizes[0]:.1f} MB, in 8 bits {sizes[1]:.1f}: {sizes[1] / sizes[0]:.0%}"]
    if options.multi:
        lines += ["", *(difference(found[1], other) for other in found[-3:])]
    with whole_file(options.output / f"table-{name}.txt", "w") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


def train(options: argparse.Namespace, name: str, objective: dict[str, Any], encoder: dict[str, Any] | None = None,
          training: dict[str, Any] | None = None) -> Path:
    """One training (or the export of a finished one): the recipe, with an encoder or settings of training of its own."""
    recipe = RECIPES[options.objective]
    given = {"store": str(options.output / "store"), "output": str(options.output / name), "pairs": {"kind": "turns"},
             "objective": {"name": options.objective, **recipe["objective"], **objective}, "encoder": encoder or recipe["encoder"],
             "training": ADAMW | {"minutes": options.minutes} | (training or {})}
    return pretrain(check(PretrainConfig, gather(None, copy.deepcopy(given), options.set))).export


if __name__ == "__main__":
    main()
