"""`foretext generate`: from runs, exports and BART folders; what cannot write says so."""

import io

import pytest
import torch
from safetensors.torch import load_file

from foretext.cli.retrieval import generate as verb
from foretext.errors import UserError
from foretext.model.generation import GenerationConfig
from foretext.text.prepare import prepare
from foretext.verbs.generate import generate, load_writer
from foretext.verbs.pretrain import PretrainConfig, pretrain
from tests.conftest import made_up_texts

TEXTS = ["ba de ki lo mu", "na po", "ra se ti vu wa xe yo zi"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs on pairs (the target repeats the source), and of clm and mlm, with a byte-level vocabulary."""
    folder = tmp_path_factory.mktemp("generate")
    texts = [" ".join(text.split()[:6]) for text in made_up_texts(60, seed=5)]
    (folder / "pairs.tsv").write_text("".join(f"{text}\t{text}\n" for text in texts))
    prepare(folder / "pairs.tsv", folder / "store", pairs=True, title_field="1", text_field="2", tokenizer_kind="bpe", vocab_size=512,
            max_tokens=20, workers=1)
    for name, start, options in (("seq2seq", "bart-tiny", {"noise": "none", "decoder_layers": 1}), ("clm", "bert-tiny", {}),
                                 ("mlm", "bert-tiny", {})):
        pretrain(PretrainConfig(store=str(folder / "store"), output=str(folder / name), objective={"name": name, **options},
                                encoder={"start": start}, valid_share=0.0,
                                training={"steps": 2, "batch_size": 8, "optim": {"lr": 1e-3}}))
    return folder


def test_run_export_and_bart_folder_write_the_same(runs):
    config = GenerationConfig(longest=8, beams=3)
    written = [generate(runs / folder, TEXTS, config) for folder in ("seq2seq", "seq2seq/export", "seq2seq/networks/bart")]
    assert written[0] == written[1] == written[2]
    assert len(written[0]) == len(TEXTS) and any(written[0])
    assert written[0][1] == generate(runs / "seq2seq", TEXTS[1:2], config)[0]


def test_the_export_holds_the_whole_network(runs):
    (file,) = (runs / "seq2seq" / "checkpoints").glob("*/*.safetensors")
    trained, state = load_file(file), load_writer(runs / "seq2seq").state_dict()
    assert set(trained) <= set(state)
    assert all(torch.equal(state[name], value) for name, value in trained.items())


def test_a_causal_model_goes_on_with_the_text(runs):
    for text, found in zip(TEXTS, generate(runs / "clm", TEXTS, GenerationConfig(longest=4))):
        assert found.replace(" ", "").startswith(text.replace(" ", ""))


def test_reads_lines_from_standard_input(runs, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("ba de\n\nki lo\n"))
    verb(str(runs / "seq2seq"), ["-"], longest=4)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(("options", "words"), [({"beams": 2, "temperature": 1.0}, "no effect"), ({"top_p": 3.0}, "top_p"),
                                                ({"beams": 0}, "beams")])
def test_wrong_settings_are_one_sentence(runs, options, words):
    with pytest.raises(UserError, match=words):
        verb(str(runs / "seq2seq"), ["a text"], **options)


def test_models_that_do_not_write_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="mlm, which does not write; name a run folder of one of .*seq2seq"):
        generate(runs / "mlm", TEXTS)
    with pytest.raises(UserError, match="does not say that it can write"):
        generate(runs / "mlm" / "export", TEXTS)
    with pytest.raises(UserError):
        generate(tmp_path / "nothing", TEXTS)
    with pytest.raises(UserError, match="shorten"):
        generate(runs / "clm", ["ba de ki " * 40])
