"""Exact nearest neighbours over vectors in memory or on disk, and the fusion of rankings.

Legend: Q queries, N documents, D dimensions, R rows of a block.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json
from foretext.progress import progress
from foretext.retrieval.lanes import lanes_for, side_by_side
from foretext.retrieval.rounded import RoundedScan, TooMuchAlike, candidates_for
from foretext.retrieval.runs import Run, ranking
from foretext.retrieval.scan import Scan

BLOCK_ROWS = 32_768  # rows read at once
MANY = 128  # queries from which on rounding the documents for them all pays,
ROWS_PER_PLACE = 1000  # if there are as many documents for each of the k asked for: below, candidates take longer than products
LANE_ROWS = 16_384  # a lane for fewer costs more than it saves
RESCORED_TOGETHER = 1 << 20  # numbers of candidates that each thread takes to fp64 at once
SPARE = 16  # candidates kept beyond k, so that rounding inside the block products cannot push a true neighbour out


@dataclass(frozen=True)
class Vectors:
    """A folder of embeddings: `shards[s]` is (n_s, D), the rows are numbered through, `ids[i]` names row i."""

    shards: list[np.ndarray]
    ids: list[str]
    manifest: dict


def open_vectors(folder: str | Path) -> Vectors:
    """Open `vectors-*.npy` (memory-mapped) and `ids-*.txt` of the shards that `manifest.json` lists under `counts`.

    Without a manifest, or without counts in it, all shards there are, in order of name.

    Raises:
        UserError: no shards, one that is missing or without ids, or counts or dimensions that do not fit.
    """
    folder = Path(folder)
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
    paths = sorted(folder.glob("vectors-*.npy"), key=lambda path: path.name.encode())
    # Shards that were made side by side each wrote the manifest: what is finished says the shard's own file.
    finished = {str(s): read_json(folder / f"shard-{s}.json")["count"] for s in range(manifest.get("shards", 0))
                if (folder / f"shard-{s}.json").is_file()}
    counts = dict(sorted((manifest.get("counts", {}) | finished).items(), key=lambda item: int(item[0])))
    if "counts" in manifest and len(counts) < manifest.get("shards", 0):
        raise UserError(f"{folder}: only {len(counts)} of {manifest['shards']} shards are finished; encode the others")
    if counts:
        paths = [folder / f"vectors-{shard}.npy" for shard in counts]
    if not paths:
        raise UserError(f"{folder}: found no vectors-*.npy; is this a folder of embeddings?")
    shards, ids = [], []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: the manifest lists this shard, but it is missing; encode it again")
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
        names = path.with_name(path.name.replace("vectors-", "ids-", 1)).with_suffix(".txt")
        if not names.exists():
            raise UserError(f"{path}: the file with its ids, {names.name}, is missing")
        lines = names.read_bytes().decode("utf-8").split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        if shard.ndim != 2 or len(lines) != len(shard):
            raise UserError(f"{names}: expected {len(shard):,} ids for the vectors of shape {shard.shape}, found"
                            f" {len(lines):,}; encode the corpus again")
        shards.append(shard)
        ids += lines
    _check_shapes(shards, str(folder))
    return Vectors(shards, ids, manifest)


def search(queries: np.ndarray, vectors: np.ndarray | Sequence[np.ndarray], k: int, similarity: str = "dot",
           block_rows: int = BLOCK_ROWS, device: str = "cpu", show_progress: bool = False,
           rounded: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest documents of each query, exactly.

    Reads the vectors once, block by block, so that memory does not grow with them: for each lane (`lanes.py`) a block of rows, its
    candidates, and Q*(k + 16) numbers.
    Block products in fp32 choose k + 16 candidates, whose products are then taken again in fp64. So equal vectors have
    equal scores, and the result does not depend on block size, device or shards (unless more than 16 documents tie at
    the last place). Many queries are scanned with rounded products first (`rounded.py`) where these are fast, and again in
    fp32 if their neighbours are not certainly among the candidates: the result is the same.

    Args:
        queries: float (Q, D).
        vectors: float (N, D), an array or memmap, or a list of them, numbered through.
        similarity: "dot", or "cosine" (of vectors of any length; the zero vector has cosine 0 with all).
        device: where the products run, for example "cuda".
        rounded: scan with bf16 products first; None: at least 128 queries, 1,000 k documents, a CPU that multiplies bf16. Only on a CPU.

    Returns:
        scores float32 (Q, min(k, N)), falling, and document numbers int64 of the same shape; ties by document number.

    Raises:
        UserError: dimensions that do not fit, an unknown similarity, or numbers that are not finite.
    """
    import torch

    shards = [vectors] if isinstance(vectors, np.ndarray) else list(vectors)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    rows = _check_shapes(shards, "vectors")
    if similarity not in ("dot", "cosine"):
        raise UserError(f"similarity: expected dot or cosine, found {similarity!r}")
    if k < 1:
        raise UserError(f"k = {k}: expected at least 1")
    if queries.ndim != 2 or queries.shape[1] != shards[0].shape[1]:
        raise UserError(f"queries of shape {queries.shape} do not fit vectors of {shards[0].shape[1]} dimensions; were"
                        " both made by the same model?")
    if not np.isfinite(queries).all():
        number = np.argwhere(~np.isfinite(queries))[0, 0]
        raise UserError(f"the vector of query number {number} is not finite (nan or inf)")

    if not len(queries):
        return np.empty((0, min(k, rows)), np.float32), np.empty((0, min(k, rows)), np.int64)
    if rounded is None:
        rounded = device == "cpu" and len(queries) >= MANY and rows > ROWS_PER_PLACE * k and torch.cpu._is_avx512_bf16_supported()
    asked = torch.from_numpy(unit(queries) if similarity == "cosine" else queries).to(device)
    with _full_precision(), torch.inference_mode(), progress("searching", rows if show_progress else 0) as advance:

        lanes = lanes_for(rows, LANE_ROWS, torch.device(device))
        parts = lanes * -(-rows // (block_rows * lanes))

        def scanned(make: Callable):
            """What a scan finds in all rows; each lane has a scan of its own and takes part after part."""
            def read(part: int) -> None:
                lane, (mine, first) = threading.get_ident(), split_rows(shards, part, parts)
                if lane not in scans:
                    scans[lane] = make()
                for start, block in blocks(mine, block_rows):
                    scans[lane].add(torch.from_numpy(unit(block) if similarity == "cosine" else block).to(device), first + start)
                    if show_progress:
                        advance(len(block))

            scans: dict[int, Any] = {}
            for _ in side_by_side(read, range(parts), lanes):
                pass
            scan, *others = scans.values()
            for other in others:
                scan.join(other)
            return scan.candidates()

        keep = min(k + SPARE, rows)
        candidates = _by_rounded(asked, k, keep, scanned) if rounded and candidates_for(k) < rows else _by_fp32(asked, keep, scanned)
    return rescored(queries, shards, candidates, k, similarity)


def _by_rounded(asked, k: int, keep: int, scanned: Callable) -> np.ndarray:
    """Candidates by bf16 products; of queries that these cannot be certain about, by fp32 products."""
    try:
        numbers, certain = (found.numpy() for found in scanned(lambda: RoundedScan(asked, k)))
    except TooMuchAlike:
        return _by_fp32(asked, keep, scanned)
    if not certain.all():
        numbers = numbers.copy()
        numbers[~certain] = -1
        numbers[~certain, :keep] = _by_fp32(asked[~certain], keep, scanned)
    return numbers


def _by_fp32(asked, keep: int, scanned: Callable) -> np.ndarray:
    """Numbers of the `keep` best documents of each query."""
    return scanned(lambda: Scan(asked, keep)).cpu().numpy()


def rescored(queries: np.ndarray, shards: list[np.ndarray], candidates: np.ndarray, k: int,
             similarity: str) -> tuple[np.ndarray, np.ndarray]:
    """Products of each query with its candidates (Q, C) in fp64, and the best k of them; -1 is an empty place."""
    import torch

    k = min(k, candidates.shape[1])
    scores = np.empty((len(queries), k), dtype=np.float32)
    indices = np.empty((len(queries), k), dtype=np.int64)

    def rescore(some: slice) -> None:
        numbers, query = np.sort(candidates[some], axis=1), queries[some].astype(np.float64)
        numbers = numbers[:, min(int((numbers < 0).sum(axis=1).min()), numbers.shape[1] - k):]  # places that are empty for all
        documents = rows_of(shards, numbers).astype(np.float64)
        products = np.einsum("qcd,qd->qc", documents, query)  # row by row: a matrix product may round equal rows differently
        if similarity == "cosine":
            lengths = np.sqrt(np.einsum("qcd,qcd->qc", documents, documents) * (query * query).sum(axis=1, keepdims=True))
            products = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        products = np.where(numbers < 0, -np.inf, products).astype(np.float32)
        order = np.argsort(-products, axis=1, kind="stable")[:, :k]
        scores[some], indices[some] = np.take_along_axis(products, order, 1), np.take_along_axis(numbers, order, 1)

    together = max(1, min(16, RESCORED_TOGETHER // max(1, candidates.shape[1] * queries.shape[1])))
    parts = [slice(first, first + together) for first in range(0, len(queries), together)]
    with ThreadPoolExecutor(torch.get_num_threads()) if len(parts) > 1 else contextlib.nullcontext() as pool:
        list((pool.map if pool else map)(rescore, parts))
    return scores, indices


def rows_of(shards: Sequence[np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """The rows with these numbers (any shape): (..., D); any numbers in place of -1."""
    if len(shards) == 1:
        return shards[0][np.maximum(numbers, 0)]
    found = np.zeros((*numbers.shape, shards[0].shape[1]), np.result_type(*(shard.dtype for shard in shards)))
    start = 0
    for shard in shards:
        here = (numbers >= start) & (numbers < start + len(shard))
        found[here] = shard[numbers[here] - start]
        start += len(shard)
    return found


def split_rows(shards: Sequence[np.ndarray], part: int, parts: int) -> tuple[list[np.ndarray], int]:
    """The `part`-th (from 0) of `parts` equal runs of rows, as views, and the number of its first row."""
    rows = sum(map(len, shards))
    first, last = rows * part // parts, rows * (part + 1) // parts
    starts = np.cumsum([0] + [len(shard) for shard in shards])
    views = [shard[max(first - start, 0):max(last - start, 0)] for start, shard in zip(starts.tolist(), shards)]
    return [view for view in views if len(view)], first


def merge_found(scores: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k of results of several parts side by side, (Q, parts * k) with numbers through all parts; -1 is an empty place.

    Exactly what one search over everything finds: scores do not depend on the split, and ties go to the lower number there as here.
    """
    order = np.lexsort((indices, -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)


def blocks(shards: list[np.ndarray], block_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, float32 (R, D)) over all shards; small shards share a block."""
    start, pending, size = 0, [], 0
    for shard in shards:
        done = 0
        while done < len(shard):
            part = shard[done:done + block_rows - size]
            pending.append(part)
            size, done = size + len(part), done + len(part)
            if size == block_rows:
                yield start, _float32(pending)
                start, pending, size = start + size, [], 0
    if pending:
        yield start, _float32(pending)


def _float32(parts: list[np.ndarray]) -> np.ndarray:
    block = parts[0] if len(parts) == 1 else np.concatenate(parts)
    block = np.asarray(block, dtype=np.float32)
    return block if block.flags.writeable else block.copy()  # torch warns about read-only memory; a block is small


def unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _check_shapes(shards: Sequence[np.ndarray], where: str) -> int:
    """The number of rows of all shards."""
    shapes = [shard.shape for shard in shards]
    if not shapes or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise UserError(f"{where}: expected arrays of rows with the same number of dimensions, found shapes {shapes}")
    if not (rows := sum(shape[0] for shape in shapes)):
        raise UserError(f"{where}: there are no vectors to search")
    return rows


@contextlib.contextmanager
def _full_precision():
    """fp32 products in fp32, also where a training loop has allowed TF32 or bf16 for them."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def fuse(runs: Sequence[Run], k: int = 60, depth: int | None = None) -> Run:
    """Reciprocal rank fusion: a document's score is the sum over the runs of 1 / (k + rank), ranks from 1.

    Reference: Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet ..." (k = 60).

    Args:
        depth: how many documents per query are kept; default all.
    """
    fused: Run = {}
    for run in runs:
        for query, ranked in run.items():
            sums = fused.setdefault(query, {})
            for rank, document in enumerate(ranking(ranked), start=1):
                sums[document] = sums.get(document, 0.0) + 1 / (k + rank)
    # Nine digits, as run files hold, so that a fused run means the same after a round trip through a file.
    return {query: {document: float(f"{sums[document]:.9g}") for document in ranking(sums)[:depth]}
            for query, sums in fused.items()}
