"""ConveRT: the response to a message found among those of other conversations, also from the turns before it.

What it optimises: cross-entropy, smoothed, of the response among all responses of the step, given the message x; where there are earlier
    turns z also given z, and given both.
References: ConveRT (arXiv 1911.03688): section 3.1 encoder, 3.2 dual encoder and loss, 3.3 earlier turns, 3.1 and 4.1 quantisation.
Inputs: conversations of a store of turns (`prepare --dialogues`); ordinary pairs, which have no earlier turns, are read as well.
Owns: a two-head reduction, feed-forward stacks of the two sides, the scale. It goes with the encoder `convert` alone.
Exports: foretext's own folder, which loads in sentence-transformers and transformers where foretext is installed; with `quantize` its
    weights are stored in 8 and 16 bits.
When to use it: to rank responses on small machines: one encode is a fraction of a BERT's. It learns from pairs alone, tens of millions in
    the paper.
Relations: without earlier turns it is `dual` with `loss: softmax`, smoothing .2, an annealed scale, and its reduction and stacks.
Example: `sums = backward(ConveRT(encoder, tokenizer), batches, World.join())`  (training.step; adds to `.grad`)

    B conversations of the step   K of them with earlier turns   d features of a vector
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from foretext.model.encoder import Tokens
from foretext.model.quantize import Quantized
from foretext.model.reductions import ReductionScale
from foretext.model.scores import Scale, ScaleKind, cross_entropy, no_negatives, right_answers
from foretext.model.towers import Towers, TowersConfig
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat_longest_first
from foretext.objectives.show import Note, Row, Shown, plain_texts
from foretext.text.batches import Source
from foretext.text.pairs import Conversations, PairChoice, Pairs, TurnPairs, pairs_of
from foretext.text.store import Store

TRAINING = {  # section 4.1, but for the updates
    "batch_size": 512,
    "optim": {"kind": "adadelta", "lr": 1.0, "schedule": "cosine", "end_lr": 0.001, "warmup": 0.0, "weight_decay": 1e-5,
              "clip": 1.0, "clip_what": "words"},
}


@dataclass(frozen=True)
class ConversationBatch(Batch):
    contexts: Tokens
    responses: Tokens
    context_places: Tensor  # (b,) where each context's vector lies among those of `contexts`
    response_places: Tensor
    numbers: Tensor  # (b,) of the responses' texts
    earlier: Tokens | None  # the turns before, of those that have any
    earlier_places: Tensor  # (k,)
    earlier_rows: Tensor  # (k,) which of the b they belong to
    with_earlier: Tensor  # (b,) bool
    reads_earlier: bool  # whether earlier turns are read at all: then also where nobody in this batch has any


class ConveRT(Objective):
    """See the head of this file."""

    name = "convert"
    terms = ("context", "earlier", "both")
    reads = "pairs"
    pairs = "turns"
    couples = True
    families = ("convert",)
    start = "convert"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {"convert": {"training": TRAINING}, "convert-mini": {"training": TRAINING}}

    class Config(ObjectiveConfig):
        turns: int = Field(10, ge=0, le=10, description="turns before the message that are read (section 3.3); 0: the message alone")
        smoothing: float = Field(0.2, ge=0, lt=1, description="share of the target spread over the other responses (section 4.1)")
        score_scale: ScaleKind = Field("annealed", description="factor of the cosine: 1 to sqrt(d) over 10,000 updates; trained; a number")
        scale_start: float = Field(20.0, gt=0, description="of the learned and the fixed scale")
        dimension: int | None = Field(None, gt=0, description="d; default: the encoder's width (512 in section 3.2)")
        reduction_scale: ReductionScale = Field("inv_sqrt", description="of the reduction, by the length n: 1/sqrt(n), sqrt(n), 1/n")
        ffn_input_ln: bool = Field(True, description="normalise what enters the feed-forward stack")
        context_ff: Literal["shared", "separate"] = Field("shared", description="one stack for message, turns and their mean; or three")
        multi_inference: Literal["joint", "mean"] = Field(
            "joint", description="with turns, score by the vector of both; or by the mean of the three scores")
        dropout: float = Field(0.0, ge=0, lt=1, description="inside the feed-forward stacks")
        quantize: Quantized | None = Field(None, description="train for 8-bit tables (16-bit rest, section 3.1), or all matrices")
        max_len: int | None = Field(None, description="longest text in tokens; default: the encoder's (62: 60 subwords, section 4.1)")

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        config = self.config
        sides = ("query", "document") + (("earlier", "both") if config.context_ff == "separate" and config.turns else ())
        self.towers = Towers(encoder, TowersConfig(
            reduction="2ha", reduction_scale=config.reduction_scale, output="ffn_stack", dimension=config.dimension, sides=sides,
            joint=(("both" if config.multi_inference == "joint" else "mean") if config.turns else None),
            ffn_input_ln=config.ffn_input_ln, dropout=config.dropout), config.quantize)
        self.scale = Scale(config.score_scale, config.scale_start, self.towers.dimension)

    def source(self, store: Store, part: str, valid_share: float, pairs: PairChoice) -> Source:
        if pairs.kind in (None, "turns"):
            return TurnPairs(store, part, valid_share, self.config.turns)
        return pairs_of(store, self.max_len - 2, part, valid_share, pairs, usual=self.pairs)

    def collate(self, examples: Conversations | Pairs) -> ConversationBatch:
        if isinstance(examples, Pairs):
            examples = Conversations(examples.queries, examples.passages)
        contexts, context_places = flat_longest_first(self.framed(examples.contexts))
        responses, response_places = flat_longest_first(self.framed(examples.responses))
        reads_earlier = examples.earlier is not None and self.config.turns > 0
        with_earlier = examples.earlier.lengths > 0 if reads_earlier else torch.zeros(len(examples.contexts), dtype=torch.bool)
        earlier, earlier_places = None, torch.zeros(0, dtype=torch.int64)
        earlier_rows = with_earlier.nonzero().squeeze(1)
        if len(earlier_rows):
            earlier, earlier_places = flat_longest_first(self.framed(examples.earlier.select(earlier_rows)))
        counts = {"context": len(examples.contexts)}
        if reads_earlier:
            counts |= {"earlier": len(earlier_rows), "both": len(earlier_rows)}
        tokens = len(contexts.ids) + len(responses.ids) + (len(earlier.ids) if earlier else 0)
        return ConversationBatch(counts, tokens, examples.responses.documents, contexts, responses, context_places, response_places,
                                 examples.responses.documents, earlier, earlier_places, earlier_rows, with_earlier, reads_earlier)

    def forward(self, batch: ConversationBatch) -> Step:
        texts, joined = [("query", batch.contexts)], None
        if batch.earlier is not None:
            texts.append(("earlier", batch.earlier))
            joined = (batch.context_places[batch.earlier_rows], batch.earlier_places)
        made = self.towers([*texts, ("document", batch.responses)], joined)
        scale = self.scale()  # goes with the vectors, so that its gradient comes back with theirs however the step is split
        vectors = {"context": made[0][batch.context_places] * scale,
                   "response": made[len(texts)][batch.response_places]}
        if batch.reads_earlier:
            rows = batch.earlier_rows
            none = torch.zeros_like(vectors["context"])
            vectors["earlier"] = none if joined is None else none.index_copy(0, rows, made[1][batch.earlier_places] * scale)
            vectors["both"] = none if joined is None else none.index_copy(0, rows, made[-1] * scale)
        return Step({}, vectors=vectors, rows={"response": batch.numbers, "with_earlier": batch.with_earlier.long()})

    def couple(self, vectors: dict[str, Tensor], rows: dict[str, Tensor], batch: ConversationBatch) -> Step:
        hidden = no_negatives(rows["response"], rows["response"])
        terms, metrics = {}, {"scale": (torch.as_tensor(self.scale()).detach(), 1)}
        with_earlier = rows["with_earlier"].bool()
        for name in self.terms:
            if name not in vectors:
                continue
            scores = vectors[name] @ vectors["response"].T  # (B, B); a row without earlier turns has zeros there
            losses = cross_entropy(scores, self.config.smoothing, hidden)
            terms[name] = losses.sum() if name == "context" else losses.masked_fill(~with_earlier, 0.0).sum()
            if name == "context":
                metrics |= right_answers(scores.detach(), hidden)
            elif name == "both":
                found = scores.detach().masked_fill(hidden, float("-inf")).argmax(1) == torch.arange(len(scores), device=scores.device)
                metrics["both_in_batch_top1"] = ((found & with_earlier).sum(), with_earlier.sum())
        return Step(terms, metrics)

    def updated(self) -> None:
        self.scale.updated()

    def show(self, batch: ConversationBatch) -> list[Shown]:
        contexts = plain_texts(batch.contexts.ids, batch.contexts.layout, batch.context_places)
        responses = plain_texts(batch.responses.ids, batch.responses.layout, batch.response_places)
        turns = [] if batch.earlier is None else plain_texts(batch.earlier.ids, batch.earlier.layout, batch.earlier_places)
        earlier, shown = iter(turns), []
        for i, (context, response) in enumerate(zip(contexts, responses)):
            shown += [Row(f"conversation {i}, earlier turns, most recent first", next(earlier))] if batch.with_earlier[i] else []
            shown += [Row(f"conversation {i}, message", context), Row(f"conversation {i}, response", response)]
        return [*shown, Note(f"each message, its earlier turns, and both have to find the response among all {len(responses)} of the step")]
