"""Negatives for training: passages that a retriever finds for a query and that do not answer it.

References: ANCE (arXiv 2007.00808; negatives of the model itself); margins to the positive's score: NV-Retriever (arXiv 2407.15831).

Q queries   N passages   k mined per query
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from foretext.errors import UserError
from foretext.retrieval.groups import Group, Groups, Listed, Text
from foretext.retrieval.runs import Run, ranking
from foretext.text.randomness import example_keys, uniform

KNOWN, SAME_TEXT, REPEATED, TOO_CLOSE = "known positives", "text of a positive", "text mined already", "too close to the positive"


class MineConfig(BaseModel):
    """Which of the passages that a retriever finds become negatives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank_from: int = Field(1, ge=1, description="best rank taken, from 1 (RetroMAE mines from 1 to 200)")
    rank_to: int = Field(200, ge=1, description="worst rank taken")
    negatives: int = Field(15, ge=1, description="kept per query")
    choose: Literal["top", "sample"] = Field("top", description="the best in the range, or an addressed draw from it")
    margin: float | None = Field(None, description="leave out what scores over this share of the positive's score (NV-Retriever: .95); "
                                                   "with margin_kind absolute, over the positive's score minus this")
    margin_kind: Literal["relative", "absolute"] = "relative"
    seed: int = Field(1, ge=0, description="of the draw")

    @model_validator(mode="after")
    def _fits(self):
        if self.rank_from > self.rank_to:
            raise ValueError(f"rank_from {self.rank_from} is behind rank_to {self.rank_to}")
        if self.margin is None and self.margin_kind != "relative":
            raise ValueError("margin_kind has no effect without margin")
        if self.margin is not None and self.margin < 0:
            raise ValueError(f"margin {self.margin}: expected 0 or more (usual: .95 of the positive's score)")
        return self


@dataclass
class Mined:
    """What came out of one mining.

    Attributes:
        groups: training groups; scores are those of the retriever that found them.
        removed: reason -> how many passages in the rank range were no negatives.
        empty: queries for which nothing was left (they keep their positives).
        ranks: of all that were taken.
    """

    groups: Groups
    removed: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    short: int = 0
    ranks: list[int] = field(default_factory=list)
    scored: int = 0  # queries whose positives were found, so that a margin could be taken

    def lines(self) -> list[str]:
        """For a person."""
        out = [f"{len(self.groups):,} queries, {len(self.ranks):,} negatives"
               + (f", mean rank {np.mean(self.ranks):.1f}" if self.ranks else "")]
        out += [f"  left out, {reason}: {count:,}" for reason, count in self.removed.most_common()]
        if self.short:
            out.append(f"  queries with fewer negatives than asked for: {self.short:,}, of these with none: {self.empty:,}")
        return out


def mine(run: Run, queries: Mapping[str, str], positives: Mapping[str, Sequence[str]], passages: Mapping[str, Text], config: MineConfig,
         positive_scores: Run | None = None) -> Mined:  # fmt: skip
    """Negatives of each query from a ranking, which may be shorter than the range.

    Args:
        run: documents and scores by query.
        positives: known answers by query; they, and texts equal to one of theirs, are never negatives.
        passages: texts by id.
        positive_scores: the same retriever's scores of the positives; needed for a margin, which is taken from the lowest of them.
    Raises:
        UserError: a margin without scores of positives, or nothing found at all.
    """
    if config.margin is not None and positive_scores is None:
        raise UserError("a margin needs the positives' scores by the same retriever")
    mined = Mined(Groups([], dict(passages), "mined"))
    keys = example_keys(config.seed, 0, torch.arange(len(queries)))
    for row, (query, text) in enumerate(queries.items()):
        answers = list(positives[query])
        scores = (positive_scores or {}).get(query, {})
        limit = _limit([scores[name] for name in answers if name in scores], config)
        found = _candidates(run.get(query, {}), answers, passages, limit, config, mined.removed)
        if config.choose == "sample" and len(found) > config.negatives:
            draws = uniform(keys[row : row + 1], "negatives", torch.arange(len(found)))
            found = [found[i] for i in sorted(draws.argsort(stable=True)[: config.negatives].tolist())]
        found = found[: config.negatives]
        mined.ranks += [rank for rank, _ in found]
        mined.short += len(found) < config.negatives
        mined.empty += not found
        listed = [Listed(name, scores.get(name)) for name in answers if name in passages]
        if listed:
            mined.groups.groups.append(Group(query, text, listed, [Listed(name, run[query][name]) for _, name in found]))
    if not mined.ranks:
        raise UserError(f"no negatives between the ranks {config.rank_from} and {config.rank_to}: take a wider range, or a larger margin")
    return mined


def _limit(scores: Sequence[float], config: MineConfig) -> float:
    """The highest score that a negative may have."""
    if config.margin is None or not scores:
        return np.inf
    lowest = min(scores)
    # A share of a negative score would be above it: the margin is taken away from the size of the score instead.
    return lowest - config.margin if config.margin_kind == "absolute" else lowest - (1 - config.margin) * abs(lowest)


def _candidates(ranked: Mapping[str, float], answers: Sequence[str], passages: Mapping[str, Text], limit: float, config: MineConfig,
                removed: Counter[str]) -> list[tuple[int, str]]:  # fmt: skip
    """(rank, id) of what is left of the range, best first."""
    known, texts, left = set(answers), {_same(passages[name]) for name in answers if name in passages}, []
    taken: set = set()
    for rank, name in enumerate(ranking(ranked)[: config.rank_to], start=1):
        if rank < config.rank_from:
            continue
        text = _same(passages[name])
        reason = (KNOWN if name in known else SAME_TEXT if text in texts else REPEATED if text in taken
                  else TOO_CLOSE if ranked[name] > limit else None)  # fmt: skip
        if reason:
            removed[reason] += 1
        else:
            taken.add(text)
            left.append((rank, name))
    return left


def _same(text: Text) -> str | bytes:
    """What two equal texts share: the words as they are, blanks aside."""
    return " ".join(text.split()) if isinstance(text, str) else text.tobytes()


def merge(first: Groups, second: Groups) -> Groups:
    """Groups with the negatives of both, in turns, best first; each passage once, with the score that `first` gave where it did."""
    others = {group.query_id: group for group in second.groups}
    groups = []
    for group in first.groups:
        negatives = others[group.query_id].negatives if group.query_id in others else []
        turns: dict[str, Listed] = {}
        for i in range(max(len(group.negatives), len(negatives))):
            for entry in (*group.negatives[i : i + 1], *negatives[i : i + 1]):
                turns.setdefault(entry.id, entry._replace(score=None))  # two retrievers' scores do not compare
        positives = [entry._replace(score=None) for entry in group.positives]
        groups.append(Group(group.query_id, group.query, positives, list(turns.values()), group.prompt))
    return Groups(groups, first.passages | second.passages, "mined")


def overlap(a: Groups, b: Groups) -> float:
    """Share of the negatives of `a` and `b` together that both have, over all queries."""
    others = {group.query_id: {entry.id for entry in group.negatives} for group in b.groups}
    both = every = 0
    for group in a.groups:
        mine, theirs = {entry.id for entry in group.negatives}, others.get(group.query_id, set())
        both, every = both + len(mine & theirs), every + len(mine | theirs)
    return both / every if every else 0.0
