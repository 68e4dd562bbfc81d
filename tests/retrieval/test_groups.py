"""Training groups: every format read from a file in it, what is written is read again, and what defects do."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from foretext.errors import UserError
from foretext.retrieval.groups import Group, Groups, Listed, read_groups, text_id, write_groups
from foretext.summary import Policy


def lines(path: Path, *records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def shape(groups: Groups) -> list:
    """Texts instead of ids: what a group is, whatever its passages are called."""
    text = groups.passages
    return [(g.query, [text[e.id] for e in g.positives], [text[e.id] for e in g.negatives]) for g in groups.groups]


def notes(groups: Groups) -> dict[str, int]:
    return {reason: count for summary in groups.summaries for reason, count in summary.notes.items()}


FLAG = {"query": "ba", "pos": ["de", "ki"], "neg": ["lo", "mu"], "pos_scores": [3, 2.5], "neg_scores": [1, -1]}


def test_flagembedding(tmp_path):
    path = lines(tmp_path / "train.jsonl", FLAG | {"prompt": "find: "}, {"query": "na", "pos": ["po"]}, "")
    groups = read_groups(path)
    assert groups.format == "flagembedding"
    assert shape(groups) == [("ba", ["de", "ki"], ["lo", "mu"]), ("na", ["po"], [])]
    assert [e.score for e in groups.groups[0].positives + groups.groups[0].negatives] == [3, 2.5, 1, -1]
    assert groups.groups[0].prompt == "find: " and groups.groups[0].query_id == text_id("ba")
    assert notes(groups) == {"blank_line": 1}
    report = "\n".join(groups.report())
    assert "read as flagembedding" in report and "query" in report and "positive" in report and "'lo'" in report


def test_compressed(tmp_path):
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write(json.dumps(FLAG) + "\n")
    assert len(read_groups(tmp_path / "train.jsonl.gz")) == 1


@pytest.mark.parametrize("key", ["text", "document_text"])
def test_tevatron(tmp_path, key):
    corpus = lines(tmp_path / "corpus.jsonl", {"docid": "1", key: "de"}, {"docid": "07", key: "ki", "title": "Ki"})
    path = lines(tmp_path / "train.jsonl", {"query_id": "q", "query_text": "ba", "positive_document_ids": ["1"],
                                            "negative_document_ids": ["07"], "query_image": None})
    groups = read_groups(path, corpus=corpus)
    assert groups.format == "tevatron" and groups.groups[0].query_id == "q"
    assert shape(groups) == [("ba", ["de"], ["Ki ki"])]
    with pytest.raises(UserError, match="corpus"):
        read_groups(path)
    lines(path, {"query_id": "q", "query_text": "ba", "query_image": "cat.png", "positive_document_ids": ["1"]})
    with pytest.raises(UserError, match="image"):
        read_groups(path, corpus=corpus)


def test_tevatron_legacy(tmp_path):
    path = lines(tmp_path / "train.jsonl", {
        "query_id": "q", "query": "ba", "positive_passages": [{"docid": "1", "title": "De", "text": "de"}],
        "negative_passages": [{"docid": "2", "text": "ki"}, {"docid": "3", "title": "", "text": "lo"}]})
    groups = read_groups(path)
    assert groups.format == "tevatron-legacy"
    assert shape(groups) == [("ba", ["De de"], ["ki", " lo"])]  # a title key joins, also when it is empty
    assert [e.id for e in groups.groups[0].negatives] == ["2", "3"]


COLUMNS = [{"sentence": "ba", "answer": "de", "no_1": "lo", "no_2": "mu"}, {"sentence": "na", "answer": "po", "no_1": "ra", "no_2": "se"}]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_sentence_transformers_columns_in_order(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    if suffix == "jsonl":
        lines(path, *COLUMNS)
    elif suffix == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS[0])
            writer.writeheader()
            writer.writerows(COLUMNS)
    else:
        pa.parquet.write_table(pa.Table.from_pylist(COLUMNS), path)
    groups = read_groups(path)
    assert groups.format == "sentence-transformers"
    assert shape(groups) == [("ba", ["de"], ["lo", "mu"]), ("na", ["po"], ["ra", "se"])]
    named = read_groups(path, columns={"anchor": "answer", "positive": "sentence", "negative_1": "no_2"})
    assert shape(named)[0] == ("de", ["ba"], ["mu"])
    with pytest.raises(UserError, match="no_9"):
        read_groups(path, columns={"anchor": "answer", "positive": "no_9"})


def test_sentence_transformers_margins_labels_scores(tmp_path):
    path = lines(tmp_path / "margin.jsonl", {"a": "ba", "p": "de", "n": "lo", "label": 2.5},
                 {"a": "na", "p": "po", "n": "ra", "label": [1]})
    scores = [[e.score for e in g.positives + g.negatives] for g in read_groups(path).groups]
    assert scores == [[0, -2.5], [0, -1]]  # the margin is what they are apart
    path = lines(tmp_path / "class.jsonl", {"a": "ba", "b": "de", "label": 1}, {"a": "ba", "b": "lo", "label": 0},
                 {"a": "na", "b": "x", "label": 0})
    groups = read_groups(path, policy=Policy(max_skip_share=0.5))
    assert shape(groups) == [("ba", ["de"], ["lo"])]
    assert groups.summaries[0].skipped["no_positive"] == 1
    with pytest.raises(UserError, match="graded pair"):
        read_groups(lines(tmp_path / "score.jsonl", {"a": "ba", "b": "de", "score": 0.4}))


def test_msmarco_triples(tmp_path):
    path = lines(tmp_path / "triples.train.tsv", "ba\tde\tlo", "ba\tde\tmu", "na\tpo\tra")
    assert shape(read_groups(path)) == [("ba", ["de"], ["lo", "mu"]), ("na", ["po"], ["ra"])]
    lines(path, "ba\tde\tlo", "ba\tde\tm\tu", *["na\tpo\tra"] * 30)
    with pytest.raises(UserError, match=r"triples.train.tsv:2: .*extra_tab"):
        read_groups(path)
    assert len(read_groups(path, policy=Policy(skip={"extra_tab"}))) == 2


@pytest.fixture
def msmarco(tmp_path):
    lines(tmp_path / "collection.tsv", "0\tde", "1\tki", "2\tlo", "3\tmu")
    lines(tmp_path / "queries.train.tsv", "10\tba", "11\tna")
    lines(tmp_path / "qrels.train.tsv", "10\t0\t0\t1", "11\t0\t1\t1")
    return tmp_path


def test_msmarco_folder(msmarco):
    groups = read_groups(msmarco)
    assert groups.format == "msmarco"
    assert shape(groups) == [("ba", ["de"], []), ("na", ["ki"], [])]
    lines(msmarco / "qidpidtriples.train.full.tsv", "10\t0\t2", "10\t0\t3")
    assert shape(read_groups(msmarco))[0] == ("ba", ["de"], ["lo", "mu"])
    lines(msmarco / "top1000.train.tsv", "11\t1\tna\tki", "11\t3\tna\tmu")
    assert shape(read_groups(msmarco))[1] == ("na", ["ki"], ["mu"])  # a judged candidate is no negative


def test_msmarco_documents(msmarco):
    (msmarco / "collection.tsv").unlink()
    lines(msmarco / "msmarco-docs.tsv", "0\thttp://a\tTi\tde", "1\thttp://b\t\tki")
    assert shape(read_groups(msmarco)) == [("ba", ["Ti de"], []), ("na", ["ki"], [])]


@pytest.fixture
def beir(tmp_path):
    lines(tmp_path / "corpus.jsonl", *({"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(["de", "ki", "lo", "mu", "de"])))
    lines(tmp_path / "queries.jsonl", {"_id": "q0", "text": "ba"}, {"_id": "q1", "text": "na"})
    lines(tmp_path / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore", "q0\td0\t1", "q0\td1\t1", "q0\td2\t0", "q1\td3\t2")
    return tmp_path


def test_beir_and_negatives_and_scores(beir):
    assert shape(read_groups(beir)) == [("ba", ["de", "ki"], []), ("na", ["mu"], [])]
    negatives = lines(beir / "negatives.tsv", "q0\td2,d3,d3", "q1\td3,d0", "q0\td4,d1", "q2\t")
    groups = read_groups(beir, negatives=negatives)
    assert [[e.id for e in g.negatives] for g in groups.groups] == [["d2", "d3"], ["d0"]]
    # d4 repeats the text of a positive, d1 is one; q1's d3 is its positive; q2 has an empty list.
    assert {k: v for k, v in notes(groups).items() if "negative" in k or k == "empty_list"} == {
        "duplicate_negative": 1, "negative_is_positive": 3, "empty_list": 1}
    scores = lines(beir / "scores.tsv", "q0\td0\t[1.25]", "q0\td2\t0.5", "q1\td3\t2")
    groups = read_groups(beir, negatives=negatives, scores=scores)
    assert [e.score for e in groups.groups[0].positives + groups.groups[0].negatives] == [1.25, None, 0.5, None]
    assert notes(groups)["score_missing"] == 3 and notes(groups)["score_value"] == 1
    with pytest.raises(UserError, match="score_missing"):
        read_groups(beir, negatives=negatives, scores=scores, policy=Policy(strict={"score_missing"}))
    with pytest.raises(UserError, match=r"scores.tsv:1: .*score_value"):
        read_groups(beir, negatives=negatives, scores=lines(scores, "q0\td0\tnan"))


def test_negatives_in_a_file_of_groups(beir):
    """By query id, or by the query's text where the file has no ids."""
    mined = lines(beir / "mined.jsonl", {"query": "ba", "pos": ["de"], "neg": ["new", "ki"]})
    groups = read_groups(beir, negatives=mined)
    assert shape(groups)[0] == ("ba", ["de", "ki"], ["new"])
    with pytest.raises(UserError, match="same query ids"):
        read_groups(beir, negatives=lines(mined, {"query": "zi", "pos": ["de"], "neg": ["new"]}))


