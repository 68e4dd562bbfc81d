"""An encoder whose texts all processes share out: each embeds its part, and all get all vectors (`training.distributed.World`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from foretext.retrieval.embed import Cut, Kind, TextEncoder
from foretext.retrieval.towers import ConversationEncoder
from foretext.training.distributed import World


class SharedEncoder:
    """A `TextEncoder` of several processes, which all call `encode` with the same texts; everything else is the encoder's own.

    Attributes:
        last_cut: what the latest `encode` cut off, in all processes.
    """

    def __init__(self, encoder: TextEncoder, world: World):
        self.wrapped, self.world, self.last_cut = encoder, world, Cut(0, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def encode(self, texts: Sequence[str], kind: Kind = "document", token_budget: int | None = None,
               show_progress: bool = False) -> np.ndarray:
        """Embed texts: (n, D) float32, in the order given."""
        show_progress = show_progress and self.world.first
        vectors = self.world.share(texts, lambda some: self.wrapped.encode(some, kind, token_budget, show_progress))
        self.last_cut = Cut(*self.world.sum(torch.tensor(self.wrapped.last_cut)).tolist())
        return vectors


class SharedConversationEncoder(SharedEncoder):
    """The same, of messages with the turns before them."""

    def encode_contexts(self, contexts: Sequence[str], earlier: Sequence[str]) -> np.ndarray:
        """See `ConversationEncoder.encode_contexts`."""
        both = list(zip(contexts, earlier, strict=True))
        return self.world.share(both, lambda some: self.wrapped.encode_contexts(*map(list, zip(*some))) if some else self._none())

    def _none(self) -> np.ndarray:
        return np.empty((0, self.wrapped.dimension), np.float32)


def shared(encoder: TextEncoder, world: World) -> TextEncoder | SharedEncoder:
    """The encoder itself where there is one process."""
    if world.size == 1:
        return encoder
    return (SharedConversationEncoder if isinstance(encoder, ConversationEncoder) else SharedEncoder)(encoder, world)
