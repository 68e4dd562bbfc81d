"""Nearest neighbours without looking at every vector, through FAISS (extra `ann`): it finds candidates, whose scores are then exact.

    hnsw      a graph of near neighbours; fastest, holds all vectors in memory: N * (4 D + 256) bytes
    ivfflat   vectors in cells around centroids; looks into a few cells
    ivfpq     the same with vectors in D / 4 bytes: for corpora that do not fit in memory otherwise

Candidates are ranked by their products with the vectors themselves, so a score is that of exact search and only what is never looked at
can be missed.

References: Malkov and Yashunin (arXiv 1603.09320, HNSW); Jégou, Douze and Schmid 2011 (IVF, product quantisation); Douze et al.
(arXiv 2401.08281, FAISS, and its guide to choosing an index: 4 sqrt(N) cells, at least 39 vectors to train a centroid).
"""

from typing import Any, Literal

import numpy as np

from foretext.errors import UserError
from foretext.retrieval.rescore import rescored

Kind = Literal["hnsw", "ivfflat", "ivfpq"]

PER_CENTROID = (39, 256)  # vectors that train a centroid: FAISS's least, and more than this many change nothing
LEAST_CODED = 256 * PER_CENTROID[0]  # vectors that product codes are learned from
LINKS, BREADTH = 32, 200  # HNSW's M and efConstruction
CANDIDATES = {"hnsw": 1, "ivfflat": 1, "ivfpq": 8}  # per wanted document; byte codes rank roughly
USUAL_BREADTH = {"hnsw": 64, "ivfflat": 16, "ivfpq": 16}  # where nobody measures: about 95 % of the neighbours at 1,000 cells


def cells_for(size: int) -> int:
    """Cells for so many vectors."""
    return max(1, min(round(4 * size**0.5), size // PER_CENTROID[0]))


def code_bytes(dimension: int) -> int:
    """Bytes of a vector's product code: the largest part of D, at most D / 4."""
    return max(m for m in range(1, max(dimension // 4, 1) + 1) if dimension % m == 0)


def sample_size(size: int) -> int:
    """How many vectors are worth training centroids and codes on."""
    return min(size, max(cells_for(size), 256) * PER_CENTROID[1])


def empty_index(kind: Kind, size: int, sample: np.ndarray) -> Any:
    """FAISS's index for `size` vectors, trained on a float32 `sample` (n, D) of them, the same by the same sample; `add` fills it."""
    faiss, dimension = load_faiss(), sample.shape[1]
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BREADTH
        return index
    coarse, cells = faiss.IndexFlatIP(dimension), cells_for(size)
    index = (faiss.IndexIVFFlat(coarse, dimension, cells, faiss.METRIC_INNER_PRODUCT) if kind == "ivfflat" else
             faiss.IndexIVFPQ(coarse, dimension, cells, code_bytes(dimension), 8, faiss.METRIC_INNER_PRODUCT))  # fmt: skip
    index.train(sample)
    return index


def candidates(index: Any, kind: Kind, queries: np.ndarray, k: int, breadth: int) -> np.ndarray:
    """Numbers (Q, C) of vectors among which the k nearest of each query are likely; -1 is an empty place.

    Args:
        breadth: cells looked into (nprobe), or HNSW's efSearch.
    """
    faiss = load_faiss()
    wanted = min(CANDIDATES[kind] * k, index.ntotal)
    options = (faiss.SearchParametersHNSW(efSearch=max(breadth, wanted)) if kind == "hnsw" else
               faiss.SearchParametersIVF(nprobe=breadth))  # fmt: skip
    return index.search(queries, wanted, params=options)[1]


def approximate(queries: np.ndarray, vectors: np.ndarray, k: int, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """About the k documents of highest product with each query, in memory; the same vectors give the same neighbours.

    Args:
        queries: float32 (Q, D). vectors: float32 (N, D), of length 1.
        kind: ivfpq is ivfflat where there are too few vectors to learn codes from.
    Returns:
        float32 scores (Q, min(k, N)) and int64 document numbers, best first, ties by number; -inf and -1 where fewer were found.
    """
    faiss = load_faiss()
    queries, vectors = (np.ascontiguousarray(x, np.float32) for x in (queries, vectors))
    size, k = len(vectors), min(k, len(vectors))
    kind = "ivfflat" if kind == "ivfpq" and size < LEAST_CODED else kind
    index = empty_index(kind, size, vectors[np.linspace(0, size - 1, sample_size(size)).astype(np.int64)])
    threads = faiss.omp_get_max_threads()
    if kind == "hnsw":  # with several threads the graph depends on who comes first
        faiss.omp_set_num_threads(1)
    index.add(vectors)
    faiss.omp_set_num_threads(threads)
    return rescored(queries, [vectors], candidates(index, kind, queries, k, USUAL_BREADTH[kind]), k, "dot")


def load_faiss() -> Any:
    """The library, with as many threads as torch uses."""
    try:
        import faiss
    except ImportError:
        raise UserError("an approximate index needs FAISS: pip install 'foretext[ann]' (or search exactly)") from None
    import torch

    faiss.omp_set_num_threads(torch.get_num_threads())
    # Matrix products from 20 queries on, as it was; 1.15 has 128,000 queries times dimensions, and takes up to nine times as long below.
    faiss.cvar.distance_compute_blas_threshold = 20
    return faiss
