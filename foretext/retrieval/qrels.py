"""Relevance judgements (qrels) in every shape in use: BEIR tab files, TREC files, JSON lines."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from foretext.errors import UserError
from foretext.files import refuse_existing, whole_file
from foretext.retrieval.records import SNIFFED, columns, json_id, json_records, stripped
from foretext.summary import DEFAULT_POLICY, Policy, ReadSummary, read_lines

QUERY_NAMES = ("query-id", "query_id", "qid", "query")
DOCUMENT_NAMES = ("corpus-id", "corpus_id", "docid", "doc_id", "doc-id", "pid")
GRADE_NAMES = ("score", "relevance", "rel", "label")
IGNORED_NAMES = ("iter", "iteration", "q0")
SHORT_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")

Judgements = dict[str, dict[str, int]]  # query id -> document id -> grade; > 0 is relevant


@dataclass
class Qrels:
    """One file of judgements. `lines` remembers where each pair was read, for messages."""

    grades: Judgements
    summary: ReadSummary
    lines: dict[tuple[str, str], int] = field(default_factory=dict)


def read_qrels(path: str | Path, policy: Policy = DEFAULT_POLICY, strip_ids: bool = False) -> Qrels:
    """Read judgements, telling the shape from the first 100 lines.

    Shapes: `query-id  corpus-id  score` with tabs (BEIR; any order and several names if there is a header), `qid iter
    docid grade` with tabs or blanks (TREC, MS MARCO), JSON lines. Grades are whole numbers; negative ones are kept. A
    pair without a grade has grade 1.

    Raises:
        UserError: a line that is none of these, a grade that is no whole number, or two grades for one pair.
    """
    summary = ReadSummary(path, policy)
    lines = read_lines(summary)
    head = list(islice(lines, SNIFFED))
    lines = chain(head, lines)
    if not head:
        summary.close()
    if head[0][1].lstrip().startswith("{"):
        summary.note("json_qrels", head[0][0])
        rows = _json_rows(lines, summary, strip_ids)
    else:
        rows = _column_rows(lines, head, summary, strip_ids)

    qrels = Qrels({}, summary)
    for number, query, document, score in rows:
        grade = _grade(score, number, summary)
        if grade is None:
            continue
        judged = qrels.grades.setdefault(query, {})
        if document in judged:
            _again(query, document, judged[document], grade, number, qrels)
            continue
        if grade < 0:
            summary.note("negative_grade", number)
        judged[document] = grade
        qrels.lines[query, document] = number
        summary.accepted += 1
    qrels.grades = {query: judged for query, judged in qrels.grades.items() if judged}
    summary.close()
    return qrels


def _again(query: str, document: str, old: int, new: int, number: int, qrels: Qrels) -> None:
    if old == new:
        qrels.summary.note("duplicate_judgement", number)
        return
    qrels.summary.error("duplicate_judgement", number, f"query {query!r}, document {document!r} has grade {new} here,"
                        f" but {old} on line {qrels.lines[query, document]}", mend="keep one of them")


Row = tuple[int, str, str, str | None]  # line number, query id, document id, grade as written


def _json_rows(lines: Iterable[tuple[int, str]], summary: ReadSummary, strip: bool) -> Iterator[Row]:
    for number, record in json_records(lines, summary):
        query = json_id(record, QUERY_NAMES, number, summary, strip)
        document = None if query is None else json_id(record, DOCUMENT_NAMES, number, summary, strip)
        if document is None:
            continue
        key = next((key for key in GRADE_NAMES if key in record), None)
        if key is None:
            summary.note("score_missing", number)
        value = None if key is None else record[key]
        yield number, query, document, value if isinstance(value, str) or key is None else json.dumps(value)


def _column_rows(lines: Iterable[tuple[int, str]], head: list[tuple[int, str]], summary: ReadSummary,
                 strip: bool) -> Iterator[Row]:
    # Two columns are judgements only where a header says so: all pairs have grade 1.
    pairs = [name.lower() in (*QUERY_NAMES, *DOCUMENT_NAMES) for name in head[0][1].split()] == [True, True]
    count, rows = columns(lines, head, (2,) if pairs else (3, 4), summary, "judgements")
    usual = _usual_count(Path(summary.source))
    first = next(rows, None)
    if first is None:
        return
    number, fields = first
    if count > 2 and _is_number(fields[-1]):
        places = (0, 1, 2) if count == 3 else (0, 2, 3)
        if usual == count == 3:
            summary.note("no_header", number)
        rows = chain([first], rows)
    else:
        places = _header(fields, number, summary)
    if count != usual:
        summary.note("column_count", number, f"{count} columns instead of {usual}")
    query_place, document_place, grade_place = places
    for number, fields in rows:
        query, document = fields[query_place], fields[document_place]
        if not query.strip() or not document.strip():
            summary.error("missing_key", number, "expected a query id and a document id", "\t".join(fields),
                          "mend or delete the line")
            continue
        if strip:
            query, document = stripped(query, number, summary), stripped(document, number, summary)
        yield number, query, document, None if grade_place is None else fields[grade_place]


def _header(fields: list[str], number: int, summary: ReadSummary) -> tuple[int, int, int | None]:
    """The columns of query, document and grade (None if there is no such column) by their names."""
    names = [name.strip().lower() for name in fields]
    known = (*QUERY_NAMES, *DOCUMENT_NAMES, *GRADE_NAMES, *IGNORED_NAMES)
    places = [next((i for i, name in enumerate(names) if name in group), None)
              for group in (QUERY_NAMES, DOCUMENT_NAMES, GRADE_NAMES)]
    unknown = [field for field, name in zip(fields, names) if name not in known]
    if unknown or places[0] is None or places[1] is None or (places[2] is None and len(fields) > 2):
        others = ", ".join((*QUERY_NAMES[2:3], *DOCUMENT_NAMES[2:], *GRADE_NAMES[1:]))
        raise summary.stop("header_names", number, "expected a whole number as the grade, or a header with the names"
                           f" query-id, corpus-id and score (or {others}), found"
                           f" {', '.join(map(repr, unknown or fields))}", mend="rename the columns or mend the line")
    if names != ["query-id", "corpus-id", "score"]:
        summary.note("header_names", number, ", ".join(fields))
    return tuple(places)


def _usual_count(path: Path) -> int:
    """3 for BEIR's tab files, 4 for TREC's and MS MARCO's (`qrels.dev.tsv`)."""
    name = path.with_suffix("").name if path.suffix in SHORT_SUFFIXES else path.name
    return 3 if name.endswith(".tsv") and not name.startswith("qrels.") else 4


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _grade(text: str | None, number: int, summary: ReadSummary) -> int | None:
    """The grade as a whole number; None if the line was skipped."""
    if text is None:
        return 1
    try:
        value = float(text)
        if "_" not in text and value == int(value):  # int() refuses nan and inf
            return int(value)
    except (ValueError, OverflowError):
        pass
    summary.error("score_value", number, "expected a whole number as the grade", text, "grades are 0, 1, 2, ...")
    return None


def write_qrels(path: str | Path, judgements: Judgements, overwrite: bool = False) -> None:
    """Write BEIR's tab file (header, LF line ends) in the order of `judgements`.

    Raises:
        UserError: the file exists, or an id holds a tab or a line end.
    """
    refuse_existing(path, overwrite)
    with whole_file(path, "w") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for query, judged in judgements.items():
            for document, grade in judged.items():
                for identifier in (query, document):
                    if "\t" in identifier or "\n" in identifier or identifier.endswith("\r"):
                        raise UserError(f"{path}: the id {identifier!r} holds a tab or a line end; use another id")
                file.write(f"{query}\t{document}\t{grade}\n")
