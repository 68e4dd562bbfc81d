"""coCondenser: partners among all spans of a step, exact however the step is split; and the source of span pairs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.objectives.condenser import CoCondenser, partner_loss
from foretext.text.batches import SHORTEST_PIECE
from foretext.text.pairs import Pairs, SpanPairs
from foretext.text.randomness import example_keys
from tests.objectives.table import make_objective, make_source, one_step
from tests.objectives.test_table import gradient


def test_worked_number():
    loss, right = partner_loss(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]))
    assert float(loss) / 4 == pytest.approx(0.551445, abs=1e-6)
    assert right == 4


def test_swapping_partners_changes_nothing():
    objective = make_objective("cocondenser").eval()
    (batch,) = one_step(objective)
    with torch.no_grad():
        step = objective(batch)
        straight = objective.couple(step.vectors, {}, batch).terms["contrastive"]
        swapped = step.vectors["sentence"].view(-1, 2, 128).flip(1).flatten(0, 1)
        torch.testing.assert_close(objective.couple({"sentence": swapped}, {}, batch).terms["contrastive"], straight)


def test_partners_are_neighbours_and_masked_differently():
    """Two equal spans: the same text in rows 2k and 2k + 1, other masks."""
    objective = make_objective("cocondenser").eval()
    rows = np.arange(6)
    spans = make_source(objective).read(rows, example_keys(1, 0, torch.from_numpy(rows))).queries
    batch = objective.collate(Pairs(spans, spans, torch.empty(0)))
    texts = batch.tokens_in.ids.index_copy(0, batch.places, batch.labels).split(batch.tokens_in.layout.lengths)
    texts = [texts[i] for i in batch.order]
    shown = [batch.tokens_in.ids.split(batch.tokens_in.layout.lengths)[i] for i in batch.order]
    for k in range(6):
        assert torch.equal(texts[2 * k], texts[2 * k + 1])
        assert texts[2 * k][1:-1].tolist() == spans.select(torch.tensor([k])).ids[:62].tolist()
    assert sum(torch.equal(shown[2 * k], shown[2 * k + 1]) for k in range(6)) < 3
    assert batch.counts["contrastive"] == 12


def test_exact_at_any_split_with_the_papers_temperature():
    """In double precision, since scores that are not normalised multiply the rounding of single precision."""
    objective = make_objective("cocondenser")
    objective.config = CoCondenser.Config()
    assert objective.config.temperature == 1
    objective.double().encoder.compute_dtype = torch.float64
    whole = one_step(objective)
    reference = gradient(objective, whole)
    for parts in (2, 5, 9):
        split = one_step(objective, micro_tokens=whole[0].tokens // parts)
        assert len(split) >= parts
        assert (gradient(objective, split) - reference).norm() / reference.norm() <= 1e-6


def made_up_store(rng: np.random.Generator, documents: int = 40) -> SimpleNamespace:
    """The arrays of a store whose tokens say where they lie: documents of 1 to 3 rows of 1 to 9 sentences of 1 to 30 tokens."""
    sentences = [[rng.integers(1, 31, rng.integers(1, 10)) for _ in range(rng.integers(1, 4))] for _ in range(documents)]
    rows = [row for document in sentences for row in document]
    starts = [np.cumsum(row) - row for row in rows]
    offsets = np.concatenate(([0], np.cumsum([row.sum() for row in rows])))
    return SimpleNamespace(
        path="store", tokens=np.arange(offsets[-1]).astype(np.uint16), offsets=offsets,
        documents=np.repeat(np.arange(documents), [len(document) for document in sentences]),
        sentence_starts=np.concatenate(starts).astype(np.int32),
        sentence_offsets=np.concatenate(([0], np.cumsum([len(row) for row in rows]))),
    )  # fmt: skip


def packed(store: SimpleNamespace, max_tokens: int) -> dict[int, list[tuple[int, int]]]:
    """Greedily, sentence by sentence."""
    found: dict[int, list[tuple[int, int]]] = {}
    for i, document in enumerate(store.documents):
        starts = store.sentence_starts[store.sentence_offsets[i] : store.sentence_offsets[i + 1]] + store.offsets[i]
        edges = [*starts.tolist(), int(store.offsets[i + 1])]
        begin = edges[0]
        for end, after in zip(edges[1:], [*edges[2:], None]):
            if after is None or after - begin > max_tokens:
                if end - begin >= SHORTEST_PIECE:
                    found.setdefault(int(document), []).append((begin, end))
                begin = end
    return found


@pytest.mark.parametrize("max_tokens", [20, 64])
def test_spans_are_whole_sentences_packed(max_tokens):
    store = made_up_store(np.random.default_rng(0))
    source, expected = SpanPairs(store, max_tokens), packed(store, max_tokens)
    several = {document: spans for document, spans in expected.items() if len(spans) > 1}
    assert source.documents.tolist() == list(several)
    assert source.left_out == len(expected) - len(several)
    for document, first, count in zip(source.documents.tolist(), source.first, source.counts):
        begin, size = source.span_starts[first : first + count], source.span_lengths[first : first + count]
        assert list(zip(begin.tolist(), (begin + size).tolist())) == several[document]


@pytest.mark.parametrize("kind", ["sentences", "windows"])
def test_two_different_spans_of_one_document(kind):
    store = made_up_store(np.random.default_rng(1))
    source = SpanPairs(store, 25, spans=kind)
    rows = np.arange(len(source.documents)).repeat(60)
    pairs = source.read(rows, example_keys(1, torch.arange(len(rows)), torch.from_numpy(rows)))
    assert torch.equal(pairs.queries.documents, pairs.passages.documents)
    assert (pairs.queries.lengths >= SHORTEST_PIECE).all()
    starts = [side.ids[side.starts] for side in (pairs.queries, pairs.passages)]
    assert (starts[0] != starts[1]).all()
    row = np.searchsorted(store.offsets, starts[0].numpy(), side="right") - 1
    assert np.array_equal(store.documents[row], source.documents[rows])
    drawn = [set(zip(a, b)) for a, b in zip(starts[0].view(-1, 60).tolist(), starts[1].view(-1, 60).tolist())]
    two = source.counts == 2
    assert all(len(found) == 2 for found, pair in zip(drawn, two) if pair)  # both orders
    again = source.read(rows, example_keys(1, torch.arange(len(rows)), torch.from_numpy(rows)))
    assert torch.equal(pairs.queries.ids, again.queries.ids)
    read = (pairs.queries.lengths + pairs.passages.lengths).view(-1, 60).double().mean(1)
    assert np.abs(read.numpy() - source.lengths).max() < 12


def test_a_corpus_without_pairs_is_refused():
    store = SimpleNamespace(path="store", tokens=np.arange(50).astype(np.uint16), offsets=np.array([0, 50]), documents=np.array([0]),
                            sentence_starts=np.array([0, 20], dtype=np.int32), sentence_offsets=np.array([0, 2]))
    with pytest.raises(UserError, match="take shorter spans"):
        SpanPairs(store, 60)
    assert SpanPairs(store, 30).counts.tolist() == [2]


def test_vectors_alone_are_those_of_the_whole_forward():
    """The first pass of a split step leaves out the heads and draws the same dropout."""
    objective = make_objective("cocondenser", dropout=0.2, attention_dropout=0.2)
    (batch,) = one_step(objective)
    torch.manual_seed(4)
    whole = objective(batch)
    torch.manual_seed(4)
    alone = objective.represent(batch)
    assert torch.equal(alone.vectors["sentence"], whole.vectors["sentence"]) and not alone.terms
