"""Conversations: from files of dialogues to examples (newest message, earlier turns -> response), and to the blocks of a store of turns.

What is read, each also compressed:
- JSON lines of PolyAI's conversational datasets: `context` is the newest message, `context/0` the one before it, `context/1` the one
  before that, ..., `response`; `thread_id` names the conversation; other keys are metadata (github.com/PolyAI-LDN/conversational-datasets);
- JSON lines with a list of turns, oldest first, as the whole line or under one of `LISTS`; a turn is a string or an object with `text` or
  `content`: every turn but the first answers the one before it;
- tab-separated text: `context<TAB>response` on every line (MEAD's ntp; `<EOU>` in the context ends a turn), or a dialogue per line.

In a store a document is a thread and a row is a turn, kept once however many examples repeat it; `examples.bin` names the rows of each
example. So a part that is held out by documents never shares a conversation with the rest.

Legend: E examples, N rows.
"""

import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json, whole_folder, write_json
from foretext.progress import progress
from foretext.summary import ReadSummary, read_lines
from foretext.text.corpus import Block, Document, ReadOptions, Source, find_sources
from foretext.text.documents import as_text
from foretext.text.duplicates import words_key
from foretext.text.store import EARLIER, STATISTICS
from foretext.text.tokenizer import Tokenizer

LISTS = ("turns", "dialogue", "dialog", "messages", "conversation")  # keys of a list of turns
TEXTS = ("text", "content")  # keys of a turn's text
NAMES = ("thread_id", "dialogue_id", "conversation_id", "_id", "id")  # keys that name a list of turns
EARLIER_KEY = re.compile(r"context/(\d+)")
END_OF_TURN = "<EOU>"
GUESS_LINES = 50  # of a tab file, before deciding which kind it is
MOST_BUCKETS = 500  # open files at a time
DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class Exchange:
    """One record of a file: `turns` of one `thread`, oldest first.

    `every`: each turn after the first is a response; else only the last one is. `same_author`: whether the response goes on with
    what its own writer said; None where the file does not tell.
    """

    thread: str
    turns: tuple[str, ...]
    every: bool = False
    same_author: bool | None = None


@dataclass(frozen=True)
class Example:
    """A response and what it answers: `context`, the newest message, and the turns before it, most recent first."""

    context: str
    response: str
    earlier: tuple[str, ...]
    thread: str
    same_author: bool | None = None


@dataclass(frozen=True)
class Conversation(Document):
    """A thread: `text` is its turns on lines, `turns` are distinct, `examples` int32 (E, 2 + EARLIER) names them by number.

    Columns of `examples`: context, response, then the earlier turns, most recent first; -1 where there is none.
    """

    turns: tuple[str, ...]
    examples: np.ndarray
    repeated: int = 0  # examples that said the same as another one of the thread, and were left out


# ------------------------------------------------------------------------------------------------------------------ reading


def read_examples(inputs: str | Path | Sequence[str | Path], options: ReadOptions = DEFAULTS,
                  summaries: list[ReadSummary] | None = None) -> Iterator[Example]:
    """The examples of dialogue files, in their order.

    Args:
        summaries: filled with one account per file while the iterator runs.

    Raises:
        UserError: a file that holds no dialogues, or a defect that the options do not skip, with file:line.
    """
    for source in dialogue_sources(inputs, options):
        summary = ReadSummary(source.path, options.policy)
        if summaries is not None:
            summaries.append(summary)
        for exchange in read_exchanges(source, summary):
            yield from examples_of(exchange)
        summary.close()


def examples_of(exchange: Exchange) -> list[Example]:
    """Every response of an exchange with up to `EARLIER` turns before its context."""
    turns, found = exchange.turns, []
    for i in range(1, len(turns)) if exchange.every else [len(turns) - 1]:
        earlier = tuple(reversed(turns[max(0, i - 1 - EARLIER):i - 1]))
        found.append(Example(turns[i - 1], turns[i], earlier, exchange.thread, exchange.same_author))
    return found


def dialogue_sources(inputs: str | Path | Sequence[str | Path], options: ReadOptions = DEFAULTS) -> list[Source]:
    """The files to read dialogues from.

    Raises:
        UserError: a file of another kind.
    """
    sources = find_sources(inputs, options)
    for source in sources:
        if source.kind not in ("jsonl", "tsv", "txt"):
            raise UserError(f"{source.name}: dialogues are read from .jsonl, .tsv and tab-separated .txt files (each also .gz, .zst, .xz, "
                            f".bz2), not from {source.kind}; write one JSON object with context and response per line")
    return sources


