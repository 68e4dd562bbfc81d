"""Pairs to train on: crops, heads and rests, labelled links."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.text.grouped import GroupedPairs
from foretext.text.pairs import SHORTEST, CropPairs, SplitPairs, Texts
from foretext.text.randomness import example_keys


def store(lengths: list[int], titles: list[int], second_sentences: list[int | None]):
    """Rows of consecutive numbers, so that a token tells where it came from."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    starts = [[0] if second is None else [0, second] for second in second_sentences]
    return SimpleNamespace(
        tokens=np.arange(offsets[-1]).astype(np.uint16), offsets=offsets, documents=np.arange(len(lengths)), path="store",
        pairs=False, title_lengths=np.array(titles, dtype=np.int32), sentence_starts=np.concatenate(starts).astype(np.int32),
        sentence_offsets=np.concatenate(([0], np.cumsum([len(s) for s in starts]))))


STORE = store([40, 30, 20, 6, 50], [0, 7, 2, 3, 10], [12, None, 17, 3, 30])


def keys(count: int, epoch: int = 0) -> torch.Tensor:
    return example_keys(1, epoch, torch.arange(count))


def test_crops_are_stretches_of_the_text():
    source = CropPairs(STORE, 100)
    assert len(source.lengths) == 4  # the row of six tokens is too short
    pairs = source.read(np.array([0, 3] * 400), keys(800))
    rows = np.array([0, 4] * 400)  # of the store
    for side in (pairs.queries, pairs.passages):
        for row, crop in zip(rows, side.ids.split(side.lengths.tolist())):
            assert torch.equal(crop, torch.arange(int(crop[0]), int(crop[0]) + len(crop)))
            assert STORE.offsets[row] <= crop[0] and crop[-1] < STORE.offsets[row + 1]
            n = STORE.offsets[row + 1] - STORE.offsets[row]
            assert max(SHORTEST, int(0.1 * n)) <= len(crop) <= 0.5 * n
    firsts = pairs.queries.ids[pairs.queries.starts][rows == 0], pairs.passages.ids[pairs.passages.starts][rows == 0]
    assert abs(float(torch.corrcoef(torch.stack(firsts).double())[0, 1])) < 0.2  # independent of each other
    assert 0 in firsts[0] and firsts[0].max() > 30


def test_crops_are_new_every_epoch_and_the_same_alone():
    source, rows = CropPairs(STORE, 100), np.array([0, 1, 3])
    together = source.read(rows, keys(3))
    assert not torch.equal(together.queries.ids, source.read(rows, keys(3, epoch=1)).queries.ids)
    alone = source.read(rows[1:2], keys(3)[1:2])
    assert torch.equal(together.passages.select(torch.tensor([1])).ids, alone.passages.ids)


def test_halves():
    source = SplitPairs(store([21, 6, 8], [0, 0, 0], [None, None, None]), "halves")
    pairs = source.read(np.arange(2), keys(2))
    assert source.left_out == 1  # three tokens say nothing
    assert pairs.queries.lengths.tolist() == [10, 4]
    assert pairs.passages.ids.tolist() == [*range(10, 21), *range(31, 35)]


@pytest.mark.parametrize(("kind", "heads"), [("title", {1: 7, 4: 10}), ("first_sentence", {0: 12, 4: 30})])
def test_heads_and_rests(kind, heads):
    """Row 2 has a title of two tokens or a rest of three, row 3 is short on both sides: left out and counted."""
    source = SplitPairs(STORE, kind)
    assert len(source.lengths) == 2 and source.left_out == 3
    pairs = source.read(np.arange(2), keys(2))
    assert pairs.queries.documents.tolist() == list(heads)
    sides = [side.ids.split(side.lengths.tolist()) for side in (pairs.queries, pairs.passages)]
    for row, head, rest in zip(heads, *sides):
        assert len(head) == heads[row]
        assert torch.cat((head, rest)).tolist() == list(range(STORE.offsets[row], STORE.offsets[row + 1]))


def test_a_store_without_titles_is_refused():
    with pytest.raises(UserError, match="title"):
        SplitPairs(store([20, 20], [0, 0], [None, None]), "title")


def test_labelled_pairs(tokenizer):
    queries, passages = ["ba", "de ki"], ["lo mu", "na", "lo mu", ""]
    links = np.array([[0, 0], [1, 1], [1, 2]])
    pairs = GroupedPairs.linked(queries, passages, links, tokenizer).read(np.array([2, 0]), keys(2))
    assert pairs.queries.documents.tolist() == [1, 0]
    assert pairs.passages.documents.tolist() == [0, 0]  # equal texts have equal numbers
    text = [tokenizer.decode(ids) for ids in pairs.queries.ids.split(pairs.queries.lengths.tolist())]
    assert [t.strip() for t in text] == ["de ki", "ba"]
    assert sorted((int(c) >> 32, int(c) & 0xFFFFFFFF) for c in pairs.known) == [(0, 0), (1, 0), (1, 1)]
    with pytest.raises(UserError, match="no pair"):
        GroupedPairs.linked(queries, passages, np.empty((0, 2), dtype=np.int64), tokenizer)


def test_an_empty_text_is_one_unknown_token(tokenizer):
    documents = Texts(["", "ba"], tokenizer).read(np.array([0]), keys(1))
    assert documents.ids.tolist() == [tokenizer.unk_id]
