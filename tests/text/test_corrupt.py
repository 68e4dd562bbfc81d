"""Corruption: definitions and statistics, against samplers written as loops."""

from dataclasses import replace

import pytest
import torch

from foretext.text import corrupt as module
from foretext.text.batches import Documents
from foretext.text.corrupt import (
    Vocabulary,
    Words,
    corrupt,
    half_even,
    sample_words,
    select,
    shuffle_words,
    shuffled,
    token_budget,
    word_budget,
)
from foretext.text.randomness import example_keys
from tests.random_tokens import CLS, MASK, SEP, UNK, alphabet, random_documents

TOKENIZER = alphabet(64, continuing=20)
VOCABULARY = Vocabulary.of(TOKENIZER)
HOWS = ("token", "token_budget", "word", "cut_word", "span")
over_hows = pytest.mark.parametrize("how", HOWS)


def framed(lengths, seed=0):
    return random_documents(TOKENIZER, lengths, seed).framed(CLS, SEP, 512)


def words_of(ids: list[int]) -> list[list[int]]:
    """Positions of each word, by the rule written out: a continuing token joins an ordinary one before it."""
    words = []
    for i, token in enumerate(ids):
        if TOKENIZER.special[token]:
            continue
        if i and not TOKENIZER.special[ids[i - 1]] and VOCABULARY.joins_left[token]:
            words[-1].append(i)
        else:
            words.append([i])
    return words


def walk(lengths: list[int], order: list[int], budget: int) -> set[int]:
    """Sampler W as a loop."""
    chosen, used = set(), 0
    for word in order:
        if used + lengths[word] <= budget:
            chosen.add(word)
            used += lengths[word]
    return chosen


def in_order(order: list[int], lengths: list[int], budget: int) -> list[int]:
    """What the vectorised sampler takes when the words are drawn in this order."""
    tickets = torch.empty(1, 1, len(lengths), dtype=torch.int32)
    for place, word in enumerate(order):
        tickets[0, 0, word] = place * module.MAX_WORDS + word
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_tickets", lambda *_: tickets)
        chosen = sample_words(torch.tensor([lengths]), torch.zeros(1, dtype=torch.int64), "select", torch.tensor([budget]))
    return chosen[0, 0].nonzero().squeeze(1).tolist()


def test_half_even_budgets():
    assert half_even(torch.tensor([0.5 * 7, 0.5 * 9, 0.3 * 7, 0.15 * 30], dtype=torch.float64)).tolist() == [4, 4, 2, 4]
    assert token_budget(torch.tensor([1, 10, 30, 50, 128, 512]), 0.15).tolist() == [1, 2, 4, 8, 19, 77]
    assert word_budget(torch.tensor([8192]), 0.3).tolist() == [512]


def test_sampler_of_whole_words_on_the_worked_example():
    lengths = [1, 2, 1, 1]  # hello | foo ##bar | , | world
    assert in_order([1, 0, 2, 3], lengths, 2) == [1]
    assert in_order([0, 1, 2, 3], lengths, 2) == [0, 2]
    assert in_order([3, 1, 2, 0], lengths, 2) == [2, 3]
    assert in_order([0, 1], [3, 5], 2) == [0]  # all too long: the shortest


def test_sampler_equals_the_walk():
    """Random word lengths, budgets and sequences of different length, several draws of each."""
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 40, (50,), generator=draw)
    lengths = torch.randint(1, 6, (50, 40), generator=draw) * (torch.arange(40) < counts[:, None])
    budget = torch.randint(1, 60, (50,), generator=draw)
    keys = example_keys(3, 0, torch.arange(50))
    chosen = sample_words(lengths, keys, "select", budget, draws=7, force_one=False)
    tickets = module._tickets(lengths, keys, "select", 7)
    for b in range(50):
        for d in range(7):
            order = tickets[b, d, : counts[b]].argsort().tolist()
            assert set(chosen[b, d].nonzero().squeeze(1).tolist()) == walk(lengths[b].tolist(), order, int(budget[b]))


@pytest.mark.parametrize("longest", [2, 6, 30])
def test_sampler_of_a_device_chooses_the_same_words(longest):
    draw = torch.Generator().manual_seed(longest)
    counts = torch.randint(0, 60, (200,), generator=draw)
    lengths = torch.randint(1, longest, (200, 60), generator=draw) * (torch.arange(60) < counts[:, None])
    budget, keys = torch.randint(1, 90, (200,), generator=draw), example_keys(3, 0, torch.arange(200))
    chosen = sample_words(lengths, keys, "select", budget, draws=9, force_one=False)
    sizes = len(lengths.unique()) - 1
    assert torch.equal(module._sample_in_rounds(lengths, keys, "select", budget, 9, sizes), chosen)
    few = module._sample_in_rounds(lengths, keys, "select", budget, 9, 1)
    assert longest == 2 or not torch.equal(few, chosen)  # the rounds are needed


