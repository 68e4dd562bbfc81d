"""Texts of random tokens over a tiny made-up vocabulary, for tests of masks, visibility and leaks."""

import math
from types import SimpleNamespace

import numpy as np
import torch

from foretext.model.encoder import Encoder, EncoderConfig
from foretext.model.presets import FAMILIES
from foretext.text.batches import Documents
from foretext.text.randomness import example_keys
from foretext.text.words import WordTable

PAD, UNK, CLS, SEP, MASK = range(5)


def alphabet(count: int, continuing: int = 0):
    """What an objective asks of a tokenizer, over 5 special ids and `count` ordinary ones, of which the last `continuing` join words."""
    size = 5 + count
    ids, nothing = np.arange(size), np.zeros(size, dtype=bool)
    return SimpleNamespace(size=size, pad_id=PAD, unk_id=UNK, cls_id=CLS, sep_id=SEP, mask_id=MASK, special=ids < 5,
                           words=WordTable(ids >= size - continuing, nothing, nothing))


def random_documents(tokenizer, lengths: list[int], seed: int = 0, epoch: int = 0) -> Documents:
    """Uniform ordinary tokens, no special ones."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, tokenizer.size, (sum(lengths),), generator=draw)
    numbers = torch.arange(len(lengths))
    return Documents(ids, torch.tensor(lengths), example_keys(seed, epoch, numbers), numbers)


def tiny_encoder(tokenizer, layout: str = "bert", **changes) -> Encoder:
    """Two layers of width 32; position tables and norms as that family has them."""
    torch.manual_seed(0)
    shape = {"width": 32, "layers": 2, "heads": 2, "ffn_width": 64, "max_len": 32, "types": 0} | FAMILIES[layout]
    return Encoder(EncoderConfig(vocab_size=tokenizer.size, **(shape | {"max_len": 32} | changes)))


def leak_bound(count: int, mask: float = 0.8, random: float = 0.1) -> float:
    """The least mean loss on uniform tokens of `count` kinds, for a predictor that sees the token's stand-in and other tokens."""
    shown = 1 - mask
    if not shown:
        return math.log(count)
    same, other = (shown - random + random / count) / shown, random / count / shown
    return mask * math.log(count) - shown * (same * math.log(same) + (count - 1) * other * math.log(other))


def summed_loss(objective, batch) -> tuple[float, int]:
    """Of an objective's first term: the sum, and how many labels."""
    term = objective.terms[0]
    return float(objective(batch).terms[term]), batch.counts[term]


def trained_loss(objective, steps: int = 500, texts: int = 48, length: int = 14, fresh: int = 20_000, measure=summed_loss) -> float:
    """The mean loss on at least `fresh` new labels, after training on new uniform tokens in every step."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=4e-3, weight_decay=0.0, fused=True)
    warm = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    term = objective.terms[0]
    for step in range(steps):
        batch = objective.collate(random_documents(objective.tokenizer, [length] * texts, seed=step))
        optimizer.zero_grad()
        (objective(batch).terms[term] / batch.counts[term]).backward()
        optimizer.step()
        warm.step()
    total, count, seed = 0.0, 0, steps
    objective.eval()
    with torch.no_grad():
        while count < fresh:
            batch = objective.collate(random_documents(objective.tokenizer, [length] * 1000, seed=seed))
            part, labels = measure(objective, batch)
            total, count, seed = total + part, count + labels, seed + 1
    return total / count
