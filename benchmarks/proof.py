"""Where do token objectives help? MLM from scratch for a few minutes, RetroMAE for as many from where MLM ended; both then fine-tuned like
a random start on two tasks.

Few labels: which package a docstring is from, learned from 8 or 32 examples of each of 20 packages. Many pairs: a body found from its
summary, learned from all training pairs of the quickstart. The first is where they help; the second is where, from scratch
and after minutes, they do not (docs/LOG.md), and is shown all the same.

Reads the data of `make quickstart` (run it first), writes runs/proof/. About an hour on two cores with the default:

    python benchmarks/proof.py [--minutes 5]
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from foretext.config import check
from foretext.errors import UserError
from foretext.files import whole_file
from foretext.objectives import OBJECTIVES
from foretext.retrieval.collection import read_collection
from foretext.retrieval.evaluate import evaluate, table
from foretext.retrieval.metrics import interval
from foretext.text.randomness import permutation
from foretext.verbs.classifier import ClassifierConfig
from foretext.verbs.classifier import finetune as finetune_classifier
from foretext.verbs.models import open_encoder
from foretext.verbs.pretrain import PretrainConfig, pretrain
from foretext.verbs.retriever import FinetuneConfig, finetune

DATA, OUT = Path("runs/quickstart"), Path("runs/proof")
SCRATCH = {"start": "bert-tiny", "max_len": 96}
TOKENIZER = str(DATA / "store" / "tokenizer")
PACKAGES, TESTED, SHOTS = 20, 100, (8, 32)
SHORTEST, LONGEST = 12, 120  # words of a docstring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="of each pre-training")
    minutes = parser.parse_args().minutes
    if not (DATA / "store").exists():
        raise UserError(f"{DATA}/store is missing: run `make quickstart` first")
    starts, pooling = {"random start": SCRATCH}, {"random start": "mean"}
    for name, start, rate in (("mlm", SCRATCH, 2e-3), ("retromae", {"start": str(OUT / "mlm"), "max_len": 96}, 1e-3)):
        done = pretrain(PretrainConfig(
            store=str(DATA / "store"), output=str(OUT / name), encoder=start, objective={"name": name},
            training={"minutes": minutes, "batch_size": 128, "optim": {"lr": rate, "betas": (0.9, 0.98)}, "micro_tokens": 16_384}))
        title = f"{name}, {minutes:g} minutes" + (" from there" if start is not SCRATCH else "")
        starts[title], pooling[title] = {"start": str(done.folder), "max_len": 96}, OBJECTIVES[name].pooling
    lines = [*few_labels(starts), "", *many_pairs(starts, pooling)]
    with whole_file(OUT / "table.txt", "w") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


def few_labels(starts: dict[str, dict]) -> list[str]:
    """Accuracy of classifiers from every start, by how many examples of each package they saw."""
    write_packages(OUT / "packages")
    lines = [f"{'which package, accuracy':32}{'examples':>9}{'accuracy':>10}   it - random start [95 %]"]
    for shots in SHOTS:
        right = {}
        for name, start in starts.items():
            output = OUT / f"packages-{shots}-{folder_name(name)}"
            finetune_classifier(check(ClassifierConfig, {
                "data": str(OUT / "packages" / f"train-{shots}.jsonl"), "test": str(OUT / "packages" / "test.jsonl"), "output": str(output),
                "encoder": start, "tokenizer": TOKENIZER if start is SCRATCH else None, "objective": {"head": "mean"},
                "training": {"steps": 200, "optim": {"lr": 3e-3, "layer_decay": 1.0}}}))
            rows = [line.split("\t") for line in (output / "predictions-test.tsv").read_text(encoding="utf-8").splitlines()[1:]]
            right[name] = np.array([row[1] == row[3] for row in rows], dtype=float)
            apart = interval(right[name] - right["random start"])
            against = "" if start is SCRATCH else f"   {apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
            lines.append(f"{name:32}{shots:>9}{right[name].mean():>10.3f}{against}")
    return lines


def write_packages(folder: Path) -> None:
    """Docstrings of the largest packages: test.jsonl, and train-N.jsonl with N of each."""
    texts = defaultdict(set)
    with open(DATA / "data" / "pretrain.jsonl", encoding="utf-8") as file:
        for record in map(json.loads, file):
            words = record["text"].split()
            if len(words) >= SHORTEST:
                texts[record["id"].split(".")[0]].add(" ".join(words[:LONGEST]))
    largest = sorted(texts, key=lambda name: (-len(texts[name]), name))[:PACKAGES]
    rows = {"test": []} | {f"train-{shots}": [] for shots in SHOTS}
    for number, name in enumerate(largest):
        ordered = sorted(texts[name])
        drawn = [ordered[i] for i in permutation(len(ordered), seed=1, epoch=number)]
        rows["test"] += [(text, name) for text in drawn[:TESTED]]
        for shots in SHOTS:
            rows[f"train-{shots}"] += [(text, name) for text in drawn[TESTED : TESTED + shots]]
    folder.mkdir(parents=True, exist_ok=True)
    for part, examples in rows.items():
        with whole_file(folder / f"{part}.jsonl", "w") as file:
            file.writelines(json.dumps({"text": text, "label": name}) + "\n" for text, name in examples)


def many_pairs(starts: dict[str, dict], pooling: dict[str, str]) -> list[str]:
    """The quickstart's table for retrievers from every start, each with the pooling it was trained for."""
    folders = {}
    for name, start in starts.items():
        folders[name] = finetune(FinetuneConfig(
            data=str(DATA / "data" / "train"), output=str(OUT / f"pairs-{folder_name(name)}"), encoder=start, tokenizer=TOKENIZER,
            objective={"temperature": 0.05, "pooling": pooling[name], "query_max_len": 48},
            training={"steps": 180, "batch_size": 256, "optim": {"lr": 7e-4}, "micro_tokens": 32_768})).export
    collection = read_collection(DATA / "data")
    return table([evaluate(open_encoder(folder), collection, depth=1000, name=f"{name}, pairs")
                  for name, folder in folders.items()], against=0, measure="MRR@10")


def folder_name(title: str) -> str:
    return title.split(",")[0].replace(" ", "-")


if __name__ == "__main__":
    main()
