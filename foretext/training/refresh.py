"""Training on examples that the model itself chooses: every so many steps the objective arranges its examples anew.

What it arranges (`Rows`) is in every checkpoint with the step it was made at, and follows from the weights at that step alone. So a
run that dies at any moment, also in the middle of a refresh, goes on from its last checkpoint and ends with the same bits.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from foretext.objectives.base import Batch, Objective, Rows
from foretext.progress import console, duration, progress
from foretext.retrieval.approximate import Kind, approximate
from foretext.retrieval.embed import TextEncoder
from foretext.text.batches import Batches, Source
from foretext.training.distributed import World

TEXTS_AT_ONCE = 65_536  # read and embedded before the next are: memory holds their vectors, and the tokens of these


class Corpus:
    """What an objective may ask for while it refreshes; the ranks share the work, and all get all of the result."""

    def __init__(self, objective: Objective, world: World):
        self.objective, self.rank, self.size, self.world = objective, world.rank, world.size, world
        self.embedded = 0  # texts, for the report

    def embed(self, source: Source, rows: np.ndarray) -> np.ndarray:
        """The vectors of `rows` of a source (n, D), fp32: eval mode, true lengths, the weights as they are."""
        o = self.objective
        model = TextEncoder(o.encoder, o.tokenizer, o.pooling, o.normalize, max_len=o.max_len, dtype=torch.float32)
        mine = np.array_split(rows, self.size)[self.rank]
        vectors = np.empty((len(mine), model.dimension), np.float32)
        with progress("refresh: embedding", len(mine) if self.rank == 0 else 0) as advance:
            for first in range(0, len(mine), TEXTS_AT_ONCE):
                part = mine[first:first + TEXTS_AT_ONCE]
                texts = source.read(part, torch.zeros(len(part), dtype=torch.int64))
                vectors[first:first + len(part)] = model.encode_tokens(texts.ids.numpy(), texts.lengths.numpy())
                advance(len(part))
        self.embedded += len(rows)
        return self.gather(vectors)

    def nearest(self, queries: np.ndarray, vectors: np.ndarray, k: int, how: Kind) -> tuple[np.ndarray, np.ndarray]:
        """See `retrieval.approximate`; by this rank alone."""
        return approximate(queries, vectors, k, how)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """All ranks' rows end to end."""
        if self.size == 1:
            return rows
        return self.world.gather_rows(torch.from_numpy(rows).to(self.world.device))[0].cpu().numpy()


class Rounds:
    """Which micro-batches come next, over all rounds of a run; an objective that never refreshes has one round without end.

    In a loop of one's own, where nobody counts steps and a round lasts until `refresh` is called:

        rounds = Rounds(objective, objective.source(store))
        for batch in rounds:
            (objective(batch).terms["reconstruction"] / batch.counts["reconstruction"]).backward()
            ...  # an optimiser; rounds.refresh() when you like

    Attributes:
        valid: held-out examples of this round, None where there are none.
        rows: what the objective arranged, {} before the first refresh or without any.
        report: numbers about the latest refresh, for the log.
    """

    def __init__(self, objective: Objective, source: Source, valid: Source | None = None, batch_size: int = 16, micro_tokens: int = 1 << 40,
                 seed: int = 1, world: World | None = None):
        self.objective, self.texts, self.held_out, self.next = objective, source, valid, 0
        self.world = world or World(0, 1, next(objective.parameters()).device)
        self.batch_size, self.micro_tokens, self.seed = batch_size, micro_tokens, seed
        self.every, self.rows, self.report, self.first = objective.refresh_every, {}, {}, None
        if not self.every:
            self._use(0, source, valid)

    def _use(self, step: int, source: Source, valid: Source | None) -> None:
        self.first, self.source = step, source
        self.valid = valid if valid is not None and len(valid.lengths) else None
        self.batches = Batches(source, self.collate, self.batch_size, self.micro_tokens, self.seed, self.world.rank,
                               self.world.size, step, self.objective.static)

    def collate(self, examples: Any) -> Batch:
        """The objective's batch, where a GPU trains in memory that it can fetch it from."""
        batch = self.objective.collate(examples)
        return batch.pinned() if self.world.device.type == "cuda" else batch

    def split_at(self, micro_tokens: int) -> None:
        """Cut steps into micro-batches of about so many tokens from now on."""
        self.micro_tokens = micro_tokens
        if self.first is not None:
            self.batches.micro_tokens = micro_tokens

    def renew(self, step: int) -> None:
        """Let the objective arrange its examples with the weights it has now."""
        begin, corpus, training = time.perf_counter(), Corpus(self.objective, self.world), self.objective.training
        sources = [self.texts] + [self.held_out] * (self.held_out is not None)
        rows, self.report = self.objective.eval().refresh(sources, corpus, self.seed, step, self.every * self.batch_size)
        self.objective.train(training)
        self.restore(step, {f"{i}.{name}": value for i, part in enumerate(rows) for name, value in part.items()})
        seconds = time.perf_counter() - begin
        self.report = {"refresh_seconds": seconds, "refresh_texts_per_second": corpus.embedded / seconds} | self.report
        if self.world.first:
            console.print(f"refresh at step {step}: {corpus.embedded:,} texts embedded and {len(self.source.lengths):,} examples made "
                          f"in {duration(seconds)}")

    def restore(self, step: int, rows: Mapping[str, np.ndarray]) -> None:
        """Go back to the round that began at `step` with these rows."""
        self.rows = dict(rows)
        arranged = [texts.arranged(part_of(rows, i)) if texts is not None else None for i, texts in enumerate((self.texts, self.held_out))]
        self._use(step, *arranged)

    def begin(self) -> None:
        """Be ready for step 0."""
        if self.first is None:
            self.renew(0)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of step after step, without end."""
        self.begin()
        while True:
            step, self.next = self.next, self.next + 1
            yield from (batch.to(self.world.device) for batch in self.batches.step(step))

    def refresh(self) -> None:
        """Begin a new round with the next batch of an iteration over this."""
        self.renew(self.next)

    def steps(self, state: dict[str, Any], total: int, ahead: int) -> Iterator[list[Any]]:
        """Micro-batches of step after step while `state["updates"]` is under `total`; a refresh happens between two of them.

        At most 2 * `total` steps, should steps without a finite gradient be skipped.
        """
        last = state["step"] + 2 * total
        while state["updates"] < total and state["step"] < last:
            if self.first is None or self.every and state["step"] == self.first + self.every:
                self.renew(state["step"])
            stop = min(last, self.first + self.every) if self.every else last
            for micro_batches in self.batches.prefetched(state["step"], stop, ahead):  # not beyond the round: the next is not known yet
                yield micro_batches
                if state["updates"] == total:
                    return


def part_of(rows: Rows, i: int) -> Rows:
    """The rows of the i-th source."""
    return {name.split(".", 1)[1]: value for name, value in rows.items() if name.startswith(f"{i}.")}


def arranged(objective: Objective, source: Source, seed: int, world: World | None = None) -> Source:
    """A source as the objective arranges it with the weights it has now; for a look, or for a loop of one's own."""
    if not objective.refresh_every:
        return source
    rounds = Rounds(objective, source, seed=seed, world=world)
    rounds.begin()
    return rounds.source
