"""`training.micro_tokens: auto`: what it chooses, and that a run keeps it."""

import os
import subprocess
import sys

import torch

from foretext.files import read_json
from foretext.text.batches import Batches
from foretext.training import probe
from tests.objectives.table import make_objective, make_source
from tests.objectives.test_table import ALONE, short_run


def choice(monkeypatch, rates):
    """What is chosen where micro-batches of 100, 200, ... tokens run at these rates."""
    monkeypatch.setattr(probe, "SMALLEST", 100)
    objective = make_objective("mlm")
    batches = Batches(make_source(objective), objective.collate, 32, 100, seed=1)
    monkeypatch.setattr(probe, "timed", lambda model, micro, device: sum(b.tokens for b in micro) / rates[batches.micro_tokens])
    assert probe.choose_micro_tokens(objective, batches, ALONE) == batches.micro_tokens
    return batches.micro_tokens


def test_the_smallest_that_is_about_as_fast_as_its_double(monkeypatch):
    assert choice(monkeypatch, {100: 10, 200: 15, 400: 15.1, 800: 99}) == 200
    assert choice(monkeypatch, {100: 10, 200: 9}) == 100


def test_no_more_than_a_share_of_the_memory(monkeypatch):
    used = iter([0, 10, 30])
    monkeypatch.setattr(probe, "free_memory", lambda world: 100)
    monkeypatch.setattr(probe, "used_memory", lambda device: next(used))
    assert choice(monkeypatch, {100: 10, 200: 20, 400: 40, 800: 80}) == 200  # twice 30 would be over half


def test_two_processes_that_measure_differently_choose_alike(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.training.probe_ranks"]
    subprocess.run([*command, str(tmp_path)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    found = [read_json(tmp_path / f"{rank}.json") for rank in range(2)]
    assert [one["micro_tokens"] for one in found] == [200, 200]  # 400 is faster for the first process alone
    assert found[0]["documents"] + found[1]["documents"] == 32  # the step is as large as before


def test_no_gradient_is_left(monkeypatch):
    objective = make_objective("contrastive")
    batches = Batches(make_source(objective), objective.collate, 16, 100, seed=1)
    assert probe.choose_micro_tokens(objective, batches, ALONE) >= probe.SMALLEST
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_a_run_keeps_the_number_that_it_chose(tmp_path, monkeypatch):
    for number in (150, 400):  # the second time the machine is another
        monkeypatch.setattr("foretext.training.loop.choose_micro_tokens", lambda *_, number=number: number)
        weights = short_run("mlm", tmp_path / "run", micro_tokens="auto")
        assert read_json(tmp_path / "run" / "run.json")["micro_tokens"] == 150
    fixed = short_run("mlm", tmp_path / "fixed", micro_tokens=150)
    assert all(torch.equal(weights[key], fixed[key]) for key in fixed)
