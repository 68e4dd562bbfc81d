"""What deploy/ starts, started here: the exact commands of the manifests, at toy size, on two processes."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from foretext.text.prepare import prepare
from tests.conftest import made_up_texts

DEPLOY = Path(__file__).parent.parent / "deploy"


@pytest.fixture
def data(tmp_path):
    """The folder that the manifests mount at /data."""
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in made_up_texts(60, seed=21)))
    prepare([str(tmp_path / "corpus.jsonl")], tmp_path / "store", vocab_size=256, max_tokens=30)
    settings = {"store": str(tmp_path / "store"), "output": str(tmp_path / "run"), "objective": {"name": "mlm"},
                "encoder": {"start": "bert-tiny"}, "training": {"steps": 4, "batch_size": 8, "precision": "fp32"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    return os.environ | {"OMP_NUM_THREADS": "1", "PATH": path} | more


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def manifests(name: str) -> dict[str, dict]:
    """The documents of a file by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / name).read_text())}


def command_of(name: str) -> list[str]:
    """What the training container of a manifest runs."""
    found = manifests(name)
    if "TrainJob" in found:
        return found["TrainJob"]["spec"]["trainer"]["command"]
    return found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"]


@pytest.mark.parametrize("name", ["trainjob.yaml", "pytorchjob.yaml"])
def test_the_command_of_a_manifest_trains(name, data):
    command = [part.replace("/data", str(data)) for part in command_of(name)]
    # The operators hand torchrun its options in variables; these are theirs for one node of two processes.
    given = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "2", "PET_MASTER_PORT": str(free_port())}
    done = subprocess.run(command, env=environment(**given), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (data / "run" / "export" / "model.safetensors").is_file()


def test_the_trainjob_says_what_kubeflow_reads():
    """The fields of Kubeflow Trainer 2.3 (docs/decisions.md)."""
    found = manifests("trainjob.yaml")
    runtime, job = found["TrainingRuntime"], found["TrainJob"]
    assert {runtime["apiVersion"], job["apiVersion"]} == {"trainer.kubeflow.org/v1alpha1"}
    assert set(job["spec"]) <= {"runtimeRef", "initializer", "trainer", "suspend", "managedBy"}
    assert set(job["spec"]["trainer"]) <= {"image", "command", "args", "env", "numNodes", "resourcesPerNode", "numProcPerNode"}
    assert job["spec"]["runtimeRef"] == {"kind": "TrainingRuntime", "name": runtime["metadata"]["name"]}
    assert set(runtime["spec"]) <= {"mlPolicy", "podGroupPolicy", "template"}
    assert runtime["spec"]["mlPolicy"] == {"numNodes": 1, "torch": {}}
    (pods,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert pods["name"] == "node" and set(pods) == {"name", "template"}
    # By these two the operator finds the container that the job's command, nodes and resources are for.
    assert pods["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    assert reads_pods(pods["template"]["spec"]["template"]["spec"]) == ["node"]


def reads_pods(spec: dict) -> list[str]:
    """The containers of a pod whose fields are Kubernetes', each with volumes that the pod has."""
    assert set(spec) <= {"terminationGracePeriodSeconds", "containers", "volumes"}
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert set(container) <= {"name", "image", "command", "resources", "volumeMounts"}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    return [container["name"] for container in spec["containers"]]


def test_the_older_operator_reads_every_field_of_the_pytorchjob():
    torch = manifests("pytorchjob.yaml")["PyTorchJob"]
    assert (torch["apiVersion"], torch["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(torch["spec"]) <= {"elasticPolicy", "nprocPerNode", "pytorchReplicaSpecs", "runPolicy"}
    assert set(torch["spec"]["elasticPolicy"]) <= {"minReplicas", "maxReplicas", "maxRestarts", "metrics", "nProcPerNode", "rdzvBackend",
                                                   "rdzvConf", "rdzvHost", "rdzvId", "rdzvPort", "standalone"}
    assert isinstance(torch["spec"]["nprocPerNode"], str)
    worker = torch["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert set(worker) == {"replicas", "restartPolicy", "template"}
    assert reads_pods(worker["template"]["spec"]) == ["pytorch"]  # the operator looks for this name


def slurm(folder: Path, **commands: str) -> dict[str, str]:
    """An environment with these commands in place of SLURM's, which is not here."""
    folder.mkdir()
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    given = environment(SLURM_JOB_ID="7", SLURM_JOB_NODELIST="localhost", SLURM_NNODES="1", SLURM_GPUS_ON_NODE="2")
    return given | {"PATH": f"{folder}{os.pathsep}{given['PATH']}"}


def batch_script(tmp_path: Path) -> Path:
    """The SLURM script with a port of its own."""
    script = (DEPLOY / "pretrain.sbatch").read_text().replace("29500", str(free_port()))
    (tmp_path / "job.sh").write_text(script)
    return tmp_path / "job.sh"


def test_the_slurm_script_trains(data):
    asked = shlex.quote(str(data / "asked"))
    env = slurm(data / "bin", srun='exec "$@"', scontrol=f'[ "$1" = show ] && echo localhost || echo "$@" >> {asked}')
    done = subprocess.run(["bash", batch_script(data), data / "run.yaml"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (data / "run" / "export" / "model.safetensors").is_file()
    assert not (data / "asked").exists()  # finished: not queued again


def test_the_slurm_script_queues_itself_again_at_its_time_limit(data):
    pid, asked = shlex.quote(str(data / "pid")), shlex.quote(str(data / "asked"))
    env = slurm(data / "bin", srun=f'echo $$ > {pid}; exec "$@"', scancel=f"kill -TERM $(cat {pid})",
                scontrol=f'[ "$1" = show ] && echo localhost || echo "$@" >> {asked}')
    settings = yaml.safe_load((data / "run.yaml").read_text())
    settings["training"] |= {"steps": 100_000, "checkpoint_every": 5}
    (data / "run.yaml").write_text(yaml.safe_dump(settings))
    job = subprocess.Popen(["bash", batch_script(data), data / "run.yaml"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                           text=True, start_new_session=True)
    checkpoints, end = data / "run" / "checkpoints", time.monotonic() + 240
    try:
        while not list(checkpoints.glob("step-*")):
            assert job.poll() is None, job.stderr.read()
            assert time.monotonic() < end
            try:
                job.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
        before = max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))
        job.terminate()
        errors = job.communicate(timeout=120)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):  # torchrun would go on after the script
            os.killpg(job.pid, signal.SIGKILL)
    assert "a checkpoint is written" in errors
    assert (data / "asked").read_text() == "requeue 7\n"
    assert max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")) >= before
