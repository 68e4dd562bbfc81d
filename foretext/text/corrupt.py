"""Corruption as pure tensor functions: which tokens are hidden, and what stands in their place.

Every choice is addressed (randomness.py), so nothing here depends on batch mates; everything runs on any device without a loop
over tokens.

    B sequences   T tokens   W words of the longest sequence   R masks drawn for each sequence
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from foretext.text.batches import Documents, spans
from foretext.text.randomness import bits, integers, shift_right, uniform
from foretext.text.tokenizer import Tokenizer

MAX_WORDS = 1 << 13  # words of one sequence that a sampler can order; also the stride between the masks of one sequence
NO_WORD = (1 << 31) - 1  # a ticket behind all others
IN_CACHE = 1 << 20  # words drawn at once on a CPU: more would leave its cache, fewer would cost calls
WINDOW = 16  # words looked at together after the prefix that fits
MAX_BUDGET = 512  # tokens that the sampler of whole words takes at most (as BERT's max_predictions_per_seq)
LONGEST_SPAN, SPAN_P = 10, 0.2  # words, geometric (SpanBERT, arXiv 1907.10529, section 3.1)


def half_even(x: Tensor) -> Tensor:
    """Python's `round` of a float64 tensor: 1.5 -> 2, 4.5 -> 4. int64."""
    return x.round().long()


@dataclass(frozen=True)
class Vocabulary:
    """What corruption must know of a tokenizer, as tensors over its V ids."""

    tokenizer: Tokenizer
    special: Tensor  # (V,) bool
    ordinary: Tensor  # (V',) the ids that may stand in for a token: all but the special ones
    joins_left: Tensor  # (V,) bool: continues the word of the token before
    joins_right: Tensor  # (V,) bool: the token after continues its word
    stands_alone: Tensor  # (V,) bool: is a word of its own

    @property
    def mask_id(self) -> int:
        """Id of the mask token; a `UserError` where the tokenizer has none."""
        return self.tokenizer.mask_id

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        special = torch.from_numpy(tokenizer.special)
        words = tokenizer.words
        tables = (torch.from_numpy(table) for table in (words.joins_left, words.joins_right, words.stands_alone))
        return cls(tokenizer, special, (~special).nonzero().squeeze(1), *tables)


@dataclass(frozen=True)
class Words:
    """The words of B sequences: lists of consecutive tokens. Special tokens belong to none."""

    token: Tensor  # (T,) the word of each token, counted within its sequence; -1 for special tokens
    lengths: Tensor  # (B, W) tokens of each word, 0 beyond the last
    sizes: int  # how many different lengths they have

    @classmethod
    def of(cls, documents: Documents, vocabulary: Vocabulary) -> "Words":
        """Objectives.md 0.5: a token starts a word unless it continues the one before it."""
        ids, sequence = documents.ids, documents.sequence
        before = torch.roll(ids, 1)
        alone = vocabulary.stands_alone
        joins = (vocabulary.joins_left[ids] | vocabulary.joins_right[before]) & ~alone[ids] & ~alone[before]
        joins &= ~vocabulary.special[before]
        joins[documents.starts] = False
        ordinary = ~vocabulary.special[ids]
        begins = (ordinary & ~joins).long()
        count = begins.cumsum(0)
        word = count - (count - begins)[documents.starts][sequence] - 1
        word = torch.where(ordinary, word, -1)
        lengths = torch.zeros(len(documents), max(1, int(word.max()) + 1 if len(word) else 1), dtype=torch.int64)
        lengths.index_put_((sequence[ordinary], word[ordinary]), torch.ones((), dtype=torch.int64), accumulate=True)
        return cls(word, lengths, int((torch.bincount(lengths.flatten())[1:] > 0).sum()))


