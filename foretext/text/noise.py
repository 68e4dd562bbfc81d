"""Noise for denoising objectives: a text in, a damaged text out (and for T5's spans the text that is asked for).

All of it is addressed (randomness.py) and vectorised. The texts carry no special tokens yet, so every token may be damaged.

    B texts   m tokens of a text   b tokens of it that are damaged   S, K spans   G longest number of places of a text
"""

from dataclasses import replace

import torch
from torch import Tensor

from foretext.text.batches import Documents, spans
from foretext.text.corrupt import half_even
from foretext.text.randomness import integers, uniform

LONGEST_POISSON = 64  # where the ladder of probabilities ends: beyond it lies less than 1e-30 for a mean of 3


def infill(documents: Documents, mask_id: int, share: float = 0.3, mean: float = 3.0) -> Documents:
    """BART's text infilling (arXiv 1910.13461, section 2.2): spans of Poisson(`mean`) length become one mask each.

    The spans hold half_even(share * m) tokens together (the last is trimmed to it); they neither overlap nor touch. A length of 0 inserts a
    mask at a uniform place, at most as often as there are other spans.

    Args:
        share: at most .5, where spans of one token still find places that do not touch.
    """
    assert 0 <= share <= 0.5
    m, keys = documents.lengths, documents.keys
    budget = half_even(m.double() * share)
    lengths, inserted = poisson_spans(keys, budget, mean)  # (B, J), (B,)
    kept = m - budget
    # Spans that do not touch lie in different gaps between the kept tokens, of which there are kept + 1.
    rank = random_ranks(keys, "noise_place", kept + 1)  # (B, G)
    G = rank.shape[1]
    padded = torch.nn.functional.pad(lengths, (0, max(0, G - lengths.shape[1])))
    hidden = padded.gather(1, rank.clamp(max=padded.shape[1] - 1))  # (B, G) tokens hidden in each gap
    masks = (hidden > 0).long()
    number = torch.arange(int(inserted.max()) if len(inserted) else 0)
    where = integers(keys[:, None], "noise_insert", number, (kept + 1)[:, None])
    masks.scatter_add_(1, where, (number < inserted[:, None]).long())
    sizes = kept + masks.sum(1)
    ids = torch.full((int(sizes.sum()),), mask_id)
    row, gap = _places(kept)
    read = gap + hidden.cumsum(1)[row, gap] + documents.starts[row]
    ids[gap + masks.cumsum(1)[row, gap] + (sizes.cumsum(0) - sizes)[row]] = documents.ids[read]
    return replace(documents, ids=ids, lengths=sizes)


def poisson_spans(keys: Tensor, budget: Tensor, mean: float) -> tuple[Tensor, Tensor]:
    """Draw lengths from Poisson(`mean`) until they hold `budget` (B,) tokens; the last is trimmed to it.

    Returns:
        (B, J) the lengths over 0, first in each row, zeros behind them; (B,) how many zeros were drawn, at most as many as others.
    """
    steps = torch.arange(1, LONGEST_POISSON, dtype=torch.float64)
    chances = torch.cat((torch.zeros(1, dtype=torch.float64), (mean / steps).log().cumsum(0))).sub(mean).exp()
    ladder = chances.cumsum(0)
    count = 8 + int(budget.max() / mean * 1.5) if len(budget) else 0
    while True:
        drawn = torch.bucketize(uniform(keys[:, None], "noise", torch.arange(count)), ladder, right=True)
        used = drawn.cumsum(1)
        if (used.amax(1, keepdim=True) >= budget[:, None]).all():
            break
        count *= 2
    before = used - drawn
    wanted = before < budget[:, None]
    lengths = torch.where(wanted, drawn.minimum(budget[:, None] - before), 0)
    zeros = (wanted & (drawn == 0)).sum(1)
    order = (lengths == 0).to(torch.uint8).argsort(dim=1, stable=True)
    return lengths.gather(1, order), zeros.minimum((lengths > 0).sum(1))


