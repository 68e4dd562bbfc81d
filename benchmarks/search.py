"""Exact search: queries per second of foretext's scan and of faiss's flat index, each in a process of its own.

    python benchmarks/search.py --threads 1 --queries 256      # 200,000 vectors of 256 dimensions, the best 100

`foretext int8` chooses candidates by products of 8 bits and scores them exactly, as search does by itself for many queries where a
processor multiplies 8 bits; `foretext held` has the rounded vectors in memory from the start (`ExactSearch(hold=True)`). `x faiss`: the
median of the rounds' ratios. `same`: the share of documents that the fp32 scan finds too (recall, its documents being the true ones).
`faiss` is told to use matrix products from 20 queries on; as shipped, version 1.15 does so only where queries times dimensions exceed
128,000. `faiss beside torch` is the same index in a process where torch has just multiplied, as it does to encode the queries: two OpenMP
runtimes share its cores there.
Peers take turns, round by round; the first round warms up, and so does the first search of each turn. With one thread the processor's time
counts, so that other work on the machine disturbs less; with more, the clock on the wall. Adding vectors to the index of faiss is not
counted; foretext needs none.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PEERS = ("foretext fp32", "foretext int8", "foretext held", "faiss", "faiss as shipped", "faiss beside torch")


def serve(peer: str, folder: Path, k: int, threads: int) -> None:
    """A peer: prepares, then searches once for every line it is sent."""
    clock = time.process_time if threads == 1 else time.perf_counter
    before = lambda: None  # noqa: E731
    vectors, queries = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")
    if peer.startswith("faiss"):
        if "torch" in peer:
            import torch

            torch.set_num_threads(threads)
            before = lambda: torch.ones(1024, 1024) @ torch.ones(1024, 1024)  # noqa: E731
        import faiss

        faiss.omp_set_num_threads(threads)
        if "shipped" not in peer:
            faiss.cvar.distance_compute_blas_threshold = 20
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        search = lambda: index.search(queries, k)  # noqa: E731
    else:
        import torch

        from foretext.retrieval.search import ExactSearch

        torch.set_num_threads(threads)
        exact = ExactSearch(vectors, hold="held" in peer)
        search = lambda: exact.search(queries, k, rounded="fp32" not in peer)  # noqa: E731
    for _ in sys.stdin:
        before()
        search()  # a process that waited for its turn is cold
        began = clock()
        _, found = search()
        spent = clock() - began
        print(json.dumps({"seconds": spent, "found": found.tolist()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 200_000), ("dimension", 256), ("queries", 64), ("k", 100), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peer:
        return serve(asked.peer, asked.folder, asked.k, asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        draw = np.random.default_rng(0)
        for name, rows in (("vectors", asked.rows), ("queries", asked.queries)):
            np.save(Path(folder) / f"{name}.npy", draw.standard_normal((rows, asked.dimension), dtype=np.float32))
        command = [sys.executable, __file__, "--folder", folder, "--k", str(asked.k), "--threads", str(asked.threads)]
        running = {peer: subprocess.Popen([*command, "--peer", peer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                   for peer in PEERS}
        times, last = {peer: [] for peer in PEERS}, {}
        for turn in range(asked.rounds + 1):
            for peer, process in running.items():
                process.stdin.write("go\n")
                process.stdin.flush()
                last[peer] = json.loads(process.stdout.readline())
                if turn:
                    times[peer].append(last[peer]["seconds"])
        for process in running.values():
            process.stdin.close()
            process.wait()
    exact = last["foretext fp32"]["found"]
    print(f"{'':<20}{'median q/s':>12}{'best q/s':>12}{'x faiss':>9}{'same':>9}")
    for peer in PEERS:
        recall = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(last[peer]["found"], exact)])
        median, best = asked.queries / statistics.median(times[peer]), asked.queries / min(times[peer])
        ratio = statistics.median(theirs / ours for ours, theirs in zip(times[peer], times["faiss"]))
        print(f"{peer:<20}{median:>12,.0f}{best:>12,.0f}{ratio:>9.2f}{recall:>9.4f}")
    return None


if __name__ == "__main__":
    main()
