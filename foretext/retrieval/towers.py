"""A dual encoder as something that embeds texts: each side by its own tower, and messages together with the turns before them.

    n texts   d features of a vector
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from foretext.files import read_json
from foretext.model.encoder import Encoder, Tokens
from foretext.model.precision import default_device, default_dtype
from foretext.model.towers import Towers, load_towers
from foretext.retrieval.embed import Kind, TextEncoder, inference
from foretext.text.tokenizer import Tokenizer

AT_ONCE = 256  # conversations of a batch


class TowerEncoder(TextEncoder):
    """`TextEncoder` of a folder in foretext's own format: queries (contexts) and documents (responses) by their sides of the network."""

    def __init__(self, towers: Towers, tokenizer: Tokenizer, prompts: dict[str, str] | None = None, max_len: int | None = None,
                 dtype: torch.dtype | None = None):  # fmt: skip
        normalize = towers.config.normalize
        super().__init__(towers.encoder, tokenizer, "mean", normalize, prompts, max_len, "cosine" if normalize else "dot", dtype)
        self.towers, self.pooling = towers, towers.config.reduction

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "TowerEncoder":
        """Load a local folder that `export` wrote."""
        folder = Path(source)
        settings = read_json(folder / "config_sentence_transformers.json")
        length = read_json(folder / "sentence_bert_config.json")["max_seq_length"]
        device = default_device(device)
        dtype = dtype or default_dtype(device)
        return cls.of(load_towers(folder).to(device).eval(), Tokenizer.load(folder), settings["prompts"], length, dtype)

    @staticmethod
    def of(towers: Towers, *args, **kwargs) -> "TowerEncoder":
        """Around live towers: with `encode_contexts` where they read the turns before a message."""
        return (ConversationEncoder if towers.config.joint else TowerEncoder)(towers, *args, **kwargs)

    @property
    def dimension(self) -> int:
        return self.towers.dimension

    @property
    def overlapping(self) -> bool:
        return self.towers.quantize is None  # else each forward pass puts other weights into the modules

    def network(self, kind: Kind) -> Encoder:
        return self.towers.encoder  # its precision is the other's too

    def encode_tokens(self, *args, **kwargs) -> np.ndarray:
        with self._evaluated():
            return super().encode_tokens(*args, **kwargs)

    def embed(self, tokens: Tokens, kind: Kind = "document") -> Tensor:
        return self.towers([(kind, tokens)])[0]

    @contextmanager
    def _evaluated(self):
        """Without dropout; afterwards as it was."""
        training = self.towers.training
        self.towers.eval()
        try:
            yield
        finally:
            self.towers.train(training)

    def _networks(self) -> list[nn.Module]:
        return [self.towers]

    def _weights(self) -> dict[str, Tensor]:
        return self.towers.state_dict()

    def fingerprint(self) -> str:
        shape = json.dumps(self.towers.config.model_dump(mode="json", exclude={"dropout"}), sort_keys=True)
        return hashlib.sha256((super().fingerprint() + shape).encode()).hexdigest()


class ConversationEncoder(TowerEncoder):
    """Also embeds messages together with the turns before them.

    Example:
        model = TextEncoder.load("runs/convert/export")
        scores = model.encode_contexts(["it says no such file"], ["which command was it?"]) @ model.encode(responses, "document").T
    """

    def encode_contexts(self, contexts: Sequence[str], earlier: Sequence[str]) -> np.ndarray:
        """Embed messages with what was said before: (n, d) float32, to be compared with responses as `encode(texts, "query")` is.

        Args:
            earlier: for each message the turns before it in one text, most recent first; an empty text: the message alone.
        """
        vectors = self.encode(contexts, "query")
        messages, turns = (self.tokenizer.encode(texts) for texts in ([self.prompt("query") + text for text in contexts], earlier))
        order = np.argsort([-len(ids) for ids in turns], kind="stable")
        rows = np.array([i for i in order if len(turns[i])], dtype=np.int64)
        with self._evaluated(), inference(self.towers.encoder, self.dtype):
            for first in range(0, len(rows), AT_ONCE):
                some = rows[first : first + AT_ONCE]
                vectors[some] = self._together([messages[i] for i in some], [turns[i] for i in some]).cpu().numpy()
        return vectors

    def _together(self, messages: list[np.ndarray], turns: list[np.ndarray]) -> Tensor:
        place = torch.arange(len(messages), device=self.device)
        made = self.towers([("query", self._framed(messages)), ("earlier", self._framed(turns))], (place, place))
        return made[2] if self.towers.config.joint == "both" else torch.stack(made).mean(0)

    def _framed(self, rows: list[np.ndarray]) -> Tokens:
        cut = [row[: self.max_len - 2] for row in rows]
        lengths = np.array([len(row) for row in cut], np.int64)
        return self._frame(np.concatenate(cut).astype(np.int64), np.cumsum(lengths) - lengths, lengths)