def span_corruption(documents: Documents, sentinels: Tensor, share: float = 0.15, mean: float = 3.0) -> tuple[Documents, Documents]:
    """T5's spans (arXiv 1910.10683, section 3.1.4): span k becomes sentinel k; asked for are sentinel k and span k, for all k.

    b = max(1, half_even(share * m)) tokens lie in S = max(1, half_even(b / mean)) spans, at most min(b, m - b). Noise and the rest are
    each split at random into S parts that are not empty; the parts alternate, the rest first. A text of one token has no span.

    Args:
        sentinels: (at least `most_spans(longest m)`,) ids.
    Returns:
        source and target, without special tokens.
    """
    m, keys = documents.lengths, documents.keys
    budget = span_budget(m, share)
    count = span_count(m, budget, mean)
    budget = torch.where(count > 0, budget, 0)
    rest = m - budget
    noise_row, noise_at, noise_part = _split(keys, "noise", budget, count)
    rest_row, rest_at, rest_part = _split(keys, "noise_place", rest, count.clamp(min=1))
    width = int(count.max()) + 1 if len(count) else 1
    in_noise, in_rest = _tally(noise_row, noise_part, len(m), width), _tally(rest_row, rest_part, len(m), width)
    # Before noise token j of span k lie the rest's parts 0 .. k; before a token of the rest's part k lie spans 0 .. k-1.
    noise_from = noise_at + in_rest.cumsum(1)[noise_row, noise_part] + documents.starts[noise_row]
    rest_from = rest_at + (in_noise.cumsum(1) - in_noise)[rest_row, rest_part] + documents.starts[rest_row]

    sentinel_row, sentinel = _places(count)
    source_lengths, target_lengths = rest + count, budget + count
    source = torch.empty(int(source_lengths.sum()), dtype=torch.int64)
    target = torch.empty(int(target_lengths.sum()), dtype=torch.int64)
    source_start, target_start = source_lengths.cumsum(0) - source_lengths, target_lengths.cumsum(0) - target_lengths
    source[source_start[rest_row] + rest_at + rest_part] = documents.ids[rest_from]
    source[source_start[sentinel_row] + in_rest.cumsum(1)[sentinel_row, sentinel] + sentinel] = sentinels[sentinel]
    target[target_start[noise_row] + noise_at + noise_part + 1] = documents.ids[noise_from]
    target[target_start[sentinel_row] + (in_noise.cumsum(1) - in_noise)[sentinel_row, sentinel] + sentinel] = sentinels[sentinel]
    return replace(documents, ids=source, lengths=source_lengths), replace(documents, ids=target, lengths=target_lengths)


def span_budget(lengths: Tensor, share: float) -> Tensor:
    """b of `span_corruption`."""
    return half_even(lengths.double() * share).clamp(min=1)


def span_count(lengths: Tensor, budget: Tensor, mean: float) -> Tensor:
    """S of `span_corruption`."""
    return half_even(budget.double() / mean).clamp(min=1).minimum(budget).minimum(lengths - budget).clamp(min=0)


def most_spans(longest: int, share: float, mean: float) -> int:
    """How many sentinels `span_corruption` needs for texts of up to `longest` tokens."""
    lengths = torch.arange(1, longest + 1)
    return int(span_count(lengths, span_budget(lengths, share), mean).max())


def delete(documents: Documents, share: float = 0.6) -> Documents:
    """TSDAE's noise (arXiv 2104.06979, section 3.1): every token is left out with probability `share`; one at least stays."""
    sequence, keys, m = documents.sequence, documents.keys, documents.lengths
    kept = uniform(keys[sequence], "noise", documents.positions) >= share
    lengths = torch.zeros_like(m).index_add_(0, sequence, kept.long())
    spared = integers(keys, "noise_place", torch.zeros_like(keys), m)
    kept |= (lengths[sequence] == 0) & (documents.positions == spared[sequence])
    return replace(documents, ids=documents.ids[kept], lengths=lengths.clamp(min=1))


def shuffle_sentences(documents: Documents, ends: Tensor) -> Documents:
    """BART's sentence permutation (section 2.2): the sentences of each text in random order.

    Args:
        ends: (V,) bool, the ids that end a sentence.
    """
    ended = ends[documents.ids].long()
    before = ended.cumsum(0) - ended
    sentence = before - before[documents.starts][documents.sequence]
    ticket = uniform(documents.keys[documents.sequence], "noise_order", sentence)
    order = (documents.sequence.double() + ticket).argsort(stable=True)
    return replace(documents, ids=documents.ids[order])


def random_ranks(keys: Tensor, stream: str, counts: Tensor) -> Tensor:
    """The places 0 .. counts-1 of every text in random order: (B, G) the rank of each; places beyond come after all others."""
    places = torch.arange(int(counts.max()) if len(counts) else 0)
    tickets = uniform(keys[:, None], stream, places).masked_fill_(places >= counts[:, None], 2.0)
    return tickets.argsort(dim=1, stable=True).argsort(dim=1, stable=True)


def _places(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For every text `counts` places: (N,) whose each is, and its number."""
    return torch.arange(len(counts)).repeat_interleave(counts), spans(torch.zeros_like(counts), counts)


def _split(keys: Tensor, stream: str, counts: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split `counts` items of every text at random into `parts` that are not empty: whose each is, its number, its part."""
    rank = random_ranks(keys, stream, (counts - 1).clamp(min=0))  # of the places between two items
    row, at = _places(counts)
    begins = torch.nn.functional.pad(rank < (parts - 1)[:, None], (1, 0))
    return row, at, begins.long().cumsum(1)[row, at]


def _tally(row: Tensor, part: Tensor, rows: int, parts: int) -> Tensor:
    """(rows, parts) how many items each part of each text has."""
    return torch.zeros(rows, parts, dtype=torch.int64).index_put_((row, part), torch.ones((), dtype=torch.int64), accumulate=True)
