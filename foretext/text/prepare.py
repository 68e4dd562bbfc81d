"""From files to a token store: read, drop exact duplicates, cut into sentences, tokenize, pack into rows, write.

The input is cut into numbered blocks (`corpus.blocks`). Each block becomes one part file in a work folder beside the output, made by
whichever process is free; the store is then written from the parts in order. So the bytes do not depend on the number of
processes, a killed run continues with the parts it has, and shards of one corpus are simply disjoint sets of parts.

Legend: a unit is a sentence, or a word of a sentence too long for a row.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json, refuse_existing, whole_folder, write_json
from foretext.progress import duration, progress
from foretext.summary import ReadSummary
from foretext.text.corpus import BLOCK_BYTES, Block, Document, ReadOptions, Source, blocks, find_sources, read_block
from foretext.text.duplicates import words_key
from foretext.text.store import STATISTICS, merge_parts, read_notes, write_part
from foretext.text.tokenizer import KINDS, Tokenizer

PART_VERSION = 2  # raise it when the same input would give other parts
BATCH_CHARACTERS = 100_000  # text handed to the tokenizer at a time: its results take about 100 times the memory of the ids
SAMPLE_BYTES = 50_000_000  # text that a tokenizer is trained on; more changes few entries and costs seconds per 10 MB

ABBREVIATION = re.compile(r"(?:^|[\s(\[])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|cf|ca|Fig|Eq|Sec|No|Vol|pp?|al|[eE]\.g|[iI]\.e)\.$")
SENTENCE_END = re.compile(  # one leading set and then conditions on it: the engine skips to candidates five times faster
    r"""[.!?…。！？\n](?:(?<=[.!?…])[.!?…]*[)\]"'”’»]*(?=\s+[^\sa-z])|(?<=[。！？])[。！？]*[」』”）]*(?=\S)|(?<=\n)\s*\n)""")


@dataclass(frozen=True)
class Report:
    """What `prepare` made; `print(report)` is meant for people.

    Attributes:
        counts: documents, rows, tokens, duplicates, too_short, long_sentences, length_histogram, ... as in the manifest.
        sources: one summary of reading per source.
        seconds, megabytes_per_second: of this run (text bytes of the kept documents); a continued run counts only its own seconds.
        continued: blocks that an earlier, interrupted run had done.
    """

    output: Path
    counts: dict[str, Any]
    sources: list[ReadSummary]
    vocabulary: int
    seconds: float
    continued: int = 0

    @property
    def tokens_per_word(self) -> float:
        """Tokens per blank-separated word of the kept documents."""
        return self.counts["tokens"] / max(self.counts["words"], 1)

    @property
    def megabytes_per_second(self) -> float:
        """Megabytes of document text per second, everything included."""
        return self.counts["bytes"] / 1e6 / max(self.seconds, 1e-9)

    def lines(self) -> list[str]:
        """The report, one fact per line."""
        c = self.counts
        shown = [line for source in self.sources[:10] for line in source.report()]
        shown += [f"... and {len(self.sources) - 10} more sources"] if len(self.sources) > 10 else []
        shown.append(f"documents: {c['documents']:,} kept, {c['duplicates']:,} exact duplicates removed, {c['too_short']:,} too short")
        shown.append(f"rows: {c['rows']:,} of {c['tokens']:,} tokens; {self.tokens_per_word:.2f} tokens per word; "
                     f"vocabulary {self.vocabulary:,}")
        cut = [f"{c[name]:,} {text}" for name, text in (("long_sentences", "sentences longer than a row, split at word ends"),
                                                        ("long_words", "words longer than a row, split"),
                                                        ("long_titles", "titles too long, taken as text"),
                                                        ("short_tokens", "tokens in last rows too short to keep")) if c[name]]
        shown += [", ".join(cut)] if cut else []
        largest = max(c["length_histogram"].values())
        for name, count in c["length_histogram"].items():
            shown.append(f"  {name:>11} tokens {count:>10,} rows {'█' * round(30 * count / largest)}")
        again = f", {self.continued:,} blocks taken over from an interrupted run" if self.continued else ""
        shown.append(f"{c['bytes'] / 1e6:,.1f} MB of text in {duration(self.seconds)} ({self.megabytes_per_second:.1f} MB/s){again}")
        shown.append(f"store: {self.output}")
        return shown

    def __str__(self) -> str:
        return "\n".join(self.lines())


