"""Small vectors against the arithmetic they stand for."""

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.retrieval.evaluate import evaluate
from foretext.retrieval.quantize import quantize, search_codes
from foretext.retrieval.search import search
from tests.retrieval.test_evaluate import Hashed, made_up


@pytest.fixture(scope="module")
def data():
    draw = np.random.default_rng(0)
    return draw.standard_normal((30, 40), dtype=np.float32), (draw.standard_normal((2000, 40)) * 3 + 1).astype(np.float32)


def overlap(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), exact.tolist())])


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_int8_is_the_range_of_the_corpus_in_steps(data, similarity):
    queries, vectors = data
    codes = quantize([vectors[:700], vectors[700:]], "int8", similarity)
    ready = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if similarity == "cosine" else vectors
    assert codes.rows.dtype == np.int8 and (codes.rows.min(axis=0) == -127).all() and (codes.rows.max(axis=0) == 127).all()
    assert (np.abs(codes.middle + codes.step * codes.rows - ready) <= codes.step * 0.501).all()
    exact_scores, exact = search(queries, vectors, 20, similarity)
    for rescore, least in ((4, 0.95), (0, 0.9)):
        scores, found = search_codes(queries, codes, 20, rescore)
        assert overlap(found, exact) > least
        np.testing.assert_allclose(scores[:, 0], exact_scores[:, 0], rtol=0.05)
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True) if similarity == "cosine" else queries
    by_hand = asked @ (codes.middle + codes.step * codes.rows).T
    scores, found = search_codes(queries, codes, 20, 100)  # every document is looked at again
    np.testing.assert_array_equal(found[:, 0], by_hand.argmax(axis=1))
    np.testing.assert_allclose(scores, np.take_along_axis(by_hand, found, axis=1), rtol=1e-4, atol=1e-5)


def test_binary_is_the_hamming_distance_then_the_float_query(data):
    queries, vectors = data
    codes = quantize(vectors, "binary", "dot")
    distances = ((queries[:, None, :] > 0) != (vectors[None, :, :] > 0)).sum(axis=2)
    scores, found = search_codes(queries, codes, 15, rescore=0)
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1, kind="stable")[:, :15])
    np.testing.assert_array_equal(scores, 40 - 2 * np.take_along_axis(distances, found, axis=1))
    scores, again = search_codes(queries, codes, 15, rescore=4)
    signs = np.where(vectors > 0, 1, -1)
    for q in range(len(queries)):
        candidates = np.argsort(distances[q], kind="stable")[:60]
        np.testing.assert_allclose(scores[q], np.sort(signs[candidates] @ queries[q])[::-1][:15], rtol=1e-5)
        assert set(again[q]) <= set(candidates)
    exact = search(queries, vectors, 15, "dot")[1]
    assert overlap(again, exact) > overlap(found, exact)


def test_constant_dimensions_and_zero_vectors():
    vectors = np.array([[0, 0, 1], [0, 0, 1], [0, 5, 1]], np.float32)
    for precision in ("int8", "binary"):
        scores, found = search_codes(np.array([[0, 1, 0], [0, 0, 0]], np.float32), quantize(vectors, precision, "dot"), 3)
        assert found[0, 0] == 2 and np.isfinite(scores).all()


def test_in_evaluate():
    collection = made_up()
    whole = evaluate(Hashed(), collection)
    int8 = evaluate(Hashed(), collection, precision="int8")
    binary = evaluate(Hashed(), collection, precision="binary", rescore=0)
    assert abs(int8.means()["nDCG@10"] - whole.means()["nDCG@10"]) < 0.03 < whole.means()["nDCG@10"] - binary.means()["nDCG@10"] + 0.03
    assert int8.options["precision"] == "int8" and int8.options["rescore"] == 4 and "precision" not in whole.options
    cut = evaluate(Hashed(), collection, dimensions=16)
    vectors = Hashed().encode(collection.documents, "document")

    class Short(Hashed):
        def encode(self, texts, kind):
            return super().encode(texts, kind)[:, :16]

    assert cut.means() == evaluate(Short(), collection, vectors=vectors[:, :16]).means() and cut.options["dimensions"] == 16
    with pytest.raises(UserError, match="dimensions 65: the vectors have 64"):
        evaluate(Hashed(), collection, dimensions=65)
    with pytest.raises(UserError, match="precision 'fp8': there are float32, int8, binary"):
        evaluate(Hashed(), collection, precision="fp8")
