"""Vectors in memory or on disk, one array or several numbered through: opened, and read block by block.

Legend: N documents, D dimensions, R rows of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json

BLOCK_ROWS = 32_768  # rows read at once


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
        # "c": memory that may be written to, though never the file, is what torch takes as it is; read-only rows would be copied.
        shard = np.load(path, mmap_mode="c", allow_pickle=False)
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
    check_shapes(shards, str(folder))
    return Vectors(shards, ids, manifest)


def rows_of(shards: Sequence[np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """The rows with these numbers (any shape): (..., D); any numbers in place of -1."""
    if len(shards) == 1:
        return np.take(shards[0], numbers, axis=0, mode="clip")
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
    block = np.ascontiguousarray(block, dtype=np.float32)
    return block if block.flags.writeable else block.copy()  # torch warns about read-only memory; a block is small


def unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def check_shapes(shards: Sequence[np.ndarray], where: str) -> int:
    """The number of rows of all shards."""
    shapes = [shard.shape for shard in shards]
    if not shapes or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise UserError(f"{where}: expected arrays of rows with the same number of dimensions, found shapes {shapes}")
    if not (rows := sum(shape[0] for shape in shapes)):
        raise UserError(f"{where}: there are no vectors to search")
    return rows
