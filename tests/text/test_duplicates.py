"""Duplicates: exact ones by key, near ones against a plain set computation."""

import random

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.text import duplicates as module
from foretext.text.duplicates import exact_key, find_duplicates, near_duplicates


def test_exact_key():
    assert exact_key(" a  b\nc ") == exact_key("a b c") and len(exact_key("")) == 16
    assert len({exact_key(text) for text in ("a b", "A b", "ab", "")}) == 4


def plain(reference: str, candidate: str, words: int, measure: str) -> float:
    def runs(text: str) -> set:
        w = text.lower().split()
        return {tuple(w[i:i + words]) for i in range(max(len(w) - words + 1, 1))} if w else set()

    a, b = runs(reference), runs(candidate)
    whole = min(len(a), len(b)) if measure == "containment" else len(a | b)
    return len(a & b) / whole if whole else 0.0


@pytest.mark.parametrize("measure", ["containment", "jaccard"])
@pytest.mark.parametrize("words", [1, 3])
def test_against_sets(words, measure):
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefghij", k=draw.randint(0, 12))) for _ in range(260)]
    texts[3] = ""
    reference, candidate = texts[:60], texts[60:]
    for threshold in (0.2, 0.5, 0.8, 1.0):
        expected = [any(plain(r, c, words, measure) >= threshold for r in reference) for c in candidate]
        found = near_duplicates(reference, iter(candidate), threshold, words=words, measure=measure)
        assert found.dtype == bool and found.tolist() == expected
        assert words == 1 or 0 < sum(expected) < len(expected)


def test_case_and_punctuation_do_not_hide_a_copy():
    reference = ["Return the mean of the array, ignoring NaN values."]
    found = near_duplicates(reference, ["return the MEAN of the array (ignoring nan values)", "Something else entirely, not the same.", "",
                                        "x y z. Return the mean of the array, ignoring NaN values. And much more text after that."], 0.8)
    assert found.tolist() == [True, False, False, True]


def test_edges():
    assert near_duplicates([], ["a"], 0.5).tolist() == [False] and near_duplicates(["a"], [], 0.5).shape == (0,)
    assert near_duplicates(["", "..."], ["", "a"], 0.5).tolist() == [False, False]
    assert near_duplicates(["one two"], ["one two", "two one", "one two three"], 1.0).tolist() == [True, False, False]
    for arguments in ((0.0, "jaccard"), (1.5, "jaccard"), (0.5, "cosine")):
        with pytest.raises(UserError):
            near_duplicates(["a"], ["a"], arguments[0], measure=arguments[1])


def test_fast_enough():
    import time

    draw = np.random.default_rng(0)
    words = [f"w{i}" for i in range(5000)]
    texts = [" ".join(words[i] for i in np.minimum(draw.zipf(1.3, 60), 4999)) for _ in range(6000)]
    start = time.monotonic()
    near_duplicates(texts[:1000], texts[1000:], 0.5)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("per_bucket", [10, 10**6])
def test_duplicates_keep_the_first(tmp_path, monkeypatch, per_bucket):
    monkeypatch.setattr(module, "DOCUMENTS_PER_BUCKET", per_bucket)
    keys = np.random.default_rng(0).integers(0, 12, (300, 2)).astype(np.uint64)
    seen: set[tuple] = set()
    expected = []
    for key in map(tuple, keys.tolist()):
        expected.append(key in seen)
        seen.add(key)
    found = find_duplicates(iter(np.split(keys, [7, 7, 150])), len(keys), tmp_path)
    assert found.astype(bool).tolist() == expected and 100 < sum(expected) < 250
    assert not list(tmp_path.glob("bucket*"))
