"""The best square matrix product of this moment, in FLOP/s: the process that `turns.py` asks between rounds."""

import torch
from turns import Answer, clock, serve

from foretext.model.precision import has_bf16

SIDE, TRIES = 1024, 8


def make(about: dict):
    torch.set_num_threads(about["threads"])
    now = clock(about["threads"])
    a, b = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    kinds = {"fp32": (a, b)} | ({"bf16": (a.bfloat16(), b.bfloat16())} if has_bf16(a.device) else {})

    def best(a: torch.Tensor, b: torch.Tensor) -> float:
        times = []
        for _ in range(TRIES):
            begin = now()
            a @ b
            times.append(now() - begin)
        return 2 * SIDE**3 / min(times)

    def run(_: str) -> Answer:
        return {name: best(*pair) for name, pair in kinds.items()}

    return run


if __name__ == "__main__":
    serve(make)
