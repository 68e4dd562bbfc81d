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


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_what_a_scheduler_types_again_replaces_nothing(tmp_path, monkeypatch, variable):
    """`--overwrite` in a command was meant for its first time; after that the run it finds is its own."""
    note = tmp_path / "run" / "note"
    for count, left in (("0", False), ("1", True)):
        monkeypatch.setenv(variable, count)
        opened(tmp_path / "run", 3)
        note.write_text("of before")
        assert opened(tmp_path / "run", 3, overwrite=True) == 3
        assert note.exists() == left
