"""Classification and regression of texts and of pairs of texts: a head on one vector per sequence, learned from labels.

What it optimises: cross-entropy of the class (`classes`), binary cross-entropy of every label (`labels`, a text may have several), or
    the squared error of a number (`score`); each the mean over texts.
References: BERT (arXiv 1810.04805, section 4.1); heads as transformers has them in each family; ELECTRA's fine-tuning (arXiv 2003.10555,
    appendix B: layer-wise rates, both orders of symmetric pairs).
Inputs: texts, or pairs joined as `[CLS] a [SEP] b [SEP]`, and their labels.
Owns: the head: `stock` (transformers' of this family), `cls_linear` (a matrix on the first token's state), `mean` (on the mean of all).
Exports: a `*ForSequenceClassification` folder with the names of the labels; `cls_linear` and `mean` are no class of transformers, so
    there the encoder's folder carries the head beside it (`heads.safetensors`), and `auto_map` names the class of ours that joins them.
When to use it: labels on single texts or pairs. `freeze` trains the head alone, in seconds, and says what is in the vectors already.
Relations: with one label per pair and groups of passages it is the reranker (`rerank`).
Example: `Classify(encoder, tokenizer, Classify.Config(labels=("card lost", "card arrived")))`

    B texts or pairs   K labels
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from foretext.model.encoder import Tokens
from foretext.model.heads import SequenceHead
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat, longest_first, of_pairs
from foretext.objectives.show import Note, Row, Shown, Token, bounds
from foretext.text.labelled import LabelledExamples


@dataclass(frozen=True)
class LabelledBatch(Batch):
    texts: Tokens
    targets: Tensor  # (B,) int64, or (B, K) fp32, in the order of `texts`


class Classify(Objective):
    """See the head of this file."""

    name = "classify"
    terms = ("classify",)
    reads = "labelled"

    class Options(ObjectiveConfig):
        """What a person chooses; the rest of `Config` follows from the data."""

        head: Literal["stock", "cls_linear", "mean"] = Field(
            "stock", description="transformers' head of the family; a matrix on the first token's state; one on the mean of all states")
        dropout: float = Field(0.1, ge=0, lt=1, description="on what the head's matrices read (BERT, section 4.1)")
        freeze: bool = Field(False, description="train the head alone")
        max_len: int | None = Field(None, description="longest input in tokens, a pair together; default: the encoder's")

    class Config(Options):
        task: Literal["classes", "labels", "score"] = Field("classes", description="one class a text, any number of labels, or a number")
        labels: tuple[str, ...] = Field(("0", "1"), min_length=1, description="names of the classes; of `score` one name")

        @model_validator(mode="after")
        def _names(self):
            if len(set(self.labels)) < len(self.labels):
                raise ValueError(f"a label is named twice: {', '.join(self.labels[:20])}")
            if self.task == "classes" and len(self.labels) < 2:
                raise ValueError(f"there is one class only, {self.labels[0]!r}: nothing can be learned from it")
            if self.task == "score" and len(self.labels) > 1:
                raise ValueError(f"a score has one name, found {', '.join(self.labels)}")
            return self

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        kind = "stock" if self.config.head == "stock" else "linear"
        self.pooling = "mean" if self.config.head == "mean" else "cls"
        self.head = SequenceHead(encoder.config, len(self.config.labels), kind, self.pooling, self.config.dropout)
        self.encoder.requires_grad_(not self.config.freeze)

    def collate(self, examples: LabelledExamples) -> LabelledBatch:
        if examples.second is None:
            ordered, places = longest_first(self.framed(examples.first))
            texts, order = flat(ordered), places.argsort()
        else:
            texts, order = of_pairs(self, examples.first, examples.second, "longest")
        return LabelledBatch({"classify": len(examples.targets)}, len(texts.ids), examples.first.documents, texts, examples.targets[order])

    def forward(self, batch: LabelledBatch) -> Step:
        logits = self.head(self.encoder, batch.texts)  # (B, K)
        if self.config.task == "score":
            return Step({"classify": F.mse_loss(logits[:, 0], batch.targets[:, 0], reduction="sum")})
        if self.config.task == "labels":
            loss = F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="sum") / logits.shape[1]
            right = ((logits > 0) == (batch.targets > 0.5)).all(1).sum()
        else:
            loss = F.cross_entropy(logits, batch.targets, reduction="sum")
            right = (logits.argmax(1) == batch.targets).sum()
        return Step({"classify": loss}, {"accuracy": (right, len(logits))})

    def show(self, batch: LabelledBatch) -> list[Shown]:
        ids, shown = batch.texts.ids.tolist(), []
        for i, (start, stop) in enumerate(bounds(batch.texts.layout)):
            target = batch.targets[i]
            if self.config.task == "classes":
                asked = self.config.labels[int(target)]
            elif self.config.task == "labels":
                asked = ", ".join(name for name, here in zip(self.config.labels, target.tolist()) if here) or "none"
            else:
                asked = f"{float(target):g}"
            shown.append(Row(f"text {i}, {asked}", [Token(id, id) for id in ids[start:stop]]))
        return [*shown, Note(f"of each text or pair the head has to say: {self.config.task}")]
