"""Texts that say the same: exactly (`exact_key`, `find_duplicates`) or nearly (`near_duplicates`)."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from foretext.errors import UserError

WORD = re.compile(r"\w+")
CHUNK = 2000  # candidates compared at a time: bounds memory, changes nothing else
MEASURES = ("containment", "jaccard")
DOCUMENTS_PER_BUCKET = 1 << 16  # about 80 bytes each while duplicates are looked for: 5 MB
KEYED = np.dtype([("first", "<u8"), ("second", "<u8"), ("document", "<i8")])


def exact_key(text: str) -> bytes:
    """16 bytes that are equal for texts equal up to white space (BLAKE2b of the words joined by single blanks)."""
    return words_key(text.split())


def words_key(words: Sequence[str]) -> bytes:
    """`exact_key` of a text that is already split at white space."""
    return hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def find_duplicates(keys: Iterable[np.ndarray], total: int, scratch: Path) -> np.ndarray:
    """Which documents repeat an earlier one, in bounded memory: equal keys meet in the same of many small files.

    Args:
        keys: blocks of document keys, uint64 (n, 2), in document order.
        total: number of keys, which decides the number of files.
        scratch: an existing folder for temporary files.

    Returns:
        uint8 (total,), 1 where an earlier document has the same key; a file-backed map when there is more than one file.
    """
    buckets = -(-total // DOCUMENTS_PER_BUCKET)
    if buckets <= 1:
        mask = np.zeros(total, np.uint8)
        _mark(mask, np.concatenate([np.empty(0, KEYED), *_keyed(keys)]))
        return mask
    mask = np.memmap(scratch / "duplicates.bin", np.uint8, mode="w+", shape=(total,))
    held, count = [], 0
    for records in _keyed(keys):
        held.append(records)
        count += len(records)
        if count >= DOCUMENTS_PER_BUCKET:  # seldom, as each file is opened every time: more than a thousand cannot stay open
            _spill(np.concatenate(held), buckets, scratch)
            held, count = [], 0
    if held:
        _spill(np.concatenate(held), buckets, scratch)
    for path in scratch.glob("bucket-*.bin"):
        _mark(mask, np.fromfile(path, KEYED))
        path.unlink()
    return mask


def _keyed(keys: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    start = 0
    for block in keys:
        records = np.empty(len(block), KEYED)
        records["first"], records["second"], records["document"] = block[:, 0], block[:, 1], np.arange(start, start + len(block))
        start += len(block)
        yield records


def _spill(records: np.ndarray, buckets: int, scratch: Path) -> None:
    """Append each record to its bucket's file."""
    bucket = (records["first"] % np.uint64(buckets)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    records, bucket = records[order], bucket[order]
    begins = np.flatnonzero(np.diff(bucket, prepend=-1))
    for i, part in zip(bucket[begins], np.split(records, begins[1:])):
        with open(scratch / f"bucket-{i}.bin", "ab") as file:
            part.tofile(file)


def _mark(mask: np.ndarray, records: np.ndarray) -> None:
    """Set 1 in `mask` for every record but the first document of its key."""
    records = records[np.lexsort((records["document"], records["second"], records["first"]))]
    same = (records["first"][1:] == records["first"][:-1]) & (records["second"][1:] == records["second"][:-1])
    mask[records["document"][1:][same]] = 1


def near_duplicates(reference_texts: Sequence[str], candidate_texts: Iterable[str], threshold: float = 0.5, *, words: int = 3,
                    measure: str = "containment") -> np.ndarray:
    """Which candidates nearly repeat any of the references.

    A text becomes the set of its runs of `words` lower-cased words (a shorter text: one run of all its words), hashed to 64 bits.
    Two texts are compared by their shared runs, divided by the size of the smaller set ("containment": a copy inside a longer
    text counts in full) or of the union ("jaccard"). Texts without a word match nothing.

    Args:
        threshold: smallest similarity that counts as a near duplicate, above 0 and at most 1.

    Returns:
        bool (number of candidates,).

    Raises:
        UserError: threshold or measure out of range.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"threshold must be above 0 and at most 1, found {threshold}")
    if measure not in MEASURES:
        raise UserError(f"measure {measure!r} is unknown: choose one of {', '.join(MEASURES)}")
    numbers: dict[str, int] = {}
    reference, sizes = _shingles(reference_texts, words, numbers)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = np.argsort(reference, kind="stable")
    reference, owner = reference[order], owner[order]
    if not len(reference):
        return np.zeros(sum(1 for _ in candidate_texts), bool)
    unique, first, times = np.unique(reference, return_index=True, return_counts=True)

    found = []
    for texts in _chunks(candidate_texts, CHUNK):
        shingles, lengths = _shingles(texts, words, numbers)
        candidate = np.repeat(np.arange(len(texts)), lengths)
        place = np.minimum(np.searchsorted(unique, shingles), len(unique) - 1)
        hit = unique[place] == shingles
        place, candidate = place[hit], candidate[hit]
        # One entry per (candidate, reference that holds the same run): counting equal pairs gives the size of the intersection.
        repeat = times[place]
        inside = np.arange(int(repeat.sum())) - np.repeat(np.cumsum(repeat) - repeat, repeat)
        pairs = np.repeat(candidate, repeat) * len(sizes) + owner[np.repeat(first[place], repeat) + inside]
        pairs, shared = np.unique(pairs, return_counts=True)
        one, other = lengths[pairs // len(sizes)], sizes[pairs % len(sizes)]
        whole = np.minimum(one, other) if measure == "containment" else one + other - shared
        mask = np.zeros(len(texts), bool)
        mask[(pairs // len(sizes))[shared >= threshold * whole]] = True
        found.append(mask)
    return np.concatenate(found) if found else np.zeros(0, bool)


def _chunks(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _shingles(texts: Iterable[str], n: int, numbers: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct runs of n words of each text: (hashes uint64 of all texts end to end, how many each text has)."""
    rows = [[numbers.setdefault(word, len(numbers)) for word in WORD.findall(text.lower())] for text in texts]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    flat = np.fromiter((number for row in rows for number in row), np.uint64, int(lengths.sum()))
    owner = np.repeat(np.arange(len(rows)), lengths)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    runs = np.zeros(len(flat), np.uint64)
    for i in range(n):
        # Words after a text's end count as nothing; a run that lacks words is kept only at the start of a text shorter than n.
        valid = place + i < lengths[owner]
        word = np.zeros(len(flat), np.uint64)
        word[valid] = flat[np.flatnonzero(valid) + i] + np.uint64(1)
        runs = _mix(runs ^ word)
    keep = (place + n <= lengths[owner]) | (place == 0)
    owner, runs = owner[keep], runs[keep]
    order = np.lexsort((runs, owner))
    owner, runs = owner[order], runs[order]
    new = np.ones(len(runs), bool)
    new[1:] = (runs[1:] != runs[:-1]) | (owner[1:] != owner[:-1])
    return runs[new], np.bincount(owner[new], minlength=len(rows)).astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of 64-bit numbers that spreads every bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
