"""`foretext evaluate`: a retriever's scores on a BEIR folder."""

from pathlib import Path

from foretext.files import refuse_existing
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import read_collection
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.evaluate import evaluate as score
from foretext.retrieval.evaluate import table
from foretext.retrieval.search import fuse
from foretext.verbs.pretrain import model_folder


def evaluate(model: str, data: str | Path, split: str = "test", output: str | Path | None = None, same_id: str | None = None,
             hybrid: bool = False, overwrite: bool = False) -> list[str]:
    """Score a model folder, or BM25 for the word `bm25`; with `hybrid` also BM25 and both fused. Returns lines for a person."""
    if output:
        refuse_existing(output, overwrite)
    collection = read_collection(data, split=split)
    options = {"split": split, "same_id": same_id}
    evaluations = []
    if hybrid or model == "bm25":
        evaluations.append(score(BM25(collection.documents), collection, name="BM25", **options))
    if model != "bm25":
        encoder = TextEncoder.load(model_folder(model))
        evaluations.append(score(encoder, collection, name=Path(model).name or model, show_progress=True, **options))
    if hybrid and model != "bm25":
        evaluations.append(score(fuse([e.run for e in evaluations]), collection, name="fused", **options))
    lines = [line for summary in collection.summaries for line in summary.report()]
    lines += table(evaluations, against=0, measure="nDCG@10") if hybrid and model != "bm25" else evaluations[-1].lines()
    if output:
        evaluations[-1].write(output, overwrite)
        lines += ["", f"{output}: scores.json, per-query.tsv, run.trec"]
    return lines
