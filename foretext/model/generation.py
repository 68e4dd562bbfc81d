"""Generating text: greedy, by sampling or by beam search, from anything that gives logits of the next token.

    N hypotheses   G groups of K beams (N = G * K)   V vocabulary
"""

from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


class Steps(Protocol):
    """Hypotheses that grow together, all of equal length."""

    def step(self, ids: Tensor) -> Tensor:
        """The newest tokens of each (N, n): the prompt, then one at a time -> logits of the one after them (N, V)."""

    def select(self, rows: Tensor) -> None:
        """Go on with the hypotheses `rows` (N,); in a beam search they stay within their group."""


class GenerationConfig(BaseModel):
    """How the next token is chosen; without anything said always the likeliest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    longest: int = Field(100, gt=0, description="tokens made at most, the end included")
    beams: int = Field(1, gt=0, description="hypotheses kept at once; 1: no beam search")
    length_penalty: float = Field(1.0, description="of beam search: a hypothesis scores log p / length^this (1 in transformers)")
    temperature: float = Field(0.0, ge=0, description="divides the logits when sampling; 0: no sampling")
    top_k: int = Field(0, ge=0, description="sample among so many likeliest tokens (arXiv 1805.04833); 0: among all")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the likeliest tokens that hold this probability (arXiv 1904.09751)")
    seed: int = Field(0, ge=0, description="of sampling")

    @model_validator(mode="after")
    def _useful(self) -> "GenerationConfig":
        if self.temperature and self.beams > 1:
            raise ValueError(f"temperature {self.temperature} has no effect with {self.beams} beams: take one of the two")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p have no effect at temperature 0: set a temperature, for example 1")
        if self.length_penalty != 1 and self.beams == 1:
            raise ValueError(f"length_penalty {self.length_penalty} has no effect without beams: set beams, for example 4")
        return self


def generate(steps: Steps, prompt: Tensor, end: int, never: Tensor, config: GenerationConfig) -> list[Tensor]:
    """What follows each prompt, without `end`.

    Args:
        steps: fresh; for beam search with `config.beams` hypotheses of each prompt, next to each other.
        prompt: (G, P) ids to begin with, P at least 1.
        end: the id that ends a text.
        never: (V,) bool, ids that are not made.
    Returns:
        G tensors of up to `config.longest` ids, on the CPU.
    """
    with torch.no_grad():
        return _beam_search(steps, prompt, end, never, config) if config.beams > 1 else _one_by_one(steps, prompt, end, never, config)


def _allowed(logits: Tensor, never: Tensor) -> Tensor:
    return logits.float().cpu().masked_fill(never, -torch.inf)


def _one_by_one(steps: Steps, prompt: Tensor, end: int, never: Tensor, config: GenerationConfig) -> list[Tensor]:
    draw = torch.Generator().manual_seed(config.seed)
    logits, made = _allowed(steps.step(prompt), never), []
    running = torch.ones(len(prompt), dtype=torch.bool)
    while True:
        chosen = choose(logits, config, draw)
        running &= chosen != end
        made.append(torch.where(running, chosen, end))
        if len(made) == config.longest or not running.any():
            break
        logits = _allowed(steps.step(made[-1][:, None].to(prompt.device)), never)
    rows = torch.stack(made, 1)
    return [row[: int((row != end).sum())] for row in rows]


def choose(logits: Tensor, config: GenerationConfig, draw: torch.Generator) -> Tensor:
    """(N, V) -> (N,) the next tokens."""
    if not config.temperature:
        return logits.argmax(1)
    logits = logits / config.temperature
    if config.top_k:
        logits = logits.masked_fill(logits < logits.topk(min(config.top_k, logits.shape[1])).values[:, -1:], -torch.inf)
    chances = logits.softmax(1)
    if config.top_p < 1:
        ranked, order = chances.sort(descending=True, stable=True)
        outside = ranked.cumsum(1) - ranked >= config.top_p  # what comes before already holds it; the likeliest always stays
        chances = chances.scatter(1, order, ranked.masked_fill(outside, 0.0))
    return torch.multinomial(chances, 1, generator=draw)[:, 0]


def _beam_search(steps: Steps, prompt: Tensor, end: int, never: Tensor, config: GenerationConfig) -> list[Tensor]:
    """Standard beam search: of 2K continuations the best K that do not end go on, those that end among the first K are kept aside.

    A group is done when it has K finished hypotheses and its best running one, scored as if it ended now, is no better than the worst of
    them (what transformers does with early_stopping=False).
    """
    G, K = len(prompt), config.beams
    logits = _allowed(steps.step(prompt.repeat_interleave(K, 0)), never)
    scores = torch.full((G, K), -torch.inf)
    scores[:, 0] = 0.0  # all hypotheses are the same at first
    made = torch.zeros(G, K, 0, dtype=torch.int64)
    finished: list[list[tuple[float, Tensor]]] = [[] for _ in range(G)]
    done = [False] * G
    for length in range(1, config.longest + 1):
        V = logits.shape[1]
        total = (scores.view(-1, 1) + logits.log_softmax(1)).view(G, K * V)
        best, index = total.topk(min(2 * K, K * V), dim=1)
        beam, token = index // V, index % V
        ended = token == end
        for g in range(G):
            if not done[g]:
                for rank in ended[g, :K].nonzero()[:, 0].tolist():
                    if best[g, rank] > -torch.inf:
                        finished[g].append((float(best[g, rank]) / length**config.length_penalty, made[g, beam[g, rank]]))
                finished[g] = sorted(finished[g], key=lambda pair: -pair[0])[:K]
        order = ended.long().argsort(dim=1, stable=True)[:, :K]  # the best that do not end, K of them as at most K of 2K end
        scores = best.gather(1, order).masked_fill(ended.gather(1, order), -torch.inf)
        beam, token = beam.gather(1, order), token.gather(1, order)
        made = torch.cat((made.gather(1, beam[:, :, None].expand(-1, -1, made.shape[2])), token[:, :, None]), 2)
        for g in range(G):
            done[g] |= len(finished[g]) == K and finished[g][-1][0] >= float(scores[g, 0]) / length**config.length_penalty
        if all(done) or length == config.longest:
            break
        steps.select((beam + torch.arange(G)[:, None] * K).flatten().to(prompt.device))
        logits = _allowed(steps.step(token.view(-1, 1).to(prompt.device)), never)
    for g in range(G):
        if not done[g]:  # cut at the longest length
            running = [(float(score) / length**config.length_penalty, row) for score, row in zip(scores[g], made[g]) if score > -torch.inf]
            finished[g] = sorted(finished[g] + running, key=lambda pair: -pair[0])
    return [found[0][1] for found in finished]
