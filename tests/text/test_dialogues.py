"""Dialogues: every format and every defect of their files, a store of turns, and the examples that training reads."""

import gzip
import json

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.files import sha256
from foretext.text.corpus import ReadOptions
from foretext.text.dialogues import read_examples, typed_context
from foretext.text.pairs import PairChoice, TurnPairs, pairs_of
from foretext.text.prepare import merge_stores, prepare
from foretext.text.randomness import example_keys
from foretext.text.store import EARLIER, Store
from tests.conftest import made_up_texts


def read(path, **options):
    summaries = []
    examples = list(read_examples(path, ReadOptions(**options), summaries))
    return [(e.context, e.response, e.earlier) for e in examples], summaries[0], examples


def jsonl(path, *records):
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


# ------------------------------------------------------------------------------------------------------------------ formats


def test_polyai_lines(tmp_path):
    """Earlier turns by number, whatever the order of the keys; metadata stays out; text keys that only look alike too."""
    path = jsonl(tmp_path / "a.jsonl", {"context/1": "first", "context": "third", "response": "fourth", "context/0": "second",
                                        "context_author": "ann", "response_author": "bob", "subreddit": "x", "thread_id": "t",
                                        "context/x": "metadata"},
                 {"context": "hi", "response": "hello", "thread_id": "u", "same_author": True})
    found, summary, examples = read(path)
    assert found == [("third", "fourth", ("second", "first")), ("hi", "hello", ())]
    assert [(e.thread, e.same_author) for e in examples] == [("t", False), ("u", True)]
    assert summary.accepted == 2 and not summary.skipped and not summary.notes
    assert any("PolyAI" in guess for guess in summary.guesses)


def test_compressed(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"context": "a", "response": "b", "thread_id": "t"}).encode()))
    assert read(path)[0] == [("a", "b", ())]


@pytest.mark.parametrize("record", [
    ["one", "two", "three"], {"turns": ["one", "two", "three"], "id": 5},
    {"dialogue": [{"text": "one", "speaker": "A"}, {"text": "two"}, {"text": "three"}]},
    {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"content": "three"}], "thread_id": "t"},
])
def test_lists_of_turns(tmp_path, record):
    """Every turn but the first answers the one before it."""
    found, summary, examples = read(jsonl(tmp_path / "a.jsonl", record))
    assert found == [("one", "two", ()), ("two", "three", ("one",))] and summary.accepted == 2
    names = {e.thread for e in examples}
    assert names == {str(next((record[key] for key in ("id", "thread_id") if key in record), "a.jsonl:1"))
                     if isinstance(record, dict) else "a.jsonl:1"}


def test_no_more_than_ten_earlier_turns(tmp_path):
    turns = [f"turn {i}" for i in range(14)]
    found, _, _ = read(jsonl(tmp_path / "a.jsonl", {"turns": turns}))
    assert found[-1] == ("turn 12", "turn 13", tuple(f"turn {i}" for i in range(11, 1, -1))) and len(found[-1][2]) == EARLIER
    long = {"context": "c", "response": "r", "thread_id": "t"} | {f"context/{i}": f"turn {i}" for i in range(12)}
    assert read(jsonl(tmp_path / "b.jsonl", long))[0][0][2] == tuple(f"turn {i}" for i in range(10))


def test_tabs_context_and_response(tmp_path):
    """MEAD's ntp: `<EOU>` ends a turn of the context, the last of which may be empty; other numbers of tabs are left out."""
    path = tmp_path / "a.tsv"
    path.write_text("how are you\tfine\nhi <EOU> hello <EOU> how are you <EOU>\tfine too\n" + "a\tb\n" * 60 + "x\ty\tz\nalone\n\tr\nc\t \n")
    found, summary, _ = read(path)
    assert found[:2] == [("how are you", "fine", ()), ("how are you", "fine too", ("hello", "hi"))] and len(found) == 62
    assert summary.skipped == {"tab_count": 2, "empty_context": 1, "empty_response": 1}
    assert any("context<TAB>response" in guess for guess in summary.guesses)