def read_exchanges(source: Source, summary: ReadSummary) -> Iterator[Exchange]:
    """The records of one file; what was guessed, noted and skipped goes into `summary`."""
    lines = read_lines(summary)
    yield from _from_json(lines, source, summary) if source.kind == "jsonl" else _from_tabs(lines, source, summary)


def _from_json(lines: Iterable[tuple[int, str]], source: Source, summary: ReadSummary) -> Iterator[Exchange]:
    for line, text in lines:
        try:
            record = json.loads(text)
        except ValueError as error:
            summary.error("truncated_json", line, f"expected a whole JSON value on the line ({error})", text)
            continue
        place = f"{source.name}:{line}"
        if isinstance(record, dict) and "context" in record and "response" in record:
            exchange = _polyai(record, place, line, summary)
            guess = "context, context/0, ... and response (PolyAI's conversational JSON)"
        else:
            key = next((key for key in LISTS if isinstance(record, dict) and isinstance(record.get(key), list)), None)
            turns = record if isinstance(record, list) else record[key] if key else None
            if turns is None:
                found = ", ".join(record) if isinstance(record, dict) else text
                summary.error("missing_key", line, "expected the keys context and response, or a list of turns under one of "
                              + ", ".join(LISTS), found)
                continue
            name = next((record[k] for k in NAMES if record.get(k) is not None), place) if key else place
            exchange = _listed(turns, str(name), line, summary)
            guess = f"a list of turns{f' under {key!r}' if key else ''}, oldest first, each answering the one before"
        _guess(summary, f"dialogues: {guess} (guessed)")
        if exchange:
            summary.accepted += len(exchange.turns) - 1 if exchange.every else 1
            yield exchange


def _guess(summary: ReadSummary, guess: str) -> None:
    if guess not in summary.guesses:
        summary.guesses.append(guess)


def _polyai(record: dict[str, Any], place: str, line: int, summary: ReadSummary) -> Exchange | None:
    numbers = sorted(int(match[1]) for match in map(EARLIER_KEY.fullmatch, record) if match)
    if numbers != list(range(len(numbers))):
        summary.note("context_gap", line)
    texts = [_text(record[key], key, line, summary) for key in ("response", "context", *(f"context/{n}" for n in numbers[:EARLIER]))]
    if None in texts:
        return None
    response, context, *earlier = texts
    if not context or not response:
        summary.skip("empty_response" if context else "empty_context", line)
        return None
    if not all(earlier):
        summary.note("empty_turn", line, count=sum(not turn for turn in earlier))
        earlier = [turn for turn in earlier if turn]
    if record.get("thread_id") is None:
        summary.note("no_thread", line)
    authors = record.get("context_author"), record.get("response_author")
    same = record.get("same_author", authors[0] == authors[1] if None not in authors else None)
    return Exchange(str(record.get("thread_id") or place), (*reversed(earlier), context, response), same_author=same)


def _listed(turns: list[Any], thread: str, line: int, summary: ReadSummary) -> Exchange | None:
    texts = []
    for turn in turns:
        if isinstance(turn, dict):
            key = next((key for key in TEXTS if key in turn), None)
            if key is None:
                summary.error("missing_key", line, f"expected a turn with one of the keys {', '.join(TEXTS)}", ", ".join(turn))
                return None
            turn = turn[key]
        texts.append(_text(turn, "a turn", line, summary))
    return None if None in texts else _dialogue(texts, thread, line, summary)


def _dialogue(texts: Sequence[str], thread: str, line: int, summary: ReadSummary) -> Exchange | None:
    kept = tuple(text for text in texts if text)
    if len(kept) < len(texts):
        summary.note("empty_turn", line, count=len(texts) - len(kept))
    if len(kept) < 2:
        summary.skip("single_turn", line)
        return None
    return Exchange(thread, kept, every=True)


def _text(value: Any, what: str, line: int, summary: ReadSummary) -> str | None:
    """The text without outer white space, "" for null; None for a value that is no text and was skipped."""
    text = as_text(value, what, line, summary)
    return None if text is None else text.strip()


