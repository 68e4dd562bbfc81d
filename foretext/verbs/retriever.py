"""`foretext finetune retriever`: an encoder and labelled pairs in, a retriever out."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from foretext.objectives.contrastive import Contrastive
from foretext.retrieval.collection import Collection, judged_split, read_collection
from foretext.text.pairs import LabelledPairs
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.training.loop import TrainingConfig, train
from foretext.training.optim import OptimConfig
from foretext.verbs.pretrain import EncoderChoice, Trained, finish, model_folder, start_encoder


class FinetuneTraining(TrainingConfig):
    """The loop's settings with the defaults of fine-tuning (objectives.md 17)."""

    default_budget: ClassVar[dict[str, float]] = {"epochs": 4}

    batch_size: int = Field(64, gt=0, description="queries of one update; each also meets the passages of the others")
    optim: OptimConfig = OptimConfig(lr=2e-5, eps=1e-8)


class FinetuneConfig(BaseModel):
    """Settings of `foretext finetune retriever`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="BEIR folder: corpus.jsonl, queries.jsonl, qrels/train.tsv")
    output: str = Field(description="run folder to make, or to go on with")
    split: str = Field("train", description="judgements to train on")
    valid_split: str | None = Field(None, description="judgements to measure the loss on")
    encoder: EncoderChoice = Field(description="what to fine-tune")
    tokenizer: str | None = Field(None, description="with an encoder from scratch: folder or hub id of its tokenizer")
    objective: Contrastive.Config = Contrastive.Config()
    training: FinetuneTraining = FinetuneTraining()


def finetune(config: FinetuneConfig, overwrite: bool = False) -> Trained | None:
    """Fine-tune an encoder on a BEIR folder's judgements and export it; interrupted, the same call goes on.

    Returns:
        None on all processes but the first.
    Raises:
        UserError: settings or data that cannot be used. Stopped: a signal came; a checkpoint is written.
    """
    world = World.join()
    collection = read_collection(config.data)
    tokenizer = Tokenizer.load(config.tokenizer or model_folder(config.encoder.start))
    torch.manual_seed(config.training.seed)
    encoder, *_ = start_encoder(config.encoder, tokenizer, longest=512)
    objective = Contrastive(encoder, tokenizer, config.objective)
    source = labelled(collection, config.split, tokenizer)
    valid = labelled(collection, config.valid_split, tokenizer) if config.valid_split else None
    result = train(objective, source, config.output, config.training, valid, world, overwrite)
    if not world.first:
        return None
    data = f"{collection.name}, split {config.split}: {len(source.links):,} pairs"
    return finish(objective, Path(config.output), result, config.encoder.start, data)


def labelled(collection: Collection, split: str, tokenizer: Tokenizer) -> LabelledPairs:
    """The relevant pairs of one split; grades below 1 are not relevant."""
    asked = judged_split(collection, split)
    number = {name: i for i, name in enumerate(collection.document_ids)}
    links = [(i, number[document]) for i, query in enumerate(asked.query_ids)
             for document, grade in asked.judgements[query].items() if grade > 0 and document in number]
    return LabelledPairs(asked.query_texts, collection.documents, np.array(links, np.int64).reshape(-1, 2), tokenizer)
