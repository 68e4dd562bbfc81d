"""The run folder: whose it is, and when it is replaced."""

import pytest

from foretext.errors import UserError
from foretext.training.distributed import World
from foretext.training.folder import open_run


def opened(folder, steps: int, overwrite: bool = False) -> int:
    return open_run(folder, {"lr": steps}, overwrite, World.alone(), lambda: {"steps": steps})["steps"]


def test_a_run_is_recognised_and_another_refused(tmp_path):
    assert opened(tmp_path / "run", 3) == opened(tmp_path / "run", 3) == 3
    with pytest.raises(UserError, match="other settings .lr: 3 there, 4 here.*--overwrite"):
        opened(tmp_path / "run", 4)


FIRST = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}


@pytest.mark.parametrize(("begun", "now", "kept"), [
    ({}, {}, False),
    ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "a"}, True),  # also where a node has joined, which counts as no restart
    ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "b"}, False),
    ({"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": "none"}, True),
    ({}, {"TORCHELASTIC_RUN_ID": "none"}, False),
    (FIRST, FIRST | {"SLURM_RESTART_COUNT": "1"}, True),
    (FIRST, FIRST, False),  # typed twice in one allocation
    ({"SLURM_JOB_ID": "6"}, FIRST | {"SLURM_RESTART_COUNT": "1"}, False),  # of another job
    (FIRST, {}, False),
])
def test_what_a_scheduler_types_again_goes_on_with_its_own_run(tmp_path, monkeypatch, begun, now, kept):
    """`--overwrite` in its command is for the run that it finds at first."""
    for name in ("TORCHELASTIC_RUN_ID", *FIRST):
        monkeypatch.delenv(name, raising=False)
    for name, value in begun.items():
        monkeypatch.setenv(name, value)
    opened(tmp_path / "run", 3)
    (tmp_path / "run" / "note").write_text("of before")
    for name in begun:
        monkeypatch.delenv(name)
    for name, value in now.items():
        monkeypatch.setenv(name, value)
    assert opened(tmp_path / "run", 3, overwrite=True) == 3
    assert (tmp_path / "run" / "note").exists() == kept
