"""`foretext pretrain`: a token store in, an encoder out."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foretext.config import check, gather, underlay
from foretext.errors import UserError
from foretext.files import whole_folder
from foretext.interop.export import export, verify
from foretext.model.folder import Heads, locate, read_heads
from foretext.model.huggingface import load as load_huggingface
from foretext.model.lora import merge_lora
from foretext.model.presets import CONVERT, is_preset, preset
from foretext.model.towers import is_towers, load_towers, new_encoder
from foretext.objectives import OBJECTIVES
from foretext.objectives.base import Objective
from foretext.objectives.contrastive import Contrastive
from foretext.progress import console
from foretext.retrieval.embed import TextEncoder, prompt_of, read_settings
from foretext.retrieval.towers import TowerEncoder
from foretext.text.batches import Source
from foretext.text.pairs import PairChoice
from foretext.text.store import Store
from foretext.text.tokenizer import Tokenizer
from foretext.training import checkpoint
from foretext.training.distributed import World
from foretext.training.loop import Result, TrainingConfig, train
from foretext.verbs.models import model_folder

SHORTEST_MAX_LEN = 8
TOWERS = "a dual encoder"  # whose heads mean the same in every objective that has towers


class EncoderChoice(BaseModel):
    """Which network, and from which weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: str = Field("bert-mini", description="a preset (from scratch), a run folder, a Hugging Face folder or hub id")
    max_len: int | None = Field(None, ge=SHORTEST_MAX_LEN,
                                description="longest input in tokens; default: the longest row, or the checkpoint's")
    dropout: float = Field(0.0, ge=0, lt=1, description="after embeddings and layers; slow on CPUs, and one pass over a text needs none")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="on attention weights")
    options: dict[str, Any] = Field({}, description="of a preset: fields of its network to set otherwise, for example {layers: 6}")


class PretrainConfig(BaseModel):
    """Settings of `foretext pretrain`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(description="token store that `foretext prepare` wrote")
    output: str = Field(description="run folder to make, or to go on with")
    objective: dict[str, Any] = Field({"name": "mlm"}, description="its name, and its settings")
    encoder: EncoderChoice = EncoderChoice()
    pairs: PairChoice = PairChoice()
    valid_share: float = Field(0.01, ge=0, lt=1, description="share of documents held out to measure the loss on")
    training: TrainingConfig = TrainingConfig()


@dataclass
class Trained:
    """What a training verb leaves behind."""

    folder: Path
    export: Path
    result: Result

    def lines(self) -> list[str]:
        return [f"{self.result.steps:,} steps, {self.result.tokens:,} tokens",
                f"run:   {self.folder}  (metrics.jsonl, tensorboard/, checkpoints/)",
                f"model: {self.export}  (loads in transformers and sentence-transformers)"]


def settings(file: str | Path | None = None, given: dict[str, Any] | None = None, sets: list[str] = ()) -> PretrainConfig:
    """`PretrainConfig` from a file and flags; where an objective has a paper's recipe for the encoder, it fills what they leave open."""
    values = gather(file, given, sets)
    name = values.get("objective", {}).get("name")
    if name in OBJECTIVES and OBJECTIVES[name].start:
        values = underlay(values, {"encoder": {"start": OBJECTIVES[name].start}})
    recipe = OBJECTIVES[name].recipes.get(values.get("encoder", {}).get("start")) if name in OBJECTIVES else None
    if recipe:
        training = dict(recipe["training"])
        if set(values.get("training", {})) & {"steps", "tokens", "epochs", "minutes"}:
            training.pop("steps", None)
        values = underlay(values, recipe | {"training": training})
        console.print(f"{name} on {values['encoder']['start']}: the paper's settings, but for those you set")
    return check(PretrainConfig, values, str(file) if file else None)


