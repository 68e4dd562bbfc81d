"""Properties that every objective must have on every layout. A new line in the table is tested by being there."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from foretext.model.encoder import Tokens
from foretext.text.batches import Batches
from foretext.text.randomness import example_keys
from foretext.training.distributed import World
from foretext.training.loop import TrainingConfig, train
from foretext.training.optim import OptimConfig
from foretext.training.step import backward
from tests.objectives.table import EVERY, LAYOUTS, NOTHING_TO_CHOOSE, TABLE, make_objective, make_source, one_step

ALONE = World(0, 1, torch.device("cpu"))
over_table = pytest.mark.parametrize(("name", "layout"), TABLE, ids=[f"{n}-{la.split('-')[0]}" for n, la in TABLE])
over_objectives = pytest.mark.parametrize("name", EVERY)


def gradient(objective, batches) -> torch.Tensor:
    objective.zero_grad()
    backward(objective, batches, ALONE)
    return torch.cat([p.grad.flatten() for p in objective.parameters()])


def loss(objective, batches) -> float:
    sums = backward(objective, batches, ALONE)
    return sum(objective.weights.get(t, 1.0) * float(sums[t][0]) / sums[t][1] for t in objective.terms)


def flat_tensors(batch) -> list[torch.Tensor]:
    found = []
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif dataclasses.is_dataclass(value):
            found += flat_tensors(value)
    return found


@over_table
def test_overfits_a_batch(name, layout):
    objective = make_objective(name, layout)
    batches = one_step(objective, batch_size=8)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    first = loss(objective, batches)
    for _ in range(60):
        optimizer.zero_grad()
        last = loss(objective, batches)
        optimizer.step()
    assert last < 0.6 * first


@over_table
def test_every_parameter_receives_a_gradient(name, layout):
    objective = make_objective(name, layout)
    gradient(objective, one_step(objective))
    missing = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


@over_objectives
def test_same_address_same_batch(name):
    objective = make_objective(name)
    for a, b in zip(one_step(objective), one_step(objective)):
        for x, y in zip(flat_tensors(a), flat_tensors(b)):
            assert torch.equal(x, y)


@over_objectives
def test_every_epoch_has_its_own_choices(name):
    objective = make_objective(name)
    source = make_source(objective)
    rows = np.arange(8)
    batches = [objective.collate(source.read(rows, example_keys(1, epoch, torch.from_numpy(rows)))) for epoch in (0, 1)]
    same = all(torch.equal(x, y) for x, y in zip(flat_tensors(batches[0]), flat_tensors(batches[1])))
    assert same == (name in NOTHING_TO_CHOOSE)


@over_objectives
def test_choices_do_not_depend_on_batch_mates(name):
    """The loss sums of texts one by one add up to the loss sum of all of them (terms between rows excepted)."""
    objective = make_objective(name).eval()
    source = make_source(objective)
    rows = np.argsort(-source.lengths)[:12].copy()
    keys = example_keys(1, 0, torch.from_numpy(rows))
    together = objective(objective.collate(source.read(rows, keys)))
    alone = [objective(objective.collate(source.read(rows[i : i + 1], keys[i : i + 1]))) for i in range(len(rows))]
    for term, value in together.terms.items():
        torch.testing.assert_close(value, sum(step.terms[term] for step in alone), rtol=1e-5, atol=1e-4)
    for vector, value in together.vectors.items():
        torch.testing.assert_close(value, torch.cat([step.vectors[vector] for step in alone]), rtol=1e-5, atol=1e-5)


@over_table
def test_gradient_does_not_depend_on_the_split(name, layout):
    objective = make_objective(name, layout)
    whole = one_step(objective)
    split = one_step(objective, micro_tokens=sum(b.tokens for b in whole) // 4)
    assert len(whole) == 1
    assert len(split) >= 4
    reference = gradient(objective, whole)
    difference = gradient(objective, split) - reference
    assert difference.norm() / reference.norm() <= 1e-6


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradient_agrees_on_several_ranks(tmp_path, ranks):
    """Gloo processes under torchrun, every objective, each with the whole model or a part: loss and gradient equal one process's."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    subprocess.run([*launch, "-m", "tests.objectives.ranks", tmp_path], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    for name in EVERY:
        objective = make_objective(name)
        reference = gradient(objective, one_step(objective))
        for parallel in ("ddp",) if objective.refresh_every else ("ddp", "fsdp"):
            both = torch.load(tmp_path / f"{name}-{parallel}.pt", weights_only=True)
            assert (both["gradient"] - reference).norm() / reference.norm() <= 1e-6, (name, parallel)
            assert both["loss"] == pytest.approx(loss(objective, one_step(objective)), rel=1e-5), (name, parallel)


def short_run(name: str, output, dropout: float = 0.1, steps: int = 6, **training):
    objective = make_objective(name, dropout=dropout, attention_dropout=dropout)
    config = TrainingConfig(steps=6, batch_size=8, optim=OptimConfig(lr=1e-3), precision="fp32", checkpoint_every=2, valid_every=3,
                            log_every=1, **{"micro_tokens": 200} | training)
    source = make_source(objective)
    train(objective, source, output, config, valid=source, world=ALONE)
    return objective.state_dict()


@over_objectives
def test_resume_equals_uninterrupted(name, tmp_path, monkeypatch):
    """With dropout, in fp32: a run that dies after step 3 and is started again ends with the same bits."""
    whole = short_run(name, tmp_path / "whole")
    made = Batches.step

    def dies(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return made(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Batches, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            short_run(name, tmp_path / "broken")
    resumed = short_run(name, tmp_path / "broken")
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    metrics = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "broken")]
    assert len(metrics[0]) == len(metrics[1])


@over_table
def test_embedding_does_not_depend_on_its_batch(name, layout):
    objective = make_objective(name, layout).eval()
    ids = torch.randint(5, objective.tokenizer.size, (90,), generator=torch.Generator().manual_seed(0))
    lengths = [30, 25, 20, 12, 2, 1]
    with torch.no_grad():
        together = objective.encoder(Tokens.of(ids, lengths))
        start = 0
        for n in lengths:
            alone = objective.encoder(Tokens.of(ids[start : start + n], [n]))
            torch.testing.assert_close(together[start : start + n], alone, rtol=0, atol=1e-5)
            start += n


@over_table
def test_bf16_has_finite_gradients_close_to_fp32(name, layout):
    objective = make_objective(name, layout)
    batches = one_step(objective)
    exact = gradient(objective, batches)
    objective.encoder.compute_dtype = torch.bfloat16
    coarse = gradient(objective, batches)
    assert torch.isfinite(coarse).all()
    assert torch.cosine_similarity(exact, coarse, dim=0) > 0.99


@over_table
def test_a_text_of_one_token_is_harmless(name, layout):
    objective = make_objective(name, layout)
    source = make_source(objective)
    rows = np.array([int(source.lengths.argmax()), int(source.lengths.argmin())])
    examples = source.read(rows, example_keys(1, 0, torch.from_numpy(rows)))
    if objective.reads == "documents":
        examples = examples.part(torch.zeros(2, dtype=torch.int64), torch.tensor([int(examples.lengths[0]), 1]))
    for dtype in (torch.float32, torch.bfloat16):
        objective.encoder.compute_dtype = dtype
        assert torch.isfinite(gradient(objective, [objective.collate(examples)])).all()


def test_layouts_are_all_here():
    assert {layout.split("-")[0] for layout in LAYOUTS} == {"bert", "mpnet", "modernbert"}
