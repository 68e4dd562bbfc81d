"""A dual encoder's folder: written, read again, and the same vectors."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from foretext.interop.export import export
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.towers import ConversationEncoder, TowerEncoder
from foretext.verbs.pretrain import EncoderChoice, as_text_encoder, continue_heads, start_encoder
from tests.conftest import made_up_texts
from tests.objectives.table import EVERY, make_objective, small_tokenizer
from tests.processes import together

TEXTS = made_up_texts(9, seed=4)


def make(name: str = "convert", **config):
    encoder = make_objective(name).encoder
    torch.manual_seed(0)
    return EVERY[name](encoder, small_tokenizer(), EVERY[name].Config(**config))


@pytest.mark.parametrize(("name", "config", "kind"), [
    ("convert", {}, ConversationEncoder), ("convert", {"quantize": "tables"}, ConversationEncoder),
    ("convert", {"quantize": "all"}, ConversationEncoder), ("convert", {"turns": 0}, TowerEncoder),
    ("dual", {"output": "linear", "towers": "separate", "document_prompt": "it says "}, TowerEncoder),
    ("dual", {"towers": "separate", "reduction": "cls"}, TextEncoder), ("dual", {"reduction": "max"}, TowerEncoder)])
def test_what_is_exported_gives_the_vectors_that_training_saw(name, config, kind, tmp_path):
    objective = make(name, **config)
    with torch.no_grad():  # the sides of a fresh model are alike
        for parameter in objective.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    live = as_text_encoder(objective)
    loaded = TextEncoder.load(export(live, tmp_path / "model"))  # which compares with sentence-transformers, where that is installed
    assert type(loaded) is kind
    for side in ("query", "document"):
        vectors = loaded.encode(TEXTS, side)
        np.testing.assert_allclose(vectors, live.encode(TEXTS, side), rtol=0, atol=1e-6)
        alone = np.concatenate([loaded.encode([text], side) for text in TEXTS])
        np.testing.assert_allclose(vectors, alone, rtol=0, atol=1e-5)
        loaded.dtype = torch.bfloat16
        assert (cosines(loaded.encode(TEXTS, side), vectors) > 0.999).all()
        loaded.dtype = torch.float32
    if config != {"reduction": "max"}:  # which has one network for both
        assert not np.allclose(loaded.encode(TEXTS, "query"), loaded.encode(TEXTS, "document"))
    assert loaded.fingerprint() == TextEncoder.load(tmp_path / "model").fingerprint()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("inference", ["joint", "mean"])
def test_messages_with_the_turns_before_them(inference):
    objective = make(multi_inference=inference).eval()
    model = as_text_encoder(objective)
    turns = ["", *TEXTS[:4]]
    found = model.encode_contexts(TEXTS[4:], turns)
    model.dtype = torch.bfloat16
    assert (cosines(model.encode_contexts(TEXTS[4:], turns), found) > 0.999).all()
    model.dtype = None
    np.testing.assert_allclose(found[0], model.encode(TEXTS[4:5], "query")[0], rtol=0, atol=1e-5)
    assert not np.allclose(found[1], model.encode(TEXTS[5:6], "query")[0], atol=1e-3)
    for i in range(1, 5):
        np.testing.assert_allclose(found[i], model.encode_contexts(TEXTS[4 + i : 5 + i], turns[i : i + 1])[0], rtol=0, atol=1e-5)


def test_two_processes_embed_messages_together(tmp_path):
    """Messages with turns before them are shared out too; one of two processes may have none."""
    model = as_text_encoder(make().eval())
    export(model, tmp_path / "model")
    turns = ["", *TEXTS[:4]]
    together(f"""
import numpy as np
from foretext.retrieval.embed import TextEncoder
from foretext.verbs.shared import SharedConversationEncoder, shared
from foretext.training.distributed import World
world = World.join("cpu")
model = shared(TextEncoder.load({str(tmp_path / "model")!r}), world)
assert isinstance(model, SharedConversationEncoder) and model.similarity == {model.similarity!r}
np.save({str(tmp_path)!r} + f"/several-{{world.rank}}", model.encode_contexts({TEXTS[4:]!r}, {turns!r}))
np.save({str(tmp_path)!r} + f"/one-{{world.rank}}", model.encode_contexts({TEXTS[4:5]!r}, ["before"]))
""")
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"several-{rank}.npy"), model.encode_contexts(TEXTS[4:], turns), rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.load(tmp_path / f"one-{rank}.npy"), model.encode_contexts(TEXTS[4:5], ["before"]), rtol=0, atol=1e-5)


def test_the_quantised_file_is_small(tmp_path):
    sizes = {}
    for how in (None, "tables", "all"):
        export(as_text_encoder(make(quantize=how)), tmp_path / str(how))
        sizes[how] = (tmp_path / str(how) / "model.safetensors").stat().st_size
    assert sizes["tables"] < 0.5 * sizes[None]
    assert sizes["all"] < 0.3 * sizes[None]


def test_training_goes_on_from_a_folder(tmp_path):
    first = make(score_scale="learned")
    export(as_text_encoder(first), tmp_path / "model")
    encoder, _, heads, _ = start_encoder(EncoderChoice(start=str(tmp_path / "model")), small_tokenizer(), 64)
    again = EVERY["convert"](encoder, small_tokenizer(), first.config)
    assert "towers" in " ".join(continue_heads(again, None, heads))
    for name, tensor in first.towers.state_dict().items():
        assert torch.equal(tensor, again.towers.state_dict()[name]), name


@pytest.mark.parametrize(("name", "config"), [
    ("convert", {"quantize": "all"}), ("dual", {"output": "linear", "towers": "separate", "reduction": "cls"}),
    ("dual", {"reduction": "2ha"})])
def test_auto_model_reads_the_folder(name, config, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    objective = make(name, **config)
    with torch.no_grad():  # the sides of a fresh model are alike
        for parameter in objective.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model = as_text_encoder(objective)
    folder = export(model, tmp_path / "model")
    network, tokenizer = (auto.from_pretrained(folder, trust_remote_code=True) for auto in (AutoModel, AutoTokenizer))
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = {side: network(**batch, side=side) for side in ("query", "document")}
        alone = network(**tokenizer(TEXTS[:1], truncation=True, return_tensors="pt")).last_hidden_state[0]
    saved = TextEncoder.load(folder)
    for side, output in found.items():
        np.testing.assert_allclose(output.pooler_output, saved.encode(TEXTS, side), rtol=0, atol=1e-5)
    torch.testing.assert_close(found["document"].last_hidden_state[0, : len(alone)], alone, rtol=0, atol=1e-5)
    assert not np.allclose(found["query"].pooler_output, found["document"].pooler_output) or config == {"reduction": "2ha"}
    network.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    torch.testing.assert_close(again(**batch).pooler_output, found["document"].pooler_output, rtol=0, atol=1e-5)
