"""Encoder-decoder pre-training: write the clean text from a damaged one, or one text from another.

What it optimises: a decoder predicts every token of the target from the ones before it and from what the encoder made of the source.
    `noise` says what the source is: the target damaged by BART's, T5's or TSDAE's noise, or (`none`) the other text of a pair.
References: BART (arXiv 1910.13461), section 2 architecture and noise; T5 (arXiv 1910.10683), section 3.1.4 spans; TSDAE (arXiv
    2104.06979), section 3.1, for deletion and the bottleneck of one vector; the Transformer (arXiv 1706.03762), section 3.
Inputs: documents of a store, one text a sequence; with `noise: none` pairs (`prepare --pairs`, halves, turns).
Owns: a decoder, and the bias of its output, whose matrix is the encoder's word table, as are the decoder's embeddings.
Exports: the encoder as a Hugging Face folder, the decoder in its `heads.safetensors`, from which `foretext generate` writes; for
    encoders of BART's layout (bart-*, roberta-*) also `networks/bart`, a `BartForConditionalGeneration`.
When to use it: to generate; or, as TSDAE (`noise: delete`, `bottleneck: vector`), for a sentence encoder without labels.
Relations: `clm` with something to read before. `bottleneck: vector` is `retromae`'s idea with a decoder that reads its own past.
Example: `step = Seq2Seq(encoder, tokenizer)(batch); perplexity = exp(step.terms["seq2seq"] / batch.counts["seq2seq"])`

    S source tokens   T target tokens   B pairs   D width   N hypotheses
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from foretext.errors import UserError
from foretext.files import whole_folder
from foretext.model.bart import fits_bart, write_bart
from foretext.model.decoder import Decoder, Hypotheses, Memory
from foretext.model.encoder import Tokens
from foretext.model.generation import GenerationConfig, generate
from foretext.model.heads import Pooling, TiedHead, pool
from foretext.model.layout import Layout
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat
from foretext.objectives.show import Row, Shown, Token, bounds, interleaved, titles
from foretext.text.batches import Documents
from foretext.text.noise import delete, infill, most_spans, shuffle_sentences, span_corruption
from foretext.text.pairs import Pairs

SHARES = {"infill": 0.3, "spans": 0.15, "delete": 0.6}  # BART section 5.1, T5 table 7, TSDAE section 5
SENTINEL = re.compile(r"<extra_id_(\d+)>|\[unused(\d+)\]")
TIED = ("qkv", "out", "attention_norm", "up", "down", "ffn_norm")  # what a decoder layer has in common with an encoder layer


@dataclass(frozen=True)
class Seq2SeqBatch(Batch):
    source: Tokens
    target: Tokens  # what the decoder reads: each target without its last token
    labels: Tensor  # (T,) the token that follows each


class Seq2Seq(Objective):
    """See the head of this file."""

    name = "seq2seq"
    terms = ("seq2seq",)
    pairs = "title"
    recipes = {  # architecture and noise: BART sections 2 and 5.1; rate: the Transformer's schedule
        "bart-base": {"objective": {"decoder_layers": 6, "shuffle_sentences": True},
                      "training": {"steps": 500_000, "batch_size": 256,
                                   "optim": {"lr": 3e-4, "warmup": 10_000, "schedule": "inverse_sqrt"}}},
        "bart-large": {"objective": {"decoder_layers": 12, "shuffle_sentences": True},
                       "training": {"steps": 500_000, "batch_size": 8000,
                                    "optim": {"lr": 3e-4, "warmup": 10_000, "schedule": "inverse_sqrt"}}},
    }

    shapes = ("decoder_layers", "bottleneck", "tie")

    class Config(ObjectiveConfig):
        noise: Literal["infill", "spans", "delete", "none"] = Field(
            "infill", description="the source is the text with spans as one mask each (BART), or as sentinels, where the target is the "
                                  "spans (T5), or with tokens left out (TSDAE); none: the first text of a pair, the target is the second")
        share: float | None = Field(None, ge=0, le=1, description="share of tokens damaged; default: infill .3, spans .15, delete .6")
        span: float = Field(3.0, gt=0, description="mean length of a span in tokens, for infill (Poisson) and spans")
        shuffle_sentences: bool = Field(False, description="the source's sentences in random order, before infill (BART-large)")
        bottleneck: Literal["none", "vector"] = Field(
            "none", description="what the decoder reads of the source: all its tokens, or one vector (TSDAE)")
        pooling: Pooling | None = Field(None, description="how tokens become one vector; default: cls with a vector bottleneck, else mean")
        decoder_layers: int | None = Field(None, gt=0, description="default: 6; 1 with a vector bottleneck; when tied, the encoder's")
        tie: bool = Field(False, description="decoder layers share the encoder layers' weights, but for cross-attention (TSDAE)")
        max_len: int | None = Field(None, description="longest source and target in tokens; default: the encoder's")

        @model_validator(mode="after")
        def _useful(self) -> "Seq2Seq.Config":
            if self.share is not None and self.noise == "none":
                raise ValueError("share has no effect with noise none")
            if self.noise == "infill" and (self.share or 0) > 0.5:
                raise ValueError(f"share {self.share} is too much for infill, whose spans must not touch: take .5 at most")
            if self.shuffle_sentences and self.noise != "infill":
                raise ValueError(f"shuffle_sentences has no effect with noise {self.noise}: use infill")
            if self.span != 3.0 and self.noise in ("delete", "none"):
                raise ValueError(f"span has no effect with noise {self.noise}")
            return self

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        config, vector = self.config, self.config.bottleneck == "vector"
        self.reads = "pairs" if config.noise == "none" else "documents"
        self.pooling = config.pooling or ("cls" if vector else "mean")
        self.share = SHARES.get(config.noise, 0.0) if config.share is None else config.share
        layers = config.decoder_layers or (encoder.config.layers if config.tie else 1 if vector else 6)
        self.decoder = Decoder(encoder.config, layers)
        if config.tie:
            tie(self.decoder, encoder)
        self.output = TiedHead(encoder)
        self.sentinels = self.find_sentinels() if config.noise == "spans" else None
        self.sentence_ends = sentence_ends(tokenizer) if config.shuffle_sentences else None

    @property
    def masks(self) -> bool:
        return self.config.noise == "infill"

    def find_sentinels(self) -> Tensor:
        """Ids of T5's `<extra_id_0>`, ... or BERT's `[unused0]`, ..., in their order."""
        found = {}
        for id in range(self.tokenizer.size):
            if match := SENTINEL.fullmatch(self.tokenizer.token(id) or ""):
                found[int(match[1] or match[2])] = id
        wanted = most_spans(self.max_len - 2, self.share, self.config.span)
        if len(found) < wanted:
            raise UserError(f"noise spans needs {wanted} sentinel tokens (<extra_id_0>, ... or [unused0], ...) for texts of "
                            f"{self.max_len} tokens, and the vocabulary has {len(found)}: take a tokenizer that has them, a smaller "
                            "max_len, or noise infill")
        return torch.tensor([found[number] for number in sorted(found)])

    def collate(self, examples: Documents | Pairs) -> Seq2SeqBatch:
        source, target = self.source_and_target(examples)
        target = self.framed(target)
        order = source.lengths.argsort(descending=True, stable=True)
        source, target = flat(source.select(order)), target.select(order)
        reads = target.part(torch.zeros_like(target.lengths), target.lengths - 1)
        labels = target.part(torch.ones_like(target.lengths), target.lengths - 1).ids
        # Targets and their sources lie in the same buckets, which the sources' lengths decide.
        layout = Layout.of(reads.lengths, splits=source.layout.splits)
        return Seq2SeqBatch({"seq2seq": len(labels)}, len(source.ids), target.documents, source,
                            Tokens(reads.ids, layout.positions, layout), labels)

    def source_and_target(self, examples: Documents | Pairs) -> tuple[Documents, Documents]:
        """The framed source, and the target without special tokens."""
        if not isinstance(examples, Documents):
            queries = examples.queries
            kept = queries.lengths.clamp(max=self.max_len - 2)  # of a conversation the end matters most
            return self.framed(queries.part(queries.lengths - kept, kept)), examples.passages
        room = examples.lengths.clamp(max=self.max_len - 2)
        clean = examples.part(torch.zeros_like(room), room)
        if self.config.noise == "spans":
            source, target = span_corruption(clean, self.sentinels, self.share, self.config.span)
            return self.framed(source), target
        if self.config.noise == "delete":
            return self.framed(delete(clean, self.share)), clean
        shuffled = clean if self.sentence_ends is None else shuffle_sentences(clean, self.sentence_ends)
        return self.framed(infill(shuffled, self.vocabulary.mask_id, self.share, self.config.span)), clean

    def forward(self, batch: Seq2SeqBatch) -> Step:
        hidden = self.decoder(self.encoder, batch.target, self.memory(batch.source, batch.target.layout))
        loss, correct = self.output.loss(hidden, self.encoder.words, batch.labels)
        return Step({"seq2seq": loss}, {"accuracy": (correct, len(batch.labels))})

    def memory(self, source: Tokens, targets: Layout) -> Memory:
        """What the decoder reads of each source: all its tokens, or its one vector."""
        if self.config.bottleneck == "none":
            return Memory.one_each(self.encoder(source), source.layout, targets)
        if self.pooling == "cls":
            vectors = self.encoder(source, rows=source.layout.first_rows)
        else:
            vectors = pool(self.encoder(source), source.layout, self.pooling).to(self.encoder.compute_dtype)
        return Memory.one_each(vectors, Layout.of_ones(len(vectors), source.layout.splits, vectors.device), targets)

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Perplexity: the exponential of the mean over the corpus, not a mean of exponentials."""
        return {"perplexity": math.exp(min(means["seq2seq"], 700.0))}  # exp of more does not fit a float

    def show(self, batch: Seq2SeqBatch) -> list[Shown]:
        hidden = {self.vocabulary.mask_id} if self.masks else set(() if self.sentinels is None else self.sentinels.tolist())
        ids = batch.source.ids.tolist()
        read = [Token(id, id, "hidden" if id in hidden else "") for id in ids]
        asked = [Token(id, label, "next") for id, label in zip(batch.target.ids.tolist(), batch.labels.tolist())]
        sources = [Row(name, read[start:stop]) for name, (start, stop) in
                   zip(titles(batch.documents, "the encoder reads"), bounds(batch.source.layout))]
        targets = [Row("  the decoder predicts the token that follows each", asked[start:stop])
                   for start, stop in bounds(batch.target.layout)]
        return interleaved(sources, targets)

    def generate(self, prompts: list[Tensor], config: GenerationConfig) -> list[Tensor]:
        """Write a target for each source, in eval mode.

        Args:
            prompts: ids of the sources without special tokens; those over the encoder's length keep their last ones.
        Returns:
            ids without special tokens.
        """
        room, cls, sep = self.max_len - 2, self.tokenizer.cls_id, self.tokenizer.sep_id
        framed = [torch.cat((torch.tensor([cls]), prompt[-room:] if len(prompt) else prompt, torch.tensor([sep]))) for prompt in prompts]
        order = sorted(range(len(framed)), key=lambda i: -len(framed[i]))
        device = self.encoder.words.weight.device
        source = Tokens.of(torch.cat([framed[i] for i in order]), [len(framed[i]) for i in order]).to(device)
        targets = Layout.of([1] * len(framed), source.layout.splits, device)
        training = self.training
        self.eval()
        with torch.no_grad():
            generation = self.decoder.begin(self.memory(source, targets).hypotheses(config.beams))
            config = config.model_copy(update={"longest": min(config.longest, self.max_len - 1)})
            begin = torch.full((len(framed), 1), cls, device=device)
            made = generate(Hypotheses(self.encoder, self.decoder, self.output, generation), begin, sep, self.never(), config)
        self.train(training)
        places = sorted(range(len(order)), key=order.__getitem__)
        return [made[place] for place in places]

    def never(self) -> Tensor:
        """(V,) bool, what is not generated: special tokens but the end, and the sentinels where they are asked for."""
        never = self.vocabulary.special.clone()
        never[self.tokenizer.sep_id] = False
        if self.sentinels is not None:
            never[self.sentinels] = False
        return never

    def save_networks(self, folder: Path, overwrite: bool = False) -> list[Path]:
        if self.config.bottleneck != "none" or not fits_bart(self.encoder.config):
            return []
        ids = {"pad": self.tokenizer.pad_id, "cls": self.tokenizer.cls_id, "sep": self.tokenizer.sep_id}
        with whole_folder(folder / "bart", overwrite) as new:
            write_bart(self.encoder, self.decoder, self.output, new, ids, self.tokenizer.size)
            self.tokenizer.save(new, self.max_len, token_types=False)
        return [folder / "bart"]


def tie(decoder: Decoder, encoder) -> None:
    """Let every decoder layer use the weights of the encoder layer at its place."""
    if len(decoder.blocks) != len(encoder.blocks):
        raise UserError(f"objective.tie shares weights layer by layer, but the encoder has {len(encoder.blocks)} layers and the decoder "
                        f"{len(decoder.blocks)}: leave decoder_layers out")
    for ours, theirs in zip(decoder.blocks, encoder.blocks):
        for part in TIED:
            setattr(ours, part, getattr(theirs, part))


def sentence_ends(tokenizer) -> Tensor:
    """(V,) bool, the tokens that end a sentence: full stop, exclamation and question mark (BART's code takes the full stop)."""
    return torch.tensor([(tokenizer.token(id) or "")[-1:] in (".", "!", "?") for id in range(tokenizer.size)])