def prepare(inputs: str | Path | Sequence[str | Path], output: str | Path, *, tokenizer: "str | Path | Tokenizer | None" = None,
            tokenizer_kind: str = "wordpiece", vocab_size: int = 30_528, lowercase: bool = True, max_tokens: int = 510,
            min_tokens: int = 8, text_field: str | None = None, title_field: str | None = None, id_field: str | None = None,
            layout: str = "auto", skip: Sequence[str] = (), strict: Sequence[str] = (), max_skip_share: float = 0.05,
            shard: tuple[int, int] | None = None, workers: int | None = None, overwrite: bool = False,
            sample_bytes: int = SAMPLE_BYTES, block_bytes: int = BLOCK_BYTES) -> Report:
    """Read `inputs` and write a token store to `output`; run it again after an interruption and it continues.

    Args:
        inputs: anything `corpus.find_sources` knows.
        tokenizer: a folder, hub id or `Tokenizer`; None trains one of `tokenizer_kind` and `vocab_size` on an even sample.
        max_tokens: longest row, special tokens not included (510 + [CLS] + [SEP] = 512).
        min_tokens: shortest last row of a document that is kept; shorter ones are counted.
        shard: (i, n) with 1 <= i <= n does every n-th block and writes a shard, for `merge_stores`.
        workers: processes; None takes every core of this process.
        sample_bytes: raw input bytes that a new tokenizer is trained on, evenly spread over the corpus (a hub stream: its start).
        block_bytes: raw input bytes per unit of work; part of the settings, since duplicates inside a block are dropped there.

    Raises:
        UserError: anything about inputs, fields, tokenizer or output that a person can mend.
    """
    start, output = time.monotonic(), Path(output)
    options = ReadOptions(text_field, title_field, id_field, layout, tuple(skip), tuple(strict), max_skip_share)
    _check_settings(max_tokens, min_tokens, shard, tokenizer, tokenizer_kind)
    refuse_existing(output, overwrite)
    workers = workers or len(os.sched_getaffinity(0))
    sources = find_sources(inputs, options)
    given = tokenizer if isinstance(tokenizer, Tokenizer) or tokenizer is None else Tokenizer.load(tokenizer)
    settings = {
        "inputs": [{"name": source.name, "kind": source.kind, "bytes": source.size} for source in sources], "reading": asdict(options),
        "tokenizer": given.fingerprint if given else {"kind": tokenizer_kind, "vocab_size": vocab_size, "lowercase": lowercase,
                                                      "sample_bytes": sample_bytes},
        "max_tokens": max_tokens, "min_tokens": min_tokens, "block_bytes": block_bytes,
    }
    with _work_folder(output, {**settings, "shard": shard, "state": _state(sources)}) as work:
        cut = _remembered(sources, options, block_bytes, workers)
        if not (work / "tokenizer").is_dir():
            if given is None:
                given = Tokenizer.train(_sample(cut(), options, sample_bytes), tokenizer_kind, vocab_size, lowercase)
            with whole_folder(work / "tokenizer") as folder:
                given.save(folder, max_len=max_tokens + 2, token_types=given.specials["cls"] == "[CLS]")
        used = Tokenizer.load(work / "tokenizer")
        parts, continued = _make_parts(cut(), sources, work / "parts", used, options, max_tokens, min_tokens, shard, workers)
        if shard:
            with whole_folder(output, overwrite) as folder:
                shutil.copytree(work / "tokenizer", folder / "tokenizer")
                (folder / "parts").mkdir()
                for part in parts:
                    try:
                        os.link(part, folder / "parts" / part.name)
                    except OSError:  # a file system without hard links
                        shutil.copyfile(part, folder / "parts" / part.name)
                write_json(folder / "shard.json", {"shard": list(shard), "settings": settings, "tokenizer": used.fingerprint,
                                                   "sources": [source.name for source in sources]})
            counts, summaries = _preview(parts, sources, options)
        else:
            names = [source.name for source in sources]
            counts, summaries = _write_store(parts, names, used, output, work, settings, options, overwrite)
        report = Report(output, counts, summaries, used.size, time.monotonic() - start, continued)
        shutil.rmtree(work, ignore_errors=True)
    return report


