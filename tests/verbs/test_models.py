"""How verbs open an encoder: `--dtype` reaches it, and what was made in one dtype does not go on in another."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foretext.cli import main
from foretext.errors import UserError
from foretext.interop.export import export
from foretext.model.encoder import Encoder
from foretext.model.precision import has_bf16
from foretext.model.presets import preset
from foretext.retrieval.collection import write_collection
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.vectors import open_vectors
from foretext.text.corpus import Document
from foretext.verbs.models import encoding_dtype, open_encoder
from foretext.verbs.search import Searcher, encode
from tests.conftest import made_up_texts
from tests.retrieval.test_evaluate import made_up

TEXTS = made_up_texts(24, seed=3)
CORPUS = [Document(f"doc {i}", "", text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer) -> Path:
    """A run folder with an export, and a BEIR folder."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    encoder = Encoder(preset("bert-tiny", tokenizer.size, width=32, max_len=48))
    export(TextEncoder(encoder, tokenizer, "mean"), folder / "run" / "export")
    write_collection(folder / "data", made_up(60, 20))
    return folder


def test_what_auto_is():
    cpu = torch.device("cpu")
    assert encoding_dtype("auto", cpu) == (torch.bfloat16 if has_bf16(cpu) else torch.float32)
    assert encoding_dtype("bf16", cpu) == torch.bfloat16 and encoding_dtype("fp32", cpu) == torch.float32
    with pytest.raises(UserError, match="--dtype fp16: there are auto, bf16, fp32"):
        encoding_dtype("fp16", cpu)


def test_the_library_stays_with_fp32(place):
    library = TextEncoder.load(place / "run" / "export", "cpu").encode(TEXTS)
    assert np.array_equal(open_encoder(place / "run", "fp32", "cpu").encode(TEXTS), library)
    rounded = open_encoder(place / "run", "bf16", "cpu").encode(TEXTS)
    assert not np.array_equal(rounded, library) and (rounded * library).sum(1).min() > 0.999


def test_what_a_verb_opens_is_frozen(place):
    """It keeps its precision between calls, which those that overlap would else change for each other; what Python loads can be trained."""
    opened = open_encoder(place / "run", "bf16", "cpu").encoder
    assert opened.compute_dtype == torch.bfloat16 and not any(x.requires_grad for x in opened.parameters())
    loaded = TextEncoder.load(place / "run" / "export", "cpu", torch.bfloat16).encoder
    assert all(x.requires_grad for x in loaded.parameters())


def test_a_folder_of_vectors_has_one_dtype(place, tmp_path):
    """Shards of different machines, or a run that goes on elsewhere, never mix."""
    encode(place / "run", CORPUS, tmp_path / "index", (0, 2), dtype="bf16")
    with pytest.raises(UserError, match="computed in bfloat16, and these would be in float32; choose --dtype"):
        encode(place / "run", CORPUS, tmp_path / "index", (1, 2), dtype="fp32")
    encode(place / "run", CORPUS, tmp_path / "index", (1, 2), dtype="bf16")
    vectors = open_vectors(tmp_path / "index")
    assert vectors.manifest["compute_dtype"] == "bfloat16" and vectors.manifest["dtype"] == "float32"
    hits = Searcher(tmp_path / "index").search(TEXTS, 1)
    assert [hit[0].text for hit in hits] == TEXTS


@pytest.mark.parametrize("dtype, said", [("bf16", "bfloat16"), ("fp32", "float32")])
def test_the_option_reaches_the_encoder(place, tmp_path, monkeypatch, dtype, said):
    def typed(*arguments):
        monkeypatch.setattr("sys.argv", ["foretext", *map(str, arguments), "--dtype", dtype])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code

    typed("evaluate", place / "run", place / "data", "-o", tmp_path / "scores")
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["options"]["compute_dtype"] == said
    typed("encode", place / "run", place / "data", "-o", tmp_path / "index")
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["compute_dtype"] == said


@pytest.mark.parametrize("verb", ["encode", "evaluate", "mine"])
def test_an_unknown_dtype_is_one_sentence(place, tmp_path, verb, monkeypatch, capsys):
    options = ["--split", "test"] if verb == "mine" else []
    monkeypatch.setattr("sys.argv", ["foretext", verb, str(place / "run"), str(place / "data"), "-o", str(tmp_path / "out.jsonl"),
                                     "--dtype", "half", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and "--dtype half: there are auto, bf16, fp32" in error
    assert not (tmp_path / "out.jsonl").exists()
