"""Causal language modelling.

What it optimises: predict every token from the ones before it, left to right, the first one and the end of the text included.
References: GPT (Radford et al. 2018, "Improving language understanding by generative pre-training", section 3.1); the usual
    settings are GPT-3's for small models (arXiv 2005.14165, table 2.1 and appendix B).
Inputs: documents of a store, one text a sequence; the tokenizer's CLS begins it and SEP ends it.
Owns: a token head, tied to the encoder's word table.
Exports: the encoder, which reads in both directions, with mean pooling; `save_networks` writes `causal/` for encoders of BERT's and
    RoBERTa's families: a folder with `is_decoder: true`, which `AutoModelForCausalLM` loads with the same logits.
When to use it: to compare texts and corpora by perplexity, or to generate. For retrieval prefer objectives that look both ways.
Relations: `mlm` with the other half of the text hidden from every token.
Example: `step = CLM(encoder, tokenizer)(batch); perplexity = exp(step.terms["clm"] / batch.counts["clm"])`
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from foretext.errors import UserError
from foretext.files import whole_folder
from foretext.model.encoder import Tokens
from foretext.model.generation import GenerationConfig, generate
from foretext.model.heads import TokenHead
from foretext.model.huggingface import write_encoder
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat
from foretext.objectives.show import Row, Shown, Token, bounds, titles
from foretext.text.batches import Documents

CAUSAL_CLASSES = {"bert": "BertLMHeadModel", "roberta": "RobertaForCausalLM"}


@dataclass(frozen=True)
class CausalBatch(Batch):
    tokens_in: Tokens  # each text without its last token
    labels: Tensor  # (T,) the token that follows each


class CLM(Objective):
    """See the head of this file."""

    name = "clm"
    terms = ("clm",)

    class Config(ObjectiveConfig):
        max_len: int | None = Field(None, description="longest text in tokens; default: the encoder's")

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        self.head = TokenHead(encoder)

    def collate(self, examples: Documents) -> CausalBatch:
        documents = self.framed(examples)
        inputs = documents.part(torch.zeros_like(documents.lengths), documents.lengths - 1)
        labels = documents.part(torch.ones_like(documents.lengths), documents.lengths - 1).ids
        return CausalBatch({"clm": len(labels)}, len(labels), documents.documents, flat(inputs), labels)

    def forward(self, batch: CausalBatch) -> Step:
        loss, correct = self.head.loss(self.states(batch.tokens_in), self.encoder.words, batch.labels)
        return Step({"clm": loss}, {"accuracy": (correct, len(batch.labels))})

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Perplexity: the exponential of the mean over the corpus, not a mean of exponentials."""
        return {"perplexity": math.exp(min(means["clm"], 700.0))}  # exp of more does not fit a float

    def states(self, tokens: Tokens, rows: Tensor | None = None) -> Tensor:
        """Last hidden states, every token seeing itself and what is before it: (T, D), or (K, D) of `rows`."""
        squares = (torch.ones(1, 1, k.width, k.width, dtype=torch.bool, device=tokens.ids.device) for k in tokens.layout.buckets)
        return self.encoder(tokens, rows, visible=[square.tril() for square in squares])

    def show(self, batch: CausalBatch) -> list[Shown]:
        pairs = [Token(read, label, "next") for read, label in zip(batch.tokens_in.ids.tolist(), batch.labels.tolist())]
        names = titles(batch.documents, "predict the token that follows each")
        return [Row(name, pairs[start:stop]) for name, (start, stop) in zip(names, bounds(batch.tokens_in.layout))]

    def save_networks(self, folder: Path, overwrite: bool = False) -> list[Path]:
        family = self.encoder.config.family
        if family not in CAUSAL_CLASSES:
            raise UserError(f"transformers has no causal model of {family} encoders: export/ is the encoder, with the token head, in both "
                            "directions, and only foretext reads it left to right")
        ids = {"pad": self.tokenizer.pad_id, "cls": self.tokenizer.cls_id, "sep": self.tokenizer.sep_id}
        with whole_folder(folder / "causal", overwrite) as new:
            write_encoder(self.encoder, new, ids, self.head, vocab_size=self.tokenizer.size, architecture=CAUSAL_CLASSES[family],
                          settings={"is_decoder": True})
            self.tokenizer.save(new, self.max_len, token_types=family == "bert")
        return [folder / "causal"]

    def generate(self, prompts: list[Tensor], config: GenerationConfig) -> list[Tensor]:
        """Go on from each prompt, in eval mode, for a look: every token costs a pass over all before it.

        Args:
            prompts: ids without special tokens; may be empty.
        Returns:
            each prompt and what follows, up to the longest text that the encoder reads, without special tokens.
        Raises:
            UserError: a prompt that leaves no room.
        """
        cls, sep, device = self.tokenizer.cls_id, self.tokenizer.sep_id, self.encoder.words.weight.device
        if too_long := [len(prompt) for prompt in prompts if len(prompt) + 1 > self.max_len]:
            raise UserError(f"the prompt has {too_long[0]} tokens and this model reads {self.max_len - 1} at most: shorten it")
        never = self.vocabulary.special.clone()
        never[sep] = False
        training, made = self.training, []
        self.eval()
        for prompt in prompts:
            longest = min(config.longest, self.max_len - 1 - len(prompt))
            begin = torch.cat((torch.tensor([cls]), prompt.cpu()))[None].to(device)
            if longest:
                options = config.model_copy(update={"longest": longest})
                prompt = torch.cat((prompt.cpu(), generate(Reread(self), begin, sep, never, options)[0]))
            made.append(prompt)
        self.train(training)
        return made


class Reread:
    """Hypotheses as `model.generation` wants them, read from the beginning at every step."""

    def __init__(self, objective: CLM):
        self.objective, self.read = objective, torch.empty(0, 0, dtype=torch.int64)

    def step(self, ids: Tensor) -> Tensor:
        self.read = torch.cat((self.read.to(ids.device), ids), 1) if len(self.read) else ids
        N, n = self.read.shape
        last = torch.arange(1, N + 1, device=ids.device) * n - 1
        return self.objective.head(self.objective.states(Tokens.of(self.read.flatten(), [n] * N), last), self.objective.encoder.words)

    def select(self, rows: Tensor) -> None:
        self.read = self.read[rows]
