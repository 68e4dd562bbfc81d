"""RetroMAE: its invariants, and its decoder against the equations written out."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from foretext.objectives import retromae as module
from foretext.objectives.retromae import RetroMAE
from foretext.text.batches import Documents
from tests.objectives.table import LAYOUTS, make_objective, one_step
from tests.random_tokens import alphabet, random_documents, tiny_encoder

TOKENIZER = alphabet(40, continuing=12)


def retromae(tokenizer=TOKENIZER, layout="bert", **config) -> RetroMAE:
    changes = {"layers": 4, "window": 5} if layout == "modernbert" else {}
    return RetroMAE(tiny_encoder(tokenizer, layout, **changes), tokenizer, RetroMAE.Config(**config)).eval()


def seen_of(objective, batch) -> list[torch.Tensor]:
    """(n, n) of each text."""
    found = []
    for bucket, seen in zip(batch.clean.layout.buckets, objective.visible(batch)):
        for text in range(bucket.size):
            n = batch.clean.layout.lengths[bucket.first + text]
            assert not seen[text, 0, n:].any() and not seen[text, 0, :, n:].any()  # padding
            found.append(seen[text, 0, :n, :n])
    return found


def test_visibility_of_the_worked_example(monkeypatch):
    """`[CLS] a b c [SEP]`, words b and c hidden in every mask."""
    tokenizer = alphabet(40)
    objective = retromae(tokenizer)
    monkeypatch.setattr(module, "sample_words", lambda lengths, *_, **__: torch.tensor([False, True, True]).expand(1, 5, 3).clone())
    (seen,) = seen_of(objective, objective.collate(random_documents(tokenizer, [3])))
    assert [row.nonzero().squeeze(1).tolist() for row in seen] == [[1, 4], [0, 4], [0, 1, 4], [0, 1, 4], [0, 1]]


def test_visibility_of_every_text():
    objective = retromae()
    documents = random_documents(TOKENIZER, [28, 28, 20, 9, 2, 1])
    batch = objective.collate(documents)
    words = batch.words.token.split(batch.clean.layout.lengths)
    for seen, word in zip(seen_of(objective, batch), words):
        n = len(word)
        assert not seen.diagonal().any()
        assert seen[1:, 0].all() and seen[:-1, -1].all()  # the sentence vector and [SEP] are never hidden
        assert seen.any(1).all()
        hidden = ~seen
        for i in range(n):
            for w in range(int(word.max()) + 1):  # whole words, but for the row's own token
                column = hidden[i, (word == w) & (torch.arange(n) != i)]
                assert column.all() or not column.any()
            assert (hidden[i] & (word >= 0)).sum() - (word[i] >= 0).long() <= max(round(0.5 * n), int(batch.words.lengths.max()))


def test_rows_see_different_masks():
    objective = retromae()
    (seen,) = seen_of(objective, objective.collate(random_documents(TOKENIZER, [28])))
    patterns = {tuple(row[1:-1].tolist()) for row in seen}
    assert len(patterns) > 25
    few = retromae(decoder_masks=2)
    (seen,) = seen_of(few, few.collate(random_documents(TOKENIZER, [28])))
    own = torch.eye(30, dtype=torch.bool)
    agree = [[torch.equal(a | x | y, b | x | y) for b, y in zip(seen, own)] for a, x in zip(seen, own)]  # but for the rows' own tokens
    assert len({tuple(row) for row in agree}) == 2


@pytest.mark.parametrize(("n", "low", "high"), [(22, 0.39, 0.45), (16, 0.37, 0.43), (11, 0.27, 0.33)])
def test_visible_share_of_ordinary_columns(n, low, high):
    tokenizer = alphabet(40)
    objective = retromae(tokenizer)
    batch = objective.collate(random_documents(tokenizer, [n - 2] * 200))
    shares = torch.stack([seen[:, 1:-1].float().mean() for seen in seen_of(objective, batch)])
    assert low < shares.mean() < high


def test_visibility_does_not_see_its_batch_mates():
    objective = retromae()
    documents = random_documents(TOKENIZER, [28, 20, 19, 9, 2, 1])
    together = seen_of(objective, objective.collate(documents))
    for b, seen in enumerate(together):
        (alone,) = seen_of(objective, objective.collate(documents.select(torch.tensor([b]))))
        assert torch.equal(seen, alone)


def test_labels():
    objective = retromae()
    documents = random_documents(TOKENIZER, [10, 4, 1])
    batch = objective.collate(documents)
    framed = objective.framed(documents)
    ordinary = framed.ids >= 5
    assert torch.equal(batch.clean.ids, framed.ids)
    assert torch.equal(batch.rebuilt, ordinary.nonzero().squeeze(1))
    assert ordinary[batch.places].all()
    counts = torch.bincount(framed.sequence[batch.places], minlength=3)
    assert (counts <= torch.tensor([4, 2, 2])).all() and (counts >= 1).all()
    empty = objective.collate(Documents(torch.empty(0, dtype=torch.int64), torch.tensor([0]), torch.tensor([0]), torch.tensor([0])))
    assert empty.counts == {"encoder": 0, "decoder": 0}
    assert all(value.item() == 0 for value in objective(empty).terms.values())


@pytest.mark.parametrize("query", ["raw", "full"])
@pytest.mark.parametrize("layout", ["bert", "mpnet", "modernbert"])
def test_a_row_never_sees_its_token(layout, query):
    objective = retromae(layout=layout, query=query)
    batch = objective.collate(random_documents(TOKENIZER, [20, 9]))
    sentence = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = objective.decode(batch, sentence)
        for at in range(1, 21):
            ids = batch.clean.ids.clone()
            ids[at] = 5 + (ids[at] - 4) % 40
            after = objective.decode(dataclasses.replace(batch, clean=batch.clean.with_ids(ids)), sentence)
            moved = (after - before).abs().amax(1) > 1e-6
            assert not moved[at] and not moved[22:].any()


def test_decoder_gradient_reaches_the_encoder_only_through_the_sentence_vector():
    objective = make_objective("retromae")
    (batch,) = one_step(objective)
    with torch.no_grad():
        sentence = objective.encoder(batch.clean.with_ids(batch.corrupted), rows=batch.clean.layout.first_rows)
    objective.zero_grad()
    hidden = objective.decode(batch, sentence)[batch.rebuilt]
    objective.head.loss(hidden, objective.encoder.words, batch.clean.ids[batch.rebuilt])[0].backward()
    assert all(p.grad is None for p in objective.encoder.blocks.parameters())
    assert objective.encoder.words.weight.grad.any() and objective.decoder.qkv.weight.grad.any()
    objective.zero_grad()
    objective(batch).terms["decoder"].backward()
    assert all(p.grad.any() for p in objective.encoder.blocks.parameters())


@pytest.mark.parametrize("query", ["raw", "full"])
def test_decoder_equals_the_equations(query):
    """Post-norm, one text at a time, attention written out (section 3.3, equations 5 to 8)."""
    objective = retromae(query=query)
    encoder, block = objective.encoder, objective.decoder
    batch = objective.collate(random_documents(TOKENIZER, [20, 9]))
    sentence = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = objective.decode(batch, sentence).split([22, 11])
        for s, ids, seen, rows in zip(sentence, batch.clean.ids.split([22, 11]), seen_of(objective, batch), found):
            n = len(ids)
            places, kind = encoder.positions.weight[:n], encoder.types.weight[0]
            h1 = s + places if query == "raw" else encoder.norm(s + places + kind)
            h2 = encoder.norm(encoder.words.weight[ids] + places + kind)
            h2[0] = s
            (q, _, _), (_, k, v) = (block.qkv(h).view(n, 3, 2, 16).permute(1, 2, 0, 3) for h in (h1, h2))
            weights = (q @ k.transpose(1, 2) / math.sqrt(16)).masked_fill(~seen, -math.inf).softmax(-1)
            a = block.attention_norm(block.out((weights @ v).transpose(0, 1).flatten(1)) + h1)
            y = block.ffn_norm(block.down(F.gelu(block.up(a))) + a)
            torch.testing.assert_close(rows, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_cross_entropies(layout):
    objective = make_objective("retromae", layout).eval()
    (batch,) = one_step(objective, batch_size=8)
    with torch.no_grad():
        hidden = objective.encoder(batch.clean.with_ids(batch.corrupted))
        rebuilt = objective.decode(batch, hidden[batch.clean.layout.first_rows])
        step = objective(batch)
        for name, states, rows in (("encoder", hidden, batch.places), ("decoder", rebuilt, batch.rebuilt)):
            logits = objective.head(states, objective.encoder.words)
            expected = F.cross_entropy(logits[rows], batch.clean.ids[rows], reduction="sum")
            torch.testing.assert_close(step.terms[name], expected, rtol=1e-5, atol=1e-4)
