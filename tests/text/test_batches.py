"""What a step contains: every example once an epoch, the same for any ranks, workers, micro-batches or resume point."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foretext.text.batches import Batches, Documents, StoreSource, rows_of, spans, split_evenly
from foretext.text.randomness import example_keys
from tests.random_tokens import CLS, SEP, alphabet, random_documents

TOKENIZER = alphabet(40)


def store(lengths: list[int], documents: list[int] | None = None):
    """As much of a store as a source reads."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return SimpleNamespace(tokens=np.arange(offsets[-1]).astype(np.uint16), offsets=offsets, path="store",
                           documents=np.arange(len(lengths)) if documents is None else np.array(documents))


class Rows:
    """A source whose examples are their own row numbers."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def read(self, rows, keys):
        return list(zip(rows.tolist(), keys.tolist()))


def batches(count=50, batch_size=16, micro_tokens=200, collate=lambda x: x, **more):
    lengths = np.random.default_rng(0).integers(5, 60, count)
    return Batches(Rows(lengths), collate, batch_size, micro_tokens, seed=3, **more)


def test_spans():
    assert spans(torch.tensor([5, 0, 9]), torch.tensor([2, 3, 1])).tolist() == [5, 6, 0, 1, 2, 9]
    assert spans(torch.tensor([4, 7]), torch.tensor([0, 2])).tolist() == [7, 8]
    assert spans(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)).tolist() == []


def test_documents():
    d = random_documents(TOKENIZER, [3, 1, 4])
    assert d.sequence.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert d.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert d.starts.tolist() == [0, 3, 4]
    a, b, c = d.ids.split([3, 1, 4])
    assert d.select(torch.tensor([2, 0])).ids.tolist() == [*c.tolist(), *a.tolist()]
    assert d.part(torch.tensor([1, 0, 2]), torch.tensor([2, 1, 1])).ids.tolist() == [*a[1:].tolist(), *b.tolist(), int(c[2])]


@pytest.mark.parametrize("first", [CLS, [CLS, 7, 8]])
def test_framed(first):
    d = random_documents(TOKENIZER, [3, 1, 9, 0])
    head = [first] if isinstance(first, int) else first
    room = 8 - len(head) - 1
    framed = d.framed(first, SEP, 8)
    texts = [ids[:room].tolist() for ids in d.ids.split([3, 1, 9, 0])]
    assert [ids.tolist() for ids in framed.ids.split(framed.lengths.tolist())] == [[*head, *text, SEP] for text in texts]
    assert torch.equal(framed.keys, d.keys)


def test_windows_reach_everywhere():
    d = Documents(torch.arange(10).repeat(3000), torch.full((3000,), 10), example_keys(0, 0, torch.arange(3000)), torch.arange(3000))
    w = d.window(4)
    first = w.ids.view(3000, 4)
    assert torch.equal(first, first[:, :1] + torch.arange(4))
    counts = torch.bincount(first[:, 0], minlength=7)
    assert len(counts) == 7 and ((counts - 3000 / 7) ** 2 / (3000 / 7)).sum() < 22.5  # 6 degrees of freedom, one in a thousand
    assert torch.equal(random_documents(TOKENIZER, [3]).window(4).ids, random_documents(TOKENIZER, [3]).ids)


def test_an_epoch_holds_every_example_once():
    made = batches(count=48)
    seen = [row for step in range(3) for micro in made.step(step) for row, _ in micro]
    assert sorted(seen) == list(range(48))
    again = [row for step in range(3, 6) for micro in made.step(step) for row, _ in micro]
    assert sorted(again) == list(range(48)) and again != seen


def test_a_step_may_span_two_epochs():
    made = batches(count=20, batch_size=16)
    seen = [example for step in range(5) for micro in made.step(step) for example in micro]
    rows = [row for row, _ in seen]
    assert all(rows.count(i) == 4 for i in range(20))
    assert len(set(seen)) == 80  # with a key of its own each time


def test_a_step_does_not_depend_on_who_makes_it():
    whole = sorted(example for micro in batches().step(2) for example in micro)
    for world, micro_tokens in ((1, 50), (2, 200), (3, 10**9), (4, 30)):
        ranks = [batches(micro_tokens=micro_tokens, rank=r, world=world).step(2) for r in range(world)]
        assert sorted(example for rank in ranks for micro in rank for example in micro) == whole
        assert len({len(rank) for rank in ranks}) == 1  # every rank makes as many steps of the optimiser's clock


def test_micro_batches_are_even_and_sorted():
    lengths = np.random.default_rng(1).integers(1, 100, 64)
    parts = split_evenly(lengths, 400, 2)
    assert len(parts) % 2 == 0
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(64))
    tokens = [lengths[part].sum() for part in parts]
    assert max(tokens) <= 400 + 100 and max(tokens) - min(tokens) <= 200
    in_order = lengths[np.concatenate(parts)]
    assert (np.diff(in_order) <= 0).all()


def test_one_giant_among_dwarfs_leaves_no_part_empty():
    parts = split_evenly(np.array([1000, 1, 1, 1, 1, 1, 1, 1]), 250, 1)
    assert all(len(part) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(8))
    with pytest.raises(ValueError, match="cannot be shared"):
        split_evenly(np.array([3]), 100, 2)


def test_prefetched_is_the_same_from_any_step():
    made = batches()
    expected = [made.step(s) for s in range(6)]
    assert list(made.prefetched(0, 6)) == expected
    assert list(made.prefetched(4, 6)) == expected[4:]


def test_an_error_in_the_thread_is_raised_where_the_step_is_wanted():
    def collate(examples):
        raise RuntimeError("bad example")

    with pytest.raises(RuntimeError, match="bad example"):
        list(batches(collate=collate).prefetched(0, 3))


def test_leaving_early_ends_the_thread():
    before = set(threading.enumerate())
    for _ in batches().prefetched(0, 1000):
        break
    assert set(threading.enumerate()) <= before  # one of an earlier test may end meanwhile


def test_long_rows_are_split_and_short_pieces_counted():
    source = StoreSource(store([25, 4, 10, 9, 3]), max_tokens=10)
    assert source.lengths.tolist() == [8, 8, 9, 10, 9]
    assert source.left_out == 2
    documents = source.read(np.arange(5), torch.zeros(5, dtype=torch.int64))
    assert documents.ids.tolist() == [*range(25), *range(29, 48)]
    assert documents.documents.tolist() == [0, 0, 0, 2, 3]


def test_documents_are_held_out_whole_and_for_ever():
    rooms = store([9] * 3000, documents=[i // 3 for i in range(3000)])
    train, valid = rows_of(rooms, "train", 0.1), rows_of(rooms, "valid", 0.1)
    assert sorted([*train, *valid]) == list(range(3000)) == rows_of(rooms, "all", 0.1).tolist()
    assert not set(rooms.documents[train]) & set(rooms.documents[valid])
    assert abs(len(valid) / 3000 - 0.1) < 3 * (0.09 / 1000) ** 0.5
    fewer = rows_of(store([9] * 300, documents=[i // 3 for i in range(300)]), "valid", 0.1)
    assert fewer.tolist() == [row for row in valid if row < 300]  # a longer store holds out the same documents
