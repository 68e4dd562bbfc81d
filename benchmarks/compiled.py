"""What `torch.compile` is worth in a training step on this machine, and what it costs first: masked words, eager and compiled in turns.

    python benchmarks/compiled.py [--objective mlm] [--threads 1] [--rounds 9]

Compiled is what follows attention in each layer (projection, residuals, norms, feed-forward), for any number of tokens: the plain
operations that a compiler can join. Two processes of the step in `steps.py`; both start alike, so that what remains is compiling.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from made_up import write
from turns import Contender, in_turns, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="mlm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    cases = ["full", "mixed"]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), 0.4)
        about = {"objective": given.objective, "cases": cases, "texts": 32, "threads": given.threads, "data": folder}
        logs = Path(folder) / "logs"
        gemm = Contender("gemm", "gemm.py", about, logs).ready()
        both = [Contender(name, "steps.py", about | {"compile": name == "compiled"}, logs).ready() for name in ("eager", "compiled")]
        for one in both:
            begin = time.monotonic()
            for case in cases:
                one.ask(case)
            print(f"{one.name}: {one.problem or f'the first step of each case took {time.monotonic() - begin:.1f} s in all'}")
        found = in_turns(both, cases, given.rounds, gemm, False, lambda _: None)
        for one in (gemm, *both):
            one.close()
    for case in cases:
        eager, compiled = (found["results"][one.name][case] for one in both)
        ratio = median(a["seconds"] / b["seconds"] for a, b in zip(eager, compiled))
        rates = [f"{one.name} {answers[0]['tokens'] / seconds(answers)[0]:,.0f}" for one, answers in zip(both, (eager, compiled))]
        print(f"{case}: tokens/s {', '.join(rates)}; compiled is {ratio:.2f}x as fast")


if __name__ == "__main__":
    main()
