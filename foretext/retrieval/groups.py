"""Training groups: a query, passages that answer it, passages that do not, and a teacher's scores where there are any.

One form in memory (`Groups`) for every file format of the field; `read_groups` guesses the format from the data and says which it took,
`write_groups` writes ours. The readers are in `group_files.py` (one file) and `group_folders.py` (several files that belong together).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foretext.errors import UserError
from foretext.files import refuse_existing, whole_file
from foretext.summary import DEFAULT_POLICY, Policy, ReadSummary
from foretext.text.grouped import Lists

Text = str | np.ndarray  # text, or its token ids without special tokens (RetroMAE's folders hold only those)

WRITTEN = ("flagembedding", "parquet", "retromae-qrels", "retromae-negatives", "retromae-scores")


class Listed(NamedTuple):
    """A passage on a group's list: its id, and a teacher's score where there is one."""

    id: str
    score: float | None = None


@dataclass
class Group:
    """One training example. `prompt`, where a file gives one, stands before this query instead of the model's own."""

    query_id: str
    query: Text
    positives: list[Listed]
    negatives: list[Listed] = field(default_factory=list)
    prompt: str | None = None


@dataclass
class Groups:
    """Training groups and the texts they name.

    Attributes:
        passages: id -> text of every passage that a group may list, and of those to draw random negatives from.
        format: what the data was read as.
        summaries: what the readers met, a file each.
    """

    groups: list[Group]
    passages: dict[str, Text]
    format: str = "memory"
    summaries: list[ReadSummary] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.groups)

    def first_row(self) -> list[str]:
        """The first group with the role of each text, for a person to see whether columns were taken for what they are."""
        group = self.groups[0]
        listed = [("positive", entry) for entry in group.positives[:2]] + [("negative", entry) for entry in group.negatives[:2]]
        lines = [f"  query     {group.query_id}: {_short(group.query)}"]
        for role, entry in listed:
            score = "" if entry.score is None else f" (score {entry.score:g})"
            lines.append(f"  {role}  {entry.id}{score}: {_short(self.passages[entry.id])}")
        return lines

    def report(self) -> list[str]:
        """What was read as what, for a person: format, counts, notes, the first row."""
        positives = sum(len(group.positives) for group in self.groups)
        negatives = sum(len(group.negatives) for group in self.groups)
        out = [f"read as {self.format}: {len(self):,} groups, {positives:,} positives, {negatives:,} negatives, "
               f"{len(self.passages):,} passages; the first:", *self.first_row()]
        return [line for summary in self.summaries for line in summary.report()] + out


def text_id(text: str) -> str:
    """The id of a text that came without one: `t` and the first 16 hexadecimal digits of its SHA-1."""
    return "t" + hashlib.sha1(text.encode()).hexdigest()[:16]


def numbered(groups: Sequence[Group], passages: Mapping[str, Text], size: int, topk: int) -> tuple[list[Text], Lists, Lists]:
    """What groups of `size` passages are drawn from, by number.

    Returns:
        the passages' texts; the positives of each group, and the first `topk` of its negatives, as numbers of these. Where all lists are
        long enough, only listed passages are among the texts, else all, to fill groups up with.
    """
    negatives = [group.negatives[:topk] for group in groups]
    short = any(len(some) < size - 1 for some in negatives)
    listed = (entry.id for group, some in zip(groups, negatives) for entry in (*group.positives, *some))
    names = list(passages) if short else list(dict.fromkeys(listed))
    number = {name: i for i, name in enumerate(names)}

    def lists(entries: list[list[Listed]]) -> Lists:
        scores = [[np.nan if entry.score is None else entry.score for entry in some] for some in entries]
        return Lists.of([[number[entry.id] for entry in some] for some in entries], scores)

    return [passages[name] for name in names], lists([group.positives for group in groups]), lists(negatives)


def _short(text: Text) -> str:
    if isinstance(text, str):
        return repr(text[:80] + ("..." if len(text) > 80 else ""))
    return f"{len(text)} tokens {text[:8].tolist()}"


class Builder:
    """Collects groups and repairs what is noted, refuses what is an error.

    Args:
        passages: texts by id, or an empty dictionary for formats whose records hold the texts.
    """

    def __init__(self, passages: dict[str, Text], summary: ReadSummary):
        self.passages, self.summary, self.groups = passages, summary, []

    def add(self, line: int | None, query_id: str, query: Text, positives: Iterable[Listed], negatives: Iterable[Listed] = (),
            prompt: str | None = None) -> None:
        """Add one group; one without any positive left is an error, or skipped and counted."""
        positives = list(self._known(line, dict.fromkeys(positives)))
        if not positives:
            self.summary.error("no_positive", line, f"the query {query_id!r} has no positive passage", mend="add one, or delete the query")
            return
        self.groups.append(Group(query_id, query, positives, self.negatives(line, positives, negatives), prompt))
        self.summary.accepted += 1

    def negatives(self, line: int | None, positives: Sequence[Listed], negatives: Iterable[Listed]) -> list[Listed]:
        """`negatives` in their order, without positives (by id or by equal text), repeats and passages that are not in the corpus."""
        answers = {entry.id for entry in positives}
        answer_texts = {text for entry in positives if isinstance(text := self.passages[entry.id], str)}
        kept: dict[str, Listed] = {}
        for entry in self._known(line, negatives):
            text = self.passages[entry.id]
            if entry.id in answers or (isinstance(text, str) and text in answer_texts):
                self.summary.note("negative_is_positive", line, repr(entry.id))
            elif entry.id in kept:
                self.summary.note("duplicate_negative", line, repr(entry.id))
            else:
                kept[entry.id] = entry
        return list(kept.values())

    def texts(self, texts: Iterable[str], scores: Iterable[float | None] | None = None, ids: Iterable[str] | None = None) -> list[Listed]:
        """Remember texts that came inside a record, and list them."""
        texts = list(texts)
        names = list(ids) if ids is not None else [text_id(text) for text in texts]
        self.passages.update(zip(names, texts))
        return [Listed(name, score) for name, score in zip(names, scores if scores is not None else [None] * len(names))]

    def _known(self, line: int | None, listed: Iterable[Listed]) -> Iterator[Listed]:
        for entry in listed:
            if entry.id in self.passages:
                yield entry
            else:
                self.summary.error("doc_missing", line, f"the passage {entry.id!r} is not in the corpus",
                                   mend="add its text, or delete it here")


