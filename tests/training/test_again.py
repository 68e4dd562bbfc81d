"""Running a finished training again: it says so, and neither reads a batch nor measures the machine."""

from foretext.text.batches import Batches
from foretext.training import telemetry
from tests.objectives.test_table import short_run


def test_a_finished_run_is_left_alone(tmp_path, monkeypatch, capsys):
    first = short_run("mlm", tmp_path / "run")

    def never(*_):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(Batches, "step", never)
    monkeypatch.setattr(telemetry, "measured_peak", never)
    again = short_run("mlm", tmp_path / "run")
    assert "already trained" in capsys.readouterr().err
    assert all((value == again[key]).all() for key, value in first.items())
