"""Rank candidates again with a cross-encoder, which reads query and passage together (monoBERT, arXiv 1901.04085)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from foretext.errors import UserError
from foretext.retrieval.classifier import TextClassifier
from foretext.retrieval.runs import Run, ranking


class CrossScorer(TextClassifier):
    """One score per pair of a query and a passage.

    Example:
        scores = CrossScorer.load("runs/reranker/export").score(["what is a nan", "what is a nan"], passages)
    """

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "CrossScorer":
        """Load a folder or hub id, or a run folder's export; see `TextClassifier.load`.

        Raises:
            UserError: not a sequence-classification folder, or one with several outputs.
        """
        scorer = super().load(source, device, dtype)
        if scorer.head.out.out_features != 1:
            raise UserError(f"{source}: has {len(scorer.labels)} outputs ({', '.join(scorer.labels[:4])}), and a reranker has one")
        scorer.cut = "second"
        return scorer

    def score(self, queries: Sequence[str], passages: Sequence[str], show_progress: bool = False) -> np.ndarray:
        """(n,) float32 logits of n pairs, higher is better; passages that are too long are cut, queries only where they alone are."""
        return self.logits(queries, passages, show_progress=show_progress)[:, 0]


def rerank(scorer: CrossScorer, run: Run, queries: Mapping[str, str], passages: Mapping[str, str], depth: int,
           show_progress: bool = False) -> Run:  # fmt: skip
    """The first `depth` documents of each query of a run, with the scorer's scores; those below are left out.

    Args:
        queries, passages: texts by id.
    Raises:
        UserError: an id of the run that has no text.
    """
    pairs = [(query, document) for query, ranked in run.items() for document in ranking(ranked)[:depth]]
    for query, document in pairs:
        if query not in queries or document not in passages:
            what = f"query {query!r}" if query not in queries else f"document {document!r}"
            raise UserError(f"the run names the {what}, which has no text in the collection; is it a run of another one?")
    scores = scorer.score([queries[query] for query, _ in pairs], [passages[document] for _, document in pairs], show_progress)
    again: Run = {query: {} for query in run}
    for (query, document), score in zip(pairs, scores.tolist()):
        again[query][document] = score
    return again
