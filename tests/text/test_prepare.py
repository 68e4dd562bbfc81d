"""prepare: the same bytes whatever the workers, shards and interruptions; no token lost; every person's mistake is one sentence."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.text.corpus import Document
from foretext.text.packing import encode_documents
from foretext.text.prepare import merge_stores, prepare
from foretext.text.sentences import split_sentences
from foretext.text.store import Store
from foretext.text.tokenizer import Tokenizer

SMALL = {"vocab_size": 512, "max_tokens": 40, "block_bytes": 4000}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder of four formats with duplicates inside and across files, long sentences, short and empty documents."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(5)
    words = ["".join(draw.choices("aeioubdgklmnprst", k=draw.randint(2, 9))) for _ in range(400)]

    def text() -> str:
        return " ".join(" ".join(draw.choices(words, k=draw.randint(3, 70))).capitalize() + "." for _ in range(draw.randint(1, 9)))

    texts = [text() for _ in range(160)]
    texts[50] = texts[3]
    texts[150] = "  ".join(texts[4].split())  # the same but for white space, in another file
    texts[60], texts[61] = "Too short.", " "
    rows = [{"_id": f"d{i}", "title": " ".join(draw.choices(words, k=3)) if i % 3 else "", "text": t} for i, t in enumerate(texts)]
    rows[3]["title"] = rows[50]["title"] = rows[4]["title"] = rows[150]["title"] = "Same"
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:80]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows[80:120]).encode()))
    (folder / "c.tsv").write_text("_id\ttitle\ttext\n" + "".join("\t".join(row.values()) + "\n" for row in rows[120:]))
    (folder / "d.txt").write_text("\n\n".join(text().replace(". ", ".\n") for _ in range(30)))
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> tuple[Path, object]:
    output = tmp_path_factory.mktemp("whole") / "store"
    return output, prepare(corpus, output, workers=1, **SMALL)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bytes_do_not_depend_on_workers(corpus, whole, tmp_path):
    prepare(corpus, tmp_path / "store", workers=3, **SMALL)
    assert files(tmp_path / "store") == files(whole[0])
    assert not list(tmp_path.glob(".*")), "the work folder is gone"


@pytest.mark.parametrize("count", [1, 3])
def test_shards_merge_into_the_same_bytes(corpus, whole, tmp_path, count):
    shards = [tmp_path / f"shard{i}" for i in range(1, count + 1)]
    for i, shard in enumerate(shards, 1):
        report = prepare(corpus, shard, shard=(i, count), workers=1 + i % 2, **SMALL)
        assert "MB/s" in str(report)
    with pytest.raises(UserError, match="merge all shards"):
        Store.open(shards[0])
    merge_stores(shards[::-1], tmp_path / "store")
    assert files(tmp_path / "store") == files(whole[0])


def test_shards_that_do_not_fit(corpus, tmp_path):
    one, two, other = tmp_path / "1", tmp_path / "2", tmp_path / "other"
    prepare(corpus, one, shard=(1, 2), workers=1, **SMALL)
    prepare(corpus, two, shard=(2, 2), workers=1, **SMALL)
    prepare(corpus, other, shard=(2, 2), workers=1, **{**SMALL, "max_tokens": 50})
    for given, message in (([one], "shard 2 of 2 is missing"), ([one, one], "given twice"), ([one, other], "settings differ"),
                           ([], "no shard"), ([tmp_path], "not a shard")):
        with pytest.raises(UserError, match=message):
            merge_stores(given, tmp_path / "store")
    (two / "parts" / sorted(os.listdir(two / "parts"))[0]).unlink()
    with pytest.raises(UserError, match="lack some"):
        merge_stores([one, two], tmp_path / "store")


def test_killed_run_continues(corpus, whole, tmp_path):
    """SIGKILL after some parts; the next run takes them over and writes the same bytes."""
    script = ("import sys, time; from foretext.text import parts as p; from foretext.text.prepare import prepare; write = p.write_part\n"
              "def slowly(*a): write(*a); time.sleep(0.2)\n"
              f"p.write_part = slowly; prepare(sys.argv[1], sys.argv[2], workers=2, **{SMALL!r})")
    process = subprocess.Popen([sys.executable, "-c", script, str(corpus), str(tmp_path / "store")], start_new_session=True)
    parts = tmp_path / ".store.work" / "parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.npz"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # the parent alone: its workers must not hold the lock, nor live on
    process.wait()
    assert not (tmp_path / "store").exists()
    done = sorted(parts.glob("*.npz"))
    done[0].write_bytes(done[0].read_bytes()[:100])  # a broken part is made again
    report = prepare(corpus, tmp_path / "store", workers=2, **SMALL)
    assert report.continued >= 3 and "taken over" in str(report)
    assert files(tmp_path / "store") == files(whole[0])


def test_other_settings_start_afresh(corpus, tmp_path):
    work = tmp_path / ".store.work"
    (work / "parts").mkdir(parents=True)
    (work / "parts" / "000000000.npz").write_bytes(b"from another run")
    (work / "fingerprint").write_text("of other settings")
    assert prepare(corpus, tmp_path / "store", workers=1, **SMALL).continued == 0


def test_report_and_counts(corpus, whole):
    output, report = whole
    store = Store.open(output)
    store.verify()
    c = report.counts
    assert c == store.manifest["counts"]
    assert (c["duplicates"], c["too_short"]) == (2, 1) and report.sources[0].skipped == {"empty_doc": 1}
    assert c["documents"] == 160 + 30 - 4 == store.document_count
    assert c["rows"] == len(store) == sum(c["length_histogram"].values()) and c["tokens"] == len(store.tokens)
    assert c["long_sentences"] > 0 and report.tokens_per_word > 1
    text = str(report)
    for word in ("exact duplicates", "tokens per word", "MB/s", "empty_doc", "rows"):
        assert word in text
    assert [store.document_id(d) for d in (0, 1)] == ["d0", "d1"] and "/d.txt:" in store.document_id(store.document_count - 1)
    assert "d50" not in [store.document_id(d) for d in range(store.document_count)]


def test_rows_are_consistent(whole):
    store = Store.open(whole[0])
    tokenizer = store.tokenizer
    lengths = np.diff(store.offsets)
    assert lengths.min() >= 8 and lengths.max() <= SMALL["max_tokens"]
    assert (np.diff(store.documents) >= 0).all() and store.documents[0] == 0 and store.documents[-1] == store.document_count - 1
    assert not tokenizer.special[store.tokens].any() and store.tokens.dtype == np.uint16
    for row in range(len(store)):
        starts = store.sentences(row)
        assert starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] < lengths[row]
        first = row == 0 or store.documents[row] != store.documents[row - 1]
        assert first or store.title_lengths[row] == 0
        if store.title_lengths[row]:  # and a title is never alone
            assert starts[1] == store.title_lengths[row]
    row = int(np.flatnonzero(store.title_lengths)[0])
    assert store.document_id(int(store.documents[row])) == "d1"


def test_a_document_comes_back(corpus, whole):
    """Rows of a document, joined, are the tokens of its title and text."""
    store, title, text = Store.open(whole[0]), "", ""
    for line in (corpus / "a.jsonl").read_text().splitlines()[:20]:
        record = json.loads(line)
        title, text = record["title"], record["text"]
        d = next(d for d in range(store.document_count) if store.document_id(d) == record["_id"])
        rows = np.flatnonzero(store.documents == d)
        found = np.concatenate([store.row(int(row)) for row in rows])
        expected = np.concatenate(store.tokenizer.encode([title, text]))
        assert len(expected) - len(found) < 8 and np.array_equal(found, expected[:len(found)])


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_long_documents_lose_nothing(kind, texts):
    """Sentences longer than a row, words longer than a row, titles longer than a row: every token is somewhere, in order."""
    tokenizer = Tokenizer.train(texts, kind, 320)
    long_word = "ab" * 48  # WordPiece gives up on words of more than 100 characters
    documents = [
        Document("sentence", "", " ".join(t.replace(".", "").replace("!", "") for t in texts[:20])),
        Document("word", "title", f"Short one here to start. {long_word} {long_word} and then more words follow here."),
        Document("title", " ".join(texts[:3]), " ".join(texts[3:6])),
        Document("lines", "", "\n".join(t.replace(".", "").replace("!", "") for t in texts[:30])),
        Document("tiny start", "", "Ab. " + " ".join(texts[:9]).replace(".", "").replace("!", "")),
    ]
    arrays, counts = encode_documents(documents, tokenizer, 32, 8)
    statistics = arrays["statistics"].sum(0)
    assert counts["too_short"] == 0 and statistics[2] > 0 and statistics[3] > 0 and statistics[5] == 1
    assert arrays["row_lengths"].max() <= 32 and arrays["row_lengths"].min() >= 8
    ends = np.cumsum(np.bincount(np.repeat(np.arange(5), arrays["document_rows"]), arrays["row_lengths"]).astype(int))
    for i, (document, found) in enumerate(zip(documents, np.split(arrays["tokens"], ends[:-1]))):
        pieces = ([document.title] if document.title else []) + [document.text]
        expected = np.concatenate(tokenizer.encode(pieces))
        short = int(arrays["statistics"][i, 4])
        assert short < 8 and np.array_equal(found, expected[:len(expected) - short])
    cuts = arrays["sentence_starts"]
    assert len(cuts) == arrays["sentence_counts"].sum() and (cuts < 32).all()


def test_rows_of_a_long_sentence_end_at_word_ends(texts):
    tokenizer = Tokenizer.train(texts, "wordpiece", 320)
    document = Document("x", "", " ".join(texts).replace(".", "").replace("!", "").replace(",", ""))
    arrays, _ = encode_documents([document], tokenizer, 32, 8)
    starts = np.cumsum(arrays["row_lengths"])[:-1]
    assert not tokenizer.words.joins_left[arrays["tokens"][starts]].any()


def test_sentences():
    text = ('Dr. Smith met J. R. Tolkien, e.g. at 5 p.m. in town. "Really?" she said. See Fig. 3. New one!  And 。also this。Yes'
            "\n\nA heading\n \nEnd")
    pieces = split_sentences(text, 1000)
    assert "".join(pieces) == text
    assert [piece.strip() for piece in pieces] == [
        "Dr. Smith met J. R. Tolkien, e.g. at 5 p.m. in town.", '"Really?" she said.', "See Fig. 3.", "New one!", "And 。", "also this。",
        "Yes", "A heading", "End"]
    assert split_sentences("", 10) == []
    assert split_sentences("a\nb\nc", 2) == ["a", "\nb", "\nc"] and split_sentences("a\nb\nc", 9) == ["a\nb\nc"]


def test_given_tokenizers(corpus, tokenizer, minilm, tmp_path):
    prepare(corpus / "a.jsonl", tmp_path / "a", tokenizer=tokenizer, max_tokens=64, workers=1)
    assert Store.open(tmp_path / "a").tokenizer.fingerprint == tokenizer.fingerprint
    prepare(corpus / "a.jsonl", tmp_path / "b", tokenizer=minilm, max_tokens=64, workers=1)
    assert Store.open(tmp_path / "b").tokenizer.size == 30522


def test_sample_for_the_tokenizer_is_bounded_and_spread(corpus):
    from foretext.text.corpus import ReadOptions, blocks, find_sources
    from foretext.text.prepare import _sample

    sources, options = find_sources(corpus), ReadOptions()
    everything = _sample(blocks(sources, options, 2000), options, 10**9)
    some = _sample(blocks(sources, options, 2000), options, 40_000)
    assert 15_000 < sum(map(len, some)) < 45_000 < sum(map(len, everything))
    places = [everything.index(text) / len(everything) for text in some]
    assert min(places) < 0.1 and max(places) > 0.9 and set(some) <= set(everything)


def test_mistakes(corpus, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "short.txt").write_text("a b\nc d\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    a = corpus / "a.jsonl"
    for inputs, output, options, message in (
        (tmp_path / "nothing.txt", "s", {}, "no such file"), (tmp_path / "empty.txt", "s", {}, "empty|no usable record"),
        (tmp_path / "short.txt", "s", {"tokenizer_kind": "bpe"}, "no document is left"),
        (a, "full", {}, "already exists"), (a, "s", {"text_field": "body"}, "a.jsonl:1: expected the key 'body'"),
        (a, "s", {"tokenizer_kind": "magic"}, "unknown"), (a, "s", {"min_tokens": 30}, "min_tokens=30"),
        (a, "s", {"shard": (3, 2)}, "shard 3/2"), (a, "s", {"layout": "magic"}, "layout"), ([], "s", {}, "no input"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(inputs, tmp_path / output, workers=1, **{**SMALL, **options})
    prepare(a, tmp_path / "full", workers=1, overwrite=True, **SMALL)
    assert len(Store.open(tmp_path / "full")) > 0


def test_a_defect_in_a_worker_names_file_and_line(corpus, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text((corpus / "a.jsonl").read_text() + '{"_id": "x", "text": \n')
    with pytest.raises(UserError, match=r"bad.jsonl:81: expected a whole JSON object"):
        prepare(path, tmp_path / "s", workers=2, **SMALL)
    report = prepare(path, tmp_path / "s", workers=2, skip=["truncated_json"], **SMALL)
    assert report.sources[0].skipped["truncated_json"] == 1


def test_two_runs_cannot_write_one_output(corpus, tmp_path):
    (tmp_path / ".s.work").mkdir()
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path / ".s.work" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match="another process"):
            prepare(corpus, tmp_path / "s", workers=1, **SMALL)
        holder.stdin.close()
    prepare(corpus, tmp_path / "s", workers=1, **SMALL)


def test_real_text(data, tmp_path):
    report = prepare(data / "wikipedia" / "wiki-00.jsonl.gz", tmp_path / "s", vocab_size=8000)
    assert report.counts["documents"] + report.counts["too_short"] == 954 and report.counts["short_tokens"] < 2000