def test_tabs_a_dialogue_per_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ttwo\tthree\nalone\none\t\ttwo\n")
    found, summary, examples = read(path)
    assert found == [("one", "two", ()), ("two", "three", ("one",)), ("one", "two", ())]
    assert [e.thread for e in examples] == ["a.txt:1", "a.txt:1", "a.txt:3"]
    assert summary.skipped == {"single_turn": 1} and summary.notes == {"empty_turn": 1}


# ------------------------------------------------------------------------------------------------------------------ defects

GOOD = {"context": "a", "response": "b", "thread_id": "t"}
LEFT_OUT = {"empty_context": GOOD | {"context": "  "}, "empty_response": GOOD | {"response": ""}, "single_turn": {"turns": ["one"]}}
NOTED = {"context_gap": GOOD | {"context/0": "x", "context/2": "y"}, "empty_turn": GOOD | {"context/0": " "},
         "no_thread": {"context": "a", "response": "b"}, "nul": GOOD | {"context": "a\0"}, "null_text": GOOD | {"context/0": None}}
STOPPING = {"missing_key": {"question": "a"}, "text_type": GOOD | {"response": 5}, "truncated_json": '{"context": "a", "resp'}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_left_out_and_counted(tmp_path, reason):
    path = jsonl(tmp_path / "a.jsonl", GOOD, LEFT_OUT[reason], GOOD)
    found, summary, _ = read(path)
    assert len(found) == 2 and summary.skipped == {reason: 1} and (2, reason) in summary.first_examples
    with pytest.raises(UserError, match=f"a.jsonl:2.*{reason}"):
        read(path, strict=[reason])


@pytest.mark.parametrize("reason", NOTED)
def test_noted(tmp_path, reason):
    found, summary, _ = read(jsonl(tmp_path / "a.jsonl", GOOD, NOTED[reason]))
    assert len(found) == 2 and summary.notes[reason] == 1 and found[1][:2] == ("a", "b")
    assert found[1][2] == (("x", "y") if reason == "context_gap" else ())


@pytest.mark.parametrize("reason", STOPPING)
def test_stops_with_the_place(tmp_path, reason):
    path = jsonl(tmp_path / "a.jsonl", *[GOOD] * 30, STOPPING[reason])
    with pytest.raises(UserError, match=f"a.jsonl:31.*{reason}"):
        read(path)
    found, summary, _ = read(path, skip=[reason])
    assert len(found) == 30 and summary.skipped == {reason: 1}


def test_a_file_that_holds_no_dialogues(tmp_path):
    with pytest.raises(UserError, match="no usable record"):
        read(jsonl(tmp_path / "a.jsonl", GOOD | {"context": ""}))
    (tmp_path / "a.csv").write_text("context,response\na,b\n")
    with pytest.raises(UserError, match="not from csv"):
        read(tmp_path / "a.csv")


def test_typed_contexts():
    assert typed_context(" hello there\n", "line 1") == ("hello there", ())
    assert typed_context('{"context": "c", "context/1": "y", "context/0": "x"}', "line 1") == ("c", ("x", "y"))
    for wrong in ('{"context": ', '{"response": "a"}', '{"context": 3}'):
        with pytest.raises(UserError, match="line 7"):
            typed_context(wrong, "line 7")


# -------------------------------------------------------------------------------------------------------------------- store


@pytest.fixture(scope="module")
def threads():
    """Threads of three to five turns of made-up words; their records are scattered over the file."""
    texts = made_up_texts(200, seed=5)
    return {f"t{i}": texts[4 * i:4 * i + 3 + i % 3] for i in range(40)}


