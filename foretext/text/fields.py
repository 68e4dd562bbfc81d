"""Which column or key of a file is the text, which the title, which the id: as named, else guessed and said."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from foretext.errors import UserError
from foretext.text.documents import ReadOptions, Source

TEXT_NAMES = ("text", "contents", "content", "body", "document", "passage", "article", "abstract", "sentence")
ID_NAMES = ("_id", "id", "docid", "doc_id", "pid")


def choose_fields(columns: Mapping[str, float], source: Source, options: ReadOptions) -> tuple[dict[str, str | None], list[str]]:
    """Which columns are text, title and id, from names and mean text lengths."""
    guesses, text = [], options.text_field
    if text is None:
        known = [name for name in TEXT_NAMES if columns.get(name, 0) > 0]
        strings = [name for name, length in columns.items() if length > 0 and name not in ID_NAMES and name != "title"]
        if not known and not strings:
            raise UserError(f"{source.name}: no field holds text (found: {', '.join(columns) or 'nothing'}); name it with text_field")
        text = known[0] if known else max(strings, key=lambda name: columns[name])
        guesses.append(f"text field: {text!r} (guessed from {', '.join(columns)})")
    title = options.title_field
    if title is None and "title" in columns and text != "title":
        title = "title"
        guesses.append("title field: 'title' (guessed)")
    chosen = {"text": text, "title": title or None, "id": options.id_field or next((name for name in ID_NAMES if name in columns), None)}
    return chosen, guesses


def json_fields(piece: bytes, source: Source, options: ReadOptions) -> tuple[dict[str, str | None], list[str]]:
    records = []
    for line in piece.split(b"\n")[:50]:
        with contextlib.suppress(ValueError):  # a broken line: the parser will say where
            record = json.loads(line)
            records += [record] if isinstance(record, dict) else []
    if not records:
        if options.text_field:
            return {"text": options.text_field, "title": options.title_field, "id": options.id_field}, []
        return {"text": "text", "title": "title", "id": options.id_field or "_id"}, []
    names = list(dict.fromkeys(name for record in records for name in record))
    return choose_fields({name: mean_length([record.get(name) for record in records]) for name in names}, source, options)


def mean_length(values: Sequence[Any]) -> float:
    return sum(len(value) for value in values if isinstance(value, str)) / max(len(values), 1)


def tsv_fields(piece: bytes, source: Source, options: ReadOptions) -> tuple[dict[str, Any], list[str], bool]:
    rows = [line.rstrip(b"\r").decode("utf-8", "replace").split("\t") for line in piece.split(b"\n") if line.strip()][:50]
    if not rows:
        return {"columns": 1, "text": 0, "title": None, "id": None}, [], False
    return table_fields(rows, source, options)


def table_fields(rows: list[list[str]], source: Source, options: ReadOptions) -> tuple[dict[str, Any], list[str], bool]:
    """Column numbers of a csv or tsv file, here from 0 (people's, without a header, are from 1); is its first row a header?"""
    width, names = len(rows[0]), [name.strip() for name in rows[0]]
    given = options.text_field
    by_number = given is not None and given.isdigit() and given not in names
    header = not by_number and (given in names or bool({name.lower() for name in names} & {*TEXT_NAMES, "title"}))
    lengths = [mean_length([row[i] for row in rows[header:] if i < len(row)]) for i in range(width)]
    if header:
        chosen, guesses = choose_fields(dict(zip(names, lengths)), source, options)
        for role, name in chosen.items():
            if name is not None and name not in names:
                raise UserError(f"{source.name}:1: no {role} column {name!r}; the columns are {', '.join(names)}")
        return {"columns": width, **{role: None if name is None else names.index(name) for role, name in chosen.items()}}, guesses, True
    if given is not None and not by_number:
        raise UserError(f"{source.name}:1: no text column {given!r}; the columns are {', '.join(names)}")
    numbers = {}
    for role, name in (("text", given), ("title", options.title_field), ("id", options.id_field)):
        if name is not None and not (name.isdigit() and 1 <= int(name) <= width):
            raise UserError(f"{source.name}:1: {role}_field={name!r} is not a column number from 1 to {width}, and the file has no header")
        numbers[role] = None if name is None else int(name) - 1
    guesses = []
    if numbers["text"] is None:
        numbers["text"] = max(range(width), key=lambda i: lengths[i])
        guesses.append(f"no header; text column: {numbers['text'] + 1} of {width}, the longest (guessed)")
        if numbers["id"] is None and width > 1 and numbers["text"] != 0:
            numbers["id"] = 0
            guesses.append("id column: 1 (guessed)")
    return {"columns": width, **numbers}, guesses, False
