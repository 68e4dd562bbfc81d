"""An exported folder gives the same vectors everywhere, for every family and kind of tokenizer; a wrong one never appears."""

import importlib.util
import json

import numpy as np
import pytest
import torch
import transformers
import yaml

from foretext.errors import UserError
from foretext.interop import export as module
from foretext.interop.export import PROBES, export, verify
from foretext.model.encoder import Encoder, EncoderConfig
from foretext.model.folder import Heads, read_heads
from foretext.model.heads import TokenHead
from foretext.model.huggingface import load, load_token_head
from foretext.model.presets import preset
from foretext.retrieval.embed import TextEncoder
from foretext.text.tokenizer import Tokenizer

SENTENCES = [*PROBES, "The quick brown fox jumps over the lazy dog; Pack my box with five dozen liquor jugs."] * 12


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: Tokenizer.train(SENTENCES, kind, 640, lowercase=kind == "wordpiece") for kind in ("wordpiece", "bpe", "unigram")}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def encoder(family: str, vocab_size: int, max_len: int = 48) -> Encoder:
    if family == "electra":
        shape = {"width": 32, "layers": 2, "heads": 2, "ffn_width": 64, "embedding_width": 16, "max_len": max_len}
        return shaken(Encoder(EncoderConfig(family="electra", vocab_size=vocab_size, **shape)))
    window = {"window": 6, "layers": 4} if family == "modernbert" else {}
    return shaken(Encoder(preset(f"{family}-tiny", vocab_size, width=32, max_len=max_len, **window)))


CASES = [
    ("bert", "wordpiece", "mean", True),
    ("bert", "bpe", "cls", True),
    ("roberta", "bpe", "mean", True),
    ("roberta", "unigram", "cls", False),
    ("electra", "wordpiece", "cls", True),
    ("mpnet", "unigram", "mean", True),
    ("modernbert", "wordpiece", "cls", True),
    ("modernbert", "bpe", "mean", False),
]


@pytest.mark.parametrize(("family", "kind", "pooling", "normalize"), CASES)
def test_the_same_vectors_in_every_library(family, kind, pooling, normalize, tokenizers, tmp_path, monkeypatch):
    tokenizer = tokenizers[kind]
    network = encoder(family, tokenizer.size + 3)  # three rows of padding, cut off on the way out
    similarity = "cosine" if normalize else "dot"
    model = TextEncoder(network, tokenizer, pooling, normalize, {"query": "Query: "}, 40, similarity, torch.bfloat16)
    head = shaken(TokenHead(network))
    found: dict[str, float] = {}
    monkeypatch.setattr(module, "verify", lambda *given: found.update(verify(*given)))
    export(model, tmp_path / "out", head)
    assert model.dtype == torch.bfloat16
    assert {"foretext", "transformers"} <= set(found) and max(found.values()) <= 1e-5
    assert ("sentence-transformers" in found) == bool(importlib.util.find_spec("sentence_transformers"))
    again = TextEncoder.load(tmp_path / "out", "cpu")
    assert (again.pooling, again.normalized, again.similarity, again.max_len, again.notes) == (pooling, normalize, similarity, 40, ())
    assert again.prompt("query") == "Query: " and again.prompt("document") == ""
    assert torch.equal(load_token_head(tmp_path / "out").dense.weight, head.dense.weight)
    assert transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.vocab_size == tokenizer.size
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and config["model_max_length"] == 40


def test_a_difference_is_found_and_nothing_appears(tokenizers, tmp_path, monkeypatch):
    model = TextEncoder(encoder("bert", tokenizers["wordpiece"].size), tokenizers["wordpiece"], "mean")
    write = module.write

    def wrong(model, folder, *rest):
        write(model, folder, *rest)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True}))

    monkeypatch.setattr(module, "write", wrong)
    with pytest.raises(RuntimeError, match="not the same in"):
        export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_mpnet_needs_its_padding_id(tokenizers, tmp_path):
    model = TextEncoder(encoder("mpnet", tokenizers["wordpiece"].size), tokenizers["wordpiece"])
    with pytest.raises(UserError, match="padding id at 1"):
        export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def quick(monkeypatch):
    """Without the comparison, which other tests make."""
    monkeypatch.setattr(module, "verify", lambda *_: {})


def test_files(quick, tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    model = TextEncoder(encoder("bert", tokenizer.size), tokenizer, "cls", False, similarity="dot")
    export(model, tmp_path / "out")
    names = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "modules.json",
                     "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"}  # fmt: skip
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_cls_token", "include_prompt"]
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [entry["type"].rpartition(".")[2] for entry in modules] == ["Transformer", "Pooling"]
    settings = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert settings["similarity_fn_name"] == "dot" and settings["prompts"] == {"query": "", "document": ""}

    before = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    with pytest.raises(UserError, match="already exists"):
        export(model, tmp_path / "out")
    export(model, tmp_path / "out", overwrite=True)
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in names}


def test_card(quick, tokenizers, tmp_path):
    tokenizer = tokenizers["bpe"]
    model = TextEncoder(encoder("roberta", tokenizer.size), tokenizer, "mean", True, {"query": 'say "it": '})
    card = {"title": "Docs encoder", "data": "40,000 docstrings", "objective": "contrastive", "steps": 12_000, "encoder": "roberta-tiny",
            "metrics": {"nDCG@10": 0.31234, "documents": 1000}, "language": "en", "license": "apache-2.0"}  # fmt: skip
    export(model, tmp_path / "out", TokenHead(model.encoder), card, Heads("retromae", {}, {"a": torch.ones(2)}))
    text = (tmp_path / "out" / "README.md").read_text()
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    head = yaml.safe_load(head)
    assert head["library_name"] == "sentence-transformers" and head["language"] == "en" and head["license"] == "apache-2.0"
    assert "fill-mask" in head["tags"] and "base_model" not in head
    for part in ("Docs encoder", "40,000 docstrings", "contrastive", "12,000", "roberta-tiny", "0.3123", "| documents | 1000 |",
                 "SentenceTransformer(", "AutoModel", "TextEncoder.load", "pooler", "retromae", 'say "it": '):  # fmt: skip
        assert part in body, part
    assert read_heads(tmp_path / "out").objective == "retromae"
    for code in body.split("```python\n")[1:]:
        compile(code.split("```")[0], "card", "exec")


def test_the_code_on_the_card_gives_our_vectors(tokenizers, tmp_path):
    tokenizer = tokenizers["bpe"]
    model = TextEncoder(encoder("roberta", tokenizer.size), tokenizer, "mean", True, {"document": "d: "}, 24)
    folder = export(model, tmp_path / "out")
    code = (folder / "README.md").read_text().split("```python\n")[2].split("```")[0].replace("path/to/this/folder", str(folder))
    names: dict = {}
    exec(code, names)
    assert np.abs(names["vectors"].numpy() - model.encode(["a text", "another one"], "document")).max() <= 1e-5


def test_a_model_of_another_project_goes_through(tokenizers, tmp_path):
    """DistilBERT has no token types; written as BERT it gets zeros."""
    tokenizer = tokenizers["wordpiece"]
    shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 48}
    reference = shaken(transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=tokenizer.size, **shape))).eval()
    reference.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs", 48)
    model = TextEncoder.load(tmp_path / "theirs", "cpu")
    export(model, tmp_path / "ours")
    assert load(tmp_path / "ours").encoder.config.types == 2
