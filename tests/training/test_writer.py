"""Checkpoints are written beside the training: what is on disk is what was there when it was asked for."""

import threading

import pytest
import torch

from foretext.training import checkpoint
from foretext.training.optim import OptimConfig, make_optimizer
from tests.objectives.table import make_objective
from tests.objectives.test_table import ALONE


def parts():
    objective = make_objective("mlm")
    return objective, make_optimizer(objective, OptimConfig())


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    objective, optimizer = parts()
    there = objective.head.bias.detach().clone()
    go, write = threading.Event(), checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *given: (go.wait(), write(*given)))
    with checkpoint.Writer(tmp_path, 1, ALONE) as writer:
        writer.save(objective, optimizer, {"step": 1, "best_step": None})
        with torch.no_grad():
            objective.head.bias += 1  # the next update
        assert checkpoint.steps(tmp_path) == []
        go.set()
        writer.save(objective, optimizer, {"step": 1, "best_step": None})  # of the same step: nothing to do
        writer.save(objective, optimizer, {"step": 2, "best_step": None})
    assert checkpoint.steps(tmp_path) == [2]
    assert checkpoint.load(tmp_path, 2, objective, optimizer, ALONE)["step"] == 2
    assert torch.equal(objective.head.bias, there + 1)


def test_one_write_at_a_time_and_what_was_copied_is_what_is_written(tmp_path):
    objective, optimizer = parts()
    there = objective.head.bias.detach().clone()
    with checkpoint.Writer(tmp_path, 2, ALONE) as writer:
        for step in (1, 2):
            writer.save(objective, optimizer, {"step": step, "best_step": None})
            assert checkpoint.steps(tmp_path)[: step - 1] == [1][: step - 1]  # the one before is whole
            with torch.no_grad():
                objective.head.bias += 1
    checkpoint.load(tmp_path, 1, objective, optimizer, ALONE)
    assert torch.equal(objective.head.bias, there)


def test_a_write_that_failed_ends_the_training(tmp_path):
    objective, optimizer = parts()
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OSError), checkpoint.Writer(tmp_path, 1, ALONE) as writer:
        writer.save(objective, optimizer, {"step": 1, "best_step": None})