def test_missing_documents(beir):
    negatives = lines(beir / "negatives.tsv", "q0\td2,d9")
    with pytest.raises(UserError, match="'d9' is not in the corpus"):
        read_groups(beir, negatives=negatives)
    groups = read_groups(beir, negatives=negatives, policy=Policy(skip={"doc_missing"}))
    assert [e.id for e in groups.groups[0].negatives] == ["d2"]
    assert groups.summaries[-1].skipped["doc_missing"] == 1


@pytest.fixture
def retromae(tmp_path, tokenizer):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    texts = ["ba de ki", "lo mu", "na po ra", "se ti"]
    ids = [x.tolist() for x in tokenizer.encode(texts)]
    for name, rows, mapping in (("corpus", ids, ["p0\t0", "p1\t1", "p2\t2", "p3\t3"]), ("train_query", ids[:2], ["q1\t1", "q0\t0"])):
        Dataset.from_dict({"input_ids": rows}).save_to_disk(str(tmp_path / name))
        lines(tmp_path / name / "mapping_id.txt", *mapping)
    lines(tmp_path / "train_qrels.txt", "q0\tp0,p1", "q1\tp1", "q0\tp2")
    return tmp_path


def test_retromae_folder(retromae, tokenizer):
    negatives, scores = lines(retromae / "neg.txt", "q0\tp3,p2", "q1\tp3"), lines(retromae / "teacher.txt", "q0 p0 [3]", "q0 p3 -1.5")
    groups = read_groups(retromae, negatives, scores, tokenizer=tokenizer)
    assert groups.format == "retromae"
    assert [(g.query_id, [e.id for e in g.positives], [e.id for e in g.negatives]) for g in groups.groups] == [
        ("q0", ["p0", "p1"], ["p3", "p2"]), ("q1", ["p1"], ["p3"]), ("q0", ["p2"], ["p3"])]  # each line is one group
    assert groups.groups[0].positives[0].score == 3 and groups.groups[0].negatives[0].score == -1.5
    assert tokenizer.decode(groups.groups[0].query).split() == tokenizer.decode(tokenizer.encode(["ba de ki"])[0]).split()
    assert "tokens" in "\n".join(groups.report())


