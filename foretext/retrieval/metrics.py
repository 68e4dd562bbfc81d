"""Scores of a run: nDCG, MRR, recall, MAP through trec_eval's own code, per query, and bootstrap intervals."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foretext.errors import UserError
from foretext.retrieval.qrels import Judgements
from foretext.retrieval.runs import Run, ranking

MEASURES = ("nDCG@10", "MRR@10", "Recall@100", "MAP")
SAMPLES = 10_000  # bootstrap samples; the ends of a 95 % interval then move by about 2 % of its width between seeds

_FAMILIES = {"ndcg": "nDCG", "mrr": "MRR", "rr": "MRR", "recall": "Recall", "r": "Recall", "map": "MAP", "ap": "MAP"}


@dataclass(frozen=True)
class Scores:
    """Per-query scores: `values[measure]` is float64 (Q,), in the order of `query_ids`."""

    query_ids: list[str]
    values: dict[str, np.ndarray]

    def means(self) -> dict[str, float]:
        """Mean over all queries, those that score 0 included."""
        return {measure: float(values.mean()) for measure, values in self.values.items()}


def measure_name(text: str) -> str:
    """The one spelling of a measure: nDCG@k, MRR@k, Recall@k, MAP, MAP@k (`RR@10`, `R@100`, `ndcg@10` are understood).

    Raises:
        UserError: no such measure.
    """
    match = re.fullmatch(r"([A-Za-z]+)(?:@([1-9][0-9]*))?", text.strip())
    family = _FAMILIES.get(match[1].lower()) if match else None
    if family is None or (match[2] is None and family == "Recall"):
        raise UserError(f"no measure {text!r}; there are nDCG@k, MRR@k, Recall@k, MAP and MAP@k, for example"
                        f" {', '.join(MEASURES)}")
    return f"{family}@{match[2]}" if match[2] else family


def score(judgements: Judgements, run: Run, measures: Sequence[str] = MEASURES,
          query_ids: Sequence[str] | None = None) -> Scores:
    """Score a run. Gains are linear in the grade, grades <= 0 gain nothing, a grade >= 1 is relevant.

    Every judged query counts: one that the run lacks, or that has no relevant document, scores 0. (trec_eval leaves the
    first kind out of its mean, which raises it.)

    Args:
        query_ids: the order of the result, and which judged queries count; default all of `judgements`.
    """
    import pytrec_eval

    measures = list(dict.fromkeys(measure_name(measure) for measure in measures))
    query_ids = list(judgements if query_ids is None else query_ids)
    asked = {query: {document: max(grade, 0) for document, grade in judgements[query].items()} for query in query_ids}
    # The places themselves are the scores handed over, so that what is scored is `ranking`'s order exactly: trec_eval
    # holds scores in single precision and would see ties where there are none.
    places = {}
    for query in query_ids:
        if ranked := ranking(run.get(query, {})):
            places[query] = {document: float(len(ranked) - i) for i, document in enumerate(ranked)}
    evaluator = pytrec_eval.RelevanceEvaluator(asked, {_trec(measure) for measure in measures})
    results = evaluator.evaluate(places) if places else {}
    values = {}
    for measure in measures:
        family, _, cut = measure.partition("@")
        key = _trec(measure).replace(".", "_")
        column = np.array([results.get(query, {}).get(key, 0.0) for query in query_ids])
        if family == "MRR" and cut:
            column[column < 1 / (int(cut) + 0.5)] = 0.0  # found below the cut-off: between 1/cut and 1/(cut + 1)
        values[measure] = column
    return Scores(query_ids, values)


def _trec(measure: str) -> str:
    family, _, cut = measure.partition("@")
    names = {"nDCG": ("ndcg", f"ndcg_cut.{cut}"), "MRR": ("recip_rank", "recip_rank"), "Recall": ("", f"recall.{cut}"),
             "MAP": ("map", f"map_cut.{cut}")}
    return names[family][bool(cut)]


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float
    level: float
    samples: int

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(values: np.ndarray, level: float = 0.95, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of `values (Q,)`, queries drawn with replacement.

    The same seed and number of queries draw the same queries, whatever the values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected one value per query, found an array of shape {values.shape}")
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, 4_000_000 // len(values))  # bounds the memory of the draws to some 64 MB
    for start in range(0, samples, step):
        drawn = rng.integers(len(values), size=(min(step, samples - start), len(values)))
        means[start:start + step] = values[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level, samples)


def paired_difference(ours: Scores, theirs: Scores, measure: str, level: float = 0.95, samples: int = SAMPLES,
                      seed: int = 0) -> Interval:
    """Bootstrap interval of the mean difference ours - theirs, query by query.

    Paired, because queries differ far more in difficulty than systems do: the interval is that of the differences.

    Raises:
        UserError: the two were not scored on the same queries.
    """
    measure = measure_name(measure)
    place = {query: i for i, query in enumerate(theirs.query_ids)}
    if place.keys() != set(ours.query_ids):
        raise UserError(f"the two runs were scored on different queries ({len(ours.query_ids)} and"
                        f" {len(theirs.query_ids)}); evaluate both on the same split with the same options")
    order = [place[query] for query in ours.query_ids]
    return interval(_values(ours, measure) - _values(theirs, measure)[order], level, samples, seed)


def _values(scores: Scores, measure: str) -> np.ndarray:
    if measure not in scores.values:
        raise UserError(f"{measure} was not scored; there are {', '.join(scores.values)}")
    return scores.values[measure]
