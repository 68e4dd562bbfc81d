"""Scores of candidates, taken exactly, and the best of them.

Legend: Q queries, C candidates of each, D dimensions.
"""

import numpy as np
import torch

from foretext.retrieval.best import keys_of, numbers_of, scores_of, sorted_keys
from foretext.retrieval.lanes import lanes_for, side_by_side
from foretext.retrieval.vectors import rows_of

TOGETHER = 8  # queries whose candidates are read at once
BY_LANE = 32  # queries: a lane for fewer costs more than it saves


def rescored(queries: np.ndarray, shards: list[np.ndarray], candidates: np.ndarray, k: int,
             similarity: str) -> tuple[np.ndarray, np.ndarray]:
    """Products of each query with its candidates (Q, C) in fp64, and the best k of them; -1 is an empty place."""
    return best_of(products(queries, shards, candidates, similarity), candidates, k)


def products(queries: np.ndarray, shards: list[np.ndarray], candidates: np.ndarray, similarity: str,
             dtype: type = np.float64) -> np.ndarray:
    """(Q, C): of each query (Q, D) with its candidates, numbers (Q, C) of rows of the shards, in fp64 or fp32; -1 has -inf."""
    found = np.empty(candidates.shape, dtype)

    def score(some: slice) -> None:
        query, documents = queries[some].astype(dtype, copy=False), rows_of(shards, candidates[some]).astype(dtype, copy=False)
        scores = np.einsum("qcd,qd->qc", documents, query)  # row by row: a matrix product may round equal rows differently
        if similarity == "cosine":
            lengths = np.sqrt(np.einsum("qcd,qcd->qc", documents, documents) * (query * query).sum(axis=1, keepdims=True))
            scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
        found[some] = np.where(candidates[some] < 0, -np.inf, scores)

    parts = [slice(first, first + TOGETHER) for first in range(0, len(queries), TOGETHER)]
    for _ in side_by_side(score, parts, lanes_for(len(queries), BY_LANE, torch.device("cpu"))):
        pass
    return found


def best_of(scores: np.ndarray, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k of candidates (Q, C): scores in fp32, falling, and numbers; -1 is an empty place.

    Of results of several parts side by side, with numbers through all parts, exactly what one search over everything finds: scores do not
    depend on the split, and ties go to the lower number there as here.
    """
    keys = sorted_keys(keys_of(torch.from_numpy(scores.astype(np.float32)), torch.from_numpy(numbers)))[:, -k:].flip(1)
    return scores_of(keys).numpy(), numbers_of(keys).numpy()
