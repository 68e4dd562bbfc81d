"""Readers: every format with every compression gives the same documents; every defect has its name and its place."""

import bz2
import gzip
import json
import lzma

import pytest
import zstandard

from foretext.errors import UserError
from foretext.text.corpus import Document, ReadOptions, blocks, find_sources, read_block, read_documents

ROWS = [
    {"_id": "007", "title": "First", "text": "One text, with a comma and \"quotes\"."},
    {"_id": "b", "title": "", "text": "A second text\u2028with a line separator, a\x0bvertical tab and a\x85next line."},
    {"_id": "c d", "title": "Third", "text": "北京 and ünïcode."},
]
DOCUMENTS = [Document(row["_id"], row["title"], row["text"]) for row in ROWS]
COMPRESS = {"": lambda data: data, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
            ".zst": lambda data: zstandard.ZstdCompressor().compress(data)}


def read(inputs, **options):
    summaries = []
    documents = list(read_documents(inputs, ReadOptions(**options), summaries))
    return documents, summaries[0]


def as_bytes(kind: str) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if kind == "tsv":
        return "".join("\t".join(row) + "\n" for row in [["_id", "title", "text"], *(list(row.values()) for row in ROWS)]).encode()
    if kind == "csv":
        import csv

        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([["_id", "title", "text"], *(list(row.values()) for row in ROWS)])
        return out.getvalue().encode()
    table, sink = pa.Table.from_pylist(ROWS), pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "tsv", "csv", "parquet", "stream", "file"])
def test_every_format_and_compression(tmp_path, kind, compression):
    suffix = {"stream": "arrow", "file": "arrow"}.get(kind, kind)
    path = tmp_path / f"docs.{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](as_bytes(kind)))
    documents, summary = read(path)
    assert documents == DOCUMENTS
    assert summary.accepted == 3 and not summary.skipped
    assert any("text field: 'text'" in guess for guess in summary.guesses), "a guess must be said"


@pytest.mark.parametrize("compression", COMPRESS)
def test_txt_layouts(tmp_path, compression):
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(COMPRESS[compression]("one\rstill one\ntwo\u2028still two\n\nthree".encode()))
    documents, summary = read(path, layout="lines")
    assert [d.text for d in documents] == ["one\rstill one", "two\u2028still two", "three"]
    assert [d.id for d in documents] == [f"{path.name}:1", f"{path.name}:2", f"{path.name}:4"]
    assert summary.skipped == {"blank_line": 1} and summary.lines == 4
    documents, _ = read(path, layout="blocks")
    assert [(d.id, d.text) for d in documents] == [(f"{path.name}:1", "one\rstill one\ntwo\u2028still two"), (f"{path.name}:4", "three")]
    documents, _ = read(path, layout="file")
    assert [(d.id, d.text) for d in documents] == [(path.name, "one\rstill one\ntwo\u2028still two\n\nthree")]


def test_layout_is_guessed_and_said(tmp_path):
    (tmp_path / "lines.txt").write_text("a b\n" * 30)
    (tmp_path / "blocks.txt").write_text("a b\nc d\n\n" * 10)
    assert any("per line" in guess for guess in read(tmp_path / "lines.txt")[1].guesses)
    documents, summary = read(tmp_path / "blocks.txt")
    assert any("blank lines" in guess for guess in summary.guesses) and documents[1] == Document("blocks.txt:4", "", "a b\nc d")


@pytest.mark.parametrize("block_bytes", [1, 7, 64, 10_000])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv", "parquet"])
def test_blocks_do_not_change_documents(tmp_path, kind, block_bytes):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"a b\nc\n\n\n \nd e f\n\ng\n" * 5 if kind == "txt" else as_bytes(kind))
    for layout in ("lines", "blocks"):
        options = ReadOptions(layout=layout)
        sources = find_sources(path, options)
        whole = list(read_documents(path, options))
        cut = list(blocks(sources, options, block_bytes))
        assert [block.number for block in cut] == list(range(len(cut)))
        assert [document for block in cut for document in read_block(block, options)[0]] == whole


def write(path, data: bytes):
    path.write_bytes(data)
    return path


