"""Remembered stretches give the ids that the tokenizer gives, whatever stands between them."""

import random

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from foretext.text import stretches
from foretext.text.stretches import never_crosses_blanks
from foretext.text.tokenizer import Tokenizer
from foretext.text.vocabulary import KINDS

WORDS = ["hello", "World", "the", "fox's", "(brown)", "naïve", "e\u0301t\u0302", "北京大学", "¨x", "3,141", "<s>", "[SEP]",
         "untranslatable"]
BETWEEN = [" "] * 12 + ["  ", "\n", " \n ", "\t", "\u00a0", " \u00a0 ", "\u3000", "\u200b ", " \u0308", "\x1c", "", "   "]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    text = "the quick brown fox jumps over the lazy dog. Hello World, untranslatable (again) 3,141"
    return Tokenizer.train([text] * 40, request.param, 320)


def pieces(count: int, seed: int) -> list[list[str]]:
    """Made-up texts, cut at any character."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        text = "".join(draw.choice(BETWEEN) + draw.choice(WORDS) for _ in range(draw.randint(0, 30))) + draw.choice(["", " ", "\n"])
        cuts = sorted(draw.sample(range(len(text) + 1), min(len(text), draw.randint(0, 3))))
        texts.append([text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])])
    return texts


@pytest.mark.parametrize("limit", [1 << 17, 20])
def test_ids_are_those_of_the_pieces_one_by_one(tokenizer, limit, monkeypatch):
    monkeypatch.setattr(stretches, "LIMIT", limit)
    forgetful = Tokenizer(tokenizer.backend, tokenizer.specials)
    assert never_crosses_blanks(tokenizer.backend)
    for seed in range(6):
        given = pieces(60, seed)
        ids, lengths = forgetful.encode_pieces(given)
        expected, their_lengths = tokenizer.encode_flat([piece for some in given for piece in some])
        np.testing.assert_array_equal(lengths, their_lengths)
        np.testing.assert_array_equal(ids, expected)
    for nothing in ([], [[]], [[""]]):
        ids, lengths = forgetful.encode_pieces(nothing)
        assert len(ids) == 0 and lengths.tolist() == [0] * sum(map(len, nothing))


def test_a_tokenizer_that_may_look_across_blanks_is_not_trusted(tokenizer):
    def changed(change) -> bool:
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        change(backend)
        return never_crosses_blanks(backend)

    assert changed(lambda backend: None)
    assert not changed(lambda backend: backend.add_tokens(["New York"]))
    assert not changed(lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Metaspace(split=False)))
    assert not changed(lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False)))
    assert not changed(lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Split(Regex("x"), "isolated")))
    assert not changed(lambda backend: setattr(backend, "normalizer", normalizers.Replace(" ", "")))
