"""Does pre-training help a classifier? banking77 accuracy with few labels and with all: a small encoder from scratch, the same pre-trained
on the same texts without their labels, and MiniLM.

    python benchmarks/classify_banking77.py BANKING77-FOLDER -o runs/banking77 [--texts FILE ...] [--minilm FOLDER] [--encoder FOLDER]

BANKING77-FOLDER holds train.csv and test.csv with the columns text and category. The small encoder is pre-trained by foretext on the train
texts alone, or with the files of --texts beside them; with --encoder it is one that exists already. A tenth of the train texts is held
out: on it, each encoder's rate and checkpoint are chosen; the test file is scored with these. All see the same examples as often.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from foretext.config import check
from foretext.files import whole_file
from foretext.retrieval.metrics import interval
from foretext.text.prepare import prepare
from foretext.text.randomness import permutation
from foretext.verbs.classifier import ClassifierConfig, finetune
from foretext.verbs.models import model_folder
from foretext.verbs.pretrain import PretrainConfig, pretrain

HELD_OUT = 0.1
UPDATES = {"5": 300, "10": 300, "all": 1200}  # of 32 texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/banking77"))
    parser.add_argument("--texts", nargs="+", default=[], help="more text to pre-train on")
    parser.add_argument("--pretrain-steps", type=int, default=1000, help="updates of 256 texts")
    parser.add_argument("--objective", default="mlm")
    parser.add_argument("--preset", default="bert-tiny", help="the small network")
    parser.add_argument("--encoder", help="a small encoder that exists, instead of pre-training one")
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2, or of any other encoder to compare with")
    parser.add_argument("--shots", nargs="+", default=["5", "10", "all"], help="labelled texts of each class")
    parser.add_argument("--draws", type=int, default=2, help="of the few labelled texts")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="tried for the small encoders")
    parser.add_argument("--large-rates", type=float, nargs="+", default=[3e-4], help="tried for the other")
    options = parser.parse_args()

    sets = write_sets(options)
    pretrained = options.encoder or str(pretrained_on(sets["texts"], options))
    small = {"head": "mean", "decay": 1.0, "rates": options.rates}
    kinds = {"pre-trained": small | {"start": pretrained, "tokenizer": None},
             "from scratch": small | {"start": options.preset, "tokenizer": model_folder(pretrained)}}  # fmt: skip
    if options.minilm:
        kinds["MiniLM"] = {"head": "mean", "decay": 0.9, "rates": options.large_rates, "start": options.minilm, "tokenizer": None}
    lines = [f"{'banking77':<14}{'labels':>7}{'rate':>8}{'held out':>10}{'accuracy':>10}   95 %               it - from scratch"]
    for shots in options.shots:
        found = {name: best_rate(name, kind, shots, sets, options) for name, kind in kinds.items()}
        for name, (rate, held_out, right) in found.items():
            spread, apart = interval(right), interval(right - found["from scratch"][2])
            against = "" if name == "from scratch" else f"   {apart.mean:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
            lines.append(f"{name:<14}{shots:>7}{rate:>8g}{held_out:>10.4f}{spread.mean:>10.4f}   [{spread.low:.4f}, {spread.high:.4f}]"
                         + against)
        print("\n".join(lines), flush=True)


def write_sets(options: argparse.Namespace) -> dict[str, Path]:
    """held-out.csv, train-SHOTS-DRAW.csv, and all train texts without their labels."""
    folder = options.output / "data"
    with open(options.data / "train.csv", encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    order = permutation(len(rows), 1, 0)
    cut = int(len(rows) * HELD_OUT)
    kept, of_class = [rows[i] for i in order[cut:]], defaultdict(list)
    for row in kept:
        of_class[row[1]].append(row)
    made = {"held-out": [rows[i] for i in order[:cut]], "train-all-0": kept}
    for draw in range(options.draws):
        for shots in set(options.shots) - {"all"}:
            made[f"train-{shots}-{draw}"] = [some[i] for name, some in sorted(of_class.items())
                                             for i in permutation(len(some), 2, draw)[: int(shots)]]  # fmt: skip
    for name, some in made.items():
        with whole_file(folder / f"{name}.csv", "w") as file:
            csv.writer(file).writerows([("text", "category"), *some])
    with whole_file(folder / "texts.jsonl", "w") as file:
        file.writelines(json.dumps({"text": " ".join(text.split())}) + "\n" for text, _ in rows)
    return {name: folder / f"{name}.csv" for name in made} | {"texts": folder / "texts.jsonl", "test": options.data / "test.csv"}


def pretrained_on(texts: Path, options: argparse.Namespace) -> Path:
    """The run folder of the small encoder, made once."""
    store, run = options.output / "store", options.output / options.objective
    if not (store / "manifest.json").is_file():
        prepare([str(texts), *options.texts], store, vocab_size=8192, max_tokens=62, min_tokens=4)
    if not (run / "export").is_dir():
        pretrain(check(PretrainConfig, {
            "store": str(store), "output": str(run), "objective": {"name": options.objective},
            "encoder": {"start": options.preset, "max_len": 96},
            "training": {"steps": options.pretrain_steps, "batch_size": 256, "optim": {"lr": 2e-3, "betas": (0.9, 0.98)}}}))  # fmt: skip
    return run


def best_rate(name: str, kind: dict, shots: str, sets: dict[str, Path], options: argparse.Namespace) -> tuple[float, float, np.ndarray]:
    """The rate that is best on held-out texts, its accuracy there, and whether each test text is right (mean over the draws)."""
    draws = 1 if shots == "all" else options.draws
    found = []
    for rate in kind["rates"]:
        runs = [classifier(f"{name}-{shots}-{draw}-{rate:g}".replace(" ", "-"), kind, shots, draw, rate, sets, options)
                for draw in range(draws)]
        found.append((float(np.mean([held_out for held_out, _ in runs])), rate, np.mean([right for _, right in runs], axis=0)))
    held_out, rate, right = max(found, key=lambda entry: entry[0])
    return rate, held_out, right


def classifier(run: str, kind: dict, shots: str, draw: int, rate: float, sets: dict[str, Path],
               options: argparse.Namespace) -> tuple[float, np.ndarray]:  # fmt: skip
    """Accuracy on held-out texts, and whether each test text was put into its class, one 0 or 1 each."""
    output = options.output / run
    done = finetune(check(ClassifierConfig, {
        "data": str(sets[f"train-{shots}-{draw}"]), "valid": str(sets["held-out"]), "test": str(sets["test"]), "output": str(output),
        "encoder": {"start": kind["start"], "max_len": 96}, "tokenizer": kind["tokenizer"], "objective": {"head": kind["head"]},
        "training": {"steps": UPDATES[shots], "seed": draw + 1, "optim": {"lr": rate, "layer_decay": kind["decay"]}}}),
        overwrite=True)  # fmt: skip
    rows = [line.split("\t") for line in (output / "predictions-test.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    return done.scores["valid"]["accuracy"], np.array([row[1] == row[3] for row in rows], dtype=float)


if __name__ == "__main__":
    main()
