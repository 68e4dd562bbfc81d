"""Documents -> rows of whole sentences: what one part of a store holds.

Legend: a unit is a sentence, or a word of a sentence too long for a row.
"""

from collections.abc import Sequence

import numpy as np

from foretext.text.documents import Document
from foretext.text.duplicates import words_key
from foretext.text.sentences import split_sentences
from foretext.text.store import STATISTICS
from foretext.text.tokenizer import Tokenizer

BATCH_CHARACTERS = 100_000  # text handed to the tokenizer at a time: its results take about 100 times the memory of the ids


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer, max_tokens: int,
                     min_tokens: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Documents -> the arrays of one part (`store.merge_parts`) and counts of what was left out.

    No token is lost but those of a document's last row when it is shorter than `min_tokens`; these are counted.
    """
    counts = {"duplicates": 0, "too_short": 0}
    seen: set[bytes] = set()
    unique = []
    for document in documents:
        words = f"{document.title} {document.text}".split()
        key = words_key(words)
        if key in seen:
            counts["duplicates"] += 1
        else:
            seen.add(key)
            unique.append((document, key, len(words)))
    packer = _Packer(tokenizer, max_tokens, min_tokens)
    batch, volume = [], 0
    for entry in unique:
        batch.append(entry)
        volume += len(entry[0].text)
        if volume >= BATCH_CHARACTERS:
            packer.add(batch)
            batch, volume = [], 0
    packer.add(batch)
    counts["too_short"] = packer.too_short
    return packer.arrays(), counts


class _Packer:
    """Collects the rows of one block."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, min_tokens: int):
        self.tokenizer, self.max, self.min = tokenizer, max_tokens, min_tokens
        self.dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
        self.tokens: list[np.ndarray] = []
        self.row_lengths: list[int] = []
        self.title_lengths: list[int] = []
        self.sentence_counts: list[int] = []
        self.sentence_starts: list[int] = []
        self.document_rows: list[int] = []
        self.keys: list[bytes] = []
        self.ids: list[bytes] = []
        self.statistics: list[list[int]] = []
        self.too_short = 0

    def add(self, batch: Sequence[tuple[Document, bytes, int]]) -> None:
        """Tokenize and pack some documents."""
        texts, titled = [], []
        for document, _, _ in batch:
            title, text = document.title.strip(), document.text.replace("\r\n", "\n").strip()
            texts.append(([title] if title else []) + split_sentences(text, 4 * self.max))
            titled.append(bool(title))
        ids, lengths = self.tokenizer.encode_pieces(texts)
        first_piece = first_token = 0
        for (document, key, words), pieces, has_title in zip(batch, texts, titled):
            units = lengths[first_piece:first_piece + len(pieces)]
            taken = int(units.sum())
            self._pack(document, key, words, ids[first_token:first_token + taken], units.tolist(), has_title)
            first_piece, first_token = first_piece + len(pieces), first_token + taken

    def _pack(self, document: Document, key: bytes, words: int, ids: np.ndarray, lengths: list[int], titled: bool) -> None:
        rows: list[tuple[int, list[int]]] = []  # (length, starts of sentences) of each row of this document
        length, starts = 0, []
        long_sentences = long_words = at = 0
        title = lengths[0] if titled else 0
        long_title = title > self.max // 2
        least = self.min if long_title else self.min + title  # a title never stays alone in its row
        for count in lengths:
            if count == 0:
                continue
            if length + count > self.max and least <= length and count <= self.max:
                rows.append((length, starts))
                length, starts, least = 0, [], self.min
            if length + count <= self.max:
                starts.append(length)
                length += count
            else:  # longer than a row, or the row before it would be too short to keep: continue word by word
                long_sentences += 1
                begun = False
                begins = np.append(np.flatnonzero(self.tokenizer.words.starts(ids[at:at + count])), count)
                for word in np.diff(begins).tolist():
                    if length == self.max or (length + word > self.max and least <= length and word <= self.max):
                        rows.append((length, starts))
                        length, starts, least, begun = 0, [0], self.min, True
                    if not begun:
                        starts.append(length)
                        begun = True
                    long_words += length + word > self.max
                    while length + word > self.max:
                        word -= self.max - length
                        rows.append((self.max, starts))
                        length, starts, least = 0, [0], self.min
                    length += word
            at += count
        short = length if length < self.min else 0
        if length and not short:
            rows.append((length, starts))
        if not rows:
            self.too_short += 1
            return
        self.tokens.append(ids[:len(ids) - short].astype(self.dtype))
        self.document_rows.append(len(rows))
        self.row_lengths += [row for row, _ in rows]
        self.title_lengths += [0 if long_title else title] + [0] * (len(rows) - 1)
        self.sentence_counts += [len(row) for _, row in rows]
        for _, row in rows:
            self.sentence_starts += row
        self.keys.append(key)
        self.ids.append(document.id.encode("utf-8", "surrogatepass"))
        size = len(document.title.encode("utf-8", "surrogatepass")) + len(document.text.encode("utf-8", "surrogatepass"))
        self.statistics.append([words, size, long_sentences, long_words, short, int(long_title)])

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything packed so far, as `store.merge_parts` wants it."""
        n = len(self.keys)
        return {
            "tokens": np.concatenate(self.tokens) if n else np.zeros(0, self.dtype),
            **{name: np.array(getattr(self, name), np.int32) for name in ("row_lengths", "title_lengths", "sentence_counts",
                                                                          "sentence_starts", "document_rows")},
            "keys": np.frombuffer(b"".join(self.keys), "<u8").reshape(n, 2),
            "ids": np.frombuffer(b"".join(self.ids), np.uint8),
            "id_lengths": np.array([len(name) for name in self.ids], np.int32),
            "statistics": np.array(self.statistics, np.int64).reshape(n, len(STATISTICS)),
        }
