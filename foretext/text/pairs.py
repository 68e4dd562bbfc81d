"""Text pairs to train on: made from a store without labels (crops, first sentence -> rest, title -> body, two spans), or given.

Every source here hands out `Pairs`: queries, and for each query a group of passages whose first is the positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from foretext.errors import UserError
from foretext.text.batches import SHORTEST_PIECE, Documents, Source, StoreSource, rows_of, spans
from foretext.text.randomness import bits, integers, uniform
from foretext.text.store import EARLIER, Store
from foretext.text.tokenizer import Tokenizer

Kind = Literal["first_sentence", "title", "halves"]

ROWS_AT_ONCE = 100_000
SHORTEST = 4  # tokens; a shorter half says nothing


@dataclass(frozen=True)
class Pairs:
    """B queries and their passages, in matching order.

    `passages.documents` number the passages' texts: equal texts have equal numbers. `known` lists what must not count as a
    negative, as sorted codes query number * 2^32 + document number; `queries.documents` are the query numbers. With groups of
    several passages, `passages` holds B * size of them, each query's own together, its positive first.
    """

    queries: Documents
    passages: Documents
    known: Tensor  # (N,) int64
    scores: Tensor | None = None  # (B, size) fp32 of a teacher, nan where it has none
    guide: tuple[Tensor, Tensor] | None = None  # (B, E) and (B * size, E): a teacher's vectors, compared by dot product
    random: int = 0  # passages that were drawn at random for want of negatives


NOTHING_KNOWN = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Conversations:
    """B contexts (the newest message) and the responses that followed, in matching order.

    `responses.documents` number the responses' texts: equal texts have equal numbers. `earlier` holds one row per example, the turns before
    the context joined into one text, most recent first; of length 0 where there are none. None: nothing earlier is read.
    """

    contexts: Documents
    responses: Documents
    earlier: Documents | None = None


class PairChoice(BaseModel):
    """For objectives that read pairs: how a store without labels becomes pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["crops", "first_sentence", "title", "halves", "sentences", "windows", "turns"] | None = Field(
        None, description="what is paired: two crops of a row; its first sentence and the rest; title and body; its first and its second "
                          "half; two spans of a document, of whole sentences or of equal windows; a message and its response, in a store "
                          "of turns (prepare --dialogues). Default: crops (cocondenser: sentences)")
    shortest: float = Field(0.1, gt=0, le=1, description="of a crop, as a share of the row (Contriever, section 3.1)")
    longest: float = Field(0.5, gt=0, le=1, description="of a crop, as a share of the row")


def pairs_of(store: Store, room: int, part: str, valid_share: float, choice: PairChoice, usual: str) -> Source:
    """The pairs of a store, each side of up to about `room` tokens.

    Args:
        usual: the kind to take where `choice` leaves it open.
    """
    kind = choice.kind or usual
    if kind == "turns":
        return ResponsePairs(store, part, valid_share)
    if kind == "crops":
        fitting = int(room / choice.longest)  # rows of this length give crops that need no cutting
        return CropPairs(store, fitting, part, valid_share, choice.shortest, choice.longest)
    if kind in ("sentences", "windows"):
        return SpanPairs(store, room, part, valid_share, kind)
    return SplitPairs(store, kind, part, valid_share)


class CropPairs:
    """Two independent random crops of one text (Contriever, arXiv 2112.09118, section 3.1).

    Args:
        shortest, longest: of a crop, as shares of the text.
    """

    def __init__(self, store: Store, max_tokens: int, part: str = "all", valid_share: float = 0.0,
                 shortest: float = 0.1, longest: float = 0.5):
        self.texts = StoreSource(store, max_tokens, part, valid_share)
        self.shortest, self.longest = shortest, longest
        self.lengths = np.maximum(1, (self.texts.lengths * (shortest + longest)).astype(np.int64))  # of both crops, on average

    def read(self, rows: np.ndarray, keys: Tensor) -> Pairs:
        texts = self.texts.read(rows, keys)
        return Pairs(self._crop(texts, 0), self._crop(texts, 1), NOTHING_KNOWN)

    def _crop(self, texts: Documents, which: int) -> Documents:
        n, place = texts.lengths, torch.tensor(2 * which)
        share = self.shortest + (self.longest - self.shortest) * uniform(texts.keys, "crop", place)
        size = (n * share).long().clamp(min=SHORTEST).minimum(n)
        return texts.part(integers(texts.keys, "crop", place + 1, n - size + 1), size)


