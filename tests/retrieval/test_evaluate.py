"""evaluate(): every kind of retriever, every rule about who counts, and what it writes."""

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import Collection, read_collection
from foretext.retrieval.evaluate import evaluate, table
from foretext.retrieval.fusion import fuse
from foretext.retrieval.runs import read_run
from foretext.retrieval.vectors import Vectors
from foretext.summary import Policy

WORDS = ["river", "stone", "cloud", "maple", "copper", "violin", "lantern", "harbor", "meadow", "falcon", "ember", "saddle",
         "orchid", "thunder", "marble", "willow"]


class Hashed:
    """A real encoder without weights: each word adds a fixed random direction."""

    similarity = "cosine"

    def __init__(self, dimension=64):
        self.dimension, self.asked = dimension, []

    def encode(self, texts, kind):
        self.asked.append((kind, len(texts)))
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts):
            for word in text.lower().split():
                row += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(self.dimension, dtype=np.float32)
        return rows


def made_up(documents=300, queries=40, policy=None):
    """Queries are three words of one document each; that document is judged 2, its right neighbour 1."""
    rng = np.random.default_rng(0)
    texts = {f"d{i}": " ".join(rng.choice(WORDS, 8)) for i in range(documents)}
    asked = {f"q{i}": " ".join(rng.choice(texts[f"d{i}"].split(), 3, replace=False)) for i in range(queries)}
    judged = {f"q{i}": {f"d{i}": 2, f"d{i + 1}": 1} for i in range(queries)}
    collection = Collection.of("made-up", texts, asked, test=judged)
    if policy:
        collection.policy = policy
    return collection


@pytest.fixture(scope="module")
def collection():
    return made_up()


def test_encoder(collection):
    encoder = Hashed()
    found = evaluate(encoder, collection)
    assert encoder.asked == [("document", 300), ("query", 40)]
    means = found.means()
    assert list(means) == ["nDCG@10", "MRR@10", "Recall@100", "MAP"]
    assert 0.1 < means["nDCG@10"] < 1 and found.scores.query_ids == [f"q{i}" for i in range(40)]
    # By hand, for one query and one measure.
    vectors, query = encoder.encode(collection.documents, "document"), encoder.encode([collection.queries["q3"]], "query")[0]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
    ranks = {f"d{i}": 1 + int((cosines > cosines[i]).sum()) for i in (3, 4)}
    gains = sum(grade / math.log2(ranks[d] + 1) for d, grade in (("d3", 2), ("d4", 1)) if ranks[d] <= 10)
    assert found.scores.values["nDCG@10"][3] == pytest.approx(gains / (2 + 1 / math.log2(3)))
    assert list(found.run["q3"]) == sorted(found.run["q3"], key=found.run["q3"].get, reverse=True) and len(found.run["q3"]) == 300


def test_vectors_made_before(collection):
    encoder = Hashed()
    vectors = encoder.encode(collection.documents, "document")
    whole = evaluate(encoder, collection)
    encoder.asked.clear()
    order = np.random.default_rng(1).permutation(300)
    shards = Vectors([vectors[order[:100]], vectors[order[100:]]], [collection.document_ids[i] for i in order], {})
    for given in (vectors, [vectors[:7], vectors[7:]], shards):
        assert evaluate(encoder, collection, vectors=given).means() == pytest.approx(whole.means(), abs=1e-12)
    assert all(kind == "query" for kind, _ in encoder.asked)
    with pytest.raises(UserError, match="299 vectors for the 300 documents"):
        evaluate(encoder, collection, vectors=vectors[1:])
    with pytest.raises(UserError, match="ids are not those of made-up's corpus"):
        evaluate(encoder, collection, vectors=Vectors([vectors], ["x"] * 300, {}))


