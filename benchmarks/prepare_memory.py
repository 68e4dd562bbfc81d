"""Peak memory of `prepare` for a corpus and for one ten times as large: the second must not be larger.

    python benchmarks/prepare_memory.py [--megabytes 20] [--workers 2] [--no-train]

The corpus is made up (Zipf-distributed words, 2 % repeated documents), written as jsonl.gz into a temporary folder. Memory is the
sum of the private memory of the process and its workers (USS, sampled ten times a second), so shared pages count once.
Also printed: throughput, and the share of the bare tokenizer's throughput on the same texts.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil


def write_corpus(path: Path, megabytes: float, seed: int = 0) -> None:
    """About `megabytes` of text in documents of a few thousand characters."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfw"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 10))) for _ in range(30_000)])
    chances = 1 / np.arange(10, len(words) + 10)
    chances /= chances.sum()
    written, previous, number = 0, "", 0
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        while written < megabytes * 1e6:
            for row in words[draw.choice(len(words), (50, 500), p=chances)]:
                sentences = [" ".join(part).capitalize() + "." for part in np.split(row, 25)]
                text = previous if draw.random() < 0.02 and previous else " ".join(sentences)
                previous = text
                file.write(json.dumps({"_id": str(number), "text": text}) + "\n")
                written += len(text)
                number += 1


def peak_of(command: list[str]) -> tuple[float, str]:
    """Run a command; peak of its process tree's private memory in MB, and what it printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        used = 0
        for one in [root, *children(root)]:
            try:
                used += one.memory_full_info().uss
            except psutil.Error:  # it ended while we looked
                continue
        peak = max(peak, used)
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return peak / 1e6, process.stdout.read()


def children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.Error:
        return []


RUN = """
import sys
from foretext.text.prepare import prepare
tokenizer = sys.argv[4] or None
report = prepare(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), tokenizer=tokenizer, vocab_size=8192, sample_bytes=8_000_000)
print(report.megabytes_per_second)
"""


def bare(texts: list[str], folder: str, queue) -> None:
    """MB/s of the tokenizer alone, threads off, in this process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from foretext.text.tokenizer import Tokenizer

    backend = Tokenizer.load(folder).backend
    start = time.monotonic()
    for i in range(0, len(texts), 64):
        backend.encode_batch_fast(texts[i:i + 64], add_special_tokens=False)
    queue.put(sum(map(len, texts)) / 1e6 / (time.monotonic() - start))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=20, help="text of the smaller corpus; the larger has ten times as much")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        peaks, speeds, tokenizer = [], [], ""
        for times in (1, 10):
            corpus = folder / f"x{times}.jsonl.gz"
            write_corpus(corpus, given.megabytes * times)
            for trained in (True, False):
                store = folder / f"store-{times}-{trained}"
                command = [sys.executable, "-c", RUN, str(corpus), str(store), str(given.workers), "" if trained else tokenizer]
                peak, printed = peak_of(command)
                tokenizer = str(store / "tokenizer")
                peaks.append(peak)
                speeds.append(float(printed))
                print(f"x{times:<2} {given.megabytes * times:,.0f} MB, tokenizer {'trained' if trained else 'given':<7}: "
                      f"peak {peak:,.0f} MB, {speeds[-1]:.2f} MB/s", flush=True)
        with gzip.open(folder / "x1.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        queue = multiprocessing.get_context("fork").SimpleQueue()
        runs = [multiprocessing.get_context("fork").Process(target=bare, args=(texts[i::given.workers], tokenizer, queue))
                for i in range(given.workers)]
        for run in runs:
            run.start()
        alone = sum(queue.get() for _ in runs)
        print(f"bare encode_batch_fast, {given.workers} processes: {alone:.2f} MB/s; prepare reaches {speeds[-1] / alone:.0%} of it")
        growth = peaks[2] / peaks[0], peaks[3] / peaks[1]
        print(f"ten times the text: {growth[0]:.2f} x the memory with training, {growth[1]:.2f} x without")


if __name__ == "__main__":
    main()
