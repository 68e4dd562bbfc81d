"""From files to a token store: read, drop exact duplicates, cut into sentences, tokenize, pack into rows, write.

The input is cut into numbered blocks (`corpus.blocks`). Each block becomes one part file in a work folder beside the output, made by
whichever process is free; the store is then written from the parts in order. So the bytes do not depend on the number of
processes, a killed run continues with the parts it has, and shards of one corpus are simply disjoint sets of parts.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json, refuse_existing, whole_folder, write_json
from foretext.progress import duration, progress
from foretext.summary import ReadSummary
from foretext.text.corpus import BLOCK_BYTES, Block, ReadOptions, Source, blocks, find_sources, read_block
from foretext.text.dialogues import conversation_blocks, dialogue_sources
from foretext.text.parts import make_parts, part_name
from foretext.text.store import STATISTICS, merge_parts, read_notes
from foretext.text.tokenizer import KINDS, Tokenizer

PART_VERSION = 2  # raise it when the same input would give other parts
SAMPLE_BYTES = 50_000_000  # text that a tokenizer is trained on; more changes few entries and costs seconds per 10 MB


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
        if "examples" in c:
            shown.append(f"conversations: a document is a thread, a row is a turn; {c['examples']:,} examples (message -> response), "
                         f"{c['with_earlier_turns']:,} of them with earlier turns")
            shown += [f"{c['repeated_examples']:,} examples repeated in their thread, left out"] if c["repeated_examples"] else []
            shown += [f"{c['cut_turns']:,} turns cut to a row"] if c["cut_turns"] else []
            shown += [f"{c['unreadable_examples']:,} examples of turns without a token"] if c["unreadable_examples"] else []
        if "cut_sides" in c:
            shown.append(f"pairs: the source is the row's title, the target its text; {c['cut_sides']:,} sides cut to the longest")
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
            dialogues: bool = False, pairs: bool = False, hash_buckets: int = 0, sample_bytes: int = SAMPLE_BYTES,
            block_bytes: int = BLOCK_BYTES) -> Report:
    """Read `inputs` and write a token store to `output`; run it again after an interruption and it continues.

    Args:
        inputs: anything `corpus.find_sources` knows.
        tokenizer: a folder, hub id or `Tokenizer`; None trains one of `tokenizer_kind` and `vocab_size` on an even sample.
        max_tokens: longest row, special tokens not included (510 + [CLS] + [SEP] = 512).
        min_tokens: shortest last row of a document that is kept; shorter ones are counted.
        shard: (i, n) with 1 <= i <= n does every n-th block and writes a shard, for `merge_stores`.
        workers: processes; None takes every core of this process.
        dialogues: the inputs are conversations (`text/dialogues.py`); the store then holds a turn per row and a thread per document.
        hash_buckets: ids for unknown characters of a new tokenizer (`Tokenizer.hash_buckets`); for objective convert.
        pairs: every record is a pair, `title_field` its source and `text_field` its target (`text/paired.py`); a row holds both, each of
            up to `max_tokens`.
        sample_bytes: raw input bytes that a new tokenizer is trained on, evenly spread over the corpus (a hub stream: its start).
        block_bytes: raw input bytes per unit of work; part of the settings, since duplicates inside a block are dropped there.

    Raises:
        UserError: anything about inputs, fields, tokenizer or output that a person can mend.
    """
    start, output = time.monotonic(), Path(output)
    options = ReadOptions(text_field, title_field, id_field, layout, tuple(skip), tuple(strict), max_skip_share, pairs)
    _check_settings(max_tokens, min_tokens, shard, tokenizer, tokenizer_kind, dialogues, pairs)
    refuse_existing(output, overwrite)
    workers = workers or len(os.sched_getaffinity(0))
    sources = (dialogue_sources if dialogues else find_sources)(inputs, options)
    given = tokenizer if isinstance(tokenizer, Tokenizer) or tokenizer is None else Tokenizer.load(tokenizer)
    settings = {
        "inputs": [{"name": source.name, "kind": source.kind, "bytes": source.size} for source in sources], "reading": asdict(options),
        "tokenizer": given.fingerprint if given else {"kind": tokenizer_kind, "vocab_size": vocab_size, "lowercase": lowercase,
                                                      "sample_bytes": sample_bytes,
                                                      **({"hash_buckets": hash_buckets} if hash_buckets else {})},
        "max_tokens": max_tokens, "min_tokens": min_tokens, "block_bytes": block_bytes, **({"dialogues": True} if dialogues else {}),
    }
    with _work_folder(output, {**settings, "shard": shard, "state": _state(sources)}) as work:
        if dialogues:
            def cut() -> Iterator[Block]:
                return conversation_blocks(sources, options, work, block_bytes)
        else:
            cut = _remembered(sources, options, block_bytes, workers)
        if not (work / "tokenizer").is_dir():
            if given is None:
                given = Tokenizer.train(_sample(cut(), options, sample_bytes), tokenizer_kind, vocab_size, lowercase, hash_buckets)
            with whole_folder(work / "tokenizer") as folder:
                given.save(folder, max_len=max_tokens + 2, token_types=given.specials["cls"] == "[CLS]")
        used = Tokenizer.load(work / "tokenizer")
        parts, continued = make_parts(cut(), sources, work / "parts", used, options, max_tokens, min_tokens, shard, workers)
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
    if [part.name for part in parts] != [part_name(i) for i in range(len(parts))]:
        raise UserError(f"the shards lack some of their parts (found {len(parts)}); make them again")
    tokenizer = Tokenizer.load(path / "tokenizer")
    settings = about["settings"]
    options = ReadOptions(**settings["reading"])
    with _work_folder(output, {"merge": settings}) as work:
        counts, summaries = _write_store(parts, about["sources"], tokenizer, output, work, settings, options, overwrite)
        shutil.rmtree(work, ignore_errors=True)
    return Report(output, counts, summaries, tokenizer.size, time.monotonic() - start)


def _check_settings(max_tokens: int, min_tokens: int, shard: tuple[int, int] | None, tokenizer: Any, kind: str, dialogues: bool,
                    pairs: bool) -> None:
    if dialogues and pairs:
        raise UserError("say what the records are by one of --dialogues and --pairs")
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
