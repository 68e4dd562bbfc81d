"""Condenser: the head reads late sentence vectors and early tokens, on one window of the text."""

import pytest
import torch
import torch.nn.functional as F
import transformers

from foretext.model.encoder import Encoder
from foretext.model.huggingface import save_encoder
from foretext.model.presets import preset
from foretext.objectives.condenser import Condenser
from foretext.text.batches import Documents
from foretext.text.corrupt import half_even
from foretext.text.randomness import example_keys
from tests.objectives.table import one_step, small_tokenizer


def condenser(layout: str = "bert-tiny", layers: int = 4, **options) -> Condenser:
    torch.manual_seed(0)
    encoder = Encoder(preset(layout, small_tokenizer().size, max_len=64, layers=layers))
    objective = Condenser(encoder, small_tokenizer(), Condenser.Config(**options))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return objective.eval()


def long_documents(count: int = 30, length: int = 200) -> Documents:
    ids = torch.randint(5, small_tokenizer().size, (count * length,), generator=torch.Generator().manual_seed(1))
    return Documents(ids, torch.full((count,), length), example_keys(3, 0, torch.arange(count)), torch.arange(count))


def test_one_window_for_ids_and_masks():
    objective, documents = condenser(), long_documents()
    batch = objective.collate(documents)
    originals = batch.tokens_in.ids.index_copy(0, batch.places, batch.labels)
    starts = set()
    for which, text in zip(batch.documents.tolist(), originals.split(batch.tokens_in.layout.lengths)):
        whole = documents.ids[which * 200 : (which + 1) * 200].unfold(0, 62, 1)
        found = (whole == text[1:-1]).all(1).nonzero().flatten()
        assert len(found) == 1
        starts.add(int(found))
    assert len(starts) > 15


def test_the_budget_counts_ordinary_tokens_only():
    objective = condenser()
    batch = objective.collate(long_documents(200, 31))  # half_even(.15 * 31) = 5 at most; of all 33 tokens it would be 5 as well
    shorter = objective.collate(long_documents(200, 23))  # half_even(3.45) = 3, and 4 of all 25 tokens
    for one, n in ((batch, 31), (shorter, 23)):
        counts = torch.bincount(one.tokens_in.layout.sequence[one.places], minlength=200)
        assert int(counts.max()) == int(half_even(torch.tensor(0.15 * n, dtype=torch.float64)))


@pytest.mark.parametrize("layout", ["bert-tiny", "modernbert-tiny"])
def test_without_head_layers_it_is_mlm_on_the_early_states(layout):
    objective = condenser(layout, head_layers=0)
    (batch,) = one_step(objective)
    with torch.no_grad():
        step = objective(batch)
        early = objective.encoder.final_norm(objective.encoder.states(batch.tokens_in)[2])[batch.places]
        logits = objective.head(early, objective.encoder.words)
        plain = objective.head(objective.encoder(batch.tokens_in)[batch.places], objective.encoder.words)
    torch.testing.assert_close(step.terms["condenser"], F.cross_entropy(logits, batch.labels, reduction="sum"), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(step.terms["mlm"], F.cross_entropy(plain, batch.labels, reduction="sum"), rtol=1e-5, atol=1e-4)


def test_late_layers_learn_from_the_head_only_through_the_first_token():
    objective = condenser()
    (batch,) = one_step(objective)
    late = [p for block in objective.encoder.blocks[2:] for p in block.parameters()]
    early = [p for block in objective.encoder.blocks[:2] for p in block.parameters()]
    first = len(batch.tokens_in.layout.lengths)
    objective(batch).terms["condenser"].backward()
    assert all(p.grad.any() for p in late)
    states = objective.encoder.states

    def cut(tokens, rows):
        found = states(tokens, rows)
        return [*found[:-1], torch.cat((found[-1][:first].detach(), found[-1][first:]))]

    objective.zero_grad()
    objective.encoder.states = cut
    objective(batch).terms["condenser"].backward()
    assert all(p.grad is None or not p.grad.any() for p in late)
    assert all(p.grad.any() for p in early)


def test_skip_and_late_mlm():
    assert condenser(layers=12).skip == 6
    assert condenser(layers=2).skip == 1
    with pytest.raises(ValueError, match="take at most 3"):
        condenser(skip=4)
    plain = condenser(late_mlm=False)
    (batch,) = one_step(plain)
    assert plain.terms == tuple(batch.counts) == tuple(plain(batch).terms) == ("condenser",)
    both = condenser()
    torch.testing.assert_close(both(batch).terms["condenser"], plain(batch).terms["condenser"], rtol=1e-5, atol=1e-4)


def test_agrees_with_transformers(tmp_path):
    """Both losses from BertForMaskedLM's hidden states and stock layers for the head, on a padded batch."""
    objective = condenser()
    tokenizer = objective.tokenizer
    (batch,) = one_step(objective, batch_size=8)
    ids = {"pad": tokenizer.pad_id, "cls": tokenizer.cls_id, "sep": tokenizer.sep_id}
    save_encoder(objective.encoder, tmp_path / "m", ids, objective.head)
    carrier = Encoder(preset("bert-tiny", tokenizer.size, max_len=64, layers=2))  # carries the head layers into the stock format
    carrier.blocks.load_state_dict(objective.layers.state_dict())
    save_encoder(carrier, tmp_path / "h", ids)
    stock = transformers.BertForMaskedLM.from_pretrained(tmp_path / "m").eval()
    head = transformers.BertModel.from_pretrained(tmp_path / "h").eval().encoder
    lengths = batch.tokens_in.layout.lengths
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = torch.full_like(batch.tokens_in.ids, -100).index_copy(0, batch.places, batch.labels)
    padded = torch.zeros(real.shape, dtype=torch.int64).masked_scatter(real, batch.tokens_in.ids)
    labels = torch.full(real.shape, -100).masked_scatter(real, labels)
    with torch.no_grad():
        theirs = stock(padded, attention_mask=real.long(), labels=labels, output_hidden_states=True)
        x = torch.cat((theirs.hidden_states[4][:, :1], theirs.hidden_states[2][:, 1:]), 1)
        hidden = torch.zeros(real.shape).masked_fill(~real, torch.finfo(torch.float32).min)[:, None, None]
        logits = stock.cls(head(x, attention_mask=hidden).last_hidden_state)
        step = objective(batch)
    count = batch.counts["mlm"]
    torch.testing.assert_close(step.terms["mlm"] / count, theirs.loss, rtol=1e-5, atol=1e-5)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(step.terms["condenser"] / count, expected, rtol=1e-5, atol=1e-5)
