"""Which ids of a vocabulary hold together as words.

Legend: V vocabulary size, T tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from foretext.errors import UserError

BYTE_LEVEL_BLANKS = "ĠĊĉč"  # byte-level images of space, newline, tab, return
METASPACE = "▁"


@dataclass(frozen=True)
class WordTable:
    """Which tokens hold together as a word, for every id of a vocabulary; each field is a (V,) bool array.

    Token i continues the word of token i-1 if ``joins_left[i] or joins_right[i-1]``, unless one of the two stands alone.
    """

    joins_left: np.ndarray  # the token continues the word before it (##ing, or a byte-level token without Ġ)
    joins_right: np.ndarray  # the next token continues this one (@@ vocabularies, or </w> ones where it is missing)
    stands_alone: np.ndarray  # no letter or digit: starts a word, and so does the token after it

    def starts(self, ids: np.ndarray) -> np.ndarray:
        """(T,) ids of one text without special tokens -> (T,) bool, True where a word starts; the first is always True."""
        ids = np.asarray(ids)
        starts = ~self.joins_left[ids] | self.stands_alone[ids]
        if len(ids):
            starts[0] = True
            starts[1:] = (starts[1:] & ~self.joins_right[ids[:-1]]) | self.stands_alone[ids[1:]] | self.stands_alone[ids[:-1]]
        return starts


def word_table(backend: tokenizers.Tokenizer, tokens: Sequence[str | None], name: str = "tokenizer",
               split_punct: bool = True) -> WordTable:
    """Build the word table from the kind of the tokenizer, read from its own description.

    Args:
        tokens: the vocabulary by id; None where an id has no entry.
        split_punct: for kinds other than WordPiece, tokens without letter or digit stand alone, as BERT's pre-tokenizer has it.

    Raises:
        UserError: the kind is none of WordPiece, byte level, Metaspace, `@@`, `</w>` or whole words.
    """
    description = json.loads(backend.to_str())
    model = description["model"]
    parts = {part.get("type") for key in ("pre_tokenizer", "decoder", "normalizer") for part in _flatten(description.get(key))}
    names = [token or "" for token in tokens]
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")

    def table(left, right=lambda token: False, bare=lambda token: token, alone=split_punct) -> WordTable:
        rules = (left, right, lambda token: alone and not _has_letter(bare(token)))
        return WordTable(*(np.fromiter(map(rule, names), bool, len(names)) for rule in rules))

    if model["type"] == "WordPiece" or (model["type"] == "BPE" and prefix):
        return table(lambda token: token.startswith(prefix), alone=False)
    if model["type"] == "WordLevel":
        return table(lambda token: False, alone=False)
    if "ByteLevel" in parts:
        letters = _byte_letters()
        return table(lambda token: not token.startswith(tuple(BYTE_LEVEL_BLANKS)), bare=lambda token: _from_bytes(token, letters))
    if suffix:
        return table(lambda token: False, lambda token: not token.endswith(suffix), lambda token: token.removesuffix(suffix))
    if "Metaspace" in parts or (model["type"] in ("BPE", "Unigram") and any(token.startswith(METASPACE) for token in names)):
        return table(lambda token: not token.startswith(METASPACE), bare=lambda token: token.lstrip(METASPACE))
    if model["type"] == "BPE" and any(token.endswith("@@") for token in names):
        return table(lambda token: False, lambda token: token.endswith("@@"), lambda token: token.removesuffix("@@"))
    raise UserError(f"{name}: cannot tell which tokens continue a word (model {model['type']}, no known word marker); "
                    "choose a WordPiece, byte-level BPE or SentencePiece tokenizer")


def _flatten(part: dict | None) -> list[dict]:
    if not part:
        return []
    inner = part.get("pretokenizers") or part.get("normalizers") or part.get("decoders") or []
    return [part, *(leaf for sub in inner for leaf in _flatten(sub))]


def _has_letter(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _byte_letters() -> dict[str, int]:
    """GPT-2's map from printable characters to the bytes they stand for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(shifted)}


def _from_bytes(token: str, letters: dict[str, int]) -> str:
    try:
        return bytes(letters[character] for character in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return "a"  # part of a character (or an added token that is not byte level): counts as a letter
