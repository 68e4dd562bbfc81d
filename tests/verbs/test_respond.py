"""`foretext respond` and `foretext evaluate --task response-selection`: with a real encoder, as a person types them."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from foretext.cli import main
from foretext.errors import UserError
from foretext.verbs.models import open_encoder
from foretext.verbs.respond import Responder, evaluate_responses, open_responder, read_responses
from foretext.verbs.search import encode
from tests.conftest import made_up_texts
from tests.processes import together

RESPONSES = ["try to restart the printer", "the train leaves at noon", "restart the printer and look at the cable", "thanks",
             "cats sleep most of the day", "thanks"]


def foretext(*arguments, code: int = 0, **options) -> subprocess.CompletedProcess:
    """Run the command line as a process of its own."""
    command = [sys.executable, "-c", "from foretext.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300, **options)
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "responses.txt"
    path.write_text("\n".join(RESPONSES) + "\n")
    return path


def test_typed_as_an_argument_and_piped_in(minilm, file):
    done = foretext("respond", minilm, "-r", file, "-k", 2, "when does", "the train leave?")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[0].split()[0] == "1" and "the train leaves at noon" in lines[0]
    assert "5 different responses, 1 repeated" in done.stderr and "kept for the next time" in done.stderr
    piped = "my printer is broken\n\n" + json.dumps({"context": "what do cats do?"}) + "\n"
    done = foretext("respond", minilm, "-r", file, "-k", 1, input=piped)
    assert "used again" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "my printer is broken" and "restart the printer" in lines[1]
    assert lines[2] == "what do cats do?" and "cats sleep" in lines[3] and len(lines) == 4


@pytest.mark.parametrize(("arguments", "piped", "words"), [
    (["-r", "FILE", "--earlier", "hello", "how are you?"], None, "newest message only"),
    (["-r", "missing.txt", "hello"], None, "no such file"),
    (["-r", "FILE"], '{"contxt": "hello"}\n', "standard input, line 1: expected an object"),
])
def test_wrong_input(minilm, file, arguments, piped, words, monkeypatch, capsys):
    """The command line itself, in this process: one sentence, code 2."""
    monkeypatch.setattr(sys, "argv", ["foretext", "respond", str(minilm), *[str(file) if a == "FILE" else a for a in arguments]])
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped or ""))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("foretext: ") and words in last


def test_vectors_are_used_again_while_model_and_responses_are_the_same(minilm, file, tmp_path):
    folder = tmp_path / "responses.txt.vectors"
    first = open_responder(str(minilm), file)
    before = (folder / "vectors.npy").stat().st_mtime_ns
    again = open_responder(str(minilm), file)
    assert (folder / "vectors.npy").stat().st_mtime_ns == before and "used again" in again.notes[-1]
    assert np.array_equal(first.vectors, again.vectors) and first.texts == again.texts == list(dict.fromkeys(RESPONSES))
    file.write_text("\n".join([*RESPONSES, "one more"]) + "\n")
    changed = open_responder(str(minilm), file)
    assert "the responses changed" in changed.notes[-1] and len(changed.vectors) == 6
    about = json.loads((folder / "responses.json").read_text())
    (folder / "responses.json").write_text(json.dumps(about | {"model": "another"}))
    assert "another model" in open_responder(str(minilm), file).notes[-1]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="already exists"):  # a folder of something else is not replaced
        open_responder(str(minilm), file, tmp_path / "full")


def test_vectors_of_encode(minilm, tmp_path):
    from foretext.text.corpus import Document

    folder = encode(minilm, [Document(f"d{i}", "", text) for i, text in enumerate(RESPONSES[:5])], tmp_path / "index")
    responder = open_responder(str(minilm), folder)
    assert responder.rank(["when does the train leave?"], k=1)[0][0][1] == RESPONSES[1]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"model": "another"}))
    with pytest.raises(UserError, match="another model"):
        open_responder(str(minilm), folder)


def test_responses_of_polyai_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"context": "a very long context here", "response": text}) + "\n" for text in RESPONSES))
    texts, notes = read_responses(path)
    assert texts == list(dict.fromkeys(RESPONSES)) and "1 repeated" in notes[-1]


def test_a_responder_does_not_echo_and_keeps_the_order_of_the_file():
    class Model:
        similarity = "dot"

        def encode(self, texts, kind):
            return np.array([[len(text), 1.0] for text in texts], np.float32)

        def encode_contexts(self, contexts, earlier):
            return np.array([[-1.0, 0.0] for _ in contexts], np.float32)

    responder = Responder(Model(), ["aa", "cccc", "bb", "dddd"], Model().encode(["aa", "cccc", "bb", "dddd"], "document"), [])
    assert [text for _, text in responder.rank(["cccc"], k=3)[0]] == ["dddd", "aa", "bb"]
    assert [text for _, text in responder.rank(["x"], [["y"]], k=2)[0]] == ["aa", "bb"]


# --------------------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    """Responses that share half of their words with the message; every third is by the writer of the message."""
    path = tmp_path_factory.mktemp("dialogues") / "test.jsonl"
    with open(path, "w") as out:
        for i, text in enumerate(made_up_texts(130, seed=4)):
            words = text.split()
            record = {"context": " ".join(words[::2]), "response": " ".join(words[1::2] + words[:2]), "thread_id": f"t{i}",
                      "same_author": i % 3 == 0}
            out.write(json.dumps(record) + "\n")
    return path


def test_evaluation_beside_baselines(minilm, dialogues, tmp_path):
    lines = evaluate_responses(str(minilm), dialogues, ["bm25", "mean-embeddings"], output=tmp_path / "out")
    assert any(line.startswith("100 examples in batches of 100 (30 of a last, short batch left out); 130 examples over all 130 responses")
               for line in lines)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [model["name"] for model in scores["models"]] == ["model", "BM25", "BM25, with earlier turns", "mean of embeddings"]
    assert all(model["among"]["Recall@1"]["mean"] > 0.2 for model in scores["models"])


def test_two_processes_select_what_one_selects(minilm, dialogues, tmp_path):
    together(f"""
