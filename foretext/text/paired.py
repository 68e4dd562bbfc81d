"""Given text pairs as rows of a store: the source is the row's title, the target its body.

So every reader of a store reads pairs too: `SplitPairs(store, "title")` gives them to objectives, and any column of a file (csv, tsv,
jsonl, parquet) can be either side. A row is a whole pair; nothing is split.
"""

from collections.abc import Sequence

import numpy as np

from foretext.text.documents import Document
from foretext.text.duplicates import words_key
from foretext.text.store import STATISTICS
from foretext.text.tokenizer import Tokenizer


def encode_pairs(documents: Sequence[Document], tokenizer: Tokenizer, max_tokens: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Pairs (title, text) -> the arrays of one part (`store.merge_parts`), a row each, and counts of what was left out.

    An over-long source keeps its last `max_tokens` tokens, an over-long target its first; both are counted. Pairs
    with an empty side are left out and counted as too short.
    """
    counts = {"duplicates": 0, "too_short": 0, "cut_sides": 0}
    seen: set[bytes] = set()
    unique: list[tuple[Document, bytes]] = []
    for document in documents:
        key = words_key([*document.title.split(), "\t", *document.text.split()])  # the border counts: "a b", "c" is not "a", "b c"
        if key in seen:
            counts["duplicates"] += 1
        else:
            seen.add(key)
            unique.append((document, key))
    sides = tokenizer.encode([side for document, _ in unique for side in (document.title.strip(), document.text.strip())])
    kept, rows = [], []
    for (document, key), source, target in zip(unique, sides[::2], sides[1::2]):
        if not len(source) or not len(target):
            counts["too_short"] += 1
            continue
        counts["cut_sides"] += (len(source) > max_tokens) + (len(target) > max_tokens)
        kept.append((document, key))
        rows.append((source[-max_tokens:], target[:max_tokens]))
    n = len(kept)
    sources, targets = (np.array([len(side) for side in column], np.int32) for column in (zip(*rows) if rows else ((), ())))
    names = [document.id.encode("utf-8", "surrogatepass") for document, _ in kept]
    dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
    texts = [f"{document.title} {document.text}" for document, _ in kept]
    return {
        "tokens": np.concatenate([side for row in rows for side in row]).astype(dtype) if n else np.zeros(0, dtype),
        "row_lengths": sources + targets, "title_lengths": sources, "sentence_counts": np.full(n, 2, np.int32),
        "sentence_starts": np.stack((np.zeros_like(sources), sources), 1).ravel(), "document_rows": np.ones(n, np.int32),
        "keys": np.frombuffer(b"".join(key for _, key in kept), "<u8").reshape(n, 2),
        "ids": np.frombuffer(b"".join(names), np.uint8), "id_lengths": np.array([len(name) for name in names], np.int32),
        "statistics": np.array([[len(text.split()), len(text.encode("utf-8", "surrogatepass")), 0, 0, 0, 0] for text in texts],
                               np.int64).reshape(n, len(STATISTICS)),
    }, counts