def _from_tabs(lines: Iterator[tuple[int, str]], source: Source, summary: ReadSummary) -> Iterator[Exchange]:
    first = list(itertools.islice(lines, GUESS_LINES))
    pairs = all(text.count("\t") == 1 for _, text in first)
    if first:
        _guess(summary, "dialogues: context<TAB>response on every line (guessed)" if pairs else
               "dialogues: one per line, its turns between tabs, oldest first (guessed)")
    for line, text in itertools.chain(first, lines):
        fields, thread = [field.strip() for field in text.split("\t")], f"{source.name}:{line}"
        if not pairs:
            exchange = _dialogue(fields, thread, line, summary)
        elif len(fields) != 2:
            summary.skip("tab_count", line)
            continue
        else:
            context = [turn for turn in map(str.strip, fields[0].split(END_OF_TURN)) if turn]
            if not context or not fields[1]:
                summary.skip("empty_response" if context else "empty_context", line)
                continue
            exchange = Exchange(thread, (*context, fields[1]))
        if exchange:
            summary.accepted += len(exchange.turns) - 1 if exchange.every else 1
            yield exchange


def typed_context(line: str, place: str) -> tuple[str, tuple[str, ...]]:
    """What somebody typed or piped in: (newest message, turns before it, most recent first).

    Args:
        line: the message itself, or a JSON object with `context` and maybe `context/0`, `context/1`, ...
        place: where the line stands, for messages.

    Raises:
        UserError: an object without a context, or one that is not whole.
    """
    if not line.lstrip().startswith("{"):
        return line.strip(), ()
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: the line begins like a JSON object but is none ({error}); mend it, or leave out the "
                        "brace") from None
    numbers = sorted(int(match[1]) for match in map(EARLIER_KEY.fullmatch, record) if match)
    texts = [record.get(key) for key in ("context", *(f"context/{number}" for number in numbers[:EARLIER]))]
    if not all(isinstance(text, str) for text in texts) or not texts[0].strip():
        raise UserError(f"{place}: expected an object with the text of the newest message under context, found {line.strip()[:80]}")
    return texts[0].strip(), tuple(text.strip() for text in texts[1:] if text.strip())


# ------------------------------------------------------------------------------------------------------------------- blocks


