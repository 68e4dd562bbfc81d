"""Metrics against values worked out by hand, and intervals against what they promise."""

import math

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.retrieval.metrics import interval, measure_name, paired_difference, score

# Judged: a 2, b 1, c 0, d 1 (d is not found). Ranked: c, a, x, b.
JUDGED = {"q": {"a": 2, "b": 1, "c": 0, "d": 1}}
RUN = {"q": {"c": 4.0, "a": 3.0, "x": 2.0, "b": 1.0}}
IDEAL = 2 + 1 / math.log2(3) + 1 / math.log2(4)  # gains 2, 1, 1


@pytest.mark.parametrize("measure, value", [
    ("nDCG@10", (2 / math.log2(3) + 1 / math.log2(5)) / IDEAL),  # gain is the grade itself, discount log2(rank + 1)
    ("nDCG@2", (2 / math.log2(3)) / (2 + 1 / math.log2(3))),  # the ideal ranking is cut too
    ("MRR@10", 1 / 2),
    ("MRR@2", 1 / 2),
    ("MRR@1", 0),
    ("MRR", 1 / 2),
    ("Recall@2", 1 / 3),
    ("Recall@100", 2 / 3),
    ("MAP", (1 / 2 + 2 / 4) / 3),
    ("MAP@2", (1 / 2) / 3),
])
def test_by_hand(measure, value):
    assert score(JUDGED, RUN, [measure]).values[measure] == pytest.approx([value], abs=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 9, 10, 11, 99, 100, 101])
def test_mrr_cut_offs(rank):
    run = {"q": {f"x{i}": -float(i) for i in range(1, 120)}}
    judged = {"q": {f"x{rank}": 1}}
    values = score(judged, run, ["MRR@10", "MRR@100"]).values
    assert values["MRR@10"][0] == pytest.approx(1 / rank if rank <= 10 else 0)
    assert values["MRR@100"][0] == pytest.approx(1 / rank if rank <= 100 else 0)


def test_every_judged_query_counts():
    judged = {"missing": {"a": 1}, "q": {"a": 1}, "empty": {"a": 1}, "none": {"a": 0, "b": -1}}
    run = {"q": {"a": 1.0}, "empty": {}, "none": {"a": 2.0, "b": 1.0}, "unjudged": {"a": 1.0}}
    scores = score(judged, run, ["nDCG@10", "MAP"])
    assert scores.query_ids == ["missing", "q", "empty", "none"]
    assert scores.values["nDCG@10"].tolist() == [0, 1, 0, 0] and scores.values["MAP"].tolist() == [0, 1, 0, 0]
    assert scores.means()["nDCG@10"] == 0.25
    assert score(judged, {}, ["nDCG@10"]).means() == {"nDCG@10": 0.0}


def test_negative_grades_gain_nothing():
    ours = score({"q": {"a": -3, "b": 1}}, {"q": {"a": 2.0, "b": 1.0}}, ["nDCG@10", "MRR@10"]).means()
    assert ours == pytest.approx({"nDCG@10": 1 / math.log2(3), "MRR@10": 0.5})


def test_ties_are_broken_by_id_and_scores_compared_in_double_precision():
    assert score({"q": {"a": 1}}, {"q": {"a": 1.0, "b": 1.0}}, ["MRR@10"]).means()["MRR@10"] == 0.5
    assert score({"q": {"a": 1}}, {"q": {"a": 1.0 + 1e-12, "b": 1.0}}, ["MRR@10"]).means()["MRR@10"] == 1.0


def test_ids_of_any_alphabet():
    assert score({"\u95ee \u9898": {"d\u00e9 1": 1}}, {"\u95ee \u9898": {"d\u00e9 1": 1.0}}, ["MAP"]).means() == {"MAP": 1.0}


@pytest.mark.parametrize("text, name", [("ndcg@10", "nDCG@10"), ("RR@10", "MRR@10"), ("R@100", "Recall@100"), ("AP", "MAP"),
                                        ("map@5", "MAP@5"), ("mrr", "MRR")])
def test_names(text, name):
    assert measure_name(text) == name


@pytest.mark.parametrize("text", ["F1@10", "nDCG@0", "recall", "nDCG@ten", ""])
def test_unknown_names(text):
    with pytest.raises(UserError, match="no measure"):
        measure_name(text)


def test_interval_is_seeded_and_close_to_the_normal_one():
    values = np.random.default_rng(1).normal(0.4, 0.3, size=400)
    one, two, other = interval(values), interval(values), interval(values, seed=1)
    assert one == two and one != other
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert one.mean == pytest.approx(values.mean())
    assert one.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert one.high == pytest.approx(values.mean() + error, abs=0.1 * error)
    with pytest.raises(ValueError, match="one value per query"):
        interval(np.empty(0))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):  # reciprocal ranks of 60 queries: skewed, like real scores
        values = 1 / rng.integers(1, 11, size=60)
        found = interval(values, samples=500)
        covered += found.low <= np.mean(1 / np.arange(1, 11)) <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_paired_difference():
    rng = np.random.default_rng(0)
    judged = {f"q{i}": {"a": 1} for i in range(80)}
    ranks = {query: int(rng.integers(1, 6)) for query in judged}

    def run(better):  # the relevant document at its rank, one place higher for every fourth query
        return {query: {**{f"z{j}": 10.0 - j for j in range(6)}, "a": 10.5 - (rank - (better and i % 4 == 0 and rank > 1))}
                for i, (query, rank) in enumerate(ranks.items())}

    base, ours = score(judged, run(False), ["MRR@10"]), score(judged, run(True), ["MRR@10"])
    found = paired_difference(ours, base, "RR@10")
    assert found.mean == pytest.approx(ours.means()["MRR@10"] - base.means()["MRR@10"])
    assert 0 < found.low < found.mean < found.high and found.excludes_zero()
    # Pairing is the point: the unpaired intervals overlap.
    assert interval(ours.values["MRR@10"]).low < interval(base.values["MRR@10"]).high
    assert paired_difference(ours, ours, "MRR@10").mean == 0 and not paired_difference(ours, ours, "MRR@10").excludes_zero()
    # The order of the queries does not matter, their names do.
    shuffled = score(judged, run(False), ["MRR@10"], list(reversed(judged)))
    assert paired_difference(ours, shuffled, "MRR@10") == found
    with pytest.raises(UserError, match="different queries"):
        paired_difference(ours, score({"q0": {"a": 1}}, {}, ["MRR@10"]), "MRR@10")
    with pytest.raises(UserError, match="MAP was not scored"):
        paired_difference(ours, base, "MAP")
