"""Several rankings of the same documents made one."""

from collections.abc import Sequence

from foretext.retrieval.runs import Run, ranking


def fuse(runs: Sequence[Run], k: int = 60, depth: int | None = None) -> Run:
    """Reciprocal rank fusion: a document's score is the sum over the runs of 1 / (k + rank), ranks from 1.

    Reference: Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet ..." (k = 60).

    Args:
        depth: how many documents per query are kept; default all.
    """
    fused: Run = {}
    for run in runs:
        for query, ranked in run.items():
            sums = fused.setdefault(query, {})
            for rank, document in enumerate(ranking(ranked), start=1):
                sums[document] = sums.get(document, 0.0) + 1 / (k + rank)
    # Nine digits, as run files hold, so that a fused run means the same after a round trip through a file.
    return {query: {document: float(f"{sums[document]:.9g}") for document in ranking(sums)[:depth]}
            for query, sums in fused.items()}
