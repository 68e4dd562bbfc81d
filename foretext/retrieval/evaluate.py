"""How well a retriever does on a collection: a table for people, scores per query, and a run anybody can score again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from foretext.errors import UserError
from foretext.files import whole_file, whole_folder, write_json
from foretext.progress import console, duration
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import Collection, Split, judged_split
from foretext.retrieval.metrics import MEASURES, SAMPLES, Scores, interval, measure_name, paired_difference, score
from foretext.retrieval.quantize import RESCORE, Precision, checked_precision, quantize, search_codes
from foretext.retrieval.runs import Run, as_run, ranking, write_run
from foretext.retrieval.search import search
from foretext.retrieval.vectors import Vectors
from foretext.summary import Policy, ReadSummary

DEPTH = 1000  # documents kept per query, as TREC and BEIR do


class Encoder(Protocol):
    """Anything that turns texts into vectors. Optional attribute `similarity`: "cosine" (default) or "dot"."""

    def encode(self, texts: list[str], kind: str) -> np.ndarray:
        """float32 (n, D); `kind` is "query" or "document"."""


Share = Callable[[Sequence, Callable[[Any], Any]], Any]  # (items, work) -> work(items), arrays with a row for each


def alone(items: Sequence, work: Callable[[Any], Any]) -> Any:
    """One process does everything."""
    return work(items)


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one retriever on one split."""

    name: str
    collection: str
    split: str
    scores: Scores
    run: Run
    options: dict  # everything that could change the scores
    notes: ReadSummary  # what happened between judgements and ranking
    seconds: float

    def means(self) -> dict[str, float]:
        """Mean of each measure over all judged queries."""
        return self.scores.means()

    def lines(self) -> list[str]:
        """For a person: the scores with 95 % intervals, then what was noteworthy."""
        out = [f"{self.name} on {self.collection}, split {self.split}: {len(self.scores.query_ids):,} queries in"
               f" {duration(self.seconds)}"]
        for measure, values in self.scores.values.items():
            spread = interval(values)
            out.append(f"  {measure:<12} {spread.mean:.4f}   [{spread.low:.4f}, {spread.high:.4f}]")
        return out + ["  " + line.strip() for line in self.notes.report()[1:]]

    def as_dict(self) -> dict:
        """Plain values for JSON, the scores of every query included."""
        spreads = {measure: interval(values) for measure, values in self.scores.values.items()}
        return {
            "name": self.name, "collection": self.collection, "split": self.split,
            "queries": len(self.scores.query_ids), "options": self.options,
            "scores": {measure: {"mean": s.mean, "low": s.low, "high": s.high} for measure, s in spreads.items()},
            "interval": {"level": 0.95, "kind": "percentile bootstrap over queries", "samples": SAMPLES},
            "notes": self.notes.as_dict(), "seconds": round(self.seconds, 3),
            "per_query": {query: {measure: float(values[i]) for measure, values in self.scores.values.items()}
                          for i, query in enumerate(self.scores.query_ids)},
        }

    def write(self, folder: str | Path, overwrite: bool = False, escape_ids: bool = False) -> None:
        """Write `scores.json`, `per-query.tsv` and `run.trec` into a new folder.

        Raises:
            UserError: the folder is not empty, or an id cannot be written to a TREC file (see `write_run`).
        """
        measures = list(self.scores.values)
        with whole_folder(folder, overwrite) as temporary:
            write_json(temporary / "scores.json", self.as_dict())
            with whole_file(temporary / "per-query.tsv", "w") as file:
                file.write("\t".join(["query-id", *measures]) + "\n")
                for i, query in enumerate(self.scores.query_ids):
                    values = (f"{self.scores.values[measure][i]:.6f}" for measure in measures)
                    file.write("\t".join([query, *values]) + "\n")
            write_run(temporary / "run.trec", self.run, "-".join(self.name.split()) or "foretext", escape_ids)


