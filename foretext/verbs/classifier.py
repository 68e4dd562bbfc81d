"""`foretext finetune classifier` and `foretext classify`: labelled texts in, a classifier out; its predictions for others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from foretext.config import check
from foretext.files import write_json
from foretext.interop.classifier import export_classifier
from foretext.model.folder import Heads
from foretext.objectives.classify import Classify
from foretext.progress import console
from foretext.retrieval.agreement import agreement, agreement_lines, write_predictions
from foretext.retrieval.classifier import TextClassifier
from foretext.text.batches import uniform_of_documents
from foretext.text.labelled import Labelled, LabelledTexts, Task, guess_task, names_of, read_labelled, targets_of
from foretext.training.distributed import World
from foretext.training.loop import Result, TrainingConfig, train
from foretext.training.optim import OptimConfig
from foretext.verbs.pretrain import EncoderChoice, load_best, start_encoder, tokenizer_of


class ClassifierOptim(OptimConfig):
    """Rates that fall with depth, so that what pre-training found is kept."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate (ELECTRA base; small 3e-4)")
    layer_decay: float = Field(0.8, gt=0, le=1, description="rate of each layer as a share of the one above; 1 for encoders from scratch")


class ClassifierTraining(TrainingConfig):
    """The loop's settings with the defaults of classification (ELECTRA, arXiv 2003.10555, appendix B: base size)."""

    default_budget: ClassVar[dict[str, float]] = {"epochs": 3}

    batch_size: int = Field(32, gt=0, description="texts of one update")
    optim: ClassifierOptim = ClassifierOptim()
    valid_every: int = Field(100, gt=0, description="updates between validations")


class Columns(BaseModel):
    """Where a file has what; by default the usual names are looked for, and what was taken is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str | None = Field(None, description="column of the text (of the first of a pair); a number from 1 where there is no header")
    second: str | None = Field(None, description="column of the second text of a pair")
    label: str | None = Field(None, description="column of the label")


class ClassifierConfig(BaseModel):
    """Settings of `foretext finetune classifier`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="labelled texts or pairs: .csv, .tsv, .jsonl or .parquet")
    output: str = Field(description="run folder to make, or to go on with")
    valid: str | None = Field(None, description="a file of the same form to choose the best checkpoint on; default: a share of the data")
    valid_share: float = Field(0.1, ge=0, lt=1, description="share of the data that is held out where there is no such file")
    test: str | None = Field(None, description="a file of the same form to predict and score at the end")
    columns: Columns = Columns()
    task: Task | None = Field(None, description="default: guessed from the labels, and said")
    double_unordered: bool = Field(False, description="pairs also the other way round, for tasks where order means nothing (ELECTRA)")
    encoder: EncoderChoice = Field(description="what to fine-tune")
    tokenizer: str | None = Field(None, description="with an encoder from scratch: folder or hub id of its tokenizer")
    objective: Classify.Options = Classify.Options()
    training: ClassifierTraining = ClassifierTraining()


@dataclass
class Classified:
    """What the verb leaves behind."""

    folder: Path
    export: Path
    result: Result
    scores: dict[str, dict[str, float]]  # file's role -> measure -> value
    report: list[str]

    def lines(self) -> list[str]:
        return [f"{self.result.steps:,} steps, {self.result.tokens:,} tokens", *self.report,
                f"run:   {self.folder}  (metrics.jsonl, checkpoints/, scores.json, predictions-*.tsv)", f"model: {self.export}"]


