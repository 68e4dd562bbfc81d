"""What a run reports: metrics.jsonl, TensorBoard, and an honest speed line."""

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


class Log:
    """metrics.jsonl (one JSON object per report) and tensorboard/ beside it.

    Args:
        last_step: when a run goes on, reports after this step are forgotten: they will be made again.
    """

    def __init__(self, folder: Path, last_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
            self.path.write_text("".join(kept), encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=last_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.board.close()


class Speed:
    """Tokens per second and FLOP per second of what really ran, and its share of the best matrix product measured here.

    FLOPs are counted once, from the matmuls that one whole step issues (forward and backward), and scaled by real tokens.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.flops_per_token: float | None = None
        self.restart()

    @cached_property
    def peak(self) -> float:
        """FLOP/s of this process at best."""
        return measured_peak(self.device, self.dtype)

    def restart(self) -> None:
        self.tokens, self.start = 0, time.perf_counter()

    def count(self) -> FlopCounterMode:
        """A context around one step's `backward`; hand it to `counted` afterwards."""
        self.peak  # noqa: B018 - measured before the first step, not inside a stretch that is timed, and not where no step is made
        self.restart()
        return FlopCounterMode(display=False)

    def counted(self, counter: FlopCounterMode, tokens: int) -> None:
        self.flops_per_token = counter.get_total_flops() / tokens

    def add(self, tokens: int) -> None:
        self.tokens += tokens

    def report(self) -> dict[str, float]:
        """Rates of this process since the last report."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        rate = self.tokens / (time.perf_counter() - self.start)
        self.restart()
        flops = rate * (self.flops_per_token or 0.0)
        return {"tokens_per_second": rate, "flops_per_second": flops, "share_of_peak": flops / self.peak}


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of ten square matrix products; takes about half a second."""
    side = 8192 if device.type == "cuda" else 1024
    own = torch.Generator(device).manual_seed(0)  # dropout's numbers are not ours to draw
    a, b = (torch.randn(side, side, device=device, generator=own).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
