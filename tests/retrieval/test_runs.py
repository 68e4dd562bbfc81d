"""Runs on disk: three shapes, order, defects, and the way back."""

import pytest

from foretext.errors import UserError
from foretext.retrieval.runs import ranking, read_run, write_columns, write_run
from foretext.summary import Policy


def put(path, text):
    path.write_bytes(text.encode())
    return path


SHAPES = {
    "trec": ("q1 Q0 d2 1 2.5 tag\nq1 Q0 d1 2 -1e-3 tag\nq2 Q0 d1 1 7 tag\n", {"q1": {"d2": 2.5, "d1": -0.001}, "q2": {"d1": 7}}),
    "trec, tabs, CRLF": ("q 1\tQ0\td2\t1\t2.5\tt\r\nq 1\tQ0\td1\t2\t1\tt\r\n", {"q 1": {"d2": 2.5, "d1": 1}}),
    "trec, ranks from 0": ("q Q0 d2 0 2 t\nq Q0 d1 1 1 t\n", {"q": {"d2": 2, "d1": 1}}),
    "qid docid rank score": ("q\td2\t1\t2.5\nq\td1\t2\t1.5\n", {"q": {"d2": 2.5, "d1": 1.5}}),
    "qid docid score": ("q\td1\t1.5\nq\td2\t2.5\n", {"q": {"d1": 1.5, "d2": 2.5}}),
    "qid docid rank": ("q\td1\t1\nq\td2\t2\np\td2\t1\n", {"q": {"d1": -1, "d2": -2}, "p": {"d2": -1}}),
    "qid docid score, nearly ranks": ("q\td1\t1\nq\td2\t3\n", {"q": {"d1": 1, "d2": 3}}),
    "brackets": ("q\td1\t[1.5]\nq\td2\t[2.5]\n", {"q": {"d1": 1.5, "d2": 2.5}}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(tmp_path, shape):
    text, expected = SHAPES[shape]
    run, summary = read_run(put(tmp_path / "run.txt", text))
    assert run == expected
    assert "rank_order" not in summary.notes
    assert summary.notes.get("score_value", 0) == (2 if shape == "brackets" else 0)
    assert summary.notes.get("crlf", 0) == (2 if "CRLF" in shape else 0)


def test_third_column_can_be_told(tmp_path):
    path = put(tmp_path / "run.txt", "q\td1\t1\nq\td2\t2\n")
    assert read_run(path, third_column="score")[0] == {"q": {"d1": 1, "d2": 2}}
    path = put(tmp_path / "other.txt", "q\td1\t2\nq\td2\t1\n")
    assert read_run(path, third_column="rank")[0] == {"q": {"d1": -2, "d2": -1}}
    with pytest.raises(UserError, match="expected rank or score, found 'place'"):
        read_run(path, third_column="place")


def test_order_is_by_score_then_by_id_descending(tmp_path):
    run, summary = read_run(put(tmp_path / "r", "q Q0 a 1 1.0 t\nq Q0 b 2 1.0 t\nq Q0 c 3 9 t\n"))
    assert ranking(run["q"]) == ["c", "b", "a"]  # scores win over the rank column, ties as in trec_eval
    assert summary.notes == {"rank_order": 2}  # b is at its place, by chance
    assert ranking({"10": 1.0, "9": 1.0}) == ["9", "10"]  # ids are compared as text


REFUSED = {
    "score_value": ("q Q0 d1 1 2 t\nq Q0 d2 2 nan t\n", r"r:2: expected a finite number as the score, found 'nan'"),
    "score_value inf": ("q\td1\t3.5\nq\td2\t-inf\n", r"r:2: expected a finite"),
    "score_value word": ("q\td1\t3.5\nq\td2\tgood\n", r"r:2: expected a finite"),
    "duplicate_in_run": ("q\td1\t3.5\nq\td1\t2\n", r"r:2: document 'd1' was already ranked for query 'q'"),
    "column_count": ("q\td1\t3.5\nq\td1\n", r"r:2: expected 3 tab-separated columns"),
    "blank_in_id": ("q Q0 d1 1 2 t\nq Q0 d2 2 2 t\nq Q0 d 3 3 2 t\n", r"r:3: .*separate the columns by single tabs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_skipped(tmp_path, case):
    text, message = REFUSED[case]
    path, reason = put(tmp_path / "r", text), case.split()[0]
    with pytest.raises(UserError, match=message):
        read_run(path)
    run, summary = read_run(path, Policy(skip={reason}, max_skip_share=0.5))
    assert summary.skipped == {reason: 1} and "d1" in run["q"]


def test_strip_ids(tmp_path):
    run, summary = read_run(put(tmp_path / "r", "q \td1\t3.5\nq\t d2\t2\n"), strip_ids=True)
    assert run == {"q": {"d1": 3.5, "d2": 2}} and summary.notes["strip_ids"] == 2


RUN = {"q1": {"d1": 1 / 3, "d2": 2e10 / 3, "d3": 1 / 3, "d4": -1e-7}, "q2": {"d\u00e9": 0.0}}


def test_written_runs_hold_nine_digits_and_never_rise(tmp_path):
    write_run(tmp_path / "run.trec", RUN, tag="mine")
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert lines[:3] == ["q1 Q0 d2 1 6.66666667e+09 mine", "q1 Q0 d3 2 0.333333333 mine", "q1 Q0 d1 3 0.333333333 mine"]
    again, summary = read_run(tmp_path / "run.trec")
    assert not summary.notes
    for query in RUN:
        assert ranking(again[query]) == ranking(RUN[query])
        assert again[query] == pytest.approx(RUN[query], rel=1e-8)
    with pytest.raises(UserError, match="already exists"):
        write_run(tmp_path / "run.trec", RUN)
    with pytest.raises(UserError, match="one word"):
        write_run(tmp_path / "other", RUN, tag="two words")


def test_ids_with_blanks_are_refused_or_escaped(tmp_path):
    run = {"q 1": {"50%": 2.0, "tab\there": 1.0, "no\u00a0break": 0.5}, "q%201": {"50%": 1.0}}
    with pytest.raises(UserError, match=r"the id 'q 1' holds white space.*escape_ids"):
        write_run(tmp_path / "r", run)
    assert not (tmp_path / "r").exists()
    write_run(tmp_path / "r", run, escape_ids=True)
    assert (tmp_path / "r").read_text().startswith("q%201 Q0 50%25 1 2 foretext\n")
    assert "q%201\tq 1\n" in (tmp_path / "r.idmap.tsv").read_text()
    assert read_run(tmp_path / "r")[0] == run
    write_run(tmp_path / "r", {"q": {"d": 1.0}}, overwrite=True)
    assert not (tmp_path / "r.idmap.tsv").exists()
    with pytest.raises(UserError, match="holds a line end"):
        write_run(tmp_path / "s", {"q\n": {"d": 1.0}}, escape_ids=True)


@pytest.mark.parametrize("rank", [False, True])
def test_three_and_four_columns(tmp_path, rank):
    run = {"q 1": {"d1": 2.5, "d2": 1.25}, "q2": {"d2": 3.0}}
    write_columns(tmp_path / "r.tsv", run, rank)
    assert (tmp_path / "r.tsv").read_text().split("\n")[0] == ("q 1\td1\t1\t2.5" if rank else "q 1\td1\t2.5")
    assert read_run(tmp_path / "r.tsv")[0] == run
    with pytest.raises(UserError, match="holds a tab"):
        write_columns(tmp_path / "s.tsv", {"q\t": {"d": 1.0}}, rank)
