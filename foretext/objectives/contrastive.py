"""Contrastive learning of a bi-encoder: a query's vector near its passage's, far from the other passages of the batch.

What it optimises: cross-entropy of the positive among all passages of the whole step, whatever the number of micro-batches and ranks
    (or among its own group); by choice a teacher's ranking of each group as well.
References: in-batch negatives: DPR (arXiv 2004.04906, section 3.2); InfoNCE: CPC (arXiv 1807.03748, equation 4); random crops
    without labels: Contriever (arXiv 2112.09118, section 3.1); exact at any size: GradCache (arXiv 2101.06983); nested dimensions:
    Matryoshka (arXiv 2205.13147, equation 1); false negatives by a guide and a margin: GISTEmbed (arXiv 2402.16829, section 3),
    NV-Retriever (arXiv 2407.15831, section 3); distillation: Hinton et al. (arXiv 1503.02531), MarginMSE (arXiv 2010.02666, equation 7).
Inputs: pairs; labelled (query -> passage, with or without negatives of its own and teacher scores) or made from a store
    (`crops`, `first_sentence`, `title`).
Owns: by choice a linear projection, and an encoder of its own for passages (`untied`).
Exports: a sentence-transformers folder with its pooling, projection, normalisation and prompts.
When to use it: to fine-tune a retriever on pairs; to pre-train one without labels on a corpus of any size, the best use of a
    few minutes from scratch.
Relations: `symmetric` with crops of one document is the dual encoder's symmetric loss. RetroMAE's KL is a mean over elements: its
    distillation is ours with `contrastive_weight` 1e-4 times the group size.
Example: `sums = backward(Contrastive(encoder, tokenizer), batches, World.join())`  (training.step; adds to `.grad`)

    B queries of the step   P passages of the step   G passages of a group   D width
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from foretext.errors import UserError
from foretext.model.encoder import Encoder, Tokens
from foretext.model.heads import Pooling, sequence_vectors
from foretext.model.layers import Linear
from foretext.model.scores import among
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat_longest_first, prompts
from foretext.objectives.show import Note, Row, Shown, plain_texts
from foretext.text.batches import Source
from foretext.text.pairs import PairChoice, Pairs
from foretext.text.store import Store


@dataclass(frozen=True)
class PairBatch(Batch):
    queries: Tokens
    passages: Tokens
    query_places: Tensor  # (b,) where each query's vector lies among those of `queries`
    passage_places: Tensor
    query_numbers: Tensor  # (b,)
    passage_numbers: Tensor
    known: Tensor  # (N,) sorted codes of pairs that are no negatives
    teacher: Tensor | None = None  # (b, G) scores, nan where there is none
    guide_queries: Tensor | None = None  # (b, E)
    guide_passages: Tensor | None = None  # (b * G, E)
    random: int = 0  # passages that were drawn at random


class Contrastive(Objective):
    """See the head of this file."""

    name = "contrastive"
    terms = ("contrastive",)
    reads = "pairs"
    couples = True

    class Config(ObjectiveConfig):
        pooling: Pooling | None = Field(None, description="how tokens become one vector; default: as in the model it "
                                                          "starts from, else mean")
        projection: int | None = Field(None, gt=0, description="a linear layer to vectors of this width (exported as a Dense module)")
        normalize: bool = Field(True, description="compare by cosine instead of dot product")
        temperature: float | None = Field(None, gt=0, description="divides the scores; default .02 when normalised, 1 when not")
        untied: bool = Field(False, description="passages have an encoder of their own, which starts as a copy")
        symmetric: bool = Field(False, description="also find the query from the passage; the two losses are averaged")
        negatives: Literal["in_batch", "group"] = Field(
            "in_batch", description="in_batch: all passages of the step, over all micro-batches and processes (elsewhere: cross-device); "
                                    "group: those drawn for the query alone")
        mask_known: bool = Field(True, description="other passages known to answer the query are no negatives")
        margin: float | None = Field(None, description="a passage that the teacher scores above its score of the positive minus this is no "
                                                       "negative; needs teacher scores, or a teacher that embeds for passages of other "
                                                       "queries (NV-Retriever: .05)")
        margin_kind: Literal["absolute", "relative"] = Field("absolute", description="relative: a share of the positive's score")
        dimensions: tuple[int, ...] = Field((), description="Matryoshka: the loss is the mean over vectors cut to these widths, and whole")
        distill: Literal["kl", "margin_mse"] | None = Field(None, description="learn a teacher's scores of the own group")
        teacher_temperature: float = Field(1.0, gt=0, description="divides the teacher's scores, for kl")
        temperature_squared: bool = Field(False, description="kl times teacher_temperature^2 (Hinton et al., section 2)")
        contrastive_weight: float = Field(1.0, ge=0, description="of this loss beside distillation (RetroMAE 1e-4, FlagEmbedding 1)")
        query_prompt: str | None = Field(None, description="put before every query, for example 'query: '; default: as in the model it "
                                                           "starts from, else none")
        document_prompt: str | None = Field(None, description="put before every passage; default: likewise")
        query_max_len: int | None = Field(None, description="longest query in tokens; default: max_len")
        max_len: int | None = Field(None, description="longest passage in tokens; default: the encoder's")

        @model_validator(mode="after")
        def _sensible(self):
            if self.normalize and (self.temperature or 0) > 0.5:
                raise ValueError(f"temperature {self.temperature} leaves cosines indistinct: take at most .5, usually .01 to .1")
            if self.distill == "margin_mse" and self.normalize:
                raise ValueError("margin_mse compares raw dot products with the teacher's margins: set normalize to false")
            if self.symmetric and self.negatives == "group":
                raise ValueError("symmetric has no effect with negatives group, where a passage meets one query: take in_batch")
            if self.distill is None and self.contrastive_weight != 1.0:
                raise ValueError("contrastive_weight has no effect without distill: take kl or margin_mse")
            if self.distill != "kl" and (self.teacher_temperature != 1.0 or self.temperature_squared):
                raise ValueError("teacher_temperature and temperature_squared have an effect with distill kl only")
            return self

        def filled(self, pooling: Pooling = "mean", query_prompt: str = "", document_prompt: str = "") -> "Contrastive.Config":
            """The same, with these where nothing was set."""
            given = {"pooling": pooling, "query_prompt": query_prompt, "document_prompt": document_prompt}
            return self.model_copy(update={name: value for name, value in given.items() if getattr(self, name) is None})

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, (config or self.Config()).filled())
        self.pooling, self.normalize = self.config.pooling, self.config.normalize
        self.temperature = self.config.temperature or (0.02 if self.normalize else 1.0)
        self.document_encoder = copy.deepcopy(encoder) if self.config.untied else None
        width = self.config.projection or encoder.config.width
        self.projection = Linear(encoder.config.width, width) if self.config.projection else None
        if self.projection is not None:
            torch.nn.init.normal_(self.projection.weight, std=encoder.config.width**-0.5)  # keeps the length of a vector, on average
        if wrong := [size for size in self.config.dimensions if not 0 < size < width]:
            raise UserError(f"objective.dimensions: {wrong[0]} is no part of a vector of {width} features")
        self.widths = (*sorted(set(self.config.dimensions)), width)
        if self.config.distill:
            self.terms = ("contrastive", "distill")
            self.weights = {"contrastive": self.config.contrastive_weight}
        self.prompts = prompts(self)

    def source(self, store: Store, part: str, valid_share: float, pairs: PairChoice) -> Source:
        """Pairs of a store, which have no teacher."""
        if self.config.distill or self.config.margin is not None:
            raise UserError("objective.distill and objective.margin need a teacher's scores, and pairs made from a store have none: "
                            "take foretext finetune retriever")
        return super().source(store, part, valid_share, pairs)

    def collate(self, examples: Pairs) -> PairBatch:
        query_len = min(self.config.query_max_len or self.max_len, self.max_len)
        queries, query_places = flat_longest_first(examples.queries.framed(self.prompts[0], self.tokenizer.sep_id, query_len))
        passages, passage_places = flat_longest_first(examples.passages.framed(self.prompts[1], self.tokenizer.sep_id, self.max_len))
        counts = {"contrastive": len(examples.queries)}
        if self.config.distill:
            counts["distill"] = self._taught(examples)
        guide = examples.guide if self.config.margin is not None and examples.guide is not None else (None, None)
        return PairBatch(counts, len(queries.ids) + len(passages.ids), examples.passages.documents,
                         queries, passages, query_places, passage_places, examples.queries.documents, examples.passages.documents,
                         examples.known, examples.scores, *guide, examples.random)

    def _taught(self, examples: Pairs) -> int:
        """What the distillation term is divided by: groups with two scored passages (kl), or scored negatives (margin_mse)."""
        if examples.scores is None:
            return 0
        scored = examples.scores.isfinite()
        return int((scored.sum(1) > 1).sum()) if self.config.distill == "kl" else int((scored[:, 1:] & scored[:, :1]).sum())

    def forward(self, batch: PairBatch) -> Step:
        queries = self.vectors(batch.queries, self.encoder)[batch.query_places]
        passages = self.vectors(batch.passages, self.document_encoder or self.encoder)[batch.passage_places]
        step = Step({}, vectors={"query": queries, "passage": passages},
                    rows={"query": batch.query_numbers, "passage": batch.passage_numbers})
        if self.config.distill:
            step.terms["distill"] = self.distillation(queries, passages, batch.teacher)
        if self.config.margin is not None:
            extra = {"teacher": batch.teacher, "guide_query": batch.guide_queries, "guide_passage": batch.guide_passages}
            step.rows |= {name: rows for name, rows in extra.items() if rows is not None}
        if len(passages) > len(queries):
            step.metrics["random_negatives"] = (torch.tensor(float(batch.random)), len(passages) - len(queries))
        return step

    def vectors(self, tokens: Tokens, encoder: Encoder) -> Tensor:
        """(B, D) fp32, of length 1 if `normalize`."""
        encoder.compute_dtype = self.encoder.compute_dtype
        pooled = sequence_vectors(encoder, tokens, self.pooling)
        projected = pooled if self.projection is None else self.projection(pooled)
        return F.normalize(projected, dim=1) if self.normalize else projected

    def cut(self, vectors: Tensor, width: int) -> Tensor:
        """The first `width` features, as vectors in their own right."""
        if width == vectors.shape[1]:
            return vectors
        return F.normalize(vectors[:, :width], dim=1) if self.normalize else vectors[:, :width]

    def couple(self, vectors: dict[str, Tensor], rows: dict[str, Tensor], batch: PairBatch) -> Step:
        P, B = len(vectors["passage"]), len(vectors["query"])
        target = torch.arange(B, device=vectors["query"].device) * (P // B)
        no_negatives = self.no_negatives(rows, target, batch)
        losses, right = [], None
        for width in self.widths:
            scores = self.cut(vectors["query"], width) @ self.cut(vectors["passage"], width).T / self.temperature  # (B, P)
            scores = scores.masked_fill(no_negatives, float("-inf"))
            loss = F.cross_entropy(scores, target, reduction="sum")
            if self.config.symmetric:
                back = scores[:, target].T
                loss = (loss + F.cross_entropy(back, torch.arange(B, device=back.device), reduction="sum")) / 2
            losses.append(loss)
            right = (scores.argmax(1) == target).sum()
        masked = no_negatives.sum()
        if self.config.negatives == "group":
            masked = masked - B * (P - P // B)
        return Step({"contrastive": sum(losses) / len(losses)}, {"in_batch_top1": (right, B), "masked_negatives": (masked, B)})

    def no_negatives(self, rows: dict[str, Tensor], target: Tensor, batch: PairBatch) -> Tensor:
        """(B, P) bool: what a query's passage is not compared with."""
        B, P = len(target), len(rows["passage"])
        own = torch.arange(P, device=target.device) // (P // B) == torch.arange(B, device=target.device)[:, None]
        hidden = torch.zeros(B, P, dtype=torch.bool, device=target.device)
        if self.config.negatives == "group":
            hidden |= ~own
        if self.config.mask_known:
            hidden |= known_pairs(rows["query"], rows["passage"], target, batch.known)
        if self.config.margin is not None:
            if "teacher" in rows:
                places = target[:, None] + torch.arange(P // B, device=target.device)  # (B, G), the own group's
                scores = torch.full((B, P), float("nan"), device=target.device).scatter(1, places, rows["teacher"])
                hidden |= self.above(scores, target)
            if "guide_query" in rows:
                hidden |= self.above(rows["guide_query"] @ rows["guide_passage"].T, target)
        return hidden

    def above(self, scores: Tensor, target: Tensor) -> Tensor:
        """(B, P) bool: other passages whose score exceeds the positive's by more than the margin allows; where a score is nan, never."""
        positive = scores.gather(1, target[:, None])
        margin = self.config.margin * (positive.abs() if self.config.margin_kind == "relative" else 1.0)
        others = torch.arange(scores.shape[1], device=scores.device) != target[:, None]
        return (scores > positive - margin) & others

    def distillation(self, queries: Tensor, passages: Tensor, teacher: Tensor | None) -> Tensor:
        """The sum over groups, averaged over the nested widths."""
        if teacher is None:
            return queries.sum() * 0.0
        losses = []
        for width in self.widths:
            own = self.cut(passages, width).view(*teacher.shape, width)
            scores = torch.einsum("bd,bgd->bg", self.cut(queries, width), own)
            if self.config.distill == "kl":
                loss = kl_sum(scores / self.temperature, teacher / self.config.teacher_temperature)
                losses.append(loss * (self.config.teacher_temperature**2 if self.config.temperature_squared else 1.0))
            else:
                losses.append(margin_mse_sum(scores, teacher))
        return sum(losses) / len(losses)

    def heads(self) -> dict[str, Tensor]:
        """None: the projection and the passages' encoder are exported as parts of the model."""
        return {}

    def show(self, batch: PairBatch) -> list[Shown]:
        queries = plain_texts(batch.queries.ids, batch.queries.layout, batch.query_places)
        passages = plain_texts(batch.passages.ids, batch.passages.layout, batch.passage_places)
        group = len(passages) // max(1, len(queries))
        shown = []
        for i, query in enumerate(queries):
            shown.append(Row(f"pair {i}, query", query))
            shown += [Row(f"pair {i}, {'negative' if j else 'passage'}", passage)
                      for j, passage in enumerate(passages[i * group : (i + 1) * group])]
        among = f"all {len(passages)} passages of the step" if self.config.negatives == "in_batch" else f"the {group} of its group"
        return [*shown, Note(f"each query has to find its passage among {among}")]


def known_pairs(queries: Tensor, passages: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """(B, P) bool: passages, other than the row's own, that are the same text as its positive or known to answer its query."""
    same_text = passages[target][:, None] == passages
    answers = among((queries[:, None] << 32) + passages, known) if len(known) else same_text
    others = torch.arange(len(passages), device=passages.device) != target[:, None]
    return (same_text | answers) & others


def kl_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over groups of KL(softmax(teacher) || softmax(student)), (B, G) logits each; passages without a teacher's score take no part."""
    scored = teacher.isfinite()
    p = torch.where(scored, torch.where(scored, teacher, float("-inf")).softmax(1), 0.0)
    log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()
    # A group without any score keeps its logits: a softmax over nothing is nan, whose gradient no mask removes.
    log_q = torch.where(scored | ~scored.any(1, keepdim=True), student, float("-inf")).log_softmax(1)
    return (p * (log_p - torch.where(scored, log_q, 0.0))).sum()


def margin_mse_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over negatives of ((s_0 - s_j) - (t_0 - t_j))^2; (B, G) each, the positive in column 0; nan scores take no part."""
    apart = (student[:, :1] - student[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    return torch.where(apart.isfinite(), apart, 0.0).square().sum()
