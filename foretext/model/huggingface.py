"""Hugging Face model folders, both ways: the names as data, every tensor accounted for.

`load_encoder` reads BERT (also MiniLM and other renamed BERTs), RoBERTa, XLM-RoBERTa, ELECTRA, MPNet, ModernBERT and DistilBERT;
`save_encoder` writes all of them but DistilBERT. One table per family is read from left to right on the way out and from
right to left on the way in.

What travels differently from our own layout:
    - q, k and v are one matrix here, three there (ModernBERT: one as well);
    - RoBERTa and MPNet give position 0 to table row pad_id + 1: the rows before it are dropped on reading, zeros on writing;
    - `pooler` does not exist here. It is left out on writing, so that `BertModel` makes a fresh one, which nobody should use
      (transformers says so when it loads the folder).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foretext.errors import UserError
from foretext.files import read_json, whole_folder, write_json
from foretext.model.encoder import Encoder, EncoderConfig
from foretext.model.folder import locate, read_tensors
from foretext.model.heads import SequenceHead, TokenHead

Table = dict[str, str | tuple[str, ...]]
"""Our module -> theirs (several: concatenated along the first axis). {i} is the layer; .weight and .bias follow by themselves."""

BERT: Table = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "blocks.{i}.qkv": tuple(f"encoder.layer.{{i}}.attention.self.{part}" for part in ("query", "key", "value")),
    "blocks.{i}.out": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks.{i}.up": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.down": "encoder.layer.{i}.output.dense",
    "blocks.{i}.ffn_norm": "encoder.layer.{i}.output.LayerNorm",
}
ELECTRA = BERT | {"project": "embeddings_project"}
MPNET = BERT | {
    "relative": "encoder.relative_attention_bias",
    "blocks.{i}.qkv": tuple(f"encoder.layer.{{i}}.attention.attn.{part}" for part in "qkv"),
    "blocks.{i}.out": "encoder.layer.{i}.attention.attn.o",
    "blocks.{i}.attention_norm": "encoder.layer.{i}.attention.LayerNorm",
}
DISTILBERT = BERT | {
    "blocks.{i}.qkv": tuple(f"transformer.layer.{{i}}.attention.{part}_lin" for part in "qkv"),
    "blocks.{i}.out": "transformer.layer.{i}.attention.out_lin",
    "blocks.{i}.attention_norm": "transformer.layer.{i}.sa_layer_norm",
    "blocks.{i}.up": "transformer.layer.{i}.ffn.lin1",
    "blocks.{i}.down": "transformer.layer.{i}.ffn.lin2",
    "blocks.{i}.ffn_norm": "transformer.layer.{i}.output_layer_norm",
}
MODERNBERT: Table = {
    "words": "embeddings.tok_embeddings",
    "norm": "embeddings.norm",
    "blocks.{i}.attention_norm": "layers.{i}.attn_norm",
    "blocks.{i}.qkv": "layers.{i}.attn.Wqkv",
    "blocks.{i}.out": "layers.{i}.attn.Wo",
    "blocks.{i}.ffn_norm": "layers.{i}.mlp_norm",
    "blocks.{i}.up": "layers.{i}.mlp.Wi",
    "blocks.{i}.down": "layers.{i}.mlp.Wo",
    "final_norm": "final_norm",
}

# Token heads: "" is the head itself, whose .bias is the vocabulary bias.
BERT_HEAD: Table = {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm", "": "cls.predictions"}
ROBERTA_HEAD: Table = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "": "lm_head"}
ELECTRA_HEAD: Table = {"dense": "generator_predictions.dense", "norm": "generator_predictions.LayerNorm", "": "generator_lm_head"}
MODERNBERT_HEAD: Table = {"dense": "head.dense", "norm": "head.norm", "": "decoder"}
DISTILBERT_HEAD: Table = {"dense": "vocab_transform", "norm": "vocab_layer_norm", "": "vocab_projector"}

# Sequence heads of *ForSequenceClassification, prefix of the encoder included where the class keeps a part of it there.
BERT_SEQUENCE: Table = {"dense": "bert.pooler.dense", "out": "classifier"}
ROBERTA_SEQUENCE: Table = {"dense": "classifier.dense", "out": "classifier.out_proj"}
MODERNBERT_SEQUENCE: Table = {"dense": "head.dense", "norm": "head.norm", "out": "classifier"}
SEQUENCE = {"bert": BERT_SEQUENCE, "roberta": ROBERTA_SEQUENCE, "electra": ROBERTA_SEQUENCE, "mpnet": ROBERTA_SEQUENCE,
            "modernbert": MODERNBERT_SEQUENCE}  # fmt: skip

SIZES = {"vocab_size": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
         "ffn_width": "intermediate_size", "max_len": "max_position_embeddings"}  # fmt: skip
BERT_FIELDS = SIZES | {"types": "type_vocab_size", "norm_eps": "layer_norm_eps", "dropout": "hidden_dropout_prob",
                       "attention_dropout": "attention_probs_dropout_prob"}  # fmt: skip
MPNET_FIELDS = {ours: theirs for ours, theirs in BERT_FIELDS.items() if ours != "types"}
MODERNBERT_FIELDS = SIZES | {"norm_eps": "norm_eps", "dropout": "mlp_dropout", "attention_dropout": "attention_dropout"}
DISTILBERT_FIELDS = SIZES | {"width": "dim", "layers": "n_layers", "heads": "n_heads", "ffn_width": "hidden_dim",
                             "dropout": "dropout", "attention_dropout": "attention_dropout"}  # fmt: skip
# What transformers assumes where a config.json is silent; sizes must always be there.
BERT_DEFAULTS = {"types": 2, "norm_eps": 1e-12, "dropout": 0.1, "attention_dropout": 0.1}


@dataclass(frozen=True)
class Names:
    """How one `model_type` calls everything."""

    family: str  # ours
    class_name: str  # transformers' classes are this + Model, ForMaskedLM, ...
    prefix: str  # before every encoder tensor in the classes with a head
    modules: Table
    head: Table
    tied: str  # the head's output matrix, an alias of the word table
    fields: dict[str, str]  # ours -> config.json
    defaults: dict[str, Any]
    activation: str = "hidden_act"
    pad_id: int = 0  # transformers' default
    offset: bool = False  # position 0 is table row pad_id + 1


NAMES = {
    "bert": Names("bert", "Bert", "bert.", BERT, BERT_HEAD, "cls.predictions.decoder", BERT_FIELDS, BERT_DEFAULTS),
    "roberta": Names(
        "roberta", "Roberta", "roberta.", BERT, ROBERTA_HEAD, "lm_head.decoder", BERT_FIELDS, BERT_DEFAULTS, pad_id=1, offset=True
    ),  # fmt: skip
    "xlm-roberta": Names(
        "roberta", "XLMRoberta", "roberta.", BERT, ROBERTA_HEAD, "lm_head.decoder", BERT_FIELDS, BERT_DEFAULTS, pad_id=1, offset=True
    ),  # fmt: skip
    "electra": Names(
        "electra",
        "Electra",
        "electra.",
        ELECTRA,
        ELECTRA_HEAD,
        "generator_lm_head",
        BERT_FIELDS | {"embedding_width": "embedding_size"},
        BERT_DEFAULTS,
    ),  # fmt: skip
    "mpnet": Names(
        "mpnet",
        "MPNet",
        "mpnet.",
        MPNET,
        ROBERTA_HEAD,
        "lm_head.decoder",
        MPNET_FIELDS,
        {"norm_eps": 1e-12, "dropout": 0.1, "attention_dropout": 0.1},
        pad_id=1,
        offset=True,
    ),  # fmt: skip
    "modernbert": Names(
        "modernbert",
        "ModernBert",
        "model.",
        MODERNBERT,
        MODERNBERT_HEAD,
        "decoder",
        MODERNBERT_FIELDS,
        {"norm_eps": 1e-5, "dropout": 0.0, "attention_dropout": 0.0},
        "hidden_activation",
        pad_id=50283,
    ),  # fmt: skip
    "distilbert": Names(
        "bert",
        "DistilBert",
        "distilbert.",
        DISTILBERT,
        DISTILBERT_HEAD,
        "vocab_projector",
        DISTILBERT_FIELDS,
        {"dropout": 0.1, "attention_dropout": 0.1},
        "activation",
    ),  # fmt: skip
}

IGNORED = re.compile(r"(.*\.)?(position_ids|token_type_ids|version|_float_tensor)|cls\.seq_relationship\..*|pooler\..*")
OTHER_HEADS = re.compile(r"(classifier|pre_classifier|qa_outputs|discriminator_predictions)\..*")


@dataclass(frozen=True)
class Imported:
    """What a folder gave: the encoder, its token head if it has one, and sentences on what was left aside."""

    encoder: Encoder
    head: TokenHead | None
    notes: tuple[str, ...]
    sequence: SequenceHead | None = None  # of a *ForSequenceClassification folder


def load_encoder(source: str | Path, **changes) -> Encoder:
    """The encoder of a Hugging Face folder or hub id, in fp32 on the CPU, in training mode like any new module.

    Args:
        changes: `max_len` (at most the table's), `dropout`, `attention_dropout`; by default the folder's own.
    Raises:
        UserError: no such folder, another architecture, or tensors that do not fit (all of them listed).
    """
    return load(source, **changes).encoder


def load_token_head(source: str | Path) -> TokenHead | None:
    """The masked-language-model head of a folder; None where it has none (it then starts fresh)."""
    return load(source).head


def load(source: str | Path, **changes) -> Imported:
    """Encoder and token head of a Hugging Face folder or hub id, every tensor accounted for; see `load_encoder`."""
    folder = locate(source)
    raw = read_json(_there(folder / "config.json"))
    names, config, pad_id = read_config(raw, folder)
    found = _normalised(read_tensors(folder), names, folder)
    problems: list[str] = []
    with torch.device("meta"):
        encoder = Encoder(config)
        head = TokenHead(encoder)
    skip = pad_id + 1 if names.offset else 0
    state = _take(found, encoder, names.modules, problems, {"positions.weight": skip})
    notes, words = [], state.get("words.weight")
    sequence, sequence_state = _take_sequence_head(found, raw, names, config, problems)
    head_state = _take_head(found, head, names, words, raw.get("tie_word_embeddings", True), problems, notes)
    unknown = []
    for name in sorted(found):
        kept_out = "ignored by rule" if IGNORED.fullmatch(name) else "a head of another task" if OTHER_HEADS.match(name) else None
        (notes if kept_out else unknown).append(f"{name}: {kept_out}" if kept_out else name)
    if unknown:
        problems.append(f"unknown: {', '.join(unknown)}")
    if problems:
        raise UserError(
            f"{folder}: the tensors do not fit a {raw['model_type']} encoder as config.json describes it; {'; '.join(problems)}"
        )
    changed = _changed(config, changes, folder)
    if encoder.positions is not None:
        state["positions.weight"] = state["positions.weight"][: changed.max_len].clone()
    with torch.device("meta"):
        encoder = Encoder(changed)
        head = TokenHead(encoder) if head_state is not None else None
    encoder.load_state_dict(state, assign=True)
    if head is not None:
        head.load_state_dict(head_state, assign=True)
    if sequence is not None:
        sequence.load_state_dict(sequence_state, assign=True)
    return Imported(encoder, head, tuple(notes), sequence)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path.parent}: no {path.name} here; name a folder in the format of transformers' save_pretrained")
    return path


def _changed(config: EncoderConfig, changes: dict[str, Any], folder: Path) -> EncoderConfig:
    if wrong := set(changes) - {"max_len", "dropout", "attention_dropout"}:
        raise UserError(
            f"{folder}: {', '.join(sorted(wrong))} belongs to the weights; only max_len, dropout and attention_dropout can change"
        )
    if changes.get("max_len", 0) > config.max_len and not config.prenorm:
        raise UserError(f"{folder}: its position table has {config.max_len} rows, so max_len cannot be {changes['max_len']}")
    return EncoderConfig(**(config.model_dump() | changes))


def _normalised(tensors: dict[str, Tensor], names: Names, folder: Path) -> dict[str, Tensor]:
    """Their names without wrapper prefixes, base prefix and TensorFlow's names of the norms."""
    result: dict[str, Tensor] = {}
    for original, tensor in tensors.items():
        name = re.sub(r"\b(module|_orig_mod)\.", "", original).removeprefix(names.prefix)
        name = re.sub(r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight", re.sub(r"(LayerNorm|layer_norm)\.beta$", r"\1.bias", name))
        if name in result:
            raise UserError(f"{folder}: the tensor {name} is there twice (once as {original}); keep one of them")
        result[name] = tensor
    return result


def parameter_names(module: nn.Module, table: Table) -> dict[str, tuple[str, ...]]:
    """Our parameter -> their parameters, for every parameter of `module`."""
    result = {}
    for ours in module.state_dict():
        path, _, kind = ours.rpartition(".")
        layer = re.match(r"blocks\.(\d+)\.", path)
        theirs = table[f"blocks.{{i}}.{path[layer.end() :]}" if layer else path]
        theirs = (theirs,) if isinstance(theirs, str) else theirs
        result[ours] = tuple(f"{name.format(i=layer[1]) if layer else name}.{kind}" for name in theirs)
    return result


def _take(found: dict[str, Tensor], module: nn.Module, table: Table, problems: list[str], skip: Mapping[str, int]) -> dict[str, Tensor]:
    """Move every parameter of `module` out of `found`, as fp32; append what does not fit to `problems`."""
    state, missing, misfits = {}, [], []
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for ours, theirs in parameter_names(module, table).items():
        absent = [name for name in theirs if name not in found]
        missing += absent
        parts = [found.pop(name) for name in theirs if name in found]
        rows, *rest = shapes[ours]
        wanted = (rows // len(theirs) + skip.get(ours, 0), *rest)
        wrong = [f"{name} is {tuple(part.shape)}, not {wanted}" for name, part in zip(theirs, parts) if part.shape != wanted]
        misfits += wrong if not absent else []
        if not absent and not wrong:
            state[ours] = torch.cat(parts)[skip.get(ours, 0) :].float()  # a copy: `parts` may be the mapped file
    if missing:
        problems.append(f"missing: {', '.join(missing)}")
    if misfits:
        problems.append(f"of another shape: {', '.join(misfits)}")
    return state


def _take_head(found: dict[str, Tensor], head: TokenHead, names: Names, words: Tensor | None, tied: bool,
               problems: list[str], notes: list[str]) -> dict[str, Tensor] | None:  # fmt: skip
    """Move the token head and its aliases out of `found`; None if there is none, or none that this package can hold."""
    bias = f"{names.head['']}.bias"
    alias = {f"{names.tied}.weight": words, f"{names.tied}.bias": found.get(bias)}
    if f"{names.tied}.bias" == bias:
        del alias[bias]  # here the bias is no alias, the one place where it is kept
    elif alias[f"{names.tied}.bias"] is None and f"{names.tied}.bias" in found:
        found[bias] = found.pop(f"{names.tied}.bias")
    theirs = [name for group in parameter_names(head, names.head).values() for name in group]
    present = any(name in found for name in theirs)
    free = False
    for name, original in alias.items():
        if name in found and original is not None and not torch.equal(found[name].float(), original.float()):
            free = True
            if tied:
                problems.append(f"{name} differs from what it is tied to (say tie_word_embeddings: false in config.json if that is meant)")
        found.pop(name, None)
    if not present:
        return None
    state = _take(found, head, names.head, problems, {})
    if free and not tied:
        notes.append("the token head has an output matrix of its own, where this package ties it to the word table")
        return None
    return state


def _take_sequence_head(found: dict[str, Tensor], raw: dict[str, Any], names: Names, config: EncoderConfig,
                        problems: list[str]) -> tuple[SequenceHead | None, dict[str, Tensor]]:  # fmt: skip
    """Move the head of a *ForSequenceClassification folder out of `found`; None where it has none that is known here."""
    table = {ours: theirs.removeprefix(names.prefix) for ours, theirs in SEQUENCE[names.family].items()}
    last = f"{table['out']}.weight"
    stock = (raw.get("architectures") or [""])[0] == f"{names.class_name}ForSequenceClassification"
    if not stock or last not in found or names.class_name == "DistilBert":  # its head has a relu of its own
        return None, {}
    pooling = raw.get("classifier_pooling", "cls") if names.family == "modernbert" else "cls"
    with torch.device("meta"):
        head = SequenceHead(config, len(found[last]), "stock", pooling)
    return head, _take(found, head, table, problems, {})


def read_config(raw: dict[str, Any], where: str | Path) -> tuple[Names, EncoderConfig, int]:
    """(names, our configuration, padding id) of a parsed config.json.

    Raises:
        UserError: an architecture, or a detail of one, that the encoder cannot be.
    """
    kind = raw.get("model_type")
    if kind not in NAMES:
        raise UserError(f"{where}/config.json: model_type {kind!r} is none of those that are read: {', '.join(NAMES)}")
    names = NAMES[kind]
    pad_id = raw.get("pad_token_id", names.pad_id)
    pad_id = names.pad_id if pad_id is None else pad_id
    if absent := [theirs for ours, theirs in names.fields.items() if theirs not in raw and ours not in names.defaults]:
        raise UserError(f"{where}/config.json: without {', '.join(absent)} the shape of the network is unknown")
    values = names.defaults | {ours: raw[theirs] for ours, theirs in names.fields.items() if theirs in raw}
    _refuse(raw, names, pad_id, where)
    if names.offset:
        values["max_len"] -= pad_id + 1
    if kind == "modernbert":
        values |= {"types": 0} | _modernbert_attention(raw, values["layers"], where)
    elif kind in ("mpnet", "distilbert"):
        values["types"] = 0
    return names, EncoderConfig(family=names.family, **values), pad_id


def _refuse(raw: dict[str, Any], names: Names, pad_id: int, where: str | Path) -> None:
    """Stop at what config.json asks for and the encoder does not have."""
    expected = {names.activation: ("gelu", "gelu_python"), "position_embedding_type": ("absolute",), "is_decoder": (False,)}
    if names.family == "modernbert":
        expected |= {"attention_bias": (False,), "mlp_bias": (False,), "norm_bias": (False,), "classifier_bias": (False,),
                     "decoder_bias": (True,), "classifier_activation": ("gelu",)}  # fmt: skip
    if names.family == "mpnet":
        expected |= {"relative_attention_num_buckets": (32,)}
        if pad_id != 1:
            raise UserError(f"{where}: transformers fixes MPNet's padding id at 1, here it is {pad_id}; re-index the vocabulary")
    for key, legal in expected.items():
        if raw.get(key, legal[0]) not in legal:
            raise UserError(f"{where}/config.json: {key} is {raw[key]!r}, but the encoder only has {legal[0]!r}")


def _modernbert_attention(raw: dict[str, Any], layers: int, where: str | Path) -> dict[str, Any]:
    """Window and rotary bases, from the fields of transformers 5 or of 4."""
    every = raw.get("global_attn_every_n_layers", 3)
    kinds = raw.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    if len(full) == layers:
        every, window = 1, None
    else:
        every = full[1] if len(full) > 1 else max(every, layers)
        window = raw.get("local_attention", 128) // 2
        if full != list(range(0, layers, every)):
            raise UserError(f"{where}/config.json: layer_types must have full attention in every n-th layer from the first, not {full}")
    rope = raw.get("rope_parameters") or {}
    wide, near = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    if raw.get("rope_scaling") or {wide.get("rope_type", "default"), near.get("rope_type", "default")} != {"default"}:
        raise UserError(f"{where}/config.json: scaled rotary positions are not in the encoder; only rope_type 'default' is read")
    theta = wide.get("rope_theta", raw.get("global_rope_theta", 160_000.0))
    local = near.get("rope_theta", raw.get("local_rope_theta", 10_000.0))  # transformers 4 reads null as "the global one"
    return {"window": window, "global_every": every, "rope_theta": theta, "local_rope_theta": theta if local is None else local}


def save_encoder(encoder: Encoder, folder: str | Path, ids: Mapping[str, int], head: TokenHead | None = None,
                 overwrite: bool = False, **options) -> None:  # fmt: skip
    """Write a folder that transformers' `AutoModel` (with `head`: `AutoModelForMaskedLM`) loads; no tokenizer.

    Args:
        ids: token ids by name: "pad", "cls", "sep", and "bos", "eos" where they are not cls and sep.
        options: see `write_encoder`.
    Raises:
        UserError: the folder exists, or the family cannot be written with these ids.
    """
    with whole_folder(folder, overwrite) as temporary:
        write_encoder(encoder, temporary, ids, head, **options)


def write_encoder(encoder: Encoder, folder: Path, ids: Mapping[str, int], head: TokenHead | None = None, *,
                  vocab_size: int | None = None, dtype: torch.dtype = torch.float32, architecture: str | None = None,
                  sequence: SequenceHead | None = None, tensors: Mapping[str, Tensor] | None = None,
                  settings: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """Write config.json and model.safetensors into an existing folder; see `save_encoder`.

    Args:
        vocab_size: rows of the word table to keep (padding of the vocabulary is cut off here); default: all.
        dtype: of the stored tensors.
        architecture: transformers' class, for heads other than `head` ("ElectraForPreTraining").
        sequence: a stock head for sequences (`AutoModelForSequenceClassification` then loads the folder).
        tensors: that class's head under its own names. settings: more fields of config.json.
    """
    from safetensors.torch import save_file

    config, names = encoder.config, NAMES[encoder.config.family]
    vocab_size = vocab_size or config.vocab_size
    if sequence is not None:
        tensors = _give(sequence, SEQUENCE[config.family], "")
        architecture = f"{names.class_name}ForSequenceClassification"
        pooled = {"classifier_pooling": sequence.pooling} if config.family == "modernbert" else {}
        settings = {"classifier_dropout": sequence.dropout} | pooled | dict(settings or {})
    if names.family == "mpnet" and ids["pad"] != 1:
        raise UserError(f"transformers fixes MPNet's padding id at 1, this vocabulary has it at {ids['pad']}; re-index the vocabulary")
    headed = head is not None or bool(tensors)
    found = _give(encoder, names.modules, names.prefix if headed else "")
    base = names.prefix if headed else ""
    word_key = f"{base}{names.modules['words']}.weight"
    found[word_key] = found[word_key][:vocab_size]
    if names.offset:
        key = f"{base}{names.modules['positions']}.weight"
        found[key] = torch.cat((found[key].new_zeros(ids["pad"] + 1, found[key].shape[1]), found[key]))
    if "types" in names.fields and encoder.types is None:
        # Read from DistilBERT. The stock class always adds a type row, so it adds zeros.
        found[f"{base}{names.modules['types']}.weight"] = torch.zeros(2, config.table_width)
    if head is not None:
        found |= _give(head, names.head, "")
        found[f"{names.head['']}.bias"] = found[f"{names.head['']}.bias"][:vocab_size]
    found |= dict(tensors or {})
    found = {name: tensor.detach().to("cpu", dtype, copy=True).contiguous() for name, tensor in found.items()}
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    architecture = architecture or names.class_name + ("ForMaskedLM" if head is not None else "Model")
    written = config_for(config, ids) | {"architectures": [architecture], "vocab_size": vocab_size}
    stored = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", written | {"dtype": stored, "torch_dtype": stored} | dict(settings or {}))


def _give(module: nn.Module, table: Table, prefix: str) -> dict[str, Tensor]:
    state, result = module.state_dict(), {}
    for ours, theirs in parameter_names(module, table).items():
        for name, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
            result[prefix + name] = part
    return result


def config_for(config: EncoderConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json of this encoder, every field written out: transformers' own defaults differ from what is published."""
    names, values = NAMES[config.family], config.model_dump()
    written: dict[str, Any] = {"model_type": config.family, names.activation: "gelu"}
    written |= {theirs: values[ours] for ours, theirs in names.fields.items()}
    if names.offset:
        written["max_position_embeddings"] += ids["pad"] + 1
    if config.family == "electra":
        written["embedding_size"] = config.table_width
    if config.family == "mpnet":
        written["relative_attention_num_buckets"] = 32
    if config.family == "modernbert":
        every = 1 if config.window is None else config.global_every
        kinds = ["sliding_attention" if i % every else "full_attention" for i in range(config.layers)]
        wide, near = config.rope_theta, config.local_rope_theta
        written |= {
            "embedding_dropout": config.dropout,
            "attention_bias": False, "mlp_bias": False, "norm_bias": False, "classifier_bias": False, "decoder_bias": True,
            "classifier_activation": "gelu", "classifier_pooling": "cls",
            "local_attention": 2 * (config.window or 64), "layer_types": kinds, "global_attn_every_n_layers": every,
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": wide},
                                "sliding_attention": {"rope_type": "default", "rope_theta": near}},
            "global_rope_theta": wide, "local_rope_theta": near,
        }  # fmt: skip
    else:
        written["type_vocab_size"] = config.types or 2
        written |= {"position_embedding_type": "absolute", "is_decoder": False}
        if config.family == "mpnet":
            del written["type_vocab_size"]
    written |= {"initializer_range": 0.02, "tie_word_embeddings": True}
    written |= {f"{name}_token_id": ids[name] for name in ("pad", "cls", "sep")}
    return written | {"bos_token_id": ids.get("bos", ids["cls"]), "eos_token_id": ids.get("eos", ids["sep"])}
