"""Two texts in one sequence, `[CLS] a [SEP] b [SEP]`: what a cross-encoder and a classifier of pairs read.

B pairs   T tokens of all sequences
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from foretext.text.batches import Documents, spans
from foretext.text.tokenizer import Tokenizer

Cut = Literal["second", "longest"]


def joined(first: Documents, second: Documents, tokenizer: Tokenizer, separators: int, max_len: int,
           cut: Cut) -> tuple[Documents, Tensor]:  # fmt: skip
    """Row by row `cls a sep b sep`, cut to `max_len` tokens.

    Args:
        separators: how many stand between the two texts, see `Tokenizer.separators`.
        cut: "second": b gives way alone (and a only where it alone is too long); "longest": the longer of the two until they
            are equal, as tokenizers' `longest_first` does.
    Returns:
        the sequences (keys and numbers are those of `second`), and their token types (T,): 0 up to b, 1 from b on.
    """
    room = max_len - separators - 2
    a, b = kept_lengths(first.lengths, second.lengths, room, cut)
    nothing = torch.zeros_like(a)
    first, second = first.part(nothing, a), second.part(nothing, b)
    lengths = a + b + separators + 2
    starts = lengths.cumsum(0) - lengths
    ids = torch.full((int(lengths.sum()),), tokenizer.sep_id)
    ids[starts] = tokenizer.cls_id
    ids[spans(starts + 1, a)] = first.ids
    of_second = starts + 1 + a + separators
    ids[spans(of_second, b)] = second.ids
    types = torch.zeros_like(ids)
    types[spans(of_second, b + 1)] = 1
    return replace(second, ids=ids, lengths=lengths), types


def kept_lengths(a: Tensor, b: Tensor, room: int, cut: Cut) -> tuple[Tensor, Tensor]:
    """How many tokens of each text stay when both together may have `room`; all (B,) int64."""
    if cut == "second":
        a = a.clamp(max=room)
        return a, torch.minimum(b, room - a)
    short, long = torch.minimum(a, b), torch.maximum(a, b)
    fits, half = a + b <= room, torch.full_like(a, room // 2)
    left = torch.where(fits, long, torch.maximum(short, room - short))
    both = short + left > room
    short, left = torch.where(both, half, short), torch.where(both, half + room % 2, left)
    return torch.where(a > b, left, short), torch.where(a > b, short, left)