class SplitPairs:
    """The head of a row asks for the rest: first sentence -> rest, title -> body, or first half -> second half.

    Rows without both halves are left out and counted in `left_out`.
    """

    def __init__(self, store: Store, kind: Kind, part: str = "all", valid_share: float = 0.0):
        rows = rows_of(store, part, valid_share)
        starts, lengths = np.asarray(store.offsets)[rows], np.diff(store.offsets)[rows]
        if kind == "title":
            heads = np.asarray(store.title_lengths)[rows].astype(np.int64)
        elif kind == "halves":
            heads = lengths // 2
        else:
            first = np.asarray(store.sentence_offsets)[rows]
            several = np.diff(store.sentence_offsets)[rows] > 1
            second = np.minimum(first + 1, len(store.sentence_starts) - 1)
            heads = np.where(several, np.asarray(store.sentence_starts)[second], 0).astype(np.int64)
        shortest = 1 if store.pairs else SHORTEST
        keep = (heads >= shortest) & (lengths - heads >= shortest)
        self.left_out = int((~keep).sum())
        if not keep.any():
            raise UserError(f"{store.path}: no row has a {kind.replace('_', ' ')} and a rest to pair it with; use crops")
        self.starts, self.lengths, self.heads = starts[keep], lengths[keep], heads[keep]
        self.documents, self.tokens = np.asarray(store.documents)[rows][keep], store.tokens

    def read(self, rows: np.ndarray, keys: Tensor) -> Pairs:
        lengths, heads = torch.from_numpy(self.lengths[rows]), torch.from_numpy(self.heads[rows])
        where = spans(torch.from_numpy(self.starts[rows]), lengths)
        ids = torch.from_numpy(self.tokens[where.numpy()].astype(np.int64))
        whole = Documents(ids, lengths, keys, torch.from_numpy(self.documents[rows]))
        return Pairs(whole.part(torch.zeros_like(heads), heads), whole.part(heads, lengths - heads), NOTHING_KNOWN)


class SpanPairs:
    """Two different spans of one document, without replacement (coCondenser, arXiv 2108.05540, section 3.2).

    Documents with fewer than two spans are left out and counted in `left_out`.

    Args:
        max_tokens: of a span.
        spans: "sentences": as many whole sentences as fit (a longer sentence is a span of its own); "windows": stretches of equal length.
    """

    def __init__(self, store: Store, max_tokens: int, part: str = "all", valid_share: float = 0.0,
                 spans: Literal["sentences", "windows"] = "sentences"):
        if spans == "sentences":
            starts, lengths, documents = sentence_spans(store, max_tokens, part, valid_share)
        else:
            pieces = StoreSource(store, max_tokens, part, valid_share)
            starts, lengths, documents = pieces.starts, pieces.lengths, pieces.documents
        names, first, counts = np.unique(documents, return_index=True, return_counts=True)  # spans of one document follow each other
        several = counts > 1
        self.left_out = int((~several).sum())
        if not several.any():
            raise UserError(f"{store.path}: no document has two spans of up to {max_tokens} tokens; take shorter spans")
        self.span_starts, self.span_lengths, self.tokens = starts, lengths, store.tokens
        self.documents, self.first, self.counts = names[several], first[several], counts[several]
        ends = np.concatenate(([0], np.cumsum(lengths)))
        self.lengths = 2 * (ends[self.first + self.counts] - ends[self.first]) // self.counts  # of both spans, on average

    def read(self, rows: np.ndarray, keys: Tensor) -> Pairs:
        counts, place = torch.from_numpy(self.counts[rows]), torch.zeros_like(keys)
        a = integers(keys, "spans", place, counts)
        b = integers(keys, "spans", place + 1, counts - 1)
        b += b >= a
        return Pairs(self._read(rows, a, keys), self._read(rows, b, keys), NOTHING_KNOWN)

    def _read(self, rows: np.ndarray, which: Tensor, keys: Tensor) -> Documents:
        span = self.first[rows] + which.numpy()
        lengths = torch.from_numpy(self.span_lengths[span])
        where = spans(torch.from_numpy(self.span_starts[span]), lengths)
        ids = torch.from_numpy(self.tokens[where.numpy()].astype(np.int64))
        return Documents(ids, lengths, keys, torch.from_numpy(self.documents[rows]))


