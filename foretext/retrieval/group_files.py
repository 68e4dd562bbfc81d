"""Training groups in one file: FlagEmbedding, Tevatron, sentence-transformers, MS MARCO triples, and our parquet."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from foretext.errors import UserError
from foretext.retrieval.collection import read_corpus
from foretext.retrieval.groups import Builder, Groups, Listed, text_id
from foretext.retrieval.records import json_id, json_records, json_text
from foretext.summary import DEFAULT_POLICY, Policy, ReadSummary, read_lines

FILE_FORMATS = ("flagembedding", "tevatron", "tevatron-legacy", "sentence-transformers", "triples", "parquet")
NO_TEXT = ("label", "labels", "score", "scores", "dataset_name")  # columns of sentence-transformers that are no text
MEDIA = ("image", "audio", "video")
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")

Record = tuple[int, dict[str, Any]]  # line number, values by key in the file's order


def read_file(path: Path, format: str | None = None, corpus: str | Path | None = None, columns: Mapping[str, str] | None = None,
              policy: Policy = DEFAULT_POLICY, **unused: Any) -> Groups:
    """Read one file of groups; `format` (one of FILE_FORMATS) overrides the guess.

    Args:
        corpus: for Tevatron's form with ids: the JSON lines that hold the passages.
        columns: for sentence-transformers: names of the columns by role, {"anchor": ..., "positive": ..., "negative_1": ...}.
    """
    summary = ReadSummary(path, policy)
    if _suffix(path) == ".tsv":
        return _triples(summary)
    records = _rows(path, summary)
    first = next(records, None)
    if first is None:
        summary.close()
    kind = format or guess(first[1])
    readers = {"flagembedding": _flagembedding, "tevatron": _tevatron, "tevatron-legacy": _tevatron_legacy, "parquet": _own}
    if kind not in FILE_FORMATS:
        raise UserError(f"format {kind!r}: a file of groups is one of {', '.join(FILE_FORMATS)}")
    passages, summaries = {}, []
    if kind == "tevatron":
        if corpus is None:
            raise UserError(f"{path}: names passages by id (positive_document_ids); say where their texts are (corpus)")
        passages, read = read_passages(corpus, policy)
        summaries.append(read)
    builder = Builder(passages, summary)
    if kind == "sentence-transformers":
        _columns(chain([first], records), builder, columns)
    else:
        for number, record in chain([first], records):
            readers[kind](number, record, builder)
    return Groups(builder.groups, builder.passages, kind, [*summaries, summary.close()])


def guess(record: Mapping[str, Any]) -> str:
    """The format of a file by the keys of its first record."""
    keys = set(record)
    if {"query", "pos"} <= keys:
        return "flagembedding"
    if "positive_document_ids" in keys:
        return "tevatron"
    if "positive_passages" in keys:
        return "tevatron-legacy"
    return "parquet" if {"query", "positives"} <= keys else "sentence-transformers"


def _rows(path: Path, summary: ReadSummary) -> Iterator[Record]:
    """The records of a .jsonl, .csv or .parquet file."""
    kind = _suffix(path)
    if kind == ".parquet":
        import pyarrow.parquet

        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(4096):
            for row in batch.to_pylist():
                number += 1
                summary.lines = number
                yield number, row
    elif kind == ".csv":
        text = io.StringIO("\n".join(line for _, line in read_lines(summary)), newline="")
        reader = csv.reader(text)
        names = next(reader, [])
        for row in reader:
            if len(row) == len(names):
                yield reader.line_num, dict(zip(names, row))
            else:
                summary.error("column_count", reader.line_num, f"expected the {len(names)} columns of the header, found {len(row)} in",
                              ",".join(row), "put fields with commas in quotes")
    else:
        yield from json_records(read_lines(summary), summary)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


# ---------------------------------------------------------------------------------------------------------- FlagEmbedding


def _flagembedding(number: int, record: dict, builder: Builder) -> None:
    summary = builder.summary
    query = json_text(record, "query", number, summary, required=True)
    if query is None or not _asks(query, number, summary):
        return
    lists = []
    for name in ("pos", "neg"):
        if name == "pos" and name not in record:
            summary.error("missing_key", number, f"expected the key 'pos', found the keys {', '.join(map(repr, record))}",
                          mend="name the list of positives so")
            return
        texts = _text_list(record.get(name) or [], name, number, summary)
        if texts is None:
            return
        scores = record.get(f"{name}_scores")
        if scores is not None and len(scores) != len(texts):
            summary.error("score_count", number, f"expected as many {name}_scores as texts in {name} ({len(texts)}), found {len(scores)}",
                          mend="give each text its score, or leave the list out")
            return
        values = None if scores is None else [_number(score, number, summary) for score in scores]
        if values is not None and any(value is not None and math.isnan(value) for value in values):
            return
        ids = record.get(f"{name}_id")
        lists.append(builder.texts(texts, values, ids if ids and len(ids) == len(texts) else None))
    builder.add(number, str(record.get("query_id") or text_id(query)), query, *lists, prompt=record.get("prompt"))


def _asks(query: str, number: int, summary: ReadSummary) -> bool:
    if query.strip():
        return True
    summary.error("empty_query", number, "the query has no text", mend="give it one")
    return False


def _text_list(values: Any, name: str, number: int, summary: ReadSummary) -> list[str] | None:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        summary.error("text_type", number, f"expected a list of strings under {name!r}", json.dumps(values), "write each text in quotes")
        return None
    return values


def _number(value: Any, number: int, summary: ReadSummary) -> float | None:
    """A teacher's score; None where there is none, nan where the record was skipped."""
    if value is None:
        return None
    try:
        score = float(value)
        if math.isfinite(score):
            return score
    except (TypeError, ValueError):
        pass
    summary.error("score_value", number, "expected a finite number as the score", str(value), "mend or delete the record")
    return math.nan


