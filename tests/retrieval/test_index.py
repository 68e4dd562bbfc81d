"""Approximate indexes against exact search."""

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.retrieval.index import build_index, open_index, recall
from foretext.retrieval.search import search
from foretext.retrieval.vectors import Vectors

faiss = pytest.importorskip("faiss")


def clustered(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Vectors in clusters, as embeddings are; 17 of them of length 3, so that dot and cosine differ."""
    draw = np.random.default_rng(seed)
    middles = draw.standard_normal((rows // 25, dimension))
    vectors = (middles[draw.integers(len(middles), size=rows)] + 0.6 * draw.standard_normal((rows, dimension))).astype(np.float32)
    vectors[::rows // 17] *= 3
    return vectors


def opened(vectors: np.ndarray, similarity: str = "cosine") -> Vectors:
    half = len(vectors) // 3
    return Vectors([vectors[:half], vectors[half:]], [f"d{i}" for i in range(len(vectors))], {"similarity": similarity})


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
def test_finds_what_exact_search_finds(kind, similarity, tmp_path):
    vectors = opened(clustered(4000, 24, 0), similarity)
    built = build_index(tmp_path, vectors, kind)
    index = open_index(tmp_path, vectors)
    assert index.settings == built.settings and index.settings["recall@10"] >= 0.95
    queries = clustered(60, 24, 0)[:40] + 0.1
    scores, found = index.search(queries, vectors, 10)
    exact_scores, exact = search(queries, vectors.shards, 10, similarity)
    assert recall(found, exact) > 0.9
    for q in range(len(queries)):  # what both found has the same score to the last bit
        same = dict(zip(exact[q].tolist(), exact_scores[q].tolist()))
        assert all(same[row] == score for row, score in zip(found[q].tolist(), scores[q].tolist()) if row in same)


def test_byte_codes(tmp_path):
    vectors = opened(clustered(10_000, 16, 1))
    settings = build_index(tmp_path, vectors, "ivfpq").settings
    assert settings["bytes_per_vector"] == 4 and settings["cells"] == 256 and settings["recall@10"] > 0.8
    assert (tmp_path / "ann" / "index.faiss").stat().st_size < 10_000 * 16 * 4 / 2  # less than half of the vectors
    scores, found = open_index(tmp_path, vectors).search(vectors.shards[0][:30], vectors, 5)
    assert (found[:, 0] == np.arange(30)).all() and np.allclose(scores[:, 0], 1)


def test_more_wanted_than_the_cells_hold(tmp_path):
    vectors = opened(clustered(400, 8, 2))
    built = build_index(tmp_path, vectors, "ivfflat", target=0.1)
    scores, found = built.search(vectors.shards[0][:3], vectors, 400)
    assert found.shape == (3, 400) and (found[0] == -1).any() and np.isneginf(scores[found == -1]).all()
    for row in found:
        assert len(set(row[row >= 0])) == (row >= 0).sum()


def test_the_breadth_follows_the_target(tmp_path):
    vectors = opened(clustered(4000, 24, 3))
    breadths = [build_index(tmp_path, vectors, "ivfflat", target=target, overwrite=True).settings for target in (0.2, 0.999)]
    assert breadths[0]["breadth"] < breadths[1]["breadth"] and breadths[0]["recall@10"] < breadths[1]["recall@10"]


def test_recall_by_hand():
    assert recall(np.array([[1, 2, -1], [7, 8, 9]]), np.array([[1, 2, 3], [4, 5, 9]])) == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_wrong_wishes(tmp_path):
    vectors = opened(clustered(300, 8, 0))
    with pytest.raises(UserError, match="index 'lsh': there are hnsw, ivfflat, ivfpq"):
        build_index(tmp_path, vectors, "lsh")
    with pytest.raises(UserError, match="at least 9,984 vectors"):
        build_index(tmp_path, vectors, "ivfpq")
    assert open_index(tmp_path, vectors) is None
    build_index(tmp_path, vectors, "hnsw")
    with pytest.raises(UserError, match="made of other vectors"):
        open_index(tmp_path, opened(clustered(301, 8, 0)))
