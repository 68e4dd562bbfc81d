"""Texts, or pairs of texts, with labels: csv, tsv, JSON lines and parquet in, training examples out.

N examples   B of them read together   K labels
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from foretext.errors import UserError
from foretext.summary import ReadSummary, open_bytes, read_lines
from foretext.text.batches import Documents
from foretext.text.pairs import Texts
from foretext.text.tokenizer import Tokenizer

Task = Literal["classes", "labels", "score"]
Label = str | tuple[str, ...]

USUAL = {  # role -> names of columns, the first that is there is taken
    "text": ("text", "sentence", "sentence1", "text1", "question", "question1", "query", "premise", "utterance", "content"),
    "second": ("sentence2", "text2", "text_pair", "question2", "hypothesis", "passage"),
    "label": ("label", "labels", "category", "intent", "class", "target", "score", "similarity"),
}


@dataclass(frozen=True)
class Labelled:
    """N texts or pairs and, where the file has them, their labels as written."""

    path: Path
    first: list[str]
    second: list[str] | None
    labels: list[Label] | None
    lines: list[int]  # where each came from
    notes: tuple[str, ...]  # what was guessed


def read_labelled(path: str | Path, text: str | None = None, second: str | None = None, label: str | None = None,
                  needs_labels: bool = True) -> Labelled:  # fmt: skip
    """Read a .csv (quoted), .tsv (no quotes), .jsonl or .parquet file, also compressed.

    Args:
        text, second, label: names of columns; in csv and tsv also numbers from 1, for files without a header. By default the usual
            names are looked for, and what was taken is said in `notes`. A pair has a `second`.
    Raises:
        UserError: no such file or column, or a row that does not fit.
    """
    path = Path(path)
    asked = {"text": text, "second": second, "label": label}
    rows = _rows(path, any(name is not None and name.isdigit() for name in asked.values()))
    head = next(rows, None)
    if head is None:
        raise UserError(f"{path}: holds no rows")
    columns = _columns(path, list(head[1]), asked, needs_labels)
    first, seconds, labels, lines = [], [], [], []
    for line, row in _chain(head, rows):
        first.append(_text(path, line, row, columns["text"]))
        seconds += [_text(path, line, row, columns["second"])] if columns["second"] else []
        labels += [_label(path, line, row, columns["label"])] if columns["label"] else []
        lines.append(line)
    taken = [f"{name} as the {role}" for role, name in columns.items() if name and asked[role] is None]
    notes = (f"{path}: took {', '.join(taken)}",) if taken else ()
    return Labelled(path, first, seconds if columns["second"] else None, labels if columns["label"] else None, lines, notes)


def _rows(path: Path, numbered: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, values by column) of any of the formats; without a header the columns are called "1", "2", ..."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix in (".csv", ".tsv", ".jsonl", ".parquet")), None)
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind == ".jsonl":
        yield from _json(path)
    elif kind in (".csv", ".tsv"):
        table = _csv(path) if kind == ".csv" else ((line, text.split("\t")) for line, text in read_lines(ReadSummary(path)))
        names = None
        for line, values in table:
            if names is None:
                names = [str(i + 1) for i in range(len(values))] if numbered else values
                if not numbered:
                    continue
            if len(values) != len(names):
                raise UserError(f"{path}:{line}: expected {len(names)} columns as in the first line, found {len(values)}")
            yield line, dict(zip(names, values))
    else:
        raise UserError(f"{path}: labelled texts are read from .csv, .tsv, .jsonl and .parquet files; rename or convert it")


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    with open_bytes(path) as file:
        try:
            reader = csv.reader(io.StringIO(file.read().decode("utf-8-sig"), newline=""), strict=True)
            for values in reader:
                if values:
                    yield reader.line_num, values
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x} at byte {error.start}); convert it") from None
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error})") from None


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import json

    for line, text in read_lines(ReadSummary(path)):
        try:
            record = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}:{line}: not valid JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{line}: expected an object in braces, found {text[:80]!r}")
        yield line, record


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({error})") from None
    yield from enumerate(rows, start=1)


def _chain(head, rows):
    yield head
    yield from rows


def _columns(path: Path, names: list[str], asked: dict[str, str | None], needs_labels: bool) -> dict[str, str | None]:
    found = {}
    for role, name in asked.items():
        if name is not None and name not in names:
            raise UserError(f"{path}: there is no column {name!r} for the {role}; there are {', '.join(names)}")
        free = [usual for usual in USUAL[role] if usual in names and usual not in asked.values()]
        found[role] = name or next(iter(free), None)
    missing = [role for role in ("text", "label") if found[role] is None and (role == "text" or needs_labels)]
    if missing:
        raise UserError(f"{path}: no column has a name that is usual for a {missing[0]} (there are {', '.join(names)[:200]}); name "
                        f"it with --{missing[0]}, as a number from 1 where the file has no header")
    return found


def _text(path: Path, line: int, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UserError(f"{path}:{line}: expected a text under {column!r}, found {str(value)[:80]!r}")
    return value


def _label(path: Path, line: int, row: dict[str, Any], column: str) -> Label:
    value = row.get(column)
    if isinstance(value, list):
        return tuple(str(part) for part in value)
    if value is None or value == "":
        raise UserError(f"{path}:{line}: there is no label under {column!r}; give it one, or delete the row")
    return str(value)


# --------------------------------------------------------------------------------------------------------- what labels mean


def guess_task(labels: Sequence[Label]) -> Task:
    """`labels` where rows hold lists, `score` where all are numbers of which some have a fraction, else `classes`."""
    if any(isinstance(label, tuple) for label in labels):
        return "labels"
    numbers = [number(label) for label in labels]
    return "score" if all(value is not None for value in numbers) and any("." in label for label in labels) else "classes"


def names_of(labels: Sequence[Label], task: Task) -> tuple[str, ...]:
    """The different labels: in the order of their numbers where all are whole numbers, else alphabetically; of a score one name."""
    if task == "score":
        return ("score",)
    every = {name for label in labels for name in (label if isinstance(label, tuple) else (label,))}
    return tuple(sorted(every, key=int if all(name.isdigit() for name in every) else None))


def number(text: Label) -> float | None:
    """The finite number that is written there, None where there is none."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def targets_of(data: Labelled, names: Sequence[str], task: Task) -> Tensor:
    """(N,) int64 class numbers, (N, K) fp32 of zeros and ones, or (N, 1) fp32 scores.

    Raises:
        UserError: a label that is not among `names`, or a score that is no number.
    """
    places = {name: i for i, name in enumerate(names)}
    if task == "score":
        scores = [number(label) for label in data.labels]
        if None in scores:
            i = scores.index(None)
            raise UserError(f"{data.path}:{data.lines[i]}: expected a finite number as the score, found {str(data.labels[i])[:80]!r}")
        return torch.tensor(scores, dtype=torch.float32)[:, None]
    rows = [label if isinstance(label, tuple) else (label,) for label in data.labels]
    for line, row in zip(data.lines, rows):
        if unknown := [name for name in row if name not in places]:
            raise UserError(f"{data.path}:{line}: the label {unknown[0]!r} is not among the {len(names)} labels of the training data "
                            f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")
        if task == "classes" and len(row) != 1:
            raise UserError(f"{data.path}:{line}: expected one label, found {len(row)}; several need the task `labels`")
    if task == "classes":
        return torch.tensor([places[row[0]] for row in rows], dtype=torch.int64)
    targets = torch.zeros(len(rows), len(names))
    for i, row in enumerate(rows):
        targets[i, [places[name] for name in row]] = 1
    return targets


# ----------------------------------------------------------------------------------------------------------------- examples


@dataclass(frozen=True)
class LabelledExamples:
    """B texts, or pairs, and what is to be said about them."""

    first: Documents
    second: Documents | None
    targets: Tensor  # (B,) int64, or (B, K) fp32


class LabelledTexts:
    """Labelled texts, tokenised once and kept in memory.

    Args:
        targets: (N,) int64 or (N, K) fp32.
        both_orders: pairs also the other way round, as examples of their own (ELECTRA's `double_unordered`, for symmetric tasks).
    """

    def __init__(self, first: Sequence[str], second: Sequence[str] | None, targets: Tensor, tokenizer: Tokenizer,
                 both_orders: bool = False):  # fmt: skip
        if second is not None and both_orders:
            first, second = [*first, *second], [*second, *first]
            targets = torch.cat((targets, targets))
        self.first, self.second = Texts(first, tokenizer), None if second is None else Texts(second, tokenizer)
        self.targets = targets
        self.lengths = self.first.lengths + (0 if self.second is None else self.second.lengths)

    def read(self, rows: np.ndarray, keys: Tensor) -> LabelledExamples:
        second = None if self.second is None else self.second.read(rows, keys)
        return LabelledExamples(self.first.read(rows, keys), second, self.targets[torch.from_numpy(rows)])
