"""How near the fused optimizer is to its limit, which is memory: bytes a second of AdamW, beside those of a copy and of a sum.

    python benchmarks/optimizer.py [--parameters 11000000] [--threads 1] [--rounds 15]

AdamW reads weight, gradient and two moments and writes three of them: seven numbers for a parameter. A copy moves three (what it writes
is fetched first), a sum of two into a third four. In turns; the least time of each.
"""

import argparse

import torch
from turns import clock

from foretext.training.loop import tune_allocator
from foretext.training.optim import OptimConfig, make_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=11_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tune_allocator()
    now = clock(given.threads)
    model = torch.nn.Linear(given.parameters // 256, 256, bias=False)
    model.weight.grad = torch.randn_like(model.weight)
    optimizer = make_optimizer(model, OptimConfig())
    a, b, c = torch.randn(3, given.parameters)
    works = {"AdamW": (optimizer.step, 7), "copy": (lambda: a.copy_(b), 3), "sum": (lambda: torch.add(a, b, out=c), 4)}
    spent = {name: [] for name in works}
    for _ in range(given.rounds):
        for name, (work, _) in works.items():
            begin = now()
            work()
            spent[name].append(now() - begin)
    for name, (_, moved) in works.items():
        print(f"{name:<6}{min(spent[name]) * 1e3:8.2f} ms{4 * moved * given.parameters / min(spent[name]) / 1e9:8.1f} GB/s")


if __name__ == "__main__":
    main()
