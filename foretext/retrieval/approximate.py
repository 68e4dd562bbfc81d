"""Nearest neighbours in large corpora, nearly all of them: FAISS's inverted lists with product codes, or its graph (extra `[ann]`).

References: Jégou et al. 2011, "Product quantization for nearest neighbor search" (IVF, PQ); Malkov and Yashunin (arXiv 1603.09320, HNSW).
"""

from typing import Literal

import numpy as np

from foretext.errors import UserError

How = Literal["ivfpq", "hnsw"]

PER_CENTRE = 39  # vectors for each centre that FAISS trains on at least; fewer and it warns
PROBES = 16  # lists that a query looks into: about 95 % of the true neighbours at 1,000 lists
CODE_BYTES = 32  # of a vector in IVF/PQ, at most; a byte stands for D / 32 features
LINKS, BREADTH = 32, 64  # of HNSW's graph, and of its search (FAISS's defaults are 32 and 16)
SEED = 1234  # of the centres, as FAISS has it: the same vectors give the same neighbours


def approximate(queries: np.ndarray, vectors: np.ndarray, k: int, how: How) -> tuple[np.ndarray, np.ndarray]:
    """About the k documents of highest product with each query; time grows linearly with either.

    Scores of the documents found are taken again from the vectors, so that product codes cost neighbours but no digits.

    Args:
        queries: float32 (Q, D). vectors: float32 (N, D), of length 1.
        how: "ivfpq": N * (32 + 8) bytes, trained on a sample; "hnsw": N * (4 D + 256) bytes, better and slower to build.
    Returns:
        float32 scores (Q, min(k, N)) and int64 document numbers, best first, ties by number; -inf and -1 where fewer were found.
    """
    try:
        import faiss
    except ImportError:
        raise UserError(f"search by {how} needs FAISS: pip install 'foretext[ann]', or choose exact") from None
    queries, vectors = (np.ascontiguousarray(x, np.float32) for x in (queries, vectors))
    N, D = vectors.shape
    k = min(k, N)
    if how == "hnsw":
        index = faiss.IndexHNSWFlat(D, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = max(BREADTH, k)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # with several threads the graph depends on who comes first
        index.add(vectors)
        faiss.omp_set_num_threads(threads)
    else:
        # Lists grow with N, and of them 1 in `lists / PROBES` is read: quadratic beyond 4,096 lists, so there they stop growing.
        lists = int(np.clip(N // PER_CENTRE, 1, min(4096, 4 * N**0.5)))
        code = next(m for m in range(min(CODE_BYTES, D), 0, -1) if D % m == 0)
        if N < 256 * PER_CENTRE:  # too few for product codes: plain inverted lists
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(D), D, lists, faiss.METRIC_INNER_PRODUCT)
        else:
            index = faiss.IndexIVFPQ(faiss.IndexFlatIP(D), D, lists, code, 8, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.nprobe = SEED, min(PROBES, lists)
        sample = np.linspace(0, N - 1, min(N, 256 * max(lists, 256))).astype(np.int64)
        index.train(vectors[sample])
        index.add(vectors)
    wide = min(N, 4 * k if how == "ivfpq" else k)
    _, numbers = index.search(queries, wide)
    scores = np.empty((len(queries), k), np.float32)
    best = np.empty((len(queries), k), np.int64)
    for first in range(0, len(queries), 4096):  # 4,096 x wide x D numbers at once
        rows = numbers[first:first + 4096]
        exact = np.einsum("qd,qkd->qk", queries[first:first + 4096], vectors[np.maximum(rows, 0)])
        exact[rows < 0] = -np.inf
        order = np.lexsort((rows, -exact), axis=1)[:, :k]
        scores[first:first + 4096] = np.take_along_axis(exact, order, 1)
        best[first:first + 4096] = np.take_along_axis(rows, order, 1)
    return scores, best
