"""`foretext show` tells the truth: its marks are compared with the tensors of the very batch."""

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.objectives import OBJECTIVES
from foretext.objectives.show import Grid, Note, Row, lines
from foretext.text.randomness import example_keys
from foretext.verbs.show import show
from tests.conftest import made_up_texts
from tests.objectives.table import make_objective, make_source, small_tokenizer
from tests.verbs.test_cli import foretext

KINDS = {"masked", "random", "kept"}
MASKING = ["mlm", "electra", "retromae", "dupmae", "condenser", "cocondenser"]
over_objectives = pytest.mark.parametrize("name", OBJECTIVES)


def shown_of(name: str, count: int = 12):
    """(objective, a batch of texts of mixed length, what is shown of it)."""
    objective = make_objective(name).eval()
    rows = np.arange(count)
    batch = objective.collate(make_source(objective).read(rows, example_keys(1, 0, torch.from_numpy(rows))))
    return objective, batch, objective.show(batch)


def marked_rows(shown) -> list[Row]:
    return [item for item in shown if isinstance(item, Row) and any(token.kind in KINDS for token in item.tokens)]


def kind_of(read: int, original: int, mask_id: int) -> str:
    return "masked" if read == mask_id else "kept" if read == original else "random"


def expected_texts(objective, batch) -> list[list[tuple[int, int, str]]]:
    """(read, original, kind) of every token of every sequence, from the tensors that the forward pass reads."""
    if objective.name == "electra":
        layout, read, original, places = batch.clean.layout, batch.masked, batch.clean.ids, batch.slots
    elif objective.name in ("retromae", "dupmae"):
        layout, read, original, places = batch.clean.layout, batch.corrupted, batch.clean.ids, batch.places
    else:
        layout, read, places = batch.tokens_in.layout, batch.tokens_in.ids, batch.places
        original = read.index_copy(0, places, batch.labels)
    asked = set(places.tolist())
    flat = [(r, o, kind_of(r, o, objective.tokenizer.mask_id) if i in asked else "")
            for i, (r, o) in enumerate(zip(read.tolist(), original.tolist()))]
    ends = np.cumsum((0, *layout.lengths))
    texts = [flat[a:b] for a, b in zip(ends, ends[1:])]
    return [texts[place] for place in batch.order.tolist()] if objective.name == "cocondenser" else texts


@over_objectives
def test_every_objective_shows_every_text(name):
    objective, batch, shown = shown_of(name)
    rows = [item for item in shown if isinstance(item, Row)]
    assert len(rows) >= len(batch.documents)
    assert all(item.tokens for item in rows)
    plain = "\n".join(line.plain for line in lines(shown, small_tokenizer(), plain=True))
    colour = lines(shown, small_tokenizer(), plain=False)
    for kind in KINDS:  # each mark is named once in plain text, and has its own style on a terminal
        assert plain.count(f"[{kind}: ") + plain.count(f"[{kind} ") == sum(token.kind == kind for row in rows for token in row.tokens)
    assert name in ("contrastive", "dual", "convert") or any(span.style for line in colour for span in line.spans)


@pytest.mark.parametrize("name", MASKING)
def test_marks_are_those_of_the_batch(name):
    objective, batch, shown = shown_of(name)
    found = [[(token.shown, token.original, token.kind) for token in row.tokens] for row in marked_rows(shown)]
    assert found == expected_texts(objective, batch)
    assert sum(kind != "" for text in found for _, _, kind in text) == batch.counts[objective.terms[0]]


def test_texts_are_the_framed_originals():
    objective = make_objective("mlm")
    rows = np.arange(6)
    examples = make_source(objective).read(rows, example_keys(1, 0, torch.from_numpy(rows)))
    found = [[token.original for token in row.tokens] for row in objective.show(objective.collate(examples))]
    assert sum(found, []) == objective.framed(examples).ids.tolist()


def test_mpnet_shows_block_order_and_sight():
    objective, batch, shown = shown_of("mpnet")
    texts, orders, grids = shown[::3], shown[1::3], shown[2::3]
    first = 0
    for b, (text, order, grid) in enumerate(zip(texts, orders, grids)):
        last = first + batch.queries.layout.lengths[b]
        stand_ins, labels = batch.queries.ids[first:last].tolist(), batch.labels[first:last].tolist()
        places = batch.queries.positions[first:last].tolist()
        assert [(t.shown, t.original, t.note) for t in order.tokens] == [(s, o, f"@{p}") for s, o, p in zip(stand_ins, labels, places)]
        for number, place in enumerate(places):
            token = text.tokens[place]
            assert (token.shown, token.original, token.note) == (stand_ins[number], labels[number], f"#{number + 1}")
        assert sum(token.kind != "" for token in text.tokens) == len(places)
        assert isinstance(grid, Grid)
        n = len(text.tokens)
        for (position, id), seen in zip(grid.readers, grid.seen):
            number = places.index(position)
            assert id == labels[number]
            visible = {places[j] for j in range(number)} | set(range(n)) - set(places)
            assert {i for i in range(n) if seen[i]} == visible  # of the text as written: the context, and the block's tokens before
            assert [j for j in range(len(places)) if seen[n + j]] == list(range(number, len(places)))  # the masks still to come
        first = last


