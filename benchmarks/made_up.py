"""What the measurements of `make bench` read: made-up text with Zipf's frequencies, a tokenizer of it, and token ids, all from one seed.

Run as a script it writes them into a folder; every process that is measured then reads the same files.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from foretext.text.tokenizer import Tokenizer

VOCABULARY = 30_528
LENGTH = 128  # tokens of a text, special tokens included
TEXTS = 32
WORDS = 45_000


def words(draw: np.random.Generator) -> np.ndarray:
    letters = np.array(list("abcdefghijklmnop"))
    return np.array(["".join(draw.choice(letters, size=size)) for size in draw.integers(2, 10, WORDS)])


def zipf(draw: np.random.Generator, things: np.ndarray, count: int) -> np.ndarray:
    """`count` of `things`, the i-th with probability proportional to 1/i."""
    chances = 1 / np.arange(1, len(things) + 1)
    return draw.choice(things, size=count, p=chances / chances.sum())


def mixed_lengths(draw: np.random.Generator, count: int, longest: int = LENGTH - 2) -> np.ndarray:
    """Log-normal lengths without special tokens; a batch padded to the longest is about 59 % full."""
    lengths = np.exp(draw.normal(np.log(66), 0.55, count)).astype(int).clip(8, longest)
    lengths[0] = longest
    return lengths


def write(folder: Path, megabytes: float) -> None:
    """tokenizer/, full.npz and mixed.npz (`ids` end to end and `lengths`), small.jsonl and, ten times as large, large.jsonl."""
    draw = np.random.default_rng(0)
    every = words(draw)
    sample = np.array_split(np.concatenate([zipf(draw, every, 300_000), every, every]), 3000)
    tokenizer = Tokenizer.train([" ".join(text) for text in sample], vocab_size=VOCABULARY)
    assert tokenizer.size == VOCABULARY
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer")
    ordinary = draw.permutation(np.flatnonzero(~tokenizer.special))
    for name, lengths in (("full", np.full(TEXTS, LENGTH - 2)), ("mixed", mixed_lengths(draw, TEXTS))):
        np.savez(folder / f"{name}.npz", ids=zipf(draw, ordinary, int(lengths.sum())), lengths=lengths)
    for name, size in (("small", megabytes), ("large", 10 * megabytes)):
        text = zipf(draw, every, int(size * 1e6 / 6.6))
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for some in np.array_split(text, max(1, len(text) // 300)):
                file.write(json.dumps({"text": " ".join(some)}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=4, help="of small.jsonl")
    given = parser.parse_args()
    write(given.folder, given.megabytes)