# --------------------------------------------------------------------------------------------------------------- Tevatron


def read_passages(path: str | Path, policy: Policy = DEFAULT_POLICY) -> tuple[dict[str, str], ReadSummary]:
    """A corpus in JSON lines, Tevatron's (`docid`, `text` or `document_text`, `title`) or BEIR's (`_id`, `title`, `text`)."""
    probe = ReadSummary(path, policy)
    first = next(json_records(read_lines(probe), probe), (1, {}))[1]
    if "_id" in first or "id" in first:
        ids, texts, summary = read_corpus(path, policy)
        return dict(zip(ids, texts)), summary
    summary, passages = ReadSummary(path, policy), {}
    for number, record in json_records(read_lines(summary), summary):
        listed = _passage(record, number, summary)
        if listed is not None:
            passages[listed[0]] = listed[1]
            summary.accepted += 1
    return passages, summary.close()


def _passage(record: dict, number: int, summary: ReadSummary) -> tuple[str, str] | None:
    """Id and text of one of Tevatron's passages: title, a blank, text where there is the key `title`."""
    if media := [key for key in MEDIA for name in (key, f"document_{key}") if record.get(name) is not None]:
        raise UserError(f"{summary.source}:{number}: holds {', '.join(media)}, and only text is trained on")
    identifier = json_id(record, ("docid", "doc_id", "_id", "id"), number, summary)
    key = "document_text" if "text" not in record and "document_text" in record else "text"
    text = None if identifier is None else json_text(record, key, number, summary, required=True)
    title = None if text is None else json_text(record, "title", number, summary, required=False)
    return None if title is None else (identifier, f"{title} {text}" if "title" in record else text)


def _tevatron(number: int, record: dict, builder: Builder) -> None:
    summary = builder.summary
    if media := [key for key in MEDIA if record.get(f"query_{key}") is not None]:
        raise UserError(f"{summary.source}:{number}: asks with {', '.join(media)}, and only text is trained on")
    query_id = json_id(record, ("query_id",), number, summary)
    key = "query" if "query" in record and "query_text" not in record else "query_text"
    query = None if query_id is None else json_text(record, key, number, summary, required=True)
    if query is not None and _asks(query, number, summary):
        lists = [[Listed(str(name)) for name in record.get(f"{role}_document_ids") or []] for role in ("positive", "negative")]
        builder.add(number, query_id, query, *lists)


def _tevatron_legacy(number: int, record: dict, builder: Builder) -> None:
    summary = builder.summary
    query_id = json_id(record, ("query_id",), number, summary)
    query = None if query_id is None else json_text(record, "query", number, summary, required=True)
    if query is None or not _asks(query, number, summary):
        return
    lists = []
    for role in ("positive", "negative"):
        found = [_passage(passage, number, summary) for passage in record.get(f"{role}_passages") or []]
        found = [passage for passage in found if passage is not None]
        lists.append(builder.texts([text for _, text in found], ids=[name for name, _ in found]))
    builder.add(number, query_id, query, *lists)


# -------------------------------------------------------------------------------------------------- sentence-transformers


