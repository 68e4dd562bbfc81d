"""Does pre-training help a classifier? banking77 accuracy of a pre-trained small encoder, of the same network from scratch, and of MiniLM.

    python benchmarks/classify_banking77.py BANKING77-FOLDER PRETRAINED --preset bert-tiny -o runs/banking77 [--minilm FOLDER]

BANKING77-FOLDER holds train.csv and test.csv with the columns text and category; PRETRAINED is a run or model folder, whose size --preset
names. Every encoder sees the same texts as often, and the checkpoint that is best on a held-out tenth is scored on the test file.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from foretext.config import check
from foretext.files import read_json
from foretext.retrieval.metrics import interval
from foretext.verbs.classifier import ClassifierConfig, finetune
from foretext.verbs.pretrain import model_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("pretrained")
    parser.add_argument("--preset", default="bert-tiny", help="the network of PRETRAINED, to be trained from scratch")
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2, or of any other encoder to compare with")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/banking77"))
    parser.add_argument("--epochs", type=float, default=6.0, help="of the small encoders; MiniLM gets half as many")
    parser.add_argument("--steps", type=int, help="updates instead, for a quick look")
    options = parser.parse_args()

    small = {"objective": {"head": "mean"}, "training": {"optim": {"lr": 3e-3, "layer_decay": 1.0}}}
    kinds = {"pre-trained": (options.pretrained, None, small, options.epochs),
             "from scratch": (options.preset, model_folder(options.pretrained), small, options.epochs)}  # fmt: skip
    if options.minilm:
        large = {"objective": {"head": "mean"}, "training": {"optim": {"lr": 5e-4, "layer_decay": 0.9}}}
        kinds["MiniLM"] = (options.minilm, None, large, options.epochs / 2)
    right = {name: accuracies(name, *kind, options) for name, kind in kinds.items()}

    print(f"\n{'banking77':<14}{'accuracy':>10}   95 %               pre-trained - it")
    for name, values in right.items():
        spread, apart = interval(values), interval(right["pre-trained"] - values)
        against = "" if name == "pre-trained" else f"{apart.mean:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
        print(f"{name:<14}{spread.mean:>10.4f}   [{spread.low:.4f}, {spread.high:.4f}]   {against}".rstrip())


def accuracies(name: str, start: str, tokenizer: str | None, settings: dict, epochs: float, options: argparse.Namespace) -> np.ndarray:
    """Whether each test text was put into its class, one 0 or 1 each."""
    output = options.output / name.replace(" ", "-")
    budget = {"steps": options.steps} if options.steps else {"epochs": epochs}
    values = {"data": str(options.data / "train.csv"), "test": str(options.data / "test.csv"), "output": str(output),
              "encoder": {"start": start, "max_len": 96}, "tokenizer": tokenizer, "objective": settings["objective"],
              "training": settings["training"] | budget}  # fmt: skip
    done = finetune(check(ClassifierConfig, values))
    print(f"{name}: {json.dumps(read_json(output / 'scores.json')['test'])} in {done.result.seconds:.0f} s of training")
    rows = [line.split("\t") for line in (output / "predictions-test.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    return np.array([row[1] == row[3] for row in rows], dtype=float)


if __name__ == "__main__":
    main()
