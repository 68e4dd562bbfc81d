"""`foretext quickstart`: the whole pipeline, on text that every machine with Python already has.

The documentation of the installed packages becomes a corpus; an encoder is pre-trained on it without labels, fine-tuned to find a
docstring's body from its summary, and measured on held-out pairs whose summaries it has never read.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from foretext.files import read_json, whole_file, whole_folder, write_json
from foretext.progress import console, duration
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import read_collection
from foretext.retrieval.evaluate import Evaluation, evaluate, table
from foretext.retrieval.fusion import fuse
from foretext.retrieval.metrics import paired_difference
from foretext.text.corpus import Document
from foretext.text.duplicates import exact_key, near_duplicates
from foretext.text.environment import Docstring, read_environment
from foretext.text.prepare import prepare
from foretext.text.randomness import example_keys
from foretext.verbs.models import open_encoder
from foretext.verbs.pretrain import PretrainConfig, pretrain
from foretext.verbs.retriever import FinetuneConfig, finetune
from foretext.verbs.search import encode, excerpt, search

SUMMARY_WORDS, BODY_WORDS = (4, 40), 12  # what counts as a pair worth asking for
BODY_CHARACTERS = 2000  # of a passage; the encoder reads less
NEAR = 0.5  # share of three-word runs from which on a text counts as a near duplicate of a held-out one
QUESTIONS = ("mean of an array that ignores nan", "read a file line by line", "wait for several threads to finish")


class QuickstartConfig(BaseModel):
    """Sizes and times of the quickstart; the defaults fit into ten minutes on two cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str = "runs/quickstart"
    held_out: int = Field(2000, gt=0, description="summary -> body pairs kept for the evaluation")
    pool: int = Field(10_000, gt=0, description="bodies searched in the evaluation, the held-out ones among them")
    encoder: str = Field("bert-tiny", description="preset to start from; the best use of a few minutes (docs/LOG.md)")
    vocab_size: int = Field(8192, gt=0)
    max_len: int = Field(96, gt=0, description="longest text in tokens")
    pretrain_minutes: float = Field(3.5, gt=0)
    finetune_steps: int = Field(180, gt=0)


@dataclass
class Pairs:
    """What `split_docstrings` makes of the environment."""

    corpus: list[Document]  # to pre-train on: everything but the held-out summaries and near duplicates of held-out pairs
    held_out: list[Docstring]
    training: list[Docstring]
    removed: dict[str, int]


def quickstart(config: QuickstartConfig) -> list[str]:
    """Walk the road; every stage that is already done is passed over. Returns the lines that end it: table, places, what is next."""
    start, output = time.monotonic(), Path(config.output)
    say = Stages(start)

    say("reading the documentation of the installed Python packages (nothing is imported or run)")
    if not (output / "data" / "counts.json").exists():
        docstrings, summary = read_environment()
        console.print(f"  {len(docstrings):,} docstrings in {summary.lines:,} files")
        write_data(split_docstrings(docstrings, config.held_out), config, output / "data")
    counts = read_json(output / "data" / "counts.json")
    for line in counts["lines"]:
        console.print("  " + line)

    say("preparing the corpus: tokenizer, chunks, token store")
    if not (output / "store").exists():
        for line in prepare(output / "data" / "pretrain.jsonl", output / "store", vocab_size=config.vocab_size,
                            max_tokens=128).lines()[:3]:
            console.print("  " + line)

    say(f"pre-training {config.encoder} without labels, on random crops of the texts, for {config.pretrain_minutes:g} minutes")
    encoder = {"start": config.encoder, "max_len": config.max_len}
    contrastive = {"temperature": 0.05, "pooling": "mean"}
    pretrained = pretrain(PretrainConfig(
        store=str(output / "store"), output=str(output / "pretrained"), encoder=encoder,
        objective={"name": "contrastive", "symmetric": True} | contrastive,
        training={"minutes": config.pretrain_minutes, "batch_size": 256, "optim": {"lr": 2e-3}, "micro_tokens": 32_768,
                  "valid_every": 10_000}))

    tuned = {}
    begins = {"from scratch": encoder, "from the pre-trained encoder": {"start": str(output / "pretrained"), "max_len": config.max_len}}
    for name, begin in begins.items():
        say(f"fine-tuning {name} on {counts['training']:,} summary -> body pairs")
        folder = output / ("finetuned" if "pre-trained" in name else "finetuned-from-scratch")
        tuned[name] = finetune(FinetuneConfig(
            data=str(output / "data" / "train"), output=str(folder), encoder=begin, tokenizer=str(output / "store" / "tokenizer"),
            objective=contrastive | {"query_max_len": 48},
            training={"steps": config.finetune_steps, "batch_size": 256, "optim": {"lr": 7e-4}, "micro_tokens": 32_768}))

    say(f"evaluating on {config.held_out:,} held-out pairs among {config.pool:,} bodies")
    evaluations = compare(output, {"fine-tuned, not pre-trained": tuned["from scratch"].export, "pre-trained only": pretrained.export,
                                   "pre-trained + fine-tuned": tuned["from the pre-trained encoder"].export})
    lines = table(evaluations, against=0, measure="nDCG@10")
    difference = paired_difference(evaluations[-1].scores, evaluations[0].scores, "MRR@10")
    lines.append(f"fused - BM25 in MRR@10: {difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]")
    with whole_file(output / "table.txt", "w") as file:
        file.write("\n".join(lines) + "\n")
    write_json(output / "scores.json", {e.name: {k: v for k, v in e.as_dict().items() if k != "per_query"} for e in evaluations})

    say("indexing the documentation for search")
    if not (output / "index" / "model.json").exists():
        lines_of = (output / "data" / "search.jsonl").read_bytes().split(b"\n")
        documents = [Document(**json.loads(line)) for line in lines_of if line]
        encode(tuned["from the pre-trained encoder"].export, documents, output / "index")
    found = []
    for question, hits in zip(QUESTIONS, search(output, QUESTIONS, k=3, hybrid=True)):
        found += ["", f'foretext search {output} "{question}" --hybrid'] + [f"  {hit.title:<44} {excerpt(hit.text, 70)}" for hit in hits]
    return ["", *lines, *found, "",
            f"everything is in {output}: data/ (BEIR folder), store/, pretrained/, finetuned/ (export/ loads in transformers and "
            "sentence-transformers), index/, table.txt, scores.json",
            f"done in {duration(time.monotonic() - start)}; now ask it yourself:", "",
            f'    foretext search {output} "mean of an array that ignores nan"']