def test_bm25_run_and_fusion_in_one_table(collection, tmp_path):
    bm25 = evaluate(BM25(collection.documents), collection, name="BM25")
    dense = evaluate(Hashed(16), collection, name="hashed")
    fused = evaluate(fuse([bm25.run, dense.run]), collection, name="fused")
    assert bm25.options["k1"] == 0.9 and "k1" not in dense.options
    again = evaluate(bm25.run, collection)
    assert again.means() == bm25.means() and again.name == "run"
    lines = table([bm25, dense, fused], against=0, measure="MRR@10")
    assert lines[0].split()[:4] == ["nDCG@10", "MRR@10", "Recall@100", "MAP"] and "MRR@10 - that of BM25" in lines[0]
    assert [line.split()[0] for line in lines[2:5]] == ["BM25", "hashed", "fused"]
    assert f"{dense.means()['MRR@10'] - bm25.means()['MRR@10']:+.3f} [" in lines[3]
    assert len(table([bm25, dense])) == 4
    with pytest.raises(UserError, match="the BM25 index holds 2 documents, made-up 300"):
        evaluate(BM25(["river", "stone"]), collection)


def test_written_folder(collection, tmp_path):
    found = evaluate(Hashed(), collection, depth=100, name="my model")
    found.write(tmp_path / "out")
    value = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert value["scores"]["nDCG@10"]["mean"] == found.means()["nDCG@10"] and value["queries"] == 40
    assert value["scores"]["MAP"]["low"] < value["scores"]["MAP"]["mean"] < value["scores"]["MAP"]["high"]
    assert value["options"] == {"measures": ["nDCG@10", "MRR@10", "Recall@100", "MAP"], "depth": 100, "same_id": "drop",
                                "drop_missing_docs": False, "skip": [], "strip_ids": False}
    assert value["per_query"]["q3"]["MAP"] == found.scores.values["MAP"][3]
    rows = (tmp_path / "out" / "per-query.tsv").read_text().splitlines()
    assert rows[0] == "query-id\tnDCG@10\tMRR@10\tRecall@100\tMAP" and len(rows) == 41
    run, _ = read_run(tmp_path / "out" / "run.trec")
    assert evaluate(run, collection, depth=100).scores.values["MAP"].tolist() == found.scores.values["MAP"].tolist()
    assert " my-model\n" in (tmp_path / "out" / "run.trec").read_text()
    with pytest.raises(UserError, match="already exists"):
        found.write(tmp_path / "out")


def test_lines_for_people(collection):
    lines = evaluate(BM25(collection.documents), collection, name="BM25").lines()
    assert lines[0].startswith("BM25 on made-up, split test: 40 queries in ")
    assert lines[1].split()[0] == "nDCG@10" and lines[1].count(".") == 3


def test_queries_the_run_lacks_stay_in_the_mean(collection):
    full = evaluate(BM25(collection.documents), collection)
    half = {query: ranked for query, ranked in full.run.items() if int(query[1:]) % 2}
    found = evaluate(half, collection)
    assert len(found.scores.query_ids) == 40
    assert found.means()["MAP"] == pytest.approx(full.scores.values["MAP"][1::2].sum() / 40)
    assert found.notes.notes["query_not_in_run"] == 20
    assert any("query_not_in_run 20" in line for line in found.lines())
    with pytest.raises(UserError, match=r"the run has none of the judged queries \(judged: 'q0', in the run: 'other'\)"):
        evaluate({"other": {"d1": 1.0}}, collection)
    with pytest.raises(UserError, match="the query 'q0' is not in the run, but 'q0 ' is"):
        evaluate({"q0 ": {"d1": 1.0}, "q1": {"d1": 1.0}}, collection)
    with pytest.raises(UserError, match="query_not_in_run"):
        evaluate(half, made_up(policy=Policy(strict={"query_not_in_run"})))