def evaluate(retriever: "Encoder | BM25 | Run", collection: Collection, split: str = "test", *,
             measures: Sequence[str] = MEASURES, depth: int = DEPTH, same_id: str | None = None,
             drop_missing_docs: bool = False, vectors: Vectors | np.ndarray | Sequence[np.ndarray] | None = None,
             precision: Precision = "float32", rescore: int = RESCORE, dimensions: int | None = None,
             device: str = "cpu", name: str | None = None, show_progress: bool = False, share: Share = alone) -> Evaluation:
    """Rank the corpus for every judged query and score the ranking.

    Args:
        retriever: an encoder (see `Encoder`), a `BM25` over `collection.documents`, or a finished run.
        depth: documents kept per query; measures with a larger cut-off are refused. A run is cut there too.
        same_id: what to do with a document that has the query's own id: "drop" it from the ranking (BEIR's rule, the
            default; right where queries are documents themselves) or "keep" it.
        drop_missing_docs: forget judgements of documents that are not in the corpus.
        vectors: the corpus's vectors if there are any already, in its order; else the encoder makes them.
        precision, rescore: search with the documents' vectors in a byte or a bit per dimension (`quantize.py`).
        dimensions: only the first so many of each vector are used, as Matryoshka models are trained to bear.
        device: where the products of the search run.
        name: how tables call the retriever.
        share: how several processes, which all call this alike, share out the queries (`training.distributed.World.share`).

    Raises:
        UserError: no such split, ids that do not fit, or a relevant document with the query's own id and no `same_id`.
    """
    began = time.monotonic()
    measures = list(dict.fromkeys(measure_name(measure) for measure in measures))
    for measure in measures:
        if (cut := measure.partition("@")[2]) and int(cut) > depth:
            raise UserError(f"{measure} needs {cut} documents per query, but depth is {depth}; raise depth")
    if same_id not in (None, "drop", "keep"):
        raise UserError(f"same_id: expected drop or keep, found {same_id!r}")
    asked = judged_split(collection, split, drop_missing_docs)
    drop = _drop_same_id(asked, same_id)
    notes = ReadSummary(f"{collection.name}, split {split}", collection.policy, len(collection.queries), unit="queries")
    notes.notes, notes.details = asked.summary.notes.copy(), asked.summary.details
    notes.skipped = asked.summary.skipped.copy()

    if isinstance(retriever, dict):
        run = _checked_run(retriever, asked, notes)
    else:
        small = _Small(checked_precision(precision), rescore, dimensions)
        run = _search(retriever, collection, asked, depth + drop, vectors, small, device, notes, show_progress, share)
    run = _cut(run, asked, depth, drop, notes)

    query_ids = _with_relevant(asked, collection.policy, notes)
    notes.accepted = len(query_ids)
    notes.close()
    return Evaluation(
        name or ("run" if isinstance(retriever, dict) else type(retriever).__name__), collection.name, split,
        score(asked.judgements, run, measures, query_ids), run,
        {"measures": measures, "depth": depth, "same_id": "drop" if drop else "keep",
         "drop_missing_docs": drop_missing_docs, "skip": sorted(collection.policy.skip),
         "strip_ids": collection.strip_ids, **(retriever.options if isinstance(retriever, BM25) else {}),
         **({"precision": precision, "rescore": rescore} if precision != "float32" else {}),
         **({"dimensions": dimensions} if dimensions else {}),
         **({"compute_dtype": str(dtype).removeprefix("torch.")} if (dtype := getattr(retriever, "compute_dtype", None)) else {})},
        notes, time.monotonic() - began)


@dataclass(frozen=True)
class _Small:
    """How the vectors are made smaller before the search."""

    precision: Precision
    rescore: int
    dimensions: int | None


