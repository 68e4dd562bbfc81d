"""Search with small vectors: a byte or a bit per dimension instead of four bytes, and what that costs in quality.

    int8     each dimension's range over the corpus is cut into 256 steps; the first pass compares bytes with bytes
    binary   the sign of each dimension; the first pass is the Hamming distance
    rescore  both passes look at the same stored codes, but the second takes the query as it is, in floating point

References: Yamada, Asai and Hajishirzi 2021, "Efficient Passage Retrieval with Hashing" (binary candidates, rescored by the float query);
Shakir, Aarsen and Lee 2024, "Binary and Scalar Embedding Quantization for Significantly Faster & Cheaper Retrieval" (4 k candidates).

Q queries   N documents   D dimensions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from foretext.errors import UserError
from foretext.retrieval.rescore import rescored
from foretext.retrieval.search import search
from foretext.retrieval.vectors import BLOCK_ROWS, blocks, unit

Precision = Literal["float32", "int8", "binary"]
RESCORE = 4  # candidates per wanted document that the second pass looks at


@dataclass(frozen=True)
class Codes:
    """A corpus in few bits: document i is about `middle + step * rows[i]`."""

    rows: np.ndarray  # int8 (N, D); -1 and 1 if binary
    step: np.ndarray  # float32 (D,)
    middle: np.ndarray  # float32 (D,)
    similarity: str
    precision: Precision


def checked_precision(precision: str) -> Precision:
    """The precision, if it is one."""
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r}: there are {', '.join(get_args(Precision))}")
    return precision


def quantize(vectors: np.ndarray | Sequence[np.ndarray], precision: Precision, similarity: str = "cosine") -> Codes:
    """Turn vectors (N, D), or shards of them, into codes; the ranges of int8 are those of these very vectors.

    Args:
        similarity: with "cosine" lengths are made 1 first.
    """
    checked_precision(precision)
    shards = [vectors] if isinstance(vectors, np.ndarray) else list(vectors)
    rows = np.empty((sum(map(len, shards)), shards[0].shape[1]), np.int8)
    step, middle = np.ones(rows.shape[1], np.float32), np.zeros(rows.shape[1], np.float32)
    if precision == "int8":
        low, high = np.full_like(step, np.inf), np.full_like(step, -np.inf)
        for _, block in _ready(shards, similarity):
            np.minimum(low, block.min(axis=0), out=low)
            np.maximum(high, block.max(axis=0), out=high)
        step, middle = np.where(high > low, (high - low) / 254, 1).astype(np.float32), ((high + low) / 2).astype(np.float32)
    for start, block in _ready(shards, similarity):
        codes = np.rint((block - middle) / step) if precision == "int8" else np.where(block > 0, 1, -1)
        rows[start:start + len(block)] = codes
    return Codes(rows, step, middle, similarity, precision)


def _ready(shards: Sequence[np.ndarray], similarity: str):
    for start, block in blocks(shards, BLOCK_ROWS):
        yield start, unit(block) if similarity == "cosine" else block


def search_codes(queries: np.ndarray, codes: Codes, k: int, rescore: int = RESCORE,
                 show_progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents of each float query (Q, D) by their codes, as `search` returns them.

    Args:
        rescore: candidates of the first pass per wanted document, looked at again with the query in full precision; 0: one pass.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    queries = unit(queries) if codes.similarity == "cosine" else queries
    weights = queries * codes.step  # what one step of each dimension is worth to each query
    if codes.precision == "binary":
        asked, size = np.where(queries > 0, np.float32(1), np.float32(-1)), 1.0
    else:
        size = np.maximum(np.abs(weights).max(axis=1, keepdims=True, initial=0), np.finfo(np.float32).tiny) / 127
        asked = np.rint(weights / size)
    scores, indices = search(asked, codes.rows, k * max(rescore, 1), "dot", show_progress=show_progress)
    if rescore:
        scores, indices = rescored(weights, [codes.rows], indices, k, "dot")
    else:
        scores = scores * size
    return (scores + (queries @ codes.middle)[:, None]).astype(np.float32), indices
