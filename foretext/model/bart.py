"""BART folders of transformers, both ways: encoder and decoder of RoBERTa's layout as `BartForConditionalGeneration`.

BART (arXiv 1910.13461) is RoBERTa's layer with a decoder. What travels differently from our own layout:
    - q, k and v are one matrix here, three there; cross-attention's k and v are one here, two there;
    - token types do not exist there: the row of type 0 is added to every position's row, which is the same function;
    - position 0 is row 2 of the table, whatever the padding id;
    - the decoder there has a position table and an embedding norm of its own. Ours reads through the encoder's, so both are written
      twice, and folders where they differ (those that others trained) are refused on reading.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from foretext.errors import UserError
from foretext.files import read_json, write_json
from foretext.model.decoder import Decoder
from foretext.model.encoder import Encoder, EncoderConfig
from foretext.model.folder import locate, read_tensors
from foretext.model.heads import TiedHead
from foretext.model.huggingface import Table, parameter_names

OFFSET = 2  # rows before that of position 0
NORM_EPS = 1e-5  # fixed in transformers' class


def _layer(side: str) -> Table:
    at = f"model.{side}.layers.{{i}}"
    return {
        "blocks.{i}.qkv": tuple(f"{at}.self_attn.{part}_proj" for part in "qkv"),
        "blocks.{i}.out": f"{at}.self_attn.out_proj",
        "blocks.{i}.attention_norm": f"{at}.self_attn_layer_norm",
        "blocks.{i}.up": f"{at}.fc1",
        "blocks.{i}.down": f"{at}.fc2",
        "blocks.{i}.ffn_norm": f"{at}.final_layer_norm",
    }


ENCODER = _layer("encoder") | {"words": "model.shared", "positions": "model.encoder.embed_positions", "types": "types",
                               "norm": "model.encoder.layernorm_embedding"}
CROSS = "model.decoder.layers.{i}.encoder_attn"
DECODER = _layer("decoder") | {
    "blocks.{i}.cross.q": f"{CROSS}.q_proj",
    "blocks.{i}.cross.kv": (f"{CROSS}.k_proj", f"{CROSS}.v_proj"),
    "blocks.{i}.cross.out": f"{CROSS}.out_proj",
    "blocks.{i}.cross.norm": f"{CROSS}_layer_norm",
}
TWICE = {"model.encoder.embed_positions.weight": "model.decoder.embed_positions.weight",
         "model.encoder.layernorm_embedding.weight": "model.decoder.layernorm_embedding.weight",
         "model.encoder.layernorm_embedding.bias": "model.decoder.layernorm_embedding.bias"}
ALIASES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")  # of the word table
FIELDS = {"vocab_size": "vocab_size", "width": "d_model", "max_len": "max_position_embeddings", "layers": "encoder_layers",
          "heads": "encoder_attention_heads", "ffn_width": "encoder_ffn_dim", "dropout": "dropout",
          "attention_dropout": "attention_dropout"}


def fits_bart(config: EncoderConfig) -> bool:
    """Whether an encoder of this layout, with a decoder of the same, is a BART."""
    return config.family == "roberta" and config.norm_eps == NORM_EPS and config.table_width == config.width


def write_bart(encoder: Encoder, decoder: Decoder, output: TiedHead, folder: Path, ids: Mapping[str, int], vocab_size: int) -> None:
    """Write config.json and model.safetensors of a `BartForConditionalGeneration` into an existing folder; no tokenizer.

    Args:
        ids: "pad", "cls" and "sep"; cls begins a text, in source and target, and sep ends it.
        vocab_size: rows of the word table to keep.
    """
    from safetensors.torch import save_file

    found = _give(encoder, ENCODER) | _give(decoder, DECODER)
    positions = found["model.encoder.embed_positions.weight"]
    if (types := found.pop("types.weight", None)) is not None:
        positions = positions + types[0]
    found["model.encoder.embed_positions.weight"] = torch.cat((positions.new_zeros(OFFSET, positions.shape[1]), positions))
    found |= {theirs: found[ours] for ours, theirs in TWICE.items()}
    found["model.shared.weight"] = found["model.shared.weight"][:vocab_size]
    found["final_logits_bias"] = output.bias[None, :vocab_size]
    found = {name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous() for name, tensor in found.items()}
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    values = encoder.config.model_dump() | {"vocab_size": vocab_size}
    write_json(folder / "config.json", {
        "model_type": "bart", "architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True,
        **{theirs: values[ours] for ours, theirs in FIELDS.items()}, "decoder_layers": len(decoder.blocks),
        "decoder_attention_heads": values["heads"], "decoder_ffn_dim": values["ffn_width"], "activation_function": "gelu",
        "activation_dropout": 0.0, "classifier_dropout": 0.0, "init_std": 0.02, "scale_embedding": False, "use_cache": True,
        "tie_word_embeddings": True, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "pad_token_id": ids["pad"],
        "bos_token_id": ids["cls"], "eos_token_id": ids["sep"], "decoder_start_token_id": ids["cls"], "forced_eos_token_id": None,
        "dtype": "float32", "torch_dtype": "float32"})


def load_bart(source: str | Path) -> tuple[Encoder, Decoder, TiedHead]:
    """The three parts of a folder that `write_bart` wrote.

    Raises:
        UserError: another architecture, or a decoder with embeddings of its own.
    """
    folder = locate(source)
    raw = read_json(folder / "config.json")
    config = EncoderConfig(family="roberta", types=1, norm_eps=NORM_EPS, **{ours: raw[theirs] for ours, theirs in FIELDS.items()})
    expected = {"model_type": "bart", "decoder_attention_heads": config.heads, "decoder_ffn_dim": config.ffn_width,
                "scale_embedding": False, "activation_function": "gelu"}
    for key, value in expected.items():
        if raw.get(key) != value:
            raise UserError(f"{folder}/config.json: {key} is {raw.get(key)!r}, but only {value!r} is read here")
    found = read_tensors(folder)
    for ours, theirs in TWICE.items():
        if not torch.equal(found.get(ours, torch.empty(0)), found.pop(theirs, torch.empty(1))):
            raise UserError(f"{folder}: {theirs} differs from {ours}: its decoder has embeddings of its own, this package's has not")
    for alias in ALIASES:
        found.pop(alias, None)
    found["model.encoder.embed_positions.weight"] = found["model.encoder.embed_positions.weight"][OFFSET:].clone()
    found["types.weight"] = torch.zeros(1, config.width)
    encoder, decoder = Encoder(config), Decoder(config, raw["decoder_layers"])
    output = TiedHead(encoder)
    with torch.no_grad():
        output.bias.copy_(found.pop("final_logits_bias")[0])
    _take(encoder, ENCODER, found, folder)
    _take(decoder, DECODER, found, folder)
    if found:
        raise UserError(f"{folder}: unknown tensors: {', '.join(sorted(found))}")
    return encoder, decoder, output


def _give(module: torch.nn.Module, table: Table) -> dict[str, Tensor]:
    state = module.state_dict()
    return {name: part for ours, theirs in parameter_names(module, table).items()
            for name, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True)}


def _take(module: torch.nn.Module, table: Table, found: dict[str, Tensor], folder: Path) -> None:
    names = parameter_names(module, table)
    missing = [name for theirs in names.values() for name in theirs if name not in found]
    if missing:
        raise UserError(f"{folder}: tensors are missing: {', '.join(missing)}")
    module.load_state_dict({ours: torch.cat([found.pop(name) for name in theirs]) for ours, theirs in names.items()})
