"""Do token objectives help? MLM and RetroMAE from scratch, each then fine-tuned alike (with the pooling it was trained for) and measured
on held-out pairs, beside a random start.

Reads the data of `make quickstart` (run it first). Writes runs/proof/. About a quarter of an hour on two cores
with the default:

    python benchmarks/proof.py [--minutes 5]
"""

import argparse
from pathlib import Path

import torch

from foretext.errors import UserError
from foretext.files import whole_file
from foretext.objectives import OBJECTIVES
from foretext.retrieval.collection import read_collection
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.evaluate import evaluate, table
from foretext.training.loop import has_bf16
from foretext.verbs.pretrain import PretrainConfig, pretrain
from foretext.verbs.retriever import FinetuneConfig, finetune

DATA, OUT = Path("runs/quickstart"), Path("runs/proof")
SCRATCH = {"start": "bert-tiny", "max_len": 96}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="of each pre-training")
    minutes = parser.parse_args().minutes
    if not (DATA / "store").exists():
        raise UserError(f"{DATA}/store is missing: run `make quickstart` first")
    starts, pooling = {"random start": SCRATCH}, {"random start": "mean"}
    for name in ("mlm", "retromae"):
        done = pretrain(PretrainConfig(
            store=str(DATA / "store"), output=str(OUT / name), encoder=SCRATCH, objective={"name": name},
            training={"minutes": minutes, "batch_size": 128, "optim": {"lr": 2e-3, "betas": (0.9, 0.98)}, "micro_tokens": 16_384}))
        title = f"{name}, {minutes:g} minutes"
        starts[title] = {"start": str(done.folder), "max_len": 96}
        pooling[title] = OBJECTIVES[name].pooling
    rows = []
    for name, start in starts.items():
        folder = OUT / ("tuned-" + name.split(",")[0].replace(" ", "-"))
        tuned = finetune(FinetuneConfig(
            data=str(DATA / "data" / "train"), output=str(folder), encoder=start, tokenizer=str(DATA / "store" / "tokenizer"),
            objective={"temperature": 0.05, "pooling": pooling[name], "query_max_len": 48},
            training={"steps": 200, "batch_size": 256, "optim": {"lr": 7e-4}, "micro_tokens": 32_768}))
        rows.append((f"{name}, then fine-tuned", tuned.export))
    collection = read_collection(DATA / "data")
    dtype = torch.bfloat16 if has_bf16(torch.device("cpu")) else None
    evaluations = [evaluate(TextEncoder.load(folder, dtype=dtype), collection, depth=1000, name=name) for name, folder in rows]
    lines = table(evaluations, against=0, measure="MRR@10")
    with whole_file(OUT / "table.txt", "w") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