@pytest.fixture(scope="module")
def file(tmp_path_factory, threads):
    records = []
    for name, turns in threads.items():
        for i in range(1, len(turns)):
            earlier = {f"context/{j}": turn for j, turn in enumerate(reversed(turns[:i - 1]))}
            records.append({"context": turns[i - 1], "response": turns[i], "thread_id": name} | earlier)
    order = np.random.default_rng(3).permutation(len(records))
    return jsonl(tmp_path_factory.mktemp("dialogues") / "a.jsonl", *(records[i] for i in order))


@pytest.fixture(scope="module")
def store(file, tokenizer):
    folder = file.parent / "store"
    report = prepare(file, folder, tokenizer=tokenizer, dialogues=True, workers=1, block_bytes=4000)
    assert "a document is a thread, a row is a turn" in str(report)
    return Store.open(folder)


def test_a_row_per_turn_and_a_document_per_thread(store, threads, tokenizer):
    """Every link of the file is in the store, and nothing else; a turn that several records repeat is one row."""
    assert store.document_count == len(threads) and len(store) == sum(map(len, threads.values()))
    expected = {tuple(turns[max(0, i - 11):i + 1]) for turns in threads.values() for i in range(1, len(turns))}
    wanted = {tuple(tuple(ids.tolist()) for ids in tokenizer.encode(list(turns))) for turns in expected}
    found = set()
    for example in store.examples:
        context, response, *earlier = example.tolist()
        rows = [*(row for row in reversed(earlier) if row >= 0), context, response]
        assert len({int(store.documents[row]) for row in rows}) == 1
        found.add(tuple(tuple(store.row(row).tolist()) for row in rows))
    assert found == wanted and len(store.examples) == len(expected)
    store.verify()


def test_bytes_do_not_depend_on_workers_or_shards(store, file, tokenizer, tmp_path):
    settings = {"tokenizer": tokenizer, "dialogues": True, "block_bytes": 4000}
    prepare(file, tmp_path / "two", workers=2, **settings)
    for i in (1, 2):
        prepare(file, tmp_path / f"shard{i}", workers=1, shard=(i, 2), **settings)
    merge_stores([tmp_path / "shard2", tmp_path / "shard1"], tmp_path / "merged")
    for other in ("two", "merged"):
        for name in ("manifest.json", "examples.bin", "tokens.bin"):
            assert sha256(tmp_path / other / name) == sha256(store.path / name), (other, name)


def test_repeated_threads_long_and_unreadable_turns(tokenizer, tmp_path):
    """A thread that repeats another is dropped with its links; a long turn is cut; a turn without a token takes its examples along."""
    long, blank = "ba de " * 40, "\u200b"
    assert not len(tokenizer.encode([blank])[0])
    path = jsonl(tmp_path / "a.jsonl", *({"turns": turns} for turns in (["ba ki", "lo mu"], ["ba ki", "lo mu"],
                                                                        [long, "de", blank, "na po", "ra"], ["xe", "yo", "xe", "yo"])))
    report = prepare(path, tmp_path / "store", tokenizer=tokenizer, dialogues=True, max_tokens=20, workers=1)
    store = Store.open(tmp_path / "store")
    assert report.counts["duplicates"] == 1 and report.counts["cut_turns"] == 1 and report.counts["unreadable_examples"] == 2
    assert [row[row >= 0].tolist() for row in store.examples] == [[0, 1], [2, 3], [4, 5, 3, 2], [6, 7], [7, 6, 6], [6, 7, 7, 6]]
    assert np.diff(store.offsets).max() == 20


def test_examples_repeated_in_a_thread_are_counted(tokenizer, tmp_path):
    record = {"context": "ba ki", "response": "lo mu", "thread_id": "t"}
    path = jsonl(tmp_path / "a.jsonl", record, record, record | {"context/0": "de"})
    report = prepare(path, tmp_path / "store", tokenizer=tokenizer, dialogues=True, workers=1)
    assert report.counts["repeated_examples"] == 1 and report.counts["examples"] == 2 and "1 examples repeated" in str(report)


