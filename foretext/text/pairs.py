"""Text pairs to train on: made from a store without labels (crops, first sentence -> rest, title -> body), or given.

Every source here hands out `Pairs`: queries, and for each query a group of passages whose first is the positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from foretext.errors import UserError
from foretext.text.batches import Documents, StoreSource, rows_of, spans
from foretext.text.randomness import integers, uniform
from foretext.text.store import Store
from foretext.text.tokenizer import Tokenizer

Kind = Literal["crops", "first_sentence", "title"]

SHORTEST = 4  # tokens; a shorter half says nothing


@dataclass(frozen=True)
class Pairs:
    """B queries and their passages, in matching order.

    `passages.documents` number the passages' texts: equal texts have equal numbers. `known` lists what must not count as a
    negative, as sorted codes query number * 2^32 + document number; `queries.documents` are the query numbers.
    """

    queries: Documents
    passages: Documents
    known: Tensor  # (N,) int64


NOTHING_KNOWN = torch.empty(0, dtype=torch.int64)


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
    """The head of a row asks for the rest: first sentence -> rest, or title -> body.

    Rows without both halves are left out and counted in `left_out`.
    """

    def __init__(self, store: Store, kind: Kind, part: str = "all", valid_share: float = 0.0):
        rows = rows_of(store, part, valid_share)
        starts, lengths = np.asarray(store.offsets)[rows], np.diff(store.offsets)[rows]
        if kind == "title":
            heads = np.asarray(store.title_lengths)[rows].astype(np.int64)
        else:
            first = np.asarray(store.sentence_offsets)[rows]
            several = np.diff(store.sentence_offsets)[rows] > 1
            second = np.minimum(first + 1, len(store.sentence_starts) - 1)
            heads = np.where(several, np.asarray(store.sentence_starts)[second], 0).astype(np.int64)
        keep = (heads >= SHORTEST) & (lengths - heads >= SHORTEST)
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


class LabelledPairs:
    """Queries with known relevant passages, tokenised once and kept in memory.

    Args:
        queries, passages: texts.
        links: (N, 2) int64, query number and passage number of each training example; a query may have several.
    """

    def __init__(self, queries: Sequence[str], passages: Sequence[str], links: np.ndarray, tokenizer: Tokenizer):
        if not len(links):
            raise UserError("there is no pair of a query and a relevant passage to train on")
        self.queries, self.passages = Texts(queries, tokenizer), Texts(passages, tokenizer)
        first_of: dict[str, int] = {}
        same_text = np.array([first_of.setdefault(text, i) for i, text in enumerate(passages)])
        self.links, self.documents = links, same_text
        self.known = torch.from_numpy(np.unique((links[:, 0] << 32) + same_text[links[:, 1]]))
        self.lengths = self.queries.lengths[links[:, 0]] + self.passages.lengths[links[:, 1]]

    def read(self, rows: np.ndarray, keys: Tensor) -> Pairs:
        query, passage = self.links[rows].T
        passages = replace(self.passages.read(passage, keys), documents=torch.from_numpy(self.documents[passage]))
        return Pairs(self.queries.read(query, keys), passages, self.known)


class Texts:
    """Tokenised texts in memory, to be read like a store's rows. An empty text is one unknown token."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer):
        rows = [ids if len(ids) else np.array([tokenizer.unk_id]) for ids in tokenizer.encode(list(texts))]
        self.lengths = np.array([len(ids) for ids in rows], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = np.concatenate(rows).astype(np.int64)

    def read(self, rows: np.ndarray, keys: Tensor) -> Documents:
        lengths = torch.from_numpy(self.lengths[rows])
        ids = torch.from_numpy(self.tokens)[spans(torch.from_numpy(self.starts[rows]), lengths)]
        return Documents(ids, lengths, keys, torch.from_numpy(rows.astype(np.int64)))
