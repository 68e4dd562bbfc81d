"""`foretext encode`, `index` and `search`: a searchable folder of vectors, and the best documents for a question."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from foretext.errors import UserError
from foretext.files import read_json, refuse_existing, whole_file, write_json
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import document_text, read_queries
from foretext.retrieval.documents import Documents
from foretext.retrieval.embed import encode_corpus
from foretext.retrieval.fusion import fuse
from foretext.retrieval.index import Index, build_index, open_index
from foretext.retrieval.rescore import best_of
from foretext.retrieval.runs import Run, as_run, read_run, write_run
from foretext.retrieval.search import ExactSearch
from foretext.retrieval.search import search as nearest
from foretext.retrieval.vectors import Vectors, open_vectors, split_rows
from foretext.text.corpus import Document
from foretext.training.distributed import World
from foretext.verbs.models import model_folder, open_encoder

CANDIDATES = 100  # of each ranking that a hybrid search fuses
RUN_DEPTH = 1000  # documents of each query in a run: recall is measured down to there


def encode(model: str | Path, documents: Iterable[Document], output: str | Path, shard: tuple[int, int] = (0, 1),
           half: bool = False, overwrite: bool = False, index: str | None = None, dtype: str = "auto") -> Path:
    """Embed documents with a model folder and keep their texts beside the vectors; interrupted, the same call goes on.

    Writes vectors-*.npy, ids-*.txt, manifest.json, documents.jsonl and, for hybrid search, bm25/ into `output`. Under torchrun each
    process embeds its part of the shard. Texts are read once and held only while BM25 counts their words.

    Args:
        shard: (i, n), i from 0: this call makes the i-th of n parts; the first also writes texts and bm25/.
        index: also build this kind of approximate index (see `build`); only where this call makes all parts.
        dtype: see `models.open_encoder`; parts of one folder are computed alike.
    """
    output, folder, world = Path(output), model_folder(model), World.join()
    part, parts = shard[0] * world.size + world.rank, shard[1] * world.size
    if index and shard[1] > 1:
        raise UserError(f"an index needs all vectors, and this call makes 1 of {shard[1]} parts; after the last, `foretext index {output}`")
    if not (output / "model.json").exists():
        refuse_existing(output, overwrite)
    documents = iter(documents)
    documents = chain([*islice(documents, 1)], documents)  # a file that is not there is said before anything is written
    world.wait()  # before the first of them writes
    encoder = open_encoder(folder, dtype, world.device)
    write_json(output / "model.json", {"model": str(Path(folder).resolve()) if Path(folder).is_dir() else folder})
    keep = part == 0 and (overwrite or not (output / "documents.jsonl").exists())
    # The texts get their name only after the vectors have theirs: a file that is there belongs to vectors that are there.
    with whole_file(output / "documents.jsonl", "w") if keep else nullcontext() as file:
        ids, texts = _columns(documents, file)
        encode_corpus(encoder, ids, texts, output, shard=(part, parts), half=half, overwrite=overwrite, show_progress=world.first)
    if part == 0 and (keep or not (output / "bm25").is_dir()):
        BM25(_texts(output / "documents.jsonl")).save(output / "bm25", overwrite=True)
    world.wait()
    if index and world.first and (overwrite or not (output / "ann").is_dir()):
        build(output, index, overwrite)
    return output


def _columns(documents: Iterable[Document], file) -> tuple[Iterator[str], Iterator[str]]:
    """Ids and texts of documents, read in step, each written to `file` on its way."""
    waiting: list[str] = []

    def ids() -> Iterator[str]:
        for document in documents:
            if file:
                record = {"_id": document.id, "title": document.title, "text": document.text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            waiting.append(document_text(document.title, document.text))
            yield document.id

    def texts() -> Iterator[str]:
        while waiting:
            yield waiting.pop()

    return ids(), texts()


def _texts(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="\n") as file:
        return [document_text(record["title"], record["text"]) for record in map(json.loads, file)]


def build(folder: str | Path, kind: str = "hnsw", overwrite: bool = False) -> list[str]:
    """Build an approximate index beside the vectors of a folder; lines for a person with its measured recall."""
    folder = _index_folder(folder)
    settings = build_index(folder, open_vectors(folder), kind, overwrite=overwrite).settings
    inner = {"hnsw": "efSearch"}.get(kind, "nprobe")
    size = (folder / "ann" / "index.faiss").stat().st_size
    return [f"{folder}/ann: {kind} over {settings['size']:,} vectors, {size / 1e6:,.1f} MB, {inner} {settings['breadth']:,}",
            f"recall@10 {settings['recall@10']:.3f} against exact search ({settings['probes']:,} documents asked for their neighbours)"]


@dataclass
class Hit:
    """One found document."""

    score: float
    id: str
    title: str
    text: str


class Searcher:
    """An opened folder that `encode` wrote (or a run folder with an index/): vectors, model, texts, and BM25 where it is wanted.

    Args:
        hold: for many exact searches, keep the vectors in memory in 8 bits as well (`ExactSearch`).

    Attributes:
        index: the approximate index, None where there is none or exact search is wanted.
        held: the vectors for exact searches, None where they are not held.
    """

    def __init__(self, folder: str | Path, exact: bool = False, world: World | None = None, hold: bool = False):
        self.folder = _index_folder(folder)
        self.vectors: Vectors = open_vectors(self.folder)
        # As the documents were, if this machine multiplies bf16: scores found on machines of one kind join to what one would have found.
        dtype = "auto" if self.vectors.manifest.get("compute_dtype") == "bfloat16" else "fp32"
        self.encoder = open_encoder(read_json(self.folder / "model.json")["model"], dtype)
        self.index: Index | None = None if exact else open_index(self.folder, self.vectors)
        self.held = ExactSearch(self.vectors.shards, self.encoder.similarity, hold=True) if hold and not self.index else None
        self.world = world or World.alone()
        self._bm25: BM25 | None = None
        self._documents: Documents | None = None

    def find(self, queries: Sequence[str], k: int, hybrid: bool = False, part: tuple[int, int] = (0, 1)) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, <= k) and numbers of the best documents; -1 is an empty place.

        Args:
            part: (i, n): only the i-th of n parts of the vectors is searched (exactly). Processes of a `World` split it further and join
                what they find.
        """
        size = len(self.vectors.ids)
        depth = min(max(k, CANDIDATES) if hybrid else k, size)
        asked = self.encoder.encode(list(queries), "query")
        whole = part[1] == self.world.size == 1
        if self.index and whole:
            found = self.index.search(asked, self.vectors, depth)
        elif self.held and whole:
            found = self.held.search(asked, depth)
        else:
            mine = part[0] * self.world.size + self.world.rank, part[1] * self.world.size
            rows, first = split_rows(self.vectors.shards, *mine)
            if rows:
                scores, indices = nearest(asked, rows, min(depth, sum(map(len, rows))), self.encoder.similarity)
                indices += first
            else:
                scores, indices = np.empty((len(asked), 0), np.float32), np.empty((len(asked), 0), np.int64)
            found = best_of(*(self._gathered(values) for values in (scores, indices)), depth)
        if not hybrid:
            return found
        self._bm25 = self._bm25 or BM25.load(self.folder / "bm25")
        return _fused([found, self._bm25.search(list(queries), depth)], k)

    def _gathered(self, columns: np.ndarray) -> np.ndarray:
        """The columns (Q, n) that all processes found, side by side."""
        rows, _ = self.world.gather_rows(torch.from_numpy(np.ascontiguousarray(columns.T)).to(self.world.device))
        return rows.cpu().numpy().T

    def search(self, queries: Sequence[str], k: int = 10, hybrid: bool = False) -> list[list[Hit]]:
        """The best `k` documents for each query."""
        scores, indices = self.find(queries, k, hybrid)
        return [[self._hit(score, row) for score, row in zip(*found) if row >= 0] for found in zip(scores.tolist(), indices.tolist())]

    def _hit(self, score: float, row: int) -> Hit:
        self._documents = self._documents or Documents(self.folder, self.vectors)
        record = self._documents[row]
        return Hit(score, record["_id"], record["title"], record["text"])


