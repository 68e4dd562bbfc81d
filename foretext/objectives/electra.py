"""ELECTRA: find the tokens that a small generator replaced.

What it optimises: a small generator fills masked slots by sampling; the encoder, as discriminator, says for every token whether it was
    replaced. So every token teaches, not only the masked ones.
References: ELECTRA (arXiv 2003.10555), section 2 method, 3.2 shared embeddings and small generators, tables 6 and 7 hyper-parameters.
Inputs: documents of a store, one text a sequence; with `segments` its two halves as the two segments of BERT.
Owns: a generator (an encoder of its own that shares the embedding block: words, positions, types and their norm), its token head, and
    the discriminator's head of two linear maps.
Exports: the discriminator as the encoder; `save_networks` writes `discriminator/` (`ElectraForPreTraining`) and `generator/`
    (`ElectraForMaskedLM`) for encoders of the BERT and ELECTRA families. Mean pooling.
When to use it: pre-training from scratch with little compute, for classification above all. For search, train contrastively after it.
Relations: the generator alone is `mlm` with single tokens, mask .85 and no random tokens.
Example: `objective = ELECTRA(encoder, tokenizer); loss = total(objective, objective(batch), batch.counts)`  (training.step)

    T tokens   K slots   D width   E embedding width   V vocabulary
"""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foretext.errors import UserError
from foretext.files import whole_folder
from foretext.model.encoder import Encoder, EncoderConfig, Tokens
from foretext.model.heads import TokenHead
from foretext.model.huggingface import write_encoder
from foretext.model.layers import Linear
from foretext.objectives.base import Batch, Objective, ObjectiveConfig, Step, flat
from foretext.objectives.show import Shown, interleaved, rows, titles
from foretext.text.batches import Documents
from foretext.text.corrupt import Words, corrupt, half_even, sample_tokens
from foretext.text.joined import joined
from foretext.text.randomness import integers, uniform

PAPER = {"warmup": 10_000, "schedule": "linear", "compose": "product", "bias_correction": False, "betas": (0.9, 0.999), "eps": 1e-6,
         "weight_decay": 0.01, "clip": 1.0}
WHOLE = 0.1  # share of texts that stay one segment (ELECTRA's code)
SHORTER = 0.05  # share of texts cut to a random length (the same code)


@dataclass(frozen=True)
class ElectraBatch(Batch):
    clean: Tokens  # the original text
    masked: Tensor  # (T,) its ids as the generator reads them
    slots: Tensor  # (K,) flat indices of the tokens that the generator samples
    keys: Tensor  # (K,) the key of each slot's text


