"""Causal language modelling.

What it optimises: predict every token from the ones before it, left to right, the first one and the end of the text included.
References: GPT (Radford et al. 2018, "Improving language understanding by generative pre-training", section 3.1); the settings
    objectives.md gives are GPT-3's for small models (arXiv 2005.14165, table 2.1 and appendix B).
Inputs: documents of a store, one text a sequence; the tokenizer's CLS begins it and SEP ends it.
Owns: a token head, tied to the encoder's word table.
Exports: a Hugging Face `*ForMaskedLM` folder, as an encoder: transformers reads it in both directions, so it does not generate there.
When to use it: to compare texts and corpora by perplexity, or to generate. For retrieval prefer objectives that look both ways.
Relations: `mlm` with the other half of the text hidden from every token.
Example: `step = CLM(encoder, tokenizer)(batch); perplexity = exp(step.terms["clm"] / batch.counts["clm"])`
"""

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from foretext.errors import UserError
from foretext.model.encoder import Tokens
from foretext.model.heads import TokenHead
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat
from foretext.objectives.show import Row, Shown, Token, bounds, titles
from foretext.text.batches import Documents


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

    @torch.no_grad()
    def generate(self, prompt: Tensor, longest: int = 100, temperature: float = 1.0, top: int = 0, seed: int = 0) -> Tensor:
        """Go on from a prompt, for a look: every token costs a pass over all before it.

        Args:
            prompt: (n,) ids without special tokens; may be empty.
            longest: at most so many new tokens; fewer where the text ends or is as long as the encoder reads.
            temperature: of the sampling; 0: always the likeliest token.
            top: sample among so many likeliest tokens; 0: among all.
        Returns:
            (n + new,) ids without special tokens.
        """
        device, end = self.encoder.words.weight.device, self.tokenizer.sep_id
        if len(prompt) + 1 > self.max_len:
            raise UserError(f"the prompt has {len(prompt)} tokens and this model reads {self.max_len - 1} at most: shorten it")
        never = self.vocabulary.special.clone()
        never[end] = False
        draw = torch.Generator().manual_seed(seed)
        training = self.training
        self.eval()
        ids = torch.cat((torch.tensor([self.tokenizer.cls_id]), prompt.cpu())).to(device)
        for _ in range(min(longest, self.max_len - len(ids))):
            state = self.states(Tokens.of(ids, [len(ids)]), torch.tensor([len(ids) - 1], device=device))
            logits = self.head(state, self.encoder.words)[0].float().cpu().masked_fill(never, -torch.inf)
            if top:
                logits[logits < logits.topk(top).values[-1]] = -torch.inf
            chosen = torch.multinomial((logits / temperature).softmax(0), 1, generator=draw) if temperature else logits.argmax()[None]
            if chosen.item() == end:
                break
            ids = torch.cat((ids, chosen.to(device)))
        self.train(training)
        return ids[1:]
