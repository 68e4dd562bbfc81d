"""ELECTRA: slots, samples, labels, and agreement of both networks and the loss with transformers."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from foretext.errors import UserError
from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.objectives.electra import ELECTRA, detection, gumbel_sample, make_generator
from foretext.text.batches import Documents
from foretext.text.randomness import example_keys
from foretext.training.loop import TrainingConfig
from foretext.training.step import total
from tests.objectives.table import make_objective, one_step, small_tokenizer


def electra(layout: str = "electra-small", **options) -> ELECTRA:
    """Two layers of ELECTRA-small, whose embedding block is narrower than both networks or one of them."""
    torch.manual_seed(0)
    encoder = Encoder(preset(layout, small_tokenizer().size, max_len=64, layers=2))
    objective = ELECTRA(encoder, small_tokenizer(), ELECTRA.Config(**options))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return objective


def random_documents(count: int, length: int) -> Documents:
    ids = torch.randint(5, small_tokenizer().size, (count * length,), generator=torch.Generator().manual_seed(1))
    return Documents(ids, torch.full((count,), length), example_keys(3, 0, torch.arange(count)), torch.arange(count))


def test_slots_are_distinct_ordinary_tokens_and_mostly_masked():
    objective = make_objective("electra")
    batch = objective.collate(random_documents(600, 40))
    ids = batch.clean.ids
    assert len(batch.slots) == len(batch.slots.unique()) == 600 * 6  # half_even(.15 * 42), below int(.155 * 64)
    assert not objective.vocabulary.special[ids[batch.slots]].any()
    untouched = torch.ones_like(ids, dtype=torch.bool).index_fill(0, batch.slots, False)
    assert torch.equal(batch.masked[untouched], ids[untouched])
    masked = batch.masked[batch.slots] == objective.tokenizer.mask_id
    assert torch.equal(batch.masked[batch.slots][~masked], ids[batch.slots][~masked])  # no random words
    assert masked.double().mean() == pytest.approx(0.85, abs=3 * math.sqrt(0.85 * 0.15 / 3600))


def test_no_more_slots_than_the_longest_text_has():
    assert len(make_objective("electra").collate(random_documents(4, 62)).slots) == 4 * 9  # half_even(9.6) = 10, int(.155 * 64) = 9


def test_the_embedding_block_is_one():
    objective = electra()
    for part in ("words", "positions", "types", "norm"):
        assert getattr(objective.generator, part) is getattr(objective.encoder, part)
    assert objective.generator.project.weight.shape == (64, 128)
    assert objective.encoder.project.weight.shape == (256, 128)
    assert not [name for name in objective.heads() if name.startswith("generator.words")]


@pytest.mark.parametrize("layout", ["electra-small", "bert-tiny"])
def test_agrees_with_transformers(layout, tmp_path):
    """On injected slots and samples: logits of both networks, both losses, the total, and the gradient of the shared words."""
    objective = electra(layout, generator_width=0.5).eval()
    (batch,) = one_step(objective, batch_size=8)
    tokens, slots = batch.clean, batch.slots
    sampled = torch.where(torch.arange(len(slots)) % 3 == 0, tokens.ids[slots], 7 + torch.arange(len(slots)))
    objective.sample = lambda logits, keys, positions: sampled[: len(logits)]
    step = objective(batch)
    loss = total(objective, step, batch.counts)
    loss.backward()

    assert [folder.name for folder in objective.save_networks(tmp_path)] == ["discriminator", "generator"]
    generator = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "generator").eval()
    discriminator = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "discriminator").eval()
    assert generator.config.embedding_size == discriminator.config.embedding_size
    real = torch.arange(tokens.layout.max_len) < torch.tensor(tokens.layout.lengths)[:, None]

    def padded(flat: torch.Tensor, fill: int) -> torch.Tensor:
        return torch.full(real.shape, fill, dtype=flat.dtype).masked_scatter(real, flat)

    labels = torch.full_like(tokens.ids, -100).index_copy(0, slots, tokens.ids[slots])
    shown = tokens.ids.index_copy(0, slots, sampled)
    theirs = generator(padded(batch.masked, 0), attention_mask=real.long(), labels=padded(labels, -100))
    found = discriminator(padded(shown, 0), attention_mask=real.long(), labels=padded((shown != tokens.ids).long(), 0))
    with torch.no_grad():
        hidden = objective.generator(tokens.with_ids(batch.masked))
        close(objective.generator_head(hidden, objective.encoder.words)[:, : objective.tokenizer.size], theirs.logits[real])
        close(objective.discriminator_head(objective.encoder(tokens.with_ids(shown))), found.logits[real])
    close(step.terms["generator"] / len(slots), theirs.loss)
    close(step.terms["discriminator"] / len(tokens.ids), found.loss)
    close(loss, theirs.loss + 50 * found.loss)
    (theirs.loss + 50 * found.loss).backward()
    shared = [model.electra.embeddings.word_embeddings.weight.grad for model in (generator, discriminator)]
    # transformers keeps the row of the padding id without gradient; it is no input here
    rows = torch.arange(objective.tokenizer.size) != objective.tokenizer.pad_id
    ours = objective.encoder.words.weight.grad[: objective.tokenizer.size]
    assert (ours - sum(shared))[rows].norm() / ours.norm() < 1e-5


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)


def test_exports_hold_one_embedding_block_and_a_tokenizer(tmp_path):
    objective = electra()
    folders = objective.save_networks(tmp_path)
    tensors = [load_file(folder / "model.safetensors") for folder in folders]
    names = [name for name in tensors[0] if name.startswith("electra.embeddings.")]
    assert len(names) == 5
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in names)
    assert "discriminator_predictions.dense_prediction.weight" in tensors[0]
    assert "generator_predictions.dense.weight" in tensors[1]
    assert all(transformers.AutoTokenizer.from_pretrained(folder).mask_token == "[MASK]" for folder in folders)


def test_a_generator_that_is_always_right_replaces_nothing(monkeypatch):
    objective = make_objective("electra")
    (batch,) = one_step(objective)
    objective.sample = lambda logits, keys, positions: batch.clean.ids[batch.slots]
    step = objective(batch)
    assert step.metrics["replaced"][0] == 0
    logits = objective.discriminator_head(objective.encoder(batch.clean))  # it is shown the original text
    torch.testing.assert_close(step.terms["discriminator"], F.softplus(logits).sum())


def test_injected_samples_make_the_labels():
    """Replaced: a slot, and a sample that differs from the original; also at the slots that were not masked."""
    objective = make_objective("electra")
    (batch,) = one_step(objective)
    original = batch.clean.ids[batch.slots]
    sampled = torch.where(torch.arange(len(original)) % 2 == 0, original, torch.where(original == 9, 10, 9))
    objective.sample = lambda logits, keys, positions: sampled
    seen = {}
    objective.encoder.register_forward_pre_hook(lambda module, args: seen.update(ids=args[0].ids))
    step = objective(batch)
    replaced = torch.zeros_like(batch.clean.ids, dtype=torch.bool)
    replaced[batch.slots[1::2]] = True
    assert torch.equal(seen["ids"] != batch.clean.ids, replaced)
    assert step.metrics["replaced"] == (replaced.sum(), len(replaced))
    assert torch.equal(objective(batch).terms["discriminator"], step.terms["discriminator"])


def test_the_discriminator_teaches_the_generator_only_its_embeddings():
    objective = make_objective("electra")
    (batch,) = one_step(objective)
    objective(batch).terms["discriminator"].backward()
    shared = {id(p) for p in objective.encoder.parameters()}
    own = [p for p in (*objective.generator.parameters(), *objective.generator_head.parameters()) if id(p) not in shared]
    assert own
    assert all(p.grad is None or not p.grad.any() for p in own)
    assert objective.encoder.words.weight.grad.any()


def test_undecided_discriminator_loses_ln_2():
    objective = make_objective("electra")
    (batch,) = one_step(objective)
    torch.nn.init.zeros_(objective.discriminator_head.out.weight)
    torch.nn.init.zeros_(objective.discriminator_head.out.bias)
    assert objective(batch).terms["discriminator"].item() / batch.counts["discriminator"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("V", [1, 5, 36, 50])
def test_samples_follow_the_softmax(V):
    logits = 2 * torch.randn(V, generator=torch.Generator().manual_seed(V))
    draws = 40_000
    keys = example_keys(1, 0, torch.arange(draws))
    found = gumbel_sample(logits.expand(draws, V), keys, torch.full((draws,), 3))
    share, expected = torch.bincount(found, minlength=V) / draws, logits.softmax(0)
    assert ((share - expected).abs() <= 4.5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()
    assert torch.equal(found, gumbel_sample(logits.expand(draws, V), keys, torch.full((draws,), 3)))
    if V > 1:
        assert not torch.equal(found, gumbel_sample(logits.expand(draws, V), keys, torch.full((draws,), 4)))


def test_metrics_by_hand():
    logits = torch.tensor([3.0, 1.0, 1.0, -1.0, -2.0, 0.5])
    replaced = torch.tensor([True, True, False, False, True, False])
    values = {name: float(value) / float(count) for name, (value, count) in detection(logits, replaced).items()}
    # pairs (replaced, real): 3 beats all 3; 1 ties with 1 and beats 2; -2 beats none
    assert values == pytest.approx({"accuracy": 3 / 6, "precision": 2 / 4, "recall": 2 / 3, "auc": 5.5 / 9, "replaced": 3 / 6})


@pytest.mark.parametrize(("name", "encoder", "generator"), [
    ("electra-small", (256, 12, 4, 1024, 128), (64, 12, 1, 256)),
    ("electra-base", (768, 12, 12, 3072, 768), (256, 12, 4, 1024)),
    ("electra-large", (1024, 24, 16, 4096, 1024), (256, 24, 4, 1024)),
])  # fmt: skip
def test_sizes_and_recipes_are_the_papers(name, encoder, generator):
    config = preset(name, 30522)
    assert (config.width, config.layers, config.heads, config.ffn_width, config.table_width) == encoder
    recipe = ELECTRA.recipes[name]
    options, training = ELECTRA.Config(**recipe["objective"]), TrainingConfig(**recipe["training"])
    with torch.device("meta"):
        small = make_generator(Encoder(config), options.generator_width, options.generator_layers).config
    assert (small.width, small.layers, small.heads, small.ffn_width) == generator
    assert small.table_width == config.table_width
    assert options.max_len == (128 if name == "electra-small" else 512)
    assert training.optim.compose == "product"
    assert not training.optim.bias_correction


def test_half_even_layers():
    with torch.device("meta"):
        assert make_generator(Encoder(preset("electra-small", 100, layers=5)), 0.25, 0.5).config.layers == np.round(2.5)


def test_two_segments():
    """The halves of a text, whole words, in their order; a tenth stays whole, some are cut to a random length; nothing is too long."""
    objective = electra(segments=True)
    documents = random_documents(400, 30)
    both, types = objective.halves(documents)
    cls, sep = objective.tokenizer.cls_id, objective.tokenizer.sep_id
    joins = torch.from_numpy(objective.tokenizer.words.joins_left)
    whole = shorter = 0
    for ids, kinds, number in zip(both.ids.split(both.lengths.tolist()), types.split(both.lengths.tolist()), both.documents.tolist()):
        assert ids[0] == cls and ids[-1] == sep
        text = documents.ids[number * 30 : number * 30 + 30]
        ends = (ids == sep).nonzero().squeeze(1).tolist()
        read = ids[(ids != cls) & (ids != sep)]
        assert torch.equal(read, text[: len(read)])
        shorter += len(read) < 30
        whole += len(ends) == 1
        if len(ends) == 2:
            assert len(read) / 2 <= ends[0] - 1 < len(read) and not joins[text[ends[0] - 1]]  # B begins a word
            assert kinds.tolist() == [0] * (ends[0] + 1) + [1] * (len(ids) - ends[0] - 1)
        else:
            assert not kinds.any()
    assert whole / 400 == pytest.approx(0.1, abs=0.05)
    assert 0 < shorter / 400 < 0.05  # a twentieth gets another length, and not all of those are below 30
    assert both.lengths.tolist() == sorted(both.lengths.tolist(), reverse=True)
    assert objective.halves(random_documents(3, 100))[0].lengths.max() == objective.max_len
    assert len(objective.halves(random_documents(3, 1))[0].ids) == 9  # one word has no second half


def test_segments_reach_both_networks_and_need_token_types():
    objective = electra(segments=True)
    (batch,) = one_step(objective)
    total(objective, objective(batch), batch.counts).backward()
    assert objective.encoder.types.weight.grad[1].any()
    with pytest.raises(UserError, match="token types"):
        electra("modernbert-tiny", segments=True)


def test_the_discriminator_starts_later():
    objective = electra(disc_start_step=2)
    assert objective.weights == {"discriminator": 0.0}
    (batch,) = one_step(objective)
    total(objective, objective(batch), batch.counts).backward()
    assert not objective.discriminator_head.out.weight.grad.any() and objective.generator_head.dense.weight.grad.any()
    objective.updated()
    saved = copy.deepcopy(objective.state_dict())
    objective.updated()
    assert objective.weights == {"discriminator": 50.0}
    objective.load_state_dict(saved)  # as a checkpoint of the step before
    assert objective.weights == {"discriminator": 0.0} and "updates" not in objective.heads()
    assert electra().weights == {"discriminator": 50.0} and "updates" not in electra().state_dict()
