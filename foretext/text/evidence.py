"""Which texts are evidence for which: the pairs kept of a shard, and the clusters of evidence and targets that become examples.

References: MARGE (arXiv 2006.15020), section 2.3 (shards, threshold) and appendix (batching).

    T targets   E evidence texts   N links   D features
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

BLOCK_SCORES = 1 << 24  # scores that exist at once: 64 MB
ACROSS = 100.0  # weight of a link between languages while clusters are made; within one it is 1


@dataclass(frozen=True)
class Side:
    """What of the texts on one side of a shard decides who may be linked.

    Attributes:
        numbers: (n,) int64, equal for texts that must not see each other: the same text, or texts of one document.
        languages: (n,) int64.
    """

    numbers: np.ndarray
    languages: np.ndarray


@dataclass(frozen=True)
class Links:
    """N pairs of a target and an evidence text, by their places on their sides."""

    targets: np.ndarray  # (N,) int64
    evidence: np.ndarray  # (N,) int64
    scores: np.ndarray  # (N,) float32

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, which: np.ndarray) -> "Links":
        return Links(self.targets[which], self.evidence[which], self.scores[which])

    @staticmethod
    def joined(parts: Sequence["Links"]) -> "Links":
        empty = Links(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        parts = [empty, *parts]
        return Links(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("targets", "evidence", "scores")))

    def best(self, k: int) -> "Links":
        """The k highest scores, ties by target and then evidence; in that order."""
        return self.select(np.lexsort((self.evidence, self.targets, -self.scores))[:k])

    def nearest(self, k: int) -> "Links":
        """Of each target its k highest scores, ties by evidence; target by target."""
        order = np.lexsort((self.evidence, -self.scores, self.targets))
        targets = self.targets[order]
        rank = np.arange(len(order)) - np.searchsorted(targets, targets)
        return self.select(order[rank < k])


Keeps = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(target places, evidence places), which broadcast -> bool: may the two be linked."""


def may_link(targets: Side, evidence: Side, across: bool | None = None) -> Keeps:
    """The rule for links: never to a text of the same number; `across` True: only between languages, False: only within one."""

    def keeps(t: np.ndarray, e: np.ndarray) -> np.ndarray:
        other = targets.numbers[t] != evidence.numbers[e]
        return other if across is None else other & ((targets.languages[t] != evidence.languages[e]) == across)

    return keeps


def best_pairs(targets: np.ndarray, evidence: np.ndarray, keeps: Keeps, k: int) -> Links:
    """The k best of all allowed pairs, over all targets together: a target may get many links, or none (section 2.3).

    Args:
        targets: float32 (T, D), evidence: (E, D), rows of length 1.
    Returns:
        at most k links, best first; exact, with ties broken by places.
    """
    kept, lowest = Links.joined([]), -np.inf
    for places, scores in score_blocks(targets, evidence, keeps):
        t, e = np.nonzero(scores >= lowest)
        finite = np.isfinite(scores[t, e])
        t, e = t[finite], e[finite]
        found = scores[t, e]
        if len(found) > k:  # ties at the k-th place stay until all are known
            enough = found >= np.partition(found, -k)[-k]
            t, e, found = t[enough], e[enough], found[enough]
        kept = Links.joined([kept, Links(places[t], e, found)]).best(k)
        if len(kept) == k:
            lowest = kept.scores[-1]
    return kept


def nearest_pairs(targets: np.ndarray, evidence: np.ndarray, keeps: Keeps, k: int) -> Links:
    """Of each target the k best of its allowed pairs (as `best_pairs`, with a limit for each target)."""
    found = []
    for places, scores in score_blocks(targets, evidence, keeps):
        few = min(k, scores.shape[1])
        last = np.partition(scores, -few, axis=1)[:, -few]
        t, e = np.nonzero((scores >= last[:, None]) & np.isfinite(scores))
        found.append(Links(places[t], e, scores[t, e]).nearest(k))
    return Links.joined(found)