GOOD = b'{"_id": "1", "text": "a good text"}\n'
DEFECTS = {  # reason: (file name, bytes, counted under, documents left, options needed to go on)
    "crlf": ("a.jsonl", GOOD.replace(b"\n", b"\r\n"), "notes", 1, {}),
    "bom": ("a.jsonl", b"\xef\xbb\xbf" + GOOD, "notes", 1, {}),
    "nul": ("a.txt", b"a good\0 text\n", "notes", 1, {}),
    "blank_line": ("a.jsonl", GOOD + b" \n" + GOOD, "skipped", 2, {}),
    "empty_doc": ("a.jsonl", GOOD + b'{"_id": "2", "text": "  "}\n', "skipped", 1, {}),
    "null_text": ("a.jsonl", GOOD + b'{"_id": "2", "text": null}\n', "notes", 1, {}),
    "numeric_id": ("a.jsonl", GOOD + b'{"_id": 2, "text": "a text"}\n', "notes", 2, {}),
    "non_utf8": ("a.txt", b"good\nb\xe9d\n", "skipped", 1, {"skip": ("non_utf8",)}),
    "truncated_json": ("a.jsonl", GOOD + GOOD[:20], "skipped", 1, {"skip": ("truncated_json",)}),
    "missing_key": ("a.jsonl", GOOD + b'{"_id": "2", "txt": "a"}\n', "skipped", 1, {"skip": ("missing_key",)}),
    "text_type": ("a.jsonl", GOOD + b'{"_id": "2", "text": [1, 2]}\n', "skipped", 1, {"skip": ("text_type",)}),
    "extra_tab": ("a.tsv", b"_id\ttext\n1\tgood\n2\tbad\ttab\n", "skipped", 1, {"skip": ("extra_tab",)}),
    "column_count": ("a.csv", b"_id,text\n1,good\n2\n", "skipped", 1, {"skip": ("column_count",)}),
}


@pytest.mark.parametrize("reason", DEFECTS)
def test_defects(tmp_path, reason):
    name, data, counter, left, options = DEFECTS[reason]
    path = write(tmp_path / name, data)
    documents, summary = read(path, **options, max_skip_share=0.5)
    assert len(documents) == left == summary.accepted
    assert getattr(summary, counter)[reason] == 1
    bad_line = next(line for line, found in summary.first_examples if found == reason)
    assert not any("\r" in document.text or "\0" in document.text or "\ufeff" in document.text for document in documents)
    with pytest.raises(UserError, match=rf"{name}:{bad_line}: .*{reason}"):
        read(path, **({} if options else {"strict": (reason,)}))


@pytest.mark.parametrize("data", [b"_id,text\n1,good\n2,b\xe9d\n", b"\xef\xbb\xbf_id,text\r\n1,good\r\n2,b\xe9d\r\n"])
def test_csv_defects(tmp_path, data):
    path = write(tmp_path / "a.csv", data)
    with pytest.raises(UserError, match=r"a.csv:3: expected UTF-8"):
        read(path)
    documents, summary = read(path, skip=("non_utf8",), max_skip_share=1)
    assert documents == [Document("1", "", "good")] and summary.skipped == {"non_utf8": 1}
    assert summary.notes.get("bom", 0) == data.startswith(b"\xef") and summary.notes.get("crlf", 0) == 3 * data.startswith(b"\xef")


def test_csv_quoted_line_ends_and_no_header(tmp_path):
    path = write(tmp_path / "a.csv", b'text,category\n"two\nlines, one text",x\nshort,y\n')
    documents, summary = read(path)
    assert [(d.id, d.text) for d in documents] == [("a.csv:2", "two\nlines, one text"), ("a.csv:4", "short")] and summary.lines == 2
    path = write(tmp_path / "b.csv", b"A first sentence here.,another,3.5\nB,c,1.0\n")
    documents, summary = read(path)
    assert documents[0].text == "A first sentence here." and "no header" in summary.guesses[0]
    assert [d.text for d in read(path, text_field="2")[0]] == ["another", "c"]
    for number in ("0", "4"):
        with pytest.raises(UserError, match=f"b.csv:1: text_field='{number}' is not a column number from 1 to 3, and"):
            read(path, text_field=number)


