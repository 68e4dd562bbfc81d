"""Lines into records: JSON objects, and columns separated by tabs or white space."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from foretext.summary import ReadSummary

SNIFFED = 100  # lines looked at before the shape of a column file is decided
_BLANKS = re.compile(r"[ \t\r\v\f]+")  # ASCII only, as trec_eval splits: a no-break space may be part of an id

Line = tuple[int, str]  # number from 1, text


def json_records(lines: Iterable[Line], summary: ReadSummary) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) for lines that hold one JSON object each."""
    for number, text in lines:
        try:
            record = json.loads(text)
        except ValueError as error:
            summary.error("truncated_json", number, f"expected one JSON object, but {_lower(str(error))}", text,
                          "mend or delete the line")
            continue
        if not isinstance(record, dict):
            summary.error("truncated_json", number, "expected a JSON object in braces", text, "mend or delete the line")
            continue
        yield number, record


def json_id(record: dict, keys: Sequence[str], number: int, summary: ReadSummary, strip: bool = False) -> str | None:
    """The id under the first of `keys` that is there; None if the record was skipped. A number becomes its digits."""
    key = next((key for key in keys if key in record), None)
    if key is None:
        summary.error("missing_key", number, f"expected the key {' or '.join(map(repr, keys))}, found the keys"
                      f" {', '.join(map(repr, record)) or '(none)'}", mend="name the id so")
        return None
    value = record[key]
    if isinstance(value, int) and not isinstance(value, bool):
        summary.note("numeric_id", number)
        return str(value)
    if not isinstance(value, str):
        summary.error("text_type", number, f"expected a string under {key!r}", json.dumps(value), "write it in quotes")
        return None
    if not value.strip():
        summary.error("missing_key", number, f"expected an id under {key!r}", value, "give the record an id")
        return None
    if not encodable(value, number, summary):
        return None
    return stripped(value, number, summary) if strip else value


def json_text(record: dict, key: str, number: int, summary: ReadSummary, required: bool) -> str | None:
    """The text under `key`, empty when null (or absent and not required); None if the record was skipped."""
    if key not in record:
        if required:
            summary.error("missing_key", number, f"expected the key {key!r}, found the keys"
                          f" {', '.join(map(repr, record)) or '(none)'}", mend=f"name the text {key!r}")
            return None
        return ""
    value = record[key]
    if value is None:
        summary.note("null_text", number)
        return ""
    if not isinstance(value, str):
        summary.error("text_type", number, f"expected a string under {key!r}", json.dumps(value), "write it in quotes")
        return None
    if "\0" in value:  # written as an escape, so the line reader could not see it
        summary.note("nul", number, count=value.count("\0"))
        value = value.replace("\0", "")
    return value if encodable(value, number, summary) else None


def encodable(value: str, number: int, summary: ReadSummary) -> bool:
    r"""False (after `summary.error`) for half a surrogate pair such as "\ud83d", which no UTF-8 file can hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        summary.error("non_utf8", number, "expected Unicode text, found half a surrogate pair", value,
                      "write the character itself, or both halves")
        return False
    return True


def stripped(identifier: str, number: int, summary: ReadSummary) -> str:
    """`identifier` without white space around it, counted if there was some."""
    if identifier != (bare := identifier.strip()):
        summary.note("strip_ids", number)
    return bare


def columns(lines: Iterable[Line], head: Sequence[Line], counts: Sequence[int], summary: ReadSummary,
            what: str) -> tuple[int, Iterator[tuple[int, list[str]]]]:
    """Decide from `head` how the lines are split, then split all of them.

    A file whose lines have the right number of tabs is split at single tabs (ids may then hold blanks), any other one
    at runs of white space.

    Args:
        lines: all lines, `head` included.
        counts: legal numbers of columns.
        what: the kind of file, for messages ("a TREC run").

    Returns:
        The number of columns, and (line number, fields) with lines of another number of columns refused.
    """
    tabs = _usual(text.count("\t") + 1 for _, text in head)
    tabbed = tabs in counts
    count = tabs if tabbed else _usual(len(_split(text)) for _, text in head)
    expected = " or ".join(map(str, counts))
    if count not in counts:
        number, text = head[0]
        blanks = count > max(counts) and tabs < min(counts)
        mend = "ids with blanks need columns separated by single tabs" if blanks else "is this the right file?"
        raise summary.stop("blank_in_id" if blanks else "column_count", number,
                           f"expected {what} of {expected} columns, but most lines have {count}", text, mend)
    return count, _split_all(lines, count, tabbed, summary, what)


def _split_all(lines: Iterable[Line], count: int, tabbed: bool, summary: ReadSummary,
               what: str) -> Iterator[tuple[int, list[str]]]:
    kind = "tab-separated" if tabbed else "white-space-separated"
    for number, text in lines:
        fields = text.split("\t") if tabbed else _split(text)
        if len(fields) == count:
            yield number, fields
        elif len(fields) > count and not tabbed:
            summary.error("blank_in_id", number, f"expected {count} {kind} columns as in the rest of {what}, found"
                          f" {len(fields)} in", text, "if an id holds a blank, separate the columns by single tabs")
        else:
            summary.error("column_count", number, f"expected {count} {kind} columns as in the rest of {what}, found"
                          f" {len(fields)} in", text, "mend or delete the line")


def _split(text: str) -> list[str]:
    return _BLANKS.split(text.strip(" \t\r\v\f"))


def _usual(values: Iterable[int]) -> int:
    """The commonest value; of several, the one seen first."""
    return Counter(values).most_common(1)[0][0]


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
