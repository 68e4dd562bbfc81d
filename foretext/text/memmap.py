"""Token files of marge-pytorch: headerless memory maps of equally long documents, their masks, and neighbours."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foretext.errors import UserError
from foretext.text.batches import Documents
from foretext.text.clusters import ClusterSource, texts_of
from foretext.text.evidence import Clusters

PADDING = 0


class MemmapDocuments:
    """Rows of an int32 file `(documents, length)`, special tokens not included, real where the mask says so.

    Args:
        path: little-endian int32, C order, without a header.
        shape: (documents, length).
        mask: a file of bools of the same shape, True = a real token; None: every token is real.
        zero_is_padding: without a mask, id 0 is padding.
    Raises:
        UserError: a file of another size (`memmap_size`), or a document without a real token.
    """

    def __init__(self, path: str | Path, shape: tuple[int, int], mask: str | Path | None = None, zero_is_padding: bool = False):
        self.path = Path(path)
        self.ids = open_map(self.path, np.dtype("<i4"), shape)
        self.mask = open_map(Path(mask), np.dtype(bool), shape) if mask else None
        self.zero_is_padding = zero_is_padding
        self.lengths = np.concatenate([self.real(np.arange(i, min(i + 65_536, shape[0]))).sum(1) for i in range(0, shape[0], 65_536)])
        if not self.lengths.all():
            raise UserError(f"{self.path}: document {int(self.lengths.argmin())} has no real token: leave such documents out of the file")
        self.documents = np.arange(shape[0])

    def real(self, rows: np.ndarray) -> np.ndarray:
        """(n, length) bool, True = a real token."""
        if self.mask is not None:
            return np.asarray(self.mask[rows])
        return self.ids[rows] != PADDING if self.zero_is_padding else np.ones((len(rows), self.ids.shape[1]), bool)

    def read(self, rows: np.ndarray, keys: Tensor) -> Documents:
        ids = self.ids[rows][self.real(rows)].astype(np.int64)
        return Documents(torch.from_numpy(ids), torch.from_numpy(self.lengths[rows]), keys, torch.from_numpy(self.documents[rows]))


def memmap_source(documents: MemmapDocuments, targets: MemmapDocuments | None = None, knn: str | Path | None = None,
                  num_evidence: int | None = None) -> ClusterSource:
    """Clusters to be made of such files; with `knn` they are there at once.

    Args:
        targets: what is rebuilt, where that is not the documents themselves.
        knn: int32 neighbours, one row of `num_evidence` for each target (or for each document: the first rows count); -1: none.
    Raises:
        UserError: neighbours of another size, or beyond the documents (`knn_range`).
    """
    evidence = texts_of(documents, documents.documents)
    source = ClusterSource(evidence if targets is None else texts_of(targets, -1 - targets.documents), evidence)
    if knn is None:
        return source
    path, count, length = Path(knn), len(source.targets), num_evidence
    if not length:
        raise UserError(f"{path}: say how many neighbours each row has (num_evidence)")
    size, rows = path.stat().st_size, max(count, len(evidence))
    found = open_map(path, np.dtype("<i4"), (rows if size == rows * length * 4 else count, length))[:count]
    if (found >= len(evidence)).any() or (found < -1).any():
        row = int(((found >= len(evidence)) | (found < -1)).any(1).argmax())
        raise UserError(f"{path}: row {row} names document {int(found[row].max())}, but there are {len(evidence):,}: make the neighbours "
                        "again")
    places = found.astype(np.int64)
    own = source.targets.numbers[:, None] == source.evidence.numbers[places]
    groups = [([target], row[keep].tolist()) for target, (row, keep) in enumerate(zip(places, (places >= 0) & ~own)) if keep.any()]
    return ClusterSource(source.targets, source.evidence, Clusters.of(groups))


def open_map(path: Path, dtype: np.dtype, shape: tuple[int, int]) -> np.ndarray:
    """The file as an array, if its size says that it is one of this shape."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    expected, size = shape[0] * shape[1] * dtype.itemsize, path.stat().st_size
    if size != expected or not size:
        raise UserError(f"{path}: memmap_size: expected {expected:,} bytes for {shape[0]:,} rows of {shape[1]:,}, found {size:,}; "
                        "give the shape the file was written with")
    return np.memmap(path, dtype, mode="r", shape=shape)