def pretrain(config: PretrainConfig, overwrite: bool = False) -> Trained | None:
    """Pre-train as `config` says and export the encoder; interrupted, the same call goes on.

    Returns:
        None on all processes but the first.
    Raises:
        UserError: settings that cannot be met. Stopped: a signal came; a checkpoint is written.
    """
    store, world = Store.open(config.store), World.join()
    objective = make_objective(config, store.tokenizer, longest_row(store))
    source, valid = sources(config, store, objective)
    result = train(objective, source, config.output, config.training, valid, world, overwrite)
    if not world.first:
        return None
    data = f"{Path(config.store).name}: {len(store):,} rows, {len(store.tokens):,} tokens"
    return finish(objective, Path(config.output), result, config.encoder.start, data)


def longest_row(store: Store) -> int:
    """Tokens of the store's longest row, special tokens included."""
    return int(np.diff(store.offsets).max()) + 2


def make_objective(config: PretrainConfig, tokenizer: Tokenizer, longest: int) -> Objective:
    """The objective that the settings describe, around its encoder, on the CPU."""
    settings = dict(config.objective)
    name = settings.pop("name", None)
    if name not in OBJECTIVES:
        raise UserError(f"objective.name: {name!r} is no objective; choose one of {', '.join(OBJECTIVES)}")
    kind = OBJECTIVES[name]
    options = check(kind.Config, settings, "objective")
    torch.manual_seed(config.training.seed)
    encoder, head, heads, notes = start_encoder(config.encoder, tokenizer, longest)
    if heads is not None and heads.objective == name:
        options = check(kind.Config, {key: heads.options[key] for key in kind.shapes if key in heads.options} | settings, "objective")
    if isinstance(options, Contrastive.Config):
        options = as_before(options, config.encoder.start)
    objective = kind(encoder, tokenizer, options)
    towers = getattr(objective, "towers", None)
    if tokenizer.hash_buckets and (towers is None or towers.stock):  # said now, not by the export after days of training
        raise UserError(f"the store's tokenizer has hash buckets, which no class of transformers knows: train convert on it, or prepare "
                        f"the corpus without --hash-buckets for {name}")
    taken = continue_heads(objective, head, heads)
    for note in notes + taken * (not is_preset(config.encoder.start)):  # from a preset everything is fresh
        console.print(note)
    return objective


def start_encoder(choice: EncoderChoice, tokenizer: Tokenizer, longest: int):
    """(encoder, its token head or None, other heads or None, notes): fresh from a preset, or with the weights of a folder."""
    dropout = {"dropout": choice.dropout, "attention_dropout": choice.attention_dropout}
    if choice.start in CONVERT:
        if choice.attention_dropout:
            raise UserError(f"encoder.attention_dropout: {choice.start} has none; set encoder.dropout (of its token vectors) instead")
        length = {"max_len": choice.max_len} if choice.max_len else {}
        return network(choice, tokenizer, dropout=choice.dropout, **length), None, None, []
    if is_preset(choice.start):
        family, _, size = choice.start.rpartition("-")
        if family == "mpnet" and tokenizer.pad_id != 1:  # said now, not by the export after days of training
            raise UserError(f"{choice.start} needs a tokenizer whose padding has id 1 (transformers takes that for granted), found "
                            f"{tokenizer.pad_id}: prepare the corpus with --tokenizer-kind bpe, or take bert-{size}")
        return network(choice, tokenizer, max_len=choice.max_len or longest, **dropout), None, None, []
    if choice.options:
        raise UserError(f"encoder.options: {choice.start} has its shape already; only presets can be changed")
    folder = model_folder(choice.start)
    if is_towers(Path(folder)):
        return start_towers(choice, Path(folder), tokenizer)
    changes = dropout | ({"max_len": choice.max_len} if choice.max_len else {})
    found = load_huggingface(folder, **changes)
    if Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
        raise UserError(f"{choice.start} has another tokenizer than the store: prepare the corpus again with --tokenizer {choice.start}")
    return found.encoder, found.head, read_heads(locate(folder)), list(found.notes)


