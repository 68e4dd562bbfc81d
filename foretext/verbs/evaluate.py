"""`foretext evaluate`: the scores of retrievers, rerankers and finished runs, on one collection or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foretext.errors import UserError
from foretext.files import refuse_existing, whole_folder, write_json
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import Collection, read_collection
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.evaluate import Evaluation, averages, compare, mean_scores, table
from foretext.retrieval.evaluate import evaluate as score
from foretext.retrieval.fusion import fuse
from foretext.retrieval.qrels import read_qrels
from foretext.retrieval.quantize import RESCORE, Precision, checked_precision
from foretext.retrieval.rerank import CrossScorer, rerank
from foretext.retrieval.runs import Run, ranking, read_run
from foretext.retrieval.sts import correlate, read_scored_pairs, write_correlations
from foretext.training.distributed import World
from foretext.verbs.models import model_folder, open_encoder
from foretext.verbs.shared import SharedEncoder, shared

MEASURE = "nDCG@10"  # the one in whose difference retrievers are compared: BEIR's


@dataclass(frozen=True)
class Options:
    """How a retriever is evaluated, besides what and on what.

    Attributes:
        split: of the judgements.
        same_id: a document with the query's own id: "drop", "keep", or None to ask where it matters.
        hybrid: also BM25, and both fused.
        reranker: folder of a cross-encoder that orders the first `k` documents anew.
        precision, rescore, dimensions: see `retrieval.evaluate.evaluate`.
        dtype: see `models.open_encoder`.
    """

    split: str = "test"
    same_id: str | None = None
    hybrid: bool = False
    reranker: str | None = None
    k: int = 100
    precision: Precision = "float32"
    rescore: int = RESCORE
    dimensions: int | None = None
    dtype: str = "auto"


def evaluate(model: str, data: Sequence[str | Path] | str | Path, options: Options = Options(), output: str | Path | None = None,
             overwrite: bool = False) -> list[str]:
    """Score a model folder, or BM25 for the word `bm25`, on BEIR folders. Returns lines for a person, on the first process.

    Writes scores.json, per-query.tsv and run.trec into `output`, of several collections into a folder each, with average.json. Under
    torchrun the processes share out documents, queries and the pairs of a reranker; the first one writes.
    """
    folders = _folders(data, output, overwrite)
    checked_precision(options.precision)
    if options.k < 1:
        raise UserError(f"k = {options.k}: a reranker needs at least one document; the field's usual number is 100")
    world = World.join()
    encoder = None if model == "bm25" else shared(open_encoder(model, options.dtype, world.device), world)
    scorer = CrossScorer.load(model_folder(options.reranker), world.device) if options.reranker else None
    lines, finished = [], []
    for folder in folders:
        collection = read_collection(folder, split=options.split)
        evaluations = _evaluate(Path(model).name or model, encoder, scorer, collection, options, world)
        lines += [line for summary in collection.summaries for line in summary.report()]
        lines += table(evaluations, against=0, measure=MEASURE) if len(evaluations) > 1 else evaluations[0].lines()
        lines.append("")
        finished.append(evaluations)
    if len(finished) > 1:
        for of_one_retriever in zip(*finished):
            lines += [*averages(of_one_retriever), ""]
    if not world.first:
        return []
    if output:
        lines += _write(Path(output), [evaluations[-1] for evaluations in finished], overwrite)
    return lines[:-1] if not lines[-1] else lines


def _evaluate(name: str, encoder: TextEncoder | SharedEncoder | None, scorer: CrossScorer | None, collection: Collection,
              options: Options, world: World) -> list[Evaluation]:
    """First stage (BM25, encoder, both fused), then the reranked: what is asked for, in that order."""
    rules = {"split": options.split, "same_id": options.same_id, "share": world.share, "device": str(world.device)}
    evaluations = []
    if options.hybrid or encoder is None:
        evaluations.append(score(BM25(collection.documents), collection, name="BM25", **rules))
    if encoder is not None:
        small = {"precision": options.precision, "rescore": options.rescore, "dimensions": options.dimensions}
        if options.precision != "float32" or options.dimensions:
            vectors = encoder.encode(collection.documents, "document", show_progress=world.first)
            evaluations.append(score(encoder, collection, name=name, vectors=vectors, **rules))
            evaluations.append(score(encoder, collection, name=_small_name(name, options), vectors=vectors, **small, **rules))
        else:
            evaluations.append(score(encoder, collection, name=name, show_progress=world.first, **rules))
    if options.hybrid and encoder is not None:
        evaluations.append(score(fuse([evaluations[0].run, evaluations[-1].run]), collection, name="fused", **rules))
    if scorer is not None:
        first = evaluations[-1].run
        texts = dict(zip(collection.document_ids, collection.documents))
        mine = {query: ranked for number, (query, ranked) in enumerate(first.items()) if number % world.size == world.rank}
        parts = world.gather(rerank(scorer, mine, collection.queries, texts, options.k, world.first))
        again = {query: parts[number % world.size][query] for number, query in enumerate(first)}
        evaluations.append(score(above(again, first), collection, name=f"first {options.k:,} reranked", **rules))
    return evaluations


def above(again: Run, first: Run) -> Run:
    """The reranked documents, and beneath them those of the first stage that were not looked at, in their old order."""
    joined: Run = {}
    for query, ranked in first.items():
        top = again.get(query, {})
        lowest = min(top.values(), default=0.0)
        rest = [document for document in ranking(ranked) if document not in top]
        joined[query] = top | {document: lowest - place for place, document in enumerate(rest, start=1)}
    return joined


def _small_name(name: str, options: Options) -> str:
    parts = [f"{options.dimensions} dimensions"] if options.dimensions else []
    if options.precision != "float32":
        parts.append(options.precision + (f", rescored {options.rescore}x" if options.rescore else ""))
    return f"{name}, {', '.join(parts)}"


def evaluate_runs(runs: Sequence[str | Path], data: Sequence[str | Path] | str | Path, split: str = "test", same_id: str | None = None,
                  output: str | Path | None = None, overwrite: bool = False) -> list[str]:
    """Score run files (TREC, three or four columns) on one BEIR folder or qrels file; several are compared with the first."""
    folders = _folders(data, output, overwrite)
    if len(folders) != 1:
        raise UserError(f"a run belongs to one collection, and {len(folders)} are named; evaluate it on one of them")
    collection = read_collection(folders[0], split=split) if Path(folders[0]).is_dir() else judged_alone(folders[0], split)
    lines, evaluations = [], []
    for path in runs:
        run, summary = read_run(path)
        lines += summary.report()
        evaluations.append(score(run, collection, split, same_id=same_id, name=str(path)))
    lines = [line for summary in collection.summaries for line in summary.report()] + lines
    for evaluation in evaluations:
        lines += evaluation.lines()
    for other in evaluations[1:]:
        lines += ["", *compare(other, evaluations[0])]
    if not World.join().first:
        return []
    if output:
        if len(evaluations) == 1:
            lines += ["", *_write(Path(output), evaluations, overwrite)]
        else:
            with whole_folder(output, overwrite) as temporary:
                for number, evaluation in enumerate(evaluations, start=1):
                    evaluation.write(temporary / f"{number}-{Path(evaluation.name).name}")
            lines += ["", f"{output}: a folder per run, each with scores.json, per-query.tsv, run.trec"]
    return lines


def judged_alone(path: str | Path, split: str) -> Collection:
    """A collection of which only the judgements are there: enough to score a finished run."""
    qrels = read_qrels(path)
    documents = dict.fromkeys(document for judged in qrels.grades.values() for document in judged)
    queries = dict.fromkeys(qrels.grades, "")
    return Collection(Path(path).name, list(documents), [""] * len(documents), queries, {split: qrels}, [qrels.summary])


def evaluate_sts(model: str, data: Sequence[str | Path] | str | Path, output: str | Path | None = None, dimensions: int | None = None,
                 overwrite: bool = False, dtype: str = "auto") -> list[str]:
    """Correlate a model's similarities with people's scores of sentence pairs (csv, tsv or jsonl)."""
    files = _folders(data, output, overwrite)
    world = World.join()
    encoder = shared(open_encoder(model, dtype, world.device), world)
    name, lines, spearmans = Path(model).name or model, [], []
    for file in files:
        pairs = read_scored_pairs(file)
        found = correlate(encoder, pairs, dimensions)
        spearmans.append(found.spearman)
        lines += [*pairs.summary.report(), f"{name} on {Path(file).name}: {len(pairs.scores):,} pairs",
                  f"  Spearman     {found.spearman:.4f}   [{found.low:.4f}, {found.high:.4f}]", f"  Pearson      {found.pearson:.4f}"]
        if output and world.first:
            folder = Path(output) / _names(files)[len(spearmans) - 1] if len(files) > 1 else Path(output)
            write_correlations(folder, name, pairs, found, overwrite)
    if len(files) > 1:
        lines += ["", f"average Spearman of {len(files)} files: {sum(spearmans) / len(files):.4f}"]
    if not world.first:
        return []
    return lines + (["", f"{output}: scores.json, per-pair.tsv"] if output else [])


def _folders(data: Sequence[str | Path] | str | Path, output: str | Path | None, overwrite: bool) -> list[Path]:
    """What is evaluated on; says at once when nothing is named, something is missing, or the output is there already."""
    folders = [Path(data)] if isinstance(data, (str, Path)) else [Path(folder) for folder in data]
    if not folders:
        raise UserError("nothing to evaluate on; name a BEIR folder (corpus.jsonl, queries.jsonl, qrels/) after the model")
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: no such file or folder")
    if output:
        refuse_existing(output, overwrite)
    return folders


def _names(folders: Sequence[Path]) -> list[str]:
    """A folder name for each collection, numbered where two are called the same."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else f"{number}-{name}" for number, name in enumerate(names, start=1)]


def _write(output: Path, evaluations: list[Evaluation], overwrite: bool) -> list[str]:
    if len(evaluations) == 1:
        evaluations[0].write(output, overwrite)
        return [f"{output}: scores.json, per-query.tsv, run.trec"]
    names = _names([Path(evaluation.collection) for evaluation in evaluations])
    with whole_folder(output, overwrite) as temporary:
        for name, evaluation in zip(names, evaluations):
            evaluation.write(temporary / name)
        write_json(temporary / "average.json", {"name": evaluations[0].name, "collections": names, "average": mean_scores(evaluations)})
    return [f"{output}: average.json, and for each collection scores.json, per-query.tsv, run.trec"]