def sample_words(lengths: Tensor, keys: Tensor, stream: str, budget: Tensor, draws: int = 1, force_one: bool = True,
                 sizes: int | None = None) -> Tensor:
    """Choose whole words until a budget of tokens is used up, `draws` times independently for every sequence.

    BERT's sampler of whole words: walk the words in random order, skip a word that would exceed the budget, else take it.

    Args:
        lengths: (B, W) tokens of each word, 0 = no word. keys: (B,). budget: (B,) tokens, at least 1.
        force_one: where every word is longer than the budget, take the shortest.
        sizes: at most so many different lengths the words have; a GPU that is told does not have to be asked, which would wait for it.
    Returns:
        (B, draws, W) bool
    """
    B, W = lengths.shape
    on_host = lengths.device.type == "cpu"
    if on_host:
        at_once = max(1, IN_CACHE // (draws * W))
        some = [slice(i, i + at_once) for i in range(0, B, at_once)]
        parts = [_sample(lengths[i], keys[i], stream, budget[i], draws) for i in some]
        chosen = parts[0] if len(parts) == 1 else torch.cat(parts)
    else:
        chosen = _sample_in_rounds(lengths, keys, stream, budget, draws, len(lengths.unique()) if sizes is None else sizes)
    if force_one:
        shortest = lengths.masked_fill(lengths == 0, 1 << 40).argmin(1)
        empty = (chosen.view(torch.uint8).amax(2) == 0) & (lengths > 0).any(1)[:, None]
        if not on_host or empty.any():
            chosen |= empty[:, :, None] & (torch.arange(W, device=lengths.device) == shortest[:, None, None])
    return chosen


def _sample(lengths: Tensor, keys: Tensor, stream: str, budget: Tensor, draws: int) -> Tensor:
    """The longest prefix of the shuffled words that fits, then what still fits: (B, draws, W) bool."""
    tickets = _tickets(lengths, keys, stream, draws)
    ranked, order, sizes = _rank_words(tickets, lengths)
    used = sizes.cumsum(2, dtype=torch.int32)
    budget = budget.to(torch.int32)[:, None].expand(-1, draws).contiguous()
    after = torch.searchsorted(used, budget[:, :, None], right=True)  # of a prefix, as every word has a token or more
    beyond = ranked.gather(2, after.clamp(max=ranked.shape[2] - 1)).masked_fill_(after == ranked.shape[2], NO_WORD)
    chosen = tickets < beyond
    after = after[:, :, 0]
    left = budget - used.gather(2, (after - 1).clamp(min=0)[:, :, None])[:, :, 0].masked_fill_(after == 0, 0)

    # What follows the prefix, a window of words at a time: the next word that fits is rarely far.
    counts = (lengths > 0).sum(1, dtype=torch.int32)
    draw = ((left > 0) & (after < counts[:, None])).flatten().nonzero()[:, 0]  # of the B * draws walks that go on
    order, sizes, chosen_flat = order.flatten(0, 1), sizes.flatten(0, 1), chosen.view(-1, lengths.shape[1])
    left, after, end = left.flatten()[draw], after.flatten()[draw], counts.repeat_interleave(draws)[draw]
    window = torch.arange(WINDOW, device=lengths.device)
    while len(draw):
        places = (after[:, None] + window).clamp_(max=sizes.shape[1] - 1)
        near = sizes[draw[:, None], places]
        fits = (near <= left[:, None]) & (near > 0)
        found, first = fits.view(torch.uint8).max(1)
        found = found.bool()
        taken = places.gather(1, first[:, None])[:, 0]
        chosen_flat[draw[found], order[draw[found], taken[found]].long()] = True
        left = left - torch.where(found, near.gather(1, first[:, None])[:, 0], 0)
        after = torch.where(found, taken + 1, after + WINDOW)
        on = (left > 0) & (after < end)
        draw, left, after, end = draw[on], left[on], after[on], end[on]
    return chosen


def _sample_in_rounds(lengths: Tensor, keys: Tensor, stream: str, budget: Tensor, draws: int, rounds: int) -> Tensor:
    """`_sample` for a device that is never asked how far it is: the same words, by a number of steps that is known before.

    A round takes what fits until the first word that is too long for what is left. That word is shorter than the one at which the round
    before ended, which what was left then could not hold either. So there are no more rounds than different lengths of words.
    """
    _, order, sizes = _rank_words(_tickets(lengths, keys, stream, draws), lengths)
    left = budget.to(torch.int32)[:, None, None]
    fits = sizes <= left  # and is not taken yet
    taken = torch.zeros_like(fits)
    for _ in range(rounds):
        used = (sizes * fits).cumsum(2, dtype=torch.int32)
        within = used <= left
        taken |= fits & within
        left = left - (used * within).amax(2, keepdim=True)
        fits = fits & ~within & (sizes <= left)
    B, W = lengths.shape
    chosen = torch.zeros(B, draws, W + 1, dtype=torch.bool, device=lengths.device)  # word W is nobody's
    return chosen.scatter_(2, order.long(), taken)[:, :, :W]


def shuffle_words(lengths: Tensor, keys: Tensor, stream: str) -> tuple[Tensor, Tensor]:
    """The words of each sequence in the random order in which `sample_words` would walk them.

    Args:
        lengths: (B, W) tokens of each word, 0 = no word. keys: (B,).
    Returns:
        (B, W) index of each word, W where there are no more; and its length.
    """
    _, order, sizes = _rank_words(_tickets(lengths, keys, stream, 1), lengths)
    return order[:, 0].long(), sizes[:, 0].long()


def _tickets(lengths: Tensor, keys: Tensor, stream: str, draws: int) -> Tensor:
    """A number for every word, whose order is the random order: 19 random bits above 13 of the word's index; int32 (B, draws, W).

    The index lets one sort give the order. Two of 500 words share their 19 bits once in four sequences.
    """
    B, W = lengths.shape
    if W > MAX_WORDS:
        raise ValueError(f"a sequence of {W} words is over the {MAX_WORDS} that can be ordered")
    halves = torch.arange(-(-W // 2), device=lengths.device)
    places = torch.arange(draws, device=lengths.device)[:, None] * MAX_WORDS + halves
    random = bits(keys[:, None, None], stream, places).view(torch.int32)  # 64 bits are enough for two words
    tickets = random[:, :, :W] & -MAX_WORDS
    tickets |= torch.arange(W, dtype=torch.int32, device=lengths.device)
    return tickets.masked_fill_(lengths[:, None] == 0, NO_WORD)


def _rank_words(tickets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tickets in order, whose they are (W: nobody's), and those words' lengths: three times int32 (B, draws, W)."""
    B, W = lengths.shape
    # NumPy's vectorised sort is thirty times torch's on a CPU (docs/LOG.md).
    ranked = torch.from_numpy(np.sort(tickets.numpy())) if tickets.device.type == "cpu" else tickets.sort(dim=-1).values
    order = (ranked & (MAX_WORDS - 1)).clamp_(max=W)
    table = torch.nn.functional.pad(lengths, (0, 1)).to(torch.int32)  # word W has no tokens
    begins = torch.arange(B, dtype=torch.int32, device=lengths.device)[:, None, None] * (W + 1)
    sizes = table.flatten().index_select(0, (order + begins).flatten()).view(order.shape)
    return ranked, order, sizes


def select(documents: Documents, vocabulary: Vocabulary, how: str, share: float, stream: str = "select",
           force_one: bool = True, base: Literal["all", "eligible"] = "all") -> tuple[Tensor, Tensor]:
    """Choose the tokens to predict.

    Args:
        how: "token" (each with probability `share`), "token_budget" (exactly that share), "word" (whole words, so at most that share),
            "cut_word" (exactly that share, whole words but one, of which the end is taken), "span" (of whole words).
        force_one: a sequence that would have nothing to predict gets one of its tokens.
        base: what "token_budget" and "word" take their share of: all tokens of a sequence, or only those that are not special.
    Returns:
        selected: (T,) bool, never a special token.
        unit: (T,) int64, equal for the tokens that are replaced alike: the token's own position, or its span's first.
    """
    positions, sequence, keys = documents.positions, documents.sequence, documents.keys
    eligible = ~vocabulary.special[documents.ids]
    unit = positions
    sizes = documents.lengths if base == "all" else _count(eligible, documents)
    if how == "token":
        selected = eligible & (uniform(keys[sequence], stream, positions) < share)
    elif how == "token_budget":
        selected = sample_tokens(documents, eligible, token_budget(sizes, share), stream)
    elif how == "word":
        words = Words.of(documents, vocabulary)
        selected = _tokens(sample_words(words.lengths, keys, stream, word_budget(sizes, share))[:, 0], words, sequence)
    elif how == "cut_word":
        selected = _select_cut_words(documents, Words.of(documents, vocabulary), share, stream)
    elif how == "span":
        selected, unit = _select_spans(documents, Words.of(documents, vocabulary), eligible, share)
    else:
        raise ValueError(f"selection {how!r} is none of token, token_budget, word, cut_word, span")
    if force_one:
        candidates = _count(eligible, documents)
        pick = integers(keys, "force", torch.zeros_like(keys), candidates.clamp(min=1))
        pick = torch.where(_count(selected, documents) == 0, pick, -1)
        selected |= eligible & (_rank(eligible, documents) == pick[sequence])
    return selected, unit


def sample_tokens(documents: Documents, eligible: Tensor, budget: Tensor, stream: str) -> Tensor:
    """Choose `budget` (B,) eligible tokens of every sequence without replacement (all of them where there are fewer): (T,) bool."""
    each = Words(torch.where(eligible, documents.positions, -1), _grid(eligible.long(), documents), 1)
    return _tokens(sample_words(each.lengths, documents.keys, stream, budget)[:, 0], each, documents.sequence)


def shuffled(documents: Documents, selected: Tensor, stream: str) -> tuple[Tensor, Tensor, Tensor]:
    """The selected tokens of each sequence in random order.

    Args:
        selected: (T,) bool.
    Returns:
        places: (K,) flat indices, sequence after sequence. step: (K,) place in the order, from 0 in each sequence.
        sizes: (B,) selected tokens of each sequence.
    """
    places = selected.nonzero().squeeze(1)
    sequence = documents.sequence[places]
    random = shift_right(bits(documents.keys[sequence], stream, documents.positions[places]), 24)  # 40 bits: the order of one sequence
    order = np.argsort(((sequence << 40) + random).numpy(), kind="stable")
    sizes = _count(selected, documents)
    return places[order], spans(torch.zeros_like(sizes), sizes), sizes


def token_budget(lengths: Tensor, share: float) -> Tensor:
    """How many tokens are `share` of sequences of these lengths; at least 1."""
    return half_even(lengths.double() * share).clamp(min=1)


def word_budget(lengths: Tensor, share: float) -> Tensor:
    """The budget of the sampler of whole words, at most 512."""
    return token_budget(lengths, share).clamp(max=MAX_BUDGET)


def _count(chosen: Tensor, documents: Documents) -> Tensor:
    """(T,) bool -> (B,) how many of each sequence."""
    return torch.zeros_like(documents.lengths).index_add_(0, documents.sequence, chosen.long())


def _rank(chosen: Tensor, documents: Documents) -> Tensor:
    """(T,) bool -> (T,) how many chosen tokens of the same sequence come before."""
    count = chosen.long().cumsum(0) - chosen.long()
    return count - count[documents.starts][documents.sequence]


def _grid(values: Tensor, documents: Documents) -> Tensor:
    """(T,) -> (B, longest), zeros beyond each sequence."""
    grid = torch.zeros(len(documents), int(documents.lengths.max()), dtype=values.dtype)
    grid[documents.sequence, documents.positions] = values
    return grid


def _tokens(chosen: Tensor, words: Words, sequence: Tensor) -> Tensor:
    """(B, W) chosen words -> (T,) bool tokens."""
    return chosen[sequence, words.token.clamp(min=0)] & (words.token >= 0)


def _select_cut_words(documents: Documents, words: Words, share: float, stream: str) -> Tensor:
    """(T,) bool: the last tokens of the sequence when its words are shuffled, exactly the budget or all there are."""
    order, sizes = shuffle_words(words.lengths, documents.keys, stream)
    left = token_budget(documents.lengths, share)[:, None] - (sizes.cumsum(1) - sizes)  # before each word, from the last word on
    W = words.lengths.shape[1]
    taken = torch.zeros(len(documents), W + 1, dtype=torch.int64).scatter_(1, order, left.clamp(min=0).minimum(sizes))
    ordinary, sequence = words.token >= 0, documents.sequence
    word = words.token.clamp(min=0)
    to_end = words.lengths.cumsum(1)[sequence, word] - _rank(ordinary, documents)  # 1 for the last token of a word
    return ordinary & (to_end <= taken[sequence, word])


def _select_spans(documents: Documents, words: Words, eligible: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """SpanBERT's spans of whole words; one draw per round for every sequence that still has budget."""
    B, W = words.lengths.shape
    keys, counts = documents.keys, (words.lengths > 0).sum(1)
    before = words.lengths.cumsum(1) - words.lengths  # tokens in words before this one
    before = torch.cat((before, words.lengths.sum(1, keepdim=True)), 1)
    gaps = torch.zeros(B, W, dtype=torch.int64)  # special tokens before each word: a span may not contain one
    gaps[documents.sequence[eligible], words.token[eligible]] = (documents.positions - _rank(eligible, documents))[eligible]
    budget = half_even(_count(eligible, documents).double() * share)
    left, failures_left = budget.clone(), 4 * budget
    owner = torch.full((B, W), -1)  # first word of the span each word lies in
    chances = SPAN_P * (1 - SPAN_P) ** torch.arange(LONGEST_SPAN, dtype=torch.float64)
    ladder = (chances / chances.sum()).cumsum(0)
    draw = 0
    while True:
        row = ((left > 0) & (failures_left > 0) & (counts > 0)).nonzero().squeeze(1)
        if not len(row):
            break
        place = torch.tensor([2 * draw])
        size = torch.bucketize(uniform(keys[row], "spans", place), ladder, right=True).clamp(max=LONGEST_SPAN - 1) + 1
        start = integers(keys[row], "spans", place + 1, counts[row])
        end = start + size
        tokens = before[row, end.clamp(max=W)] - before[row, start]
        inside = start[:, None] + torch.arange(LONGEST_SPAN)
        covered = (torch.arange(LONGEST_SPAN) < size[:, None]) & (owner[row[:, None], inside.clamp(max=W - 1)] >= 0)
        unbroken = gaps[row, start] == gaps[row, end.clamp(max=W) - 1]
        good = (end <= counts[row]) & (tokens <= left[row]) & unbroken & ~covered.any(1)
        at = spans(start[good], size[good])
        owner[row[good].repeat_interleave(size[good]), at] = start[good].repeat_interleave(size[good])
        left[row[good]] -= tokens[good]
        failures_left[row[~good]] -= 1
        draw += 1
    span = owner[documents.sequence, words.token.clamp(min=0)]
    selected = (span >= 0) & (words.token >= 0)
    return selected, torch.where(selected, span, documents.positions)


def corrupt(documents: Documents, vocabulary: Vocabulary, places: Tensor, unit: Tensor,
            mask: float = 0.8, random: float = 0.1) -> Tensor:
    """Replace the tokens at `places`: by the mask with probability `mask`, by any ordinary id with `random`, else not at all.

    Args:
        places: (K,) flat indices. unit: (T,) from `select`; tokens of one unit share the draw.
    Returns:
        (T,) ids (BERT, arXiv 1810.04805, section 3.1)
    """
    keys = documents.keys[documents.sequence[places]]
    draw = uniform(keys, "replace", unit[places])
    stand_ins = vocabulary.ordinary[integers(keys, "replace_id", documents.positions[places], len(vocabulary.ordinary))]
    ids = documents.ids.clone()
    kept = torch.where(draw < mask + random, stand_ins, ids[places])
    ids[places] = torch.where(draw < mask, vocabulary.mask_id, kept)
    return ids
