"""Encode, index, search: whole, in shards and on several processes they find the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.interop.export import export
from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.retrieval import embed
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.runs import read_run
from foretext.retrieval.vectors import open_vectors
from foretext.text.corpus import Document
from foretext.verbs.search import Searcher, build, encode, join, search, search_file
from tests.conftest import made_up_texts
from tests.processes import together

CORPUS = [Document(f"doc {i}", f"Title {i}" if i % 3 else "", text) for i, text in enumerate(made_up_texts(90, seed=5))]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer) -> Path:
    torch.manual_seed(0)
    encoder = Encoder(preset("bert-tiny", tokenizer.size, width=32, max_len=48))
    folder = tmp_path_factory.mktemp("model") / "export"
    export(TextEncoder(encoder, tokenizer, "mean"), folder)
    return folder


@pytest.fixture(scope="module")
def index(model, tmp_path_factory) -> Path:
    return encode(model, iter(CORPUS), tmp_path_factory.mktemp("encoded") / "index")


@pytest.fixture(scope="module")
def queries(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "queries.jsonl"
    path.write_text("".join(json.dumps({"_id": f"q{i}", "text": " ".join(CORPUS[i].text.split()[:5])}) + "\n" for i in range(20)))
    return path


def test_each_document_finds_itself_with_its_own_text(index):
    for document, hits in zip(CORPUS, search(index, [f"{d.title} {d.text}".strip() for d in CORPUS], k=3)):
        assert document.text in {hit.text for hit in hits}  # made-up texts may repeat
        assert all((hit.title, hit.text) == (d.title, d.text) for hit in hits for d in CORPUS if d.id == hit.id)


def test_vectors_held_for_many_searches_find_the_same(index):
    texts = [document.text for document in CORPUS[:20]]
    for ours, expected in zip(Searcher(index, hold=True).find(texts, 7), Searcher(index).find(texts, 7)):
        np.testing.assert_array_equal(ours, expected)


def test_a_finished_folder_is_left_alone(model, index):
    small = ("model.json", "manifest.json")
    before = {path: path.stat().st_mtime_ns for path in index.rglob("*") if path.is_file() and path.name not in small}
    encode(model, CORPUS, index)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_encoding_reads_documents_as_a_stream(model, tmp_path, monkeypatch):
    """No more of the documents is read than the chunk that is being embedded."""
    read, seen = [], []

    def documents():
        for document in CORPUS:
            read.append(document.id)
            yield document

    original = embed._embed_chunk
    monkeypatch.setattr(embed, "_embed_chunk", lambda model, ids, *rest: (seen.append(len(read)), original(model, ids, *rest)))
    monkeypatch.setattr(embed.encode_corpus, "__kwdefaults__", embed.encode_corpus.__kwdefaults__ | {"chunk": 16})
    folder = encode(model, documents(), tmp_path / "index")
    assert seen == [16, 32, 48, 64, 80, 90]
    assert [json.loads(line)["_id"] for line in (folder / "documents.jsonl").read_text().splitlines()] == [d.id for d in CORPUS]


def test_shards_in_any_order_fill_one_folder(model, index, tmp_path, monkeypatch):
    monkeypatch.setattr(embed.encode_corpus, "__kwdefaults__", embed.encode_corpus.__kwdefaults__ | {"chunk": 16})
    for part in (2, 0, 1):
        encode(model, CORPUS, tmp_path / "parts", shard=(part, 3))
    parts, whole = open_vectors(tmp_path / "parts"), open_vectors(index)
    assert [len(shard) for shard in parts.shards] == [32, 32, 26]
    rows = {name: vector for name, vector in zip(parts.ids, np.concatenate(parts.shards))}
    np.testing.assert_array_equal(np.stack([rows[name] for name in whole.ids]), whole.shards[0])
    asked = [d.text for d in CORPUS[:10]]
    assert search(tmp_path / "parts", asked, 5) == search(index, asked, 5)
    for hits in search(tmp_path / "parts", asked, 5, hybrid=True):
        assert all(hit.text == CORPUS[int(hit.id.split()[1])].text for hit in hits)
    assert BM25.load(tmp_path / "parts" / "bm25").size == 90
    with pytest.raises(UserError, match="this call makes 1 of 3 parts"):
        encode(model, CORPUS, tmp_path / "other", shard=(0, 3), index="hnsw")


def test_search_in_shards_joins_to_the_search_of_all(index, queries, tmp_path):
    search_file(index, queries, tmp_path / "whole.trec", k=7)
    for part in range(3):
        search_file(index, queries, tmp_path / f"{part}.trec", k=7, shard=(part, 3))
    join(index, [tmp_path / f"{part}.trec" for part in (2, 0, 1)], tmp_path / "joined.trec", k=7)
    whole = read_run(tmp_path / "whole.trec")[0]
    assert read_run(tmp_path / "joined.trec")[0] == whole
    assert {len(ranked) for ranked in whole.values()} == {7}
    with pytest.raises(UserError, match="--hybrid fuses whole rankings"):
        search_file(index, queries, tmp_path / "x", shard=(0, 3), hybrid=True)
    (tmp_path / "foreign.trec").write_text("q1 Q0 nobody 1 0.5 x\n")
    with pytest.raises(UserError, match="the document 'nobody' is not in"):
        join(index, [tmp_path / "foreign.trec"], tmp_path / "x")


def test_two_processes_encode_and_search_as_one(model, index, queries, tmp_path):
    with open(tmp_path / "corpus.jsonl", "w") as file:
        file.writelines(json.dumps({"_id": d.id, "title": d.title, "text": d.text}) + "\n" for d in CORPUS)
    together(f"""
