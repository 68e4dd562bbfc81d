"""The texts of a folder that `encode` wrote, each read when it is wanted."""

import json
import mmap
from pathlib import Path

import numpy as np

from foretext.errors import UserError
from foretext.retrieval.vectors import Vectors


class Documents:
    """`documents.jsonl` by number of a vector's row; memory holds 8 bytes per document."""

    def __init__(self, folder: str | Path, vectors: Vectors):
        """Open the file.

        Raises:
            UserError: it is missing, or has another number of lines than there are vectors.
        """
        path = Path(folder) / "documents.jsonl"
        if not path.is_file():
            raise UserError(f"{path}: missing; encode the documents again")
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._ends = _line_ends(self._bytes)
        if len(self._ends) != len(vectors.ids):
            raise UserError(f"{path}: {len(self._ends):,} documents for {len(vectors.ids):,} vectors; encode them again")
        self._manifest, self._sizes = vectors.manifest, [len(shard) for shard in vectors.shards]

    def __getitem__(self, row: int) -> dict:
        """`{"_id", "title", "text"}` of the document whose vector has this number."""
        line = self.line(row)
        start = int(self._ends[line - 1]) + 1 if line else 0
        return json.loads(self._bytes[start:int(self._ends[line])])

    def line(self, row: int) -> int:
        """Place in the file of the document of a vector: shard s of n holds every n-th chunk from the s-th."""
        shard = 0
        while row >= self._sizes[shard]:
            row, shard = row - self._sizes[shard], shard + 1
        shards, chunk = self._manifest.get("shards", 1), self._manifest.get("chunk", 1)
        return (shard + shards * (row // chunk)) * chunk + row % chunk


def _line_ends(data: mmap.mmap, step: int = 1 << 26) -> np.ndarray:
    """Where the line ends of a file are."""
    parts = [np.flatnonzero(np.frombuffer(data[start:start + step], np.uint8) == 10) + start for start in range(0, len(data), step)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
