"""Tokenizers: training is repeatable, words are found for every kind, and a saved one reads the same in transformers."""

import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from foretext.errors import UserError
from foretext.text.tokenizer import Tokenizer
from foretext.text.vocabulary import KINDS
from foretext.text.words import WordTable, word_table
from tests.conftest import made_up_texts

TEXTS = ["The quick brown fox jumps over the lazy dog. Café naïve Straße 北京大学 tokens!",
         "hello world again, HELLO World; untranslatable"] * 40
PROBE = ["Hello WORLD Café", "naïve 北京 Straße", "", "A  B\n\nC\tD", "x " * 400]


@pytest.fixture(scope="module", params=[(kind, lower) for kind in KINDS for lower in (True, False)], ids=str)
def trained(request):
    kind, lowercase = request.param
    return kind, lowercase, Tokenizer.train(TEXTS, kind, 320, lowercase)


def test_special_ids_and_size(trained):
    kind, lowercase, tokenizer = trained
    expected = [0, 1, 2, 3, 4]
    if kind == "wordpiece":
        assert [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id] == expected
    else:
        assert [tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id] == expected
    assert tokenizer.special.tolist() == [True] * 5 + [False] * (tokenizer.size - 5)
    assert tokenizer.size % 64 == 0
    assert ("hello" in tokenizer.decode(tokenizer.encode(["HELLO"])[0])) == lowercase


def test_encode_keeps_everything(trained):
    tokenizer = trained[2]
    rows = tokenizer.encode(PROBE)
    flat, lengths = tokenizer.encode_flat(PROBE)
    assert np.array_equal(np.concatenate(rows), flat) and [len(row) for row in rows] == lengths.tolist()
    assert len(rows[2]) == 0 and len(rows[4]) >= 400 and tokenizer.encode([]) == []
    assert not tokenizer.special[flat[flat != tokenizer.unk_id]].any()


def test_pieces_in_one_go(trained):
    tokenizer = trained[2]
    texts = [["Hello world.", " The fox", "", "\n\nagain"], [], ["dog"], ["a <s> [SEP] b", " c"]]
    for given in (texts, [*texts, ["holds the mark \ufdd0 itself", " x"]]):
        ids, lengths = tokenizer.encode_pieces(given)
        expected, their_lengths = tokenizer.encode_flat([piece for pieces in given for piece in pieces])
        assert np.array_equal(ids, expected) and np.array_equal(lengths, their_lengths) and ids.max() < tokenizer.size


def test_special_strings_in_a_text_are_text(trained):
    tokenizer = trained[2]
    ids = np.concatenate(tokenizer.encode(["a [SEP] b <s> c </s> <mask> [MASK] d [PAD]"]))
    forbidden = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id}
    assert not forbidden & set(ids.tolist())