def test_sampler_is_fair():
    """Ten words of one token, three taken: each as often as the others, and each pair."""
    lengths, keys = torch.ones(1, 10, dtype=torch.int64), example_keys(0, 0, torch.tensor([0]))
    chosen = sample_words(lengths, keys, "select", torch.tensor([3]), draws=20_000)[0]
    share = chosen.float().mean(0)
    assert (share - 0.3).abs().max() < 4 * (0.3 * 0.7 / 20_000) ** 0.5
    pairs = chosen.T.float() @ chosen.float() / 20_000
    expected = 3 * 2 / (10 * 9)
    assert (pairs[~torch.eye(10, dtype=torch.bool)] - expected).abs().max() < 4.5 * (expected * (1 - expected) / 20_000) ** 0.5


def test_sampler_does_not_see_its_batch_or_its_chunks(monkeypatch):
    keys = example_keys(3, 0, torch.arange(6))
    lengths = torch.randint(1, 4, (6, 30), generator=torch.Generator().manual_seed(1))
    lengths *= torch.arange(30) < torch.tensor([30, 3, 17, 30, 1, 8])[:, None]
    budget = lengths.sum(1) // 3 + 1
    together = sample_words(lengths, keys, "select", budget, draws=9)
    for b in range(6):
        n = int((lengths[b] > 0).sum())
        alone = sample_words(lengths[b : b + 1, :n], keys[b : b + 1], "select", budget[b : b + 1], draws=9)
        assert torch.equal(together[b, :, :n], alone[0]) and not together[b, :, n:].any()
    monkeypatch.setattr(module, "IN_CACHE", 1)
    assert torch.equal(sample_words(lengths, keys, "select", budget, draws=9), together)
    assert torch.equal(sample_words(lengths, keys, "select", budget, draws=4), together[:, :4])


def test_words_follow_the_rule():
    documents = framed([40, 7, 1, 25])
    documents.ids[10], documents.ids[44] = UNK, UNK  # special tokens inside a text
    words = Words.of(documents, VOCABULARY)
    for b, (start, n) in enumerate(zip(documents.starts.tolist(), documents.lengths.tolist())):
        expected = torch.full((n,), -1)
        found = words_of(documents.ids[start : start + n].tolist())
        for w, positions in enumerate(found):
            expected[positions] = w
        assert words.token[start : start + n].tolist() == expected.tolist()
        assert words.lengths[b][words.lengths[b] > 0].tolist() == [len(positions) for positions in found]


@over_hows
def test_special_tokens_are_never_selected(how):
    documents = framed([1, 2, 3, 30, 100] * 4)
    documents.ids[torch.arange(60, len(documents.ids), 9)] = UNK
    selected, _ = select(documents, VOCABULARY, how, 0.5)
    assert not (selected & VOCABULARY.special[documents.ids]).any()


@over_hows
def test_every_text_gets_something_to_predict(how):
    documents = framed([1, 2, 3] * 50)
    selected, _ = select(documents, VOCABULARY, how, 0.15)
    counts = torch.zeros(150, dtype=torch.int64).index_add_(0, documents.sequence, selected.long())
    assert (counts >= 1).all()
    nothing = Documents(torch.tensor([CLS, UNK, SEP]), torch.tensor([3]), torch.tensor([0]), torch.tensor([0]))
    assert not select(nothing, VOCABULARY, how, 0.15)[0].any()


@over_hows
def test_selection_does_not_see_its_batch_mates(how):
    documents = framed([30, 12, 5, 60, 3])
    together, unit = select(documents, VOCABULARY, how, 0.3)
    for b in range(5):
        alone, unit_alone = select(documents.select(torch.tensor([b])), VOCABULARY, how, 0.3)
        assert torch.equal(together[documents.sequence == b], alone)
        assert torch.equal(unit[documents.sequence == b], unit_alone)


def test_selected_share_of_single_tokens():
    documents = framed([62] * 1000)
    selected, _ = select(documents, VOCABULARY, "token", 0.15)
    n = 62 * 1000
    assert abs(int(selected.sum()) - 0.15 * n) < 3 * (n * 0.15 * 0.85) ** 0.5


def test_exact_budgets():
    documents = framed([1, 2, 3, 8, 28, 48, 126, 510])
    for how in ("token_budget", "cut_word"):
        selected, _ = select(documents, VOCABULARY, how, 0.15)
        counts = torch.zeros(8, dtype=torch.int64).index_add_(0, documents.sequence, selected.long())
        assert counts.tolist() == [1, 1, 1, 2, 4, 8, 19, 77]
    selected, _ = select(documents, VOCABULARY, "cut_word", 0.999)
    assert torch.equal(selected, ~VOCABULARY.special[documents.ids])  # at most what there is


