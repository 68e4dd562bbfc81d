"""Mined negatives: ranges, margins, what is never a negative, draws, and what is said about it."""

import numpy as np
import pytest
from pydantic import ValidationError

from foretext.errors import UserError
from foretext.retrieval.groups import Group, Groups, Listed, read_groups, write_groups
from foretext.retrieval.mine import KNOWN, REPEATED, SAME_TEXT, TOO_CLOSE, MineConfig, merge, mine, overlap

PASSAGES = {f"d{i}": f"text number {i}" for i in range(12)} | {"twin": "text  number 0", "again": "text number 5"}
QUERIES = {"q": "which text"}
RUN = {"q": {name: 20.0 - i for i, name in enumerate(["d0", "twin", *[f"d{i}" for i in range(1, 12)], "again"])}}  # ranks 1, 2, 3, ...


def mined(run=RUN, positives=("d0",), scores=None, **options):
    return mine(run, QUERIES, {"q": list(positives)}, PASSAGES, MineConfig(**{"negatives": 3} | options), scores)


def names(found) -> list[str]:
    return [entry.id for entry in found.groups.groups[0].negatives]


def test_the_best_that_are_no_answer():
    found = mined(negatives=20)
    assert names(found) == [f"d{i}" for i in range(1, 12)]
    assert found.removed == {KNOWN: 1, SAME_TEXT: 1, REPEATED: 1}
    assert found.ranks == list(range(3, 14))
    group = found.groups.groups[0]
    assert group.positives == [Listed("d0", None)]
    assert group.negatives[0].score == RUN["q"]["d1"]


def test_ranks_count_in_the_whole_ranking():
    assert names(mined(rank_from=5, rank_to=8, negatives=10)) == ["d3", "d4", "d5", "d6"]
    assert names(mined(rank_from=5, rank_to=8, negatives=2)) == ["d3", "d4"]


def test_a_judged_answer_is_never_a_negative_wherever_it_ranks():
    for k in range(1, 12):
        found = mined(positives=("d0", f"d{k}"), negatives=20)
        assert f"d{k}" not in names(found)
        assert len(names(found)) == 10


def test_margins():
    scores = {"q": {"d0": 20.0}}
    assert names(mined(scores=scores, margin=0.75, negatives=20))[0] == "d4"  # 15 of 20 is the limit: d4 has 15
    assert mined(scores=scores, margin=0.75, negatives=20).removed[TOO_CLOSE] == 3
    assert names(mined(scores=scores, margin=8.0, margin_kind="absolute", negatives=20))[0] == "d7"
    low = {"q": {name: score - 100 for name, score in RUN["q"].items()}}  # negative scores: a share of them is still below them
    assert names(mined(low, scores={"q": {"d0": -80.0}}, margin=0.9, negatives=20))[0] == "d7"  # -80 - 10 % of 80 = -88
    two = mined(scores={"q": {"d0": 20.0, "d9": 10.0}}, positives=("d0", "d9"), margin=1.0, negatives=20)
    assert names(two) == ["d10", "d11", "again"]  # the lowest answer counts
    with pytest.raises(UserError, match="needs the positives' scores"):
        mined(margin=0.9)


def test_draws_are_addressed():
    draws = [names(mined(choose="sample", seed=seed)) for seed in range(30)]
    assert names(mined(choose="sample", seed=3)) == draws[3]
    assert len({tuple(draw) for draw in draws}) > 10
    assert {name for draw in draws for name in draw} == {f"d{i}" for i in range(1, 12)}
    more = mine(RUN | {"p": RUN["q"]}, {"q": "which", "p": "what"}, {"q": ["d0"], "p": ["d1"]}, PASSAGES,
                MineConfig(negatives=3, choose="sample", seed=3))  # fmt: skip
    assert [entry.id for entry in more.groups.groups[0].negatives] == draws[3]


def test_a_corpus_smaller_than_the_range():
    found = mined({"q": {"d0": 3.0, "d1": 2.0}}, rank_to=1000, negatives=15)
    assert names(found) == ["d1"]
    assert (found.short, found.empty) == (1, 0)
    assert any("fewer negatives than asked for: 1" in line for line in found.lines())
    with pytest.raises(UserError, match="wider range"):
        mined({"q": {"d0": 3.0}})


def test_settings_that_cannot_be_met():
    with pytest.raises(ValidationError, match="behind rank_to"):
        MineConfig(rank_from=300)
    with pytest.raises(ValidationError, match="no effect without margin"):
        MineConfig(margin_kind="absolute")


def test_two_retrievers_in_turns():
    def groups(*negatives: str) -> Groups:
        return Groups([Group("q", "which", [Listed("d0", 1.0)], [Listed(name, 2.0) for name in negatives])], dict(PASSAGES))

    a, b = groups("d1", "d2", "d3"), groups("d2", "d4")
    both = merge(a, b).groups[0]
    assert [entry.id for entry in both.negatives] == ["d1", "d2", "d4", "d3"]
    assert all(entry.score is None for entry in (*both.positives, *both.negatives))
    assert overlap(a, b) == 1 / 4


def test_what_is_written_is_read(tmp_path):
    found = mined(scores={"q": {"d0": 20.0}})
    again = read_groups(write_groups(tmp_path / "mined.jsonl", found.groups))
    assert again.groups == found.groups.groups
    assert np.isclose(again.groups[0].positives[0].score, 20.0)
