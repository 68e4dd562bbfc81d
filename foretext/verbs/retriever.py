"""`foretext finetune retriever`: an encoder and training groups in, a retriever out."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from foretext.errors import UserError
from foretext.model.lora import add_lora
from foretext.objectives.contrastive import Contrastive
from foretext.progress import console
from foretext.retrieval.collection import judged_split, read_collection
from foretext.retrieval.groups import Groups, Text, numbered, read_groups
from foretext.retrieval.metrics import score
from foretext.retrieval.runs import as_run
from foretext.retrieval.search import search
from foretext.retrieval.teacher import EmbeddingTeacher, load_teacher
from foretext.summary import Policy
from foretext.text.grouped import GroupedPairs
from foretext.text.randomness import permutation
from foretext.training.distributed import World
from foretext.training.loop import TrainingConfig, train
from foretext.training.optim import OptimConfig
from foretext.verbs.models import encoding_dtype, model_folder
from foretext.verbs.pretrain import EncoderChoice, Trained, as_before, as_text_encoder, finish, load_best, start_encoder, tokenizer_of
from foretext.verbs.shared import shared

JUDGED_DEPTH = 10  # of the measures that validation computes


class FinetuneOptim(OptimConfig):
    """How weights move in fine-tuning; a class, so that setting one of these leaves the others."""

    lr: float = Field(2e-5, gt=0, description="peak learning rate (RetroMAE's reranker: 1e-5 with 65 passages a query)")
    eps: float = Field(1e-8, gt=0, description="AdamW")


class FinetuneTraining(TrainingConfig):
    """The loop's settings with the defaults of fine-tuning."""

    default_budget: ClassVar[dict[str, float]] = {"epochs": 4}

    batch_size: int = Field(64, gt=0, description="queries of one update; each also meets the passages of the others")
    optim: FinetuneOptim = FinetuneOptim()


class LoRA(BaseModel):
    """Low-rank adapters instead of all weights (arXiv 2106.09685); merged into the weights at export. Needs the package peft."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int | None = Field(None, gt=0, description="columns of the adapters, 8 to 64; default: none, all weights are trained")
    alpha: float = Field(16.0, gt=0, description="the adapters count alpha / rank times")
    dropout: float = Field(0.0, ge=0, lt=1, description="on what the adapters read")


class FinetuneConfig(BaseModel):
    """Settings of `foretext finetune retriever`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="BEIR, MS MARCO or RetroMAE folder; FlagEmbedding, Tevatron, sentence-transformers or triples file")
    output: str = Field(description="run folder to make, or to go on with")
    split: str = Field("train", description="of a folder: judgements to train on")
    format: str | None = Field(None, description="of the data, where the guess is wrong")
    corpus: str | None = Field(None, description="passages of a Tevatron file that names them by id")
    columns: dict[str, str] | None = Field(None, description="of a sentence-transformers file: {anchor: name, positive: name, ...}")
    negatives: str | None = Field(None, description="file of negatives: `qid, tab, pid,pid`, or what `foretext mine` writes")
    scores: str | None = Field(None, description="file of teacher scores: `qid pid score`, or a run")
    teacher: str | None = Field(None, description="model folder that scores the passages of each group: cross-encoder or retriever")
    skip: tuple[str, ...] = Field((), description="defects of records to skip and count instead of stopping, by reason name")
    strict: tuple[str, ...] = Field((), description="notes that stop, by reason name: for example score_missing")
    group_size: int | None = Field(None, gt=0, description="passages of a query: one positive, the others negatives; default: 8 where the "
                                                           "data has negatives, else 1")
    topk: int = Field(200, gt=0, description="negatives are drawn from the first so many of a query's list (RetroMAE: 200)")
    valid_split: str | None = Field(None, description="judgements to validate on: loss, nDCG@10 and MRR@10")
    valid_data: str | None = Field(None, description="BEIR folder of that split; default: data")
    valid_measure: Literal["nDCG@10", "MRR@10", "loss"] = Field("nDCG@10", description="the checkpoint that is best in it is exported")
    valid_documents: int | None = Field(None, gt=0, description="documents embedded to validate: the judged ones, and others at random up "
                                                                "to this number; default: all")
    encoder: EncoderChoice = Field(description="what to fine-tune")
    tokenizer: str | None = Field(None, description="with an encoder from scratch: folder or hub id of its tokenizer")
    lora: LoRA = LoRA()
    objective: Contrastive.Config = Contrastive.Config()
    training: FinetuneTraining = FinetuneTraining()

    @model_validator(mode="after")
    def _effective(self) -> "FinetuneConfig":
        if self.training.patience and not self.valid_split:
            raise ValueError("training.patience has no effect without a valid_split to validate on")
        if self.scores and self.teacher:
            raise ValueError("scores and teacher: take the one or the other")
        for name in ("scores", "teacher"):
            if getattr(self, name) and not self.objective.distill and self.objective.margin is None:
                raise ValueError(f"{name} has no effect without objective.distill (kl or margin_mse) or objective.margin")
        if self.objective.distill and self.group_size == 1:
            raise ValueError("objective.distill learns a ranking, and a group_size of 1 has none: take 8 or 16")
        return self


