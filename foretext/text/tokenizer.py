"""One fast tokenizer: trained here or taken from a folder or the hub; what its ids mean; how it is saved.

Legend: V vocabulary size, T tokens.
"""

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers

from foretext.errors import UserError
from foretext.files import read_json, whole_file, write_json

BERT_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_SPECIALS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
KINDS = {"wordpiece": BERT_SPECIALS, "bpe": ROBERTA_SPECIALS, "unigram": ROBERTA_SPECIALS}  # in the order of their ids
BYTE_LEVEL_BLANKS = "ĠĊĉč"  # byte-level images of space, newline, tab, return
METASPACE = "▁"
ROUND_TO = 64  # a vocabulary of a multiple of 64 rows keeps the output product on fast kernels
ALPHABET = 1000  # most frequent characters that get an entry of their own (BERT's own training used 1000)
MARK = "\ufdd0"  # a character that Unicode reserves for internal use: stands between pieces that are encoded in one go
UNUSED = re.compile(r"^(\[unused\d+\]|<unused\d+>|madeupword\d+)$")  # entries that other projects reserved and never trained


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


class Tokenizer:
    """A thin wrapper around one `tokenizers.Tokenizer`; make one with `Tokenizer.load` or `Tokenizer.train`.

    Attributes:
        backend: the fast tokenizer, without truncation and padding.
        cls_id, sep_id, pad_id: ids of the special tokens that frame and fill rows.
        unk_id: id of the unknown token, None where the vocabulary covers every text (byte level).
        special: (V,) bool, True for ids that no ordinary text may hold or be replaced with (specials, unused and missing entries).
    """

    def __init__(self, backend: tokenizers.Tokenizer, specials: dict[str, str], name: str = "tokenizer"):
        self.backend, self.name = backend, name
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
        self.special = np.array([token is None or bool(UNUSED.match(token)) for token in self._tokens])
        self.special[list(ids.values())] = True
        self.special[[i for i, added in backend.get_added_tokens_decoder().items() if added.special]] = True
        self._forbidden = self.special.copy()
        if self.unk_id is not None:
            self._forbidden[self.unk_id] = False

    @property
    def size(self) -> int:
        """V: one more than the largest id, the number of rows an embedding needs."""
        return len(self._tokens)

    @property
    def mask_id(self) -> int:
        """Id of the mask token; a `UserError` where there is none."""
        if self._mask_id is None:
            raise UserError(f"{self.name}: the tokenizer has no mask token; choose one that has, or train one with `prepare`")
        return self._mask_id

    @cached_property
    def words(self) -> WordTable:
        """Word table of this vocabulary, from the kind of the tokenizer (objectives.md 0.5).

        Raises:
            UserError: the kind is unknown.
        """
        return word_table(self.backend, self._tokens, self.name)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids of a text; equal for equal tokenizers on every machine."""
        parts = json.loads(self.backend.to_str())
        deciding = [parts[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
        return hashlib.sha256(json.dumps([deciding, self.specials], sort_keys=True).encode()).hexdigest()

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
        return ids, lengths

    def encode_pieces(self, texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Texts cut into pieces -> (ids int32 (T,), length of each piece int64 (pieces,)), all end to end, as `encode_flat` of the pieces.

        One call of the tokenizer per text instead of one per piece: a quarter faster on sentences.
        """
        joined = ["".join(piece + MARK for piece in pieces) for pieces in texts]
        encode, mark = self._marked
        lists = [encoding.ids for encoding in encode(joined, add_special_tokens=False)]
        ids = np.fromiter(itertools.chain.from_iterable(lists), np.int32, sum(map(len, lists)))
        marks = np.flatnonzero(ids == mark)
        inner = np.delete(ids, marks)
        if len(marks) != sum(map(len, texts)) or self._forbidden[inner].any():  # a text that holds the mark, or a special piece
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
        """Ids -> text, special tokens included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

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
        return _unpickle, (self.backend.to_str(), self.specials, self.name)

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
            specials = _specials(read_json(path / "tokenizer_config.json"))
            if "cls" in specials and "sep" in specials:
                try:
                    backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
                except Exception as error:  # the library raises a bare Exception
                    raise UserError(f"{path / 'tokenizer.json'}: not a fast tokenizer file ({error})") from None
                return Tokenizer(backend, specials, str(source))
        return _load_with_transformers(source)

    @staticmethod
    def train(texts: Iterable[str], kind: str = "wordpiece", vocab_size: int = 30_528, lowercase: bool = True) -> "Tokenizer":
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
        if kind not in KINDS:
            raise UserError(f"tokenizer kind {kind!r} is unknown: choose one of {', '.join(KINDS)}")
        texts = texts if isinstance(texts, Sequence) else list(texts)
        if not any(text and not text.isspace() for text in texts):
            raise UserError("a tokenizer cannot be trained without text: the input is empty")
        trainer = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "unigram": _train_unigram}[kind]
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
        return Tokenizer(backend, specials, f"trained {kind}")

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
        }
        with whole_file(folder / "tokenizer.json", "w") as file:
            file.write(backend.to_str(pretty=True) + "\n")
        write_json(folder / "tokenizer_config.json", config)

    def separators(self, token_types: bool) -> int:
        """How many separators stand between the two texts of a pair: one, or two in RoBERTa's and MPNet's habit; see `save`."""
        return self._framing(token_types).encode("a", "a").ids.count(self.sep_id) - 1

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


def _unpickle(text: str, specials: dict[str, str], name: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), specials, name)


# ---------------------------------------------------------------------------------------------------- words of a vocabulary


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


# ------------------------------------------------------------------------------------------------------------------ loading


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


# ----------------------------------------------------------------------------------------------------------------- training


def _template(backend: tokenizers.Tokenizer, specials: dict[str, str], token_types: bool, double_sep: bool):
    from tokenizers.processors import TemplateProcessing

    cls, sep, second = specials["cls"], specials["sep"], int(token_types)
    between = f"{sep}:0 {sep}:0" if double_sep and not token_types else f"{sep}:0"
    return TemplateProcessing(single=f"{cls}:0 $A:0 {sep}:0", pair=f"{cls}:0 $A:0 {between} $B:{second} {sep}:{second}",
                              special_tokens=[(cls, backend.token_to_id(cls)), (sep, backend.token_to_id(sep))])


def _train_wordpiece(texts: Sequence[str], vocab_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    def fresh(model) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer(model)
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        return backend

    backend = fresh(models.WordPiece(unk_token=BERT_SPECIALS["unk"]))
    alphabet = _alphabet(texts, backend.normalizer)
    # The library numbers "##x" in the order of a randomly seeded hash map, which changes ids and merges from run to run.
    # Handing it the whole alphabet with its continuations as leading entries fixes the order.
    first = [*BERT_SPECIALS.values(), *alphabet, *(f"##{letter}" for letter in alphabet if not _isolated(letter))]
    _room_for(first, vocab_size)
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, initial_alphabet=alphabet,
                                        limit_alphabet=len(alphabet), min_frequency=2, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    return fresh(models.WordPiece(vocabulary, unk_token=BERT_SPECIALS["unk"], max_input_chars_per_word=100))


def _isolated(letter: str) -> bool:
    """BERT's pre-tokenizer makes this character a word of its own, so it never continues one."""
    import unicodedata

    return (letter.isascii() and not letter.isalnum()) or unicodedata.category(letter).startswith("P") or 0x4E00 <= ord(letter) <= 0x9FFF


