"""The shapes of reading: sources, their blocks, and documents made from records.

What is wrong in a file has a reason name (`summary.REASONS`): it stops with file:line, or is counted, never silently repaired.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from foretext.errors import UserError
from foretext.summary import Policy, ReadSummary

LAYOUTS = ("auto", "lines", "blocks", "file")


@dataclass(frozen=True)
class Document:
    """One text with the id its file gave it (else `file:line`); `title` is empty where there is none."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class ReadOptions:
    """How to read; every default is stated.

    Attributes:
        text_field, title_field, id_field: column or key names; None guesses and says so. Without a header: numbers from 1.
        layout: of plain text: "lines" (a document per line), "blocks" (blank lines between documents), "file" (a document per file),
            "auto": `.md` and `.rst` by file, others by blocks where at least a tenth of the first lines are blank, else by lines.
        skip: reasons whose records are skipped and counted instead of stopping.
        strict: reasons that stop instead of being counted.
        max_skip_share: largest share of records that `skip` may drop.
        pairs: every record is a pair (`text/paired.py`): `title_field` is its source, `text_field` its target.
    """

    text_field: str | None = None
    title_field: str | None = None
    id_field: str | None = None
    layout: str = "auto"
    skip: tuple[str, ...] = ()
    strict: tuple[str, ...] = ()
    max_skip_share: float = 0.05
    pairs: bool = False

    def __post_init__(self):
        if self.pairs and (self.title_field is None or self.text_field is None):
            raise UserError("pairs need both columns: name the source with --title-field and the target with --text-field (1 and 2 in a "
                            "file without header)")
        self.policy  # noqa: B018 - an unknown reason stops here
        if self.layout not in LAYOUTS:
            raise UserError(f"layout {self.layout!r} is unknown: choose one of {', '.join(LAYOUTS)}")

    @cached_property
    def policy(self) -> Policy:
        """What to do about defects, as the account of each source wants it."""
        return Policy(frozenset(self.skip), frozenset(self.strict), self.max_skip_share)


DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class Source:
    """One thing to read: a file, many small files that are a document each, a saved dataset, a hub dataset or the environment."""

    name: str  # as it appears in ids and messages
    kind: str
    paths: tuple[Path, ...] = ()
    size: int = 0  # bytes on disk; 0 if unknown

    @property
    def path(self) -> Path:
        return self.paths[0]


@dataclass(frozen=True)
class Block:
    """A numbered piece of one source that can be parsed by itself."""

    source: int
    kind: str  # lines, blocks, jsonl, tsv: payload is bytes; arrow: an IPC stream; documents: (documents, summary)
    payload: Any
    name: str
    first: int = 1  # line or row number of the first record
    fields: dict[str, Any] = field(default_factory=dict)
    summary: ReadSummary = field(default_factory=lambda: ReadSummary(""))  # what was seen before parsing: byte-order mark, guesses
    done: int = 0  # bytes of the source on disk consumed so far, for progress
    number: int = 0


def decode(raw: bytes, line: int, summary: ReadSummary, place: str = "") -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = repr(raw[error.start:error.start + 20])
        where = f" of {place}" if place else ""
        summary.error("non_utf8", line, f"expected UTF-8, found {found} at byte {error.start}{where}")
        return None


def make_document(name: str, title: Any, text: Any, line: int, summary: ReadSummary) -> Document | None:
    if (title := as_text(title, "title", line, summary)) is None or (text := as_text(text, "text", line, summary)) is None:
        return None
    if not text or text.isspace():
        summary.skip("empty_doc", line)
        return None
    summary.accepted += 1
    return Document(name, title, text)


def as_text(value: Any, what: str, line: int, summary: ReadSummary) -> str | None:
    """A text without NUL characters, "" for null; None for a value that is no text and was skipped."""
    if value is None:
        summary.note("null_text", line)
        return ""
    if not isinstance(value, str):
        summary.error("text_type", line, f"expected a string as {what}, found {type(value).__name__} {str(value)[:80]}")
        return None
    if "\0" in value:
        summary.note("nul", line, count=value.count("\0"))
        value = value.replace("\0", "")
    return value


def from_columns(line: int, row: list[str], fields: dict[str, Any], too_many: str, summary: ReadSummary) -> Document | None:
    if len(row) != fields["columns"]:
        summary.error(too_many if len(row) > fields["columns"] else "column_count", line,
                        f"expected {fields['columns']} columns, found {len(row)}: {' | '.join(row)[:80]}")
        return None
    name = row[fields["id"]] if fields["id"] is not None else f"{summary.source}:{line}"
    return make_document(name, row[fields["title"]] if fields["title"] is not None else "", row[fields["text"]], line, summary)


def from_json(line: int, text: str, fields: dict[str, Any], summary: ReadSummary) -> Document | None:
    try:
        record = json.loads(text)
    except ValueError as error:
        found = text[:80]
        summary.error("truncated_json", line, f"expected a whole JSON object on the line, found {found!r} ({error})")
        return None
    if not isinstance(record, dict):
        summary.error("missing_key", line, f"expected a JSON object with the key {fields['text']!r}, found {text[:80]}")
        return None
    return from_record(line, record, fields, summary)


def from_record(line: int, record: Mapping[str, Any], fields: Mapping[str, Any], summary: ReadSummary) -> Document | None:
    if fields["text"] not in record:
        found = ", ".join(record) or "none"
        summary.error("missing_key", line, f"expected the key {fields['text']!r}, found the keys {found[:200]}")
        return None
    name = record.get(fields["id"]) if fields["id"] is not None else None
    if isinstance(name, int | float) and not isinstance(name, bool):
        summary.note("numeric_id", line)
    name = f"{summary.source}:{line}" if name is None else str(name)
    title = record.get(fields["title"], "") if fields["title"] is not None else ""
    return make_document(name, title, record[fields["text"]], line, summary)
