"""Clusters of targets and their evidence as training examples; who belongs to whom is made anew now and then (MARGE)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from foretext.text.batches import Documents, Source
from foretext.text.evidence import Clusters

Rows = Mapping[str, np.ndarray]  # what a checkpoint keeps of an arrangement


@dataclass(frozen=True)
class Texts:
    """The texts on one side, to be read and told apart.

    Attributes:
        source: where they are read.
        rows: (n,) which of its rows they are.
        numbers: (n,) int64, equal for texts that must not see each other, on both sides.
        languages: (n,) int64.
        shards: (n,) int64; links stay inside one shard.
    """

    source: Source
    rows: np.ndarray
    numbers: np.ndarray
    languages: np.ndarray
    shards: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each, special tokens not included."""
        return self.source.lengths[self.rows]

    def read(self, places: np.ndarray, keys: Tensor) -> Documents:
        return self.source.read(self.rows[places], keys)


@dataclass(frozen=True)
class Related:
    """C examples: each a cluster of Nt targets and the M evidence texts they are to be rebuilt from, cluster by cluster."""

    targets: Documents
    evidence: Documents
    target_counts: Tensor  # (C,)
    evidence_counts: Tensor  # (C,)
    target_numbers: Tensor  # (Nt,) see `Texts.numbers`
    evidence_numbers: Tensor  # (M,)
    languages: Tensor  # (Nt,) of the targets


class ClusterSource:
    """Examples that are clusters. Before `arranged` nobody knows the clusters, and only the texts can be read.

    Attributes:
        lengths: (C,) tokens of each cluster; before it is arranged, of each target.
    """

    def __init__(self, targets: Texts, evidence: Texts, clusters: Clusters | None = None):
        self.targets, self.evidence, self.clusters = targets, evidence, clusters
        if clusters is None:
            self.lengths = targets.lengths
            return
        self._targets, self._evidence = (np.cumsum(counts) - counts for counts in (clusters.target_counts, clusters.evidence_counts))
        sums = [np.add.reduceat(side.lengths[places], starts) if len(starts) else np.empty(0, np.int64) for side, places, starts in (
            (targets, clusters.targets, self._targets), (evidence, clusters.evidence, self._evidence))]
        self.lengths = sums[0] + sums[1]

    def arranged(self, rows: Rows) -> "ClusterSource":
        """The same texts in the clusters that `rows` hold (see `rows_of_clusters`)."""
        return ClusterSource(self.targets, self.evidence, Clusters(**rows))

    def read(self, rows: np.ndarray, keys: Tensor) -> Related:
        assert self.clusters is not None, "no clusters yet: refresh first"
        c = self.clusters
        places, counts, owners = [], [], []
        for starts, sizes, all_places in ((self._targets, c.target_counts, c.targets), (self._evidence, c.evidence_counts, c.evidence)):
            size = sizes[rows]
            ends = np.cumsum(size)
            inside = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - size, size)
            places.append(all_places[np.repeat(starts[rows], size) + inside])
            counts.append(torch.from_numpy(size))
            owners.append(torch.from_numpy(np.repeat(np.arange(len(rows)), size)))
        numbers = [torch.from_numpy(side.numbers[where]) for side, where in zip((self.targets, self.evidence), places)]
        return Related(self.targets.read(places[0], keys[owners[0]]), self.evidence.read(places[1], keys[owners[1]]), *counts, *numbers,
                       torch.from_numpy(self.targets.languages[places[0]]))


def rows_of_clusters(clusters: Clusters) -> dict[str, np.ndarray]:
    """What `ClusterSource.arranged` takes."""
    return {name: getattr(clusters, name) for name in ("targets", "target_counts", "evidence", "evidence_counts")}


def texts_of(source: Source, numbers: np.ndarray, languages: np.ndarray | None = None, shards: np.ndarray | None = None) -> Texts:
    """All rows of a source, by default of one language and in one shard."""
    zeros = np.zeros(len(source.lengths), np.int64)
    return Texts(source, np.arange(len(zeros)), numbers, zeros if languages is None else languages, zeros if shards is None else shards)


def chosen(texts: Texts, which: np.ndarray) -> Texts:
    """Some of the texts."""
    parts = {name: getattr(texts, name)[which] for name in ("rows", "numbers", "languages", "shards")}
    return replace(texts, **parts)


def by_document(documents: np.ndarray, key: Callable[[int], int]) -> np.ndarray:
    """`key` of each text's document, asked once for each document: int64 (n,)."""
    names, which = np.unique(documents, return_inverse=True)
    return np.array([key(int(name)) for name in names], np.int64)[which]