@pytest.mark.parametrize("how", ["word", "span"])
def test_words_are_never_split(how):
    documents = framed([20, 50, 90] * 20)
    selected, _ = select(documents, VOCABULARY, how, 0.3)
    for start, n in zip(documents.starts.tolist(), documents.lengths.tolist()):
        here = selected[start : start + n]
        for positions in words_of(documents.ids[start : start + n].tolist()):
            assert here[positions].all() or not here[positions].any()
        assert 1 <= here.sum() <= half_even(torch.tensor(0.3 * n, dtype=torch.float64)) + 3  # a forced word may be longer


def test_cut_words_are_the_end_of_a_shuffle():
    """The last P tokens when the words are put in random order: one word at most is cut, and its end is taken."""
    documents = framed([20, 50, 90] * 20)
    selected, _ = select(documents, VOCABULARY, "cut_word", 0.3)
    order, _ = shuffle_words(Words.of(documents, VOCABULARY).lengths, documents.keys, "select")
    for b, (start, n) in enumerate(zip(documents.starts.tolist(), documents.lengths.tolist())):
        words = words_of(documents.ids[start : start + n].tolist())
        line = [p for w in reversed(order[b, : len(words)].tolist()) for p in words[w]]
        expected = line[len(line) - round(0.3 * n) :]
        assert selected[start : start + n].nonzero().squeeze(1).tolist() == sorted(expected)


def test_spans_are_runs_of_words_of_the_right_length():
    documents = framed([200] * 200)
    documents.ids[torch.arange(50, len(documents.ids), 37)] = UNK  # no span runs across a special token
    plain = replace(VOCABULARY, joins_left=torch.zeros_like(VOCABULARY.joins_left))  # every token a word
    selected, unit = select(documents, plain, "span", 0.15)
    counts = torch.zeros(200, dtype=torch.int64).index_add_(0, documents.sequence, selected.long())
    eligible = torch.zeros(200, dtype=torch.int64).index_add_(0, documents.sequence, (~VOCABULARY.special[documents.ids]).long())
    budget = half_even(eligible.double() * 0.15)
    assert (counts <= budget).all() and (counts == budget).float().mean() > 0.9
    sizes = []
    for b in range(200):
        here, units = selected[documents.sequence == b], unit[documents.sequence == b]
        for u in units[here].unique():
            places = (here & (units == u)).nonzero().squeeze(1)
            assert places[-1] - places[0] == len(places) - 1
            sizes.append(len(places))
    mean = torch.tensor(sizes).double().mean()
    assert max(sizes) == 10 and 2.8 < mean < 3.8  # 3.8 before long ones are refused at the end of the budget


def test_replacement_shares():
    documents = framed([510] * 100)
    places = (~VOCABULARY.special[documents.ids]).nonzero().squeeze(1)
    after, before = corrupt(documents, VOCABULARY, places, documents.positions)[places], documents.ids[places]
    n = len(places)
    masked, kept = (after == MASK), (after == before)
    for found, share in ((masked, 0.8), (kept, 0.1 + 0.1 / 64), (~masked & ~kept, 0.1 * 63 / 64)):
        assert abs(int(found.sum()) - share * n) < 3.5 * (n * share * (1 - share)) ** 0.5
    strangers = after[~masked & ~kept]
    assert not VOCABULARY.special[strangers].any()
    counts = torch.bincount(strangers, minlength=69)[5:].double()
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 110  # chi square, 63 degrees of freedom


def test_nothing_else_is_touched_and_units_share_their_fate():
    documents = framed([200] * 20)
    selected, unit = select(documents, VOCABULARY, "span", 0.3)
    ids = corrupt(documents, VOCABULARY, selected.nonzero().squeeze(1), unit)
    assert torch.equal(ids[~selected], documents.ids[~selected])
    for b in range(20):
        for u in unit[selected & (documents.sequence == b)].unique():
            part = selected & (documents.sequence == b) & (unit == u)
            assert (ids[part] == MASK).all() or not (ids[part] == MASK).any()


def test_shuffled_is_a_permutation_of_each_text():
    documents = framed([9, 40, 1, 25])
    selected, _ = select(documents, VOCABULARY, "word", 0.5)
    places, step, sizes = shuffled(documents, selected, "block")
    assert sorted(places.tolist()) == selected.nonzero().squeeze(1).tolist()
    assert torch.equal(documents.sequence[places], torch.arange(4).repeat_interleave(sizes))
    assert step.tolist() == [i for n in sizes.tolist() for i in range(n)]
    for b in range(4):
        alone = documents.select(torch.tensor([b]))
        found, _, _ = shuffled(alone, selected[documents.sequence == b], "block")
        assert torch.equal(found + documents.starts[b], places[documents.sequence[places] == b])
