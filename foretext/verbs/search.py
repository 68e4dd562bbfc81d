"""`foretext encode` and `foretext search`: a searchable folder of vectors, and the best documents for a question."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foretext.errors import UserError
from foretext.files import read_json, refuse_existing, whole_file, write_json
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import document_text
from foretext.retrieval.embed import TextEncoder, encode_corpus
from foretext.retrieval.runs import as_run, ranking
from foretext.retrieval.search import fuse, open_vectors
from foretext.retrieval.search import search as nearest
from foretext.text.corpus import Document
from foretext.verbs.pretrain import model_folder

CANDIDATES = 100  # of each ranking that a hybrid search fuses


def encode(model: str | Path, documents: Sequence[Document], output: str | Path, shard: tuple[int, int] = (0, 1),
           half: bool = False, overwrite: bool = False) -> Path:
    """Embed documents with a model folder and keep their texts beside the vectors; interrupted, the same call goes on.

    Writes vectors-*.npy, ids-*.txt, manifest.json, documents.jsonl and, for hybrid search, bm25/ into `output`.
    """
    output, folder = Path(output), model_folder(model)
    if not (output / "model.json").exists():
        refuse_existing(output, overwrite)
    encoder = TextEncoder.load(folder)
    texts = [document_text(document.title, document.text) for document in documents]
    encode_corpus(encoder, [document.id for document in documents], texts, output, shard=shard, half=half, overwrite=overwrite)
    with whole_file(output / "documents.jsonl", "w") as file:
        for document in documents:
            file.write(json.dumps({"_id": document.id, "title": document.title, "text": document.text}, ensure_ascii=False) + "\n")
    BM25(texts).save(output / "bm25", overwrite=True)
    write_json(output / "model.json", {"model": str(Path(folder).resolve()) if Path(folder).is_dir() else folder})
    return output


@dataclass
class Hit:
    """One found document."""

    score: float
    id: str
    title: str
    text: str


def search(folder: str | Path, queries: Sequence[str], k: int = 10, hybrid: bool = False) -> list[list[Hit]]:
    """The best `k` documents of a folder that `encode` wrote (or of a run folder with an index/) for each query.

    Args:
        hybrid: fuse the dense ranking with BM25's by reciprocal rank; scores are then sums of 1 / (60 + rank).
    """
    folder = Path(folder)
    folder = folder / "index" if (folder / "index").is_dir() else folder
    if not (folder / "model.json").is_file():
        raise UserError(f"{folder}: nothing to search here; make it with `foretext encode MODEL TEXT... -o {folder}`")
    vectors, encoder = open_vectors(folder), TextEncoder.load(read_json(folder / "model.json")["model"])
    names = [str(i) for i in range(len(queries))]
    depth = min(max(k, CANDIDATES) if hybrid else k, len(vectors.ids))
    found = nearest(encoder.encode(list(queries), "query"), vectors.shards, depth, encoder.similarity)
    run = as_run(names, vectors.ids, *found)
    if hybrid:
        run = fuse([run, as_run(names, vectors.ids, *BM25.load(folder / "bm25").search(list(queries), depth))], depth=k)
    wanted = {document for ranked in run.values() for document in ranked}
    texts = {}
    with open(folder / "documents.jsonl", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if record["_id"] in wanted:
                texts[record["_id"]] = record
    return [[Hit(run[name][i], i, texts[i]["title"], texts[i]["text"]) for i in ranking(run[name])] for name in names]


def excerpt(text: str, width: int = 100) -> str:
    """The first words of a text on one line."""
    words = " ".join(text.split())
    return words if len(words) <= width else words[: width - 1].rsplit(" ", 1)[0] + "…"
