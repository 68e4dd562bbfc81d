"""Groups as the loop reads them: what is drawn, anew every epoch, alone as among others."""

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.text.grouped import GroupedPairs, Lists
from foretext.text.randomness import example_keys

PASSAGES = ["ba", "de", "ki", "lo", "mu", "na", "ba", "po", "ra", "se"]  # 6 repeats 0
POSITIVES, NEGATIVES = [[0, 1], [2], [3]], [[2, 3, 4, 5, 7], [4], []]


def source(tokenizer, size=3, scores=None, **options) -> GroupedPairs:
    lists = Lists.of(POSITIVES), Lists.of(NEGATIVES, scores)
    return GroupedPairs(["q0", "q1", "q2"], PASSAGES, np.arange(3), *lists, tokenizer, size, **options)


def keys(rows, epoch: int = 0) -> torch.Tensor:
    return example_keys(1, epoch, torch.as_tensor(rows))


def test_one_positive_and_negatives_without_replacement(tokenizer):
    groups, drawn = source(tokenizer, topk=4), []
    for epoch in range(200):
        passages, _, random = groups.draw(np.array([0]), keys([0], epoch))
        assert passages.shape == (1, 3) and random == 0
        assert passages[0, 0] in (0, 1)
        assert len(set(passages[0, 1:])) == 2 and set(passages[0, 1:]) <= {2, 3, 4, 5}  # 7 is beyond the first four
        drawn.append(passages[0])
    shares = np.bincount(np.stack(drawn)[:, 1:].ravel(), minlength=6)[2:] / 400
    np.testing.assert_allclose(shares, 0.25, atol=0.06)
    assert abs(np.mean(np.stack(drawn)[:, 0]) - 0.5) < 0.12


def test_a_short_list_is_filled_up_with_what_does_not_answer(tokenizer):
    groups = source(tokenizer, size=5)
    for epoch in range(50):
        passages, scores, random = groups.draw(np.arange(3), keys(range(3), epoch))
        assert random == 3 + 4 and np.isnan(scores).all()
        assert (passages[1] == 4).sum() == 1
        for row, positives in enumerate([{0, 1, 6}, {2}, {3}]):
            assert not set(passages[row, 1:]) & positives  # also not by equal text
            assert len({PASSAGES[p] for p in passages[row]}) == 5


def test_addressed(tokenizer):
    groups = source(tokenizer)
    together = groups.draw(np.array([2, 0, 1]), keys([2, 0, 1]))[0]
    alone = [groups.draw(np.array([row]), keys([row]))[0][0] for row in (2, 0, 1)]
    np.testing.assert_array_equal(together, alone)
    epochs = [groups.draw(np.arange(3), keys(range(3), epoch))[0] for epoch in range(3)]
    assert (epochs[0] != epochs[1]).any() or (epochs[0] != epochs[2]).any()


def test_scores_stay_with_their_passages(tokenizer):
    groups = source(tokenizer, size=4, scores=[[2, 3, 4, 5, 7], [4], []])  # each passage's score is its number
    for epoch in range(20):
        passages, scores, _ = groups.draw(np.arange(3), keys(range(3), epoch))
        there = np.isfinite(scores)
        assert there.sum() == 4
        np.testing.assert_array_equal(scores[there], passages[there])
    pairs = groups.read(np.arange(3), keys(range(3)))
    assert pairs.scores.shape == (3, 4) and pairs.random == 2 + 3


def test_a_live_teacher_scores_what_is_drawn(tokenizer):
    groups = source(tokenizer, teacher=lambda query, passages: query[:, None] * 100.0 + passages)
    pairs = groups.read(np.array([1, 0]), keys([1, 0]))
    passages = groups.draw(np.array([1, 0]), keys([1, 0]))[0]
    np.testing.assert_array_equal(pairs.scores, [[100], [0]] + passages)


def test_pairs(tokenizer):
    pairs = source(tokenizer).read(np.array([0]), keys([0]))
    passages = source(tokenizer).draw(np.array([0]), keys([0]))[0][0]
    texts = [tokenizer.decode(ids).strip() for ids in pairs.passages.ids.split(pairs.passages.lengths.tolist())]
    assert texts == [PASSAGES[p] for p in passages]
    assert sorted((int(c) >> 32, int(c) & 0xFFFFFFFF) for c in pairs.known) == [(0, 0), (0, 1), (1, 2), (2, 3)]
    assert pairs.scores is None


def test_token_ids_instead_of_texts(tokenizer):
    ids = tokenizer.encode(PASSAGES)
    from_ids = GroupedPairs(tokenizer.encode(["q0"]), ids, np.zeros(1, np.int64), Lists.of([[0]]), Lists.of([[1, 2]]), tokenizer, 3)
    from_text = GroupedPairs(["q0"], PASSAGES, np.zeros(1, np.int64), Lists.of([[0]]), Lists.of([[1, 2]]), tokenizer, 3)
    assert torch.equal(from_ids.read(np.array([0]), keys([0])).passages.ids, from_text.read(np.array([0]), keys([0])).passages.ids)


def test_too_few_passages(tokenizer):
    with pytest.raises(UserError, match="only 9 different passages"):
        source(tokenizer, size=9)
