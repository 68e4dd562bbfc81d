"""Blocks -> part files, by all cores: each block becomes one file, made by whichever process is free."""

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from foretext.errors import UserError
from foretext.progress import progress
from foretext.text.corpus import Block, ReadOptions, Source, read_block
from foretext.text.dialogues import Conversation, encode_conversations
from foretext.text.packing import encode_documents
from foretext.text.paired import encode_pairs
from foretext.text.store import read_notes, write_part
from foretext.text.tokenizer import Tokenizer

_worker: dict[str, Any] = {}  # what each process needs for every block, set once


def part_name(number: int) -> str:
    """File name of the part of block `number`; names sort as numbers do."""
    return f"{number:09d}.npz"


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
    if documents and isinstance(documents[0], Conversation):
        arrays, counts = encode_conversations(documents, _worker["tokenizer"], _worker["max_tokens"])
    elif _worker["options"].pairs:
        arrays, counts = encode_pairs(documents, _worker["tokenizer"], _worker["max_tokens"])
    else:
        arrays, counts = encode_documents(documents, _worker["tokenizer"], _worker["max_tokens"], _worker["min_tokens"])
    notes = {"documents": len(arrays["keys"]), "counts": counts, "source": block.source, "summary": summary.as_dict()}
    write_part(_worker["folder"] / part_name(block.number), arrays, notes)


def make_parts(all_blocks: Iterator[Block], sources: Sequence[Source], folder: Path, tokenizer: Tokenizer, options: ReadOptions,
                max_tokens: int, min_tokens: int, shard: tuple[int, int] | None, workers: int) -> tuple[list[Path], int]:
    """Make the part files that are missing; returns all of them in order and how many were there already."""
    parts, continued, at = [], 0, 0
    total = sum(source.size for source in sources)
    before: dict[int, int] = collections.defaultdict(int)
    with _processes(workers, (tokenizer, options, max_tokens, min_tokens, folder, os.getpid())) as (submit, finish), \
            progress("tokenizing (bytes read)", total or None) as advance:
        for block in all_blocks:
            at, before[block.source] = block.done - before[block.source], block.done
            part = folder / part_name(block.number)
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
