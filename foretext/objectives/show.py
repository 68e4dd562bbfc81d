"""What an objective asks of the model, for people: each objective says it as a few `Row`, `Grid` and `Note`, and `lines` draws them.

    n tokens of a text   K tokens to predict
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from rich.text import Text
from torch import Tensor

from foretext.model.layout import Layout
from foretext.text.tokenizer import Tokenizer

MEANINGS = {  # kind -> (style on a terminal, meaning)
    "masked": ("bold magenta reverse", "hidden behind the mask token, to be predicted"),
    "random": ("bold red reverse", "shown as a random token, to be predicted"),
    "kept": ("bold yellow", "shown as it is, to be predicted"),
    "hidden": ("bold magenta reverse", "stands for what is hidden there"),
    "next": ("cyan", "to be predicted from what is before it"),
    "replaced": ("bold red reverse", "the generator wrote another token: the answer is 'replaced'"),
    "guessed": ("bold green", "the generator wrote the very token: the answer is 'original'"),
    "late": ("bold cyan", "the state after the last layer"),
    "early": ("dim", "the state after an early layer"),
    "bag": ("bold green", "a word of the bag"),
}
SEEN, HIDDEN = "#", "."  # of a grid


@dataclass(frozen=True)
class Token:
    """One token as the model meets it."""

    shown: int  # the id that is read
    original: int  # the id of the text
    kind: str = ""  # a key of `MEANINGS`; "": nothing is asked about it
    note: str = ""  # when or where


@dataclass(frozen=True)
class Row:
    """A text, or a part of one."""

    title: str
    tokens: list[Token]


@dataclass(frozen=True)
class Grid:
    """Who sees what: one line for each of a few tokens."""

    title: str
    readers: list[tuple[int, int]]  # (position, id) of the tokens that look
    seen: Tensor  # (readers, n) bool


@dataclass(frozen=True)
class Note:
    """A sentence."""

    text: str


Shown = Row | Grid | Note


def rows(titles: Sequence[str], ids: Tensor, layout: Layout, places: Tensor, labels: Tensor, mask_id: int | None,
         random: str = "random", kept: str = "kept") -> list[Row]:
    """Every text of a flat batch, with the tokens at `places` (K,) marked by what is read there.

    Args:
        ids: (T,) as they are read. labels: (K,) the original ids at `places`.
        mask_id: None: no token is hidden.
        random, kept: the kinds of tokens that are read as another one, and as they are.
    """
    read, asked = ids.tolist(), dict(zip(places.tolist(), labels.tolist()))
    tokens = [mark(id, asked[i], mask_id, random, kept) if i in asked else Token(id, id) for i, id in enumerate(read)]
    return [Row(title, tokens[start:stop]) for title, (start, stop) in zip(titles, bounds(layout), strict=True)]


def plain_texts(ids: Tensor, layout: Layout, places: Tensor) -> list[list[Token]]:
    """The texts at `places` (b,) of a flat batch, nothing marked."""
    sequences, read = bounds(layout), ids.tolist()
    return [[Token(id, id) for id in read[slice(*sequences[place])]] for place in places.tolist()]


def mark(shown: int, original: int, mask_id: int | None, random: str = "random", kept: str = "kept", note: str = "") -> Token:
    """A token to be predicted, of the kind that follows from what is read in its place."""
    kind = "masked" if shown == mask_id else kept if shown == original else random
    return Token(shown, original, kind, note)


def bounds(layout: Layout) -> list[tuple[int, int]]:
    """Where each sequence begins and ends in the flat batch."""
    ends = layout.cu_seqlens.tolist()
    return list(zip(ends, ends[1:]))


def titles(documents: Tensor, what: str) -> list[str]:
    """`document 7: what`, for (B,) document numbers."""
    return [f"document {number}: {what}" for number in documents.tolist()]


def grids(title: str, visible: Sequence[Tensor], queries: Layout, keys: Layout, positions: Tensor, ids: Tensor, few: int = 6) -> list[Grid]:
    """For every sequence a grid of `few` of its queries, evenly chosen.

    Args:
        visible: per bucket (b, 1, Lq, Lk) bool. positions, ids: (T,) of the queries, to name them.
    """
    found = []
    first_of = [(bucket.first, grid) for bucket, grid in zip(keys.buckets, visible) for _ in range(bucket.size)]
    for b, ((first, grid), (start, stop), n) in enumerate(zip(first_of, bounds(queries), keys.lengths)):
        chosen = torch.linspace(0, stop - start - 1, min(few, stop - start)).round().long()
        readers = [(int(positions[start + i]), int(ids[start + i])) for i in chosen.tolist()]
        found.append(Grid(title, readers, grid[b - first, 0][chosen, :n].cpu()))
    return found


def interleaved(*parts: Sequence[Shown]) -> list[Shown]:
    """The first of each, the second of each, ..."""
    return [shown for together in zip(*parts) for shown in together]


def retitled(row: Row, title: str) -> Row:
    return replace(row, title=title)


def lines(shown: Iterable[Shown], tokenizer: Tokenizer, plain: bool) -> list[Text]:
    """Drawn line by line, with the meaning of the marks at the end; `plain`: marks are words instead of colours."""
    drawn, kinds = [], []
    for item in shown:
        if isinstance(item, Note):
            drawn += [Text(item.text), Text("")]
            continue
        drawn.append(Text(item.title, style="bold"))
        if isinstance(item, Row):
            drawn += [draw_row(item, tokenizer, plain), Text("")]
            kinds += [token.kind for token in item.tokens if token.kind and token.kind not in kinds]
        else:
            drawn += [*draw_grid(item, tokenizer), Text("")]
    if kinds:
        drawn.append(Text("marks:", style="bold"))
        for kind in dict.fromkeys(kinds):
            drawn.append(Text.assemble("  ", (kind, "" if plain else MEANINGS[kind][0]), f": {MEANINGS[kind][1]}"))
    return drawn


def draw_row(row: Row, tokenizer: Tokenizer, plain: bool) -> Text:
    """The tokens as running text: no blank before one that continues a word."""
    drawn = Text()
    for i, token in enumerate(row.tokens):
        written = token.shown if token.kind == "next" else token.original
        joins = not tokenizer.special[written] and tokenizer.words.joins_left[written]
        if i and not joins:
            drawn.append(" ")
        original, read = spelled(tokenizer, token.original), spelled(tokenizer, token.shown)
        note = f" {token.note}" if token.note else ""
        if not token.kind:
            drawn.append(original)
        elif token.kind == "next":
            drawn.append(f"{read} → " if plain else f"{read}→")
            drawn.append(f"[next: {original}]" if plain else original, style="" if plain else MEANINGS["next"][0])
        elif plain:
            other = token.kind in ("random", "replaced")
            drawn.append(f"[{token.kind}{note}: {f'{read}, was {original}' if other else original}]")
        else:
            drawn.append(original if token.kind == "masked" else read, style=MEANINGS[token.kind][0])
            drawn.append((f"({original})" if token.kind in ("random", "replaced") else "") + note, style="dim")
    return drawn


def draw_grid(grid: Grid, tokenizer: Tokenizer) -> list[Text]:
    names = [f"{position:>4} {spelled(tokenizer, id)[:12]:<12} " for position, id in grid.readers]
    drawn = []
    for name, seen in zip(names, grid.seen.tolist()):
        line = Text(name)
        for s in seen:
            line.append(SEEN if s else HIDDEN, style="green" if s else "dim")
        drawn.append(line)
    return drawn


def spelled(tokenizer: Tokenizer, id: int) -> str:
    """A token as people write it; its vocabulary entry where it is no whole character."""
    text = tokenizer.token(id) if tokenizer.special[id] else tokenizer.decode([id]).strip()
    return text.removeprefix("##") if text and "�" not in text else tokenizer.token(id)
