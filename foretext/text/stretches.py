"""Ids of the stretches between blanks, each found once: most of a text repeats stretches that were seen before.

A tokenizer that never looks across a blank gives a text the ids of its stretches, end to end. Looking a stretch up costs a fifth of
tokenizing it again. What is remembered changes the speed only, never an id.

Legend: T tokens, S stretches.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers

LIMIT = 1 << 17  # stretches remembered, about 20 MB; nine in ten stretches of Wikipedia are among them
BLANKS = np.array([chr(i).isspace() for i in range(1 << 14)])  # beyond it no character is a blank
WITHIN_BLANKS = {  # pre-tokenizers that split before every lone blank, and normalisers whose work does not cross one
    "BertPreTokenizer": {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"},
    "ByteLevel": {"Lowercase", "NFC"},
    "Metaspace": {"Lowercase", "NFC", "NFKC", "Replace"},
}
Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


def never_crosses_blanks(backend: tokenizers.Tokenizer) -> bool:
    """Whether a blank between two characters that are none always starts a token, whatever stands around them.

    Known for the kinds in `WITHIN_BLANKS`, and only without added entries that are found before the text is split.
    """
    about = json.loads(backend.to_str())
    normalizer, splitter = about["normalizer"] or {"normalizers": []}, about["pre_tokenizer"] or {"type": None}
    parts = normalizer.get("normalizers", [normalizer])
    if not all(part["type"] in WITHIN_BLANKS.get(splitter["type"], ()) for part in parts) or splitter["type"] not in WITHIN_BLANKS:
        return False
    replaced = [(part["pattern"], part["content"]) for part in parts if part["type"] == "Replace"]
    return (all(known == ({"Regex": r"\s+"}, " ") for known in replaced) and splitter.get("use_regex", True) and splitter.get("split", True)
            and all(token["special"] for token in about["added_tokens"]))


class Stretches:
    """Encodes pieces of text through the stretches it remembers; `encode` finds the ids of new ones."""

    def __init__(self, encode: Encode):
        self.encode_new, self.numbers = encode, _Numbers()
        self.ids, self.lengths, self.seen = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64)

    def encode(self, pieces: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Pieces -> (ids int32 (T,) of all end to end, length of each piece int64 (pieces,)), as if each were tokenized by itself."""
        if len(self.numbers) > LIMIT:
            self._forget()
        text = "".join(pieces)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
        blank = BLANKS[np.minimum(codes, len(BLANKS) - 1)]
        begins = np.zeros(len(codes) + 1, bool)
        begins[1:-2] = (codes[1:-1] == ord(" ")) & ~blank[:-2] & ~blank[2:]
        begins[0] = begins[ends] = True
        places = np.flatnonzero(begins[:-1])
        bounds = [*places.tolist(), len(text)]
        numbers = np.fromiter(map(self.numbers.__getitem__, [text[i:j] for i, j in zip(bounds, bounds[1:])]), np.int64, len(places))
        if self.numbers.new:
            ids, lengths = self.encode_new(self.numbers.new)
            self.ids, self.lengths = np.concatenate((self.ids, ids)), np.concatenate((self.lengths, lengths))
            self.numbers.new = []
        seen = np.bincount(numbers, minlength=len(self.lengths))
        seen[:len(self.seen)] += self.seen
        self.seen = seen
        lengths = self.lengths[numbers]
        sums = np.concatenate(([0], np.cumsum(lengths)))
        return self.ids[self._places(numbers)], np.diff(sums[np.searchsorted(places, ends)], prepend=0)

    def _places(self, numbers: np.ndarray) -> np.ndarray:
        """Where in `ids` the ids of these stretches stand, (S,) -> (T,)."""
        lengths = self.lengths[numbers]
        starts = (np.cumsum(self.lengths) - self.lengths)[numbers]
        return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))

    def _forget(self) -> None:
        """Keep the half seen most often."""
        kept = np.argsort(-self.seen, kind="stable")[:LIMIT // 2]
        stretches = list(self.numbers)
        self.ids, self.lengths, self.seen = self.ids[self._places(kept)], self.lengths[kept], self.seen[kept]
        self.numbers = _Numbers(zip((stretches[i] for i in kept.tolist()), range(len(kept))))


class _Numbers(dict):
    """Stretch -> its number; an unknown one gets the next and is noted in `new`."""

    def __init__(self, known=()):
        super().__init__(known)
        self.new: list[str] = []

    def __missing__(self, stretch: str) -> int:
        number = self[stretch] = len(self)
        self.new.append(stretch)
        return number
