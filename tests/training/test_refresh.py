"""Examples that the model chooses itself: rounds, their checkpoints, a process killed in the middle of a refresh."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from foretext.training.checkpoint import load_rows, steps
from foretext.training.distributed import World
from foretext.training.loop import TrainingConfig, train
from foretext.training.optim import OptimConfig
from foretext.training.refresh import Rounds
from tests.conftest import made_up_texts
from tests.objectives.table import make_objective, related_texts
from tests.processes import together

ALONE = World(0, 1, torch.device("cpu"))


def run(output: Path, count: int = 40, texts: int = 24, refresh_every: int = 3, checkpoint_every: int = 2, dies_at: int | None = None):
    """A short training; `dies_at`: the process kills itself while it refreshes at that step, vectors computed and nothing written."""
    objective = make_objective("marge", dropout=0.1, layers=1)
    objective.refresh_every = refresh_every
    links, memory = objective.links, []

    def watched(*args):
        memory.append(psutil.Process().memory_info().rss)
        found = links(*args)
        if dies_at is not None and len(memory) == 1 + dies_at // refresh_every:
            until_written(output, dies_at // checkpoint_every * checkpoint_every)
            os.kill(os.getpid(), 9)
        return found

    objective.links = watched
    source = related_texts(made_up_texts(texts, seed=3))
    config = TrainingConfig(steps=count, batch_size=2, micro_tokens=400, optim=OptimConfig(lr=1e-3), precision="fp32", log_every=1000,
                            checkpoint_every=checkpoint_every, keep=10**6)
    train(objective, source, output, config, world=ALONE)
    return objective.state_dict(), memory


def until_written(output: Path, step: int) -> None:
    """Wait for the thread that brings a checkpoint to disk beside the training: slow disks must not decide what is tested."""
    deadline = time.monotonic() + 60
    while step not in steps(output):
        assert time.monotonic() < deadline, f"no checkpoint of step {step} after a minute"
        time.sleep(0.01)


def killed(output: Path, **how) -> None:
    """`run` in a process of its own that dies by SIGKILL."""
    call = f"from pathlib import Path; from tests.training.test_refresh import run; run(Path({str(output)!r}), **{how!r})"
    done = subprocess.run([sys.executable, "-c", call], env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
                          stderr=subprocess.DEVNULL)
    assert done.returncode == -9


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_killed_in_the_middle_of_a_refresh_it_ends_bit_identical(tmp_path):
    whole, memory = run(tmp_path / "whole", count=8)
    assert len(memory) == 3  # at steps 0, 3 and 6
    killed(tmp_path / "killed", count=8, dies_at=3)
    assert steps(tmp_path / "killed") == [2]
    resumed, memory = run(tmp_path / "killed", count=8)
    assert len(memory) == 2, "the round that the checkpoint is in is not searched again"
    assert same(whole, resumed)


def test_a_checkpoint_keeps_the_rows_of_its_round(tmp_path):
    run(tmp_path / "run", count=8)
    rows = {step: load_rows(tmp_path / "run", step) for step in steps(tmp_path / "run")}
    assert rows.keys() == {2, 4, 6, 8}
    assert rows[2]["0.targets"].size
    assert all(np.array_equal(rows[6][name], load_rows(tmp_path / "run", 4)[name]) for name in rows[4])  # saved before the refresh at 6
    assert rows[8].keys() == rows[2].keys()


def test_prefetched_batches_end_with_their_round():
    """A thread that makes batches ahead never makes one of the round to come from the rows of the last."""
    objective = make_objective("marge")
    made = {}
    for ahead in (0, 2):
        rounds = Rounds(objective, related_texts(made_up_texts(24, seed=3)), None, 2, 10_000, 1, ALONE)
        objective.refresh_every = rounds.every = 2
        state, begun = {"step": 0, "updates": 0}, []
        renew = rounds.renew
        rounds.renew = lambda step, renew=renew, begun=begun: (begun.append(step), renew(step))
        made[ahead] = []
        for batches in rounds.steps(state, total=5, ahead=ahead):
            made[ahead].append(batches[0].labels)
            state["step"] += 1
            state["updates"] += 1
        assert begun == [0, 2, 4]
    assert len(made[0]) == 5
    assert all(torch.equal(a, b) for a, b in zip(made[0], made[2]))


def test_steps_without_an_update_are_not_endless():
    objective = make_objective("marge")
    rounds = Rounds(objective, related_texts(made_up_texts(24, seed=3)), None, 2, 10_000, 1, ALONE)
    state, count = {"step": 0, "updates": 0}, 0
    for _ in rounds.steps(state, total=3, ahead=0):
        state["step"] += 1
        count += 1
    assert count == 6


@pytest.mark.slow
def test_two_thousand_steps_with_refreshes_do_not_grow(tmp_path):
    """Five refreshes; killed in the middle of the fourth and started again it ends with the same bits."""
    how = {"count": 2000, "texts": 400, "refresh_every": 400, "checkpoint_every": 250}
    whole, memory = run(tmp_path / "whole", **how)
    assert len(memory) == 5
    assert max(memory[3:]) < 1.02 * memory[2]  # by the third the allocator has all it keeps
    killed(tmp_path / "killed", **how, dies_at=1200)
    assert steps(tmp_path / "killed")[-1] == 1000
    resumed, _ = run(tmp_path / "killed", **how)
    assert same(whole, resumed)


def test_two_processes_refresh_as_one(tmp_path):
    """They share shards of texts and vectors, and all arrange the same examples."""
    together(f"""
import numpy as np
from foretext.training.distributed import World
from tests.training.test_refresh import arranged
world = World.join("cpu")
np.savez({str(tmp_path)!r} + f"/{{world.rank}}.npz", **arranged(world))""")
    alone = arranged(ALONE)
    for rank in range(2):
        rows = np.load(tmp_path / f"{rank}.npz")
        assert set(rows) == set(alone) and all(np.array_equal(rows[name], alone[name]) for name in alone)


def arranged(world: World) -> dict[str, np.ndarray]:
    """What MARGE chooses of made-up texts."""
    rounds = Rounds(make_objective("marge"), related_texts(made_up_texts(48, seed=3)), None, 2, 10_000, 1, world)
    rounds.begin()
    return rounds.rows