def conversation_blocks(sources: Sequence[Source], options: ReadOptions, folder: Path, block_bytes: int) -> Iterator[Block]:
    """Blocks of whole threads, for `prepare`.

    The records of a thread may lie anywhere, so all are first dealt into buckets by the hash of their thread, in files below `folder`
    (written once, whole or not at all); memory holds one bucket. First come empty blocks with the account of each source.
    """
    buckets, total = folder / "buckets", sum(source.size for source in sources)
    if not buckets.is_dir():
        _deal(sources, options, buckets, min(MOST_BUCKETS, -(-total // block_bytes) or 1), total)
    accounts = read_json(buckets / "accounts.json")
    for number, account in enumerate(accounts):
        summary = ReadSummary.from_dict(account)
        yield Block(number, "documents", ([], summary), sources[number].name, number=number)
    for number, file in enumerate(sorted(buckets.glob("*.jsonl")), len(sources)):
        # Blocks name one source each: these count as the first one's, whose account is above.
        nothing = ReadSummary(sources[0].name, options.policy)
        yield Block(0, "documents", (_threads(file), nothing), sources[0].name, done=sources[0].size, number=number)


def _deal(sources: Sequence[Source], options: ReadOptions, folder: Path, count: int, total: int) -> None:
    accounts = []
    with whole_folder(folder) as temporary, progress("reading dialogues (bytes)", total) as advance:
        files = [open(temporary / f"{i:06d}.jsonl", "w", encoding="utf-8") for i in range(count)]  # noqa: SIM115
        try:
            for source in sources:
                summary = ReadSummary(source.path, options.policy)
                for exchange in read_exchanges(source, summary):
                    bucket = zlib.crc32(exchange.thread.encode("utf-8", "surrogatepass")) % count
                    files[bucket].write(json.dumps([exchange.thread, exchange.every, exchange.turns]) + "\n")
                summary.close()
                accounts.append(summary.as_dict() | {"source": source.name})
                advance(source.size)
        finally:
            for file in files:
                file.close()
        write_json(temporary / "accounts.json", accounts)


def _threads(file: Path) -> list[Conversation]:
    """The conversations of one bucket, in the order in which their first records came."""
    threads: dict[str, tuple[dict[str, int], Counter[tuple[int, ...]]]] = {}
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            thread, every, turns = json.loads(line)
            numbers, examples = threads.setdefault(thread, ({}, Counter()))
            rows = [numbers.setdefault(turn, len(numbers)) for turn in turns]
            for i in range(1, len(rows)) if every else [len(rows) - 1]:
                earlier = rows[max(0, i - 1 - EARLIER):i - 1][::-1]
                examples[(rows[i - 1], rows[i], *earlier, *[-1] * (EARLIER - len(earlier)))] += 1
    return [Conversation(thread, "", "\n".join(numbers), tuple(numbers), np.array(list(examples), np.int32),
                         examples.total() - len(examples))
            for thread, (numbers, examples) in threads.items()]


def encode_conversations(conversations: Sequence[Conversation], tokenizer: Tokenizer,
                         max_tokens: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Conversations -> the arrays of one part (`store.merge_parts`), a row per turn, and counts of what was left out.

    A turn over `max_tokens` keeps its start. Turns without a token are left out, with the examples that they begin or end.
    """
    counts = {"duplicates": 0, "too_short": 0, "cut_turns": 0, "unreadable_examples": 0, "repeated_examples": 0}
    seen: set[bytes] = set()
    kept = []
    for conversation in conversations:
        key = words_key(conversation.text.split())
        if key in seen:
            counts["duplicates"] += 1
            continue
        seen.add(key)
        kept.append((conversation, key))
        counts["repeated_examples"] += conversation.repeated
    ids, lengths = tokenizer.encode_flat([turn for conversation, _ in kept for turn in conversation.turns])
    counts["cut_turns"] = int((lengths > max_tokens).sum())
    within = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids, lengths = ids[within < max_tokens], np.minimum(lengths, max_tokens)

    document_rows, keys, names, statistics, examples, example_counts, first, row = [], [], [], [], [], [], 0, 0
    keep_rows = np.zeros(len(lengths), bool)
    for conversation, key in kept:
        there = lengths[first:first + len(conversation.turns)] > 0
        number = np.append(np.where(there, np.cumsum(there) - 1, -1), -1)  # the last entry: -1 stays -1
        links = number[conversation.examples]
        links = links[(links[:, :2] >= 0).all(1)]
        counts["unreadable_examples"] += len(conversation.examples) - len(links)
        if len(links):
            earlier = links[:, 2:]  # no holes before the last earlier turn
            links[:, 2:] = np.take_along_axis(earlier, np.argsort(earlier < 0, axis=1, kind="stable"), axis=1)
            keep_rows[first:first + len(there)] = there
            document_rows.append(int(there.sum()))
            keys.append(key)
            names.append(conversation.id.encode("utf-8", "surrogatepass"))
            statistics.append([len(conversation.text.split()), len(conversation.text.encode("utf-8", "surrogatepass")), 0, 0, 0, 0])
            examples.append(np.where(links >= 0, links + row, -1))
            example_counts.append(len(links))
            row += document_rows[-1]
        else:
            counts["too_short"] += 1
        first += len(there)
    n, row_lengths = len(keys), lengths[keep_rows].astype(np.int32)
    return {
        "tokens": ids[np.repeat(keep_rows, lengths)].astype(np.uint16 if tokenizer.size <= 2**16 else np.uint32),
        "row_lengths": row_lengths, "title_lengths": np.zeros_like(row_lengths), "sentence_counts": np.ones_like(row_lengths),
        "sentence_starts": np.zeros_like(row_lengths), "document_rows": np.array(document_rows, np.int32),
        "keys": np.frombuffer(b"".join(keys), "<u8").reshape(n, 2), "ids": np.frombuffer(b"".join(names), np.uint8),
        "id_lengths": np.array([len(name) for name in names], np.int32),
        "statistics": np.array(statistics, np.int64).reshape(n, len(STATISTICS)),
        "examples": np.concatenate(examples or [np.zeros((0, 2 + EARLIER), np.int64)]),
        "example_counts": np.array(example_counts, np.int32),
    }, counts