def as_before(options: Contrastive.Config, start: str) -> Contrastive.Config:
    """The options, with pooling and prompts of the retriever that the encoder starts from where they say nothing; it is printed."""
    if is_preset(start) or options.filled() == options:
        return options
    folder = locate(model_folder(start))
    if is_towers(folder) or not (folder / "modules.json").is_file():
        return options
    try:
        before = read_settings(folder)
    except UserError as error:  # its weights can be trained all the same
        console.print(f"{error}; what is not set here is pooling mean and no prompts", markup=False)
        return options
    found = options.filled(before.pooling, prompt_of(before.prompts, "query"), prompt_of(before.prompts, "document"))
    if found != options.filled():
        console.print(f"as in {start}: pooling {found.pooling}, prompts {found.query_prompt!r} and {found.document_prompt!r}", markup=False)
    return found


def start_towers(choice: EncoderChoice, folder: Path, tokenizer: Tokenizer):
    """As `start_encoder`, from a dual encoder's folder: the encoder (the queries' one), and all that stands on it as heads."""
    if Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
        raise UserError(f"{choice.start} has another tokenizer than the store: prepare the corpus again with --tokenizer {choice.start}")
    towers, others = load_towers(folder), read_heads(folder)
    tensors = {f"towers.{name}": tensor for name, tensor in towers.state_dict().items()} | dict(others.tensors if others else {})
    config = towers.encoder.config
    changes = {name: value for name, value in choice.model_dump().items()
               if name in ("max_len", "dropout", "attention_dropout") and name in type(config).model_fields and value is not None}
    encoder = new_encoder(config.model_copy(update=changes))
    encoder.load_state_dict(towers.encoder.state_dict())
    return encoder, None, Heads(TOWERS, {}, tensors), []


def network(choice: EncoderChoice, tokenizer: Tokenizer, **changes: Any):
    """A preset's network with fresh weights."""
    try:
        return new_encoder(preset(choice.start, tokenizer.size, **changes | choice.options))
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"encoder.options.{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def tokenizer_of(start: str, given: str | None) -> Tokenizer:
    """The tokenizer that is named, or the one in the folder an encoder starts from."""
    if given is None and is_preset(start):
        raise UserError(f"tokenizer: {start} starts from scratch and has none; name a folder or hub id that has one")
    return Tokenizer.load(given or model_folder(start))


def continue_heads(objective: Objective, head: torch.nn.Module | None, heads: Heads | None) -> list[str]:
    """Put the heads of an earlier run into the objective; says what was taken and which of its heads start fresh.

    Heads are those of the same objective, or of one that it extends or that extends it (condenser and cocondenser).
    """
    fresh = set(objective.heads())
    notes = []
    if head is not None and hasattr(objective, "head") and type(objective.head) is type(head):
        objective.head.load_state_dict(head.state_dict())
        fresh -= {name for name in fresh if name.startswith("head.")}
    if heads is not None and related(objective, heads.objective):
        state = objective.state_dict()
        fitting = {name: tensor for name, tensor in heads.tensors.items() if name in state and state[name].shape == tensor.shape}
        objective.load_state_dict(fitting, strict=False)
        fresh -= set(fitting)
        notes += [f"heads of {heads.objective} go on: {parts(fitting)}"] if fitting else []
    return notes + ([f"start fresh: {parts(fresh)}"] if fresh else [])


def related(objective: Objective, name: str) -> bool:
    """Whether the heads of the objective `name` mean the same here."""
    if name == TOWERS:
        return hasattr(objective, "towers")
    other = OBJECTIVES.get(name)
    return other is not None and (isinstance(objective, other) or issubclass(other, type(objective)))


def parts(names: Iterable[str]) -> str:
    """`decoder, head` for the names of their tensors."""
    return ", ".join(sorted({name.split(".")[0] for name in names}))


