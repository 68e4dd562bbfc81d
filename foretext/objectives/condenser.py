"""Condenser: a short head must finish masked language modelling from the late sentence vector and early token states.

What it optimises: a few fresh layers predict the masked tokens from [late first token; early other tokens]. What the late layers know of
    the text reaches them only through the first token, so that it condenses the text.
References: Condenser (arXiv 2104.08253), section 3.2 head and skip, 3.3 the late masked-language-model loss (their equation 4).
Inputs: documents of a store, one text a sequence; of a longer one a random window.
Owns: a token head, shared by both losses, and the head layers.
Exports: a Hugging Face `*ForMaskedLM` folder with cls pooling; the head layers in `heads.safetensors`.
When to use it: continued pre-training of a masked-language-model checkpoint for retrieval, before `cocondenser` and fine-tuning.
Relations: with `late_mlm` and no head it would be `mlm`. `cocondenser`, at the end of this file, adds a loss between spans of a document.
Example: `objective = Condenser(encoder, tokenizer); loss = total(objective, objective(batch), batch.counts)`  (training.step)

    T tokens   K masked tokens   B texts   D width
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foretext.errors import UserError
from foretext.model.encoder import Tokens
from foretext.model.heads import TokenHead
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat, longest_first
from foretext.objectives.show import Note, Row, Shown, Token, retitled, rows, titles
from foretext.text.batches import Documents
from foretext.text.corrupt import corrupt, select
from foretext.text.pairs import Pairs
from foretext.text.randomness import bits


@dataclass(frozen=True)
class CondenserBatch(Batch):
    tokens_in: Tokens  # the corrupted text
    places: Tensor  # (K,) flat indices of the tokens to predict
    labels: Tensor  # (K,) their original ids
    order: Tensor  # (B,) where each example lies among the sequences of `tokens_in`


class Condenser(Objective):
    """See the head of this file."""

    name = "condenser"
    masks = True
    terms = ("condenser", "mlm")
    pooling = "cls"

    class Config(ObjectiveConfig):
        share: float = Field(0.15, gt=0, lt=1, description="share of ordinary tokens to predict, whole words")
        skip: int | None = Field(None, ge=0, description="layer whose token states the head reads; default: the middle (section 4.1)")
        head_layers: int = Field(2, ge=0, description="layers of the head (section 4.1)")
        late_mlm: bool = Field(True, description="also the plain loss on the last layer (equation 4), which keeps the encoder's knowledge")
        max_len: int | None = Field(None, description="longest text in tokens; default: the encoder's")

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        layers = encoder.config.layers
        self.skip = layers // 2 if self.config.skip is None else self.config.skip
        if self.skip >= layers:
            raise UserError(f"objective.skip: {self.skip} leaves no late layer: the encoder has {layers}, take at most {layers - 1}")
        self.terms = tuple(term for term in type(self).terms if term != "mlm" or self.config.late_mlm)
        self.head = TokenHead(encoder)
        self.layers = nn.ModuleList(encoder.new_block() for _ in range(self.config.head_layers))

    def collate(self, examples: Documents) -> CondenserBatch:
        # The window is drawn once, before the masks, so that both speak of the same tokens.
        documents, order = longest_first(self.framed(examples.window(self.max_len - 2)))
        selected, unit = select(documents, self.vocabulary, "word", self.config.share, base="eligible")
        places = selected.nonzero().squeeze(1)
        ids = corrupt(documents, self.vocabulary, places, unit)
        counts = {"condenser": len(places)} | ({"mlm": len(places)} if self.config.late_mlm else {})
        return CondenserBatch(counts, len(ids), documents.documents, flat(documents).with_ids(ids), places, documents.ids[places], order)

    def forward(self, batch: CondenserBatch) -> Step:
        return self.losses(batch)[0]

    def losses(self, batch: CondenserBatch) -> tuple[Step, Tensor]:
        """The masked losses, and h_N of the first tokens (B, D)."""
        tokens, first, places = batch.tokens_in, batch.tokens_in.layout.first_rows, batch.places
        states = self.encoder.states(tokens, rows=self.rows_read(batch))
        late, early = states[-1], states[self.skip]  # (B + K, D), (T, D)
        condensed = self.condense(early.index_copy(0, first, late[: len(first)]), tokens, places)  # (K, D)
        words = self.encoder.words
        loss, right = self.head.loss(condensed, words, batch.labels)
        step = Step({"condenser": loss}, {"condenser_accuracy": (right, len(places))})
        late = self.encoder.final_norm(late)
        if self.config.late_mlm:
            step.terms["mlm"], right = self.head.loss(late[len(first) :], words, batch.labels)
            step.metrics["mlm_accuracy"] = (right, len(places))
        return step, late[: len(first)]

    def rows_read(self, batch: CondenserBatch) -> Tensor:
        """The rows whose last states are wanted: every first token, then, with `late_mlm`, the tokens to predict."""
        first = batch.tokens_in.layout.first_rows
        return torch.cat((first, batch.places)) if self.config.late_mlm else first

    def condense(self, x: Tensor, tokens: Tokens, places: Tensor) -> Tensor:
        """The head's states of the tokens to predict: (T, D) -> (K, D)."""
        bias, rotary = self.encoder.biases(tokens, tokens)[0], self.encoder.rotaries(tokens.positions)[0]
        for layer in self.layers[:-1]:
            x = layer(x, tokens.layout, bias, rotary)
        x = self.layers[-1](x, tokens.layout, bias, rotary, rows=places) if len(self.layers) else x[places]
        return self.encoder.final_norm(x)

    def show(self, batch: CondenserBatch) -> list[Shown]:
        tokens, layers = batch.tokens_in, len(self.encoder.blocks)
        names = titles(batch.documents, "predict the marked tokens" + (", twice: by the head and by the last layer" * self.config.late_mlm))
        texts = rows(names, tokens.ids, tokens.layout, batch.places, batch.labels, self.vocabulary.mask_id)
        ids = [token.shown for token in texts[0].tokens]
        states = [Token(id, id, "early" if i else "late", f"h{self.skip if i else layers}") for i, id in enumerate(ids)]
        return [*texts, Row(f"the {len(self.layers)} layers of the head read, of {texts[0].title.split(':')[0]} for example:", states)]


