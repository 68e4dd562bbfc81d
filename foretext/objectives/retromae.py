"""RetroMAE: a weak decoder must rebuild the text from its sentence vector.

What it optimises: the encoder turns a lightly masked text into one vector (its first token); a one-layer decoder rebuilds the whole
    text from that vector and, for every position, another heavily masked view. So the vector has to carry the text.
References: RetroMAE (arXiv 2205.12035), section 3.1 encoding, 3.2 decoding, 3.3 enhanced decoding (the per-row masks).
Inputs: documents of a store, one text a sequence.
Owns: a token head (shared by encoder and decoder), one decoder layer; for encoders without a position table, a table of its own.
Exports: a Hugging Face `*ForMaskedLM` folder with cls pooling; the decoder in `heads.safetensors`.
When to use it: continued pre-training of a masked-language-model checkpoint for retrieval. It needs far more text than `contrastive`.
Relations: without the decoder term it is `mlm` with whole words at share .30. `dupmae`, at the end of this file, is the same paper's
    second version: one more task, and the other form of decoder queries.
Example: `objective = RetroMAE(encoder, tokenizer); loss = total(objective, objective(batch), batch.counts)`  (training.step)

    T tokens   B texts   D width   L longest text of a bucket
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from foretext.model.encoder import Tokens
from foretext.model.heads import TokenHead, max_logits
from foretext.model.layers import Linear
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat
from foretext.objectives.show import Row, Shown, Token, grids, interleaved, rows, titles
from foretext.text.batches import Documents
from foretext.text.corrupt import Words, corrupt, sample_words, select, word_budget
from foretext.text.randomness import integers


@dataclass(frozen=True)
class RetroBatch(Batch):
    clean: Tokens  # the original text
    corrupted: Tensor  # (T,) its ids as the encoder reads them
    places: Tensor  # (K,) flat indices the encoder predicts
    rebuilt: Tensor  # (M,) flat indices the decoder predicts: all but the first and last of each text
    words: Words  # for the decoder's masks, which are drawn on the device
    keys: Tensor  # (B,)


class RetroMAE(Objective):
    """See the head of this file."""

    name = "retromae"
    masks = True
    terms = ("encoder", "decoder")
    pooling = "cls"

    class Config(ObjectiveConfig):
        share: float = Field(0.3, gt=0, lt=1, description="share of tokens hidden from the encoder (table 6; .15 in the first version)")
        decoder_share: float = Field(0.5, gt=0, lt=1, description="share of tokens hidden from each decoder row (section 4.1)")
        decoder_masks: int = Field(256, gt=0, description="different decoder masks drawn for a text; each row picks one")
        query: Literal["raw", "full"] = Field(
            "raw", description="decoder queries: vector + position (RetroMAE) or the whole embedding block (DupMAE)")
        max_len: int | None = Field(None, description="longest text in tokens; default: the encoder's")

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        self.head = TokenHead(encoder)
        self.decoder = encoder.new_block()
        if encoder.positions is None:  # rotary encoders have no table to take position rows from
            self.positions = nn.Embedding(self.max_len, encoder.config.table_width)
            nn.init.normal_(self.positions.weight, std=0.02)
        else:
            self.positions = None
        # The sentence vector enters the embedding block, which is narrower in ELECTRA's small encoders.
        narrow = encoder.config.table_width != encoder.config.width
        self.narrow = Linear(encoder.config.width, encoder.config.table_width) if narrow else nn.Identity()

    def collate(self, examples: Documents) -> RetroBatch:
        documents = self.framed(examples)
        selected, unit = select(documents, self.vocabulary, "word", self.config.share)
        places = selected.nonzero().squeeze(1)
        positions, last = documents.positions, documents.lengths.repeat_interleave(documents.lengths) - 1
        rebuilt = ((positions > 0) & (positions < last)).nonzero().squeeze(1)
        return RetroBatch(
            {"encoder": len(places), "decoder": len(rebuilt)}, len(documents.ids), documents.documents, flat(documents),
            corrupt(documents, self.vocabulary, places, unit), places, rebuilt,
            Words.of(documents, self.vocabulary), documents.keys)

    def forward(self, batch: RetroBatch) -> Step:
        first = batch.clean.layout.first_rows
        read = torch.cat((first, batch.places))
        hidden = self.encoder(batch.clean.with_ids(batch.corrupted), rows=read)
        return self.rebuild(batch, *hidden.split((len(first), len(batch.places))))

    def rebuild(self, batch: RetroBatch, sentence: Tensor, predicted: Tensor) -> Step:
        """Both losses, from the sentence vectors (B, D) and the encoder's states of the tokens that it predicts (K, D)."""
        rebuilt = self.decode(batch, sentence)[batch.rebuilt]  # (M, D)
        words = self.encoder.words
        encoder_loss, encoder_right = self.head.loss(predicted, words, batch.clean.ids[batch.places])
        decoder_loss, decoder_right = self.head.loss(rebuilt, words, batch.clean.ids[batch.rebuilt])
        return Step({"encoder": encoder_loss, "decoder": decoder_loss},
                    {"encoder_accuracy": (encoder_right, len(batch.places)), "decoder_accuracy": (decoder_right, len(batch.rebuilt))})

    def decode(self, batch: RetroBatch, sentence: Tensor) -> Tensor:
        """Decoder states (T, D) from the sentence vectors (B, D): section 3.3, equations 5 to 8."""
        tokens, encoder, block = batch.clean, self.encoder, self.decoder
        layout = tokens.layout
        h1 = self.decoder_queries(tokens, sentence)
        h2 = encoder.embed(tokens).index_copy(0, layout.first_rows, sentence.to(encoder.compute_dtype))
        bias = encoder.biases(tokens, tokens, visible=self.visible(batch))[0]
        q, (k, v) = block.queries(block.enter(h1)), block.keys_values(block.enter(h2))
        rotary = encoder.rotaries(tokens.positions)[0]
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        return encoder.final_norm(block.finish(h1, block.mix(q, k, v, layout, bias=bias)))

    def decoder_queries(self, tokens: Tokens, sentence: Tensor) -> Tensor:
        """H1 (T, D): the sentence vector at every position, told apart by position only."""
        everywhere = sentence[tokens.layout.sequence]
        if self.config.query == "raw":
            table = self.encoder.positions or self.positions
            return everywhere + self.encoder.project(table(tokens.positions).to(everywhere.dtype))
        everywhere = self.narrow(everywhere)
        if self.positions is not None:
            everywhere = everywhere + self.positions(tokens.positions).to(everywhere.dtype)
        return self.encoder.embed(tokens, vectors=everywhere)

    @torch.no_grad()
    def visible(self, batch: RetroBatch) -> list[Tensor]:
        """Per bucket (b, 1, L, L) bool: what decoder row i sees.

        Each row picks one of up to `decoder_masks` whole-word masks of its text. It never sees its own token; every row but the
        first sees the sentence vector, which stands in the first column; special tokens are never hidden from others.
        """
        visible = []
        token = batch.words.token
        for bucket in batch.clean.layout.buckets:
            texts = slice(bucket.first, bucket.last)
            lengths, keys = batch.words.lengths[texts], batch.keys[texts]
            real = bucket.real if bucket.real is not None else torch.ones(bucket.size, bucket.width, dtype=torch.bool, device=token.device)
            n = real.sum(1)
            pool = min(bucket.width, self.config.decoder_masks)
            budget = word_budget(n, self.config.decoder_share)
            hidden = sample_words(lengths, keys, "decoder_pool", budget, pool, sizes=batch.words.sizes)
            seen = hidden.view(torch.uint8) ^ 1  # bytes: torch negates bools ten times as slowly
            words = seen.shape[2]
            seen = torch.nn.functional.pad(seen, (0, 2), value=1)  # two more words: special tokens are always seen, padding never
            seen[:, :, -1] = 0
            word = bucket.pad(token + 2) - 2
            word = torch.where(word < 0, words - 1 - word, word)[:, None]  # (b, 1, L)
            seen = seen.gather(2, word.expand(-1, pool, -1))  # (b, pool, L) tokens
            rows = torch.arange(bucket.width, device=token.device)
            choice = integers(keys[:, None], "decoder_choice", rows, n.clamp(max=self.config.decoder_masks)[:, None])  # (b, L)
            choice = choice + torch.arange(bucket.size, device=token.device)[:, None] * pool
            seen = seen.flatten(0, 1).index_select(0, choice.flatten()).view(torch.bool).view(bucket.size, bucket.width, bucket.width)
            if bucket.real is not None:
                seen.masked_fill_(~bucket.real[:, :, None], False)
            seen.diagonal(dim1=1, dim2=2).fill_(False)
            visible.append(seen[:, None])
        return visible

    def show(self, batch: RetroBatch) -> list[Shown]:
        tokens, layout = batch.clean, batch.clean.layout
        texts = rows(titles(batch.documents, "the encoder predicts the marked tokens; the decoder all but the first and last"),
                     batch.corrupted, layout, batch.places, tokens.ids[batch.places], self.vocabulary.mask_id)
        seen = grids("  what some rows of the decoder see (first column: the sentence vector)", self.visible(batch), layout, layout,
                     tokens.positions, tokens.ids)
        return interleaved(texts, seen)