def _fused(found: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Reciprocal rank fusion of results by document number; scores are sums of 1 / (60 + rank)."""
    queries = len(found[0][0])
    runs = [{q: {row: score for score, row in zip(scores[q].tolist(), indices[q].tolist()) if row >= 0} for q in range(queries)}
            for scores, indices in found]
    scores, indices = np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)
    for q, ranked in fuse(runs, depth=k).items():
        scores[q, :len(ranked)], indices[q, :len(ranked)] = list(ranked.values()), list(ranked)
    return scores, indices


def _index_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    folder = folder / "index" if (folder / "index").is_dir() else folder
    if not (folder / "model.json").is_file():
        raise UserError(f"{folder}: nothing to search here; make it with `foretext encode MODEL TEXT... -o {folder}`")
    return folder


def search(folder: str | Path, queries: Sequence[str], k: int = 10, hybrid: bool = False, exact: bool = False) -> list[list[Hit]]:
    """The best `k` documents of a folder that `encode` wrote (or of a run folder with an index/) for each query.

    Args:
        hybrid: fuse the dense ranking with BM25's by reciprocal rank; scores are then sums of 1 / (60 + rank).
        exact: look at every vector even if there is an approximate index.
    """
    return Searcher(folder, exact).search(queries, k, hybrid)


def search_file(folder: str | Path, queries: str | Path, output: str | Path, k: int = RUN_DEPTH, hybrid: bool = False,
                exact: bool = False, shard: tuple[int, int] = (0, 1), overwrite: bool = False) -> list[str] | None:
    """Search for every query of a queries.jsonl and write a TREC run; under torchrun the processes share the vectors.

    Args:
        shard: (i, n): only the i-th of n parts of the vectors; `join` makes one run of the n, as if one search had found it.
    Returns:
        lines for a person; None on all processes but the first.
    """
    if hybrid and shard[1] > 1:
        raise UserError("--hybrid fuses whole rankings, and a shard has a part of one; search without it, or without --shard")
    refuse_existing(output, overwrite)
    texts, summary = read_queries(queries)
    world = World.join()
    searcher = Searcher(folder, exact, world)
    scores, indices = searcher.find(list(texts.values()), k, hybrid, shard)
    run = as_run(texts, searcher.vectors.ids, scores, indices)
    if world.first:
        write_run(output, run, escape_ids=True, overwrite=overwrite)
    world.wait()
    return [*summary.report(), f"{output}: up to {k:,} documents for each of {len(run):,} queries"] if world.first else None


def join(folder: str | Path, parts: Sequence[str | Path], output: str | Path, k: int = RUN_DEPTH, overwrite: bool = False) -> list[str]:
    """One run of the runs that searched parts of a folder's vectors: the best k, ties in the order of the folder."""
    refuse_existing(output, overwrite)
    place = {identifier: row for row, identifier in enumerate(open_vectors(_index_folder(folder)).ids)}
    joined: Run = {}
    for path in parts:
        for query, ranked in read_run(path)[0].items():
            if unknown := next((document for document in ranked if document not in place), None):
                raise UserError(f"{path}: the document {unknown!r} is not in {folder}; was another folder searched?")
            joined.setdefault(query, {}).update(ranked)
    for query, ranked in joined.items():
        best = sorted(ranked, key=lambda document: (-ranked[document], place[document]))[:k]
        joined[query] = {document: ranked[document] for document in best}
    write_run(output, joined, escape_ids=True, overwrite=overwrite)
    return [f"{output}: {len(parts)} parts joined, {len(joined):,} queries"]


def excerpt(text: str, width: int = 100) -> str:
    """The first words of a text on one line."""
    words = " ".join(text.split())
    return words if len(words) <= width else words[: width - 1].rsplit(" ", 1)[0] + "…"
