"""Causal language modelling: its invariants."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from foretext.errors import UserError
from foretext.model.encoder import Tokens
from foretext.model.generation import GenerationConfig
from foretext.objectives.clm import CLM
from foretext.training.distributed import World
from foretext.training.loop import report
from foretext.training.step import backward
from tests.objectives.table import make_objective, one_step
from tests.random_tokens import CLS, SEP, alphabet, random_documents, tiny_encoder, trained_loss

LAYOUTS = ("bert-tiny", "mpnet-tiny", "modernbert-tiny")


def test_inputs_and_labels():
    tokenizer = alphabet(40)
    documents = random_documents(tokenizer, [5, 3, 1])
    batch = CLM(tiny_encoder(tokenizer), tokenizer).collate(documents)
    inputs, labels = batch.tokens_in.ids.split([6, 4, 2]), batch.labels.split([6, 4, 2])
    for text, ids, wanted in zip(documents.ids.split([5, 3, 1]), inputs, labels):
        assert ids.tolist() == [CLS, *text.tolist()]
        assert wanted.tolist() == [*text.tolist(), SEP]
    assert batch.counts == {"clm": 12}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_token_changes_only_what_comes_after_it(layout):
    objective = make_objective("clm", layout).eval()
    (batch,) = one_step(objective)
    lengths, at = batch.tokens_in.layout.lengths, 7
    ids = batch.tokens_in.ids.clone()
    ids[at] = 5 + (ids[at] - 4) % 400
    with torch.no_grad():
        before = objective.states(batch.tokens_in)
        after = objective.states(dataclasses.replace(batch.tokens_in, ids=ids))
    moved = (after - before).abs().amax(1) > 1e-6
    assert not moved[:at].any() and not moved[lengths[0] :].any()
    assert moved[at] and moved[at + 1 : at + 5].all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_is_that_of_growing_prefixes(layout):
    """Every token predicted from the prefix before it, one text and one prefix at a time, with nothing causal about it but the cut."""
    objective = make_objective("clm", layout, layers=1).eval()  # one layer: a bidirectional encoder's last state is then a causal one
    (batch,) = one_step(objective, batch_size=3)
    total = 0.0
    with torch.no_grad():
        start = 0
        for n in batch.tokens_in.layout.lengths:
            for i in range(n):
                state = objective.encoder(Tokens.of(batch.tokens_in.ids[start : start + i + 1], [i + 1]))[-1:]
                total += float(F.cross_entropy(objective.head(state, objective.encoder.words), batch.labels[start + i : start + i + 1]))
            start += n
        assert float(objective(batch).terms["clm"]) == pytest.approx(total, rel=1e-5)


def test_perplexity_is_of_the_whole_corpus():
    objective = make_objective("clm")
    world = World(0, 1, torch.device("cpu"))
    batches = one_step(objective, micro_tokens=300)
    assert len(batches) > 1
    sums = backward(objective, batches, world)
    values = report(sums, objective, world)
    assert values["perplexity"] == pytest.approx(math.exp(float(sums["clm"][0]) / sums["clm"][1]), rel=1e-5)
    assert report({}, objective, world) == {"loss": 0}


def test_uniform_tokens_cannot_be_predicted():
    def ordinary(objective, batch):
        logits = objective.head(objective.states(batch.tokens_in), objective.encoder.words)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")[batch.labels != SEP]
        return float(losses.sum()), len(losses)

    tokenizer = alphabet(16)
    assert trained_loss(CLM(tiny_encoder(tokenizer), tokenizer), measure=ordinary) > math.log(16) - 0.03


def test_generates_what_it_has_learnt():
    """A model trained on one text goes on with it, greedily and at a low temperature."""
    tokenizer = alphabet(40)
    objective = CLM(tiny_encoder(tokenizer), tokenizer)
    documents = random_documents(tokenizer, [20])
    batch = objective.collate(documents)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        (objective(batch).terms["clm"] / 21).backward()
        optimizer.step()
    for options in ({}, {"beams": 3}, {"temperature": 0.05, "top_k": 3}):
        made = objective.generate([documents.ids[:4], documents.ids[:0]], GenerationConfig(**options))
        assert all(torch.equal(text, documents.ids) for text in made), options
    assert torch.equal(objective.generate([documents.ids[:4]], GenerationConfig(longest=3))[0], documents.ids[:7])
    assert objective.training


def test_generation_stops_at_the_longest_text_and_holds_no_special_tokens():
    tokenizer = alphabet(40)
    objective = CLM(tiny_encoder(tokenizer), tokenizer)
    objective.head.bias.data[SEP] = -100.0
    made = [objective.generate([torch.tensor([5, 6])], GenerationConfig(longest=1000, temperature=1.0, seed=seed))[0] for seed in (3, 3, 4)]
    assert len(made[0]) == objective.max_len - 1 and (made[0] >= 5).all()
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    with pytest.raises(UserError, match="shorten"):
        objective.generate([torch.full((32,), 6)], GenerationConfig())


@pytest.mark.parametrize("layout", ["bert-tiny", "roberta-tiny"])
def test_causal_export_has_the_same_logits(layout, tmp_path):
    """`AutoModelForCausalLM` reads the folder left to right, also beside a longer text."""
    import transformers

    objective = make_objective("clm", layout).eval()
    (folder,) = objective.save_networks(tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(stock).__name__ in ("BertLMHeadModel", "RobertaForCausalLM") and stock.config.is_decoder
    (batch,) = one_step(objective, batch_size=3)
    texts = batch.tokens_in.ids.split(list(batch.tokens_in.layout.lengths))
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=objective.tokenizer.pad_id)
    real = torch.arange(padded.shape[1]) < torch.tensor(batch.tokens_in.layout.lengths)[:, None]
    with torch.no_grad():
        expected = objective.head(objective.states(batch.tokens_in), objective.encoder.words)
        found = stock(input_ids=padded, attention_mask=real.long()).logits[real]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if layout == "roberta-tiny":  # transformers' generate counts its positions from 0, unlike its own forward
        return
    made = stock.generate(texts[0][:6][None], max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=objective.tokenizer.pad_id)
    logits = objective.head(objective.states(Tokens.of(made[0][:-1], [len(made[0]) - 1])), objective.encoder.words)
    assert torch.equal(made[0][6:], logits[5:].argmax(1))


def test_other_families_have_no_causal_class(tmp_path):
    with pytest.raises(UserError, match="no causal model of mpnet"):
        make_objective("clm", "mpnet-tiny").save_networks(tmp_path)