class CoCondenser(Condenser):
    """coCondenser: Condenser, and two spans of one document lie nearer to each other than to all other spans of the step.

    What it optimises: both masked losses of Condenser on every span, and the cross-entropy of a span's partner among all other spans of
        the whole step, by the dot product of their sentence vectors, whatever the number of micro-batches and ranks.
    References: coCondenser (arXiv 2108.05540), section 3.2 the contrastive loss (equations 4 to 6), 3.3 exact gradients at any size.
    Inputs: pairs, best `SpanPairs`: two spans of a document of a store.
    Owns: what Condenser owns.
    Exports: as Condenser; vectors are compared by dot product.
    When to use it: after `condenser`, on the texts that will be searched; many spans a step (the paper: about 2000).
    Relations: without the masked losses it is `contrastive` on crops, symmetric, all 2B spans being negatives for each other.
    Example: `sums = backward(CoCondenser(encoder, tokenizer), batches, World.join())`  (training.step; adds to `.grad`)
    """

    name = "cocondenser"
    pairs = "sentences"
    terms = ("condenser", "mlm", "contrastive")
    reads = "pairs"
    couples = True
    normalize = False

    class Config(Condenser.Config):
        temperature: float = Field(1.0, gt=0, description="divides the scores")
        max_len: int | None = Field(128, description="longest span in tokens (section 4.1)")

    def collate(self, examples: Pairs) -> CondenserBatch:
        spans = interleaved(examples.queries, examples.passages)
        batch = super().collate(spans)
        batch.counts["contrastive"] = len(spans)
        return batch

    def forward(self, batch: CondenserBatch) -> Step:
        step, sentence = self.losses(batch)
        step.vectors["sentence"] = sentence.float()[batch.order]  # rows 2k and 2k+1 are partners
        return step

    def represent(self, batch: CondenserBatch) -> Step:
        sentence = self.encoder(batch.tokens_in, rows=self.rows_read(batch))[: len(batch.order)]
        return Step({}, vectors={"sentence": sentence.float()[batch.order]})

    def show(self, batch: CondenserBatch) -> list[Shown]:
        *texts, head = super().show(batch)
        spans = [texts[place] for place in batch.order.tolist()]
        pairs = [retitled(span, f"pair {i // 2}, span {'ab'[i % 2]}, {span.title}") for i, span in enumerate(spans)]
        asked = f"each span also has to find its partner among the other {len(pairs) - 1} spans of the step"
        return [*pairs, head, Note(asked)]

    def couple(self, vectors: dict[str, Tensor], rows: dict[str, Tensor], batch: CondenserBatch) -> Step:
        loss, right = partner_loss(vectors["sentence"], self.config.temperature)
        return Step({"contrastive": loss}, {"in_batch_top1": (right, len(vectors["sentence"]))})


def partner_loss(vectors: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row's partner (row index xor 1) among all other rows of (2B, D): (sum, number found)."""
    scores = (vectors @ vectors.T / temperature).fill_diagonal_(float("-inf"))  # (2B, 2B)
    partner = torch.arange(len(vectors), device=vectors.device) ^ 1
    return F.cross_entropy(scores, partner, reduction="sum"), (scores.argmax(1) == partner).sum()


def interleaved(first: Documents, second: Documents) -> Documents:
    """a0, b0, a1, b1, ...; the two sides come with equal keys, and the second gets keys of its own, so that masks differ."""
    keys = torch.cat((first.keys, bits(second.keys, "partner", torch.zeros_like(second.keys))))
    both = Documents(torch.cat((first.ids, second.ids)), torch.cat((first.lengths, second.lengths)), keys,
                     torch.cat((first.documents, second.documents)))
    return both.select(torch.arange(2 * len(first)).view(2, -1).T.flatten())