def finetune(config: ClassifierConfig, overwrite: bool = False) -> Classified | None:
    """Fine-tune an encoder on labelled texts, keep the checkpoint that is best on held-out ones, predict and export.

    Returns:
        None on all processes but the first.
    Raises:
        UserError: settings or data that cannot be used. Stopped: a signal came; a checkpoint is written.
    """
    world = World.join()
    data = read(config.data, config.columns)
    for note in data.notes if world.first else ():
        console.print(note)
    others = {role: read(path, config.columns) for role, path in (("valid", config.valid), ("test", config.test)) if path}
    task = config.task or guess_task(data.labels)
    names = names_of(data.labels, task)
    if world.first and config.task is None:
        console.print(f"task: {task}" if task == "score" else f"task: {task}, {len(names)} labels: {', '.join(names[:5])}"
                      + ", ..." * (len(names) > 5))  # fmt: skip
    kept = torch.arange(len(data.first))
    targets = {"train": targets_of(data, names, task)} | {role: targets_of(other, names, task) for role, other in others.items()}
    if "valid" not in others and config.valid_share:
        held_out = uniform_of_documents(kept) < config.valid_share
        if held_out.any() and not held_out.all():
            others["valid"], targets["valid"] = part(data, held_out), targets["train"][held_out]
            data, targets["train"] = part(data, ~held_out), targets["train"][~held_out]
    tokenizer = tokenizer_of(config.encoder.start, config.tokenizer)
    torch.manual_seed(config.training.seed)
    encoder, *_ = start_encoder(config.encoder, tokenizer, longest=config.objective.max_len or 512)
    settings = check(Classify.Config, config.objective.model_dump() | {"task": task, "labels": names}, config.data)
    objective = Classify(encoder, tokenizer, settings)
    if task == "score":  # so that training need not carry the output there first
        torch.nn.init.constant_(objective.head.out.bias, float(targets["train"].mean()))
    both = config.double_unordered and data.second is not None
    source = LabelledTexts(data.first, data.second, targets["train"], tokenizer, both)
    valid = LabelledTexts(others["valid"].first, others["valid"].second, targets["valid"], tokenizer) if "valid" in others else None
    output = Path(config.output)
    model = as_classifier(objective)

    def judge() -> dict[str, float]:
        first, second = others["valid"].first, others["valid"].second
        logits = world.share(range(len(first)), lambda some: model.logits([first[i] for i in some], second and [second[i] for i in some]))
        found = agreement(logits, targets["valid"].numpy(), task)
        return {f"valid_{name}": value for name, value in found.items()}

    result = train(objective, source, output, config.training, valid, world, overwrite, judge if valid else None)
    if not world.first:
        return None
    load_best(objective, output, result)
    objective.eval()
    scores, report = {}, []
    for role, other in others.items():
        logits = model.logits(other.first, other.second)
        scores[role] = agreement(logits, targets[role].numpy(), task)
        report += agreement_lines(f"{role}, {other.path.name}", logits, targets[role].numpy(), task)
        write_predictions(output / f"predictions-{role}.tsv", logits, names, task, other.lines, other.labels, overwrite=True)
    write_json(output / "scores.json", scores)
    return Classified(output, export(objective, model, config, result, scores), result, scores, report)


def read(path: str, columns: Columns, needs_labels: bool = True) -> Labelled:
    """A file's texts and labels."""
    return read_labelled(path, columns.text, columns.second, columns.label, needs_labels)


def part(data: Labelled, rows: torch.Tensor) -> Labelled:
    """The examples where `rows` (N,) is True."""
    places = rows.nonzero().flatten().tolist()

    def some(values: list | None) -> list | None:
        return None if values is None else [values[i] for i in places]

    return Labelled(data.path, some(data.first), some(data.second), some(data.labels), some(data.lines), data.notes)


def as_classifier(objective: Classify) -> TextClassifier:
    """The objective's live networks as something that takes texts."""
    config = objective.config
    return TextClassifier(objective.encoder, objective.head, objective.tokenizer, config.labels, config.task, objective.max_len)


def export(objective: Classify, model: TextClassifier, config: ClassifierConfig, result: Result, scores: dict[str, Any]) -> Path:
    """Write the run's export/."""
    heads = None
    if objective.config.head != "stock":
        heads = Heads(objective.name, objective.config.model_dump(mode="json"), objective.heads())
        console.print(f"the head {objective.config.head} is no class of transformers, which loads it with trust_remote_code=True where "
                      "foretext is installed")  # fmt: skip
    metrics = {f"{role} {name}": round(value, 4) for role, values in scores.items() for name, value in values.items()}
    card = {"data": Path(config.data).name, "steps": result.steps, "encoder": config.encoder.start, "metrics": metrics}
    return export_classifier(model, Path(config.output) / "export", card, heads, overwrite=True)


def classify(source: str, file: str, output: str, columns: Columns, overwrite: bool = False) -> list[str]:
    """Predict for every text or pair of a file; where it has labels, say how well.

    Raises:
        UserError: no classifier there, or a file that does not fit.
    """
    model = TextClassifier.load(source)
    data = read(file, columns, needs_labels=False)
    logits = model.logits(data.first, data.second, show_progress=True)
    path = write_predictions(output, logits, model.labels, model.task, data.lines, data.labels, overwrite)
    lines = [*data.notes, f"predictions: {path}  ({len(logits):,})"]
    if model.last_cut:
        lines.append(f"{model.last_cut:,} inputs were longer than {model.max_len} tokens and were cut")
    if data.labels is not None:
        lines += agreement_lines(Path(file).name, logits, np.asarray(targets_of(data, model.labels, model.task)), model.task)
    return lines