def _alphabet(texts: Iterable[str], normalizer) -> list[str]:
    """The most frequent characters of the normalised texts; BERT's normaliser works character by character, and so does this."""
    from collections import Counter

    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for letter, count in raw.items():
        for normalised in normalizer.normalize_str(letter):
            counts[normalised] += count
    ordered = sorted((letter for letter in counts if not letter.isspace()), key=lambda letter: (-counts[letter], letter))
    return sorted(ordered[:ALPHABET])


def _room_for(first: Sequence[str], vocab_size: int) -> None:
    if len(first) > vocab_size:
        raise UserError(f"a vocabulary of {vocab_size:,} has no room for the {len(first):,} special tokens and single characters "
                        "of this text: raise the vocabulary size")


def _train_bpe(texts: Sequence[str], vocab_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = list(ROBERTA_SPECIALS.values())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _room_for([*specials, *alphabet], vocab_size)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, min_frequency=2,
                                  show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def _train_unigram(texts: Sequence[str], vocab_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    normalizer = normalizers.Sequence([normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else []), blanks])
    specials = list(ROBERTA_SPECIALS.values())
    pieces = unigram_pieces((normalizer.normalize_str(text) for text in texts), vocab_size - len(specials))
    # Specials get a score no path would choose: they come from the template, never from text.
    vocabulary = [(token, -1000.0) for token in specials] + pieces
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=specials.index(ROBERTA_SPECIALS["unk"])))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def unigram_pieces(texts: Iterable[str], size: int, max_piece: int = 12, shrink: float = 0.75) -> list[tuple[str, float]]:
    """Pieces of a Unigram vocabulary and their log probabilities, best first, by hard EM over the distinct words.

    The library's own trainer sums floats in the order of a randomly seeded hash map, so two runs differ. Here counts are
    integers and every tie is broken by the piece itself. Method: Kudo 2018 (arXiv 1804.10959), section 3.2, with the best
    segmentation in place of the expectation and with the loss of a piece measured against its best split in two.

    Args:
        texts: normalised texts, words separated by blanks.
        size: how many pieces to keep; fewer if the text has fewer.
    """
    from collections import Counter

    from tokenizers import models

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(METASPACE + word for word in text.split(" ") if word)
    words = sorted(counts, key=lambda word: (-counts[word], word))[:200_000]
    seeds: Counter[str] = Counter()
    for word in words:
        weight = counts[word]
        for start in range(len(word)):
            for stop in range(start + 1, min(start + max_piece, len(word)) + 1):
                seeds[word[start:stop]] += weight
    letters = sorted((piece for piece in seeds if len(piece) == 1), key=lambda piece: (-seeds[piece], piece))[:ALPHABET]
    _room_for(letters, size)
    longer: list[str] = [piece for piece in seeds if len(piece) > 1 and seeds[piece] > 1]
    longer.sort(key=lambda piece: (-seeds[piece] * len(piece), piece))
    frequency = {piece: seeds[piece] for piece in letters + longer[: max(8 * size, 20_000)]}
    seeds.clear()

    def scored() -> dict[str, float]:
        total = float(np.log(sum(frequency.values())))
        return {piece: float(np.log(count)) - total for piece, count in frequency.items()}

    def count_best_segmentations(drop_unused: bool) -> None:
        scores = scored()
        backend = tokenizers.Tokenizer(models.Unigram([("<unk>", -1000.0), *scores.items()], unk_id=0))
        encode = getattr(backend, "encode_batch_fast", backend.encode_batch)
        found = [encoding.ids for encoding in encode(words, add_special_tokens=False)]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        flat = np.fromiter(itertools.chain.from_iterable(found), np.int64, int(lengths.sum()))
        used = np.bincount(flat, weights=np.repeat(weights, lengths), minlength=len(scores) + 1)  # exact: integers below 2**53
        for piece, count in zip(scores, used[1:].tolist()):
            if count or len(piece) == 1 or not drop_unused:
                frequency[piece] = max(int(count), 1)
            else:
                del frequency[piece]

    weights = np.fromiter((counts[word] for word in words), np.float64, len(words))
    while len(frequency) > size:
        count_best_segmentations(drop_unused=len(frequency) * shrink > size)
        scores = scored()
        worst = min(scores.values()) - 10.0  # the library's own penalty for an unknown character

        def loss(piece: str, scores=scores, worst=worst) -> float:
            split = max(scores.get(piece[:i], worst) + scores.get(piece[i:], worst) for i in range(1, len(piece)))
            return frequency[piece] * (scores[piece] - split)

        room = max(size, int(len(frequency) * shrink)) - len(letters)
        candidates = sorted((piece for piece in frequency if len(piece) > 1), key=lambda piece: (-loss(piece), piece))
        for piece in candidates[room:]:
            del frequency[piece]
    count_best_segmentations(drop_unused=False)
    return sorted(scored().items(), key=lambda item: (-item[1], item[0]))