def _columns(records: Iterable[Record], builder: Builder, roles: Mapping[str, str] | None) -> None:
    """Anchor, positive, negatives in the order of the columns; one column may hold a label, a margin or margins.

    Pairs with a label of 0 and 1 say which passage answers the anchor; other labels of pairs are for regression, not for this.
    """
    summary, pairs = builder.summary, {}
    names, values = None, None
    for number, record in records:
        if names is None:
            names, values = _column_roles(record, roles, number, summary)
        texts = [json_text(record, name, number, summary, required=True) for name in names]
        if None in texts or not _asks(texts[0], number, summary):
            continue
        anchor, others = texts[0], texts[1:]
        label = record[values] if values else None
        if label is not None and len(others) == 1:
            if str(label) not in ("0", "1", "0.0", "1.0"):
                raise UserError(f"{summary.source}:{number}: (text, text, {values} {label}) is a graded pair, to be learned by regression; "
                                "a retriever needs pairs with a label of 0 or 1, or without one")
            answers, not_answers = pairs.setdefault(anchor, ([], []))
            (answers if float(label) else not_answers).extend(builder.texts(others))
            continue
        margins = _margins(label, len(others) - 1, number, summary)
        if margins is not None:
            # Losses on margins and softmaxes do not change when a constant is added to all scores of a group: the positive's is 0.
            scores = [0.0, *(-margin for margin in margins)] if margins else [None] * len(others)
            listed = builder.texts(others, scores)
            builder.add(number, text_id(anchor), anchor, listed[:1], listed[1:])
    for anchor, (answers, not_answers) in pairs.items():
        if answers:
            builder.add(None, text_id(anchor), anchor, answers, not_answers)
        else:
            summary.skip("no_positive", None, repr(anchor[:40]))


def _column_roles(record: Mapping[str, Any], roles: Mapping[str, str] | None, number: int,
                  summary: ReadSummary) -> tuple[list[str], str | None]:
    """Names of the text columns, anchor first, and the name of the label column."""
    if roles:
        missing = [name for name in roles.values() if name not in record]
        if missing or not {"anchor", "positive"} <= set(roles):
            raise UserError(f"{summary.source}: columns names {', '.join(roles.values())} as {', '.join(roles)}; there are "
                            f"{', '.join(record)}, and anchor and positive are needed")
        texts = [roles["anchor"], roles["positive"], *(name for role, name in roles.items() if role.startswith("negative"))]
        return texts, roles.get("label") or roles.get("score")
    texts = [name for name in record if name not in NO_TEXT]
    labels = [name for name in record if name in NO_TEXT and name != "dataset_name"]
    if len(texts) < 2 or len(labels) > 1:
        raise summary.stop("missing_key", number, f"expected columns anchor, positive[, negatives ...] and at most one of "
                           f"{', '.join(NO_TEXT[:4])}, found {', '.join(record) or '(none)'}", mend="is this the right file?")
    return texts, labels[0] if labels else None


def _margins(label: Any, negatives: int, number: int, summary: ReadSummary) -> list[float] | None:
    """The margin of the positive over each negative; empty without a label, None where the record was skipped."""
    if label is None:
        return []
    if isinstance(label, str) and label.strip().startswith("["):
        label = json.loads(label)
    values: Sequence[Any] = label if isinstance(label, list) else [label]
    if len(values) != negatives:
        summary.error("score_count", number, f"expected a margin for each of {negatives} negatives, found {len(values)}",
                      mend="give each negative its margin")
        return None
    margins = [_number(value, number, summary) for value in values]
    return None if any(margin is None or math.isnan(margin) for margin in margins) else margins


# ------------------------------------------------------------------------------------------------------ triples, own parquet


def _triples(summary: ReadSummary) -> Groups:
    """MS MARCO's `triples.*.tsv`: query, positive and negative as texts; lines of one query make one group."""
    builder, found, read = Builder({}, summary), {}, 0
    for number, text in read_lines(summary):
        fields = text.split("\t")
        if len(fields) != 3:
            summary.error("extra_tab" if len(fields) > 3 else "column_count", number, "expected query, positive and negative in three "
                          f"tab-separated columns, found {len(fields)} in", text, "mend or delete the line")
        elif _asks(fields[0], number, summary):
            read += 1
            _, positives, negatives = found.setdefault(fields[0], (number, [], []))
            positives += builder.texts(fields[1:2])
            negatives += builder.texts(fields[2:])
    for query, (number, positives, negatives) in found.items():
        builder.add(number, text_id(query), query, positives, dict.fromkeys(negatives))
    summary.accepted = read
    return Groups(builder.groups, builder.passages, "triples", [summary.close()])


def _own(number: int, record: dict, builder: Builder) -> None:
    summary = builder.summary
    query = json_text(record, "query", number, summary, required=True)
    if query is None or not _asks(query, number, summary):
        return
    lists = []
    for role in ("positives", "negatives"):
        entries = record.get(role) or []
        scores = [_number(entry.get("score"), number, summary) for entry in entries]
        if any(score is not None and math.isnan(score) for score in scores):
            return
        lists.append(builder.texts([entry["text"] for entry in entries], scores, [entry["id"] for entry in entries]))
    builder.add(number, str(record.get("query_id") or text_id(query)), query, *lists)
