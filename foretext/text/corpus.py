"""From files to documents: txt, jsonl, csv, tsv, parquet, arrow (plain, gz, zst, xz, bz2), folders, BEIR, saved and hub datasets.

`find_sources` says what the inputs are, `blocks` cuts them into numbered blocks that any process can parse with `read_block`, and
`read_documents` does all of it in one process. What is wrong in a file has a reason name (`ReadSummary`): it stops with file:line,
or is counted, never silently repaired.

Lines end at LF only: a lone CR, U+2028, U+0085 and a vertical tab are text.
"""

import contextlib
import csv
import glob
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from foretext.errors import UserError
from foretext.files import inside, read_json

SUFFIXES = {".txt": "txt", ".text": "txt", ".md": "file", ".rst": "file", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
            ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
TEXT_NAMES = ("text", "contents", "content", "body", "document", "passage", "article", "abstract", "sentence")
ID_NAMES = ("_id", "id", "docid", "doc_id", "pid")
LAYOUTS = ("auto", "lines", "blocks", "file")
BLANK_LINES = re.compile(rb"\n[ \t\r]*\n")
BLOCK_BYTES = 2_000_000  # raw bytes of one block: a second or so of tokenizing, so that cores stay even and a kill costs little
BOM = b"\xef\xbb\xbf"
PEEK_BYTES = 1 << 16  # how much of a file a guess may look at
NOT_COUNTED_AS_LOSS = {"blank_line", "empty_doc"}  # skipped without asking, so outside `max_skip_share`


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
        text_field, title_field, id_field: column or key names; None guesses and says so. A number is a column of a file without header.
        layout: of plain text: "lines" (a document per line), "blocks" (blank lines between documents), "file" (a document per file),
            "auto": `.md` and `.rst` by file, others by blocks where at least a tenth of the first lines are blank, else by lines.
        skip: reasons whose records are skipped and counted instead of stopping.
        strict: reasons that stop instead of being counted.
        max_skip_share: largest share of records that `skip` may drop.
    """

    text_field: str | None = None
    title_field: str | None = None
    id_field: str | None = None
    layout: str = "auto"
    skip: tuple[str, ...] = ()
    strict: tuple[str, ...] = ()
    max_skip_share: float = 0.05


@dataclass
class ReadSummary:
    """What happened while one source was read."""

    source: str = ""
    lines: int = 0
    accepted: int = 0
    skipped: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    first_examples: list[tuple[int, str]] = field(default_factory=list)  # (line, reason), at most 5 per reason
    guesses: list[str] = field(default_factory=list)

    def problem(self, reason: str, line: int, sentence: str, options: ReadOptions) -> None:
        """A defect that stops with `file:line`, unless the options skip its reason."""
        if reason not in options.skip:
            raise UserError(f"{self.source}:{line}: {sentence} (reason {reason}; mend the line, or skip such records with skip={reason})")
        self.skipped[reason] += 1
        self.example(line, reason)

    def note(self, reason: str, line: int, options: ReadOptions, count: int = 1) -> None:
        """A defect that is counted, unless the options are strict about it. Blank and empty records count as skipped."""
        if reason in options.strict:
            raise UserError(f"{self.source}:{line}: {reason}, and strict={reason} asks to stop there")
        (self.skipped if reason in NOT_COUNTED_AS_LOSS else self.notes)[reason] += count
        self.example(line, reason)

    def example(self, line: int, reason: str) -> None:
        """Remember where a reason was met, the first five times."""
        if sum(known == reason for _, known in self.first_examples) < 5:
            self.first_examples.append((line, reason))

    def add(self, other: "ReadSummary") -> None:
        """Take in the summary of a later block of the same source."""
        self.lines += other.lines
        self.accepted += other.accepted
        self.skipped += other.skipped
        self.notes += other.notes
        self.guesses += [guess for guess in other.guesses if guess not in self.guesses]
        for line, reason in other.first_examples:
            self.example(line, reason)

    def check(self, options: ReadOptions) -> None:
        """Raise `UserError` if nothing was accepted or more was skipped than `max_skip_share` allows."""
        if not self.accepted:
            found = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.items()) or "it is empty"
            raise UserError(f"{self.source}: no document found ({self.lines:,} lines; {found})")
        lost = sum(count for reason, count in self.skipped.items() if reason not in NOT_COUNTED_AS_LOSS)
        if lost > options.max_skip_share * (lost + self.accepted):
            raise UserError(f"{self.source}: {lost:,} of {lost + self.accepted:,} records were skipped, more than max_skip_share="
                            f"{options.max_skip_share:g} allows ({dict(self.skipped)}); mend the file or raise max_skip_share")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"source": self.source, "lines": self.lines, "accepted": self.accepted, "skipped": dict(sorted(self.skipped.items())),
                "notes": dict(sorted(self.notes.items())), "first_examples": [list(example) for example in self.first_examples],
                "guesses": self.guesses}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "ReadSummary":
        """The inverse of `to_dict`."""
        return ReadSummary(value["source"], value["lines"], value["accepted"], Counter(value["skipped"]), Counter(value["notes"]),
                           [(line, reason) for line, reason in value["first_examples"]], list(value["guesses"]))

    def __str__(self) -> str:
        parts = [f"{self.source}: {self.accepted:,} documents from {self.lines:,} lines"]
        parts += [f"{count:,} skipped ({reason})" for reason, count in self.skipped.items()]
        parts += [f"{count:,} {reason}" for reason, count in self.notes.items()]
        return ", ".join(parts + self.guesses)


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
    summary: ReadSummary = field(default_factory=ReadSummary)  # what was seen before parsing: byte-order mark, guesses
    done: int = 0  # bytes of the source on disk consumed so far, for progress
    number: int = 0


# ------------------------------------------------------------------------------------------------------------------ sources


def find_sources(inputs: str | Path | Sequence[str | Path], options: ReadOptions = ReadOptions()) -> list[Source]:
    """Inputs -> sources, in the order given; files of a folder or glob sorted bytewise, hidden ones ignored.

    Args:
        inputs: files, globs, folders, BEIR folders, saved datasets, `hf:owner/name[:config[:split]]` (or owner/name where no such
            path exists), and the word `environment`.

    Raises:
        UserError: something is missing, or a folder holds nothing readable.
    """
    if options.layout not in LAYOUTS:
        raise UserError(f"layout {options.layout!r} is unknown: choose one of {', '.join(LAYOUTS)}")
    inputs = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not inputs:
        raise UserError("no input given: name files, folders or data sets to read")
    sources = [source for given in inputs for source in _sources_of(str(given), options)]
    merged: list[Source] = []
    for source in sources:  # files that are a document each count as one source, or ten thousand of them drown the summary
        if source.kind == "file" and merged and merged[-1].kind == "file":
            last = merged[-1]
            root = os.path.commonpath([path.absolute().parent for path in last.paths + source.paths])
            merged[-1] = Source(os.path.basename(root), "file", last.paths + source.paths, last.size + source.size)
        else:
            merged.append(source)
    return merged


def _sources_of(given: str, options: ReadOptions) -> list[Source]:
    path = Path(given).expanduser()
    if given == "environment" and not path.exists():
        return [Source("environment", "environment")]
    if given.startswith("hf:"):
        return [Source(given, "hub")]
    if path.is_file():
        return [_file_source(path, path.name, options)]
    if path.is_dir():
        return _folder_sources(path, options)
    if any(character in given for character in "*?["):
        found = sorted((Path(name) for name in glob.glob(str(path), recursive=True)), key=os.fsencode)
        found = [name for name in found if name.is_file()]
        if not found:
            raise UserError(f"{given}: no file matches this pattern")
        return [_file_source(name, name.name, options) for name in found]
    suffixes = Path(given).suffixes
    if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and not (set(suffixes) & {*SUFFIXES, *COMPRESSIONS}) and not path.parent.exists():
        return [Source(f"hf:{given}", "hub")]
    raise UserError(f"{given}: no such file or folder")


def _kind(path: Path) -> str | None:
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes = suffixes[:-1]
    return SUFFIXES.get(suffixes[-1].lower()) if suffixes else None


def _file_source(path: Path, name: str, options: ReadOptions) -> Source:
    kind = _kind(path) or "txt"  # a file that was named is text unless its suffix says otherwise
    if kind in ("txt", "file") and options.layout != "auto":
        kind = "file" if options.layout == "file" else "txt"
    return Source(name, kind, (path,), path.stat().st_size)


def _folder_sources(folder: Path, options: ReadOptions) -> list[Source]:
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json").get("splits", [])
        if "train" not in splits and len(splits) != 1:
            raise UserError(f"{folder}: a saved dataset with the splits {', '.join(splits)}; name the folder of one of them")
        return _folder_sources(inside(folder, "train" if "train" in splits else splits[0]), options)
    if (folder / "state.json").is_file():
        state = read_json(folder / "state.json")
        if state.get("_indices_data_files"):
            raise UserError(f"{folder}: this saved dataset is a selection of another; call flatten_indices() and save it again")
        paths = tuple(inside(folder, entry["filename"]) for entry in state["_data_files"])
        return [Source(f"{folder.name}/{path.name}", "arrow", (path,), path.stat().st_size) for path in paths]
    for name in ("corpus.jsonl", *(f"corpus.jsonl{suffix}" for suffix in COMPRESSIONS)):
        if (folder / name).is_file():  # BEIR: queries and judgements are not documents
            return [_file_source(folder / name, f"{folder.name}/{name}", options)]
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".") and _kind(Path(name))]
    if not found:
        raise UserError(f"{folder}: holds no file with a known suffix ({', '.join(SUFFIXES)}, each also {', '.join(COMPRESSIONS)})")
    found.sort(key=os.fsencode)
    return [_file_source(path, path.relative_to(folder.parent).as_posix(), options) for path in found]


# ------------------------------------------------------------------------------------------------------------------- blocks


def blocks(sources: Sequence[Source], options: ReadOptions = ReadOptions(), block_bytes: int = BLOCK_BYTES,
           workers: int = 1) -> Iterator[Block]:
    """Cut sources into blocks of about `block_bytes`, numbered from 0; the cut depends on nothing but sources and options."""
    number = 0
    for index, source in enumerate(sources):
        for block in _READERS[source.kind](source, options, block_bytes, workers):
            yield replace(block, source=index, name=source.name, number=number)
            number += 1


class _Zstd(io.RawIOBase):
    """Reads zstandard frames and, unlike the library's reader, raises on a truncated one."""

    def __init__(self, raw: IO[bytes]):
        import zstandard

        self._raw, self._new = raw, zstandard.ZstdDecompressor().decompressobj
        self._object, self._ready, self._spare = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        while not self._ready:
            data, self._spare = self._spare or self._raw.read(1 << 16), b""
            if not data:
                if self._object is not None:
                    raise EOFError("compressed file ended before the end-of-stream marker was reached")
                return 0
            self._object = self._object or self._new()
            self._ready = self._object.decompress(data)
            if self._object.eof:
                self._spare, self._object = self._object.unused_data, None
        count = min(len(target), len(self._ready))
        target[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def _open(raw: IO[bytes], path: Path) -> IO[bytes]:
    import bz2
    import gzip
    import lzma

    suffix = path.suffix.lower()
    if suffix == ".zst":
        return io.BufferedReader(_Zstd(raw), 1 << 20)
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix)
    return io.BufferedReader(opener(raw, "rb"), 1 << 20) if opener else raw


def _pieces(source: Source, size: int, end: re.Pattern[bytes] | None = None) -> Iterator[tuple[bytes, int]]:
    """Decompressed bytes cut after a line end (or inside the last match of `end`), each with the position on disk."""
    import lzma
    import zlib

    damage = (EOFError, zlib.error, lzma.LZMAError, *_zstd_errors())
    try:
        with open(source.path, "rb") as raw, _open(raw, source.path) as stream:
            rest = b""
            while data := stream.read(size):
                rest += data
                cut = rest.rfind(b"\n") + 1
                if end is not None:
                    cut = max((match.end() for match in end.finditer(rest)), default=0)
                if cut:
                    yield rest[:cut], raw.tell()
                    rest = rest[cut:]
            if rest:
                yield rest, raw.tell()
    except damage as error:
        raise UserError(f"{source.path}: the archive is truncated or damaged ({error}); copy it again") from None
    except OSError as error:  # gzip.BadGzipFile and bz2's complaints are OSErrors, and so are unreadable files
        raise UserError(f"{source.path}: cannot be read ({error})") from None


def _zstd_errors() -> tuple[type[Exception], ...]:
    try:
        import zstandard
    except ImportError:
        return ()
    return (zstandard.ZstdError,)


def _line_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    summary, fields, line, kind, header = ReadSummary(source.name), {}, 1, source.kind, False
    head = next(_pieces(source, PEEK_BYTES), (b"", 0))[0].removeprefix(BOM)  # at least one whole line, whatever the block size
    if kind == "txt":
        kind, guesses = _layout(head, options)
    elif kind == "jsonl":
        fields, guesses = _json_fields(head, source, options)
    else:
        fields, guesses, header = _tsv_fields(head, source, options)
    summary.guesses += guesses
    for piece, done in _pieces(source, size, BLANK_LINES if kind == "blocks" else None):
        if line == 1 and piece.startswith(BOM):
            summary.note("bom", 1, options)
            piece = piece[len(BOM):]
        if header:
            head, _, piece = piece.partition(b"\n")
            if head.endswith(b"\r"):
                summary.note("crlf", 1, options)
            line, header = 2, False
        yield Block(0, kind, piece, source.name, line, fields, summary, done)
        summary = ReadSummary(source.name)
        line += piece.count(b"\n")


def _layout(head: bytes, options: ReadOptions) -> tuple[str, list[str]]:
    if options.layout in ("lines", "blocks"):
        return options.layout, []
    lines = [line.strip() for line in head.strip().split(b"\n")]
    if sum(not line for line in lines) * 10 >= len(lines) and len(lines) > 1:
        return "blocks", ["layout: blocks between blank lines (guessed; layout=lines, blocks or file decides)"]
    return "lines", ["layout: a document per line (guessed; layout=lines, blocks or file decides)"]


def _choose(columns: Mapping[str, float], source: Source, options: ReadOptions) -> tuple[dict[str, str | None], list[str]]:
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


def _json_fields(piece: bytes, source: Source, options: ReadOptions) -> tuple[dict[str, str | None], list[str]]:
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
    return _choose({name: _mean([record.get(name) for record in records]) for name in names}, source, options)


def _mean(values: Sequence[Any]) -> float:
    return sum(len(value) for value in values if isinstance(value, str)) / max(len(values), 1)


def _tsv_fields(piece: bytes, source: Source, options: ReadOptions) -> tuple[dict[str, Any], list[str], bool]:
    rows = [line.rstrip(b"\r").decode("utf-8", "replace").split("\t") for line in piece.split(b"\n") if line.strip()][:50]
    if not rows:
        return {"columns": 1, "text": 0, "title": None, "id": None}, [], False
    return _table_fields(rows, source, options)


def _table_fields(rows: list[list[str]], source: Source, options: ReadOptions) -> tuple[dict[str, Any], list[str], bool]:
    """Column numbers of a csv or tsv file; is its first row a header?"""
    width, names = len(rows[0]), [name.strip() for name in rows[0]]
    given = options.text_field
    by_number = given is not None and given.isdigit() and given not in names
    header = not by_number and (given in names or bool({name.lower() for name in names} & {*TEXT_NAMES, "title"}))
    lengths = [_mean([row[i] for row in rows[header:] if i < len(row)]) for i in range(width)]
    if header:
        chosen, guesses = _choose(dict(zip(names, lengths)), source, options)
        for role, name in chosen.items():
            if name is not None and name not in names:
                raise UserError(f"{source.name}:1: no {role} column {name!r}; the columns are {', '.join(names)}")
        return {"columns": width, **{role: None if name is None else names.index(name) for role, name in chosen.items()}}, guesses, True
    if given is not None and not by_number:
        raise UserError(f"{source.name}:1: no text column {given!r}; the columns are {', '.join(names)}")
    numbers = {}
    for role, name in (("text", given), ("title", options.title_field), ("id", options.id_field)):
        if name is not None and (not name.isdigit() or int(name) >= width):
            raise UserError(f"{source.name}:1: {role}_field={name!r} is not a column number below {width}, and the file has no header")
        numbers[role] = None if name is None else int(name)
    guesses = []
    if numbers["text"] is None:
        numbers["text"] = max(range(width), key=lambda i: lengths[i])
        guesses.append(f"no header; text column: {numbers['text']} of {width}, the longest (guessed)")
        if numbers["id"] is None and width > 1 and numbers["text"] != 0:
            numbers["id"] = 0
            guesses.append("id column: 0 (guessed)")
    return {"columns": width, **numbers}, guesses, False


def _csv_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    """Quoted line ends make csv impossible to cut without parsing, so it is parsed here."""
    csv.field_size_limit(2**31 - 1)
    summary, done, faults = ReadSummary(source.name), 0, []

    def lines() -> Iterator[str]:
        nonlocal done
        number = 0
        for piece, done in _pieces(source, size):  # noqa: B007
            for raw in piece.removesuffix(b"\n").split(b"\n"):
                number += 1
                if number == 1 and raw.startswith(BOM):
                    summary.note("bom", 1, options)
                    raw = raw[len(BOM):]
                if raw.endswith(b"\r"):
                    summary.note("crlf", number, options)
                    raw = raw[:-1]
                try:
                    yield raw.decode("utf-8") + "\n"
                except UnicodeDecodeError as error:
                    faults.append((number, error.start))
                    yield raw.decode("utf-8", "replace") + "\n"

    reader = csv.reader(lines(), strict=True)
    documents: list[Document] = []
    fields: dict[str, Any] = {}
    held, volume, line = [], 0, 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{source.name}:{line}: not valid CSV ({error})") from None
        if row is not None:
            held.append((line, row, faults.pop() if faults else None))
            line = reader.line_num + 1
        if not fields and any(row for _, row, _ in held) and (row is None or len(held) >= 50):  # enough rows for a guess
            fields, held = _csv_start(held, source, options, summary)
        if fields or row is None:
            for entry in held:
                volume += _csv_row(*entry, fields, summary, options, documents)
            held = []
        if volume >= size or row is None:
            yield Block(0, "documents", (documents, summary), source.name, done=done)
            documents, summary, volume = [], ReadSummary(source.name), 0
        if row is None:
            return


def _csv_start(held: list, source: Source, options: ReadOptions, summary: ReadSummary) -> tuple[dict[str, Any], list]:
    first = next(i for i, (_, row, _) in enumerate(held) if row)
    fields, guesses, header = _table_fields([row for _, row, _ in held if row], source, options)
    summary.guesses += guesses
    return fields, held[:first] + held[first + header:]


def _csv_row(line: int, row: list[str], fault: tuple[int, int] | None, fields: dict[str, Any], summary: ReadSummary,
             options: ReadOptions, documents: list[Document]) -> int:
    summary.lines += 1
    if not row:
        summary.note("blank_line", line, options)
    elif fault:
        summary.problem("non_utf8", fault[0], f"expected UTF-8, found another byte at byte {fault[1]}", options)
    else:
        document = _from_columns(line, row, fields, "column_count", summary, options)
        documents += [document] if document else []
    return sum(map(len, row))


def _arrow_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    import tempfile

    import pyarrow as pa

    with tempfile.TemporaryFile() as spool:
        place: Any = str(source.path)
        if source.path.suffix in COMPRESSIONS:  # these formats are read from the end, so the archive must be unpacked first
            for piece, _ in _pieces(source, size):
                spool.write(piece)
            spool.seek(0)
            place = spool
        try:
            schema, batches, total = _record_batches(source, place)
            chosen, guesses = _arrow_fields(schema, source, options)
            names = list(dict.fromkeys(name for name in chosen.values() if name is not None))
            summary = ReadSummary(source.name, guesses=guesses)
            held, volume, row, seen = [], 0, 1, 0
            for batch in batches(names):
                for start in range(0, batch.num_rows, 1024):
                    part = batch.slice(start, 1024).select(names)
                    held.append(part)
                    volume += part.nbytes
                    seen += part.num_rows
                    if volume >= size:
                        yield Block(0, "arrow", _ipc(held), source.name, row, chosen, summary, source.size * seen // max(total or seen, 1))
                        held, volume, row, summary = [], 0, seen + 1, ReadSummary(source.name)
            if held or row == 1:
                yield Block(0, "arrow", _ipc(held) if held else None, source.name, row, chosen, summary, source.size)
        except pa.ArrowException as error:
            raise UserError(f"{source.path}: not a readable {source.kind} file ({str(error).splitlines()[0]})") from None


def _record_batches(source: Source, place: Any):
    import pyarrow as pa

    if source.kind == "parquet":
        import pyarrow.parquet as pq

        file = pq.ParquetFile(place)
        return file.schema_arrow, lambda names: file.iter_batches(batch_size=4096, columns=names), file.metadata.num_rows
    handle = pa.memory_map(place) if isinstance(place, str) else pa.PythonFile(place, "r")
    try:
        reader = pa.ipc.open_file(handle)
        return reader.schema, lambda names: (reader.get_batch(i) for i in range(reader.num_record_batches)), None
    except pa.ArrowInvalid:
        handle.seek(0)
        stream = pa.ipc.open_stream(handle)
        return stream.schema, lambda names: stream, None


def _arrow_fields(schema, source: Source, options: ReadOptions) -> tuple[dict[str, str | None], list[str]]:
    import pyarrow as pa

    def is_text(kind) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)

    chosen, guesses = _choose({entry.name: float(is_text(entry.type)) for entry in schema}, source, options)
    for role, name in chosen.items():
        if name is not None and name not in schema.names:
            raise UserError(f"{source.name}: no {role} column {name!r}; the columns are {', '.join(schema.names)}")
    return chosen, guesses


def _ipc(batches: list) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _file_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    documents, summary, volume, done = [], ReadSummary(source.name), 0, 0
    root = os.path.commonpath([path.parent for path in source.paths])
    for number, path in enumerate(source.paths, 1):
        raw = b"".join(piece for piece, _ in _pieces(Source(path.name, "file", (path,)), size))
        done += path.stat().st_size
        volume += len(raw)
        summary.lines += 1
        if raw.startswith(BOM):
            summary.note("bom", number, options)
            raw = raw[len(BOM):]
        text = _decode(raw, number, summary, options, str(path))
        if text is not None:
            if "\r\n" in text:
                summary.note("crlf", number, options, text.count("\r\n"))
                text = text.replace("\r\n", "\n")
            document = _document(os.path.relpath(path, root), "", text, number, summary, options)
            documents += [document] if document else []
        if volume >= size:
            yield Block(0, "documents", (documents, summary), source.name, done=done)
            documents, summary, volume = [], ReadSummary(source.name), 0
    yield Block(0, "documents", (documents, summary), source.name, done=done)


def _hub_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    name, *rest = source.name.removeprefix("hf:").split(":")
    config, split = (rest + [None, None])[:2]
    try:
        import datasets

        rows = iter(datasets.load_dataset(name, config or None, split=split or "train", streaming=True))
        first = next(rows, None)
    except Exception as error:  # network, name, split, configuration: one cause to a person
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{source.name}: the dataset could not be opened ({reason}); write hf:owner/name[:config[:split]]") from None
    if first is None:
        raise UserError(f"{source.name}: the dataset is empty")
    chosen, guesses = _choose({key: _mean([value]) for key, value in first.items()}, source, options)
    documents, summary, volume = [], ReadSummary(source.name, guesses=guesses), 0
    for number, row in enumerate(itertools.chain([first], rows), 1):
        summary.lines += 1
        document = _from_record(number, row, chosen, summary, options)
        if document:
            documents.append(document)
            volume += len(document.text)
        if volume >= size:
            yield Block(0, "documents", (documents, summary), source.name)
            documents, summary, volume = [], ReadSummary(source.name), 0
    yield Block(0, "documents", (documents, summary), source.name)


def _environment_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    from foretext.text.environment import read_environment

    found, summary = read_environment(workers=workers)
    documents, volume = [], 0
    summary.accepted = 0  # counted again below, block by block
    for entry in found:
        documents.append(Document(entry.name, "", entry.text))
        volume += len(entry.text)
        if volume >= size:
            yield Block(0, "documents", (documents, replace(summary, accepted=len(documents))), source.name)
            documents, summary, volume = [], ReadSummary(source.name), 0
    yield Block(0, "documents", (documents, replace(summary, accepted=len(documents))), source.name)


_READERS = {"txt": _line_blocks, "jsonl": _line_blocks, "tsv": _line_blocks, "csv": _csv_blocks, "parquet": _arrow_blocks,
            "arrow": _arrow_blocks, "file": _file_blocks, "hub": _hub_blocks, "environment": _environment_blocks}


# ------------------------------------------------------------------------------------------------------------------ parsing


def read_block(block: Block, options: ReadOptions = ReadOptions()) -> tuple[list[Document], ReadSummary]:
    """Parse one block.

    Raises:
        UserError: a defect that the options do not skip, with file:line.
    """
    if block.kind == "documents":
        return block.payload
    summary = ReadSummary(block.name)
    summary.add(block.summary)
    if block.kind == "arrow":
        return _read_arrow(block, summary, options), summary
    documents = []
    for line, text in _decoded(block, summary, options):
        if block.kind in ("lines", "blocks"):
            document = _document(f"{block.name}:{line}", "", text, line, summary, options)
        elif block.kind == "tsv":
            document = _from_columns(line, text.split("\t"), block.fields, "extra_tab", summary, options)
        else:
            document = _from_json(line, text, block.fields, summary, options)
        if document:
            documents.append(document)
    return documents, summary


def read_documents(inputs: str | Path | Sequence[str | Path], options: ReadOptions = ReadOptions(),
                   summaries: list[ReadSummary] | None = None) -> Iterator[Document]:
    """Documents of the inputs in order, in this process.

    Args:
        summaries: filled with one `ReadSummary` per source while the iterator runs.

    Raises:
        UserError: as `find_sources` and `read_block`; also when a source holds no document or lost too many.
    """
    sources = find_sources(inputs, options)
    collected = [ReadSummary(source.name) for source in sources]
    if summaries is not None:
        summaries.extend(collected)
    for block in blocks(sources, options):
        documents, summary = read_block(block, options)
        collected[block.source].add(summary)
        yield from documents
    for summary in collected:
        summary.check(options)


def _decode(raw: bytes, line: int, summary: ReadSummary, options: ReadOptions, place: str = "") -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = repr(raw[error.start:error.start + 20])
        where = f" of {place}" if place else ""
        summary.problem("non_utf8", line, f"expected UTF-8, found {found} at byte {error.start}{where}", options)
        return None


def _decoded(block: Block, summary: ReadSummary, options: ReadOptions) -> Iterator[tuple[int, str]]:
    """Line number and text of each record, blank ones counted and left out."""
    payload = block.payload
    if block.kind == "blocks":
        line = block.first
        parts = re.split(rb"(\n(?:[ \t\r]*\n)+)", payload)
        for i in range(0, len(parts), 2):
            part = parts[i]
            stripped = part.lstrip(b" \t\r\n")
            text = _decode(stripped, line, summary, options) if stripped else None
            if text is not None:
                if "\r\n" in text or text.endswith("\r"):
                    summary.note("crlf", line, options, text.count("\r\n") + text.endswith("\r"))
                    text = text.replace("\r\n", "\n").removesuffix("\r")
                yield line + part[:len(part) - len(stripped)].count(b"\n"), text
            line += part.count(b"\n") + (parts[i + 1].count(b"\n") if i + 1 < len(parts) else 0)
        summary.lines += payload.count(b"\n") + (not payload.endswith(b"\n"))
        return
    raws: Iterable[bytes | str]
    try:
        raws = payload.decode("utf-8").split("\n")  # one decode for all lines; only a faulty block goes line by line
    except UnicodeDecodeError:
        raws = payload.split(b"\n")
    raws = raws[:-1] if not raws[-1] else raws
    for line, raw in enumerate(raws, block.first):
        summary.lines += 1
        text = raw if isinstance(raw, str) else _decode(raw, line, summary, options)
        if text is None:
            continue
        if text.endswith("\r"):
            summary.note("crlf", line, options)
            text = text[:-1]
        if not text or text.isspace():
            summary.note("blank_line", line, options)
            continue
        yield line, text


def _document(name: str, title: Any, text: Any, line: int, summary: ReadSummary, options: ReadOptions) -> Document | None:
    values = []
    for what, value in (("title", title), ("text", text)):
        if value is None:
            summary.note("null_text", line, options)
            value = ""
        elif not isinstance(value, str):
            summary.problem("text_type", line, f"expected a string as {what}, found {type(value).__name__} {str(value)[:80]}", options)
            return None
        if "\0" in value:
            summary.note("nul", line, options, value.count("\0"))
            value = value.replace("\0", "")
        values.append(value)
    if not values[1] or values[1].isspace():
        summary.note("empty_doc", line, options)
        return None
    summary.accepted += 1
    return Document(name, values[0], values[1])


def _from_columns(line: int, row: list[str], fields: dict[str, Any], too_many: str, summary: ReadSummary,
                  options: ReadOptions) -> Document | None:
    if len(row) != fields["columns"]:
        summary.problem(too_many if len(row) > fields["columns"] else "column_count", line,
                        f"expected {fields['columns']} columns, found {len(row)}: {' | '.join(row)[:80]}", options)
        return None
    name = row[fields["id"]] if fields["id"] is not None else f"{summary.source}:{line}"
    return _document(name, row[fields["title"]] if fields["title"] is not None else "", row[fields["text"]], line, summary, options)


def _from_json(line: int, text: str, fields: dict[str, Any], summary: ReadSummary, options: ReadOptions) -> Document | None:
    try:
        record = json.loads(text)
    except ValueError as error:
        found = text[:80]
        summary.problem("truncated_json", line, f"expected a whole JSON object on the line, found {found!r} ({error})", options)
        return None
    if not isinstance(record, dict):
        summary.problem("missing_key", line, f"expected a JSON object with the key {fields['text']!r}, found {text[:80]}", options)
        return None
    return _from_record(line, record, fields, summary, options)


def _from_record(line: int, record: Mapping[str, Any], fields: Mapping[str, Any], summary: ReadSummary,
                 options: ReadOptions) -> Document | None:
    if fields["text"] not in record:
        found = ", ".join(record) or "none"
        summary.problem("missing_key", line, f"expected the key {fields['text']!r}, found the keys {found[:200]}", options)
        return None
    name = record.get(fields["id"]) if fields["id"] is not None else None
    if isinstance(name, int | float) and not isinstance(name, bool):
        summary.note("numeric_id", line, options)
    name = f"{summary.source}:{line}" if name is None else str(name)
    title = record.get(fields["title"], "") if fields["title"] is not None else ""
    return _document(name, title, record[fields["text"]], line, summary, options)


def _read_arrow(block: Block, summary: ReadSummary, options: ReadOptions) -> list[Document]:
    import pyarrow as pa

    if block.payload is None:
        return []
    documents, line = [], block.first
    with pa.ipc.open_stream(block.payload) as reader:
        for batch in reader:
            for record in batch.to_pylist():
                summary.lines += 1
                document = _from_record(line, record, block.fields, summary, options)
                if document:
                    documents.append(document)
                line += 1
    return documents