def sentence_spans(store: Store, max_tokens: int, part: str = "all", valid_share: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole sentences of each row, from its first on, packed into spans of up to `max_tokens`; spans of under 8 tokens are left out.

    Returns:
        starts (in the store's tokens), lengths, document numbers; in the store's order.
    """
    rows = rows_of(store, part, valid_share)
    offsets, sentence_offsets = np.asarray(store.offsets), np.asarray(store.sentence_offsets)
    counts = np.diff(sentence_offsets)
    starts = np.asarray(store.sentence_starts).astype(np.int64) + np.repeat(offsets[:-1], counts)
    ends = np.append(starts[1:], offsets[-1:])  # rows lie end to end, and each begins with a sentence
    stop = np.repeat(sentence_offsets[1:], counts)  # the sentence after each one's row
    after = np.searchsorted(ends, starts + max_tokens, side="right")  # the first sentence that a span from here cannot hold
    after = np.minimum(np.maximum(after, np.arange(len(starts)) + 1), stop)
    here, row, found = sentence_offsets[rows], rows, []
    open_rows = counts[rows] > 0
    while open_rows.any():  # one round for the n-th span of every row
        here, row = here[open_rows], row[open_rows]
        found.append(np.stack((here, row)))
        here = after[here]
        open_rows = here < sentence_offsets[row + 1]
    sentence, row = np.concatenate(found, axis=1) if found else np.zeros((2, 0), dtype=np.int64)
    order = np.argsort(sentence, kind="stable")
    sentence, row = sentence[order], row[order]
    lengths = ends[after[sentence] - 1] - starts[sentence]
    keep = lengths >= min(SHORTEST_PIECE, max_tokens)
    return starts[sentence][keep], lengths[keep], np.asarray(store.documents)[row[keep]]


class TurnPairs:
    """Messages and the responses to them, with the turns before, of a store of turns; whole threads are held out.

    Args:
        contexts: how many turns before the message are read, most recent first, 0 to 10; with 0 `earlier` is None.
    """

    def __init__(self, store: Store, part: str = "all", valid_share: float = 0.0, contexts: int = EARLIER):
        wanted = np.zeros(len(store), bool)
        wanted[rows_of(store, part, valid_share)] = True
        examples = np.asarray(store.examples)
        self.examples = examples[wanted[examples[:, 0]]][:, :2 + contexts]
        self.tokens, self.starts, lengths = store.tokens, np.asarray(store.offsets)[:-1], np.diff(store.offsets)
        self.row_lengths = np.append(lengths, 0)  # the last entry: row -1, no turn, has no token
        self.lengths = self.row_lengths[self.examples].sum(1)
        self.texts = same_texts(store)

    def read(self, rows: np.ndarray, keys: Tensor) -> Conversations:
        examples = self.examples[rows]
        earlier = None
        if examples.shape[1] > 2:
            turns = examples[:, 2:]
            lengths = torch.from_numpy(self.row_lengths[turns].sum(1))
            earlier = Documents(self._ids(turns.ravel()), lengths, keys, torch.from_numpy(self.texts[examples[:, 0]]))
        return Conversations(self._side(examples[:, 0], keys), self._side(examples[:, 1], keys), earlier)

    def _side(self, rows: np.ndarray, keys: Tensor) -> Documents:
        lengths = torch.from_numpy(self.row_lengths[rows])
        return Documents(self._ids(rows), lengths, keys, torch.from_numpy(self.texts[rows]))

    def _ids(self, rows: np.ndarray) -> Tensor:
        """Tokens of the rows, end to end; row -1 has none."""
        where = spans(torch.from_numpy(self.starts[rows]), torch.from_numpy(self.row_lengths[rows]))
        return torch.from_numpy(self.tokens[where.numpy()].astype(np.int64))


class ResponsePairs:
    """The same as ordinary pairs: a message asks for its response. Other responses to the same message are known answers."""

    def __init__(self, store: Store, part: str = "all", valid_share: float = 0.0):
        self.turns = TurnPairs(store, part, valid_share, contexts=0)
        self.lengths = self.turns.lengths
        context, response = self.turns.texts[self.turns.examples].T
        self.known = torch.from_numpy(np.unique((context << 32) + response))

    def read(self, rows: np.ndarray, keys: Tensor) -> Pairs:
        found = self.turns.read(rows, keys)
        return Pairs(found.contexts, found.responses, self.known)


def same_texts(store: Store) -> np.ndarray:
    """One number per row, int64 (N,): rows of the same tokens have the same number."""
    offsets = np.asarray(store.offsets)
    hashes = np.zeros(len(store), np.int64)
    for first in range(0, len(store), ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, len(store))
        tokens = torch.from_numpy(store.tokens[offsets[first]:offsets[last]].astype(np.int64))
        starts, lengths = offsets[first:last] - offsets[first], np.diff(offsets[first:last + 1])
        place = torch.arange(len(tokens)) - torch.from_numpy(np.repeat(starts, lengths))
        # A sum of hashes of (token, place): 64 bits, so that ten million texts collide with a chance of one in a hundred thousand.
        hashes[first:last] = np.add.reduceat(bits(tokens, "same text", place).numpy(), starts)
    return np.unique(hashes, return_inverse=True)[1].astype(np.int64)


class Texts:
    """Tokenised texts in memory, to be read like a store's rows. An empty text is one unknown token.

    Args:
        texts: strings, or arrays of token ids without special tokens.
    """

    def __init__(self, texts: Sequence[str] | Sequence[np.ndarray], tokenizer: Tokenizer):
        rows = tokenizer.encode(list(texts)) if len(texts) and isinstance(texts[0], str) else texts
        rows = [ids if len(ids) else np.array([tokenizer.unk_id]) for ids in rows]
        self.lengths = np.array([len(ids) for ids in rows], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = np.concatenate(rows).astype(np.int64)

    def read(self, rows: np.ndarray, keys: Tensor) -> Documents:
        lengths = torch.from_numpy(self.lengths[rows])
        ids = torch.from_numpy(self.tokens)[spans(torch.from_numpy(self.starts[rows]), lengths)]
        return Documents(ids, lengths, keys, torch.from_numpy(rows.astype(np.int64)))
