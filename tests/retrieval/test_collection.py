"""BEIR folders: what is read, what is counted, what stops."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest
import zstandard

from foretext.errors import UserError
from foretext.retrieval.collection import (
    Collection,
    judged_split,
    read_collection,
    read_corpus,
    read_queries,
    write_collection,
)
from foretext.summary import Policy


def put(path, *lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_bytes("".join(text + end for text in texts).encode())
    return path


def beir(folder, documents=("d1", "d2", "d3"), queries=("q1", "q2"), qrels=("q1\td1\t1", "q2\td2\t2")):
    put(folder / "corpus.jsonl", *({"_id": d, "title": "", "text": f"text of {d}"} for d in documents))
    put(folder / "queries.jsonl", *({"_id": q, "text": f"question {q}"} for q in queries))
    put(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", *qrels)
    return folder


def test_reads_a_beir_folder(tmp_path):
    beir(tmp_path / "tiny")
    put(tmp_path / "tiny" / "corpus.jsonl",
        {"_id": "d1", "title": "Title", "text": "body", "metadata": {"x": 1}},
        {"_id": "d2", "title": "", "text": "no title"},
        {"_id": "007", "text": "no title key"})
    collection = read_collection(tmp_path / "tiny")
    assert collection.name == "tiny"
    assert collection.document_ids == ["d1", "d2", "007"]
    assert collection.documents == ["Title body", "no title", "no title key"]
    assert collection.queries == {"q1": "question q1", "q2": "question q2"}
    assert collection.splits() == ["test"]
    split = judged_split(collection, "test")
    assert split.judgements == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    assert split.query_texts == ["question q1", "question q2"]
    with pytest.raises(UserError, match=r"no judgements for the split 'dev'; there are test$"):
        collection.qrels("dev")
    with pytest.raises(UserError, match="no judgements"):
        collection.qrels("../test")


def test_flagembedding_evaluation_folder(tmp_path):
    put(tmp_path / "corpus.jsonl", {"id": "d1", "title": "T", "text": "b"}, {"id": "d2", "text": "c"})
    put(tmp_path / "dev_queries.jsonl", {"id": "q1", "text": "which"})
    put(tmp_path / "dev_qrels.jsonl", {"qid": "q1", "docid": "d1", "relevance": 1})
    collection = read_collection(tmp_path, split="dev")
    assert collection.splits() == ["dev"]
    assert judged_split(collection, "dev").judgements == {"q1": {"d1": 1}}


@pytest.mark.parametrize("suffix, compress", [(".gz", gzip.compress), (".zst", zstandard.compress), (".xz", lzma.compress),
                                              (".bz2", bz2.compress)])
def test_compressed_and_cut_off(tmp_path, suffix, compress):
    beir(tmp_path)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        plain = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        (tmp_path / (name + suffix)).write_bytes(compress(plain))
    collection = read_collection(tmp_path)
    assert judged_split(collection, "test").query_ids == ["q1", "q2"]
    corpus = tmp_path / ("corpus.jsonl" + suffix)
    corpus.write_bytes(corpus.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"corpus\.jsonl\.\w+: the archive is cut off or damaged"):
        read_collection(tmp_path)


def test_lines_end_at_lf_only(tmp_path):
    text = "one\u2028two\u0085three\x0bfour\rfive"
    path = put(tmp_path / "corpus.jsonl", {"_id": "d", "text": text})
    _, documents, summary = read_corpus(path)
    assert documents == [text] and summary.lines == 1


NOTED = {
    "crlf": b'{"_id": "d1", "text": "a"}\r\n{"_id": "d2", "text": "b"}\r\n',
    "bom": b'\xef\xbb\xbf{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": "b"}\n',
    "nul": b'{"_id": "d1", "text": "a\0"}\n{"_id": "d2", "text": "b\\u0000"}\n',
    "blank_line": b'{"_id": "d1", "text": "a"}\n\n  \n{"_id": "d2", "text": "b"}',
    "null_text": b'{"_id": "d1", "title": null, "text": "a"}\n{"_id": "d2", "text": "b"}\n',
    "numeric_id": b'{"_id": "d1", "text": "a"}\n{"_id": 7, "text": "b"}\n',
    "duplicate_doc": b'{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": "b"}\n',
    "empty_doc": b'{"_id": "d1", "text": "a"}\n{"_id": "d2", "title": "", "text": " "}\n',
}


@pytest.mark.parametrize("reason", NOTED)
def test_noted_and_strict(tmp_path, reason):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(NOTED[reason])
    ids, documents, summary = read_corpus(path)
    assert len(ids) == 2 and ids[1] in ("d2", "7")
    assert documents[0] == "a" and documents[1].strip() in ("b", "")
    assert list(summary.notes) == [reason] and summary.notes[reason] in (1, 2)
    assert summary.first_examples[0][1] == reason
    assert any(reason in line for line in summary.report())
    with pytest.raises(UserError, match=rf"corpus\.jsonl:\d: .*\({reason}\)"):
        read_corpus(path, Policy(strict={reason}))


REFUSED = {
    "truncated_json": (b'{"_id": "d1", "te', r"corpus\.jsonl:3: expected one JSON object.*found '\{\"_id\": \"d1\", \"te'"),
    "missing_key": (b'{"_id": "d1", "body": "a"}', r":3: expected the key 'text', found the keys '_id', 'body'"),
    "text_type": (b'{"_id": "d1", "text": ["a"]}', r":3: expected a string under 'text', found '\[\"a\"\]'"),
    "non_utf8": (b'{"_id": "d1", "text": "\xff"}', r":3: expected UTF-8, found byte 0xff at byte 23"),
    "duplicate_doc": (b'{"_id": "x0", "text": "other"}', r":3: the id 'x0' has another text than on line 1"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_and_skipped(tmp_path, reason):
    bad, message = REFUSED[reason]
    path = tmp_path / "corpus.jsonl"
    good = [b'{"_id": "x%d", "text": "a"}' % i for i in range(30)]
    path.write_bytes(b"\n".join(good[:2] + [bad] + good[2:]))
    with pytest.raises(UserError, match=message):
        read_corpus(path)
    ids, _, summary = read_corpus(path, Policy(skip={reason}))
    assert len(ids) == 30 and summary.skipped == {reason: 1} and summary.accepted == 30


@pytest.mark.parametrize("record, reason", [({"text": "a"}, "missing_key"), ({"_id": "", "text": "a"}, "missing_key"),
                                            ({"_id": True, "text": "a"}, "text_type"), ([1], "truncated_json"),
                                            ({"_id": 1.5, "text": "a"}, "text_type")])
def test_ids_are_strings(tmp_path, record, reason):
    with pytest.raises(UserError, match=rf"corpus\.jsonl:1: .*\({reason}\)"):
        read_corpus(put(tmp_path / "corpus.jsonl", record))


def test_half_a_surrogate_pair_is_refused(tmp_path):
    with pytest.raises(UserError, match=r":1: expected Unicode text.*non_utf8"):
        read_corpus(put(tmp_path / "corpus.jsonl", '{"_id": "d", "text": "\\ud83d"}'))


def test_empty_and_repeated_queries(tmp_path):
    path = put(tmp_path / "queries.jsonl", {"_id": "a", "text": "x"}, {"_id": "a", "text": "x"}, {"_id": "b", "text": " "})
    with pytest.raises(UserError, match=r"queries\.jsonl:3: the query 'b' has no text.*empty_query"):
        read_queries(path)
    queries, summary = read_queries(path, Policy(skip={"empty_query"}, max_skip_share=0.5))
    assert queries == {"a": "x"} and summary.notes == {"duplicate_query": 1} and summary.skipped == {"empty_query": 1}
    with pytest.raises(UserError, match="1 of 2 records skipped .*max_skip_share"):
        read_queries(path, Policy(skip={"empty_query"}))


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_collection(tmp_path / "absent")
    with pytest.raises(UserError, match=r"found no corpus\.jsonl"):
        read_collection(tmp_path)
    with pytest.raises(UserError, match="no usable record in 1 lines"):
        read_corpus(put(tmp_path / "corpus.jsonl", ""))
    with pytest.raises(UserError, match="unknown reason 'crfl'"):
        Policy(skip={"crfl"})


def test_judged_document_missing(tmp_path):
    beir(tmp_path, qrels=("q1\td1\t1", "q1\tgone\t1", "q2\td2\t1"))
    split = judged_split(read_collection(tmp_path), "test")
    assert split.judgements["q1"] == {"d1": 1, "gone": 1}  # it stays in the denominators
    assert split.summary.notes["judged_doc_missing"] == 1 and split.summary.details["judged_doc_missing"] == ["'gone'"]
    split = judged_split(read_collection(tmp_path), "test", drop_missing_docs=True)
    assert split.judgements["q1"] == {"d1": 1} and split.summary.notes["drop_missing_docs"] == 1


def test_judged_query_missing(tmp_path):
    beir(tmp_path, qrels=("q1\td1\t1", "q9\td1\t1"))
    with pytest.raises(UserError, match=r"test\.tsv:3: the query 'q9' is judged, but not in the queries file"):
        judged_split(read_collection(tmp_path), "test")
    policy = Policy(skip={"judged_query_missing"}, max_skip_share=0.5)
    split = judged_split(read_collection(tmp_path, policy), "test")
    assert split.query_ids == ["q1"]
    assert split.summary.skipped == {"judged_query_missing": 1} and split.summary.notes == {"query_unjudged": 1}


@pytest.mark.parametrize("line, message", [("q1\td1 \t1", r":2: the id 'd1 ' is not in the corpus, but 'd1' is.*id_trim"),
                                           (" q1\td1\t1", r":2: the id ' q1' is not in the queries file, but 'q1' is")])
def test_ids_that_match_only_trimmed(tmp_path, line, message):
    beir(tmp_path, qrels=(line,))
    with pytest.raises(UserError, match=message):
        judged_split(read_collection(tmp_path), "test")
    collection = read_collection(tmp_path, strip_ids=True)
    assert judged_split(collection, "test").judgements == {"q1": {"d1": 1}}
    assert collection.qrels("test").summary.notes["strip_ids"] == 1


def test_blanks_in_ids_are_legal_in_json_and_tab_files(tmp_path):
    beir(tmp_path, documents=("a b", "ab"), qrels=("q1\ta b\t1",))
    assert judged_split(read_collection(tmp_path), "test").judgements == {"q1": {"a b": 1}}


def test_from_memory_and_back(tmp_path):
    collection = Collection.of("mine", {"d\u00e9": "text\u2028here", "d2": ""}, {"q": "what"}, test={"q": {"d\u00e9": 2, "d2": 0}})
    write_collection(tmp_path / "out", collection)
    again = read_collection(tmp_path / "out")
    assert (again.document_ids, again.documents, again.queries) == (["d\u00e9", "d2"], ["text\u2028here", ""], {"q": "what"})
    assert again.qrels("test").grades == {"q": {"d\u00e9": 2, "d2": 0}}
    with pytest.raises(UserError, match="already exists"):
        write_collection(tmp_path / "out", collection)


@pytest.mark.skipif("FORETEXT_DATA" not in os.environ, reason="FORETEXT_DATA is not set")
@pytest.mark.parametrize("name, split, documents, queries, pairs", [
    ("beir/scifact", "test", 5183, 300, 339), ("beir/nfcorpus", "test", 3633, 323, 12334), ("smart/cran", "test", 1400, 225, 1837),
])
def test_real_collections(name, split, documents, queries, pairs):
    collection = read_collection(Path(os.environ["FORETEXT_DATA"]) / name)
    asked = judged_split(collection, split)
    assert (len(collection.documents), len(asked.query_ids)) == (documents, queries)
    assert sum(map(len, asked.judgements.values())) == pairs