class DiscriminatorHead(nn.Module):
    """w2 . gelu(W1 h): (T, D) -> (T,) logits of "this token was replaced"."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = Linear(width, width)
        self.out = Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(F.gelu(self.dense(hidden))).squeeze(1)


class ELECTRA(Objective):
    """See the head of this file."""

    name = "electra"
    masks = True
    terms = ("generator", "discriminator")
    recipes = {  # tables 6 and 7; large is the run of 400k steps
        "electra-small": {"objective": {"generator_width": 0.25, "max_len": 128},
                          "training": {"steps": 1_000_000, "batch_size": 128, "optim": PAPER | {"lr": 5e-4}}},
        "electra-base": {"objective": {"generator_width": 1 / 3, "max_len": 512},
                         "training": {"steps": 766_000, "batch_size": 256, "optim": PAPER | {"lr": 2e-4}}},
        "electra-large": {"objective": {"generator_width": 0.25, "share": 0.25, "max_len": 512},
                          "training": {"steps": 400_000, "batch_size": 2048, "optim": PAPER | {"lr": 2e-4}}},
    }

    class Config(ObjectiveConfig):
        share: float = Field(0.15, gt=0, lt=1, description="share of tokens that the generator samples (table 6; large .25)")
        mask: float = Field(0.85, ge=0, le=1, description="share of those hidden from the generator; it sees the others (ELECTRA's code)")
        generator_width: float = Field(0.25, gt=0, le=1, description="width of the generator, as a share of the encoder's (base 1/3)")
        generator_layers: float = Field(1.0, gt=0, le=1, description="layers of the generator, as a share of the encoder's")
        temperature: float = Field(1.0, gt=0, description="divides the generator's logits when it samples")
        weight: float = Field(50.0, gt=0, description="of the discriminator's loss (section 3.1)")
        disc_start_step: int = Field(0, ge=0, description="updates in which the generator trains alone, before that loss counts")
        segments: bool = Field(False, description="[CLS] A [SEP] B [SEP] with token types, A and B the halves of a text (ELECTRA's data)")
        max_len: int | None = Field(None, description="longest text in tokens; default: the encoder's")

    def __init__(self, encoder, tokenizer, config=None):
        super().__init__(encoder, tokenizer, config)
        if self.config.segments and encoder.config.types < 2:
            raise UserError("objective.segments: this encoder has no token types to tell two segments apart by; take a bert or electra one")
        if self.config.disc_start_step:
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # in the checkpoint
            self.register_load_state_dict_post_hook(lambda module, _: module.weigh(int(module.updates)))
        self.weigh(0)
        self.generator = make_generator(encoder, self.config.generator_width, self.config.generator_layers)
        self.generator_head = TokenHead(self.generator)
        self.discriminator_head = DiscriminatorHead(encoder.config.width)

    def weigh(self, done: int) -> None:
        """The discriminator's loss counts from its first step on. `updates` is counted here as well: to read a GPU's would wait for it."""
        self.done = done
        self.weights = {"discriminator": self.config.weight * (done >= self.config.disc_start_step)}

    def updated(self) -> None:
        if self.config.disc_start_step:
            self.updates += 1
            self.weigh(self.done + 1)

    def heads(self) -> dict[str, Tensor]:
        return {name: value for name, value in super().heads().items() if name != "updates"}  # another run counts its own

    def collate(self, examples: Documents) -> ElectraBatch:
        documents, types = self.halves(examples) if self.config.segments else (self.framed(examples), None)
        share = self.config.share
        most = int((share + 0.005) * self.max_len)  # ELECTRA's code
        budget = half_even(documents.lengths.double() * share).clamp(max=most).clamp(min=1)
        slots = sample_tokens(documents, ~self.vocabulary.special[documents.ids], budget, "slots").nonzero().squeeze(1)
        masked = corrupt(documents, self.vocabulary, slots, documents.positions, self.config.mask, random=0.0)
        return ElectraBatch({"generator": len(slots), "discriminator": len(masked)}, len(masked), documents.documents,
                            replace(flat(documents), types=types), masked, slots, documents.keys[documents.sequence[slots]])

    def halves(self, examples: Documents) -> tuple[Documents, Tensor]:
        """`[CLS] A [SEP] B [SEP]`, B from the first word behind the middle on; texts without one, and some by chance, stay whole.

        Returns:
            the sequences, longest first, and the token types (T,).
        """
        nothing, L = torch.zeros_like(examples.lengths), self.max_len
        shorter = uniform(examples.keys, "segments", nothing + 1) < SHORTER
        longest = torch.where(shorter, 5 + integers(examples.keys, "segments", nothing + 2, nothing + L - 4), L)  # 5 .. L
        examples = examples.part(nothing, examples.lengths.minimum((longest - 3).clamp(min=1)))
        n, words = examples.lengths, Words.of(examples, self.vocabulary)
        begins = torch.cat((torch.ones(1, dtype=torch.bool), words.token[1:] != words.token[:-1]))
        behind = torch.where(begins & (examples.positions * 2 >= n[examples.sequence]), examples.positions, n[examples.sequence])
        first = n.scatter_reduce(0, examples.sequence, behind, "amin")
        first = torch.where(uniform(examples.keys, "segments", nothing) < WHOLE, n, first)
        alone = first == n
        order = (n - alone.long()).argsort(descending=True, stable=True)
        examples, first, alone = examples.select(order), first[order], alone[order]
        both, types = joined(examples.part(nothing, first), examples.part(first, examples.lengths - first), self.tokenizer, 1,
                             self.max_len, "longest")
        kept = torch.ones_like(both.ids, dtype=torch.bool)
        kept[(both.starts + both.lengths - 1)[alone]] = False  # the end of a second segment that is not there
        return replace(both, ids=both.ids[kept], lengths=both.lengths - alone.long()), types[kept]

    def forward(self, batch: ElectraBatch) -> Step:
        tokens, slots = batch.clean, batch.slots
        original = tokens.ids[slots]  # (K,)
        sampled = torch.empty_like(original)

        def draw(first: int, logits: Tensor) -> None:
            rows = slice(first, first + len(logits))
            sampled[rows] = self.sample(logits, batch.keys[rows], tokens.positions[slots[rows]])

        self.generator.compute_dtype = self.encoder.compute_dtype
        hidden = self.generator(tokens.with_ids(batch.masked), rows=slots)
        generator_loss, right = self.generator_head.loss(hidden, self.encoder.words, original, look=draw)

        replaced = torch.zeros_like(tokens.ids, dtype=torch.bool).index_copy(0, slots, sampled != original)
        shown = tokens.ids.index_copy(0, slots, sampled)
        logits = self.discriminator_head(self.encoder(tokens.with_ids(shown))).float()  # (T,)
        discriminator_loss = F.binary_cross_entropy_with_logits(logits, replaced.float(), reduction="sum")
        return Step({"generator": generator_loss, "discriminator": discriminator_loss},
                    {"generator_accuracy": (right, len(slots)), "sample_accuracy": ((sampled == original).sum(), len(slots)),
                     **detection(logits.detach(), replaced)})

    def sample(self, logits: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """What the generator writes into slots (K,): one id each, by its own logits (K, V)."""
        return gumbel_sample(logits / self.config.temperature, keys, positions)

    @torch.no_grad()
    def show(self, batch: ElectraBatch) -> list[Shown]:
        tokens, slots, documents = batch.clean, batch.slots, batch.documents
        original = tokens.ids[slots]
        hidden = self.generator(tokens.with_ids(batch.masked), rows=slots)
        sampled = self.sample(self.generator_head(hidden, self.encoder.words).float(), batch.keys, tokens.positions[slots])
        asked = rows(titles(documents, "the generator predicts and samples the marked tokens"), batch.masked, tokens.layout, slots,
                     original, self.vocabulary.mask_id)
        judged = rows(titles(documents, "the discriminator says for every token whether it was replaced"),
                      tokens.ids.index_copy(0, slots, sampled), tokens.layout, slots, original, None, "replaced", "guessed")
        return interleaved(asked, judged)

    def save_networks(self, folder: Path, overwrite: bool = False) -> list[Path]:
        if self.encoder.config.family not in ("bert", "electra"):
            raise UserError(f"transformers' ELECTRA classes hold no {self.encoder.config.family} encoder: train electra or bert encoders "
                            "to export both networks, or export the encoder alone")
        ids = {"pad": self.tokenizer.pad_id, "cls": self.tokenizer.cls_id, "sep": self.tokenizer.sep_id}
        head = {"dense": "dense", "out": "dense_prediction"}
        found = {f"discriminator_predictions.{head[name.split('.')[0]]}.{name.split('.')[1]}": value
                 for name, value in self.discriminator_head.state_dict().items()}
        written = []
        for name, encoder, rest in (
            ("discriminator", self.encoder, {"architecture": "ElectraForPreTraining", "tensors": found}),
            ("generator", self.generator, {"head": self.generator_head}),
        ):
            with whole_folder(folder / name, overwrite) as new:
                write_encoder(as_electra(encoder), new, ids, vocab_size=self.tokenizer.size, **rest)
                self.tokenizer.save(new, self.max_len, token_types=True)
            written.append(folder / name)
        return written


def make_generator(encoder: Encoder, width: float, layers: float) -> Encoder:
    """An encoder of its own, smaller by these factors, that reads through the very embedding block of `encoder`."""
    config = encoder.config
    D = round(config.width * width)
    generator = Encoder(EncoderConfig(**config.model_dump() | {
        "width": D, "layers": max(1, round(config.layers * layers)), "heads": max(1, D // 64),
        "ffn_width": round(config.ffn_width * D / config.width), "embedding_width": config.table_width}))
    for part in ("words", "positions", "types", "norm"):
        setattr(generator, part, getattr(encoder, part))
    return generator


def as_electra(encoder: Encoder) -> Encoder:
    """The same modules under the name of ELECTRA's family, which is BERT's network with an optional embedding projection."""
    renamed = copy.copy(encoder)
    renamed.config = encoder.config.model_copy(update={"family": "electra"})
    return renamed


def gumbel_sample(logits: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    """argmax_v(logits + Gumbel noise) of each row, with addressed noise.

    The largest of Gumbels shifted by logits is a Gumbel shifted by their logsumexp. So first a stretch of the vocabulary is drawn, then
    an id inside it: the same distribution from 2 sqrt(V) random numbers instead of V.

    Args:
        logits: (K, V) fp32. keys, positions: (K,) the address of each row.
    Returns:
        (K,) int64
    """
    K, V = logits.shape
    width = math.ceil(math.sqrt(V))
    stretches = -(-V // width)

    def noise(first: int, count: int) -> Tensor:
        places = positions[:, None] * (stretches + width) + torch.arange(first, first + count, device=logits.device)
        return -(-uniform(keys[:, None], "gumbel", places).clamp(1e-9, 1 - 1e-9).log()).log()

    split = F.pad(logits, (0, stretches * width - V), value=float("-inf")).view(K, stretches, width)
    stretch = (split.logsumexp(2) + noise(0, stretches)).argmax(1)
    inside = split[torch.arange(K, device=logits.device), stretch]
    return stretch * width + (inside + noise(stretches, width)).argmax(1)


@torch.no_grad()
def detection(logits: Tensor, replaced: Tensor) -> dict[str, tuple[Tensor, Tensor | int]]:
    """How well the discriminator tells replaced tokens apart, as sums and counts; the area under the ROC curve counts pairs."""
    said, real = logits > 0, ~replaced
    ascending, order = logits.sort()
    below = F.pad(real[order].cumsum(0), (1, 0))  # (T+1,) real tokens among the lowest i
    lower = below[torch.searchsorted(ascending, logits)] + below[torch.searchsorted(ascending, logits, right=True)]  # twice; a tie is half
    return {"accuracy": ((said == replaced).sum(), len(logits)),
            "precision": ((said & replaced).sum(), said.sum()),
            "recall": ((said & replaced).sum(), replaced.sum()),
            "auc": ((lower * replaced).sum() / 2, replaced.sum() * real.sum()),
            "replaced": (replaced.sum(), len(logits))}