def finetune(config: FinetuneConfig, overwrite: bool = False) -> Trained | None:
    """Fine-tune an encoder on training groups and export it; interrupted, the same call goes on.

    Returns:
        None on all processes but the first.
    Raises:
        UserError: settings or data that cannot be used. Stopped: a signal came; a checkpoint is written.
    """
    world = World.join()
    tokenizer = tokenizer_of(config.encoder.start, config.tokenizer)
    groups = read_groups(config.data, config.negatives, config.scores, Policy(config.skip, config.strict), split=config.split,
                         format=config.format, corpus=config.corpus, columns=config.columns, tokenizer=tokenizer)
    if world.first:
        console.print("\n".join(groups.report()), markup=False)
    torch.manual_seed(config.training.seed)
    encoder, *_ = start_encoder(config.encoder, tokenizer, longest=512)
    objective = Contrastive(encoder, tokenizer, as_before(config.objective, config.encoder.start))
    if config.lora.rank:
        for part in filter(None, (objective.encoder, objective.document_encoder)):
            add_lora(part, config.lora.rank, config.lora.alpha, config.lora.dropout)
    source = grouped(groups, objective, config)
    valid, judge = validation(config, objective, world)
    result = train(objective, source, config.output, config.training, valid, world, overwrite, judge)
    if not world.first:
        return None
    load_best(objective, Path(config.output), result)
    if result.best_step is not None:
        console.print(f"exported: the checkpoint of step {result.best_step}, the best in {config.valid_measure}")
    data = f"{Path(config.data).resolve().name}, split {config.split}: {len(source.lengths):,} groups"
    return finish(objective, Path(config.output), result, config.encoder.start, data)


def grouped(groups: Groups, objective: Contrastive, config: FinetuneConfig) -> GroupedPairs:
    """Training groups as the loop reads them: `group_size` passages of each query, scored where there is a teacher."""
    options, tokenizer = config.objective, objective.tokenizer
    size = config.group_size or (8 if any(group.negatives for group in groups.groups) else 1)
    if options.distill and size == 1:
        raise UserError(f"{config.data}: has no negatives to learn a ranking of; name a file of negatives, or set group_size")
    if (options.distill or options.margin is not None) and not config.teacher:
        check_scores(groups, config)
    texts, positives, negatives = numbered(groups.groups, groups.passages, size, config.topk)
    queries, asks = numbered_queries(groups, objective)
    teacher = None
    if config.teacher and (options.distill or options.margin is not None):
        if not all(isinstance(text, str) for text in (queries[0], texts[0])):
            raise UserError(f"{config.data}: holds token ids, which a teacher cannot read; give it a file of scores")
        teacher = load_teacher(model_folder(config.teacher), queries, texts, encoding_dtype(config.training.precision or "auto"))
    guide = teacher.vectors if isinstance(teacher, EmbeddingTeacher) and options.margin is not None else None
    return GroupedPairs(queries, texts, asks, positives, negatives, tokenizer, size, config.topk, teacher if size > 1 else None, guide,
                        longest=(options.query_max_len or objective.max_len, objective.max_len))


