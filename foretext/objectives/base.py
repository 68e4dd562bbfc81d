"""What an objective is: one module that owns the encoder, its extra heads and its loss.

Adding one touches a new file and one line of the table in `__init__.py`. The loop, checkpoints, distributed training, export and the
tests that run over the table then know it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from foretext.errors import UserError
from foretext.model.encoder import Encoder, Tokens
from foretext.model.heads import Pooling
from foretext.model.layout import Layout
from foretext.objectives.show import Shown
from foretext.text.batches import Documents, Source, StoreSource
from foretext.text.clusters import Rows
from foretext.text.corrupt import Vocabulary
from foretext.text.joined import Cut, joined
from foretext.text.pairs import PairChoice, pairs_of
from foretext.text.store import Store
from foretext.text.tokenizer import Tokenizer


class ObjectiveConfig(BaseModel):
    """Base of every objective's knobs: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Batch:
    """What `collate` makes. Subclasses add tensors and dataclasses of tensors; `to` moves them all.

    What `forward` has to know as a number - a length, a count - is a number here, because to ask a GPU for one waits for all it has to do.

    Attributes:
        counts: per loss term, how many labelled items this batch holds. The loop divides by their sum over the whole step.
        tokens: real tokens that pass through the encoder.
        documents: (B,) where the examples came from, to be named when a loss is not finite.
    """

    counts: dict[str, int]
    tokens: int
    documents: Tensor

    def to(self, device: str | torch.device) -> Batch:
        """The batch on another device; nobody waits for the copies where it is `pinned`.

        That is safe on the way to a GPU, where what reads a copy comes after it in the same stream, and torch gives a pinned block to
        nobody else before the copy is over. On the way back nothing would come after it, so that is waited for.
        """
        device = torch.device(device)
        if self.documents.device == device:
            return self
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"))

    def pinned(self) -> Batch:
        """The batch in memory that the system keeps in its place, from which a GPU fetches it by itself; for the loader's thread."""
        return with_tensors(self, Tensor.pin_memory)


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `change(tensor)` for each tensor in it, through dataclasses and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(with_tensors(part, change) for part in value)
    if dataclasses.is_dataclass(value):
        return type(value)(**{field.name: with_tensors(getattr(value, field.name), change) for field in dataclasses.fields(value)})
    return value


@dataclass
class Step:
    """What `forward` returns for one micro-batch.

    Attributes:
        terms: each loss term as a SUM over its labelled items, fp32, in nats; the loop divides by the step's total count.
        metrics: name -> (sum, count) of things to report, without gradient.
        vectors: rows of floats for a loss that spans all rows of a step (see `Objective.couple`).
        rows: rows of whole numbers that travel with them (which document a vector is of).
    """

    terms: dict[str, Tensor]
    metrics: dict[str, tuple[Tensor, Tensor | int]] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)


class Corpus(Protocol):
    """What `Objective.refresh` may ask for. Work that every rank does a part of, `rank` of `size`, is put together by `gather`."""

    rank: int
    size: int

    def embed(self, source: Source, rows: np.ndarray) -> np.ndarray:
        """Vectors (n, D) float32 of rows of a source, as an export would give them; all ranks share the work."""

    def nearest(self, queries: np.ndarray, vectors: np.ndarray, k: int, how: str) -> tuple[np.ndarray, np.ndarray]:
        """Scores and numbers of about the k nearest vectors of each query, by this rank alone (`how`: ivfpq or hnsw)."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """All ranks' rows end to end."""


