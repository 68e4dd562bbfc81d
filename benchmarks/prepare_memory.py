"""Peak memory of `prepare` for growing corpora: it must reach a plateau.

    python benchmarks/prepare_memory.py [TEXT] [--megabytes 10 100 400] [--workers 2] [--scratch FOLDER]

TEXT is anything `foretext prepare` reads: its documents are drawn again and again, each time with their words in another order, so
that the corpus grows to any size without duplicates and keeps real words. Without TEXT the words are made up. 2 % of the documents
repeat the one before. The corpora are jsonl.gz in a temporary folder. Memory is the sum of the private memory of the process and its
workers (USS, sampled ten times a second), so shared pages count once. Also printed: throughput, and the share of the bare
tokenizer's throughput on the same texts.
"""

import argparse
import gzip
import itertools
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
from rich.console import Console
from rich.table import Table


def pools(text: str | None) -> list[np.ndarray]:
    """The words of each document to draw from."""
    if text:
        from foretext.text.corpus import read_documents

        documents = itertools.islice(read_documents(text), 2000)
        return [words for document in documents if len(words := np.array(document.text.split(), object)) >= 100]
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfw"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 10))) for _ in range(30_000)], object)
    chances = 1 / np.arange(10, len(words) + 10)
    return [words[draw.choice(len(words), 500, p=chances / chances.sum())] for _ in range(2000)]


def write_corpus(path: Path, megabytes: float, pools: list[np.ndarray]) -> None:
    """About `megabytes` of text: documents of at most 500 words, in sentences of 20."""
    draw = np.random.default_rng(0)
    written, text, number = 0, "", 0
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        while written < megabytes * 1e6:
            if draw.random() >= 0.02 or not text:
                words = draw.permutation(pools[draw.integers(len(pools))])[:500]
                text = " ".join(" ".join(words[i:i + 20]).capitalize() + "." for i in range(0, len(words), 20))
            file.write(json.dumps({"_id": str(number), "text": text}, ensure_ascii=False) + "\n")
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
    parser.add_argument("text", nargs="?", help="documents to draw words from; default: made-up words")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 100, 400], help="of text, a corpus each")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--scratch", help="folder for the corpora and stores; default: the system's")
    given = parser.parse_args()
    table = Table("text", "tokenizer given: peak", "speed", "tokenizer trained: peak", "speed")
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        folder = Path(folder)
        words, tokenizer, speeds = pools(given.text), "", {}
        for megabytes in given.megabytes:
            corpus = folder / f"{megabytes:g}.jsonl.gz"
            write_corpus(corpus, megabytes, words)
            peaks = {}
            for trained in (True, False):
                store = folder / f"{megabytes:g}-{trained}"
                command = [sys.executable, "-c", RUN, str(corpus), str(store), str(given.workers), "" if trained else tokenizer]
                peaks[trained], printed = peak_of(command)
                tokenizer, speeds[trained] = str(store / "tokenizer"), float(printed)
            table.add_row(f"{megabytes:,.0f} MB", *(cell for trained in (False, True)
                                                    for cell in (f"{peaks[trained]:,.0f} MB", f"{speeds[trained]:.2f} MB/s")))
            Console().print(table)
        with gzip.open(folder / f"{given.megabytes[0]:g}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        queue = multiprocessing.get_context("fork").SimpleQueue()
        runs = [multiprocessing.get_context("fork").Process(target=bare, args=(texts[i::given.workers], tokenizer, queue))
                for i in range(given.workers)]
        for run in runs:
            run.start()
        alone = sum(queue.get() for _ in runs)
        print(f"bare encode_batch_fast, {given.workers} processes: {alone:.2f} MB/s; prepare reaches {speeds[False] / alone:.0%} of it")


if __name__ == "__main__":
    main()
