"""Processes that are measured in turns: each holds one contender, does one round when it is asked, and sleeps while others run.

A B A B ... with a matrix product timed between rounds, so that a share of the machine's peak is a share of what the machine gave in
that minute. A round in which the product's speed moved by more than a tenth is done again; where that does not help it is flagged.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

MOVED = 0.1
Answer = dict[str, Any]


def clock(threads: int) -> Callable[[], float]:
    """The processor's time where one thread works, which other processes disturb less; else the clock on the wall."""
    return time.process_time if threads == 1 else time.perf_counter


def peak_memory() -> float:
    """Megabytes that this process held at most."""
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # noqa: SIM115
    return int(line.split()[1]) / 1024


def serve(make: Callable[[dict[str, Any]], Callable[[str], Answer]]) -> None:
    """In a contender's process: set up what `sys.argv[1]` describes, then answer one line of JSON for every line that is read."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs to the log

    def say(answer: Answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        run = make(json.loads(sys.argv[1]))
        say({"ready": True})
        for line in sys.stdin:
            say(run(line.strip()) | {"memory": peak_memory()})
    except ImportError as error:
        traceback.print_exc()
        say({"problem": f"not installed ({error.name or error})"})
    except Exception as error:
        traceback.print_exc()
        say({"problem": f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"})


class Contender:
    """A process of its own: `script` with its description; `problem` says why it does not run, if it does not."""

    def __init__(self, name: str, script: str, about: dict[str, Any], logs: Path):
        self.name, self.problem = name, None
        logs.mkdir(parents=True, exist_ok=True)
        threads = str(about["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(about)]
        with open(logs / f"{name.replace(' ', '-')}.txt", "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        self.heard = False

    def ready(self) -> "Contender":
        """Wait until it is set up, or has said why it cannot be."""
        if not self.heard:
            self.heard = True
            self._hear()
        return self

    def _hear(self) -> Answer:
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"problem": f"its process ended ({self.process.wait()})"}
        self.problem = answer.get("problem")
        return answer

    def ask(self, case: str) -> Answer:
        """One round of `case`."""
        try:
            self.process.stdin.write(case + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `_hear` tells why
        return self._hear()

    def ask_warm(self, case: str) -> Answer:
        """The second of two rounds: others took the caches in their turns, the system idle memory; a loop never sleeps (docs/LOG.md)."""
        return self.ask(case) if "problem" not in (first := self.ask(case)) else first

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def in_turns(contenders: list[Contender], cases: list[str], rounds: int, gemm: Contender, repeat: bool,
             tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure every contender on every case, `rounds` times after one warm-up.

    Args:
        gemm: answers {"bf16": FLOP/s, "fp32": FLOP/s}.
        repeat: do a round again if the machine's speed moved during it, at most `rounds` times in all.
    Returns:
        results: {contender: {case: [answers, each with "peak", the matrix product around it]}}, problems, and how the product moved.
    """
    results = {c.name: {case: [] for case in cases} for c in contenders}
    moves, again, done = [], rounds if repeat else 0, -1
    before = gemm.ask("")
    while done < rounds:
        tell("warm-up" if done < 0 else f"round {done + 1} of {rounds}")
        found = [(c.name, case, c.ask_warm(case)) for case in cases for c in contenders if not c.problem]
        after = gemm.ask("")
        kind = "bf16" if "bf16" in after else "fp32"
        moved = abs(after[kind] / before[kind] - 1)
        peak = {name: max(before[name], after[name]) for name in ("bf16", "fp32") if name in after}
        before = after
        if done >= 0 and moved > MOVED and again:
            again -= 1
            continue
        done += 1
        if done == 0:
            continue
        moves.append(moved)
        for name, case, answer in found:
            if "seconds" in answer:
                results[name][case].append(answer | {"peak": peak})
    return {"results": results, "problems": {c.name: c.problem for c in contenders if c.problem},
            "gemm": before, "moved": max(moves), "steady": max(moves) <= MOVED}


def seconds(answers: list[Answer]) -> tuple[float, float]:
    """Median and minimum."""
    every = [answer["seconds"] for answer in answers]
    return median(every), min(every)
