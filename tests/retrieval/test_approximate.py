"""FAISS in memory against exact products."""

import numpy as np
import pytest

from foretext.retrieval.approximate import approximate

pytest.importorskip("faiss")


@pytest.mark.parametrize("how", ["ivfpq", "hnsw"])
@pytest.mark.parametrize("count", [3, 3000, 12_000])  # under 256 * 39 vectors there are no product codes
def test_finds_nearly_all_with_exact_scores(how, count):
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(60, 24))
    vectors = (centres[draw.integers(0, 60, count)] + 0.5 * draw.normal(size=(count, 24))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:100]
    scores, numbers = approximate(queries, vectors, 10, how)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert scores.shape == numbers.shape == exact.shape
    assert np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(numbers.tolist(), exact.tolist())]) > 0.9
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, vectors[numbers]), atol=1e-5)
    again = approximate(queries, vectors, 10, how)
    assert np.array_equal(scores, again[0])
    assert np.array_equal(numbers, again[1])
