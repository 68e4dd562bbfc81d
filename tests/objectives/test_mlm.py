"""Masked language modelling: its invariants."""

import math

import pytest
import torch
import torch.nn.functional as F

from foretext.objectives.mlm import MLM
from foretext.text.batches import Batches
from foretext.training.distributed import World
from foretext.training.refresh import Rounds
from tests.objectives.table import make_objective, make_source, one_step
from tests.random_tokens import alphabet, leak_bound, random_documents, tiny_encoder, trained_loss

over_selections = pytest.mark.parametrize("selection", ["token", "token_budget", "word", "span"])


@over_selections
def test_labels_are_the_originals_of_what_is_hidden(selection):
    tokenizer = alphabet(40, continuing=12)
    objective = MLM(tiny_encoder(tokenizer), tokenizer, MLM.Config(selection=selection, share=0.3))
    documents = random_documents(tokenizer, [28, 20, 5, 1])
    batch = objective.collate(documents)
    original = objective.framed(documents).ids
    assert torch.equal(batch.labels, original[batch.places])
    elsewhere = torch.ones(len(original), dtype=torch.bool)
    elsewhere[batch.places] = False
    assert torch.equal(batch.tokens_in.ids[elsewhere], original[elsewhere])
    assert (batch.labels >= 5).all()
    assert batch.counts == {"mlm": len(batch.labels)}


@pytest.mark.parametrize("layout", ["bert-tiny", "mpnet-tiny", "modernbert-tiny"])
def test_gathered_rows_give_the_loss_of_full_logits(layout):
    objective = make_objective("mlm", layout).eval()
    (batch,) = one_step(objective)
    with torch.no_grad():
        logits = objective.head(objective.encoder(batch.tokens_in), objective.encoder.words)  # (T, V)
        labels = torch.full((len(batch.tokens_in.ids),), -100)
        labels[batch.places] = batch.labels
        step = objective(batch)
    torch.testing.assert_close(step.terms["mlm"], F.cross_entropy(logits, labels, reduction="sum"), rtol=1e-5, atol=1e-4)
    right, count = step.metrics["accuracy"]
    assert (int(right), count) == (int((logits.argmax(1) == labels).sum()), len(batch.labels))


@pytest.mark.parametrize(("selection", "layout"), [("token", "bert"), ("span", "modernbert")])
def test_uniform_tokens_cannot_be_predicted(selection, layout):
    tokenizer = alphabet(16)
    objective = MLM(tiny_encoder(tokenizer, layout), tokenizer, MLM.Config(selection=selection, share=0.3))
    bound = leak_bound(16)
    assert bound == pytest.approx(2.610, abs=1e-3)
    if selection == "span":  # neighbours share one draw and tell whether this token is kept; masked and random ones still cost ln V'
        bound = 0.9 * math.log(16)
    assert trained_loss(objective) > bound - 0.03


def test_bounds_of_the_leak_test():
    assert [round(leak_bound(n), 3) for n in (16, 64, 256)] == [2.610, 3.874, 5.127]
    assert leak_bound(16, 1.0, 0.0) == pytest.approx(2.7726, abs=1e-4)


@pytest.mark.parametrize("static", [False, True])
def test_static_masks_are_those_of_epoch_0(static):
    """Three epochs of four steps: the same masks for a text every time, or not; the order of the texts is each epoch's own."""
    objective = make_objective("mlm")
    objective = MLM(objective.encoder, objective.tokenizer, MLM.Config(static=static))
    assert objective.static == static
    rounds = Rounds(objective, make_source(objective), None, 48, 10**9, 5, World(0, 1, torch.device("cpu")))
    epochs = [rounds.batches.step(epoch)[0] for epoch in range(3)]
    assert not torch.equal(epochs[0].documents, epochs[1].documents)
    masks = []
    for batch in epochs:
        texts = batch.tokens_in.ids.split(list(batch.tokens_in.layout.lengths))
        masks.append({document: ids.tolist() for document, ids in zip(batch.documents.tolist(), texts)})
    assert (masks[0] == masks[1] == masks[2]) == static
    first = Batches(make_source(objective), objective.collate, 48, 10**9, 5).step(0)[0]
    assert torch.equal(first.tokens_in.ids, epochs[0].tokens_in.ids)
