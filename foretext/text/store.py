"""The token store: a folder of memory-mapped arrays that `prepare` writes once and everything else reads.

Legend: N rows (chunks of documents), D documents, S sentences, T tokens.

`Store` reads it. `merge_parts` writes it from part files, one per block of the input, without ever holding more than one part;
documents that another document repeats word for word are left out there.
"""

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json, sha256, whole_file, write_json
from foretext.text.duplicates import find_duplicates
from foretext.text.tokenizer import Tokenizer

FORMAT, VERSION = "foretext-store", 1
COLUMNS = {  # file -> dtype; tokens are uint16 or uint32 by the size of the vocabulary
    "tokens.bin": None, "offsets.bin": np.int64, "documents.bin": np.int64, "title_lengths.bin": np.int32,
    "sentence_starts.bin": np.int32, "sentence_offsets.bin": np.int64, "document_ids.txt": np.uint8, "document_id_offsets.bin": np.int64,
}
EXAMPLES = "examples.bin"  # only in a store of turns: int64, 2 + EARLIER to an example
EARLIER = 10  # turns before the newest message: context/0 ... context/9 of PolyAI's datasets
HISTOGRAM_EDGES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
STATISTICS = ("words", "bytes", "long_sentences", "long_words", "short_tokens", "long_titles")  # per document, summed over those kept


class Store:
    """A prepared corpus; open it with `Store.open(path)`. Arrays are memory maps: opening costs nothing, whatever the size.

    Attributes:
        path: its folder.
        manifest: settings, counts, summaries of reading, sizes and hashes of the files.
        tokens: uint16 or uint32 (T,), all rows end to end, without special tokens.
        offsets: int64 (N+1,), row i is ``tokens[offsets[i]:offsets[i+1]]``.
        documents: int64 (N,), document number of each row; rows of one document follow each other.
        title_lengths: int32 (N,), how many tokens at the row's start are the title.
        sentence_starts: int32 (S,), starts of sentences within their row; the first of each row is 0.
        sentence_offsets: int64 (N+1,), row i's sentences are ``sentence_starts[sentence_offsets[i]:sentence_offsets[i+1]]``.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest

        def column(name: str) -> np.ndarray:
            dtype = np.dtype(manifest["token_dtype"] if name == "tokens.bin" else COLUMNS[name]).newbyteorder("<")
            return np.memmap(path / name, dtype, mode="r") if manifest["files"][name]["bytes"] else np.zeros(0, dtype)

        self.tokens, self.offsets, self.documents, self.title_lengths, self.sentence_starts, self.sentence_offsets, \
            self._ids, self._id_offsets = map(column, COLUMNS)

    @staticmethod
    def open(path: str | Path) -> "Store":
        """Open a store; sizes of its files are compared with the manifest (hashes: `verify`).

        Raises:
            UserError: nothing there, an unmerged shard, another version, or a file that changed.
        """
        path = Path(path)
        if (path / "shard.json").is_file():
            raise UserError(f"{path}: this is one shard of a corpus; merge all shards into a store first")
        if not (path / "manifest.json").is_file():
            raise UserError(f"{path}: no token store there (manifest.json is missing); make one with `foretext prepare`")
        manifest = read_json(path / "manifest.json")
        if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
            raise UserError(f"{path}: expected {FORMAT} version {VERSION}, found {manifest.get('format')} version "
                            f"{manifest.get('version')}; prepare the corpus again")
        for name, known in manifest["files"].items():
            found = (path / name).stat().st_size if (path / name).is_file() else None
            if found != known["bytes"]:
                raise UserError(f"{path / name}: changed: expected {known['bytes']:,} bytes as in the manifest, found "
                                f"{'no file' if found is None else f'{found:,}'}; prepare the corpus again")
        return Store(path, manifest)

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the manifest; a `UserError` (reason `changed`) names the first that differs."""
        for name, known in self.manifest["files"].items():
            if sha256(self.path / name) != known["sha256"]:
                raise UserError(f"{self.path / name}: changed: its SHA-256 differs from the manifest; prepare the corpus again")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose ids the store holds."""
        return Tokenizer.load(self.path / "tokenizer")

    @property
    def document_count(self) -> int:
        """D."""
        return len(self._id_offsets) - 1

    def __len__(self) -> int:
        return len(self.documents)

    @cached_property
    def examples(self) -> np.ndarray:
        """int64 (E, 2 + EARLIER) of a store of turns: rows of the newest message, the response and the earlier turns, most recent first.

        -1 where there is no earlier turn. All rows of an example belong to one document.

        Raises:
            UserError: the store was not made from dialogues.
        """
        if EXAMPLES not in self.manifest["files"]:
            raise UserError(f"{self.path}: holds no conversations; make a store of turns with `foretext prepare FILES --dialogues`")
        return np.memmap(self.path / EXAMPLES, "<i8", mode="r").reshape(-1, 2 + EARLIER)

    @property
    def pairs(self) -> bool:
        """Whether its rows are given pairs (`text/paired.py`), so that even short titles and bodies are meant."""
        return self.manifest["settings"]["reading"].get("pairs", False)

    def row(self, i: int) -> np.ndarray:
        """Token ids of row `i`, a view into `tokens`."""
        return self.tokens[self.offsets[i]:self.offsets[i + 1]]

    def sentences(self, i: int) -> np.ndarray:
        """Where the sentences of row `i` begin, counted from the row's start."""
        return self.sentence_starts[self.sentence_offsets[i]:self.sentence_offsets[i + 1]]

    def document_id(self, d: int) -> str:
        """The id the reader gave document `d`."""
        if not 0 <= d < self.document_count:
            raise IndexError(f"document {d} of {self.document_count}")
        return bytes(self._ids[self._id_offsets[d]:self._id_offsets[d + 1]]).decode("utf-8")

    def text(self, row: int) -> str:
        """Decoded text of a row, for a look (lower-cased and spaced as the tokenizer has it)."""
        return self.tokenizer.decode(self.row(row))

    def __reduce__(self):
        return Store.open, (self.path,)  # workers map the files again instead of receiving copies of them

    def __repr__(self) -> str:
        return f"Store({self.path}, {self.document_count:,} documents, {len(self):,} rows, {len(self.tokens):,} tokens)"