def check_scores(groups: Groups, config: FinetuneConfig) -> None:
    """A teacher's scores must be there; passages without one leave their group, counted, or stop with `strict`."""
    entries = [entry for group in groups.groups for entry in (*group.positives, *group.negatives)]
    missing = sum(entry.score is None for entry in entries)
    if missing == len(entries):
        raise UserError(f"{config.data}: no passage has a teacher score; name a file of scores, or a teacher")
    if missing and "score_missing" in config.strict:
        raise UserError(f"{config.scores or config.data}: {missing:,} of {len(entries):,} listed passages have no teacher score "
                        "(score_missing); score them, or take score_missing out of strict")
    if missing:
        console.print(f"{missing:,} of {len(entries):,} listed passages have no teacher score: they leave their groups in distillation")


def numbered_queries(groups: Groups, objective: Contrastive) -> tuple[list[Text], np.ndarray]:
    """Distinct queries (by id and prompt), and the number of each group's; where a file gives prompts, they are put before them here."""
    own_prompts = any(group.prompt is not None for group in groups.groups)
    if own_prompts:
        objective.prompts[0] = objective.prompts[0][:1]
    number: dict[tuple[str, str | None], int] = {}
    texts: list[Text] = []
    for group in groups.groups:
        if (group.query_id, group.prompt) not in number:
            number[group.query_id, group.prompt] = len(texts)
            prompt = objective.config.query_prompt if group.prompt is None else group.prompt
            texts.append(prompt + group.query if own_prompts else group.query)
    return texts, np.array([number[group.query_id, group.prompt] for group in groups.groups], dtype=np.int64)


def validation(config: FinetuneConfig, objective: Contrastive,
               world: World) -> tuple[GroupedPairs | None, Callable[[], dict[str, float]] | None]:
    """Held-out pairs to measure the loss on, and what measures the ranking; None each where nothing is held out."""
    if not config.valid_split:
        return None, None
    folder = config.valid_data or config.data
    collection = read_collection(folder, Policy(config.skip, config.strict), split=config.valid_split)
    asked = judged_split(collection, config.valid_split)
    number = {name: i for i, name in enumerate(collection.document_ids)}
    links = [(i, number[document]) for i, query in enumerate(asked.query_ids)
             for document, grade in asked.judgements[query].items() if grade > 0 and document in number]
    judged, places = np.unique([document for _, document in links], return_inverse=True)
    asks = np.array([query for query, _ in links], np.int64)
    answers = [collection.documents[i] for i in judged]
    pairs = GroupedPairs.linked(asked.query_texts, answers, np.stack((asks, places), 1), objective.tokenizer)
    if config.valid_measure == "loss":
        return pairs, None
    others = np.setdiff1d(permutation(len(number), config.training.seed, 0), judged, assume_unique=True)  # keeps the permutation's order
    room = len(others) if config.valid_documents is None else max(0, config.valid_documents - len(judged))
    kept = sorted([*judged.tolist(), *others[:room].tolist()])
    names, texts = [collection.document_ids[i] for i in kept], [collection.documents[i] for i in kept]

    def judge() -> dict[str, float]:
        model = shared(as_text_encoder(objective), world)
        queries, documents = model.encode(asked.query_texts, "query"), model.encode(texts, "document")
        scores, indices = world.share(queries, lambda some: search(some, documents, JUDGED_DEPTH, model.similarity))
        means = score(asked.judgements, as_run(asked.query_ids, names, scores, indices), ("nDCG@10", "MRR@10")).means()
        order = sorted(means, key=lambda name: name != config.valid_measure)
        return {f"valid_{name}": means[name] for name in order}

    return pairs, judge
