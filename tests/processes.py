"""Two processes under torchrun's contract, without torchrun's start."""

import os
import socket
import subprocess
import sys


def together(script: str) -> None:
    """Run a script as two processes under torchrun's contract."""
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    script += "\nfrom foretext.training.distributed import World\nWorld.leave()"
    running = [subprocess.Popen([sys.executable, "-c", script], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                                stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        for process in running:
            said = process.communicate(timeout=120)[1]
            assert process.returncode == 0, said
    finally:
        for process in running:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
