"""DupMAE: the bag of words on the tokens, next to RetroMAE's two losses."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers

from foretext.model import heads
from foretext.model.heads import max_logits
from foretext.model.huggingface import save_encoder
from foretext.model.layout import Layout
from foretext.objectives.base import flat
from foretext.objectives.retromae import DupMAE, RetroMAE
from foretext.text.batches import Documents
from foretext.text.corrupt import Words
from foretext.text.randomness import example_keys
from tests.objectives.table import make_objective, one_step, small_tokenizer


def bags(objective, ids: list[list[int]], V: int) -> torch.Tensor:
    """The bags of texts of these ordinary ids."""
    lengths = torch.tensor([len(text) + 2 for text in ids])
    rows = [torch.tensor([objective.tokenizer.cls_id, *text, objective.tokenizer.sep_id]) for text in ids]
    words = torch.cat([torch.tensor([-1, *range(len(text)), -1]) for text in ids])
    documents = Documents(torch.cat(rows), lengths, torch.zeros(len(ids), dtype=torch.int64), torch.arange(len(ids)))
    return objective.bags(SimpleNamespace(words=Words(words, torch.ones(1, 1), 1), clean=flat(documents)), (len(ids), V))


@pytest.mark.parametrize(("how", "value"), [("set", 0.662541), ("counts", 1.160478)])
def test_worked_number(how, value):
    """V = 4, z = (1, 2, 0, 0), ids (0, 0, 1); shifted by the special ids."""
    objective = make_objective("dupmae")
    objective.config = DupMAE.Config(bag=how)
    assert objective.tokenizer.cls_id < 5
    weights = bags(objective, [[5, 5, 6]], 9)[:, 5:]
    x = torch.tensor([[100.0], [1.0]])  # the first token never counts
    z = max_logits(x, torch.tensor([[1.0], [2.0], [0.0], [0.0]]), torch.zeros(4), Layout.of([2]))
    assert float(-(weights * z.log_softmax(1)).sum()) == pytest.approx(value, abs=1e-6)


def test_bags_do_not_know_the_order():
    objective = make_objective("dupmae")
    a, b = bags(objective, [[7, 8, 8, 9, 30], [30, 8, 7, 9, 8]], 40)
    assert torch.equal(a, b)
    assert float(a.sum()) == pytest.approx(4 / 5)
    assert sorted(a.unique().tolist()) == pytest.approx([0, 1 / 5])
    objective.config = DupMAE.Config(bag="counts")
    assert float(bags(objective, [[7, 8, 8, 9, 30]], 40).sum()) == pytest.approx(1)


@pytest.mark.parametrize("chunk", [1 << 24, 37 * 4, 1])
def test_largest_logits_and_their_gradient(chunk, monkeypatch):
    """By stretches of positions, against all logits at once; exactly, since a maximum rounds nothing."""
    monkeypatch.setattr(heads, "CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    lengths = [9, 6, 6, 2]
    x, weight, bias = (torch.randn(shape, dtype=torch.float32, requires_grad=True) for shape in ((23, 8), (37, 8), (37,)))
    z = max_logits(x, weight, bias, Layout.of(lengths))
    direct = torch.stack([(text[1:] @ weight.T + bias).max(0).values for text in x.split(lengths)])
    torch.testing.assert_close(z, direct, rtol=1e-6, atol=1e-6)
    pull = torch.randn(4, 37)
    ours = torch.autograd.grad((z.log_softmax(1) * pull).sum(), (x, weight, bias))
    theirs = torch.autograd.grad((direct.log_softmax(1) * pull).sum(), (x, weight, bias))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not ours[0][Layout.of(lengths).first_rows].any()  # logits of the first tokens do not matter


def test_agrees_with_transformers(tmp_path):
    """The bag's loss from the padded logits of BertForMaskedLM on the corrupted text."""
    objective = make_objective("dupmae").eval()
    tokenizer = objective.tokenizer
    (batch,) = one_step(objective, batch_size=8)
    ids = {"pad": tokenizer.pad_id, "cls": tokenizer.cls_id, "sep": tokenizer.sep_id}
    save_encoder(objective.encoder, tmp_path / "m", ids, objective.head)
    stock = transformers.BertForMaskedLM.from_pretrained(tmp_path / "m").eval()
    lengths = batch.clean.layout.lengths
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.zeros(real.shape, dtype=torch.int64).masked_scatter(real, batch.corrupted)
    with torch.no_grad():
        logits = stock(ids, attention_mask=real.long()).logits
        seen = real.clone()
        seen[:, 0] = False
        z = logits.masked_fill(~seen[:, :, None], float("-inf")).max(1).values.log_softmax(1)
        expected = 0.0
        for row, text in enumerate(batch.clean.ids.split(lengths)):
            distinct = text[1:-1].unique()
            expected -= z[row, distinct].sum() / (len(text) - 2)
        step = objective(batch)
    torch.testing.assert_close(step.terms["bag"], expected, rtol=1e-5, atol=1e-5)
    assert batch.counts["bag"] == 8
    assert objective.weights == {"bag": 0.1}


def test_the_other_losses_are_those_of_retromae_with_full_queries():
    objective = make_objective("dupmae").eval()
    (batch,) = one_step(objective)
    plain = RetroMAE(objective.encoder, objective.tokenizer, RetroMAE.Config(query="full")).eval()
    plain.load_state_dict(objective.state_dict())
    with torch.no_grad():
        ours, theirs = objective(batch), plain(batch)
    for term in ("encoder", "decoder"):
        torch.testing.assert_close(ours.terms[term], theirs.terms[term])
    assert objective.config.query == "full"


def test_a_text_without_words_is_not_counted():
    tokenizer = small_tokenizer()
    objective = make_objective("dupmae").eval()
    ids = torch.tensor([tokenizer.cls_id, tokenizer.mask_id, 20, 21, 22, 23])
    documents = Documents(ids, torch.tensor([2, 4]), example_keys(1, 0, torch.arange(2)), torch.arange(2))
    batch = objective.collate(documents.select(torch.tensor([1, 0])))
    alone = objective.collate(documents.select(torch.tensor([1])))
    assert batch.counts["bag"] == alone.counts["bag"] == 1
    with torch.no_grad():
        torch.testing.assert_close(objective(batch).terms["bag"], objective(alone).terms["bag"], rtol=1e-5, atol=1e-5)


def test_nothing_as_large_as_all_logits_is_made(monkeypatch):
    """At most `CHUNK_LOGITS` logits leave the matrix product at once."""
    sizes, linear = [], F.linear
    monkeypatch.setattr(heads, "CHUNK_LOGITS", 37 * 5)
    monkeypatch.setattr(heads.F, "linear", lambda *args: sizes.append(linear(*args).numel()) or linear(*args))
    max_logits(torch.randn(40, 4), torch.randn(37, 4), torch.zeros(37), Layout.of([30, 10]))
    assert max(sizes) <= 37 * 5