@pytest.mark.parametrize(("bad", "reason"), [(100_000, "token_range"), (-1, "token_range"), ("sep", "special_in_ids")])
def test_retromae_token_ids_are_checked(retromae, tokenizer, bad, reason):
    from datasets import Dataset

    bad = tokenizer.sep_id if bad == "sep" else bad
    Dataset.from_dict({"input_ids": [[5, 6], [7, bad], *[[8, 9]] * 40]}).save_to_disk(str(retromae / "corpus2"))
    lines(retromae / "corpus2" / "mapping_id.txt", *(f"p{i}\t{i}" for i in range(42)))
    import shutil

    shutil.rmtree(retromae / "corpus")
    (retromae / "corpus2").rename(retromae / "corpus")
    with pytest.raises(UserError, match=reason):
        read_groups(retromae, tokenizer=tokenizer)
    groups = read_groups(retromae, tokenizer=tokenizer, policy=Policy(skip={reason, "doc_missing", "no_positive"}, max_skip_share=0.9))
    assert "p1" not in groups.passages
    if reason == "special_in_ids":
        kept = read_groups(retromae, tokenizer=tokenizer, strip_specials=True)
        assert kept.passages["p1"].tolist() == [7]


@pytest.mark.parametrize(("record", "reason"), [
    ({"query": "ba"}, "missing_key"),
    (FLAG | {"pos_scores": [1]}, "score_count"),
    (FLAG | {"neg_scores": [1, "nan"]}, "score_value"),
    (FLAG | {"pos": [1]}, "text_type"),
    (FLAG | {"query": " "}, "empty_query"),
    (FLAG | {"pos": [], "pos_scores": []}, "no_positive"),
    ('{"query": "ba", "po', "truncated_json"),
])
def test_defects_stop_with_the_line_or_are_skipped_and_counted(tmp_path, record, reason):
    good = [FLAG | {"query": f"ba {i}"} for i in range(30)]
    path = lines(tmp_path / "train.jsonl", good[0], record, *good[1:])
    with pytest.raises(UserError, match=rf"train.jsonl:2: .*\({reason}\)"):
        read_groups(path, format="flagembedding")
    groups = read_groups(path, format="flagembedding", policy=Policy(skip={reason}))
    assert len(groups) == 30 and groups.summaries[0].skipped == {reason: 1}