def test_continues_after_an_interruption(file, tokenizer, tmp_path, store):
    """Parts that are there are taken over: here all but one."""
    from foretext.text import prepare as module

    def stop(*_, **__):
        raise KeyboardInterrupt

    settings = {"tokenizer": tokenizer, "dialogues": True, "block_bytes": 4000, "workers": 1}
    write, module._write_store = module._write_store, stop
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare(file, tmp_path / "store", **settings)
    finally:
        module._write_store = write
    parts = sorted((tmp_path / ".store.work" / "parts").iterdir())
    parts[1].unlink()
    report = prepare(file, tmp_path / "store", **settings)
    assert report.continued == len(parts) - 1 > 1
    assert sha256(tmp_path / "store" / "manifest.json") == sha256(store.path / "manifest.json")


def test_other_stores_have_no_examples(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(made_up_texts(5, seed=1)))
    prepare(tmp_path / "a.txt", tmp_path / "store", tokenizer=tokenizer, workers=1)
    with pytest.raises(UserError, match="--dialogues"):
        TurnPairs(Store.open(tmp_path / "store"))


# ----------------------------------------------------------------------------------------------------------------- examples


def keys(rows: np.ndarray) -> torch.Tensor:
    return example_keys(1, 0, torch.from_numpy(rows))


def split(documents) -> list[list[int]]:
    return [ids.tolist() for ids in documents.ids.split(documents.lengths.tolist())]


@pytest.mark.parametrize("contexts", [10, 2, 0])
def test_what_an_example_holds(store, contexts):
    source, rows = TurnPairs(store, contexts=contexts), np.array([7, 0, 50, 23])
    found = source.read(rows, keys(rows))
    for i, row in enumerate(rows):
        context, response, *earlier = store.examples[row].tolist()
        assert split(found.contexts)[i] == store.row(context).tolist()
        assert split(found.responses)[i] == store.row(response).tolist()
        if contexts:
            turns = [store.row(turn).tolist() for turn in earlier[:contexts] if turn >= 0]
            assert split(found.earlier)[i] == sum(turns, [])
    assert (found.earlier is None) == (contexts == 0)
    parts = (found.contexts, found.responses, *([found.earlier] if contexts else []))
    assert source.lengths[rows].tolist() == sum(part.lengths for part in parts).tolist()


def test_a_thread_is_on_one_side_only(store):
    sides = {part: TurnPairs(store, part, 0.3) for part in ("train", "valid")}
    threads = {part: set(store.documents[source.examples[:, 0]].tolist()) for part, source in sides.items()}
    assert not threads["train"] & threads["valid"] and len(threads["train"] | threads["valid"]) == store.document_count
    assert sum(len(source.lengths) for source in sides.values()) == len(store.examples) and len(sides["valid"].lengths) > 5


def test_equal_texts_have_equal_numbers(tokenizer, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *({"turns": turns} for turns in (["ba ki", "thanks"], ["lo mu", "thanks"], ["ba ki", "de"])))
    prepare(path, tmp_path / "store", tokenizer=tokenizer, dialogues=True, workers=1)
    store, rows = Store.open(tmp_path / "store"), np.arange(3)
    found = TurnPairs(store).read(rows, keys(rows))
    responses, contexts = found.responses.documents.tolist(), found.contexts.documents.tolist()
    assert responses[0] == responses[1] != responses[2] and contexts[0] == contexts[2] != contexts[1]
    pairs = pairs_of(store, 60, "all", 0.0, PairChoice(kind="turns"), "crops").read(rows, keys(rows))
    assert pairs.passages.documents.tolist() == responses and split(pairs.queries) == split(found.contexts)
    known = {(code >> 32, code & 0xFFFFFFFF) for code in pairs.known.tolist()}
    assert known == set(zip(contexts, responses))
