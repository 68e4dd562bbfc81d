"""torchrun --nnodes=1:2: a node disappears, the other goes on alone with the same data and ends where one process would."""

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from foretext.text.prepare import prepare
from tests.conftest import made_up_texts

STEPS = 120  # so many that the node is gone long before the last
SETS = ("training.batch_size=16", "training.precision=fp32", "training.checkpoint_every=5", "encoder.start=bert-tiny")


def command(folder, name: str) -> list[str]:
    return ["-m", "foretext.cli", "pretrain", "mlm", "-d", str(folder / "store"), "-o", str(folder / name), "--steps", str(STEPS),
            *(part for text in SETS for part in ("--set", text))]


def until_listening(port: int) -> None:
    """The first node has to host the rendezvous: with the other one it would go."""
    end = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end
        time.sleep(0.1)


def kill(process: subprocess.Popen) -> None:
    """A node without power: torchrun and what it started, at once."""
    if process.poll() is None:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            member.kill()
        process.wait()


@pytest.mark.slow
def test_a_lost_node_changes_nothing(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in made_up_texts(200, seed=21)))
    prepare([str(tmp_path / "corpus.jsonl")], tmp_path / "store", vocab_size=256, max_tokens=30)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command(tmp_path, "alone")], env=environment, check=True, capture_output=True, timeout=300)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3",
                "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=elastic", "--rdzv-conf=last_call_timeout=3"]
    start = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    stays = subprocess.Popen([*torchrun, *command(tmp_path, "elastic")], **start)  # the first one hosts the rendezvous
    until_listening(port)
    goes = subprocess.Popen([*torchrun, *command(tmp_path, "elastic")], **start)
    try:
        checkpoints = tmp_path / "elastic" / "checkpoints"
        end = time.monotonic() + 240
        while not list(checkpoints.glob("step-*")):
            assert time.monotonic() < end
            assert stays.poll() is None
            time.sleep(0.2)
        kill(goes)
        assert stays.wait(timeout=240) == 0
    finally:
        for process in (stays, goes):
            kill(process)

    last = torch.load(checkpoints / f"step-{STEPS}" / "optimizer.pt", weights_only=True)
    assert len(last["random"][0]) == 1  # one process wrote it
    expected = load_file(tmp_path / "alone" / "checkpoints" / f"step-{STEPS}" / "objective.safetensors")
    for key, value in load_file(checkpoints / f"step-{STEPS}" / "objective.safetensors").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
