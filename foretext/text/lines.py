"""Readers of plain text, jsonl and tsv: files that can be cut at line ends without being parsed.

Lines end at LF only: a lone CR, U+2028, U+0085 and a vertical tab are text.
"""

import re
from collections.abc import Iterable, Iterator

from foretext.archives import damage_is_a_sentence, decompressed
from foretext.summary import ReadSummary
from foretext.text.documents import Block, ReadOptions, Source, decode
from foretext.text.fields import json_fields, tsv_fields

BLANK_LINES = re.compile(rb"\n[ \t\r]*\n")
BOM = b"\xef\xbb\xbf"
PEEK_BYTES = 1 << 16  # how much of a file a guess may look at


def pieces(source: Source, size: int, end: re.Pattern[bytes] | None = None) -> Iterator[tuple[bytes, int]]:
    """Decompressed bytes cut after a line end (or inside the last match of `end`), each with the position on disk."""
    with damage_is_a_sentence(source.path), open(source.path, "rb") as raw, decompressed(raw, source.path) as stream:
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


def line_blocks(source: Source, options: ReadOptions, size: int, workers: int) -> Iterator[Block]:
    summary, fields, line, kind, header = ReadSummary(source.name, options.policy), {}, 1, source.kind, False
    head = next(pieces(source, PEEK_BYTES), (b"", 0))[0].removeprefix(BOM)  # at least one whole line, whatever the block size
    if kind == "txt":
        kind, guesses = _layout(head, options)
    elif kind == "jsonl":
        fields, guesses = json_fields(head, source, options)
    else:
        fields, guesses, header = tsv_fields(head, source, options)
    summary.guesses += guesses
    for piece, done in pieces(source, size, BLANK_LINES if kind == "blocks" else None):
        if line == 1 and piece.startswith(BOM):
            summary.note("bom", 1)
            piece = piece[len(BOM):]
        if header:
            head, _, piece = piece.partition(b"\n")
            if head.endswith(b"\r"):
                summary.note("crlf", 1)
            line, header = 2, False
        yield Block(0, kind, piece, source.name, line, fields, summary, done)
        summary = ReadSummary(source.name, options.policy)
        line += piece.count(b"\n")


def _layout(head: bytes, options: ReadOptions) -> tuple[str, list[str]]:
    if options.layout in ("lines", "blocks"):
        return options.layout, []
    lines = [line.strip() for line in head.strip().split(b"\n")]
    if sum(not line for line in lines) * 10 >= len(lines) and len(lines) > 1:
        return "blocks", ["layout: blocks between blank lines (guessed; layout=lines, blocks or file decides)"]
    return "lines", ["layout: a document per line (guessed; layout=lines, blocks or file decides)"]


def decoded_records(block: Block, summary: ReadSummary) -> Iterator[tuple[int, str]]:
    """Line number and text of each record, blank ones counted and left out."""
    payload = block.payload
    if block.kind == "blocks":
        line = block.first
        parts = re.split(rb"(\n(?:[ \t\r]*\n)+)", payload)
        for i in range(0, len(parts), 2):
            part = parts[i]
            stripped = part.lstrip(b" \t\r\n")
            text = decode(stripped, line, summary) if stripped else None
            if text is not None:
                if "\r\n" in text or text.endswith("\r"):
                    summary.note("crlf", line, count=text.count("\r\n") + text.endswith("\r"))
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
        text = raw if isinstance(raw, str) else decode(raw, line, summary)
        if text is None:
            continue
        if text.endswith("\r"):
            summary.note("crlf", line)
            text = text[:-1]
        if not text or text.isspace():
            summary.skip("blank_line", line)
            continue
        yield line, text
