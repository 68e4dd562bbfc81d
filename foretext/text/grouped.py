"""Groups to train a retriever on: a query, one of the passages that answer it, and passages that do not.

Each epoch draws anew: one positive of the query's list, and negatives without replacement from the first of its list of negatives.

    G groups   Q queries   N passages   k negatives of a group   size = 1 + k
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from foretext.errors import UserError
from foretext.text.batches import Documents
from foretext.text.pairs import Pairs, Texts
from foretext.text.randomness import integers, uniform
from foretext.text.tokenizer import Tokenizer

Teacher = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Scores of passages (B, size) for queries (B,), both as numbers: -> (B, size) float."""


@dataclass(frozen=True)
class Lists:
    """A list of passage numbers per group, with a score each (nan where there is none)."""

    numbers: np.ndarray  # (M,) int64, all lists end to end
    scores: np.ndarray  # (M,) float32
    offsets: np.ndarray  # (G+1,) list g is numbers[offsets[g]:offsets[g+1]]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]], scores: Sequence[Sequence[float]] | None = None) -> "Lists":
        offsets = np.concatenate(([0], np.cumsum([len(numbers) for numbers in lists]))).astype(np.int64)
        numbers = np.array([number for numbers in lists for number in numbers], dtype=np.int64)
        values = np.full(len(numbers), np.nan) if scores is None else [score for some in scores for score in some]
        return cls(numbers, np.asarray(values, dtype=np.float32), offsets)

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.offsets)


