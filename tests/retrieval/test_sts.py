"""Scored pairs in every file form, and correlations against scipy's."""

import json

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.retrieval.sts import ScoredPairs, correlate, read_scored_pairs, spearman, write_correlations
from foretext.summary import Policy, ReadSummary

ROWS = [("A man, a plan.", 'He said "no".', 2.5), ("two\nlines", "x", 0.0), ("z", "y", 5.0)]


@pytest.mark.parametrize("name, content", [
    ("a.csv", '"A man, a plan.","He said ""no"".",2.5\n"two\nlines",x,0.0\nz,y,5.0\n'),
    ("b.csv", '\ufeffscore,sentence2,sentence1\r\n2.5,"He said ""no"".","A man, a plan."\r\n0.0,x,"two\nlines"\r\n5,y,z\r\n'),
    ("c.jsonl", "".join(json.dumps({"sentence1": a, "sentence2": b, "score": s}) + "\n" for a, b, s in ROWS)),
])
def test_forms(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    pairs = read_scored_pairs(tmp_path / name)
    assert list(zip(pairs.first, pairs.second, pairs.scores.tolist())) == ROWS


def test_tabs_are_not_quoted(tmp_path):
    (tmp_path / "a.tsv").write_text('"quoted"\tb\t1\nc\td\t2\n')
    assert read_scored_pairs(tmp_path / "a.tsv").first == ['"quoted"', "c"]


@pytest.mark.parametrize("name, content, message", [
    ("a.csv", "a,b,1\nc,d\n", r"a\.csv:2: expected at least 3 columns.*column_count"),
    ("a.csv", "a,b,1\nc,d,good\n", r"a\.csv:2: expected a finite number as the score, found 'good'"),
    ("a.csv", "a,b,1\nc,d,nan\n", "found 'nan'"),
    ("a.csv", "text,other,mark\na,b,1\n", "expected the columns sentence1, sentence2, score by name"),
    ("a.csv", "a,b\n", "expected the columns"),
    ("a.csv", b"a,\xff,1\n", "expected UTF-8, found byte 0xff"),
    ("a.csv", "", "no usable record"),
    ("a.jsonl", '{"sentence1": "a", "score": 1}\n', "expected the key 'sentence2'"),
    ("a.jsonl", '{"sentence1": "a", "sentence2": null, "score": 1}\n', "expected a string under 'sentence2'"),
])
def test_defects(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_scored_pairs(tmp_path / name)


def test_skipping(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,1\nc,d,good\ne,f,2\n")
    pairs = read_scored_pairs(tmp_path / "a.csv", Policy(skip={"score_value"}, max_skip_share=0.5))
    assert pairs.first == ["a", "e"] and pairs.summary.skipped["score_value"] == 1


def test_spearman_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for _ in range(5):
        a, b = draw.integers(0, 6, 50).astype(float), draw.standard_normal(50)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 900])) == 1


class Angles:
    """Vectors at the angle that the text says, of any length."""

    similarity = "cosine"

    def encode(self, texts, kind):
        angles = np.radians([float(text) for text in texts])
        return (np.arange(1, len(texts) + 1)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def test_correlate_and_write(tmp_path):
    pairs = ScoredPairs(["0"] * 20, [str(4 * i) for i in range(20)], np.arange(20.0)[::-1], ReadSummary("made up"))
    found = correlate(Angles(), pairs)
    assert found.spearman == pytest.approx(1) and 0.9 < found.pearson < 1 and found.low == pytest.approx(1)
    np.testing.assert_allclose(found.similarities, np.cos(np.radians(4 * np.arange(20))), atol=1e-6)
    noisy = ScoredPairs(pairs.first, pairs.second, np.random.default_rng(1).permutation(20).astype(float), pairs.summary)
    spread = correlate(Angles(), noisy)
    assert spread.low < spread.spearman < spread.high
    write_correlations(tmp_path / "out", "angles", pairs, found)
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["spearman"] == pytest.approx(1)
    assert (tmp_path / "out" / "per-pair.tsv").read_text().splitlines()[1] == "0\t19\t1.000000"
    with pytest.raises(UserError, match="all scores are equal"):
        correlate(Angles(), ScoredPairs(["0", "1"], ["2", "3"], np.ones(2), ReadSummary("made up")))
    with pytest.raises(UserError, match="dimensions 3: the vectors have 2"):
        correlate(Angles(), pairs, dimensions=3)