def merge_stores(shards: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> Report:
    """Join all shards of one corpus into the store that a single run would have written, byte for byte.

    Raises:
        UserError: a shard is missing, given twice, or was made from other inputs or settings.
    """
    start, output = time.monotonic(), Path(output)
    refuse_existing(output, overwrite)
    known: dict[int, tuple[Path, dict[str, Any]]] = {}
    for path in map(Path, shards):
        if not (path / "shard.json").is_file():
            raise UserError(f"{path}: not a shard (shard.json is missing); make shards with --shard i/n")
        about = read_json(path / "shard.json")
        number = about["shard"][0]
        if number in known:
            raise UserError(f"{path}: shard {number} is given twice (also {known[number][0]})")
        known[number] = (path, about)
    if not known:
        raise UserError("no shard given: name the folders that --shard i/n wrote")
    path, about = next(iter(known.values()))
    for other, its in known.values():
        for what in ("settings", "tokenizer", "sources"):
            if its[what] != about[what] or its["shard"][1] != about["shard"][1]:
                raise UserError(f"{other}: its {what} differ from those of {path}; make all shards from the same inputs, "
                                "with the same settings and tokenizer")
    missing = sorted(set(range(1, about["shard"][1] + 1)) - set(known))
    if missing:
        raise UserError(f"shard {', '.join(map(str, missing))} of {about['shard'][1]} is missing: name all shards")
    parts = sorted((part for folder, _ in known.values() for part in (folder / "parts").glob("*.npz")), key=lambda part: part.name)
    if [part.name for part in parts] != [_part_name(i) for i in range(len(parts))]:
        raise UserError(f"the shards lack some of their parts (found {len(parts)}); make them again")
    tokenizer = Tokenizer.load(path / "tokenizer")
    settings = about["settings"]
    options = ReadOptions(**settings["reading"])
    with _work_folder(output, {"merge": settings}) as work:
        counts, summaries = _write_store(parts, about["sources"], tokenizer, output, work, settings, options, overwrite)
        shutil.rmtree(work, ignore_errors=True)
    return Report(output, counts, summaries, tokenizer.size, time.monotonic() - start)


def _check_settings(max_tokens: int, min_tokens: int, shard: tuple[int, int] | None, tokenizer: Any, kind: str) -> None:
    if not 1 <= min_tokens <= max_tokens // 2:
        raise UserError(f"min_tokens={min_tokens} must be at least 1 and at most half of max_tokens={max_tokens}")
    if shard and not 1 <= shard[0] <= shard[1]:
        raise UserError(f"shard {shard[0]}/{shard[1]}: write i/n with 1 <= i <= n")
    if tokenizer is None and kind not in KINDS:
        raise UserError(f"tokenizer kind {kind!r} is unknown: choose one of {', '.join(KINDS)}")


# --------------------------------------------------------------------------------------------------------------- work folder


def _state(sources: Sequence[Source]) -> list[Any]:
    """What a continued run must find unchanged."""
    from foretext.text.environment import environment_state

    return [environment_state() if source.kind == "environment" else
            [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in source.paths] for source in sources]


@contextlib.contextmanager
def _work_folder(output: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """The folder beside `output` where parts wait; emptied if it belongs to other settings or inputs."""
    work = output.parent / f".{output.name}.work"
    fingerprint = hashlib.sha256(json.dumps([PART_VERSION, settings], sort_keys=True).encode()).hexdigest()
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by workers
        except OSError:
            raise UserError(f"{output}: another process is preparing this output; wait for it, or name another output") from None
        if not (work / "fingerprint").is_file() or (work / "fingerprint").read_text() != fingerprint:
            for entry in work.iterdir():
                if entry.name != "lock":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            (work / "fingerprint").write_text(fingerprint)
        (work / "parts").mkdir(exist_ok=True)
        yield work


def _part_name(number: int) -> str:
    return f"{number:09d}.npz"


def _remembered(sources: Sequence[Source], options: ReadOptions, block_bytes: int, workers: int) -> Callable[[], Iterator[Block]]:
    """A function that starts the blocks from the beginning, parsing the environment only the first time."""
    if not any(source.kind == "environment" for source in sources):
        return lambda: blocks(sources, options, block_bytes, workers)
    kept = list(blocks([s for s in sources if s.kind == "environment"][:1], options, block_bytes, workers))

    def again() -> Iterator[Block]:
        number = 0
        for index, source in enumerate(sources):
            for block in kept if source.kind == "environment" else blocks([source], options, block_bytes, workers):
                yield Block(**{**block.__dict__, "source": index, "number": number})
                number += 1

    return again


# ----------------------------------------------------------------------------------------------------------- tokenizer sample


def _sample(all_blocks: Iterator[Block], options: ReadOptions, limit: int) -> list[str]:
    """Text of every m-th block, the smallest power of two m with at most about `limit` raw bytes; memory stays bounded."""
    kept: dict[int, tuple[Block, int]] = {}
    every, volume = 1, 0
    with progress("sampling for the tokenizer", None) as advance:
        for block in all_blocks:
            if block.number % every:
                continue
            size = _volume(block)
            kept[block.number] = (block, size)
            volume += size
            advance(1)
            if volume > limit and block.name.startswith("hf:"):
                break  # a stream is not downloaded twice for the sake of a sample
            while volume > limit and len(kept) > 1:
                every *= 2
                kept = {number: entry for number, entry in kept.items() if number % every == 0}
                volume = sum(size for _, size in kept.values())
    texts = []
    for number in list(kept):
        documents, _ = read_block(kept.pop(number)[0], options)
        texts += [text for document in documents for text in (document.title, document.text) if text]
    if not texts:
        raise UserError("the input holds no text to train a tokenizer on: every document is empty")
    return texts


def _volume(block: Block) -> int:
    if block.kind == "documents":
        return sum(len(document.text) for document in block.payload[0])
    return len(block.payload or b"")


# -------------------------------------------------------------------------------------------------------------------- parts

_worker: dict[str, Any] = {}  # what each process needs for every block, set once


def _start_worker(tokenizer: Tokenizer, options: ReadOptions, max_tokens: int, min_tokens: int, folder: Path, parent: int) -> None:
    if os.getpid() != parent:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    _worker.update(tokenizer=tokenizer, options=options, max_tokens=max_tokens, min_tokens=min_tokens, folder=folder)


def _die_with(parent: int) -> None:
    """End this process when its parent is gone: a killed parent cannot tell its workers, and they would wait for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do_block(block: Block) -> None:
    documents, summary = read_block(block, _worker["options"])
    arrays, counts = encode_documents(documents, _worker["tokenizer"], _worker["max_tokens"], _worker["min_tokens"])
    notes = {"documents": len(arrays["keys"]), "counts": counts, "source": block.source, "summary": summary.as_dict()}
    write_part(_worker["folder"] / _part_name(block.number), arrays, notes)


def _make_parts(all_blocks: Iterator[Block], sources: Sequence[Source], folder: Path, tokenizer: Tokenizer, options: ReadOptions,
                max_tokens: int, min_tokens: int, shard: tuple[int, int] | None, workers: int) -> tuple[list[Path], int]:
    """Make the part files that are missing; returns all of them in order and how many were there already."""
    parts, continued, at = [], 0, 0
    total = sum(source.size for source in sources)
    before: dict[int, int] = collections.defaultdict(int)
    with _processes(workers, (tokenizer, options, max_tokens, min_tokens, folder, os.getpid())) as (submit, finish), \
            progress("tokenizing (bytes read)", total or None) as advance:
        for block in all_blocks:
            at, before[block.source] = block.done - before[block.source], block.done
            part = folder / _part_name(block.number)
            if shard and block.number % shard[1] != shard[0] - 1:
                continue
            parts.append(part)
            if read_notes(part) is not None:
                continued += 1
            else:
                submit(block)
            advance(at)
        finish()
    return parts, continued


@contextlib.contextmanager
def _processes(workers: int, setup: tuple) -> Iterator[tuple[Callable[[Block], None], Callable[[], None]]]:
    """Give `submit(block)`, which waits while enough blocks are under way, and `finish()`, which waits for all.

    One process per core with the tokenizer's own threads off: reading, cutting and packing are Python and would hold the cores up
    between calls of one threaded tokenizer.
    """
    previous = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        if workers == 1:
            _start_worker(*setup)
            yield _do_block, lambda: None
            return
        method = "fork" if sys.platform == "linux" else "spawn"
        waiting: collections.deque = collections.deque()
        with ProcessPoolExecutor(workers, multiprocessing.get_context(method), _start_worker, setup) as pool:

            def wait_for(count: int) -> None:
                while len(waiting) > count:
                    waiting.popleft().result()

            def submit(block: Block) -> None:
                wait_for(2 * workers - 1)
                waiting.append(pool.submit(_do_block, block))

            try:
                yield submit, lambda: wait_for(0)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise UserError("a worker process was killed, often for want of memory; run the same command again to continue, "
                        "with fewer workers if it happens again") from None
    finally:
        if previous is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = previous


def split_sentences(text: str, longest: int) -> list[str]:
    """Cut a text after sentence ends and before blank lines; the pieces joined are the text again.

    White space stays at the start of the next piece, so that pieces tokenize as they would inside the whole text. A piece of more
    than `longest` characters is cut at its line ends too (lists, tables, verse).
    """
    pieces, start = [], 0
    for match in SENTENCE_END.finditer(text):
        first, stop = match.span()
        if text[first] == "\n":
            stop = first
            while stop > start and text[stop - 1].isspace():
                stop -= 1
        elif text[first] == "." and ABBREVIATION.search(text, max(first - 6, start), first + 1):
            continue
        if stop > start:
            pieces.append(text[start:stop])
            start = stop
    if start < len(text):
        pieces.append(text[start:])
    if any(len(piece) > longest for piece in pieces):
        pieces = [part for piece in pieces for part in (re.split(r"(?=\n)", piece) if len(piece) > longest else [piece]) if part]
    return pieces


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer, max_tokens: int,
                     min_tokens: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Documents -> the arrays of one part (`store.merge_parts`) and counts of what was left out.

    No token is lost but those of a document's last row when it is shorter than `min_tokens`; these are counted.
    """
    counts = {"duplicates": 0, "too_short": 0}
    seen: set[bytes] = set()
    unique = []
    for document in documents:
        words = f"{document.title} {document.text}".split()
        key = words_key(words)
        if key in seen:
            counts["duplicates"] += 1
        else:
            seen.add(key)
            unique.append((document, key, len(words)))
    packer = _Packer(tokenizer, max_tokens, min_tokens)
    batch, volume = [], 0
    for entry in unique:
        batch.append(entry)
        volume += len(entry[0].text)
        if volume >= BATCH_CHARACTERS:
            packer.add(batch)
            batch, volume = [], 0
    packer.add(batch)
    counts["too_short"] = packer.too_short
    return packer.arrays(), counts


class _Packer:
    """Collects the rows of one block."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, min_tokens: int):
        self.tokenizer, self.max, self.min = tokenizer, max_tokens, min_tokens
        self.dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
        self.tokens: list[np.ndarray] = []
        self.row_lengths: list[int] = []
        self.title_lengths: list[int] = []
        self.sentence_counts: list[int] = []
        self.sentence_starts: list[int] = []
        self.document_rows: list[int] = []
        self.keys: list[bytes] = []
        self.ids: list[bytes] = []
        self.statistics: list[list[int]] = []
        self.too_short = 0

    def add(self, batch: Sequence[tuple[Document, bytes, int]]) -> None:
        """Tokenize and pack some documents."""
        texts, titled = [], []
        for document, _, _ in batch:
            title, text = document.title.strip(), document.text.replace("\r\n", "\n").strip()
            texts.append(([title] if title else []) + split_sentences(text, 4 * self.max))
            titled.append(bool(title))
        ids, lengths = self.tokenizer.encode_pieces(texts)
        first_piece = first_token = 0
        for (document, key, words), pieces, has_title in zip(batch, texts, titled):
            units = lengths[first_piece:first_piece + len(pieces)]
            taken = int(units.sum())
            self._pack(document, key, words, ids[first_token:first_token + taken], units.tolist(), has_title)
            first_piece, first_token = first_piece + len(pieces), first_token + taken

    def _pack(self, document: Document, key: bytes, words: int, ids: np.ndarray, lengths: list[int], titled: bool) -> None:
        rows: list[tuple[int, list[int]]] = []  # (length, starts of sentences) of each row of this document
        length, starts = 0, []
        long_sentences = long_words = at = 0
        title = lengths[0] if titled else 0
        long_title = title > self.max // 2
        least = self.min if long_title else self.min + title  # a title never stays alone in its row
        for count in lengths:
            if count == 0:
                continue
            if length + count > self.max and least <= length and count <= self.max:
                rows.append((length, starts))
                length, starts, least = 0, [], self.min
            if length + count <= self.max:
                starts.append(length)
                length += count
            else:  # longer than a row, or the row before it would be too short to keep: continue word by word
                long_sentences += 1
                begun = False
                begins = np.append(np.flatnonzero(self.tokenizer.words.starts(ids[at:at + count])), count)
                for word in np.diff(begins).tolist():
                    if length == self.max or (length + word > self.max and least <= length and word <= self.max):
                        rows.append((length, starts))
                        length, starts, least, begun = 0, [0], self.min, True
                    if not begun:
                        starts.append(length)
                        begun = True
                    long_words += length + word > self.max
                    while length + word > self.max:
                        word -= self.max - length
                        rows.append((self.max, starts))
                        length, starts, least = 0, [0], self.min
                    length += word
            at += count
        short = length if length < self.min else 0
        if length and not short:
            rows.append((length, starts))
        if not rows:
            self.too_short += 1
            return
        self.tokens.append(ids[:len(ids) - short].astype(self.dtype))
        self.document_rows.append(len(rows))
        self.row_lengths += [row for row, _ in rows]
        self.title_lengths += [0 if long_title else title] + [0] * (len(rows) - 1)
        self.sentence_counts += [len(row) for _, row in rows]
        for _, row in rows:
            self.sentence_starts += row
        self.keys.append(key)
        self.ids.append(document.id.encode("utf-8", "surrogatepass"))
        size = len(document.title.encode("utf-8", "surrogatepass")) + len(document.text.encode("utf-8", "surrogatepass"))
        self.statistics.append([words, size, long_sentences, long_words, short, int(long_title)])

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything packed so far, as `store.merge_parts` wants it."""
        n = len(self.keys)
        return {
            "tokens": np.concatenate(self.tokens) if n else np.zeros(0, self.dtype),
            **{name: np.array(getattr(self, name), np.int32) for name in ("row_lengths", "title_lengths", "sentence_counts",
                                                                          "sentence_starts", "document_rows")},
            "keys": np.frombuffer(b"".join(self.keys), "<u8").reshape(n, 2),
            "ids": np.frombuffer(b"".join(self.ids), np.uint8),
            "id_lengths": np.array([len(name) for name in self.ids], np.int32),
            "statistics": np.array(self.statistics, np.int64).reshape(n, len(STATISTICS)),
        }


# ------------------------------------------------------------------------------------------------------------------- finish


def _summaries(parts: Sequence[Path], names: Sequence[str], options: ReadOptions) -> list[ReadSummary]:
    found = [ReadSummary(name, options.policy) for name in names]
    for part in parts:
        notes = read_notes(part)
        found[notes["source"]].add(ReadSummary.from_dict(notes["summary"]))
    return found


def _write_store(parts: Sequence[Path], names: Sequence[str], tokenizer: Tokenizer, output: Path, work: Path, settings: dict[str, Any],
                 options: ReadOptions, overwrite: bool) -> tuple[dict[str, Any], list[ReadSummary]]:
    summaries = _summaries(parts, names, options)
    for summary in summaries:
        summary.close()
    scratch = work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with whole_folder(output, overwrite) as folder, progress("writing the store (parts)", len(parts)) as advance:
        manifest = merge_parts(parts, tokenizer, folder, scratch, settings, [summary.as_dict() for summary in summaries],
                               settings["max_tokens"] + 2, advance)
    return manifest["counts"], summaries


def _preview(parts: Sequence[Path], sources: Sequence[Source], options: ReadOptions) -> tuple[dict[str, Any], list[ReadSummary]]:
    """Counts of a shard before duplicates of other blocks are known."""
    counts: collections.Counter = collections.Counter({"rows": 0, "tokens": 0, "documents": 0})
    histogram: collections.Counter = collections.Counter()
    for part in parts:
        with np.load(part) as arrays:
            statistics = arrays["statistics"].sum(0).tolist()
            lengths = arrays["row_lengths"]
        counts.update(dict(zip(STATISTICS, statistics)))
        notes = read_notes(part)
        counts.update(notes["counts"])
        counts.update(documents=notes["documents"], rows=len(lengths), tokens=int(lengths.sum()))
        histogram.update({"rows": len(lengths)})
    return {**counts, "length_histogram": dict(histogram) or {"rows": 0}}, _summaries(parts, [source.name for source in sources], options)