def read_groups(data: str | Path, negatives: str | Path | None = None, scores: str | Path | None = None,
                policy: Policy = DEFAULT_POLICY, **options) -> Groups:
    """Read training groups in any format in use, guessed from what lies there.

    Args:
        data: a folder (BEIR, MS MARCO, RetroMAE) or a file (FlagEmbedding, Tevatron, sentence-transformers, MS MARCO triples, our parquet).
        negatives: file of more negatives: `qid  pid,pid`, `qid positive negative`, or groups in a file, whose negatives are taken.
        scores: file of teacher scores, `qid pid score`, or a run.
        policy: which defects are skipped, and which notes are errors.
        options: see `group_folders.read_folder` and `group_files.read_file`.
    Returns:
        `Groups`; `report()` says what was guessed, and shows the first row with its roles.
    Raises:
        UserError: a format that is not known, or data that cannot be used.
    """
    from foretext.retrieval.group_files import read_file
    from foretext.retrieval.group_folders import add_negatives, add_scores, read_folder

    path = Path(data)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    groups = (read_folder if path.is_dir() else read_file)(path, policy=policy, **options)
    if negatives:
        groups.summaries.append(add_negatives(groups, negatives, policy))
    if scores:
        groups.summaries.append(add_scores(groups, scores, policy))
    return groups


def write_groups(path: str | Path, groups: Groups, format: str = "flagembedding", overwrite: bool = False) -> Path:
    """Write groups as one file.

    Args:
        format: `flagembedding` (JSON lines with texts; ids in `query_id`, `pos_id`, `neg_id`), `parquet` (ours),
            `retromae-qrels` (`qid  pid,pid`), `retromae-negatives` (`qid  pid,pid`), `retromae-scores` (`qid pid score`).
    Raises:
        UserError: the file exists, groups of token ids where texts are wanted, or an id that the format cannot hold.
    """
    if format not in WRITTEN:
        raise UserError(f"format {format!r}: groups are written as {', '.join(WRITTEN)}")
    refuse_existing(path, overwrite)
    if format == "parquet":
        _write_parquet(path, groups)
        return Path(path)
    with whole_file(path, "w") as file:
        for group in groups.groups:
            file.writelines(_lines(path, group, groups, format))
    return Path(path)


def _lines(path: str | Path, group: Group, groups: Groups, format: str) -> Iterator[str]:
    if format == "flagembedding":
        yield json.dumps(_flag_record(path, group, groups), ensure_ascii=False) + "\n"
    elif format == "retromae-scores":
        for entry in (*group.positives, *group.negatives):
            if entry.score is not None:
                yield f"{_plain(path, group.query_id)}\t{_plain(path, entry.id)}\t{entry.score:.9g}\n"
    else:
        listed = group.positives if format == "retromae-qrels" else group.negatives
        yield f"{_plain(path, group.query_id)}\t{','.join(_plain(path, entry.id) for entry in listed)}\n"


def _plain(path: str | Path, identifier: str) -> str:
    if "," in identifier or any(c.isspace() for c in identifier):
        raise UserError(f"{path}: the id {identifier!r} holds a comma or white space, which RetroMAE's files cannot hold; "
                        "write flagembedding or parquet, or rename it")
    return identifier


def _flag_record(path: str | Path, group: Group, groups: Groups) -> dict:
    record = {"query_id": group.query_id, "query": _string(path, group.query)}
    for name, listed in (("pos", group.positives), ("neg", group.negatives)):
        record[name] = [_string(path, groups.passages[entry.id]) for entry in listed]
        record[f"{name}_id"] = [entry.id for entry in listed]
    scored = [entry.score for entry in (*group.positives, *group.negatives)]
    if any(score is not None for score in scored):
        record["pos_scores"] = scored[: len(group.positives)]
        record["neg_scores"] = scored[len(group.positives) :]
    if group.prompt is not None:
        record["prompt"] = group.prompt
    return record


def _string(path: str | Path, text: Text) -> str:
    if not isinstance(text, str):
        raise UserError(f"{path}: these groups hold token ids instead of texts; write one of the retromae formats")
    return text


def _write_parquet(path: str | Path, groups: Groups) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    entry = pa.list_(pa.struct([("id", pa.string()), ("text", pa.string()), ("score", pa.float64())]))
    schema = pa.schema([("query_id", pa.string()), ("query", pa.string()), ("positives", entry), ("negatives", entry)])

    def listed(entries: list[Listed]) -> list[dict]:
        return [{"id": e.id, "text": _string(path, groups.passages[e.id]), "score": e.score} for e in entries]

    with whole_file(path) as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(groups), 4096):
            some = groups.groups[start : start + 4096]
            rows = [{"query_id": g.query_id, "query": _string(path, g.query), "positives": listed(g.positives),
                     "negatives": listed(g.negatives)} for g in some]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
