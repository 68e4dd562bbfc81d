"""From files to documents: txt, jsonl, csv, tsv, parquet, arrow (plain, gz, zst, xz, bz2), folders, BEIR, saved and hub datasets.

`find_sources` says what the inputs are, `blocks` cuts them into numbered blocks that any process can parse with `read_block`, and
`read_documents` does all of it in one process. The formats are in `lines.py` and `tables.py`, the shapes in `documents.py`.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from foretext.errors import UserError
from foretext.summary import ReadSummary
from foretext.text.documents import (
    DEFAULT_OPTIONS,
    Block,
    Document,
    ReadOptions,
    Source,
    decode,
    from_columns,
    from_json,
    from_record,
    make_document,
)
from foretext.text.environment import read_environment
from foretext.text.fields import choose_fields, mean_length
from foretext.text.lines import BOM, decoded_records, line_blocks, pieces
from foretext.text.sources import find_sources
from foretext.text.tables import arrow_blocks, csv_blocks, read_arrow

__all__ = ["BLOCK_BYTES", "Block", "Document", "ReadOptions", "Source", "blocks", "find_sources", "read_block", "read_documents"]

BLOCK_BYTES = 2_000_000  # raw bytes of one block: a second or so of tokenizing, so that cores stay even and a kill costs little


def blocks(sources: Sequence[Source], options: ReadOptions = DEFAULT_OPTIONS, block_bytes: int = BLOCK_BYTES,
           workers: int = 1) -> Iterator[Block]:
    """Cut sources into blocks of about `block_bytes`, numbered from 0; the cut depends on nothing but sources and options."""
    number = 0
    for index, source in enumerate(sources):
        for block in READERS[source.kind](source, options, block_bytes, workers):
            yield replace(block, source=index, name=source.name, number=number)
            number += 1


def read_block(block: Block, options: ReadOptions = DEFAULT_OPTIONS) -> tuple[list[Document], ReadSummary]:
    """Parse one block.

    Raises:
        UserError: a defect that the options do not skip, with file:line.
    """
    if block.kind == "documents":
        return block.payload
    summary = ReadSummary(block.name, options.policy)
    summary.add(block.summary)
    if block.kind == "arrow":
        return read_arrow(block, summary), summary
    documents = []
    for line, text in decoded_records(block, summary):
        if block.kind in ("lines", "blocks"):
            document = make_document(f"{block.name}:{line}", "", text, line, summary)
        elif block.kind == "tsv":
            document = from_columns(line, text.split("\t"), block.fields, "extra_tab", summary)
        else:
            document = from_json(line, text, block.fields, summary)
        if document:
            documents.append(document)
    return documents, summary


def read_documents(inputs: str | Path | Sequence[str | Path], options: ReadOptions = DEFAULT_OPTIONS,
                   summaries: list[ReadSummary] | None = None) -> Iterator[Document]:
    """Documents of the inputs in order, in this process.

    Args:
        summaries: filled with one `ReadSummary` per source while the iterator runs.

    Raises:
        UserError: as `find_sources` and `read_block`; also when a source holds no document or lost too many.
    """
    sources = find_sources(inputs, options)
    collected = [ReadSummary(source.name, options.policy) for source in sources]
    if summaries is not None:
        summaries.extend(collected)
    for block in blocks(sources, options):
        documents, summary = read_block(block, options)
        collected[block.source].add(summary)
        yield from documents
    for summary in collected:
        summary.close()


def _file_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    documents, summary, volume, done = [], ReadSummary(source.name, options.policy), 0, 0
    root = os.path.commonpath([path.parent for path in source.paths])
    for number, path in enumerate(source.paths, 1):
        raw = b"".join(piece for piece, _ in pieces(Source(path.name, "file", (path,)), size))
        done += path.stat().st_size
        volume += len(raw)
        summary.lines += 1
        if raw.startswith(BOM):
            summary.note("bom", number)
            raw = raw[len(BOM):]
        text = decode(raw, number, summary, str(path))
        if text is not None:
            if "\r\n" in text:
                summary.note("crlf", number, count=text.count("\r\n"))
                text = text.replace("\r\n", "\n")
            document = make_document(os.path.relpath(path, root), "", text, number, summary)
            documents += [document] if document else []
        if volume >= size:
            yield Block(0, "documents", (documents, summary), source.name, done=done)
            documents, summary, volume = [], ReadSummary(source.name, options.policy), 0
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
    chosen, guesses = choose_fields({key: mean_length([value]) for key, value in first.items()}, source, options)
    documents, summary, volume = [], ReadSummary(source.name, options.policy, guesses=guesses), 0
    for number, row in enumerate(itertools.chain([first], rows), 1):
        summary.lines += 1
        document = from_record(number, row, chosen, summary)
        if document:
            documents.append(document)
            volume += len(document.text)
        if volume >= size:
            yield Block(0, "documents", (documents, summary), source.name)
            documents, summary, volume = [], ReadSummary(source.name, options.policy), 0
    yield Block(0, "documents", (documents, summary), source.name)


def _environment_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    found, summary = read_environment(workers=workers)
    documents, volume = [], 0
    summary.accepted = 0  # counted again below, block by block
    for entry in found:
        documents.append(Document(entry.name, "", entry.text))
        volume += len(entry.text)
        if volume >= size:
            yield Block(0, "documents", (documents, replace(summary, accepted=len(documents))), source.name)
            documents, summary, volume = [], ReadSummary(source.name, options.policy), 0
    yield Block(0, "documents", (documents, replace(summary, accepted=len(documents))), source.name)


READERS = {"txt": line_blocks, "jsonl": line_blocks, "tsv": line_blocks, "csv": csv_blocks, "parquet": arrow_blocks,
           "arrow": arrow_blocks, "file": _file_blocks, "hub": _hub_blocks, "environment": _environment_blocks}
