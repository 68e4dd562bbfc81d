"""Teachers that score passages while a retriever trains: a cross-encoder, or another retriever. Each pair is scored once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from foretext.files import read_json
from foretext.model.folder import locate
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.rerank import CrossScorer


class CrossTeacher:
    """A cross-encoder over numbered queries and passages, in eval mode and without gradients.

    Args:
        queries, passages: texts by number.
    """

    def __init__(self, scorer: CrossScorer, queries: Sequence[str], passages: Sequence[str]):
        self.scorer, self.queries, self.passages = scorer, queries, passages
        self.known: dict[tuple[int, int], float] = {}

    def __call__(self, query: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """Scores (B, G) of passages (B, G) for queries (B,)."""
        pairs = list(zip(np.repeat(query, passages.shape[1]).tolist(), passages.flatten().tolist()))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.known]
        if new:
            scores = self.scorer.score([self.queries[q] for q, _ in new], [self.passages[p] for _, p in new])
            self.known.update(zip(new, scores.tolist()))
        return np.array([self.known[pair] for pair in pairs], np.float32).reshape(passages.shape)


class EmbeddingTeacher:
    """Another retriever: all its vectors are made at the start.

    Attributes:
        vectors: of queries (Q, E) and passages (N, E), to be compared by dot product.
    """

    def __init__(self, model: TextEncoder, queries: Sequence[str], passages: Sequence[str]):
        vectors = [model.encode(queries, "query", show_progress=True), model.encode(passages, "document", show_progress=True)]
        if model.similarity == "cosine":
            vectors = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in vectors]
        self.vectors = (vectors[0], vectors[1])

    def __call__(self, query: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """Scores (B, G) of passages (B, G) for queries (B,)."""
        return np.einsum("be,bge->bg", self.vectors[0][query], self.vectors[1][passages])


def load_teacher(source: str | Path, queries: Sequence[str], passages: Sequence[str],
                 dtype: torch.dtype | None = None) -> CrossTeacher | EmbeddingTeacher:
    """The teacher in a folder or hub id: a cross-encoder where it is a sequence-classification folder, else a retriever."""
    folder = locate(source)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or []):
        return CrossTeacher(CrossScorer.load(folder, dtype=dtype), queries, passages)
    return EmbeddingTeacher(TextEncoder.load(folder, dtype=dtype).freeze(), queries, passages)
