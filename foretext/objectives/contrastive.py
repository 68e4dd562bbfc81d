"""Contrastive learning of a bi-encoder: a query's vector near its passage's, far from the other passages of the batch.

What it optimises: cross-entropy of the positive among all passages of the whole step, whatever the number of micro-batches and ranks.
References: in-batch negatives: DPR (arXiv 2004.04906, section 3.2); InfoNCE: CPC (arXiv 1807.03748, equation 4); random crops
    without labels: Contriever (arXiv 2112.09118, section 3.1); exact at any size: GradCache (arXiv 2101.06983).
Inputs: pairs; labelled (query -> passage) or made from a store (`crops`, `first_sentence`, `title`).
Owns: nothing but the encoder.
Exports: a sentence-transformers folder with its pooling, normalisation and prompts.
When to use it: to fine-tune a retriever on pairs; to pre-train one without labels on a corpus of any size, the best use of a
    few minutes from scratch.
Relations: `symmetric` with crops of one document is the dual encoder's symmetric loss.
Example: `loss, _ = train_step(Contrastive(encoder, tokenizer), batches)`

    B queries of the step   P passages of the step   D width
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from foretext.model.encoder import Tokens
from foretext.model.heads import pool
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat, longest_first
from foretext.objectives.show import Note, Row, Shown, Token, bounds
from foretext.text.batches import Documents
from foretext.text.pairs import Pairs


@dataclass(frozen=True)
class PairBatch(Batch):
    queries: Tokens
    passages: Tokens
    query_places: Tensor  # (b,) where each query's vector lies among those of `queries`
    passage_places: Tensor
    query_numbers: Tensor  # (b,)
    passage_numbers: Tensor
    known: Tensor  # (N,) sorted codes of pairs that are no negatives


class Contrastive(Objective):
    """See the head of this file."""

    name = "contrastive"
    terms = ("contrastive",)
    reads = "pairs"
    couples = True

    class Config(ObjectiveConfig):
        pooling: Literal["cls", "mean"] = Field("mean", description="how tokens become one vector")
        normalize: bool = Field(True, description="compare by cosine instead of dot product")
        temperature: float | None = Field(None, gt=0, description="divides the scores; default .02 when normalised, 1 when not")
        symmetric: bool = Field(False, description="also find the query from the passage; the two losses are averaged")
        mask_known: bool = Field(True, description="other passages known to answer the query are no negatives")
        query_prompt: str = Field("", description="put before every query, for example 'query: '")
        document_prompt: str = Field("", description="put before every passage")
        query_max_len: int | None = Field(None, description="longest query in tokens; default: max_len")
        max_len: int | None = Field(None, description="longest passage in tokens; default: the encoder's")

        @model_validator(mode="after")
        def _sharp_enough(self):
            if self.normalize and (self.temperature or 0) > 0.5:
                raise ValueError(f"temperature {self.temperature} leaves cosines indistinct: take at most .5, usually .01 to .1")
            return self

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        self.pooling, self.normalize = self.config.pooling, self.config.normalize
        self.temperature = self.config.temperature or (0.02 if self.normalize else 1.0)
        prompts = (self.config.query_prompt, self.config.document_prompt)
        self.prompts = [[tokenizer.cls_id, *ids.tolist()] for ids in tokenizer.encode(list(prompts))]

    def collate(self, examples: Pairs) -> PairBatch:
        query_len = min(self.config.query_max_len or self.max_len, self.max_len)
        queries, query_places = self._side(examples.queries, self.prompts[0], query_len)
        passages, passage_places = self._side(examples.passages, self.prompts[1], self.max_len)
        return PairBatch({"contrastive": len(examples.queries)}, len(queries.ids) + len(passages.ids), examples.passages.documents,
                         queries, passages, query_places, passage_places,
                         examples.queries.documents, examples.passages.documents, examples.known)

    def _side(self, documents: Documents, prompt: list[int], max_len: int) -> tuple[Tokens, Tensor]:
        ordered, places = longest_first(documents.framed(prompt, self.tokenizer.sep_id, max_len))
        return flat(ordered), places

    def forward(self, batch: PairBatch) -> Step:
        vectors = {"query": self.vectors(batch.queries)[batch.query_places],
                   "passage": self.vectors(batch.passages)[batch.passage_places]}
        return Step({}, vectors=vectors, rows={"query": batch.query_numbers, "passage": batch.passage_numbers})

    def vectors(self, tokens: Tokens) -> Tensor:
        """(B, D) fp32, of length 1 if `normalize`."""
        if self.pooling == "cls":
            pooled = self.encoder(tokens, rows=tokens.layout.first_rows).float()
        else:
            pooled = pool(self.encoder(tokens), tokens.layout, self.pooling)
        return F.normalize(pooled, dim=1) if self.normalize else pooled

    def show(self, batch: PairBatch) -> list[Shown]:
        def texts(tokens: Tokens, places: Tensor) -> list[list[Token]]:
            sequences, ids = bounds(tokens.layout), tokens.ids.tolist()
            return [[Token(id, id) for id in ids[slice(*sequences[place])]] for place in places.tolist()]

        queries, passages = texts(batch.queries, batch.query_places), texts(batch.passages, batch.passage_places)
        group = len(passages) // max(1, len(queries))
        shown = []
        for i, query in enumerate(queries):
            shown.append(Row(f"pair {i}, query", query))
            shown += [Row(f"pair {i}, {'negative' if j else 'passage'}", passage)
                      for j, passage in enumerate(passages[i * group : (i + 1) * group])]
        return [*shown, Note(f"each query has to find its passage among all {len(passages)} passages of the step")]

    def couple(self, vectors: dict[str, Tensor], rows: dict[str, Tensor], batch: PairBatch) -> Step:
        scores = vectors["query"] @ vectors["passage"].T / self.temperature  # (B, P)
        group = scores.shape[1] // scores.shape[0]
        target = torch.arange(len(scores), device=scores.device) * group
        if self.config.mask_known:
            known = known_pairs(rows["query"], rows["passage"], target, batch.known)
            scores = scores.masked_fill(known, float("-inf"))
        loss = F.cross_entropy(scores, target, reduction="sum")
        if self.config.symmetric:
            loss = (loss + F.cross_entropy(scores[:, target].T, target // group, reduction="sum")) / 2
        right = (scores.argmax(1) == target).sum()
        return Step({"contrastive": loss}, {"in_batch_top1": (right, len(scores))})


def known_pairs(queries: Tensor, passages: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """(B, P) bool: passages, other than the row's own, that are the same text as its positive or known to answer its query."""
    same_text = passages[target][:, None] == passages
    answers = torch.isin((queries[:, None] << 32) + passages, known) if len(known) else same_text
    others = torch.arange(len(passages), device=passages.device) != target[:, None]
    return (same_text | answers) & others
