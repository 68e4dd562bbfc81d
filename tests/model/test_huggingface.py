"""Hugging Face folders: equal hidden states and logits, both ways, for every family; and every tensor accounted for."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from foretext.errors import UserError
from foretext.model.encoder import Encoder, Tokens
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