def _search(retriever: "Encoder | BM25", collection: Collection, asked: Split, k: int, vectors, small: _Small, device: str,
            notes: ReadSummary, show_progress: bool, share: Share) -> Run:
    """The run of the whole corpus, k documents per query."""
    document_ids, size = collection.document_ids, len(collection.documents)
    k = min(k, size)
    if isinstance(retriever, BM25):
        if retriever.size != size:
            raise UserError(f"the BM25 index holds {retriever.size:,} documents, {collection.name} {size:,}; index it again")
        found = share(asked.query_texts, lambda some: retriever.search(some, k, show_progress))
        return as_run(asked.query_ids, document_ids, *found)
    if isinstance(vectors, Vectors):
        if sorted(vectors.ids) != sorted(document_ids):  # shards may bring them in another order
            raise UserError(f"the vectors' ids are not those of {collection.name}'s corpus; encode it again")
        document_ids, vectors = vectors.ids, vectors.shards
    # An encoder may have a progress bar of its own; others need not know the argument.
    options = {"show_progress": True} if show_progress else {}
    if vectors is None:
        if show_progress:
            console.print(f"encoding {size:,} documents of {collection.name}")
        vectors = retriever.encode(collection.documents, kind="document", **options)
        _note_cut(retriever, "documents", notes)
    shards = [vectors] if isinstance(vectors, np.ndarray) else list(vectors)
    if sum(map(len, shards)) != size:
        raise UserError(f"there are {sum(map(len, shards)):,} vectors for the {size:,} documents of {collection.name}")
    queries = retriever.encode(asked.query_texts, kind="query")
    _note_cut(retriever, "queries", notes)
    similarity = getattr(retriever, "similarity", "cosine")
    if small.dimensions:
        if not 1 <= small.dimensions <= queries.shape[1]:
            raise UserError(f"dimensions {small.dimensions}: the vectors have {queries.shape[1]}; choose 1 to {queries.shape[1]}")
        queries, shards = queries[:, :small.dimensions], [shard[:, :small.dimensions] for shard in shards]
    if small.precision == "float32":
        found = share(queries, lambda some: search(some, shards, k, similarity, device=device, show_progress=show_progress))
    else:
        codes = quantize(shards, small.precision, similarity)
        found = share(queries, lambda some: search_codes(some, codes, k, small.rescore, show_progress))
    return as_run(asked.query_ids, document_ids, *found)


def _note_cut(encoder: Encoder, what: str, notes: ReadSummary) -> None:
    """Count the texts that did not fit, from an encoder that tells (`last_cut`: texts, tokens)."""
    texts, tokens = getattr(encoder, "last_cut", (0, 0))
    if texts:
        notes.note("too_long", detail=f"{texts:,} {what}, {tokens:,} tokens cut off", count=texts)


def _drop_same_id(asked: Split, same_id: str | None) -> bool:
    """Whether documents with the query's own id leave the ranking."""
    if same_id is None:
        for query, judged in asked.judgements.items():
            if judged.get(query, 0) > 0:
                raise UserError(f"{asked.summary.source}: document {query!r} is judged relevant for the query {query!r} of"
                                " the same id (same_id); choose same_id keep if queries and documents are numbered"
                                " separately, or drop if they are the same texts")
    return same_id != "keep"


def _checked_run(run: Run, asked: Split, notes: ReadSummary) -> Run:
    """The part of a finished run that is judged."""
    trimmed = {query.strip(): query for query in run}
    for query in asked.query_ids:
        if query not in run and (meant := trimmed.get(query.strip())) is not None:
            raise notes.stop("id_trim", None, f"the query {query!r} is not in the run, but {meant!r} is",
                             mend="make them equal, or set strip_ids")
    if not any(query in run for query in asked.query_ids):
        some = next(iter(run), None)
        raise UserError(f"{notes.source}: the run has none of the judged queries (judged: {asked.query_ids[0]!r}, in the"
                        f" run: {some!r}); is it of another collection or split?")
    return {query: run[query] for query in asked.query_ids if query in run}