def sources(config: PretrainConfig, store: Store, objective: Objective) -> tuple[Source, Source | None]:
    """What the objective trains on, and what it is measured on (None where nothing is held out)."""
    if objective.reads != "pairs" and config.pairs != PairChoice():
        raise UserError(f"pairs has no effect with {objective.name}, which reads {objective.reads}"
                        + (f" with noise {objective.config.noise}: set objective.noise=none" if hasattr(objective.config, "noise")
                           else ": leave it out, or choose an objective that reads pairs, such as contrastive or dual"))
    training = objective.source(store, "train", config.valid_share, config.pairs)
    if not len(training.lengths):
        raise UserError(f"{store.path}: no row is left to train on with valid_share {config.valid_share}")
    if not config.valid_share:
        return training, None
    valid = objective.source(store, "valid", config.valid_share, config.pairs)
    if not len(valid.lengths):
        console.print(f"the corpus is too small to hold out {config.valid_share:.1%} of it: nothing is validated")
        return training, None
    return training, valid


def load_best(objective: Objective, folder: Path, result: Result) -> None:
    """Put the weights of the run's best validation back; the last ones stay where nothing was validated."""
    if result.best_step is not None:
        checkpoint.load_objective(folder / "checkpoints" / f"step-{result.best_step}", objective)


def finish(objective: Objective, folder: Path, result: Result, start: str, data: str) -> Trained:
    """Export what was trained to `folder`/export, with its heads, and check that it loads elsewhere."""
    model = as_text_encoder(objective)
    head = getattr(objective, "head", None)
    elsewhere = ("head.", "towers.") if isinstance(model, TowerEncoder) else ("head.",)  # in the model's own file
    extra = {name: tensor for name, tensor in objective.heads().items() if not name.startswith(elsewhere)}
    heads = Heads(objective.name, objective.config.model_dump(mode="json"), extra) if extra else None
    card = {"data": data, "objective": objective.name, "steps": result.steps, "tokens": result.tokens, "encoder": start,
            "metrics": {name: round(value, 4) for name, value in result.last.items() if name.startswith("valid_")}}
    target = export(model, folder / "export", head, card, heads, overwrite=True)
    try:
        objective.save_networks(folder / "networks", overwrite=True)
    except UserError as error:  # the encoder is exported: no reason to fail after days of training
        console.print(str(error))
    return Trained(folder, target, result)


def as_text_encoder(objective: Objective) -> TextEncoder:
    """The objective's live encoder as something that embeds texts."""
    prompts = {"query": getattr(objective.config, "query_prompt", ""), "document": getattr(objective.config, "document_prompt", "")}
    similarity = "cosine" if objective.normalize else "dot"
    towers = getattr(objective, "towers", None)
    if towers is not None and not towers.stock:
        return TowerEncoder.of(towers, objective.tokenizer, prompts, objective.max_len)
    second = getattr(objective, "document_encoder", None) if towers is None else towers.second_encoder
    return TextEncoder(merge_lora(objective.encoder), objective.tokenizer, objective.pooling, objective.normalize, prompts,
                       objective.max_len, similarity, document_encoder=second and merge_lora(second),
                       projection=getattr(objective, "projection", None))


def export_graphs(run: str | Path, output: str | Path, format: str, int8: bool = False, overwrite: bool = False) -> list[str]:
    """A run's or a folder's encoder as ONNX graphs; says what was written."""
    from foretext.interop.onnx import export_onnx

    if format != "onnx":
        raise UserError(f"--format {format}: choose folder or onnx" if format != "folder" else "--int8 goes with --format onnx")
    sizes = export_onnx(model_folder(run), output, int8, overwrite)
    return [f"graph: {Path(output) / name}  ({size / 1e6:.1f} MB)" for name, size in sizes.items()]


def export_again(run: str | Path, output: str | Path, overwrite: bool = False) -> Path:
    """Copy a run's exported model elsewhere, checked once more."""
    folder = Path(run) / "export"
    if model_folder(run) != str(folder):
        raise UserError(f"{run}: no finished run there (export/ is missing); run its training command again to finish it")
    with whole_folder(output, overwrite) as new:
        shutil.copytree(folder, new, dirs_exist_ok=True)
        verify(TextEncoder.load(folder, "cpu", torch.float32), new)
    return Path(output)
