"""Judgements in every shape, and what is wrong with some."""

import pytest

from foretext.errors import UserError
from foretext.retrieval.qrels import read_qrels, write_qrels
from foretext.summary import Policy

EXPECTED = {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": 2}}

SHAPES = {  # file name, text, reasons noted
    "beir": ("test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n", []),
    "beir, CRLF": ("test.tsv", "query-id\tcorpus-id\tscore\r\nq1\td1\t1\r\nq1\td2\t0\r\nq2\td1\t2\r\n", ["crlf"]),
    "beir, byte-order mark": ("test.tsv", "\ufeffquery-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2", ["bom"]),
    "beir, no header": ("test.tsv", "q1\td1\t1\nq1\td2\t0\nq2\td1\t2\n", ["no_header"]),
    "beir, other names": ("test.tsv", "qid\tpid\trelevance\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n", ["header_names"]),
    "beir, other order": ("test.tsv", "score\tcorpus-id\tquery-id\n1\td1\tq1\n0\td2\tq1\n2\td1\tq2\n", ["header_names"]),
    "beir, integral decimals": ("test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1.0\nq1\td2\t0.0\nq2\td1\t2\n", []),
    "trec, blanks": ("cran.qrels", "q1 0 d1 1\nq1 0  d2 0\nq2 0 d1 2 \n", []),
    "trec, tabs": ("qrels.txt", "q1\t0\td1\t1\nq1\t0\td2\t0\nq2\t0\td1\t2\n", []),
    "ms marco": ("qrels.dev.tsv", "q1\t0\td1\t1\nq1\t0\td2\t0\nq2\t0\td1\t2\n", []),
    "trec in a beir folder": ("test.tsv", "q1 0 d1 1\nq1 0 d2 0\nq2 0 d1 2\n", ["column_count"]),
    "trec with a header": ("x.qrels", "qid iter docid rel\nq1 0 d1 1\nq1 0 d2 0\nq2 0 d1 2\n", ["header_names"]),
    "three columns in .qrels": ("x.qrels", "q1 d1 1\nq1 d2 0\nq2 d1 2\n", ["column_count"]),
    "json lines": ("test.jsonl", '{"query-id": "q1", "corpus-id": "d1", "score": 1}\n{"query_id": "q1", "corpus_id": "d2", "rel": 0}'
                   '\n{"qid": "q2", "doc_id": "d1", "relevance": "2"}\n', ["json_qrels"]),
    "json lines, other keys": ("test.jsonl", '{"query": "q1", "pid": "d1"}\n{"qid": "q1", "docid": "d2", "label": 0.0}\n'
                               '{"qid": "q2", "docid": "d1", "score": 2}', ["json_qrels", "score_missing"]),
    "json lines in .tsv": ("test.tsv", ' {"qid": "q1", "docid": "d1", "score": 1}\n\n{"qid": "q1", "docid": "d2", "score": 0}\n'
                           '{"qid": "q2", "docid": "d1", "score": 2}', ["blank_line", "json_qrels"]),
    "repeated": ("test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n", ["duplicate_judgement"]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(tmp_path, shape):
    name, text, reasons = SHAPES[shape]
    (tmp_path / name).write_bytes(text.encode())
    qrels = read_qrels(tmp_path / name)
    assert qrels.grades == EXPECTED
    assert sorted(qrels.summary.notes) == reasons
    assert qrels.summary.accepted == 3 and not qrels.summary.skipped
    for reason in reasons:
        with pytest.raises(UserError, match=rf"{name}:\d: .*\({reason}\)"):
            read_qrels(tmp_path / name, Policy(strict={reason}))


def test_numeric_json_ids_and_missing_grade_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"qid": 1, "docid": 22}\n{"qid": "01", "docid": "22"}\n')
    qrels = read_qrels(tmp_path / "a.jsonl")
    assert qrels.grades == {"1": {"22": 1}, "01": {"22": 1}} and qrels.summary.notes["numeric_id"] == 2
    (tmp_path / "b.tsv").write_text("query-id\tcorpus-id\nq\td\n")
    assert read_qrels(tmp_path / "b.tsv").grades == {"q": {"d": 1}}


def test_ids_keep_their_blanks_and_grades_their_sign(tmp_path):
    (tmp_path / "t.tsv").write_text("query-id\tcorpus-id\tscore\nq 1\t d1\t-2\nq 1\td 2\t1\n")
    qrels = read_qrels(tmp_path / "t.tsv")
    assert qrels.grades == {"q 1": {" d1": -2, "d 2": 1}} and qrels.summary.notes == {"negative_grade": 1}


HEAD = "query-id\tcorpus-id\tscore\nq1\td1\t1\n"
REFUSED = {
    "column_count": (HEAD + "q1\td2\n", r"t\.tsv:3: expected 3 tab-separated columns.*found 2 in, found 'q1\\td2'"),
    "score_value": (HEAD + "q1\td2\t0.5\n", r"t\.tsv:3: expected a whole number as the grade, found '0\.5'"),
    "score_value nan": (HEAD + "q1\td2\tnan\n", r"t\.tsv:3: expected a whole number"),
    "score_value inf": (HEAD + "q1\td2\tinf\n", r"t\.tsv:3: expected a whole number"),
    "score_value _": (HEAD + "q1\td2\t1_0\n", r"t\.tsv:3: expected a whole number"),
    "duplicate_judgement": (HEAD + "q1\td1\t2\n", r"t\.tsv:3: query 'q1', document 'd1' has grade 2 here, but 1 on line 2"),
    "missing_key": (HEAD + "\td1\t2\n", r"t\.tsv:3: expected a query id and a document id"),
    "blank_in_id": ("q1 0 d1 1\nq1 0 d3 1\nq 1 0 d2 1\n", r"t\.tsv:3: expected 4 white-space.*separate the columns by single tabs"),
    "non_utf8": (HEAD.encode() + b"q1\td\xe9\t1\n", r"t\.tsv:3: expected UTF-8"),
    "truncated_json": ('{"qid": "q1", "docid": "d1"}\n{"qid": "q1", "doc', r"t\.tsv:2: expected one JSON object"),
    "missing_key json": ('{"qid": "q1", "docid": "d1"}\n{"qid": "q1", "dog": "d"}', r"t\.tsv:2: .*'pid', found the keys 'qid', 'dog'"),
    "score_value bool": ('{"qid": "q1", "docid": "d1"}\n{"qid": "q1", "docid": "d", "rel": true}', r"t\.tsv:2: expected a whole"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_skipped(tmp_path, case):
    text, message = REFUSED[case]
    path, reason = tmp_path / "t.tsv", case.split()[0]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_qrels(path)
    assert f"({reason})" in str(caught.value) and "\n" not in str(caught.value)
    qrels = read_qrels(path, Policy(skip={reason}, max_skip_share=0.5))
    assert qrels.grades["q1"]["d1"] == 1 and qrels.summary.skipped == {reason: 1}


@pytest.mark.parametrize("text, message", [
    ("query-id\tcorpus-id\tstars\nq\td\t1\n", r"t\.tsv:1: .*header with the names.*found 'stars'"),
    ("q1\td1\tgood\nq1\td2\tbad\n", r"t\.tsv:1: expected a whole number as the grade, or a header"),
    ("just words here in it\nand some more of it\n", r"t\.tsv:1: expected judgements of 3 or 4 columns, but most lines have 5"),
    ("", r"t\.tsv: no usable record in 0 lines"),
])
def test_no_judgements_at_all(tmp_path, text, message):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_qrels(tmp_path / "t.tsv")
    with pytest.raises(UserError, match=r"absent\.tsv: no such file"):
        read_qrels(tmp_path / "absent.tsv")


def test_write_and_read(tmp_path):
    judgements = {"q 1": {"d1": 1, "d\u00e9": -1}, "q2": {"d1": 2}}
    write_qrels(tmp_path / "q.tsv", judgements)
    assert (tmp_path / "q.tsv").read_bytes().startswith(b"query-id\tcorpus-id\tscore\nq 1\td1\t1\n")
    assert read_qrels(tmp_path / "q.tsv").grades == judgements
    with pytest.raises(UserError, match="already exists"):
        write_qrels(tmp_path / "q.tsv", judgements)
    with pytest.raises(UserError, match="holds a tab"):
        write_qrels(tmp_path / "p.tsv", {"q\t": {"d": 1}})
    assert not (tmp_path / "p.tsv").exists()