def test_reload_with_transformers(trained, tmp_path):
    from transformers import AutoTokenizer

    kind, _, tokenizer = trained
    mask = tokenizer.token(tokenizer.mask_id)
    for model_type in (None, "bert", "roberta", "mpnet", "electra"):
        types = model_type in (None, "bert", "electra")
        folder = tmp_path / str(model_type)
        tokenizer.save(folder, max_len=64, token_types=types)
        if model_type:  # beside a model, transformers may prefer the class of the architecture
            (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": tokenizer.size}))
        written = json.loads((folder / "tokenizer_config.json").read_text())
        assert written["tokenizer_class"] == "PreTrainedTokenizerFast" and all(isinstance(written[f"{r}_token"], str) for r in KINDS[kind])
        theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
        assert ours.fingerprint == tokenizer.fingerprint and theirs.model_max_length == 64
        for text in PROBE:
            got = theirs(text, truncation=True)
            assert got["input_ids"] == [tokenizer.cls_id, *tokenizer.encode([text])[0][:62].tolist(), tokenizer.sep_id], (model_type, text)
            assert got.get("token_type_ids") == ([0] * len(got["input_ids"]) if types else None)
        assert theirs(f"hello {mask} world")["input_ids"].count(tokenizer.mask_id) == 1
        pair = theirs("hello", "world")
        assert pair["input_ids"].count(tokenizer.sep_id) == (2 if types or kind == "wordpiece" else 3)
        if types:
            cut = len(tokenizer.encode(["hello"])[0]) + 2
            assert pair["token_type_ids"] == [0] * cut + [1] * (len(pair["input_ids"]) - cut)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_in_every_process(kind, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(TEXTS))
    script = ("import json, sys; from foretext.text.tokenizer import Tokenizer\n"
              "print(Tokenizer.train(json.load(open(sys.argv[1])), sys.argv[2], 300).fingerprint)")
    command = [sys.executable, "-c", script, str(tmp_path / "t.json"), kind]
    prints = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(prints) == 1


def test_pickle(trained):
    import pickle

    again = pickle.loads(pickle.dumps(trained[2]))
    assert again.fingerprint == trained[2].fingerprint and np.array_equal(again.special, trained[2].special)


def test_pieces_tokenize_as_inside_the_whole(trained):
    """`prepare` encodes sentences one by one; cut before white space, they give the ids of the whole text."""
    from foretext.text.sentences import split_sentences

    text = 'The fox jumps. Hello world! "Over the dog?" He said (again). 北京大学。大学 tokens\n\nNew paragraph.  Two blanks.\nA line.'
    pieces = split_sentences(text, 10_000)
    assert len(pieces) >= 7 and "".join(pieces) == text
    tokenizer = trained[2]
    if trained[0] == "unigram":  # the one exception: after 。 there is no blank, and Metaspace sets its mark at each piece's start
        pieces = split_sentences(text := text.replace("。", ". "), 10_000)
    assert np.array_equal(np.concatenate(tokenizer.encode(pieces)), tokenizer.encode([text])[0])


# ------------------------------------------------------------------------------------------------------------- word tables


def starts(table: WordTable, vocabulary: list[str], tokens: str) -> list[bool]:
    return table.starts(np.array([vocabulary.index(token) for token in tokens.split()])).tolist()


def build(model, vocabulary, **parts) -> WordTable:
    backend = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    return word_table(backend, vocabulary)


def ids(vocabulary):
    return {token: i for i, token in enumerate(vocabulary)}


def test_wordpiece_vector():
    vocabulary = ["[UNK]", "hello", "foo", "##bar", ",", "world", "##s"]
    table = build(models.WordPiece(ids(vocabulary), unk_token="[UNK]"), vocabulary)
    assert starts(table, vocabulary, "hello foo ##bar , world") == [True, True, False, True, True]
    assert starts(table, vocabulary, "##bar hello") == [True, True]  # the first token of a document always starts a word
    assert not table.joins_right.any() and not table.stands_alone.any()


def test_byte_level_vector():
    vocabulary = ["hello", "Ġfoo", "bar", ",", "Ġworld", "Ċ", "ĉx", "č", "Ã", "©", "Ġ(", "12", "Ġ"]
    table = build(models.BPE(ids(vocabulary), []), vocabulary, pre_tokenizer=pre_tokenizers.ByteLevel())
    assert starts(table, vocabulary, "hello Ġfoo bar , Ġworld") == [True, True, False, True, True]
    assert starts(table, vocabulary, "hello , bar") == [True, True, True]  # punctuation splits: the token after it starts a word too
    assert starts(table, vocabulary, "hello Ã © bar 12") == [True, False, False, False, False]  # parts of é count as letters
    assert starts(table, vocabulary, "hello Ċ ĉx č Ġ( bar") == [True] * 6


def test_metaspace_vector():
    vocabulary = ["<unk>", "▁hello", "▁foo", "bar", ",", "▁world", "▁"]
    table = build(models.Unigram([(token, -1.0) for token in vocabulary], 0), vocabulary, pre_tokenizer=pre_tokenizers.Metaspace())
    assert starts(table, vocabulary, "▁hello ▁foo bar , ▁world bar") == [True, True, False, True, True, False]


def test_at_and_end_of_word_vectors():
    vocabulary = ["hello", "foo@@", "bar", ",", "world"]
    table = build(models.BPE(ids(vocabulary), []), vocabulary)
    assert starts(table, vocabulary, "hello foo@@ bar , world") == [True, True, False, True, True]
    vocabulary = ["hello</w>", "foo", "bar</w>", ",</w>", "world</w>"]
    table = build(models.BPE(ids(vocabulary), [], end_of_word_suffix="</w>"), vocabulary, decoder=decoders.BPEDecoder("</w>"))
    assert starts(table, vocabulary, "hello</w> foo bar</w> ,</w> world</w>") == [True, True, False, True, True]


def test_punctuation_may_be_left_joined():
    vocabulary = ["hello", ",", "bar"]
    backend = tokenizers.Tokenizer(models.BPE(ids(vocabulary), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert starts(word_table(backend, vocabulary, split_punct=False), vocabulary, "hello , bar") == [True, False, False]


def test_unknown_kind_stops():
    with pytest.raises(UserError, match="which tokens continue a word"):
        build(models.BPE({"a": 0, "b": 1}, []), ["a", "b"])


def test_word_tables_of_trained_kinds(trained):
    tokenizer = trained[2]
    row = tokenizer.encode(["hello world, untranslatable dog!"])[0]
    found = np.flatnonzero(tokenizer.words.starts(row))
    words = [tokenizer.decode(part).replace("#", "").strip().lower() for part in np.split(row, found[1:])]
    assert [word for word in words if word] == ["hello", "world", ",", "untranslatable", "dog", "!"]


# ----------------------------------------------------------------------------------------------------------------- loading


def test_real_bert(minilm):
    tokenizer = Tokenizer.load(minilm)
    assert tokenizer.size == 30522 and (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id) == (101, 102, 0, 103)
    assert tokenizer.special.sum() == 5 + 994  # BERT reserved [unused0] ... [unused993]
    row = tokenizer.encode(["Hello [MASK] " + "x " * 600])[0]
    assert len(row) > 600 and not tokenizer.special[row].any()


def test_loading_falls_back_to_bos_and_eos(tmp_path):
    vocabulary = {"<bos>": 0, "<eos>": 1, "<mask>": 2, "a": 3}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens(["<bos>", "<eos>", "<mask>"])
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", mask_token="<mask>").save_pretrained(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id) == (0, 1, 1, 2, None)
    tokenizer.save(tmp_path / "saved", token_types=False)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("A a")["input_ids"] == [0, 3, 3, 1]  # a frame was added


@pytest.mark.parametrize("source", ["/no/where", "./no_where", "someone/nothing-of-that-name"])
def test_missing_tokenizer(source):
    with pytest.raises(UserError):
        Tokenizer.load(source)


def test_training_mistakes():
    for arguments, message in (((["a"], "sentencepiece"), "unknown"), (([" ", ""],), "empty"),
                               ((TEXTS, "wordpiece", 10), "raise the vocabulary"), ((TEXTS, "bpe", 100), "raise the vocabulary")):
        with pytest.raises(UserError, match=message):
            Tokenizer.train(*arguments)
    backend = tokenizers.Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(UserError, match="no cls token"):
        Tokenizer(backend, {})
    tokenizer = Tokenizer(backend, {"cls": "a", "sep": "a"})
    with pytest.raises(UserError, match="no mask token"):
        tokenizer.mask_id  # noqa: B018


def test_unknown_characters_have_hash_buckets(tmp_path):
    words = Tokenizer.train(made_up_texts(200, seed=1), kind="wordpiece", vocab_size=448, hash_buckets=1000)
    assert words.size == words.entries + 1000
    bucket = words.entries + zlib.crc32("☃".encode()) % 1000
    assert bucket - words.entries == 260  # the same in every process, on every machine
    ids, ba, de = words.encode(["ba☃de"])[0].tolist(), *(words.encode([text])[0].tolist() for text in ("ba", "de"))
    assert ids == [*ba, bucket, *de]
    assert np.concatenate([words.encode_pieces([["ba☃", "de"]])[0]]).tolist() == ids
    words.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.size, again.fingerprint) == (words.size, words.fingerprint)
    assert again.encode(["☃☃ lo"])[0].tolist()[:2] == [bucket, bucket]
    with pytest.raises(UserError, match="byte level"):
        Tokenizer.train(["a b"], kind="bpe", hash_buckets=10)