from foretext.text.corpus import read_documents
from foretext.verbs.search import encode
from foretext.retrieval.embed import encode_corpus
encode_corpus.__kwdefaults__["chunk"] = 16
encode({str(model)!r}, read_documents({str(tmp_path / "corpus.jsonl")!r}), {str(tmp_path / "two")!r})
""")
    together(f"""
from foretext.verbs.search import search_file
search_file({str(tmp_path / "two")!r}, {str(queries)!r}, {str(tmp_path / "two.trec")!r}, k=9)  # rows 0-44 of shards of 48 and 42, the rest
""")
    search_file(index, queries, tmp_path / "one.trec", k=9)
    assert read_run(tmp_path / "two.trec")[0] == read_run(tmp_path / "one.trec")[0]
    assert [len(shard) for shard in open_vectors(tmp_path / "two").shards] == [48, 42]
    assert (tmp_path / "two" / "documents.jsonl").read_text() == (index / "documents.jsonl").read_text()


@pytest.mark.parametrize("hybrid", [False, True])
def test_an_index_is_used_and_scores_stay_exact(model, tmp_path, hybrid):
    pytest.importorskip("faiss")
    folder = encode(model, CORPUS, tmp_path / "index", index="hnsw")
    asked = [d.text for d in CORPUS[:5]]
    assert Searcher(folder).index.settings["kind"] == "hnsw" and Searcher(folder, exact=True).index is None
    assert search(folder, asked, 5, hybrid) == search(folder, asked, 5, hybrid, exact=True)  # so few that the graph finds all
    with pytest.raises(UserError, match="ann already exists"):
        build(folder, "ivfflat")
    assert "ivfflat over 90 vectors" in build(folder, "ivfflat", overwrite=True)[0]
    encode(model, CORPUS[:80], folder, overwrite=True)
    with pytest.raises(UserError, match="made of other vectors; make it again with"):
        Searcher(folder)


def test_what_is_missing_is_said(tmp_path, index):
    with pytest.raises(UserError, match="nothing to search here"):
        search(tmp_path, ["x"])
    (tmp_path / "model.json").write_text((index / "model.json").read_text())
    with pytest.raises(UserError, match="found no vectors"):
        search(tmp_path, ["x"])
