"""MPNet: masked and permuted language modelling.

What it optimises: a block of tokens is hidden and predicted one after another, in random order. Each prediction sees the text around
    the block, the block's tokens predicted before it, and a mask token in every place still to come: it knows what was said already
    (as BERT does not) and how long the text is (as XLNet does not).
References: MPNet (arXiv 2004.09297), section 2.2 the unified view, 2.3 two streams and position compensation, 3.1 the settings;
    two-stream attention: XLNet (arXiv 1906.08237, section 2.3).
Inputs: documents of a store.
Owns: a token head, tied to the encoder's word table.
Exports: a Hugging Face `*ForMaskedLM` folder (`MPNetForMaskedLM` from an mpnet encoder); mean pooling.
When to use it: where `mlm` would be used, for about 1.3 times its cost per text. Made for mpnet encoders, with their bias by distance;
    also right on encoders with absolute or rotary positions.
Relations: with a block of one token it is `mlm` of one token a text; `add_mlm` adds the loss of `mlm` on the same block.
Example: `step = MPNet(encoder, tokenizer)(batch); loss = step.terms["mpnet"] / batch.counts["mpnet"]`

    T tokens of the texts   K tokens of their blocks   D width
    content stream: T + K tokens, the texts as they were written and, behind each, what stands in for its block
    query stream: K tokens, which predict the block
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from foretext.model.encoder import Tokens
from foretext.model.heads import TokenHead
from foretext.model.layout import Layout
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step
from foretext.objectives.show import Row, Shown, Token, bounds, grids, interleaved, mark, titles
from foretext.text.batches import Documents, spans
from foretext.text.corrupt import corrupt, select, shuffled

CONTEXT, TARGET, MASK = 0, 1, 2  # kinds of content tokens
FOREVER = 1 << 30


@dataclass(frozen=True)
class PermutedBatch(Batch):
    content: Tokens  # (T+K,) of each text its tokens as written, then the stand-ins of its block in the order of prediction
    queries: Tokens  # (K,) the stand-ins again
    kind: Tensor  # (T+K,) CONTEXT, TARGET or MASK
    step: Tensor  # (T+K,) of targets and masks: when they are predicted, from 0 in each text
    query_step: Tensor  # (K,)
    labels: Tensor  # (K,) the original ids
    third: Tensor  # (K,) which third of its block a query lies in
    masks: Tensor  # (K,) flat indices of the content's stand-ins
    skipped: int  # texts without a token to predict


class MPNet(Objective):
    """See the head of this file."""

    name = "mpnet"
    calls_block_parts = True
    masks = True

    class Config(ObjectiveConfig):
        share: float = Field(0.15, gt=0, lt=1, description="share of tokens to predict (section 3.1)")
        mask: float = Field(0.8, ge=0, le=1, description="share of the block whose stand-in is the mask token (section 3.1)")
        random: float = Field(0.1, ge=0, le=1, description="share whose stand-in is a random token")
        whole_word: bool = Field(True, description="words stay together in the permutation (section 3.1)")
        word_cut: Literal["exact", "whole"] = Field("exact", description="cut the first word of the block to make the share exact, or not")
        add_mlm: bool = Field(False, description="also predict the block from the mask tokens of the content stream, all at once")
        max_len: int | None = Field(None, description="longest text in tokens; default: the encoder's")

        @model_validator(mode="after")
        def _useful(self):
            if self.word_cut == "whole" and not self.whole_word:
                raise ValueError("word_cut: whole has no effect with whole_word: false")
            return self

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        self.head = TokenHead(encoder)
        self.terms = ("mpnet", "mlm") if self.config.add_mlm else ("mpnet",)

    def collate(self, examples: Documents) -> PermutedBatch:
        documents, c = self.framed(examples), self.config
        how = {"exact": "cut_word", "whole": "word"}[c.word_cut] if c.whole_word else "token_budget"
        selected, unit = select(documents, self.vocabulary, how, c.share, stream="permute")
        places, step, sizes = shuffled(documents, selected, "block")  # (K,) flat indices of the block, in the order of prediction
        stand_ins = corrupt(documents, self.vocabulary, places, unit, c.mask, c.random)[places]

        # Where each text's tokens and stand-ins lie in the content stream. What a token sees follows from its kind and step alone, so
        # the texts stay as they were written: only the order of prediction is permuted.
        lengths = documents.lengths + sizes
        starts = lengths.cumsum(0) - lengths
        written, behind = spans(starts, documents.lengths), spans(starts + documents.lengths, sizes)
        targets, positions = written[places], documents.positions
        content = torch.empty(3, len(written) + len(behind), dtype=torch.int64)
        content[:, written] = torch.stack((documents.ids, positions, torch.zeros_like(positions)))
        content[:, behind] = torch.stack((stand_ins, positions[places], step))
        content[2, targets] = step
        kind = torch.zeros(content.shape[1], dtype=torch.int64)
        kind[targets], kind[behind] = TARGET, MASK

        layout = Layout.of(lengths, splits=Layout.of(documents.lengths).splits)
        return PermutedBatch(
            dict.fromkeys(self.terms, len(places)), content.shape[1] + len(places), documents.documents,
            Tokens(content[0], content[1], layout), Tokens(stand_ins, positions[places], Layout.of(sizes, splits=layout.splits)),
            kind, content[2], step, documents.ids[places],
            step * 3 // sizes.repeat_interleave(sizes), behind, int((sizes == 0).sum()))

    def forward(self, batch: PermutedBatch) -> Step:
        predicted, read = self.streams(batch, batch.masks if self.config.add_mlm else None)  # (K, D), (K, D) or None
        words, labels, count = self.encoder.words, batch.labels, len(batch.labels)
        loss, correct = self.head.loss(predicted, words, labels)
        metrics = {"accuracy": (correct, count), "skipped": (batch.skipped, len(batch.documents))}
        if not self.training:  # how much the block's earlier tokens help; not worth a second pass through the head in training
            for name, third in (("first_third", 0), ("last_third", 2)):
                rows = batch.third == third
                metrics[f"accuracy_{name}"] = (self.head.loss(predicted[rows], words, labels[rows])[1], rows.sum())
        step = Step({"mpnet": loss}, metrics)
        if self.config.add_mlm:
            step.terms["mlm"], correct = self.head.loss(read, words, labels)
            metrics["mlm_accuracy"] = (correct, count)
        return step

    def streams(self, batch: PermutedBatch, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Both streams through all layers: each reads keys and values of the content stream.

        Args:
            rows: flat indices of content tokens whose last states are read too.
        Returns:
            last states of the queries (K, D), and of `rows`. The last layer computes nothing else.
        """
        encoder, content, queries = self.encoder, batch.content, batch.queries
        seen_by_content, seen_by_queries = self.visible(batch)
        biases = zip(encoder.biases(content, content, seen_by_content), encoder.biases(queries, content, seen_by_queries))
        rotaries = zip(encoder.rotaries(content.positions), encoder.rotaries(queries.positions))
        c, g = encoder.embed(content), encoder.embed(queries)  # the paper's content and query streams
        for i, (block, (content_bias, query_bias), (turn, turn_query)) in enumerate(zip(encoder.blocks, biases, rotaries)):
            last = i == len(encoder.blocks) - 1
            entered, q = block.enter(c), block.queries(block.enter(g))
            if last and rows is None:
                k, v = block.keys_values(entered)
            else:
                p, k, v = block.queries_keys_values(entered)
            if turn is not None:
                q, k = turn_query(q), turn(k)
            g = block.finish(g, block.mix(q, k, v, queries.layout, content.layout, query_bias))
            if not last or rows is not None:
                p = p if turn is None else turn(p)
                c = block.finish(c, block.mix(p, k, v, content.layout, bias=content_bias), rows if last else None)
        return encoder.final_norm(g), None if rows is None else encoder.final_norm(c)

    @torch.no_grad()
    def visible(self, batch: PermutedBatch) -> tuple[list[Tensor], list[Tensor]]:
        """What content tokens and queries see: per bucket (b, 1, Lq, Lk) bool.

        At time t the first t tokens of the block have been predicted: those targets have appeared, the other places still hold their
        masks, the context is always there. Context and masks look at time 0, target i at time i+1, when it has just appeared, and
        query i at time i. So everyone sees each position of the text exactly once (section 2.3, position compensation).
        """
        appears = torch.where(batch.kind == TARGET, batch.step + 1, 0)
        vanishes = torch.where(batch.kind == MASK, batch.step, FOREVER)
        content, queries = [], []
        for keys, block in zip(batch.content.layout.buckets, batch.queries.layout.buckets):
            first, last = keys.pad(appears)[:, None, None, :], keys.pad(vanishes)[:, None, None, :]
            for times, found in ((keys.pad(appears), content), (block.pad(batch.query_step), queries)):
                time = times[:, None, :, None]
                found.append((first <= time) & (time <= last))
        return content, queries

    def show(self, batch: PermutedBatch) -> list[Shown]:
        content, queries = batch.content, batch.queries
        names = titles(batch.documents, "the block to predict, numbered in the order of prediction")
        written, orders = [], []
        for name, (start, stop), (first, last) in zip(names, bounds(content.layout), bounds(queries.layout)):
            positions = queries.positions[first:last].tolist()
            stand_ins = list(zip(queries.ids[first:last].tolist(), batch.labels[first:last].tolist()))
            tokens = [Token(id, id) for id in content.ids[start : stop - len(positions)].tolist()]
            for number, (place, (shown, original)) in enumerate(zip(positions, stand_ins), 1):
                tokens[place] = mark(shown, original, self.vocabulary.mask_id, note=f"#{number}")
            written.append(Row(name, tokens))
            orders.append(Row("  its block in that order, with positions",
                              [mark(*pair, self.vocabulary.mask_id, note=f"@{place}") for pair, place in zip(stand_ins, positions)]))
        seen = grids("  what some of the block see: the text as written, then the block's stand-ins", self.visible(batch)[1],
                     queries.layout, content.layout, queries.positions, batch.labels)
        return interleaved(written, orders, seen)
