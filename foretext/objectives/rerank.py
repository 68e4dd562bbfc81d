"""A cross-encoder that ranks again: query and passage are read together, one score for the pair.

What it optimises: `listwise` cross-entropy of the positive among the passages of its group; `pointwise` binary cross-entropy of every pair;
    or a teacher's scores: `kl` (its softmax over the group) or `margin_mse` (its margins between positive and negatives).
References: monoBERT (arXiv 1901.04085, section 3); the group's loss: Gao, Dai and Callan 2021 (arXiv 2101.08751, equation 3);
    margins: Hofstätter et al. 2020 (arXiv 2010.02666, equation 6).
Inputs: groups of a query, one passage that answers it and G - 1 that do not, drawn anew in every epoch.
Owns: the head that transformers' `*ForSequenceClassification` of the family has, with one output.
Exports: such a folder, which sentence-transformers' CrossEncoder loads; scores are logits.
When to use it: to rank the first hundred hits of a retriever again, or as the teacher of one. It reads every pair anew: it cannot search.
Relations: the retriever's `contrastive` with `negatives: group` is the same loss between vectors; `classify` learns from labels.
Example: `foretext finetune reranker -d negatives.jsonl --encoder MODEL -o runs/reranker`

    B queries   G passages of each
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from foretext.model.encoder import Tokens
from foretext.model.heads import SequenceHead
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, of_pairs
from foretext.objectives.show import Note, Row, Shown, Token, bounds
from foretext.text.pairs import Pairs


@dataclass(frozen=True)
class RerankBatch(Batch):
    pairs: Tokens
    places: Tensor  # (B*G,) where each pair's logit lies among those of `pairs`
    group: int  # G
    teacher: Tensor | None  # (B, G) fp32, nan where there is no score


class Rerank(Objective):
    """See the head of this file."""

    name = "rerank"
    terms = ("rerank",)
    reads = "groups"
    pooling = "cls"

    class Config(ObjectiveConfig):
        loss: Literal["listwise", "pointwise", "kl", "margin_mse"] = Field(
            "listwise", description="the positive among its group; every pair alone; or a teacher's scores, as softmax or as margins")
        temperature: float = Field(1.0, gt=0, description="divides the logits, of listwise and kl")
        teacher_temperature: float = Field(1.0, gt=0, description="divides the teacher's scores, of kl")
        dropout: float = Field(0.1, ge=0, lt=1, description="on what the head's matrices read (BERT, section 4.1)")
        max_len: int | None = Field(None, description="longest pair in tokens; only the passage is cut. Default: the encoder's")
        truncate_query: bool = Field(False, description="cut queries that leave a passage no room, instead of stopping")

        @model_validator(mode="after")
        def _useful(self):
            if self.temperature != 1 and self.loss not in ("listwise", "kl"):
                raise ValueError(f"temperature {self.temperature} has no effect with loss {self.loss}")
            if self.teacher_temperature != 1 and self.loss != "kl":
                raise ValueError(f"teacher_temperature {self.teacher_temperature} has no effect with loss {self.loss}: use kl")
            return self

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        self.head = SequenceHead(encoder.config, 1, dropout=self.config.dropout)

    def collate(self, examples: Pairs) -> RerankBatch:
        B, G = len(examples.queries), len(examples.passages) // len(examples.queries)
        queries = examples.queries.select(torch.arange(B).repeat_interleave(G))
        pairs, order = of_pairs(self, queries, examples.passages, "second")
        teacher = self._teacher(examples, B, G)
        return RerankBatch({"rerank": self._count(B, G, teacher)}, len(pairs.ids), examples.passages.documents, pairs, order.argsort(), G,
                           teacher)  # fmt: skip

    def _teacher(self, examples: Pairs, B: int, G: int) -> Tensor | None:
        if self.config.loss not in ("kl", "margin_mse"):
            return None
        return torch.full((B, G), float("nan")) if examples.scores is None else examples.scores

    def _count(self, B: int, G: int, teacher: Tensor | None) -> int:
        """Labelled items: queries, pairs, or margins; of a teacher those that it has scored."""
        if self.config.loss == "listwise":
            return B
        if self.config.loss == "pointwise":
            return B * G
        scored = teacher.isfinite()
        if self.config.loss == "kl":
            return int((scored.sum(1) > 1).sum())
        return int((scored[:, :1] & scored[:, 1:]).sum())

    def forward(self, batch: RerankBatch) -> Step:
        scores = self.head(self.encoder, batch.pairs)[batch.places, 0].view(-1, batch.group)  # (B, G)
        right = (scores.argmax(1) == 0).sum()
        return Step({"rerank": self._loss(scores, batch.teacher)}, {"first": (right, len(scores))})

    def _loss(self, scores: Tensor, teacher: Tensor | None) -> Tensor:
        if self.config.loss == "pointwise":
            answers = torch.zeros_like(scores)
            answers[:, 0] = 1
            return F.binary_cross_entropy_with_logits(scores, answers, reduction="sum")
        if self.config.loss == "listwise":
            return F.cross_entropy(scores / self.config.temperature, torch.zeros(len(scores), dtype=torch.int64, device=scores.device),
                                   reduction="sum")  # fmt: skip
        scored = teacher.isfinite()
        if self.config.loss == "margin_mse":
            wanted = (teacher[:, :1] - teacher[:, 1:]).nan_to_num()
            known = scored[:, :1] & scored[:, 1:]
            return ((scores[:, :1] - scores[:, 1:] - wanted).square() * known).sum()
        # A softmax over the scored passages alone; a group with fewer than two of them says nothing.
        scored = scored & (scored.sum(1, keepdim=True) > 1)
        lowest = torch.finfo(torch.float32).min
        log_student = (scores / self.config.temperature).masked_fill(~scored, lowest).log_softmax(1)
        log_teacher = (teacher / self.config.teacher_temperature).masked_fill(~scored, lowest).log_softmax(1)
        return ((log_teacher.exp() * (log_teacher - log_student)) * scored).sum()

    def show(self, batch: RerankBatch) -> list[Shown]:
        ids, spans = batch.pairs.ids.tolist(), bounds(batch.pairs.layout)
        rows = []
        for i, place in enumerate(batch.places.tolist()):
            what = "negative" if i % batch.group else "passage"
            rows.append(Row(f"group {i // batch.group}, {what}", [Token(id, id) for id in ids[slice(*spans[place])]]))
        return [*rows, Note(f"the passage has to score above the {batch.group - 1} negatives of its group")]
