"""Several processes: the same run as one, sharded or not, and whoever goes on with it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from foretext.text.prepare import prepare
from tests.conftest import made_up_texts

STEPS, HALF = 6, 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store, and an uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in made_up_texts(80, seed=21)))
    prepare([str(folder / "corpus.jsonl")], folder / "store", vocab_size=256, max_tokens=30)
    run(folder, "alone", 1)
    return folder


def started(folder, name: str, processes: int, *sets: str) -> subprocess.CompletedProcess:
    """`foretext pretrain mlm`, also as torchrun starts it."""
    sets = ("training.batch_size=16", "training.precision=fp32", f"training.checkpoint_every={HALF}", "encoder.start=bert-tiny", *sets)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "foretext.cli"]
    command = [sys.executable, *(start if processes > 1 else ["-m", "foretext.cli"]), "pretrain", "mlm", "-d", folder / "store",
               "-o", folder / name, "--steps", str(STEPS), *(part for text in sets for part in ("--set", text))]
    return subprocess.run(list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)


def run(folder, name: str, processes: int, *sets: str) -> None:
    done = started(folder, name, processes, *sets)
    assert done.returncode == 0, done.stderr


def assert_same(folder, name: str) -> None:
    """The weights and moments at the end of two runs agree; rounding alone tells them apart."""
    ours, theirs = (folder / run / "checkpoints" / f"step-{STEPS}" for run in (name, "alone"))
    expected = load_file(theirs / "objective.safetensors")
    for key, value in load_file(ours / "objective.safetensors").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    moments = [torch.load(path / "optimizer.pt", weights_only=True)["optimizer"]["state"] for path in (ours, theirs)]
    assert moments[0].keys() == moments[1].keys()
    for i, values in moments[0].items():
        assert values["exp_avg"].shape == moments[1][i]["exp_avg"].shape


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(place, parallel):
    run(place, parallel, 2, f"training.parallel={parallel}")
    assert_same(place, parallel)
    exported = [load_file(place / name / "export" / "model.safetensors") for name in (parallel, "alone")]
    for key, value in exported[0].items():
        torch.testing.assert_close(value, exported[1][key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(place, before, after):
    name = f"from-{before}-to-{after}"
    run(place, name, before, "training.parallel=fsdp")
    shutil.rmtree(place / name / "checkpoints" / f"step-{STEPS}")
    shutil.rmtree(place / name / "export")
    run(place, name, after, "training.parallel=fsdp")
    assert_same(place, name)


def test_processes_that_share_weights_validate_together(place):
    """Three steps of held-out texts for two processes, each of which has to be there whenever weights come together."""
    sets = ("valid_share=0.25", "training.batch_size=8", "training.valid_every=3")
    found = []
    for name, processes in (("valid-alone", 1), ("valid-shared", 2)):
        run(place, name, processes, *sets, "training.parallel=fsdp")
        records = map(json.loads, (place / name / "metrics.jsonl").read_text().splitlines())
        found.append([record["valid_loss"] for record in records if "valid_loss" in record])
    assert len(found[0]) == 2 and found[1] == pytest.approx(found[0], rel=1e-4)


def test_processes_that_share_weights_are_given_a_number_of_tokens(place):
    done = started(place, "auto", 2, "training.parallel=fsdp", "training.micro_tokens=auto")
    assert done.returncode and "set a number with training.parallel fsdp" in done.stderr
