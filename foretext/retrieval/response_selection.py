"""Response selection: does a model find the true response to a message among other responses?

1-of-100 accuracy is the field's measure (Yang et al. 2018, arXiv 1804.07754; ConveRT, arXiv 1911.03688, section 4): examples are shuffled
with a seed and cut into batches of 100; within a batch each message ranks the 100 responses. Recall over the full set ranks all
different responses of the file instead, as a responder would.

Rules, where the protocol leaves them open. A copy of the true response is no rival (a person would not care which copy is chosen), nor is
the message itself, which is a response elsewhere in its thread (a responder does not echo; `foretext respond` does not either). Measures
are means over random orders of equal scores, so a model that scores everything alike gets 1 in 100. A last batch of fewer than 100 is left
out of 1-of-100, and counted.

E examples   C candidates of a batch   R different responses   D dimensions
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from foretext.errors import UserError
from foretext.files import whole_file, whole_folder, write_json
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.metrics import SAMPLES, Scores, interval, paired_difference
from foretext.text.dialogues import Example
from foretext.text.randomness import permutation
from foretext.text.tokenizer import Tokenizer

CANDIDATES = 100
AMONG = ("Recall@1", "Recall@5", "MRR")  # of the candidates; Recall@1 is 1-of-100 accuracy
FULL = ("Recall@1", "Recall@10", "Recall@100")  # of all responses

Scorer = Callable[[np.ndarray], np.ndarray]  # numbers of examples (n,) -> scores of all responses (n, R)


class Responder(Protocol):
    """A model that scores responses. One that reads earlier turns also has `encode_contexts(contexts, earlier)`.

    There `earlier` holds for each context the turns before it in one text, most recent first, or "". An attribute `similarity` may say
    "dot"; else vectors are compared by their cosine.
    """

    def encode(self, texts: Sequence[str], kind: str) -> np.ndarray:
        """float32 (n, D); `kind` is "query" for contexts and "document" for responses."""


@dataclass(frozen=True)
class Selection:
    """How one model did; scores are per example, in the file's order.

    Attributes:
        among: the measures of `AMONG` for the examples of whole batches.
        full: the measures of `FULL` for all examples.
        left_out: examples of the last, short batch.
    """

    name: str
    among: Scores
    full: Scores
    candidates: int
    responses: int
    left_out: int

    def means(self) -> dict[str, float]:
        """Every measure; those of the full set end in "of all"."""
        return self.among.means() | {f"{name} of all": value for name, value in self.full.means().items()}


def select(name: str, scorer: Scorer, examples: Sequence[Example], candidates: int = CANDIDATES, seed: int = 0) -> Selection:
    """Rank the responses for every example.

    Args:
        scorer: made by `vector_scorer` or `bm25_scorer` from the same examples.
        candidates: of a batch.
        seed: of the shuffle.

    Raises:
        UserError: fewer examples than one batch holds.
    """
    whole = len(examples) // candidates * candidates
    if not whole:
        raise UserError(f"{len(examples):,} examples do not fill a batch of {candidates}; take a larger file")
    numbers = {text: i for i, text in enumerate(different_responses(examples))}
    own = np.array([numbers[example.response] for example in examples], np.int64)
    echo = np.array([numbers.get(example.context, -1) for example in examples], np.int64)
    order = permutation(len(examples), seed, 0)
    among, full = np.zeros((len(examples), len(AMONG))), np.zeros((len(examples), len(FULL)))
    for first in range(0, len(order), candidates):
        rows = order[first:first + candidates]
        scores = scorer(rows)
        full[rows] = _measured(scores, own[rows], echo[rows], np.arange(len(numbers)), FULL)
        if len(rows) == candidates:
            among[rows] = _measured(scores[:, own[rows]], own[rows], echo[rows], own[rows], AMONG)
    ids = [str(row) for row in range(len(examples))]
    kept = np.sort(order[:whole])
    return Selection(name, Scores([ids[row] for row in kept], dict(zip(AMONG, among[kept].T))), Scores(ids, dict(zip(FULL, full.T))),
                     candidates, len(numbers), len(examples) - whole)


def different_responses(examples: Sequence[Example]) -> list[str]:
    """The responses, each text once, in the order of their first appearance."""
    return list(dict.fromkeys(example.response for example in examples))


def _measured(scores: np.ndarray, own: np.ndarray, echo: np.ndarray, candidates: np.ndarray, measures: Sequence[str]) -> np.ndarray:
    """Measures (n, len(measures)) of the true response `own` (n,) among `candidates` (c,), by `scores` (n, c).

    Args:
        echo: (n,) the number of the response that is the message itself, or -1.
    """
    same = own[:, None] == candidates
    rivals = ~same & (echo[:, None] != candidates)
    true = scores[np.arange(len(scores)), same.argmax(1)][:, None]
    better = ((scores > true) & rivals).sum(1)
    equal = ((scores == true) & rivals).sum(1)
    return np.stack([_reciprocal(better, equal) if measure == "MRR" else
                     np.clip((int(measure.partition("@")[2]) - better) / (equal + 1), 0, 1) for measure in measures], axis=1)


def _reciprocal(better: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """Mean of 1 / rank over the ranks better + 1 ... better + 1 + equal."""
    sums = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, int((better + equal).max()) + 2))))
    return (sums[better + equal + 1] - sums[better]) / (equal + 1)


# ------------------------------------------------------------------------------------------------------------------ scorers


def reads_earlier_turns(model: Any) -> bool:
    """Whether a model has an encoding of contexts with the turns before them."""
    return hasattr(model, "encode_contexts")


def context_vectors(model: Responder, contexts: Sequence[str], earlier: Sequence[Sequence[str]] | None) -> np.ndarray:
    """(n, D) of contexts; with `earlier` (n lists of turns, most recent first) by a model that reads them.

    Raises:
        UserError: the model does not.
    """
    if earlier is None:
        return model.encode(list(contexts), "query")
    if not reads_earlier_turns(model):
        raise UserError("this model reads the newest message only; leave out the earlier turns, or train one that reads them (convert)")
    return model.encode_contexts(list(contexts), [" ".join(turns) for turns in earlier])


def comparable(vectors: np.ndarray, similarity: str) -> np.ndarray:
    """Vectors whose dot products are the similarity: of length 1 for "cosine"."""
    if similarity == "dot":
        return vectors
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def vector_scorer(model: Responder, examples: Sequence[Example], earlier: bool = False) -> Scorer:
    """Scores by the similarity of vectors; with `earlier` the turns before the message are read too."""
    similarity = getattr(model, "similarity", "cosine")
    responses = comparable(model.encode(different_responses(examples), "document"), similarity)
    turns = [example.earlier for example in examples] if earlier else None
    contexts = comparable(context_vectors(model, [example.context for example in examples], turns), similarity)
    return lambda rows: contexts[rows] @ responses.T


def bm25_scorer(examples: Sequence[Example], earlier: bool = False) -> Scorer:
    """Scores by BM25 over all responses of the file; with `earlier` the turns before the message belong to the query."""
    responses = different_responses(examples)
    index = BM25(responses)

    def score(rows: np.ndarray) -> np.ndarray:
        queries = [" ".join([examples[row].context, *(examples[row].earlier if earlier else ())]) for row in rows]
        values, found = index.search(queries, len(responses))
        scores = np.zeros((len(rows), len(responses)), np.float32)
        query, place = np.nonzero(found >= 0)
        scores[query, found[query, place]] = values[query, place]
        return scores

    return score


class MeanEmbeddings:
    """The mean of a text's word vectors, compared by cosine: what a model knows before its network is asked.

    Args:
        table: (V, D) word vectors.
        tokenizer: of the texts.
        lowercase: texts are lower-cased before the tokenizer sees them.
    """

    similarity = "cosine"

    def __init__(self, table: np.ndarray, tokenizer: Tokenizer, lowercase: bool = False):
        self.table, self.tokenizer, self.lowercase = np.asarray(table, np.float32), tokenizer, lowercase

    def encode(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        """(n, D); a text without a token is a zero vector."""
        ids, lengths = self.tokenizer.encode_flat([text.lower() for text in texts] if self.lowercase else texts)
        vectors = np.zeros((len(texts), self.table.shape[1]), np.float32)
        some = lengths > 0
        if some.any():
            starts = (np.cumsum(lengths) - lengths)[some]
            vectors[some] = np.add.reduceat(self.table[ids], starts) / lengths[some, None]
        return vectors


# ------------------------------------------------------------------------------------------------------------------ reports


def table(selections: Sequence[Selection]) -> list[str]:
    """Lines for a person: every measure with its 95 % interval, and the difference of the first model from each other one."""
    first = selections[0]
    width = max(len(selection.name) for selection in selections)
    lines = [f"{len(first.among.query_ids):,} examples in batches of {first.candidates}"
             f"{f' ({first.left_out} of a last, short batch left out)' if first.left_out else ''}; {len(first.full.query_ids):,} examples "
             f"over all {first.responses:,} responses; 95 % intervals by bootstrap over examples", ""]
    for title, scores in ((f"among {first.candidates}", "among"), (f"of all {first.responses:,}", "full")):
        lines.append(f"{title:<{width}}  " + "  ".join(f"{name:^24}" for name in getattr(first, scores).values))
        for selection in selections:
            cells = [f"{s.mean:.4f} [{s.low:.4f}, {s.high:.4f}]" for s in map(interval, getattr(selection, scores).values.values())]
            lines.append(f"{selection.name:<{width}}  " + "  ".join(f"{cell:>24}" for cell in cells))
        lines.append("")
    lines += [difference(first, other) for other in selections[1:]]
    return lines + (["* the interval (paired bootstrap over examples) excludes 0"] if selections[1:] else [])


def difference(ours: Selection, theirs: Selection) -> str:
    """One line: how much more often the first model finds the response among the candidates."""
    d = paired_difference(ours.among, theirs.among, "Recall@1")
    return (f"Recall@1 among {ours.candidates}, {ours.name} - {theirs.name}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
            f"{' *' if d.excludes_zero() else ''}")


def write(folder: str | Path, selections: Sequence[Selection], options: dict[str, Any], overwrite: bool = False) -> None:
    """Write `scores.json` and, per model, `per-example-<number>.tsv` into a new folder."""
    with whole_folder(folder, overwrite) as temporary:
        found = []
        for number, selection in enumerate(selections, start=1):
            spreads = {key: {name: interval(values) for name, values in scores.values.items()}
                       for key, scores in (("among", selection.among), ("all", selection.full))}
            found.append({"name": selection.name, "candidates": selection.candidates, "responses": selection.responses,
                          "left_out": selection.left_out, "examples": len(selection.full.query_ids),
                          **{key: {name: {"mean": s.mean, "low": s.low, "high": s.high} for name, s in those.items()}
                             for key, those in spreads.items()}})
            place = {row: i for i, row in enumerate(selection.among.query_ids)}
            with whole_file(temporary / f"per-example-{number}.tsv", "w") as file:
                file.write("\t".join(["example", *AMONG, *(f"{name} of all" for name in FULL)]) + "\n")
                for i, row in enumerate(selection.full.query_ids):
                    among = [f"{selection.among.values[name][place[row]]:.6f}" if row in place else "" for name in AMONG]
                    file.write("\t".join([row, *among, *(f"{selection.full.values[name][i]:.6f}" for name in FULL)]) + "\n")
        write_json(temporary / "scores.json", {"options": options, "models": found,
                                               "interval": {"level": 0.95, "kind": "percentile bootstrap over examples",
                                                            "samples": SAMPLES}})
