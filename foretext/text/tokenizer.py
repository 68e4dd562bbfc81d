"""One fast tokenizer: trained here or taken from a folder or the hub; what its ids mean; how it is saved.

Legend: V vocabulary size, T tokens.
"""

import contextlib
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers

from foretext.errors import UserError
from foretext.files import read_json, whole_file, write_json
from foretext.text.stretches import Stretches, never_crosses_blanks
from foretext.text.vocabulary import KINDS, TRAINERS
from foretext.text.words import WordTable, word_table

ROUND_TO = 64  # a vocabulary of a multiple of 64 rows keeps the output product on fast kernels
MARK = "\ufdd0"  # a character that Unicode reserves for internal use: stands between pieces that are encoded in one go
UNUSED = re.compile(r"^(\[unused\d+\]|<unused\d+>|madeupword\d+)$")  # entries that other projects reserved and never trained


class Tokenizer:
    """A thin wrapper around one `tokenizers.Tokenizer`; make one with `Tokenizer.load` or `Tokenizer.train`.

    Attributes:
        backend: the fast tokenizer, without truncation and padding.
        cls_id, sep_id, pad_id: ids of the special tokens that frame and fill rows.
        unk_id: id of the unknown token, None where the vocabulary covers every text (byte level).
        special: (V,) bool, True for ids that no ordinary text may hold or be replaced with (specials, unused and missing entries).
        hash_buckets: ids after the vocabulary's own for characters that are not in it: entries + crc32(UTF-8 bytes) mod hash_buckets
            (ConveRT, arXiv 1911.03688, section 3.1). 0: they are unknown, and so is every word that holds one.
    """

    def __init__(self, backend: tokenizers.Tokenizer, specials: dict[str, str], name: str = "tokenizer", hash_buckets: int = 0):
        self.backend, self.name, self.hash_buckets = backend, name, hash_buckets
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # a document that says "[SEP]" holds ordinary text, not a border
        self.specials = dict(specials)
        for role in ("cls", "sep"):
            if specials.get(role) is None:
                raise UserError(f"{name}: the tokenizer has no {role} token (nor bos/eos in its place); choose another tokenizer")
        self.specials.setdefault("pad", specials["sep"])  # rows travel flat, so a pad id is only ever written into a config
        ids = {role: backend.token_to_id(token) for role, token in self.specials.items()}
        for role, token in self.specials.items():
            if ids[role] is None:
                raise UserError(f"{name}: the {role} token {token!r} is not in the vocabulary")
        self.cls_id, self.sep_id, self.pad_id = ids["cls"], ids["sep"], ids["pad"]
        self.unk_id, self._mask_id = ids.get("unk"), ids.get("mask")

        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._tokens: list[str | None] = [None] * (max(vocabulary.values()) + 1)
        for token, i in vocabulary.items():
            self._tokens[i] = token
        self.entries = len(self._tokens)
        self._tokens += [f"[hash {i}]" for i in range(hash_buckets)]
        self.special = np.array([token is None or bool(UNUSED.match(token)) for token in self._tokens])
        self.special[list(ids.values())] = True
        self.special[[i for i, added in backend.get_added_tokens_decoder().items() if added.special]] = True
        self._forbidden = self.special.copy()
        if self.unk_id is not None:
            self._forbidden[self.unk_id] = False

    @property
    def size(self) -> int:
        """V: one more than the largest id, hash buckets included: the number of rows an embedding needs."""
        return len(self._tokens)

    @property
    def mask_id(self) -> int:
        """Id of the mask token; a `UserError` where there is none."""
        if self._mask_id is None:
            raise UserError(f"{self.name}: the tokenizer has no mask token; choose one that has, or train one with `prepare`")
        return self._mask_id

    @cached_property
    def words(self) -> WordTable:
        """Word table of this vocabulary, from the kind of the tokenizer.

        Raises:
            UserError: the kind is unknown.
        """
        table = word_table(self.backend, self._tokens[:self.entries], self.name)
        if not self.hash_buckets:
            return table
        no, yes = np.zeros(self.hash_buckets, bool), np.ones(self.hash_buckets, bool)  # each is a word of its own
        return WordTable(np.append(table.joins_left, no), np.append(table.joins_right, no), np.append(table.stands_alone, yes))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids of a text; equal for equal tokenizers on every machine."""
        parts = json.loads(self.backend.to_str())
        deciding = [parts[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
        everything = [deciding, self.specials] + ([self.hash_buckets] if self.hash_buckets else [])
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> (ids int32 (T,) of all texts end to end, lengths int64 (n,)); no special tokens, nothing cut."""
        texts = list(texts)
        encode = getattr(self.backend, "encode_batch_fast", self.backend.encode_batch)
        lists = [encoding.ids for encoding in encode(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        ids = np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(lengths.sum()))
        if self._forbidden[ids].any():
            # A vocabulary (Unigram) may hold "<s>" as an ordinary piece too. A blank inside makes it text; rare, so done one by one.
            rows = [np.asarray(row, np.int32) for row in lists]
            for i, row in enumerate(rows):
                if self._forbidden[row].any():
                    loose = self.backend.encode(self._loosen(texts[i]), add_special_tokens=False).ids
                    row = np.asarray(loose, np.int32)
                    rows[i] = row[~self._forbidden[row]]
            lengths = np.fromiter(map(len, rows), np.int64, len(rows))
            ids = np.concatenate(rows)
        if self.hash_buckets and self.unk_id is not None and (ids == self.unk_id).any():
            rows = np.split(ids, np.cumsum(lengths)[:-1])
            rows = [self._hashed(text) if (row == self.unk_id).any() else row for text, row in zip(texts, rows)]
            lengths = np.fromiter(map(len, rows), np.int64, len(rows))
            ids = np.concatenate(rows)
        return ids, lengths

    def _hashed(self, text: str) -> np.ndarray:
        """Ids of one text with unknown pieces taken apart: its unknown characters as buckets, the stretches between them as texts."""
        found = self.backend.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for i, (start, stop) in zip(found.ids, found.offsets):
            ids += [i] if i != self.unk_id else self._taken_apart(text[start:stop])
        return np.asarray(ids, np.int32)

    def _taken_apart(self, piece: str) -> list[int]:
        normalizer = self.backend.normalizer
        ids: list[int] = []
        for known, characters in itertools.groupby(normalizer.normalize_str(piece) if normalizer else piece, self._is_known):
            if known:
                ids += self.backend.encode("".join(characters), add_special_tokens=False).ids
            else:
                ids += [self.entries + zlib.crc32(c.encode()) % self.hash_buckets for c in characters if not c.isspace()]
        return ids

    def _is_known(self, character: str) -> bool:
        return self.unk_id not in self.backend.encode(character, add_special_tokens=False).ids

    def encode_pieces(self, texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Texts cut into pieces -> (ids int32 (T,), length of each piece int64 (pieces,)), all end to end, as `encode_flat` of the pieces.

        Twice as fast as the tokenizer or faster where it never looks across blanks; a quarter faster than piece by piece elsewhere.
        """
        if self._stretches:
            return self._stretches.encode([piece for pieces in texts for piece in pieces])
        return self._encode_marked(texts)

    @cached_property
    def _stretches(self) -> Stretches | None:
        def encode(new: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            return self._encode_marked([new[i:i + 100] for i in range(0, len(new), 100)])

        return Stretches(encode) if never_crosses_blanks(self.backend) else None

    def _encode_marked(self, texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """One call of the tokenizer per text, with a mark after each piece, instead of one per piece."""
        joined = ["".join(piece + MARK for piece in pieces) for pieces in texts]
        encode, mark = self._marked
        lists = [encoding.ids for encoding in encode(joined, add_special_tokens=False)]
        ids = np.fromiter(itertools.chain.from_iterable(lists), np.int32, sum(map(len, lists)))
        marks = np.flatnonzero(ids == mark)
        inner = np.delete(ids, marks)
        unknown = self.hash_buckets and self.unk_id is not None and (inner == self.unk_id).any()
        if unknown or len(marks) != sum(map(len, texts)) or self._forbidden[inner].any():  # a text that holds the mark, or a special piece
            return self.encode_flat([piece for pieces in texts for piece in pieces])
        return inner, np.diff(marks, prepend=-1) - 1

    @cached_property
    def _marked(self):
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = True
        backend.add_tokens([tokenizers.AddedToken(MARK, special=False, normalized=False)])  # a special one would be taken for text
        mark = backend.token_to_id(MARK)
        assert mark is not None and self.backend.id_to_token(mark) is None
        return getattr(backend, "encode_batch_fast", backend.encode_batch), mark

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Texts -> one int32 array of ids each; no special tokens, nothing cut, all cores."""
        ids, lengths = self.encode_flat(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text, special tokens included; nobody knows what a hash bucket stood for, so it is `[hash i]`."""
        if not self.hash_buckets:
            return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)
        stretches = itertools.groupby((int(i) for i in ids), lambda i: i < self.entries)
        return " ".join(self.backend.decode(list(some), skip_special_tokens=False) if plain else " ".join(map(self.token, some))
                        for plain, some in stretches)

    def token(self, i: int) -> str:
        """The vocabulary entry of id `i`; empty for an id that has none."""
        return self._tokens[int(i)] or ""

    def _loosen(self, text: str) -> str:
        for i in np.flatnonzero(self._forbidden):
            token = self._tokens[i]
            if token and token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def __len__(self) -> int:
        return self.size

    def __reduce__(self):
        return _unpickle, (self.backend.to_str(), self.specials, self.name, self.hash_buckets)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name}, {type(self.backend.model).__name__}, {self.size:,} entries)"

    @staticmethod
    def load(source: str | Path) -> "Tokenizer":
        """Load a fast tokenizer from a folder, a `tokenizer.json` file or a hub id.

        Raises:
            UserError: nothing is there, or the tokenizer is not a fast one.
        """
        path = Path(source)
        if path.name == "tokenizer.json" and path.is_file():
            path = path.parent
        if (path / "tokenizer.json").is_file() and (path / "tokenizer_config.json").is_file():
            # Read directly: transformers may rebuild the normaliser of a concrete class from keyword arguments,
            # and importing it in each worker costs seconds and hundreds of megabytes.
            config = read_json(path / "tokenizer_config.json")
            specials = _specials(config)
            if "cls" in specials and "sep" in specials:
                try:
                    backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
                except Exception as error:  # the library raises a bare Exception
                    raise UserError(f"{path / 'tokenizer.json'}: not a fast tokenizer file ({error})") from None
                return Tokenizer(backend, specials, str(source), config.get("hash_buckets", 0))
        return _load_with_transformers(source)

    @staticmethod
    def train(texts: Iterable[str], kind: str = "wordpiece", vocab_size: int = 30_528, lowercase: bool = True,
              hash_buckets: int = 0) -> "Tokenizer":
        """Train a tokenizer; the same texts in the same order give the same tokenizer.

        Args:
            texts: read twice or kept in memory, so hand over a sample (`prepare` takes at most 50 MB).
            kind: "wordpiece" (BERT's normaliser and pre-tokenizer), "bpe" (byte level) or "unigram" (Metaspace, NFKC).
            vocab_size: entries, special tokens included; rounded up to a multiple of 64. A small text may give fewer:
                then the largest multiple of 64 that it fills, if there is one.
            lowercase: lower-case texts (WordPiece: strip accents too, as BERT does).

        Raises:
            UserError: unknown kind, no text, or a vocabulary too small for the alphabet.
        """
        if hash_buckets and kind == "bpe":
            raise UserError("hash_buckets have no effect with a bpe tokenizer: at byte level no character is unknown")
        if kind not in KINDS:
            raise UserError(f"tokenizer kind {kind!r} is unknown: choose one of {', '.join(KINDS)}")
        texts = texts if isinstance(texts, Sequence) else list(texts)
        if not any(text and not text.isspace() for text in texts):
            raise UserError("a tokenizer cannot be trained without text: the input is empty")
        trainer = TRAINERS[kind]
        wanted = -(-vocab_size // ROUND_TO) * ROUND_TO
        backend = trainer(texts, wanted, lowercase)
        filled = backend.get_vocab_size()
        if filled < wanted and filled >= ROUND_TO and filled % ROUND_TO:
            with contextlib.suppress(UserError):  # no room for the alphabet: the odd size stays
                smaller = trainer(texts, filled // ROUND_TO * ROUND_TO, lowercase)
                backend = smaller if smaller.get_vocab_size() % ROUND_TO == 0 else backend
        specials = KINDS[kind]
        eats_blank = kind != "wordpiece"  # "a <mask>" is one blank, which belongs to the mask as it would to a word
        backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False, lstrip=eats_blank and role == "mask")
                                    for role, token in specials.items()])
        backend.post_processor = _template(backend, specials, token_types=kind == "wordpiece", double_sep=kind != "wordpiece")
        return Tokenizer(backend, specials, f"trained {kind}", hash_buckets)

    def save(self, folder: str | Path, max_len: int = 512, token_types: bool = True) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` of transformers 4 and 5 reads alike.

        Args:
            max_len: usable tokens of the model, special tokens included.
            token_types: the model has token types (BERT, ELECTRA), so pairs must carry 0 and 1.
        """
        folder = Path(folder)
        backend = self._framing(token_types)
        config = {
            # Never a concrete class: transformers 5 would rebuild its normaliser from arguments. Never "TokenizersBackend":
            # transformers 4 does not know it.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"] if token_types else ["input_ids", "attention_mask"],
            "model_max_length": max_len,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            **{f"{role}_token": token for role, token in self.specials.items()},
            "bos_token": self.specials["cls"],
            "eos_token": self.specials["sep"],
        } | ({"hash_buckets": self.hash_buckets} if self.hash_buckets else {})
        with whole_file(folder / "tokenizer.json", "w") as file:
            file.write(backend.to_str(pretty=True) + "\n")
        write_json(folder / "tokenizer_config.json", config)

    @cached_property
    def separators(self) -> dict[bool, int]:
        """How many stand between the two texts of a pair, by whether the model has token types (`save`): one; RoBERTa's and MPNet's two."""
        return {types: self._framing(types).encode("a", "a").ids.count(self.sep_id) - 1 for types in (False, True)}

    def _framing(self, token_types: bool) -> tokenizers.Tokenizer:
        """A copy of the backend that puts special tokens around a text and a pair."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        single = backend.encode("a").ids
        pair = backend.encode("a", "a")
        framed = len(single) > 1 and single[0] == self.cls_id and single[-1] == self.sep_id and pair.ids[0] == self.cls_id
        if not framed or (token_types and 1 not in pair.type_ids):
            double = framed and pair.ids.count(self.sep_id) > 2
            backend.post_processor = _template(backend, self.specials, token_types, double)
        return backend


def _unpickle(text: str, specials: dict[str, str], name: str, hash_buckets: int) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), specials, name, hash_buckets)


def _specials(config: dict) -> dict[str, str]:
    """Special tokens by role; cls falls back to bos, sep to eos."""
    named = {}
    for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos"):
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            named[role] = str(token)
    for role, stand_in in (("cls", "bos"), ("sep", "eos")):
        if role not in named and stand_in in named:
            named[role] = named[stand_in]
    return {role: token for role, token in named.items() if role not in ("bos", "eos")}


def _load_with_transformers(source: str | Path) -> Tokenizer:
    if str(source).startswith(("/", "./", "../", "~")) and not Path(source).exists():
        raise UserError(f"{source}: no such tokenizer folder")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(source))
    except Exception as error:  # every failure of the library means the same to a person: this is not a usable tokenizer
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{source}: no tokenizer could be loaded from this folder or hub id ({reason})") from None
    backend = getattr(loaded, "_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise UserError(f"{source}: this is not a fast tokenizer; convert it, or choose one that has a tokenizer.json")
    roles = {f"{role}_token": getattr(loaded, f"{role}_token", None) for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos")}
    return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), _specials(roles), str(source))


def _template(backend: tokenizers.Tokenizer, specials: dict[str, str], token_types: bool, double_sep: bool):
    from tokenizers.processors import TemplateProcessing

    cls, sep, second = specials["cls"], specials["sep"], int(token_types)
    between = f"{sep}:0 {sep}:0" if double_sep and not token_types else f"{sep}:0"
    return TemplateProcessing(single=f"{cls}:0 $A:0 {sep}:0", pair=f"{cls}:0 $A:0 {between} $B:{second} {sep}:{second}",
                              special_tokens=[(cls, backend.token_to_id(cls)), (sep, backend.token_to_id(sep))])