# -------------------------------------------------------------------------------------------------------------------- parts


def write_part(path: Path, arrays: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
    """Write one block's arrays (see `merge_parts`) and notes, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **arrays)
    with whole_file(path) as file:
        file.write(buffer.getbuffer())


def read_notes(path: Path) -> dict[str, Any] | None:
    """The notes of a part file; None where it is missing or broken."""
    try:
        with np.load(path) as part:
            return json.loads(part["notes"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


class _Column:
    """Appends arrays to a file and hashes them on the way."""

    def __init__(self, path: Path, dtype: np.dtype):
        self.file, self.dtype, self.hash, self.bytes = open(path, "wb"), np.dtype(dtype).newbyteorder("<"), hashlib.sha256(), 0  # noqa: SIM115

    def append(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self.dtype).tobytes()
        self.file.write(data)
        self.hash.update(data)
        self.bytes += len(data)


def merge_parts(parts: Sequence[Path], tokenizer: Tokenizer, folder: Path, scratch: Path, settings: dict[str, Any],
                sources: list[dict[str, Any]], max_len: int = 512, advance: Callable[..., None] = lambda *_: None) -> dict[str, Any]:
    """Write a store from part files, in their order, without documents that repeat an earlier one.

    Each part holds: ``tokens``; per row ``row_lengths, title_lengths, sentence_counts`` int32; ``sentence_starts`` int32;
    per document ``keys`` uint64 (n, 2), ``document_rows`` int32 (at least 1), ``id_lengths`` int32, ``statistics``
    int64 (n, len(STATISTICS)); ``ids`` uint8, all ids end to end. Parts of a store of turns also hold ``examples``
    (e, 2 + EARLIER), rows numbered within the part or -1, and ``example_counts`` per document.

    Returns:
        the manifest.

    Raises:
        UserError: no document is left.
    """
    extra: Counter[str] = Counter(duplicates=0, too_short=0)
    sizes = np.zeros(len(parts), np.int64)  # documents of each part; everything else is read when its turn comes
    for i, part in enumerate(parts):
        notes = read_notes(part) or {}
        sizes[i] = notes["documents"]
        extra.update(notes["counts"])

    def keys():
        for part in parts:
            with np.load(part) as arrays:
                yield arrays["keys"]

    duplicates = find_duplicates(keys(), int(sizes.sum()), scratch)
    token_dtype = np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)
    columns = {name: _Column(folder / name, token_dtype if dtype is None else dtype) for name, dtype in COLUMNS.items()}
    for name in ("offsets.bin", "sentence_offsets.bin", "document_id_offsets.bin"):
        columns[name].append(np.zeros(1))
    if settings.get("dialogues"):
        columns[EXAMPLES] = _Column(folder / EXAMPLES, np.int64)
        extra.update(examples=0, with_earlier_turns=0, cut_turns=0, unreadable_examples=0, repeated_examples=0)
    documents = rows = tokens = sentences = id_bytes = start = 0
    sums = np.zeros(len(STATISTICS), np.int64)
    histogram = np.zeros(0, np.int64)  # rows by length in tokens
    for part, size in zip(parts, sizes.tolist()):
        with np.load(part) as file:
            arrays = {name: file[name] for name in file.files if name != "notes"}
        keep = duplicates[start:start + size] == 0
        start += size
        keep_rows = np.repeat(keep, arrays["document_rows"])
        lengths, counts = arrays["row_lengths"][keep_rows], arrays["sentence_counts"][keep_rows]
        id_lengths = arrays["id_lengths"][keep]
        columns["tokens.bin"].append(arrays["tokens"][np.repeat(keep_rows, arrays["row_lengths"])])
        columns["sentence_starts.bin"].append(arrays["sentence_starts"][np.repeat(keep_rows, arrays["sentence_counts"])])
        columns["document_ids.txt"].append(arrays["ids"][np.repeat(keep, arrays["id_lengths"])])
        columns["offsets.bin"].append(tokens + np.cumsum(lengths, dtype=np.int64))
        columns["sentence_offsets.bin"].append(sentences + np.cumsum(counts, dtype=np.int64))
        columns["document_id_offsets.bin"].append(id_bytes + np.cumsum(id_lengths, dtype=np.int64))
        columns["documents.bin"].append(np.repeat(documents + np.arange(int(keep.sum())), arrays["document_rows"][keep]))
        columns["title_lengths.bin"].append(arrays["title_lengths"][keep_rows])
        if "examples" in arrays:
            examples = arrays["examples"][np.repeat(keep, arrays["example_counts"])]
            number = np.append(np.cumsum(keep_rows) - 1 + rows, -1)  # of each row in the store; the last entry keeps -1 what it is
            columns[EXAMPLES].append(number[examples])
            extra.update(examples=len(examples), with_earlier_turns=int((examples[:, 2:3] >= 0).sum()))
        documents, rows, tokens = documents + int(keep.sum()), rows + len(lengths), tokens + int(lengths.sum())
        sentences, id_bytes = sentences + int(counts.sum()), id_bytes + int(id_lengths.sum())
        sums += arrays["statistics"][keep].sum(0)
        found = np.bincount(lengths, minlength=len(histogram))
        found[:len(histogram)] += histogram
        histogram = found
        advance(1)
    for column in columns.values():
        column.file.close()
    if not rows:
        raise UserError("no document is left after reading: every one was empty or too short; look at the input or lower min_tokens")
    tokenizer.save(folder / "tokenizer", max_len=max_len, token_types=tokenizer.specials["cls"] == "[CLS]")
    files = {name: {"bytes": column.bytes, "sha256": column.hash.hexdigest()} for name, column in columns.items()}
    for path in sorted((folder / "tokenizer").iterdir()):
        files[f"tokenizer/{path.name}"] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    extra["duplicates"] += int(np.count_nonzero(duplicates))
    manifest = {
        "format": FORMAT, "version": VERSION, "settings": settings,
        "counts": {"documents": documents, "rows": rows, "tokens": tokens, "sentences": sentences, **extra,
                   **dict(zip(STATISTICS, sums.tolist())), "length_histogram": _binned(histogram)},
        "sources": sources, "tokenizer": tokenizer.fingerprint, "vocabulary": tokenizer.size,
        "token_dtype": token_dtype.name, "files": files,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _binned(histogram: np.ndarray) -> dict[str, int]:
    """Rows by length, in bins named by their limits ("9-16" tokens)."""
    bins, low = {}, 1
    for high in (*HISTOGRAM_EDGES, len(histogram)):
        count = int(histogram[low:high + 1].sum())
        if count:
            bins[f"{low}-{high}"] = count
        low = high + 1
    return bins
