"""How costs grow: corpus to prepare, documents to encode and to search, texts that MARGE refreshes, tokens of a text to train on.

    python benchmarks/growth.py [--only prepare encode search refresh train] [--output runs/growth] [--quick]

Each part runs at sizes about three times apart, in turns, and the processor's time of one thread counts. Prints a table, and draws
growth.svg: what was measured, and the line of cost in proportion to size through its smallest. `of proportion` is how far the largest
is above that line; below 1 a fixed cost at the start weighs less and less.
"""

import argparse
import json
import os
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

Work = Callable[[int], object]


@dataclass(frozen=True)
class Growth:
    """One part: what its size counts, the sizes, and the quick ones; `make` prepares everything and returns what is timed."""

    title: str
    unit: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    make: Callable[[Path, tuple[int, ...]], Work]


def prepare(folder: Path, sizes: tuple[int, ...]) -> Work:
    """`foretext prepare` of so many megabytes, with a tokenizer that is there."""
    from made_up import words, zipf

    from foretext.text.prepare import prepare as run_prepare

    draw, done = np.random.default_rng(1), [0]
    every = words(np.random.default_rng(0))
    for size in sizes:
        with open(folder / f"{size}.jsonl", "w", encoding="utf-8") as file:
            for text in np.array_split(zipf(draw, every, size * 150_000), size * 500):  # of 2 kB
                file.write(json.dumps({"text": " ".join(text)}) + "\n")

    def run(size: int) -> None:
        done[0] += 1
        run_prepare(folder / f"{size}.jsonl", folder / f"store-{done[0]}", tokenizer=folder / "tokenizer", workers=1)

    return run


def encode(folder: Path, sizes: tuple[int, ...]) -> Work:
    """MiniLM, texts of mixed lengths, in the precision that is fastest here."""
    from peers import minilm

    from foretext.retrieval.embed import TextEncoder

    model_folder, texts = minilm({"texts": max(sizes)})
    model = TextEncoder.load(model_folder)
    return lambda size: model.encode(texts[:size])


def search(folder: Path, sizes: tuple[int, ...]) -> Work:
    """Exact: 64 queries, 256 dimensions, the best 100."""
    from foretext.retrieval.search import search as nearest

    draw = np.random.default_rng(0)
    vectors, queries = (draw.standard_normal((rows, 256), dtype=np.float32) for rows in (max(sizes), 64))
    return lambda size: nearest(queries, vectors[:size], 100)


def refresh(folder: Path, sizes: tuple[int, ...]) -> Work:
    """MARGE embeds all of its texts, searches each shard exactly and makes clusters; shards as it sets them by itself."""
    from refresh import Refresh

    made = {size: Refresh(size, "exact") for size in sizes}
    return lambda size: made[size].run()


def train(folder: Path, sizes: tuple[int, ...]) -> Work:
    """A masked step of 8,192 tokens on four layers of 256: the cost of one text is its share of the step."""
    from steps import make

    about = {"objective": "mlm", "cases": [str(size) for size in sizes], "threads": 1, "data": str(folder), "max_len": max(sizes)}
    draw, tokens = np.random.default_rng(0), 8192
    for size in sizes:
        lengths = np.full(tokens // size, size - 2)
        np.savez(folder / f"{size}.npz", ids=draw.integers(100, 30_000, lengths.sum()), lengths=lengths)
    run = make(about | {"texts": tokens})
    return lambda size: run(str(size))


PARTS = {
    "prepare": Growth("prepare", "MB of text", (1, 3, 10, 30), (1, 2), prepare),
    "encode": Growth("encode, MiniLM", "documents", (50, 150, 500, 1500), (16, 32), encode),
    "search": Growth("exact search, 64 queries", "documents", (10_000, 30_000, 100_000, 300_000), (1000, 3000), search),
    "refresh": Growth("refresh of MARGE", "texts", (1000, 3000, 10_000, 30_000), (200, 400), refresh),
    "train": Growth("masked step, one text of", "tokens", (128, 256, 512, 1024), (128, 256), train),
}


def processor() -> float:
    """Seconds that this process worked, and those that it started and that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measured(name: str, folder: Path, rounds: int, quick: bool) -> list[tuple[int, float]]:
    """(size, seconds) of a part; of `train`, seconds of one text."""
    part = PARTS[name]
    sizes = part.quick if quick else part.sizes
    work = part.make(folder, sizes)
    spent: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes if name == "train" else sizes[:1]:  # warm-up; of every shape where shapes are new
        work(size)
    for _ in range(rounds):
        for size in sizes:
            begin = processor()
            work(size)
            spent[size].append(processor() - begin)
    return [(size, median(times) / (8192 // size if name == "train" else 1)) for size, times in spent.items()]


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """One small panel for each part."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    figure, panels = pyplot.subplots(1, len(curves), figsize=(2.75 * len(curves), 2.6), squeeze=False, layout="constrained")
    for panel, (name, curve) in zip(panels.flat, curves.items()):
        sizes, spent = zip(*curve)
        panel.loglog(sizes, [spent[0] * size / sizes[0] for size in sizes], color="#999999", linewidth=1, linestyle="--",
                     label="in proportion")
        panel.loglog(sizes, spent, color="#3366aa", linewidth=1.8, marker="o", markersize=3.5, label="measured")
        panel.set_title(PARTS[name].title, fontsize=10)
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_xlabel(PARTS[name].unit, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels.flat[0].legend(fontsize=7, frameon=False)
    figure.supylabel("processor seconds", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--output", type=Path, default=Path("runs/growth"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two small sizes, once: whether it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RAYON_NUM_THREADS"] = "1"
    curves = {}
    with tempfile.TemporaryDirectory() as scratch:
        if {"prepare", "train"} & set(given.only):
            from made_up import write

            write(Path(scratch), 0.1)  # the tokenizer
        print(f"{'':26} {'size':>8} {'':10} {'seconds':>9} {'a second':>9} {'of proportion':>14}")
        for name in given.only:
            part, curve = PARTS[name], measured(name, Path(scratch), 1 if given.quick else given.rounds, given.quick)
            curves[name] = curve
            for size, seconds in curve:
                rate = f"{size / seconds:,.{0 if size > 100 * seconds else 1}f}"
                beside = seconds / size / (curve[0][1] / curve[0][0])
                print(f"{part.title:26} {size:8,} {part.unit:10} {seconds:9.3f} {rate:>9} {beside:13.2f}x", flush=True)
    draw(curves, given.output / "growth.svg")
    print(f"\n{given.output / 'growth.svg'}")


if __name__ == "__main__":
    main()
