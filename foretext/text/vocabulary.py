"""Training a vocabulary: WordPiece, byte-level BPE, Unigram; the same texts in the same order give the same one."""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from foretext.errors import UserError
from foretext.text.words import METASPACE

BERT_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_SPECIALS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
ALPHABET = 1000  # most frequent characters that get an entry of their own (BERT's own training used 1000)


def train_wordpiece(texts: Sequence[str], vocab_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    """BERT's normaliser and pre-tokenizer, and the library's merges."""

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
    return (letter.isascii() and not letter.isalnum()) or unicodedata.category(letter).startswith("P") or 0x4E00 <= ord(letter) <= 0x9FFF


def _alphabet(texts: Iterable[str], normalizer) -> list[str]:
    """The most frequent characters of the normalised texts; BERT's normaliser works character by character, and so does this."""
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


def train_bpe(texts: Sequence[str], vocab_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2's and RoBERTa's: every text has ids, none is unknown."""
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


def train_unigram(texts: Sequence[str], vocab_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    """Unigram pieces with Metaspace and NFKC, as XLM-R's."""
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


KINDS = {"wordpiece": BERT_SPECIALS, "bpe": ROBERTA_SPECIALS, "unigram": ROBERTA_SPECIALS}  # in the order of their ids
TRAINERS = {"wordpiece": train_wordpiece, "bpe": train_bpe, "unigram": train_unigram}