@pytest.mark.parametrize("name", ["retromae", "dupmae"])
def test_decoder_grids_are_what_the_decoder_sees(name):
    objective, batch, shown = shown_of(name)
    grids = [item for item in shown if isinstance(item, Grid)]
    layout = batch.clean.layout
    assert len(grids) == len(layout.lengths)
    for bucket, visible in zip(layout.buckets, objective.visible(batch)):
        for b in range(bucket.first, bucket.last):
            n = layout.lengths[b]
            for (position, _), seen in zip(grids[b].readers, grids[b].seen):
                assert torch.equal(seen, visible[b - bucket.first, 0, position, :n])
                assert not seen[position]


def test_dupmae_shows_the_bag():
    objective, batch, shown = shown_of("dupmae")
    bags = [row for row in shown if isinstance(row, Row) and row.tokens[0].kind == "bag"]
    ends = np.cumsum((0, *batch.clean.layout.lengths))
    for bag, a, b in zip(bags, ends[:-1], ends[1:], strict=True):
        words = {i for i in batch.clean.ids[a:b].tolist() if not objective.tokenizer.special[i]}
        assert {token.shown for token in bag.tokens} == words


def test_electra_shows_the_samples_that_the_forward_pass_judges():
    objective, batch, shown = shown_of("electra")
    judged = [row for row in shown if isinstance(row, Row)][1::2]
    kinds = [token.kind for row in judged for token in row.tokens]
    with torch.no_grad():
        metrics = objective(batch).metrics
    assert kinds.count("replaced") == int(metrics["replaced"][0])
    assert kinds.count("guessed") == int(metrics["sample_accuracy"][0])
    for row in judged:
        assert all((token.shown != token.original) == (token.kind == "replaced") for token in row.tokens)


def test_condenser_shows_the_split():
    objective, batch, shown = shown_of("condenser")
    head = shown[-1]
    assert [token.kind for token in head.tokens] == ["late"] + ["early"] * (batch.tokens_in.layout.lengths[0] - 1)
    assert {token.note for token in head.tokens} == {f"h{len(objective.encoder.blocks)}", f"h{objective.skip}"}


def test_cocondenser_shows_partners_together():
    _, batch, shown = shown_of("cocondenser")
    *spans, _, note = shown
    assert isinstance(note, Note)
    expected = [f"pair {pair}, span {span}" for pair in range(len(spans) // 2) for span in "ab"]
    assert [span.title.split(", document")[0] for span in spans] == expected
    names = [span.title.split("document ")[1].split(":")[0] for span in spans]
    assert names[::2] == names[1::2]


def test_contrastive_shows_pairs():
    _, batch, shown = shown_of("contrastive")
    *rows, note = shown
    ends = np.cumsum((0, *batch.passages.layout.lengths))
    for i, place in enumerate(batch.passage_places.tolist()):
        assert [token.shown for token in rows[2 * i + 1].tokens] == batch.passages.ids[ends[place]:ends[place + 1]].tolist()
    assert str(len(batch.passage_places)) in note.text


def test_clm_shows_what_follows():
    _, batch, shown = shown_of("clm")
    assert [t.shown for row in shown for t in row.tokens] == batch.tokens_in.ids.tolist()
    assert [t.original for row in shown for t in row.tokens] == batch.labels.tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save(folder)
    return str(folder)


@over_objectives
def test_from_texts(name, folder):
    texts = made_up_texts(40, seed=4)
    texts = [text for text in texts if text.count(". ") + text.count("! ") >= 2][:3]
    sets = ["pairs.kind=windows", "objective.max_len=14"] if name == "cocondenser" else []
    sets += ["pairs.kind=halves"] * (name == "convert")
    encoder = OBJECTIVES[name].start or "bert-tiny"
    shown, tokenizer = show(name, texts, tokenizer=folder, encoder=encoder, sets=sets)
    again, _ = show(name, texts, tokenizer=folder, encoder=encoder, sets=sets)
    assert shown[0] == again[0]
    assert lines(shown, tokenizer, plain=True)


def test_epochs_differ(folder):
    a, b = (show("mlm", made_up_texts(2, seed=4), tokenizer=folder, encoder="bert-tiny", epoch=epoch)[0] for epoch in (0, 1))
    assert [row.tokens for row in a] != [row.tokens for row in b]


@pytest.mark.parametrize(("arguments", "said"), [
    ({}, "--text and --store"),
    ({"texts": ["a text"]}, "--tokenizer"),
    ({"texts": ["a text"], "encoder": "bert-tiny"}, "--tokenizer"),
    ({"texts": ["a text"], "store": "nowhere"}, "--text and --store"),
    ({"store": "nowhere"}, "no token store"),
])
def test_what_is_missing_is_said(arguments, said):
    with pytest.raises(UserError, match=said):
        show("mlm", **arguments)


def test_the_command(folder):
    text = made_up_texts(1, seed=4)[0]
    done = foretext("show", "mlm", "--text", text, "--tokenizer", folder, "--set", "objective.share=.5")
    assert "[masked: " in done.stdout
    assert "hidden behind the mask token" in done.stdout
    assert "\x1b" not in done.stdout  # no terminal, no colours
    done = foretext("show", "mlm", "--text", text, code=2)
    assert done.stderr.startswith("foretext: a text needs a tokenizer")
    assert done.stderr.count("\n") == 1
