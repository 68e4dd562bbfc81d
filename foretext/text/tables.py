"""Readers of csv, parquet and Arrow: files that need a parser before they can be cut."""

import csv
import tempfile
from collections.abc import Iterator
from typing import Any

from foretext.archives import COMPRESSIONS
from foretext.errors import UserError
from foretext.summary import ReadSummary
from foretext.text.documents import Block, Document, ReadOptions, Source, from_columns, from_record
from foretext.text.fields import choose_fields, table_fields
from foretext.text.lines import BOM, pieces


def csv_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    """Quoted line ends make csv impossible to cut without parsing, so it is parsed here."""
    csv.field_size_limit(2**31 - 1)
    summary, done, faults = ReadSummary(source.name, options.policy), 0, []

    def lines() -> Iterator[str]:
        nonlocal done
        number = 0
        for piece, done in pieces(source, size):  # noqa: B007
            for raw in piece.removesuffix(b"\n").split(b"\n"):
                number += 1
                if number == 1 and raw.startswith(BOM):
                    summary.note("bom", 1)
                    raw = raw[len(BOM):]
                if raw.endswith(b"\r"):
                    summary.note("crlf", number)
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
            documents, summary, volume = [], ReadSummary(source.name, options.policy), 0
        if row is None:
            return


def _csv_start(held: list, source: Source, options: ReadOptions, summary: ReadSummary) -> tuple[dict[str, Any], list]:
    first = next(i for i, (_, row, _) in enumerate(held) if row)
    fields, guesses, header = table_fields([row for _, row, _ in held if row], source, options)
    summary.guesses += guesses
    return fields, held[:first] + held[first + header:]


def _csv_row(line: int, row: list[str], fault: tuple[int, int] | None, fields: dict[str, Any], summary: ReadSummary,
             options: ReadOptions, documents: list[Document]) -> int:
    summary.lines += 1
    if not row:
        summary.skip("blank_line", line)
    elif fault:
        summary.error("non_utf8", fault[0], f"expected UTF-8, found another byte at byte {fault[1]}")
    else:
        document = from_columns(line, row, fields, "column_count", summary)
        documents += [document] if document else []
    return sum(map(len, row))


def arrow_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    import pyarrow as pa

    with tempfile.TemporaryFile() as spool:
        place: Any = str(source.path)
        if source.path.suffix in COMPRESSIONS:  # these formats are read from the end, so the archive must be unpacked first
            for piece, _ in pieces(source, size):
                spool.write(piece)
            spool.seek(0)
            place = spool
        try:
            schema, batches, total = _record_batches(source, place)
            chosen, guesses = _arrow_fields(schema, source, options)
            names = list(dict.fromkeys(name for name in chosen.values() if name is not None))
            summary = ReadSummary(source.name, options.policy, guesses=guesses)
            held, volume, row, seen = [], 0, 1, 0
            for batch in batches(names):
                for start in range(0, batch.num_rows, 1024):
                    part = batch.slice(start, 1024).select(names)
                    held.append(part)
                    volume += part.nbytes
                    seen += part.num_rows
                    if volume >= size:
                        yield Block(0, "arrow", _ipc(held), source.name, row, chosen, summary, source.size * seen // max(total or seen, 1))
                        held, volume, row, summary = [], 0, seen + 1, ReadSummary(source.name, options.policy)
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

    chosen, guesses = choose_fields({entry.name: float(is_text(entry.type)) for entry in schema}, source, options)
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


def read_arrow(block: Block, summary: ReadSummary) -> list[Document]:
    import pyarrow as pa

    if block.payload is None:
        return []
    documents, line = [], block.first
    with pa.ipc.open_stream(block.payload) as reader:
        for batch in reader:
            for record in batch.to_pylist():
                summary.lines += 1
                document = from_record(line, record, block.fields, summary)
                if document:
                    documents.append(document)
                line += 1
    return documents