def split_docstrings(docstrings: list[Docstring], held_out: int) -> Pairs:
    """Remove duplicates, hold out pairs, and keep what repeats them away from training."""
    seen: set[bytes] = set()
    unique = []
    for docstring in docstrings:
        key = exact_key(docstring.text.lower())
        if key not in seen:
            seen.add(key)
            unique.append(docstring)
    order = np.argsort(example_keys(1, 0, torch.arange(len(unique))).numpy(), kind="stable")
    pairs = [unique[i] for i in order if is_pair(unique[i])]
    test = pairs[:held_out]
    names = {docstring.name for docstring in test}
    others = [docstring for docstring in unique if docstring.name not in names]
    repeats = near_duplicates([docstring.text for docstring in test], [docstring.text for docstring in others], NEAR)
    clean = [docstring for docstring, near in zip(others, repeats) if not near]
    known = {docstring.name for docstring in clean}
    corpus = [Document(d.name, "", d.text) for d in clean] + [Document(d.name, "", d.body) for d in test]
    removed = {"exact duplicates": len(docstrings) - len(unique), "near duplicates of held-out pairs": int(repeats.sum())}
    return Pairs(corpus, test, [pair for pair in pairs[held_out:] if pair.name in known], removed)


def is_pair(docstring: Docstring) -> bool:
    """Whether summary and body both say enough."""
    low, high = SUMMARY_WORDS
    return low <= len(docstring.summary.split()) <= high and len(docstring.body.split()) >= BODY_WORDS


def write_data(pairs: Pairs, config: QuickstartConfig, folder: Path) -> None:
    """pretrain.jsonl, search.jsonl, and a BEIR folder: bodies, summaries, which belongs to which."""
    pool = pairs.held_out + pairs.training[: config.pool - len(pairs.held_out)]
    # Bodies that are searched in the evaluation are not trained on as answers, so that only the search is asked, not memory.
    training = pairs.training[config.pool - len(pairs.held_out) :]
    with whole_folder(folder, overwrite=True) as new:
        write_lines(new / "pretrain.jsonl", ({"id": d.id, "text": d.text} for d in pairs.corpus))
        write_lines(new / "search.jsonl", ({"id": d.name, "title": d.name, "text": d.text[:BODY_CHARACTERS]} for d in pool))
        for name, bodies in (("corpus.jsonl", pool), ("train/corpus.jsonl", training)):
            write_lines(new / name, ({"_id": d.name, "title": "", "text": d.body[:BODY_CHARACTERS]} for d in bodies))
        for name, asked in (("queries.jsonl", pairs.held_out), ("train/queries.jsonl", training)):
            write_lines(new / name, ({"_id": "q:" + d.name, "text": d.summary} for d in asked))
        for name, asked in (("qrels/test.tsv", pairs.held_out), ("train/qrels/train.tsv", training)):
            with whole_file(new / name, "w") as file:
                file.write("query-id\tcorpus-id\tscore\n")
                file.writelines(f"q:{d.name}\t{d.name}\t1\n" for d in asked)
        lines = [f"{count:,} {what} removed" for what, count in pairs.removed.items()]
        lines.append(f"{len(pairs.corpus):,} texts to pre-train on, {len(training):,} labelled pairs, "
                     f"{len(pairs.held_out):,} pairs held out")
        write_json(new / "counts.json", {"lines": lines, "training": len(training)})


def write_lines(path: Path, records) -> None:
    """JSON lines."""
    with whole_file(path, "w") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def compare(output: Path, models: dict[str, Path]) -> list[Evaluation]:
    """BM25, each model, and the last model fused with BM25, on the held-out pairs."""
    collection = read_collection(output / "data")
    depth = 1000  # of each ranking; a fused one gains from what only one of them has seen
    evaluations = [evaluate(BM25(collection.documents), collection, depth=depth, name="BM25")]
    for name, folder in models.items():
        evaluations.append(evaluate(open_encoder(folder), collection, depth=depth, name=name, show_progress=True))
    fused = fuse([evaluations[0].run, evaluations[-1].run], depth=depth)
    evaluations.append(evaluate(fused, collection, depth=depth, name="the same, fused with BM25"))
    return evaluations


class Stages:
    """Says what begins, with the time so far."""

    def __init__(self, start: float):
        self.start, self.number = start, 0

    def __call__(self, what: str) -> None:
        self.number += 1
        console.print(f"\n[bold]{self.number}. {what}[/bold]  ({duration(time.monotonic() - self.start)} so far)")
