"""Dual encoder: a text's vector near its partner's, whatever the partner is.

What it optimises: the partner's score above that of the other partners of the step: by cross-entropy one way or both, or by a margin.
References: symmetric loss: CLIP (arXiv 2103.00020, figure 3); one way with label smoothing and an annealed scale, attention reductions,
    feed-forward stacks: ConveRT (arXiv 1911.03688, section 3); separate towers: DPR (arXiv 2004.04906); exact at any size: GradCache
    (arXiv 2101.06983).
Inputs: pairs made from a store (`crops`, `first_sentence`, `title`, `halves`, `turns`).
Owns: what stands on the encoder: a reduction, an output for each side, a second encoder with `towers: separate`, a learned scale.
Exports: a sentence-transformers folder for one encoder with cls or mean and no output; else foretext's own folder, which loads in
    sentence-transformers and transformers where foretext is installed. Separate stock towers also as two folders, networks/query and
    networks/document.
When to use it: to pre-train on pairs whose sides differ (question and answer, title and body, message and response).
Relations: `loss: softmax`, `scale: fixed` is `contrastive` with temperature 1/scale; with the convert encoder and its reduction, stack
    and smoothing it is `convert` without earlier turns.
Example: `sums = backward(Dual(encoder, tokenizer), batches, World.join())`  (training.step; adds to `.grad`)

    B pairs of the step   d features of a vector
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from foretext.model.encoder import Tokens
from foretext.model.quantize import Quantized
from foretext.model.reductions import Reduce, ReductionScale
from foretext.model.scores import Scale, ScaleKind, cross_entropy, no_negatives, right_answers
from foretext.model.towers import Towers, TowersConfig
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat_longest_first, prompts
from foretext.objectives.show import Note, Row, Shown, plain_texts
from foretext.text.pairs import Pairs
from foretext.text.randomness import integers


@dataclass(frozen=True)
class DualBatch(Batch):
    queries: Tokens
    partners: Tokens
    query_places: Tensor  # (b,) where each query's vector lies among those of `queries`
    partner_places: Tensor
    query_numbers: Tensor  # (b,)
    partner_numbers: Tensor
    keys: Tensor  # (b,)
    known: Tensor  # (N,) sorted codes of pairs that are no negatives


class Dual(Objective):
    """See the head of this file."""

    name = "dual"
    terms = ("dual",)
    reads = "pairs"
    couples = True
    families = ("bert", "roberta", "electra", "mpnet", "modernbert", "convert")

    class Config(ObjectiveConfig):
        loss: Literal["softmax", "symmetric", "all", "all_mean", "triplet"] = Field(
            "symmetric", description="partners found by queries; and queries by partners; the first as a sum (MEAD) or, the same as "
                                     "softmax, as a mean; a margin over one other partner")
        smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over the other partners (ConveRT .2)")
        margin: float = Field(0.0, ge=0, description="of triplet")
        scale: ScaleKind = Field("learned", description="factor of the scores: trained; 1 to sqrt(d) over 10,000 updates; a number")
        scale_start: float = Field(20.0, gt=0, description="of the learned and the fixed scale")
        normalize: bool = Field(True, description="compare by cosine instead of dot product")
        towers: Literal["shared", "separate"] = Field("shared", description="one encoder for both sides, or one for each")
        reduction: Reduce = Field("mean", description="token states to a vector: first token, mean, largest, one or two attention heads")
        reduction_scale: ReductionScale = Field("inv_sqrt", description="of sha and 2ha, by the length n: 1/sqrt(n), sqrt(n), 1/n")
        output: Literal["identity", "linear", "ffn_stack"] = Field(
            "identity", description="on each side's vector: nothing, a linear map, ConveRT's three layers with skips")
        dimension: int | None = Field(None, gt=0, description="d with an output; default: 512 (ConveRT, section 3.2)")
        dropout: float = Field(0.0, ge=0, lt=1, description="inside ffn_stack")
        mask_known: bool = Field(True, description="equal partners, and partners known to answer, are no negatives")
        quantize: Quantized | None = Field(None, description="train for 8-bit tables (16-bit rest), or 8 bits for all matrices")
        query_prompt: str = Field("", description="put before every query")
        document_prompt: str = Field("", description="put before every partner")
        query_max_len: int | None = Field(None, description="longest query in tokens; default: max_len")
        max_len: int | None = Field(None, description="longest partner in tokens; default: the encoder's")

        @model_validator(mode="after")
        def _useful(self):
            if self.loss == "triplet" and (self.smoothing or self.scale != "learned" or self.scale_start != 20.0):
                raise ValueError("loss triplet compares cosines as they are: smoothing, scale and scale_start have no effect")
            if self.loss != "triplet" and self.margin:
                raise ValueError(f"margin {self.margin} has no effect with loss {self.loss}: take triplet")
            if self.scale == "annealed" and self.scale_start != 20.0:
                raise ValueError("scale_start has no effect with an annealed scale, which starts at 1: take learned or fixed")
            if self.dropout and self.output != "ffn_stack":
                raise ValueError(f"dropout {self.dropout} has no effect with output {self.output}: take ffn_stack")
            self.network()
            return self

        def network(self) -> TowersConfig:
            """What stands on the encoder."""
            size = None if self.output == "identity" and self.dimension is None else self.dimension or 512
            return TowersConfig(separate=self.towers == "separate", reduction=self.reduction, reduction_scale=self.reduction_scale,
                                output=self.output, dimension=size, normalize=self.normalize, dropout=self.dropout)

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        config = self.config
        self.towers = Towers(encoder, config.network(), config.quantize)
        self.scale = Scale("fixed" if config.loss == "triplet" else config.scale, 1.0 if config.loss == "triplet" else config.scale_start,
                           self.towers.dimension)
        self.pooling, self.normalize = config.reduction, config.normalize
        self.prompts = prompts(self)

    def collate(self, examples: Pairs) -> DualBatch:
        query_len = min(self.config.query_max_len or self.max_len, self.max_len)
        queries, query_places = flat_longest_first(examples.queries.framed(self.prompts[0], self.tokenizer.sep_id, query_len))
        partners, partner_places = flat_longest_first(examples.passages.framed(self.prompts[1], self.tokenizer.sep_id, self.max_len))
        return DualBatch({"dual": len(examples.queries)}, len(queries.ids) + len(partners.ids), examples.passages.documents,
                         queries, partners, query_places, partner_places,
                         examples.queries.documents, examples.passages.documents, examples.queries.keys, examples.known)

    def forward(self, batch: DualBatch) -> Step:
        queries, partners = self.towers([("query", batch.queries), ("document", batch.partners)])
        # The scale goes with the vectors, so that its gradient comes back with theirs however the step is split.
        vectors = {"query": queries[batch.query_places] * self.scale(), "document": partners[batch.partner_places]}
        return Step({}, vectors=vectors, rows={"query": batch.query_numbers, "document": batch.partner_numbers, "key": batch.keys})

    def couple(self, vectors: dict[str, Tensor], rows: dict[str, Tensor], batch: DualBatch) -> Step:
        queries, partners, config = vectors["query"], vectors["document"], self.config
        scores = queries @ partners.T  # (B, B)
        hidden = torch.zeros_like(scores, dtype=torch.bool)
        if config.mask_known:
            hidden = no_negatives(rows["query"], rows["document"], batch.known)
        if config.loss == "triplet":
            loss = self._triplet(scores, hidden, rows["key"])
        else:
            loss = cross_entropy(scores, config.smoothing, hidden).sum()
            if config.loss == "symmetric":
                loss = (loss + cross_entropy(scores.T, config.smoothing, hidden.T).sum()) / 2
            elif config.loss == "all":
                loss = loss * len(scores)  # the loop divides by the rows of the step
        metrics = right_answers(scores.detach(), hidden) | {"scale": (torch.as_tensor(self.scale()).detach(), 1)}
        return Step({"dual": loss}, metrics)

    def _triplet(self, scores: Tensor, hidden: Tensor, keys: Tensor) -> Tensor:
        """max(0, margin + the score of another row's partner - the own), summed; which row is drawn by the keys, in any order of rows."""
        if len(scores) == 1:
            return scores.sum() * 0.0
        order = keys.argsort()
        ahead = 1 + integers(keys[order], "negatives", torch.zeros_like(keys), torch.full_like(keys, len(keys) - 1))
        other = torch.empty_like(order)
        other[order] = order[(torch.arange(len(keys), device=keys.device) + ahead) % len(keys)]
        rows = torch.arange(len(keys), device=keys.device)
        apart = F.relu(self.config.margin + scores[rows, other] - scores.diagonal())
        return apart.masked_fill(hidden[rows, other], 0.0).sum()

    def updated(self) -> None:
        self.scale.updated()

    def show(self, batch: DualBatch) -> list[Shown]:
        queries = plain_texts(batch.queries.ids, batch.queries.layout, batch.query_places)
        partners = plain_texts(batch.partners.ids, batch.partners.layout, batch.partner_places)
        shown: list[Shown] = []
        for i, (query, partner) in enumerate(zip(queries, partners)):
            shown += [Row(f"pair {i}, query", query), Row(f"pair {i}, partner", partner)]
        return [*shown, Note(f"each query has to find its partner among all {len(partners)} partners of the step")]