def test_same_id():
    documents = {"a": "river stone", "b": "river cloud", "c": "maple"}
    collection = Collection.of("dup", documents, {"a": "river stone", "q": "maple"}, test={"a": {"b": 1}, "q": {"c": 1}})
    dropped = evaluate(BM25(collection.documents), collection, depth=1, measures=["MRR@1"])
    assert dropped.run == {"a": {"b": pytest.approx(dropped.run["a"]["b"])}, "q": {"c": pytest.approx(dropped.run["q"]["c"])}}
    assert dropped.means()["MRR@1"] == 1 and dropped.notes.notes["same_id"] == 1 and dropped.options["same_id"] == "drop"
    kept = evaluate(BM25(collection.documents), collection, measures=["MRR@10"], same_id="keep")
    assert kept.means()["MRR@10"] == 0.75 and "same_id" not in kept.notes.notes and kept.options["same_id"] == "keep"

    collection = Collection.of("dup", documents, {"a": "river"}, test={"a": {"a": 1, "b": 1}})
    with pytest.raises(UserError, match="document 'a' is judged relevant for the query 'a' of the same id.*choose same_id"):
        evaluate(BM25(collection.documents), collection)
    assert evaluate(BM25(collection.documents), collection, same_id="keep").means()["MAP"] == 1
    assert evaluate(BM25(collection.documents), collection, same_id="drop").means()["MAP"] == 0.5
    with pytest.raises(UserError, match="expected drop or keep, found 'perhaps'"):
        evaluate(BM25(collection.documents), collection, same_id="perhaps")


@pytest.mark.parametrize("skip, mean, queries", [((), 0.5, 2), (("no_relevant",), 1.0, 1)])
def test_no_relevant(skip, mean, queries):
    collection = Collection.of("c", {"a": "river", "b": "stone"}, {"q": "river", "p": "stone"}, test={"q": {"a": 1}, "p": {"b": 0}})
    collection.policy = Policy(skip=skip, max_skip_share=1)
    found = evaluate(BM25(collection.documents), collection)
    assert found.means()["MAP"] == mean and len(found.scores.query_ids) == queries
    assert found.options["skip"] == list(skip)
    assert (found.notes.skipped if skip else found.notes.notes)["no_relevant"] == 1


def test_missing_documents_stay_in_the_denominators():
    judged = {"q": {"a": 1, "gone": 1}}
    collection = Collection.of("c", {"a": "river", "b": "stone"}, {"q": "river"}, test=judged)
    found = evaluate(BM25(collection.documents), collection)
    assert found.means()["Recall@100"] == 0.5 and found.notes.notes["judged_doc_missing"] == 1
    found = evaluate(BM25(collection.documents), collection, drop_missing_docs=True)
    assert found.means()["Recall@100"] == 1 and found.options["drop_missing_docs"]


def test_cut_texts_are_counted(collection):
    encoder = Hashed()
    encoder.last_cut = (3, 120)
    assert evaluate(encoder, collection).notes.notes["too_long"] == 6
    assert any("3 documents, 120 tokens cut off" in line for line in evaluate(encoder, collection).lines())


def test_wrong_wishes(collection):
    with pytest.raises(UserError, match="no measure 'F1'"):
        evaluate(Hashed(), collection, measures=["F1"])
    with pytest.raises(UserError, match="Recall@100 needs 100 documents per query, but depth is 10"):
        evaluate(Hashed(), collection, depth=10)
    with pytest.raises(UserError, match="no judgements for the split 'dev'"):
        evaluate(Hashed(), collection, "dev")


@pytest.mark.skipif("FORETEXT_DATA" not in os.environ, reason="FORETEXT_DATA is not set")
def test_bm25_on_real_data_through_evaluate():
    collection = read_collection(Path(os.environ["FORETEXT_DATA"]) / "smart" / "cran")
    with pytest.raises(UserError, match="choose same_id"):  # queries and documents are numbered separately there
        evaluate(BM25(collection.documents), collection)
    found = evaluate(BM25(collection.documents), collection, same_id="keep")
    assert found.means()["nDCG@10"] == pytest.approx(0.404, abs=0.002)
