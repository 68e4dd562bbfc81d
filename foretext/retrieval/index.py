"""An approximate index beside the vectors of a folder: kinds and search as in `approximate.py`, kept on disk, its recall measured.

How many neighbours it misses is measured when it is built, and its search widened until they are few.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json, whole_folder, write_json
from foretext.progress import progress
from foretext.retrieval.approximate import LEAST_CODED, LINKS, Kind, candidates, cells_for, code_bytes, empty_index, load_faiss, sample_size
from foretext.retrieval.rescore import rescored
from foretext.retrieval.search import search
from foretext.retrieval.vectors import Vectors, blocks, rows_of, unit

BLOCK = 16_384  # vectors added at once
PROBES = 500  # documents asked for their neighbours to measure the recall


@dataclass(frozen=True)
class Index:
    """An opened index. `settings` is what index.json says: kind, sizes, breadth of the search, measured recall."""

    faiss: Any
    settings: dict

    def search(self, queries: np.ndarray, vectors: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
        """About the k nearest of each query (Q, D), in the form of `search.search`; -1 where fewer were found."""
        similarity = self.settings["similarity"]
        found = candidates(self.faiss, self.settings["kind"], _ready(queries, similarity), k, self.settings["breadth"])
        return rescored(np.asarray(queries, np.float32), vectors.shards, found, k, similarity)


def build_index(folder: str | Path, vectors: Vectors, kind: Kind, target: float = 0.95, overwrite: bool = False,
                seed: int = 0) -> Index:
    """Build an index over a folder's vectors, save it in `ann/`, and measure recall@10 against exact search.

    The breadth of the search (nprobe, efSearch) is doubled until the recall reaches `target` or everything is looked at.

    Raises:
        UserError: FAISS is missing, an unknown kind, too few vectors for it, or there is an index already.
    """
    if kind not in get_args(Kind):
        raise UserError(f"index {kind!r}: there are {', '.join(get_args(Kind))}")
    similarity = vectors.manifest.get("similarity", "cosine")
    size, dimension = len(vectors.ids), vectors.shards[0].shape[1]
    if kind == "ivfpq" and size < LEAST_CODED:
        raise UserError(f"ivfpq learns its codes from at least {LEAST_CODED:,} vectors, and {folder} has {size:,}; use hnsw, "
                        "or search exactly")
    index = empty_index(kind, size, _ready(_rows(vectors, sample_size(size), seed), similarity))
    with progress(f"building {kind}", size) as advance:
        for _, block in blocks(vectors.shards, BLOCK):
            index.add(_ready(block, similarity))
            advance(len(block))
    settings = {"format": 1, "kind": kind, "similarity": similarity, "size": size, "dimension": dimension, "made_of": _made_of(folder)}
    settings |= {"links": LINKS} if kind == "hnsw" else {"cells": cells_for(size)}
    settings |= {"bytes_per_vector": code_bytes(dimension)} if kind == "ivfpq" else {}
    settings = _measured(index, settings, vectors, target, seed)
    with whole_folder(Path(folder) / "ann", overwrite) as temporary:
        load_faiss().write_index(index, str(temporary / "index.faiss"))
        write_json(temporary / "index.json", settings)
    return Index(index, settings)


def open_index(folder: str | Path, vectors: Vectors) -> Index | None:
    """The index beside a folder's vectors; None if there is none.

    Raises:
        UserError: it was made of other vectors, or FAISS is missing.
    """
    place = Path(folder) / "ann"
    if not (place / "index.json").is_file():
        return None
    settings = read_json(place / "index.json")
    if settings["made_of"] != _made_of(folder) or settings["size"] != len(vectors.ids):
        raise UserError(f"{place}: this index was made of other vectors; make it again with `foretext index {folder} --kind "
                        f"{settings['kind']} --overwrite`, or search with --exact")
    return Index(load_faiss().read_index(str(place / "index.faiss")), settings)


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of `exact (Q, k)` that is in `found (Q, k)`."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), exact.tolist())]))


def _measured(index, settings: dict, vectors: Vectors, target: float, seed: int) -> dict:
    """`settings` with the breadth that reaches `target`, and the recall it has.

    Documents ask for their ten nearest others: themselves, whom any index finds, do not count.
    """
    k = min(10, settings["size"] - 1)
    if not k:
        return settings | {"breadth": 1, "recall@10": 1.0, "probes": 0}
    draw = np.random.default_rng(seed)
    rows = np.sort(draw.choice(settings["size"], min(PROBES, settings["size"]), replace=False))
    asked = rows_of(vectors.shards, rows).astype(np.float32, copy=False)
    wanted = _without_self(search(asked, vectors.shards, k + 1, settings["similarity"])[1], rows)
    most = settings["size"] if settings["kind"] == "hnsw" else settings["cells"]
    breadth = min(2 * k if settings["kind"] == "hnsw" else 1, most)
    while True:
        settings = settings | {"breadth": breadth}
        found = Index(index, settings).search(asked, vectors, k + 1)[1]
        settings["recall@10"] = round(recall(_without_self(found, rows), wanted), 4)
        if settings["recall@10"] >= target or breadth == most:
            return settings | {"probes": len(rows)}
        breadth = min(2 * breadth, most)


def _without_self(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Each row of `found (Q, k + 1)` without its own number, or else without its last: (Q, k)."""
    keep = found != rows[:, None]
    keep[keep.all(axis=1), -1] = False
    return found[keep].reshape(len(found), -1)


def _ready(rows: np.ndarray, similarity: str) -> np.ndarray:
    rows = np.ascontiguousarray(rows, np.float32)
    return unit(rows) if similarity == "cosine" else rows


def _rows(vectors: Vectors, most: int, seed: int) -> np.ndarray:
    """All vectors, or `most` of them drawn."""
    size = len(vectors.ids)
    rows = np.arange(size) if size <= most else np.sort(np.random.default_rng(seed).choice(size, most, replace=False))
    return rows_of(vectors.shards, rows)


def _made_of(folder: str | Path) -> str:
    """A hash that changes when the vectors do: `encode` writes what it embedded, and with what, into these files."""
    digest = hashlib.sha256()
    for path in [Path(folder) / "manifest.json", *sorted(Path(folder).glob("shard-*.json"))]:
        if path.is_file():
            content = read_json(path)
            content.pop("counts", None)  # rewritten by every shard that ends
            digest.update(repr(sorted(content.items())).encode())
    return digest.hexdigest()