def test_notes_are_errors_when_strict(tmp_path):
    path = lines(tmp_path / "train.jsonl", FLAG | {"neg": ["lo", "de"]})
    assert notes(read_groups(path)) == {"negative_is_positive": 1}
    with pytest.raises(UserError, match="negative_is_positive"):
        read_groups(path, policy=Policy(strict={"negative_is_positive"}))
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FLAG).encode() + b"\r\n")
    assert notes(read_groups(path)) == {"bom": 1, "crlf": 1}


def made() -> Groups:
    passages = {"p 1": "de\tki", "p2": "lo", "p3": "mu"}
    first = Group("q0", "ba", [Listed("p 1", 2.5)], [Listed("p2", -1.0), Listed("p3")])
    return Groups([first, Group("q1", "na", [Listed("p2")])], passages)


@pytest.mark.parametrize("format", ["flagembedding", "parquet"])
def test_what_is_written_is_read_again(tmp_path, format):
    path = write_groups(tmp_path / f"out.{'jsonl' if format == 'flagembedding' else format}", made(), format)
    again = read_groups(path)
    assert again.groups == made().groups and again.passages == made().passages and again.format == format
    with pytest.raises(UserError, match="already exists"):
        write_groups(path, made(), format)
    before = path.read_bytes()
    write_groups(path, made(), format, overwrite=True)
    assert path.read_bytes() == before


def test_retromae_files(tmp_path, beir):
    groups = read_groups(beir, negatives=lines(beir / "negatives.tsv", "q0\td2,d3", "q1\td0"))
    groups.groups[0].negatives[0] = Listed("d2", 0.125)
    assert write_groups(tmp_path / "n", groups, "retromae-negatives").read_text() == "q0\td2,d3\nq1\td0\n"
    assert write_groups(tmp_path / "p", groups, "retromae-qrels").read_text() == "q0\td0,d1\nq1\td3\n"
    assert write_groups(tmp_path / "s", groups, "retromae-scores").read_text() == "q0\td2\t0.125\n"
    with pytest.raises(UserError, match="'p 1' holds a comma or white space"):
        write_groups(tmp_path / "x", made(), "retromae-qrels")
    assert not (tmp_path / "x").exists()
    tokens = Groups([Group("q", np.array([5]), [Listed("p")])], {"p": np.array([6])})
    with pytest.raises(UserError, match="token ids"):
        write_groups(tmp_path / "y.jsonl", tokens)


def test_unknown_places(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_groups(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"expected corpus.jsonl"):
        read_groups(tmp_path)