class DupMAE(RetroMAE):
    """DupMAE (RetroMAE-2): the other tokens must carry the text as well, as a bag of words.

    What it optimises: RetroMAE, and a bag of words: the largest logit of each vocabulary entry over all tokens but the first has to give
        the words of the text.
    References: RetroMAE-2 (arXiv 2305.02564), section 3.2 (arXiv 2211.08769 before it): equations 5 to 7.
    Inputs: documents of a store, one text a sequence.
    Owns: what RetroMAE owns; the bag of words has no weights of its own, it reads the encoder's token head on the corrupted text.
    Exports: as RetroMAE.
    When to use it: in place of `retromae` where the extra cost is affordable: logits of all tokens, once more, forward only.
    Relations: with `bag_weight` towards 0 it is `retromae` with `query: full`.
    Example: `objective = DupMAE(encoder, tokenizer); loss = total(objective, objective(batch), batch.counts)`
    """

    name = "dupmae"
    terms = ("encoder", "decoder", "bag")

    class Config(RetroMAE.Config):
        query: Literal["raw", "full"] = Field("full", description="decoder queries: vector + position, or the whole embedding block")
        bag: Literal["set", "counts"] = Field("set", description="each different word weighs 1/T (published), or as often as it occurs")
        bag_weight: float = Field(0.1, gt=0, description="of the bag of words' loss")

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        self.weights = {"bag": self.config.bag_weight}

    def collate(self, examples: Documents) -> RetroBatch:
        batch = super().collate(examples)
        batch.counts["bag"] = int((batch.words.lengths.sum(1) > 0).sum())  # texts without a word have no bag
        return batch

    def forward(self, batch: RetroBatch) -> Step:
        layout = batch.clean.layout
        hidden = self.encoder(batch.clean.with_ids(batch.corrupted))  # (T, D)
        step = self.rebuild(batch, hidden[layout.first_rows], hidden[batch.places])
        largest = max_logits(self.head.transform(hidden), self.encoder.words.weight, self.head.bias, layout)  # (B, V)
        step.terms["bag"] = -(self.bags(batch, largest.shape) * largest.log_softmax(1)).sum()
        return step

    @torch.no_grad()
    def bags(self, batch: RetroBatch, shape: tuple[int, int]) -> Tensor:
        """The weight of every vocabulary entry in every text's bag (B, V): 1/T if it occurs in its T words, or its count / T."""
        ordinary = (batch.words.token >= 0).float()  # special tokens belong to no word
        where = (batch.clean.layout.sequence, batch.clean.ids)
        counts = torch.zeros(shape, device=ordinary.device).index_put_(where, ordinary, accumulate=True)
        total = counts.sum(1, keepdim=True).clamp(min=1)
        return (counts > 0) / total if self.config.bag == "set" else counts / total

    def show(self, batch: RetroBatch) -> list[Shown]:
        shown = super().show(batch)  # two for each text
        bags = self.bags(batch, (len(batch.documents), self.encoder.config.vocab_size))
        words = [Row("  the bag of words that the other tokens have to give",
                     [Token(id, id, "bag", f"{bag[id]:.3f}") for id in bag.nonzero().squeeze(1).tolist()]) for bag in bags]
        return interleaved(shown[::2], shown[1::2], words)