import os
from foretext.verbs.respond import evaluate_responses
lines = evaluate_responses({str(minilm)!r}, {str(dialogues)!r}, ["mean-embeddings"], output={str(tmp_path / "two")!r})
assert bool(lines) == (os.environ["RANK"] == "0")
""")
    evaluate_responses(str(minilm), dialogues, ["mean-embeddings"], output=tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "scores.json").read_text())["models"] for name in ("one", "two"))
    assert one == two


def test_drop_same_author(dialogues, tmp_path):
    with pytest.raises(UserError, match="86 examples do not fill a batch"):
        evaluate_responses("bm25", dialogues, drop_same_author=True)
    lines = [json.loads(line) for line in dialogues.read_text().splitlines()]
    unknown = tmp_path / "a.jsonl"
    unknown.write_text("".join(json.dumps({"context": r["context"], "response": r["response"]}) + "\n" for r in lines))
    with pytest.raises(UserError, match="who wrote what"):
        evaluate_responses("bm25", unknown, drop_same_author=True)


@pytest.mark.parametrize(("model", "baselines", "words"), [("bm25", ["tfidf"], "no baseline 'tfidf'"),
                                                           ("bm25", ["mean-embeddings"], "name a model's folder")])
def test_unknown_baselines(dialogues, model, baselines, words):
    with pytest.raises(UserError, match=words):
        evaluate_responses(model, dialogues, baselines)


def test_the_vectors_are_the_models(minilm, file):
    responder = open_responder(str(minilm), file)
    assert np.allclose(responder.vectors, open_encoder(minilm).encode(responder.texts, "document"), atol=1e-5)
