"""Semantic textual similarity: do the cosines of sentence pairs rise with the scores that people gave them?

Reference: Cer et al. 2017, "SemEval-2017 Task 1"; Reimers, Beyer and Gurevych 2016 (why Spearman's correlation, not Pearson's).
"""

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foretext.errors import UserError
from foretext.files import whole_file, whole_folder, write_json
from foretext.retrieval.records import json_records
from foretext.retrieval.vectors import unit
from foretext.summary import DEFAULT_POLICY, Policy, ReadSummary, open_bytes, read_lines

COLUMNS = ("sentence1", "sentence2", "score")
SAMPLES = 1000  # bootstrap samples; ranks have to be taken anew for each


@dataclass(frozen=True)
class ScoredPairs:
    """Sentence pairs and the similarity that people gave them."""

    first: list[str]
    second: list[str]
    scores: np.ndarray  # float64 (n,)
    summary: ReadSummary


@dataclass(frozen=True)
class Correlations:
    """Of a model's similarities with people's scores; `low` and `high` bound Spearman's at 95 %."""

    spearman: float
    pearson: float
    low: float
    high: float
    similarities: np.ndarray  # float64 (n,)


def read_scored_pairs(path: str | Path, policy: Policy = DEFAULT_POLICY) -> ScoredPairs:
    """Read a .csv (quoted as spreadsheets do), .tsv (tabs, no quotes) or .jsonl file of two sentences and a score.

    A first line whose third column is no number is a header; the columns are then taken by the names sentence1, sentence2 and score,
    which JSON lines also use. Without a header they are the first three.

    Raises:
        UserError: a missing column, or a score that is not a finite number.
    """
    summary = ReadSummary(path, policy, unit="lines")
    name = Path(path).name.lower()
    if ".jsonl" in name:
        rows = ((number, _by_name(record, number, summary)) for number, record in json_records(read_lines(summary), summary))
    elif ".csv" in name:
        rows = _table(_csv_rows(summary), summary)
    else:
        rows = _table(((number, text.split("\t")) for number, text in read_lines(summary)), summary)
    pairs = [(row[0], row[1], score) for number, row in rows if row and (score := _number(row[2], number, summary)) is not None]
    summary.accepted = len(pairs)
    summary.close()
    return ScoredPairs([p[0] for p in pairs], [p[1] for p in pairs], np.array([p[2] for p in pairs]), summary)


def _csv_rows(summary: ReadSummary):
    """Rows of a CSV file, whose fields may hold line ends, which is why its lines are not read one by one."""
    with open_bytes(summary.source) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise summary.stop("non_utf8", None, f"expected UTF-8, found byte 0x{error.object[error.start]:02x} at byte {error.start}",
                               mend="convert the file to UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    for row in reader:
        summary.lines = reader.line_num
        if row:
            yield reader.line_num, row


def _table(rows, summary: ReadSummary):
    places = None
    for number, row in rows:
        if places is None:
            places = _header(row, number, summary)
            if places != (0, 1, 2) or not _is_number(row[2]):
                continue
        if len(row) <= max(places):
            summary.error("column_count", number, f"expected at least {max(places) + 1} columns: {', '.join(COLUMNS)}",
                          "\t".join(row), "mend or delete the line")
            continue
        yield number, [row[place] for place in places]


def _header(row: list[str], number: int, summary: ReadSummary) -> tuple[int, ...]:
    names = [cell.strip().lower() for cell in row]
    if all(name in names for name in COLUMNS):
        return tuple(names.index(name) for name in COLUMNS)
    if len(row) >= 3 and _is_number(row[2]):
        return 0, 1, 2
    raise summary.stop("header_names", number, f"expected the columns {', '.join(COLUMNS)} by name, or a number in the third column",
                       ", ".join(row), "name the columns so")


def _by_name(record: dict, number: int, summary: ReadSummary) -> list[str] | None:
    if missing := [name for name in COLUMNS if name not in record]:
        summary.error("missing_key", number, f"expected the key {missing[0]!r}, found the keys {', '.join(map(repr, record))}",
                      mend=f"name the values {', '.join(COLUMNS)}")
        return None
    for name in COLUMNS[:2]:
        if not isinstance(record[name], str):
            summary.error("text_type", number, f"expected a string under {name!r}", json.dumps(record[name]), "write it in quotes")
            return None
    return [record[name] for name in COLUMNS]


def _is_number(text) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def _number(text, number: int, summary: ReadSummary) -> float | None:
    if _is_number(text):
        return float(text)
    summary.error("score_value", number, "expected a finite number as the score", str(text), "mend or delete the line")
    return None


def correlate(encoder, pairs: ScoredPairs, dimensions: int | None = None, seed: int = 0) -> Correlations:
    """Compare an encoder's similarities (its own kind, cosine by default) with people's scores.

    Args:
        encoder: anything with `encode(texts, kind)`; both sentences are encoded as documents, for neither asks the other.
        dimensions: only the first so many of each vector are used.
    """
    if len(pairs.scores) < 2 or np.ptp(pairs.scores) == 0:
        raise UserError(f"{pairs.summary.source}: all scores are equal, and nothing correlates with that; give at least two different ones")
    texts = list(dict.fromkeys(pairs.first + pairs.second))
    place = {text: i for i, text in enumerate(texts)}
    vectors = encoder.encode(texts, "document")
    if dimensions:
        if not 1 <= dimensions <= vectors.shape[1]:
            raise UserError(f"dimensions {dimensions}: the vectors have {vectors.shape[1]}; choose 1 to {vectors.shape[1]}")
        vectors = vectors[:, :dimensions]
    vectors = (unit(vectors) if getattr(encoder, "similarity", "cosine") == "cosine" else vectors).astype(np.float64)
    similarities = (vectors[[place[text] for text in pairs.first]] * vectors[[place[text] for text in pairs.second]]).sum(axis=1)
    draw = np.random.default_rng(seed)
    drawn = (draw.integers(len(similarities), size=len(similarities)) for _ in range(SAMPLES))
    samples = [spearman(similarities[rows], pairs.scores[rows]) for rows in drawn]
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Correlations(spearman(similarities, pairs.scores), pearson(similarities, pairs.scores), float(low), float(high), similarities)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two rows of numbers; nan if one is constant."""
    a, b = a - a.mean(), b - b.mean()
    lengths = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / lengths if lengths else math.nan


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs."""
    return pearson(_ranks(a), _ranks(b))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def write_correlations(folder: str | Path, name: str, pairs: ScoredPairs, found: Correlations, overwrite: bool = False) -> None:
    """Write `scores.json` and `per-pair.tsv` (row, score, similarity) into a new folder."""
    with whole_folder(folder, overwrite) as temporary:
        write_json(temporary / "scores.json", {
            "name": name, "data": str(pairs.summary.source), "pairs": len(pairs.scores), "spearman": found.spearman,
            "pearson": found.pearson, "spearman_interval": {"low": found.low, "high": found.high, "level": 0.95, "samples": SAMPLES}})
        with whole_file(temporary / "per-pair.tsv", "w") as file:
            file.write("row\tscore\tsimilarity\n")
            file.writelines(f"{i}\t{score:g}\t{similarity:.6f}\n" for i, (score, similarity)
                            in enumerate(zip(pairs.scores, found.similarities)))