class GroupedPairs:
    """Training groups, tokenised once and kept in memory; `read` hands out `Pairs` of `size` passages a query, the positive first.

    Args:
        queries, passages: texts, or token ids without special tokens.
        asks: (G,) the query number of each group; groups of one query share what they know to be positive.
        positives, negatives: passage numbers of each group. Negatives come best first.
        size: passages of a group. Where its list is too short, random passages that are not known positives fill it up.
        topk: negatives are drawn from the first so many of the list.
        teacher: scores the passages that are drawn; default: the scores of the lists.
        guide: vectors of a teacher that embeds, of the queries (Q, E) and passages (N, E), with which to recognise false negatives.
        longest: tokens of a query and of a passage that are read, to judge how long an example is.
    Raises:
        UserError: nothing to train on, or too few passages to fill groups up with.
    """

    def __init__(self, queries: Sequence, passages: Sequence, asks: np.ndarray, positives: Lists, negatives: Lists,
                 tokenizer: Tokenizer, size: int = 1, topk: int = 200, teacher: Teacher | None = None,
                 guide: tuple[np.ndarray, np.ndarray] | None = None, longest: tuple[int, int] = (512, 512)):
        if not len(asks):
            raise UserError("there is no pair of a query and a relevant passage to train on")
        self.queries, self.passages = Texts(queries, tokenizer), Texts(passages, tokenizer)
        self.asks, self.positives, self.negatives = asks, positives, negatives
        self.size, self.topk, self.teacher, self.guide = size, topk, teacher, guide
        first_of: dict = {}
        keys = (text if isinstance(text, str) else text.tobytes() for text in passages)
        self.same_text = np.array([first_of.setdefault(key, i) for i, key in enumerate(keys)])
        query = np.repeat(asks, positives.counts)
        self.known = torch.from_numpy(np.unique((query << 32) + self.same_text[positives.numbers]))
        most_known = int(np.bincount((self.known >> 32).numpy()).max())
        short = int(np.minimum(negatives.counts, topk).min())
        if short < size - 1 and len(first_of) < most_known + size - 1:
            raise UserError(f"group_size {size}: there are only {len(first_of):,} different passages to fill groups up with, and a query "
                            f"with {most_known:,} positives; take smaller groups")
        passage_lengths = np.minimum(self.passages.lengths, longest[1])
        means = np.add.reduceat(passage_lengths[positives.numbers], positives.offsets[:-1]) / positives.counts
        others = (size - 1) * (passage_lengths[negatives.numbers].mean() if len(negatives.numbers) else passage_lengths.mean())
        self.lengths = (np.minimum(self.queries.lengths[asks], longest[0]) + means + others).astype(np.int64)

    @classmethod
    def linked(cls, queries: Sequence[str], passages: Sequence[str], links: np.ndarray, tokenizer: Tokenizer) -> "GroupedPairs":
        """Pairs alone: `links` (N, 2) holds the query number and passage number of each training example."""
        links = np.asarray(links, np.int64).reshape(-1, 2)
        return cls(queries, passages, links[:, 0], Lists.of(links[:, 1:].tolist()), Lists.of([[]] * len(links)), tokenizer)

    def read(self, rows: np.ndarray, keys: Tensor) -> Pairs:
        query = self.asks[rows]
        passages, scores, random = self.draw(rows, keys)
        if self.teacher is not None:
            scores = self.teacher(query, passages)
        flat = passages.flatten()
        documents = self.passages.read(flat, keys.repeat_interleave(self.size))
        documents = replace(documents, documents=torch.from_numpy(self.same_text[flat]))
        guide = None
        if self.guide is not None:
            guide = (torch.from_numpy(self.guide[0][query]).float(), torch.from_numpy(self.guide[1][flat]).float())
        known_scores = None if self.size == 1 or not np.isfinite(scores).any() else torch.from_numpy(np.asarray(scores, np.float32))
        return Pairs(self._queries(query, keys), documents, self.known, known_scores, guide, random)

    def _queries(self, query: np.ndarray, keys: Tensor) -> Documents:
        return self.queries.read(query, keys)

    def draw(self, rows: np.ndarray, keys: Tensor) -> tuple[np.ndarray, np.ndarray, int]:
        """Passage numbers (B, size) and their scores of the lists (nan where there is none); and how many were drawn at random."""
        B, k = len(rows), self.size - 1
        passages, scores = np.full((B, self.size), -1, np.int64), np.full((B, self.size), np.nan, np.float32)
        counts = torch.from_numpy(self.positives.counts[rows])
        place = self.positives.offsets[rows] + integers(keys, "positive", torch.zeros_like(keys), counts).numpy()
        passages[:, 0], scores[:, 0] = self.positives.numbers[place], self.positives.scores[place]
        available = np.minimum(self.negatives.counts[rows], self.topk)
        widest = int(available.max(initial=0))
        if k and widest:
            draws = uniform(keys[:, None], "negatives", torch.arange(widest)[None]).numpy()
            draws = np.where(np.arange(widest) < available[:, None], draws, np.inf)
            chosen = np.argsort(draws, axis=1, kind="stable")[:, :k]  # k without replacement: the k smallest numbers
            there = np.arange(chosen.shape[1]) < available[:, None]
            at = np.where(there, self.negatives.offsets[rows][:, None] + chosen, 0)
            passages[:, 1 : 1 + chosen.shape[1]] = np.where(there, self.negatives.numbers[at], -1)
            scores[:, 1 : 1 + chosen.shape[1]] = np.where(there, self.negatives.scores[at], np.nan)
        missing = passages < 0
        for row in np.flatnonzero(missing.any(axis=1)):
            taken = passages[row, ~missing[row]]
            passages[row, missing[row]] = self._random(int(self.asks[rows[row]]), taken, keys[row : row + 1], self.size - len(taken))
        return passages, scores, int(missing.sum())

    def _random(self, query: int, taken: np.ndarray, key: Tensor, count: int) -> list[int]:
        """Passages that do not answer the query, of other texts than those taken: from a random place on, the next that fits."""
        known = self.known.numpy()
        positive = known[np.searchsorted(known, query << 32) : np.searchsorted(known, (query + 1) << 32)] & 0xFFFFFFFF
        used, found = set(self.same_text[taken].tolist()) | set(positive.tolist()), []
        for place in integers(key, "random", torch.arange(count), len(self.same_text)).tolist():
            while int(self.same_text[place]) in used:
                place = (place + 1) % len(self.same_text)
            used.add(int(self.same_text[place]))
            found.append(place)
        return found
