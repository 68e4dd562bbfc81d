"""Masked language modelling.

What it optimises: predict the original id of a random subset of tokens from the corrupted text, both directions.
References: BERT (arXiv 1810.04805, section 3.1); RoBERTa (arXiv 1907.11692, section 4.1: masks drawn anew every epoch);
    whole words: BERT's repository, release of May 2019; spans: SpanBERT (arXiv 1907.10529, section 3.1).
Inputs: documents of a store.
Owns: a token head, tied to the encoder's word table.
Exports: a Hugging Face `*ForMaskedLM` folder; mean pooling.
When to use it: a general start where text is plentiful (hundreds of millions of tokens); continued pre-training of a
    checkpoint on a new domain. From scratch on a few million tokens it does not make a retriever: see `contrastive`.
Relations: the encoder half of `retromae` with share .30 and whole words.
Example: `step = MLM(encoder, tokenizer)(batch); loss = step.terms["mlm"] / batch.counts["mlm"]`
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from foretext.model.encoder import Tokens
from foretext.model.heads import TokenHead
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat
from foretext.objectives.show import Shown, rows, titles
from foretext.text.batches import Documents
from foretext.text.corrupt import corrupt, select


@dataclass(frozen=True)
class MaskedBatch(Batch):
    tokens_in: Tokens  # the corrupted text
    places: Tensor  # (K,) flat indices of the tokens to predict
    labels: Tensor  # (K,) their original ids


class MLM(Objective):
    """See the head of this file."""

    name = "mlm"
    masks = True
    terms = ("mlm",)

    class Config(ObjectiveConfig):
        selection: Literal["token", "token_budget", "word", "span"] = Field(
            "word", description="what is chosen: single tokens (each by chance, or exactly the share), whole words, spans of words")
        share: float = Field(0.15, gt=0, lt=1, description="share of tokens to predict (BERT .15, ModernBERT .30)")
        mask: float = Field(0.8, ge=0, le=1, description="share of those shown as the mask token (BERT section 3.1)")
        random: float = Field(0.1, ge=0, le=1, description="share of those shown as a random token")
        static: bool = Field(False, description="every epoch has the first one's masks, not new ones (RoBERTa section 4.1)")
        max_len: int | None = Field(None, description="longest text in tokens; default: the encoder's")

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        self.head = TokenHead(encoder)
        self.static = self.config.static

    def collate(self, examples: Documents) -> MaskedBatch:
        documents, c = self.framed(examples), self.config
        selected, unit = select(documents, self.vocabulary, c.selection, c.share)
        places = selected.nonzero().squeeze(1)
        ids = corrupt(documents, self.vocabulary, places, unit, c.mask, c.random)
        return MaskedBatch({"mlm": len(places)}, len(ids), documents.documents,
                           flat(documents).with_ids(ids), places, documents.ids[places])

    def forward(self, batch: MaskedBatch) -> Step:
        hidden = self.encoder(batch.tokens_in, rows=batch.places)  # (K, D)
        loss, correct = self.head.loss(hidden, self.encoder.words, batch.labels)
        return Step({"mlm": loss}, {"accuracy": (correct, len(batch.labels))})

    def show(self, batch: MaskedBatch) -> list[Shown]:
        tokens, names = batch.tokens_in, titles(batch.documents, "predict the marked tokens")
        return rows(names, tokens.ids, tokens.layout, batch.places, batch.labels, self.vocabulary.mask_id)