class Objective(nn.Module):
    """Base class. A subclass sets the class attributes, `collate` and `forward`.

    Args:
        encoder: what outlives the training.
        tokenizer: of the texts, for special ids and words.
        config: the subclass's `Config`.
    """

    Config: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    name: ClassVar[str]
    reads: ClassVar[Literal["documents", "pairs", "clusters", "groups", "labelled"]] = "documents"
    pairs: ClassVar[str] = "crops"  # how a store becomes pairs, unless the user says otherwise
    terms: ClassVar[tuple[str, ...]]  # names of the loss terms
    couples: ClassVar[bool] = False  # whether a loss term spans all rows of a step
    masks: bool = False  # whether it needs a tokenizer with a mask token
    static: bool = False  # whether every epoch makes the choices of the first
    calls_block_parts: ClassVar[bool] = False  # whether it runs the encoder's blocks other than by their `forward`
    families: ClassVar[tuple[str, ...]] = ("bert", "roberta", "electra", "mpnet", "modernbert")  # of encoders it goes with
    shapes: ClassVar[tuple[str, ...]] = ()  # settings that shape its heads; where nothing is said, those of an export it goes on from
    start: ClassVar[str | None] = None  # the encoder to start from, where the usual one does not go with it
    weights: dict[str, float]  # of the loss terms, 1 unless said
    pooling: Pooling = "mean"  # how tokens become one vector, for export
    normalize: bool = True  # whether that vector is exported with length 1
    refresh_every: int = 0  # steps between calls of `refresh`; 0: never
    recipes: ClassVar[dict[str, dict[str, Any]]] = {}  # encoder preset -> the paper's settings ("objective", "training") for that size

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, config: ObjectiveConfig | None = None):
        super().__init__()
        if encoder.config.family not in self.families:
            raise UserError(f"objective {self.name} goes with encoders of {', '.join(self.families)}, found {encoder.config.family}: "
                            "choose another with --encoder")
        self.encoder = encoder
        self.config = config or self.Config()
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.of(tokenizer)
        if self.masks:
            self.vocabulary.mask_id  # noqa: B018 - a tokenizer without one stops here, not at the first batch
        self.weights = {}

    @property
    def max_len(self) -> int:
        """Longest text this objective makes, special tokens included."""
        return min(getattr(self.config, "max_len", None) or self.encoder.config.max_len, self.encoder.config.max_len)

    def source(self, store: Store, part: str, valid_share: float, pairs: PairChoice) -> Source:
        """What this objective reads of a store: the rows of its `part` ("train", "valid" or "all"), or pairs made from them."""
        room = self.max_len - 2
        if self.reads == "pairs":
            return pairs_of(store, room, part, valid_share, pairs, usual=self.pairs)
        return StoreSource(store, room, part, valid_share)

    def collate(self, examples: Any) -> Batch:
        """Examples -> batch: pure, vectorised, sees no weights, runs in the loader's thread."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Step:
        """The paper's loss, as sums."""
        raise NotImplementedError

    def represent(self, batch: Batch) -> Step:
        """The `vectors` and `rows` of `forward` alone, where that saves work: in a step that is split this runs first, without gradient.

        It must draw the same dropout for them, so what of the encoder runs has to be the same.
        """
        return self(batch)

    def couple(self, vectors: dict[str, Tensor], rows: dict[str, Tensor], batch: Batch) -> Step:
        """Loss terms between all rows of a step, for objectives with `couples = True`, whose `forward` returns `vectors`.

        The loop gathers the vectors of every micro-batch and rank, calls this once, and hands each micro-batch its part of the
        gradient (GradCache, Gao et al. 2021, arXiv 2101.06983), so that the loss is exact however the step is split.

        Args:
            vectors, rows: those of every `Step` of the whole step, end to end.
            batch: any one of its micro-batches, for what they all share.
        """
        raise NotImplementedError

    def refresh(self, sources: Sequence[Any], corpus: Corpus, seed: int, step: int,
                wanted: int) -> tuple[list[Rows], dict[str, float]]:
        """Choose the examples of the coming round with the weights as they are, for objectives with `refresh_every`.

        Everything follows from the weights and the arguments, so that a refresh that is done again gives the same.

        Args:
            sources: of the training and, where there is one, of the held-out part.
            corpus: embeds and searches, all ranks together.
            wanted: training examples that the round will read.
        Returns:
            what `arranged` of each source takes, and numbers for the log.
        """
        raise NotImplementedError

    def updated(self) -> None:
        """Called after every training update, for what moves with their number; it must be part of the state."""

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """More numbers to report, computed from the means of terms and metrics over everything that is reported on."""
        return {}

    def show(self, batch: Batch) -> list[Shown]:
        """What this batch asks of the model, for people (`foretext show`)."""
        raise NotImplementedError

    def framed(self, documents: Documents) -> Documents:
        """`[CLS] x [SEP]`, cut to `max_len`."""
        return documents.framed(self.tokenizer.cls_id, self.tokenizer.sep_id, self.max_len)

    def heads(self) -> dict[str, Tensor]:
        """The state of everything but the encoder (what it shares with the encoder is the encoder's), to be kept beside it in an export."""
        shared = {value.data_ptr() for value in self.encoder.state_dict().values()}
        return {name: value for name, value in self.state_dict().items()
                if not name.startswith("encoder.") and value.data_ptr() not in shared}

    def save_networks(self, folder: Path, overwrite: bool = False) -> list[Path]:
        """Write the networks that one model folder cannot hold as folders of their own below `folder`; most objectives have none.

        Returns:
            the folders written, each in the format of transformers with its tokenizer (ELECTRA: discriminator/ and generator/).
        """
        return []


def flat(documents: Documents) -> Tokens:
    """Documents, already sorted by length, as the encoder reads them."""
    layout = Layout.of(documents.lengths)
    return Tokens(documents.ids, layout.positions, layout)


def longest_first(documents: Documents) -> tuple[Documents, Tensor]:
    """Sort by length, so that attention's buckets are tight.

    Returns:
        the sorted documents, and (B,) where each original row went: `vectors[places]` restores the order.
    """
    order = documents.lengths.argsort(descending=True, stable=True)
    return documents.select(order), order.argsort()


def flat_longest_first(documents: Documents) -> tuple[Tokens, Tensor]:
    """`longest_first`, as the encoder reads them."""
    ordered, places = longest_first(documents)
    return flat(ordered), places


def prompts(objective: Objective) -> list[list[int]]:
    """What stands before every query and every document: the first token, and the ids of the prompts of the objective's settings."""
    texts = [objective.config.query_prompt, objective.config.document_prompt]
    return [[objective.tokenizer.cls_id, *ids.tolist()] for ids in objective.tokenizer.encode(texts)]


def of_pairs(objective: Objective, first: Documents, second: Documents, cut: Cut) -> tuple[Tokens, Tensor]:
    """`[CLS] a [SEP] b [SEP]` of each row, cut to `max_len`, with token types where the encoder has them; longest first.

    Returns:
        the tokens, and (B,) which row each sequence is.
    """
    order = (first.lengths + second.lengths).argsort(descending=True, stable=True)
    config, words = objective.encoder.config, objective.tokenizer
    between = words.separators[config.family in ("bert", "electra")]
    both, types = joined(first.select(order), second.select(order), words, between, objective.max_len, cut)
    layout = Layout.of(both.lengths)
    return Tokens(both.ids, layout.positions, layout, types if config.types > 1 else None), order
