"""Heads are kept: what an objective owns beside the encoder goes on from checkpoints, exports and copies of exports."""

import shutil

import numpy as np
import pytest
import torch

from foretext.model.folder import read_heads
from foretext.objectives import OBJECTIVES
from foretext.progress import console
from foretext.text.prepare import prepare
from foretext.text.store import Store
from foretext.text.tokenizer import Tokenizer
from foretext.training import checkpoint
from foretext.training.loop import Result
from foretext.verbs.pretrain import PretrainConfig, finish, longest_row, make_objective, pretrain, sources
from tests.conftest import made_up_texts
from tests.objectives.table import one_step, small_tokenizer

MAX_LEN = 64
USUAL, LAYOUTS = ("bert-tiny", "modernbert-tiny"), {"convert": ("convert-mini",)}


def configured(name: str, start: str = "bert-tiny", output: str = "", store: str = "", **objective) -> PretrainConfig:
    return PretrainConfig(store=store, output=str(output), objective={"name": name} | objective, encoder={"start": str(start)},
                          valid_share=0.0, training={"steps": 3, "batch_size": 8, "log_every": 1, "optim": {"lr": 1e-3}})


def fresh(name: str, start: str = "bert-tiny", seed: int = 0):
    """An objective whose heads hold no zeros and ones, so that nothing is equal by chance."""
    objective = make_objective(configured(name, start), small_tokenizer(), MAX_LEN)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    return objective


def exported(objective, folder):
    return finish(objective, folder, Result(steps=1, seconds=1.0, tokens=1, last={}, best_step=None), "bert-tiny", "made-up texts")


def continued(name: str, start, **objective):
    """(objective that starts from a folder, what was said)."""
    with console.capture() as said:
        made = make_objective(configured(name, start, **objective), small_tokenizer(), MAX_LEN)
    return made, said.get()


@torch.no_grad()
def losses(objective) -> dict[str, torch.Tensor]:
    objective.eval()
    (batch,) = one_step(objective, batch_size=8)
    step = objective(batch)
    return step.terms | (objective.couple(step.vectors, step.rows, batch).terms if objective.couples else {})


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in OBJECTIVES for layout in LAYOUTS.get(name, USUAL)])
def test_every_objective_goes_on_from_its_export(name, layout, tmp_path):
    objective = fresh(name, layout)
    exported(objective, tmp_path / "run")
    if name == "contrastive":
        assert read_heads(tmp_path / "run" / "export") is None
    shutil.move(tmp_path / "run" / "export", tmp_path / "elsewhere")
    again, said = continued(name, tmp_path / "elsewhere")
    for key, value in objective.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert "fresh" not in said
    assert equal(losses(objective), losses(again))


def test_a_run_of_retromae_goes_on_from_export_and_copy(tmp_path):
    """The whole road: the loss at step 0 of the second run is the loss of the last checkpoint of the first."""
    (tmp_path / "texts.txt").write_text("\n".join(made_up_texts(80, seed=21)))
    prepare([str(tmp_path / "texts.txt")], tmp_path / "store", vocab_size=512, max_tokens=MAX_LEN - 2)
    config = configured("retromae", output=tmp_path / "run", store=str(tmp_path / "store"))
    pretrain(config)
    store = Store.open(tmp_path / "store")
    last = make_objective(config, store.tokenizer, longest_row(store))
    checkpoint.load_objective(tmp_path / "run" / "checkpoints" / "step-3", last)
    shutil.copytree(tmp_path / "run" / "export", tmp_path / "copy")
    rows = np.arange(16)
    source = sources(config, store, last)[0]
    batch = last.collate(source.read(rows, torch.arange(16)))
    with torch.no_grad():
        expected = last.eval()(batch).terms
        for start in (tmp_path / "run", tmp_path / "run" / "export", tmp_path / "copy"):
            again = make_objective(configured("retromae", start), store.tokenizer, longest_row(store))
            assert all(torch.equal(value, again.state_dict()[key]) for key, value in last.state_dict().items())
            assert equal(expected, again.eval()(batch).terms)


def test_mlm_takes_the_token_head_of_retromae(tmp_path):
    first = fresh("retromae")
    exported(first, tmp_path)
    second, said = continued("mlm", tmp_path)
    for key, value in first.head.state_dict().items():
        assert torch.equal(value, second.head.state_dict()[key])
    assert "fresh" not in said
    third, said = continued("condenser", tmp_path)
    assert torch.equal(first.head.dense.weight, third.head.dense.weight)
    assert "start fresh: layers" in said


@pytest.mark.parametrize(("first", "second", "part"), [
    ("condenser", "cocondenser", "layers"), ("cocondenser", "condenser", "layers"), ("retromae", "dupmae", "decoder")])
def test_heads_go_on_in_the_same_family(first, second, part, tmp_path):
    objective = fresh(first)
    exported(objective, tmp_path)
    again, said = continued(second, tmp_path)
    assert all(torch.equal(value, again.heads()[key]) for key, value in objective.heads().items())
    assert f"heads of {first} go on: {part}" in said
    assert "start fresh" not in said


def test_heads_of_other_shape_start_fresh_and_are_named(tmp_path):
    exported(fresh("electra"), tmp_path)
    _, said = continued("electra", tmp_path, generator_width=0.5)
    assert "start fresh" in said
    assert "generator" in said.split("start fresh: ")[1]


@pytest.mark.parametrize(("name", "parts"), [("mlm", "head"), ("retromae", "decoder, head"), ("condenser", "head, layers"),
                                             ("electra", "discriminator_head, generator, generator_head")])
def test_a_plain_folder_says_what_starts_fresh(name, parts, minilm):
    with console.capture() as said:
        make_objective(configured(name, minilm), Tokenizer.load(minilm), MAX_LEN)
    assert f"start fresh: {parts}\n" in said.get()


def test_a_preset_says_nothing():
    assert continued("retromae", "bert-tiny")[1] == ""


def test_both_networks_of_electra(tmp_path):
    from transformers import ElectraForMaskedLM, ElectraForPreTraining

    objective = fresh("electra")
    exported(objective, tmp_path / "run")
    ElectraForPreTraining.from_pretrained(tmp_path / "run" / "networks" / "discriminator")
    ElectraForMaskedLM.from_pretrained(tmp_path / "run" / "networks" / "generator")
    again, said = continued("electra", tmp_path / "run" / "networks" / "discriminator")
    for key, value in objective.encoder.state_dict().items():
        assert torch.equal(value, again.encoder.state_dict()[key]), key
    assert "discriminator_predictions" in said
    again, said = continued("mlm", tmp_path / "run" / "networks" / "generator")
    assert torch.equal(objective.generator_head.dense.weight, again.head.dense.weight)
    assert torch.equal(objective.generator.blocks[0].qkv.weight, again.encoder.blocks[0].qkv.weight)
    assert "fresh" not in said


def test_electra_on_an_encoder_that_transformers_cannot_hold_still_exports(tmp_path):
    with console.capture() as said:
        done = exported(fresh("electra", "modernbert-tiny"), tmp_path)
    assert (done.export / "heads.safetensors").is_file()
    assert "ELECTRA classes hold no modernbert encoder" in said.get().replace("\n", " ")
    assert not (tmp_path / "networks").exists()
