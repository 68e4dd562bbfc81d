"""BM25 against its formula, and against published numbers where the data is there."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import judged_split, read_collection
from foretext.retrieval.metrics import score
from foretext.retrieval.runs import as_run

DOCUMENTS = ["apple banana", "apple apple cherry durian", "banana elder fig grape", "", "the of and"]


@pytest.mark.parametrize("k1, b", [(0.9, 0.4), (1.2, 0.75), (2.0, 0.0)])
def test_by_the_formula(k1, b):
    index = BM25(DOCUMENTS, k1=k1, b=b, stemmer="none")
    scores, indices = index.search(["apple", "apple durian zebra", "apple apple"], k=5)
    lengths = np.array([2, 4, 4, 0, 0])  # stop words do not count

    def weight(frequency, found_in, document):
        idf = math.log(1 + (5 - found_in + 0.5) / (found_in + 0.5))
        return idf * frequency / (frequency + k1 * (1 - b + b * lengths[document] / lengths.mean()))

    first = {0: weight(1, 2, 0), 1: weight(2, 2, 1)}
    second = {0: weight(1, 2, 0), 1: weight(2, 2, 1) + weight(1, 1, 1)}
    third = {document: 2 * value for document, value in first.items()}  # a word asked twice counts twice
    for q, expected in enumerate((first, second, third)):
        found = {int(i): float(s) for i, s in zip(indices[q], scores[q]) if i >= 0}
        assert found == pytest.approx(expected, rel=1e-5)
        assert indices[q].tolist() == sorted(expected, key=expected.get, reverse=True) + [-1] * 3
    assert (scores[0, 2:] == -np.inf).all()


def test_stemming_and_stop_words():
    texts = ["running quickly", "he runs", "the runner"]
    assert sorted(BM25(texts).search(["run"], 3)[1][0].tolist()) == [-1, 0, 1]
    assert BM25(texts, stemmer="none").search(["run"], 3)[1].tolist() == [[-1, -1, -1]]
    assert BM25(texts).search(["the"], 3)[1].tolist() == [[-1, -1, -1]]
    assert BM25(texts, stop_words="none").search(["the"], 3)[1][0, 0] == 2
    assert BM25(["die H\u00e4user", "das Haus"], stemmer="german", stop_words="german").search(["Hauses"], 2)[1].tolist() == [[0, 1]]


def test_ties_go_to_the_lower_number():
    _, indices = BM25(["same words here"] * 50 + ["same"]).search(["same words"], 7)
    assert indices.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_queries_without_known_words():
    scores, indices = BM25(DOCUMENTS).search(["", "zebra", "the"], 2)
    assert (indices == -1).all() and (scores == -np.inf).all()
    assert as_run(["a", "b", "c"], list("vwxyz"), scores, indices) == {"a": {}, "b": {}, "c": {}}


@pytest.mark.parametrize("options, message", [
    ({"k1": 0}, "expected a number above 0"), ({"b": 1.5}, "expected a number from 0 to 1"),
    ({"stemmer": "klingon"}, "no stemmer 'klingon'; there are none, arabic"),
    ({"stop_words": "klingon"}, "no stop words for 'klingon'"),
])
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        BM25(DOCUMENTS, **options)


def test_nothing_to_index():
    with pytest.raises(UserError, match="at least one document"):
        BM25([])
    with pytest.raises(UserError, match="no word"):
        BM25(["", "the"])


def test_save_and_load(tmp_path):
    index = BM25(DOCUMENTS, k1=1.1)
    index.save(tmp_path / "index")
    again = BM25.load(tmp_path / "index")
    assert again.options == index.options and again.size == 5
    for ours, theirs in zip(again.search(["apples and bananas", "fig"], 3), index.search(["apples and bananas", "fig"], 3)):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="already exists"):
        index.save(tmp_path / "index")
    with pytest.raises(UserError, match="holds no BM25 index"):
        BM25.load(tmp_path)


@pytest.mark.skipif("FORETEXT_DATA" not in os.environ, reason="FORETEXT_DATA is not set")
@pytest.mark.parametrize("name, split, ndcg, recall", [
    ("beir/scifact", "test", 0.676, 0.913), ("beir/nfcorpus", "test", 0.318, 0.247), ("beir/nfcorpus", "dev", 0.284, None),
    ("smart/cran", "test", 0.404, 0.738), ("smart/cran", "test_binary", 0.485, None),
])
def test_published_numbers(name, split, ndcg, recall):
    collection = read_collection(Path(os.environ["FORETEXT_DATA"]) / name)
    asked = judged_split(collection, split)
    found = BM25(collection.documents).search(asked.query_texts, 1000)
    means = score(asked.judgements, as_run(asked.query_ids, collection.document_ids, *found)).means()
    assert means["nDCG@10"] == pytest.approx(ndcg, abs=0.002)
    assert recall is None or means["Recall@100"] == pytest.approx(recall, abs=0.002)