def test_skip_share_and_empty(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD * 10 + b"{\n")
    with pytest.raises(UserError, match="max_skip_share"):
        read(path, skip=("truncated_json",))
    assert len(read(path, skip=("truncated_json",), max_skip_share=0.1)[0]) == 10
    for name in ("e.txt", "e.jsonl", "e.csv", "e.tsv", "e.txt.gz"):
        write(tmp_path / name, gzip.compress(b"") if name.endswith("gz") else b"")
        with pytest.raises(UserError, match="no usable record|no field"):
            read(tmp_path / name)


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_truncated_archive(tmp_path, compression):
    import random

    noise = "".join(random.Random(0).choices("abcdefgh \n", k=50_000)).encode()
    path = write(tmp_path / f"a.txt{compression}", COMPRESS[compression](noise)[:-300])
    with pytest.raises(UserError, match="cut off or damaged"):
        read(path)
    with pytest.raises(UserError, match="cut off or damaged"):
        read(write(tmp_path / f"b.txt{compression}", b"this is no archive at all"))


def test_zstd_frames_follow_each_other(tmp_path):
    path = write(tmp_path / "a.txt.zst", COMPRESS[".zst"](b"one\n") + COMPRESS[".zst"](b"two\n"))
    assert [d.text for d in read(path)[0]] == ["one", "two"]


def test_folders_globs_and_order(tmp_path):
    for name in ("b.txt", "a.jsonl", "Z.txt", "sub/c.txt", ".hidden.txt", "notes.pdf", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(GOOD if name.endswith("jsonl") else name.encode())
    names = [source.name.split("/", 1)[1] for source in find_sources(tmp_path)]
    assert names == ["Z.txt", "a.jsonl", "b.txt", "sub/c.txt"]
    assert [s.name for s in find_sources(str(tmp_path / "*.txt"))] == ["Z.txt", "b.txt"]
    documents = list(read_documents(tmp_path, ReadOptions(layout="file")))
    assert [d.text for d in documents] == ["Z.txt", "a good text", "b.txt", "sub/c.txt"]
    assert len({d.id for d in documents}) == 4


def test_beir_folder_reads_only_the_corpus(tmp_path):
    write(tmp_path / "corpus.jsonl", b'{"_id": "1", "title": "T", "text": "the text", "metadata": {}}\n')
    write(tmp_path / "queries.jsonl", b'{"_id": "q", "text": "a query"}\n')
    assert read(tmp_path)[0] == [Document("1", "T", "the text")]


def test_saved_datasets(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "plain", num_shards=2)
    datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(tmp_path / "splits")
    assert list(read_documents(tmp_path / "plain")) == DOCUMENTS
    assert list(read_documents(tmp_path / "splits")) == DOCUMENTS
    assert list(read_documents(tmp_path / "splits" / "test")) == DOCUMENTS[:1]


def test_hub_datasets_stream(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        return iter(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("someone/texts")[0] == DOCUMENTS
    assert read("hf:someone/texts:en:test")[0] == DOCUMENTS
    assert asked == [("someone/texts", None, "train", True), ("someone/texts", "en", "test", True)]


def test_fields(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"head": "H", "main": "the longer text", "tag": "x"}\n')
    documents, summary = read(path)
    assert documents[0] == Document("a.jsonl:1", "", "the longer text") and "'main'" in summary.guesses[0]
    assert read(path, text_field="tag", title_field="head")[0] == [Document("a.jsonl:1", "H", "x")]
    with pytest.raises(UserError, match="a.jsonl:1: expected the key 'nope'.*head, main, tag"):
        read(path, text_field="nope")
    for kind in ("csv", "tsv", "parquet", "stream"):
        table = write(tmp_path / f"t.{kind.replace('stream', 'arrow')}", as_bytes(kind))
        with pytest.raises(UserError, match="no text column 'nope'"):
            read(table, text_field="nope")


@pytest.mark.parametrize("missing", ["nowhere.txt", "no/where.jsonl", "/no/where", "*.nothing"])
def test_missing_input_is_one_sentence(tmp_path, monkeypatch, missing):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file|no file matches"):
        find_sources(missing)


def test_names_cannot_lead_outside(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../etc/passwd"}]}))
    with pytest.raises(UserError, match="outside"):
        find_sources(tmp_path / "d")
