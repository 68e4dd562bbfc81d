"""How fast one core makes batches: tokens per second of every objective's whole collator, for texts of 512 tokens.

Run: `python benchmarks/corruption.py [folder of a tokenizer]`; without a folder a small tokenizer is trained on made-up words.
RetroMAE's decoder masks are drawn where the model runs; here they are drawn on the CPU and count.
The time is the CPU time of one thread, the median of several batches: reproduce it on an otherwise idle machine.
"""

import sys
import time
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.model.towers import new_encoder
from foretext.objectives import OBJECTIVES
from foretext.objectives.retromae import RetroMAE
from foretext.text.batches import Documents
from foretext.text.pairs import Pairs
from foretext.text.randomness import example_keys
from foretext.text.tokenizer import Tokenizer
from foretext.training.loop import tune_allocator

LENGTH, TEXTS, ROUNDS = 512, 32, 9
TARGET = 300_000  # tokens per second and core

CASES = [
    ("mlm", {"selection": "token"}), ("mlm", {"selection": "token_budget"}), ("mlm", {"selection": "word"}), ("mlm", {"selection": "span"}),
    ("mpnet", {"word_cut": "exact"}), ("mpnet", {"word_cut": "whole"}), ("mpnet", {"whole_word": False}),
]


def made_up_tokenizer() -> Tokenizer:
    """A vocabulary of some thousand pieces over random words with Zipf-like frequencies."""
    draw = np.random.default_rng(0)
    words = np.array(["".join(draw.choice(list("abcdefghijklmnop"), size=draw.integers(2, 9))) for _ in range(4000)])
    return Tokenizer.train([" ".join(line) for line in np.split(zipf(draw, words, 50_000), 500)], kind="wordpiece", vocab_size=4096)


def zipf(draw: np.random.Generator, things: np.ndarray, count: int) -> np.ndarray:
    """`count` of `things`, the i-th with probability proportional to 1/i."""
    chances = 1 / np.arange(1, len(things) + 1)
    return draw.choice(things, size=count, p=chances / chances.sum())


def texts(tokenizer: Tokenizer) -> Documents:
    """Full-length texts of tokens with Zipf-like frequencies."""
    draw = np.random.default_rng(1)
    ids = zipf(draw, draw.permutation(np.flatnonzero(~tokenizer.special)), TEXTS * (LENGTH - 2))
    numbers = torch.arange(TEXTS)
    return Documents(torch.from_numpy(ids), torch.full((TEXTS,), LENGTH - 2), example_keys(1, 0, numbers), numbers)


def speed(objective, examples) -> float:
    """Tokens per second of one thread."""
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.thread_time()
        batch = objective.collate(examples)
        if isinstance(objective, RetroMAE):
            objective.visible(batch)
        seconds.append(time.thread_time() - start)
    return TEXTS * LENGTH / median(seconds[1:])


def main() -> None:
    torch.set_num_threads(1)
    tune_allocator()  # as training does
    tokenizer = Tokenizer.load(sys.argv[1]) if len(sys.argv) > 1 else made_up_tokenizer()
    encoder = Encoder(preset("bert-tiny", tokenizer.size, max_len=LENGTH))
    documents = texts(tokenizer)
    pairs = Pairs(documents.part(documents.lengths * 0, documents.lengths // 2),
                  documents.part(documents.lengths // 2, documents.lengths - documents.lengths // 2), torch.empty(0, dtype=torch.int64))
    table = Table("objective", "settings", "tokens/s/core", "of the aim")
    told = {name for name, _ in CASES}
    for name, settings in CASES + [(name, {}) for name in OBJECTIVES if name not in told]:
        kind = OBJECTIVES[name]
        if kind.reads not in ("documents", "pairs"):
            continue  # its examples are chosen by the model (MARGE): no collator to time without one
        own = new_encoder(preset(kind.start, tokenizer.size)) if kind.start else encoder
        objective = kind(own, tokenizer, kind.Config(**settings))
        found = speed(objective, pairs if objective.reads == "pairs" else documents)
        table.add_row(name, ", ".join(f"{k}: {v}" for k, v in settings.items()), f"{found:,.0f}", f"{found / TARGET:.1f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