def score_blocks(targets: np.ndarray, evidence: np.ndarray, keeps: Keeps) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(r,) target places and (r, E) float32 products of them with all evidence, -inf where no link is allowed."""
    everything, rows = torch.from_numpy(evidence), max(1, BLOCK_SCORES // max(len(evidence), 1))
    for first in range(0, len(targets), rows):
        places = np.arange(first, min(first + rows, len(targets)))
        scores = (torch.from_numpy(targets[places]) @ everything.T).numpy()
        scores[~keeps(places[:, None], np.arange(len(evidence))[None])] = -np.inf
        yield places, scores


@dataclass(frozen=True)
class Clusters:
    """C groups of evidence and targets, ragged: cluster c has the next `target_counts[c]` of `targets`, and so on."""

    targets: np.ndarray  # int64, places on their side
    target_counts: np.ndarray  # (C,) int64
    evidence: np.ndarray
    evidence_counts: np.ndarray  # (C,) int64

    def __len__(self) -> int:
        return len(self.target_counts)

    @staticmethod
    def of(groups: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "Clusters":
        """From (targets, evidence) of each cluster."""
        columns = []
        for side in (0, 1):
            columns.append(np.array([place for group in groups for place in group[side]], np.int64))
            columns.append(np.array([len(group[side]) for group in groups], np.int64))
        return Clusters(*columns)


def make_clusters(links: Links, across: np.ndarray, target_tokens: np.ndarray, evidence_tokens: np.ndarray, budget: int,
                  ties: np.ndarray) -> Clusters:
    """Group linked texts greedily, so that each cluster holds many links in few tokens.

    From an evidence text that still has a link to an unused target, the evidence or target with the largest sum of links to what is
    already chosen is added, until nothing that is linked fits. Each target with a link is in exactly one cluster; evidence may be in many.

    Args:
        across: (N,) bool, which links are between languages: they weigh 100.
        target_tokens, evidence_tokens: (T,) and (E,) tokens of each text.
        budget: tokens of a cluster, at least a longest target and a longest evidence text.
        ties: (E + T,) numbers that decide between equals; evidence seeds are taken in their order.
    """
    E = len(evidence_tokens)
    tokens = np.concatenate((evidence_tokens, target_tokens))
    weights = np.where(across, ACROSS, 1.0)
    ends = np.concatenate((links.evidence, E + links.targets))  # nodes: evidence first, then targets
    others = np.concatenate((E + links.targets, links.evidence))
    order = np.lexsort((others, ends))
    others, weights = others[order], np.concatenate((weights, weights))[order]
    starts = np.searchsorted(ends[order], np.arange(len(tokens) + 1))
    gain, chosen, free = np.zeros(len(tokens)), np.zeros(len(tokens), bool), np.ones(len(tokens), bool)

    seeds = np.unique(links.evidence)
    queue, groups = deque(seeds[np.argsort(ties[seeds], kind="stable")].tolist()), []
    while queue:
        seed = queue.popleft()
        near = others[starts[seed]:starts[seed + 1]]
        if not free[near].any():
            continue
        members, room, node, reached = [], budget, seed, np.empty(0, np.int64)
        while node is not None:
            members.append(node)
            chosen[node] = True
            room -= tokens[node]
            part = slice(starts[node], starts[node + 1])
            gain[others[part]] += weights[part]
            reached = np.union1d(reached, others[part])
            fitting = reached[free[reached] & ~chosen[reached] & (tokens[reached] <= room)]
            node = int(fitting[np.lexsort((ties[fitting], gain[fitting]))[-1]]) if len(fitting) else None
        gain[reached], chosen[members] = 0.0, False
        targets = [node - E for node in members if node >= E]
        assert targets, "a cluster needs room for a target and an evidence text"
        free[[node for node in members if node >= E]] = False
        groups.append((targets, [node for node in members if node < E]))
        if free[near].any():
            queue.append(seed)
    return Clusters.of(groups)


def one_cluster_each(links: Links) -> Clusters:
    """Every linked target with its own evidence, best first: `links` as `Links.nearest` leaves them."""
    targets, starts, counts = np.unique(links.targets, return_index=True, return_counts=True)
    return Clusters(targets, np.ones_like(targets), links.evidence, counts) if len(starts) else Clusters.of([])


def key_numbers(keys: Sequence[str]) -> np.ndarray:
    """One number for each key, the same in every run and on every machine: int64 (n,)."""
    return np.array([zlib.crc32(key.encode()) for key in keys], np.int64)
