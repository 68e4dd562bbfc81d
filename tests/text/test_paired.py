"""Pairs from files: a row each, the source as its title."""

import json

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.text.documents import Document
from foretext.text.paired import encode_pairs
from foretext.text.pairs import PairChoice, SplitPairs, pairs_of
from foretext.text.prepare import prepare
from foretext.text.randomness import example_keys
from foretext.text.store import Store

PAIRS = [("guten Tag", "good day"), ("ja", "yes"), ("was ist das", "what is this"), ("ja", "oh yes"), ("ja", "yes")]


def read(store: Store) -> set[tuple[str, str]]:
    source = SplitPairs(store, "title")
    rows = np.arange(len(source.lengths))
    found = source.read(rows, example_keys(1, 0, torch.from_numpy(rows)))
    queries, passages = ([store.tokenizer.decode(part.tolist()) for part in side.ids.split(side.lengths.tolist())]
                         for side in (found.queries, found.passages))
    return set(zip(queries, passages))


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl"])
def test_two_columns_become_pairs(form, tokenizer, tmp_path):
    file = tmp_path / f"pairs.{form}"
    if form == "jsonl":
        file.write_text("".join(json.dumps({"de": a, "en": b}) + "\n" for a, b in PAIRS))
    else:
        rows = [("de", "en"), *PAIRS] if form == "csv" else PAIRS
        file.write_text("".join(("\t" if form == "tsv" else ",").join(row) + "\n" for row in rows))
    names = {"title_field": "1", "text_field": "2"} if form == "tsv" else {"title_field": "de", "text_field": "en"}
    report = prepare(file, tmp_path / "store", tokenizer=tokenizer, pairs=True, workers=1, **names)
    store = Store.open(tmp_path / "store")
    assert store.pairs
    assert (report.counts["documents"], report.counts["rows"], report.counts["duplicates"]) == (4, 4, 1)
    assert {(a.replace(" ", ""), b.replace(" ", "")) for a, b in read(store)} == \
        {(spelled(tokenizer, a), spelled(tokenizer, b)) for a, b in PAIRS}
    assert len(pairs_of(store, 10, "all", 0.0, PairChoice(), usual="title").lengths) == 4


def spelled(tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode([text])[0]).replace(" ", "")


def test_long_sources_keep_their_end_and_long_targets_their_start(tokenizer):
    words = " ".join(f"ba{c} de" for c in "kimnopr" * 4)
    ids = tokenizer.encode([words])[0]
    arrays, counts = encode_pairs([Document("1", words, words)], tokenizer, 8)
    assert arrays["tokens"].tolist() == [*ids[-8:], *ids[:8]]
    assert arrays["title_lengths"].tolist() == [8] and arrays["row_lengths"].tolist() == [16]
    assert arrays["sentence_starts"].tolist() == [0, 8]
    assert counts["cut_sides"] == 2


def test_empty_sides_are_counted_and_the_border_counts(tokenizer):
    documents = [Document("1", "", "de ki"), Document("2", "ba de", "ki"), Document("3", "ba", "de ki"), Document("4", "ba", " ")]
    arrays, counts = encode_pairs(documents, tokenizer, 8)
    assert len(arrays["row_lengths"]) == 2
    assert counts == {"duplicates": 0, "too_short": 2, "cut_sides": 0}
    assert len(encode_pairs([], tokenizer, 8)[0]["tokens"]) == 0


def test_a_line_without_its_tab_is_named(tokenizer, tmp_path):
    (tmp_path / "pairs.tsv").write_text("ba\tde\nki\nlo\tmu\n" * 3)
    with pytest.raises(UserError, match=r"pairs.tsv:2"):
        prepare(tmp_path / "pairs.tsv", tmp_path / "store", tokenizer=tokenizer, pairs=True, title_field="1", text_field="2", workers=1)


def test_pairs_need_both_columns(tokenizer, tmp_path):
    (tmp_path / "pairs.tsv").write_text("ba\tde\n")
    with pytest.raises(UserError, match="--title-field"):
        prepare(tmp_path / "pairs.tsv", tmp_path / "store", tokenizer=tokenizer, pairs=True)
