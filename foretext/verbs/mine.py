"""`foretext mine`: hard negatives from BM25 or from a model; with rounds, mine and train in turns."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json, refuse_existing, write_json
from foretext.progress import console
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import read_collection
from foretext.retrieval.evaluate import Evaluation, evaluate, table
from foretext.retrieval.groups import Groups, read_groups, write_groups
from foretext.retrieval.metrics import paired_difference
from foretext.retrieval.mine import MineConfig, Mined, merge, mine, overlap
from foretext.retrieval.runs import Run, as_run, read_run
from foretext.retrieval.search import search
from foretext.verbs.models import open_encoder
from foretext.verbs.retriever import FinetuneConfig, finetune


@dataclass(frozen=True)
class Asked:
    """The queries to mine for, their answers, and the passages to mine from."""

    queries: dict[str, str]
    positives: dict[str, list[str]]
    passages: dict[str, str]


def asked(groups: Groups, data: str) -> Asked:
    """Groups as questions: those of one query together."""
    queries: dict[str, str] = {}
    positives: dict[str, dict[str, None]] = {}
    for group in groups.groups:
        if not isinstance(group.query, str):
            raise UserError(f"{data}: holds token ids, and negatives are mined for texts; mine from the folder with the texts")
        queries[group.query_id] = group.query
        positives.setdefault(group.query_id, {}).update(dict.fromkeys(entry.id for entry in group.positives))
    return Asked(queries, {query: list(names) for query, names in positives.items()}, groups.passages)


def find(model: str, ask: Asked, depth: int, dtype: str = "auto") -> tuple[Run, Run]:
    """The first `depth` passages of each query by a model folder (or `bm25`), and its scores of the answers.

    BM25 scores only answers that it finds within the depth.
    """
    names, texts, questions = list(ask.passages), list(ask.passages.values()), list(ask.queries.values())
    depth = min(depth, len(names))
    if model == "bm25":
        run = as_run(ask.queries, names, *BM25(texts).search(questions, depth, show_progress=True))
        return run, {query: {name: run[query][name] for name in answers if name in run[query]} for query, answers in ask.positives.items()}
    encoder = open_encoder(model, dtype)
    documents = encoder.encode(texts, "document", show_progress=True)
    vectors = encoder.encode(questions, "query")
    run = as_run(ask.queries, names, *search(vectors, documents, depth, encoder.similarity, show_progress=True))
    place = {name: i for i, name in enumerate(names)}
    scores: Run = {}
    for vector, (query, answers) in zip(vectors, ask.positives.items()):
        known = [name for name in answers if name in place]
        some = documents[[place[name] for name in known]]
        products = some @ vector
        if encoder.similarity == "cosine":
            products = products / np.maximum(np.linalg.norm(some, axis=1) * np.linalg.norm(vector), 1e-12)
        scores[query] = dict(zip(known, products.tolist()))
    return run, scores


def mine_from(models: Sequence[str], data: str, config: MineConfig, split: str = "train", dtype: str = "auto") -> tuple[Groups, list[str]]:
    """Negatives from one retriever, or from two in turns; and lines for a person."""
    ask = asked(read_groups(data, split=split), data)
    mined: dict[str, Mined] = {}
    lines = []
    for model in models:
        run, scores = find(model, ask, config.rank_to, dtype)
        mined[model] = mine(run, ask.queries, ask.positives, ask.passages, config, scores)
        lines += [f"{model}: {mined[model].lines()[0]}", *mined[model].lines()[1:]]
        if config.rank_to > len(ask.passages):
            lines.append(f"  the corpus has {len(ask.passages):,} passages, fewer than the range reaches")
    groups = mined[models[0]].groups
    for model in models[1:]:
        share = overlap(groups, mined[model].groups)
        lines.append(f"negatives that both {models[0]} and {model} found: {share:.1%} of all")
        groups = merge(groups, mined[model].groups)
    return groups, lines


def mine_to(models: Sequence[str], data: str, output: str, config: MineConfig, split: str = "train", overwrite: bool = False,
            dtype: str = "auto") -> list[str]:
    """Mine and write training groups, `.jsonl` (with texts and scores) or `.parquet`, or `.tsv` (RetroMAE's `qid  pid,pid`)."""
    refuse_existing(output, overwrite)
    formats = {".jsonl": "flagembedding", ".parquet": "parquet", ".tsv": "retromae-negatives", ".txt": "retromae-negatives"}
    if (suffix := Path(output).suffix) not in formats:
        raise UserError(f"{output}: negatives are written as .jsonl, .parquet or .tsv; name the file so")
    groups, lines = mine_from(models, data, config, split, dtype)
    write_groups(output, groups, formats[suffix], overwrite)
    return [*lines, f"negatives: {output}"]


# ------------------------------------------------------------------------------------------------------------------- rounds


@dataclass
class Rounds:
    """What `rounds` made: evaluations of the start and of each round, and lines for a person."""

    evaluations: list[Evaluation]
    report: list[str]


def rounds(model: str, data: str, output: str, count: int, config: MineConfig, training: Mapping, first: str = "bm25", split: str = "train",
           eval_split: str = "test", overwrite: bool = False, dtype: str = "auto") -> Rounds:  # fmt: skip
    """Mine, train, evaluate, `count` times; every round trains the same start again, on the negatives of the round before's model.

    What is finished is recognised: the same call goes on where it was.

    Args:
        model: what every round starts from (the pre-trained model, not the round before's).
        training: settings of `finetune retriever`, but for data, output, negatives and encoder.start.
        first: where the first negatives come from: bm25, or `model` for the start itself.
    Raises:
        UserError: the folder holds rounds with other settings.
    """
    folder = Path(output)
    settings = json.loads(json.dumps({"model": str(model), "data": str(data), "first": first, "split": split, "eval_split": eval_split,
                                      "dtype": dtype, "mine": config.model_dump(mode="json"), "training": dict(training)}))  # fmt: skip
    there = folder / "rounds.json"
    if there.is_file() and not overwrite:
        if read_json(there) != settings:
            raise UserError(f"{folder} holds rounds with other settings: name another output, or add --overwrite")
    else:
        refuse_existing(folder, overwrite)
        write_json(there, settings)
    collection = read_collection(data)
    report: list[str] = []
    evaluations = [_scored(model, "start", folder / "start", collection, eval_split, overwrite, dtype)]
    miner = model if first == "model" else first
    for number in range(1, count + 1):
        place = folder / f"round-{number}"
        negatives = place / "negatives.jsonl"
        if negatives.is_file() and not overwrite:
            report.append(f"round {number}: negatives from {miner} were there")
        else:
            groups, lines = mine_from([miner], data, config, split, dtype)
            write_groups(negatives, groups, overwrite=True)
            report += [f"round {number}: negatives from {miner}", *("  " + line for line in lines)]
        if overwrite or not (place / "run" / "export" / "config.json").is_file():
            values = dict(training) | {"data": str(data), "split": split, "negatives": str(negatives), "output": str(place / "run")}
            values["encoder"] = dict(values.get("encoder", {})) | {"start": str(model)}
            finetune(FinetuneConfig(**values), overwrite)
        miner = str(place / "run")
        evaluations.append(_scored(miner, f"round {number}", place, collection, eval_split, overwrite, dtype))
        console.print("\n".join(table(evaluations[-2:], against=0)), markup=False)
    effects = [line for before, after in zip(evaluations, evaluations[1:]) for line in _effect(before, after)]
    return Rounds(evaluations, [*report, *table(evaluations, against=0), *effects])


def _scored(model: str, name: str, folder: Path, collection, split: str, overwrite: bool, dtype: str) -> Evaluation:
    """The evaluation of a model, from its run file if it was made before."""
    run = folder / "scores" / "run.trec"
    if run.is_file() and not overwrite:
        return evaluate(read_run(run)[0], collection, split, name=name)
    found = evaluate(open_encoder(model, dtype), collection, split, name=name, show_progress=True)
    found.write(folder / "scores", overwrite=True)
    return found


def _effect(before: Evaluation, after: Evaluation) -> list[str]:
    d = paired_difference(after.scores, before.scores, "nDCG@10")
    return [f"{after.name} - {before.name}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] nDCG@10"]