def _cut(run: Run, asked: Split, depth: int, drop: bool, notes: ReadSummary) -> Run:
    """At most `depth` documents per query, best first, without those that have the query's own id if `drop`."""
    out: Run = {}
    for query in asked.query_ids:
        ranked = run.get(query, {})
        if not ranked:
            notes.note("query_not_in_run", detail=repr(query))
            continue
        order = ranking(ranked)
        if drop and query in ranked:
            notes.note("same_id", detail=repr(query))
            order.remove(query)
        out[query] = {document: ranked[document] for document in order[:depth]}
    return out


def _with_relevant(asked: Split, policy: Policy, notes: ReadSummary) -> list[str]:
    """The queries that are scored: all, or, with `skip: [no_relevant]`, those with a relevant document."""
    without = {query for query, judged in asked.judgements.items() if not any(grade > 0 for grade in judged.values())}
    for query in sorted(without):
        if "no_relevant" in policy.skip:
            notes.skip("no_relevant", detail=repr(query))
        else:
            notes.note("no_relevant", detail=repr(query))
    return [query for query in asked.query_ids if not (query in without and "no_relevant" in policy.skip)]


def table(evaluations: Sequence[Evaluation], against: int | None = None, measure: str | None = None) -> list[str]:
    """Lines that compare retrievers on one split: all measures, and for one measure the interval of the difference.

    Args:
        against: which evaluation the others are compared with (its place in the list); None compares nothing.
        measure: the measure compared; default the first.
    """
    measures = list(evaluations[0].scores.values)
    measure = measure_name(measure or measures[0])
    head = ["", *measures]
    rows = [[e.name, *(f"{value:.3f}" for value in e.means().values())] for e in evaluations]
    if against is not None:
        base = evaluations[against]
        head.append(f"{measure} - that of {base.name} [95 %]")
        for row, e in zip(rows, evaluations):
            if e is base:
                row.append("")
                continue
            d = paired_difference(e.scores, base.scores, measure)
            row.append(f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]{' *' if d.excludes_zero() else ''}")
    out = _columns([head, *rows])
    if against is not None:
        out.append("* the interval (paired bootstrap over queries) excludes 0")
    return out


def averages(evaluations: Sequence[Evaluation]) -> list[str]:
    """Lines with one retriever's scores on several collections and their plain average, as BEIR reports it."""
    rows = [[e.collection, *(f"{value:.4f}" for value in e.means().values())] for e in evaluations]
    rows.append(["average", *(f"{value:.4f}" for value in mean_scores(evaluations).values())])
    return _columns([[evaluations[0].name, *evaluations[0].scores.values], *rows])


def mean_scores(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """The mean over collections of each measure: every collection counts the same, whatever its number of queries."""
    return {measure: float(np.mean([e.means()[measure] for e in evaluations])) for measure in evaluations[0].scores.values}


def compare(ours: Evaluation, theirs: Evaluation) -> list[str]:
    """Lines with every measure of two rankings of the same queries, and the interval of the difference (ours - theirs)."""
    rows = [["", theirs.name, ours.name, "difference [95 %]", "better / equal / worse"]]
    for measure in ours.scores.values:
        d = paired_difference(ours.scores, theirs.scores, measure)
        place = {query: i for i, query in enumerate(theirs.scores.query_ids)}
        gains = ours.scores.values[measure] - theirs.scores.values[measure][[place[query] for query in ours.scores.query_ids]]
        rows.append([measure, f"{theirs.means()[measure]:.4f}", f"{ours.means()[measure]:.4f}",
                     f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]{' *' if d.excludes_zero() else '  '}",
                     f"{(gains > 0).sum()} / {(gains == 0).sum()} / {(gains < 0).sum()} queries"])
    return [*_columns(rows), "* the interval (paired bootstrap over queries) excludes 0"]


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows under a head, the first column at the left and the others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    out = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows]
    return [out[0], "-" * max(map(len, out)), *out[1:]]
