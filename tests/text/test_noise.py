"""Noise: budgets and places as the papers define them, checked on many random texts and by hand."""

import pytest
import torch

from foretext.text.batches import Documents
from foretext.text.noise import delete, infill, most_spans, poisson_spans, random_ranks, shuffle_sentences, span_corruption
from foretext.text.randomness import example_keys

MASK, FIRST_SENTINEL = 4, 900
SENTINELS = torch.arange(FIRST_SENTINEL, FIRST_SENTINEL + 40)


def made(lengths: list[int], epoch: int = 0) -> Documents:
    """Texts 100, 101, 102, ...: a token says where it stood."""
    sizes, numbers = torch.tensor(lengths), torch.arange(len(lengths))
    ids = torch.cat([torch.arange(100, 100 + n) for n in lengths])
    return Documents(ids, sizes, example_keys(0, epoch, numbers), numbers)


def texts(documents: Documents) -> list[list[int]]:
    return [part.tolist() for part in documents.ids.split(documents.lengths.tolist())]


LENGTHS = [1, 2, 3, 4, 7, 10, 30, 60] * 12


def test_infill_hides_the_budget_and_spans_do_not_touch():
    inserted = 0
    for n, source in zip(LENGTHS, texts(infill(made(LENGTHS), MASK))):
        kept = [token for token in source if token != MASK]
        assert kept == sorted(set(kept))  # in order, each once
        assert n - len(kept) == round(0.3 * n)
        gaps = 0  # where something is missing, exactly one mask stands, or more where a span of length 0 fell there too
        run, last = 0, 99
        for token in [*source, 100 + n]:
            if token == MASK:
                run += 1
                continue
            gaps += token != last + 1
            assert token == last + 1 or run >= 1
            last, run = token, 0
        masks = source.count(MASK)
        assert gaps <= masks <= 2 * gaps
        inserted += masks - gaps
    assert inserted > 0


def test_infill_at_rate_nothing_is_the_text_itself():
    documents = made(LENGTHS)
    same = infill(documents, MASK, share=0.0)
    assert torch.equal(same.ids, documents.ids) and torch.equal(same.lengths, documents.lengths)


def test_infill_fits_at_half():
    for n, source in zip(LENGTHS, texts(infill(made(LENGTHS), MASK, share=0.5, mean=0.2))):
        assert n - sum(token != MASK for token in source) == round(0.5 * n)


def test_poisson_lengths_have_their_mean_and_fill_the_budget():
    keys = example_keys(0, 0, torch.arange(3000))
    lengths, zeros = poisson_spans(keys, torch.full((3000,), 100), 3.0)
    assert (lengths.sum(1) == 100).all()
    spans = (lengths > 0).sum(1)
    assert (zeros <= spans).all()
    # Of Poisson(3) the share exp(-3) is 0, and the mean of the others is 3 / (1 - exp(-3)) = 3.157
    assert float(zeros.sum() / (zeros + spans).sum()) == pytest.approx(0.0498, abs=0.004)
    assert float(lengths.sum() / spans.sum()) == pytest.approx(3.157, abs=0.08)


def test_infill_places_are_uniform():
    """One span of 3 in 10 tokens starts at each of 8 places equally often."""
    starts = torch.zeros(8)
    for epoch in range(6):
        for source in texts(infill(made([10] * 1000, epoch), MASK, mean=60.0)):  # so long that one span takes the budget
            assert source.count(MASK) == 1
            starts[source.index(MASK)] += 1
    assert (starts / 6000 - 1 / 8).abs().max() < 0.02


def test_spans_split_the_text_between_source_and_target():
    documents = made(LENGTHS)
    for n, source, target in zip(LENGTHS, *map(texts, span_corruption(documents, SENTINELS))):
        noise = max(1, round(0.15 * n))
        count = min(max(1, round(noise / 3)), noise, n - noise)
        marks = list(range(FIRST_SENTINEL, FIRST_SENTINEL + count))
        assert [t for t in source if t >= FIRST_SENTINEL] == marks
        assert [t for t in target if t >= FIRST_SENTINEL] == marks
        assert len(source) == (n - noise if count else n) + count
        spans, current = {}, None
        for token in target:
            if token >= FIRST_SENTINEL:
                current = spans.setdefault(token, [])
            else:
                current.append(token)
        assert all(spans.values())  # none is empty
        if count:
            assert source[0] < FIRST_SENTINEL  # the text begins with a part that is kept
            assert all(a < FIRST_SENTINEL or b < FIRST_SENTINEL for a, b in zip(source, source[1:]))
        whole = [token for t in source for token in spans.get(t, [t])]
        assert whole == list(range(100, 100 + n))


def test_sentinels_that_a_length_needs():
    assert most_spans(510, 0.15, 3.0) == round(round(0.15 * 510) / 3) == 25
    source, _ = span_corruption(made([510]), SENTINELS)
    assert int((source.ids >= FIRST_SENTINEL).sum()) == 25


def test_random_splits_are_uniform():
    """Two spans in three tokens of noise: 1 + 2 and 2 + 1 equally often."""
    firsts = [target.index(FIRST_SENTINEL + 1) for target in texts(span_corruption(made([20] * 4000), SENTINELS, mean=1.5)[1])]
    assert set(firsts) == {2, 3}
    assert firsts.count(2) / 4000 == pytest.approx(0.5, abs=0.03)


def test_delete_drops_its_share_and_keeps_one():
    documents = made(LENGTHS)
    found = texts(delete(documents, 0.6))
    assert all(found)
    assert all(source == sorted(set(source)) and set(source) <= set(range(100, 100 + n)) for n, source in zip(LENGTHS, found))
    long = made([400] * 50)
    assert len(delete(long).ids) / len(long.ids) == pytest.approx(0.4, abs=0.015)
    assert all(len(source) == 1 for source in texts(delete(documents, 1.0)))
    assert torch.equal(delete(documents, 0.0).ids, documents.ids)


def test_sentences_change_places_whole():
    documents = made([12] * 40)
    ends = torch.zeros(1000, dtype=torch.bool)
    ends[[103, 107]] = True
    sentences = [list(range(100, 104)), list(range(104, 108)), list(range(108, 112))]
    orders = set()
    for text in texts(shuffle_sentences(documents, ends)):
        order = tuple(sorted(range(3), key=lambda i: text.index(sentences[i][0])))
        assert text == [token for i in order for token in sentences[i]]
        orders.add(order)
    assert len(orders) == 6


@pytest.mark.parametrize("noise", [lambda d: infill(d, MASK), lambda d: span_corruption(d, SENTINELS)[0],
                                   lambda d: span_corruption(d, SENTINELS)[1], delete])
def test_noise_does_not_depend_on_batch_mates_and_differs_by_epoch(noise):
    documents = made([30, 9, 60, 1])
    together = texts(noise(documents))
    assert together == [texts(noise(documents.select(torch.tensor([i]))))[0] for i in range(4)]
    assert together != texts(noise(made([30, 9, 60, 1], epoch=1)))


def test_ranks_are_permutations():
    counts = torch.tensor([0, 1, 5, 3])
    ranks = random_ranks(example_keys(0, 0, torch.arange(4)), "noise", counts)
    for row, n in zip(ranks.tolist(), counts.tolist()):
        assert sorted(row[:n]) == list(range(n))
