"""Runs (ranked documents per query) on disk: TREC's six columns, and three or four columns."""

import math
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from urllib.parse import quote

import numpy as np

from foretext.errors import UserError
from foretext.files import refuse_existing, whole_file
from foretext.retrieval.records import SNIFFED, columns, stripped
from foretext.summary import DEFAULT_POLICY, Policy, ReadSummary, read_lines

Run = dict[str, dict[str, float]]  # query id -> document id -> score, higher is better


def ranking(scores: dict[str, float]) -> list[str]:
    """Document ids of one query, best first: by score descending, ties by id descending (trec_eval's rule)."""
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)


def as_run(query_ids: Iterable[str], document_ids: list[str], scores: np.ndarray, indices: np.ndarray) -> Run:
    """The run of search results `scores (Q, k)`, `indices (Q, k)`; an index of -1 is an empty place."""
    return {query: {document_ids[i]: s for s, i in zip(row_scores, row) if i >= 0}
            for query, row_scores, row in zip(query_ids, scores.tolist(), indices.tolist())}


def read_run(path: str | Path, policy: Policy = DEFAULT_POLICY, third_column: str | None = None,
             strip_ids: bool = False) -> tuple[Run, ReadSummary]:
    """Read a run: `qid Q0 docid rank score tag` (TREC), `qid docid rank score`, or `qid docid rank-or-score`.

    The order is that of the scores; a rank column is only checked (`rank_order`). Of three columns the third is a rank
    if for every query it is exactly 1..n in line order (the score is then minus the rank), else a score. If
    `<path>.idmap.tsv` lies beside the file, its ids are put back.

    Args:
        third_column: "rank" or "score" overrides the guess.

    Raises:
        UserError: a malformed line, a score that is not finite, or a document twice for one query.
    """
    if third_column not in (None, "rank", "score"):
        raise UserError(f"third_column: expected rank or score, found {third_column!r}")
    summary = ReadSummary(path, policy)
    lines = read_lines(summary)
    head = list(islice(lines, SNIFFED))
    if not head:
        summary.close()
    count, rows = columns(chain(head, lines), head, (3, 4, 6), summary, "a run")
    document_place, rank_place, score_place = {3: (1, 2, 2), 4: (1, 2, 3), 6: (2, 3, 4)}[count]
    original = _read_idmap(path)

    run: Run = {}
    ranks: dict[str, list[str]] = {}  # in line order, as written
    for number, fields in rows:
        query, document = fields[0], fields[document_place]
        if strip_ids:
            query, document = stripped(query, number, summary), stripped(document, number, summary)
        query, document = original.get(query, query), original.get(document, document)
        score = _score(fields[score_place], number, summary)
        if score is None:
            continue
        ranked = run.setdefault(query, {})
        if document in ranked:
            summary.error("duplicate_in_run", number, f"document {document!r} was already ranked for query {query!r}",
                          mend="keep one of the two lines")
            continue
        ranked[document] = score
        ranks.setdefault(query, []).append(fields[rank_place])
        summary.accepted += 1
    summary.close()

    if count == 3:
        is_rank = all(_counts_up(written) for written in ranks.values())
        if third_column == "rank" or (third_column is None and is_rank):
            run = {query: {document: -rank for document, rank in ranked.items()} for query, ranked in run.items()}
    else:
        _check_ranks(run, ranks, summary)
    return run, summary


def _score(text: str, number: int, summary: ReadSummary) -> float | None:
    """The score; None if the line was skipped. One pair of brackets, as rerankers write them, is removed."""
    if text.startswith("[") and text.endswith("]"):
        summary.note("score_value", number)
        text = text[1:-1]
    try:
        score = float(text)
        if math.isfinite(score):
            return score
    except ValueError:
        pass
    summary.error("score_value", number, "expected a finite number as the score", text, "mend or delete the line")
    return None


def _counts_up(ranks: list[str]) -> bool:
    """Whether `ranks` is exactly 1, 2, ..., n."""
    return all(rank.strip() == str(i) for i, rank in enumerate(ranks, start=1))


def _check_ranks(run: Run, ranks: dict[str, list[str]], summary: ReadSummary) -> None:
    """Count the places where the rank column (from 0 or from 1) is not the order of the scores."""
    for query, ranked in run.items():
        written = dict(zip(ranked, ranks[query]))
        start = 0 if "0" in ranks[query] else 1
        wrong = sum(written[document] != str(rank) for rank, document in enumerate(ranking(ranked), start))
        if wrong:
            summary.note("rank_order", detail=f"query {query!r}", count=wrong)


def write_run(path: str | Path, run: Run, tag: str = "foretext", escape_ids: bool = False,
              overwrite: bool = False) -> None:
    """Write TREC's six columns: scores with 9 significant digits, never rising, ranks from 1.

    Args:
        tag: the last column, one word.
        escape_ids: percent-encode white space and `%` in ids, and write `<path>.idmap.tsv` (`escaped  original`).

    Raises:
        UserError: the file exists, or an id holds white space and `escape_ids` is false.
    """
    if not tag or any(c.isspace() for c in tag):
        raise UserError(f"the tag of a run is one word, found {tag!r}")
    idmap = _idmap_path(path)
    escaped: dict[str, str] = {}

    def written(identifier: str) -> str:
        if not any(c.isspace() or (escape_ids and c == "%") for c in identifier):
            return identifier
        if not escape_ids:
            raise UserError(f"{path}: the id {identifier!r} holds white space, which the TREC format cannot hold;"
                            " set escape_ids, or write three columns")
        if "\n" in identifier:
            raise UserError(f"{idmap}: the id {identifier!r} holds a line end, which no tab file can hold")
        escaped[identifier] = "".join(quote(c) if c.isspace() or c == "%" else c for c in identifier)
        return escaped[identifier]

    refuse_existing(path, overwrite)
    with whole_file(path, "w") as file:
        for query, ranked in run.items():
            for rank, document in enumerate(ranking(ranked), start=1):
                file.write(f"{written(query)} Q0 {written(document)} {rank} {ranked[document]:.9g} {tag}\n")
    if escaped:
        with whole_file(idmap, "w") as file:
            file.writelines(f"{short}\t{original}\n" for original, short in escaped.items())
    else:
        idmap.unlink(missing_ok=True)  # of the run that was just replaced


def write_columns(path: str | Path, run: Run, rank: bool = False, overwrite: bool = False) -> None:
    """Write `qid  docid  score` (with `rank`: `qid  docid  rank  score`) with tabs, best first.

    Raises:
        UserError: the file exists, or an id holds a tab or a line end.
    """
    refuse_existing(path, overwrite)
    with whole_file(path, "w") as file:
        for query, ranked in run.items():
            for place, document in enumerate(ranking(ranked), start=1):
                for identifier in (query, document):
                    if "\t" in identifier or "\n" in identifier:
                        raise UserError(f"{path}: the id {identifier!r} holds a tab or a line end; use another id")
                middle = f"{place}\t" if rank else ""
                file.write(f"{query}\t{document}\t{middle}{ranked[document]:.9g}\n")


def _idmap_path(path: str | Path) -> Path:
    return Path(f"{path}.idmap.tsv")


def _read_idmap(path: str | Path) -> dict[str, str]:
    """Escaped id -> id, from the file that `write_run` left beside the run; empty if there is none."""
    idmap = _idmap_path(path)
    if not idmap.exists():
        return {}
    pairs = (line.split("\t", 1) for line in idmap.read_bytes().decode("utf-8").split("\n") if line)
    return dict(pair for pair in pairs if len(pair) == 2)
