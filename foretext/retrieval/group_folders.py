"""Training groups in folders of files that belong together: BEIR, MS MARCO, RetroMAE; and files of negatives and teacher scores."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from foretext.errors import UserError
from foretext.retrieval.collection import document_text, judged_split, read_collection
from foretext.retrieval.groups import Builder, Groups, Listed, Text, read_groups, text_id
from foretext.retrieval.qrels import Judgements, read_qrels
from foretext.retrieval.records import SNIFFED, Line, columns
from foretext.retrieval.runs import Run, read_run
from foretext.summary import DEFAULT_POLICY, Policy, ReadSummary, read_lines
from foretext.text.tokenizer import Tokenizer

FOLDER_FORMATS = ("beir", "msmarco", "retromae")


def read_folder(folder: Path, split: str = "train", format: str | None = None, policy: Policy = DEFAULT_POLICY,
                tokenizer: Tokenizer | None = None, strip_specials: bool = False, strip_ids: bool = False, **unused: Any) -> Groups:
    """Read the groups of one split; `format` (one of FOLDER_FORMATS) overrides the guess.

    Args:
        tokenizer: that made a RetroMAE folder's token ids, to check them against.
        strip_specials: remove special tokens from those ids instead of stopping.
        strip_ids: remove white space around ids of a BEIR folder.
    """
    kind = format or guess(folder)
    if kind == "beir":
        builder, summaries = _beir(folder, split, policy, strip_ids)
    elif kind == "msmarco":
        builder, summaries = _msmarco(folder, split, policy)
    elif kind == "retromae":
        builder, summaries = _retromae(folder, split, policy, tokenizer, strip_specials)
    else:
        raise UserError(f"format {kind!r}: a folder of groups is one of {', '.join(FOLDER_FORMATS)}")
    return Groups(builder.groups, builder.passages, kind, summaries)


def guess(folder: Path) -> str:
    """The format of a folder by what lies in it."""
    if (folder / "corpus").is_dir() and any(folder.glob("*_query")):
        return "retromae"
    if any(folder.glob("corpus.jsonl*")):
        return "beir"
    if any(folder.glob("collection.tsv*")) or any(folder.glob("*docs.tsv*")):
        return "msmarco"
    raise UserError(f"{folder}: expected corpus.jsonl (BEIR), collection.tsv (MS MARCO) or corpus/ and train_query/ (RetroMAE)")


# ------------------------------------------------------------------------------------------------- negatives, teacher scores


def add_negatives(groups: Groups, path: str | Path, policy: Policy = DEFAULT_POLICY) -> ReadSummary:
    """Append the negatives of a file to the groups of the same query, known by its id or by its text."""
    path = Path(path)
    if path.suffix in (".jsonl", ".parquet"):
        other = read_groups(path, policy=policy)
        groups.passages.update((name, text) for name, text in other.passages.items() if name not in groups.passages)
        lists, summary = {}, other.summaries[-1]
        for group in other.groups:
            lists.setdefault(group.query_id, []).extend(group.negatives)
    else:
        lists, summary = read_negatives(path, policy)
    builder, taken = Builder(groups.passages, summary), set()
    for group in groups.groups:
        known_as = group.query_id
        if known_as not in lists and isinstance(group.query, str):
            known_as = text_id(group.query)
        if known_as in lists:
            group.negatives = builder.negatives(None, group.positives, [*group.negatives, *lists[known_as]])
            taken.add(known_as)
    if not taken:
        raise UserError(f"{path}: no query of these groups has negatives there; are these the same query ids?")
    return summary


def read_negatives(path: str | Path, policy: Policy = DEFAULT_POLICY) -> tuple[dict[str, list[Listed]], ReadSummary]:
    """`qid  pid,pid,...` (a query may repeat: its lists are joined) or MS MARCO's `qid  positive  negative`."""
    summary, lists = ReadSummary(path, policy), {}
    for number, text in read_lines(summary):
        fields = text.split("\t")
        if len(fields) not in (1, 2, 3):
            summary.error("column_count", number, "expected `qid`, a tab and `pid,pid,...`, or `qid`, positive and negative", text,
                          "mend or delete the line")
            continue
        names = fields[2:] if len(fields) == 3 else [name for name in "".join(fields[1:]).split(",") if name.strip()]
        if not names:
            summary.note("empty_list", number, repr(fields[0]))
        lists.setdefault(fields[0], []).extend(map(Listed, names))
        summary.accepted += 1
    return lists, summary.close()


def add_scores(groups: Groups, path: str | Path, policy: Policy = DEFAULT_POLICY) -> ReadSummary:
    """Write a teacher's scores, `qid pid score`, onto the passages of the groups; passages without one are counted."""
    run, summary = read_run(path, policy, third_column="score")
    missing = apply_scores(groups, run)
    if missing:
        summary.note("score_missing", detail="they leave their groups in distillation", count=missing)
    return summary


def apply_scores(groups: Groups, run: Run) -> int:
    """Carry scores to passages by query and document id, in place of any they had; returns how many listed passages have none."""
    missing = 0
    for group in groups.groups:
        known = run.get(group.query_id, {})
        for listed in (group.positives, group.negatives):
            listed[:] = [Listed(entry.id, known.get(entry.id)) for entry in listed]
            missing += sum(entry.score is None for entry in listed)
    return missing


# ------------------------------------------------------------------------------------------------------------------- BEIR


def _beir(folder: Path, split: str, policy: Policy, strip_ids: bool) -> tuple[Builder, list[ReadSummary]]:
    """A group per judged query; grades below 1 do not answer. Judged passages outside the corpus are noted, not used."""
    collection = read_collection(folder, policy, strip_ids)
    asked = judged_split(collection, split)
    builder = Builder(dict(zip(collection.document_ids, collection.documents)), asked.summary)
    asked.summary.accepted = 0
    for name, text in zip(asked.query_ids, asked.query_texts):
        judged = asked.judgements[name]
        answers = [Listed(document) for document, grade in judged.items() if grade > 0 and document in builder.passages]
        if answers:
            builder.add(None, name, text, answers)
        else:
            asked.summary.note("no_positive", detail=repr(name))
    if not builder.groups:
        raise UserError(f"{folder}: no query of the split {split!r} has a relevant document in the corpus")
    return builder, [*collection.summaries, asked.summary]


# --------------------------------------------------------------------------------------------------------------- MS MARCO


def _msmarco(folder: Path, split: str, policy: Policy) -> tuple[Builder, list[ReadSummary]]:
    """collection.tsv (or *docs.tsv), queries.SPLIT*.tsv, qrels.SPLIT*.tsv; negatives of qidpidtriples.SPLIT* or top1000.SPLIT*."""
    passages, corpus_summary = _texts(_one(folder, "collection.tsv*", "*docs.tsv*"), policy)
    queries, queries_summary = _texts(_one(folder, f"queries.{split}*"), policy)
    qrels = read_qrels(_one(folder, f"qrels.{split}*", f"*qrels.{split}*"), policy)
    candidates, summaries = {}, []
    for pattern in (f"qidpidtriples.{split}*", f"top1000.{split}*"):
        for path in sorted(folder.glob(pattern)):
            found, summary = _candidates(path, policy)
            for name, listed in found.items():
                candidates.setdefault(name, []).extend(listed)
            summaries.append(summary)
    builder = _judged(qrels.grades, queries, passages, ReadSummary(qrels.summary.source, policy), candidates)
    return builder, [corpus_summary, queries_summary, qrels.summary, *summaries, builder.summary.close()]


def _judged(judgements: Judgements, queries: dict[str, str], passages: dict[str, Text], summary: ReadSummary,
            candidates: dict[str, list[Listed]]) -> Builder:
    """Groups of judged queries. A candidate that is judged relevant is a positive: it is no defect of a list of candidates."""
    builder = Builder(passages, summary)
    summary.unit, summary.lines = "queries", len(judgements)
    for name, judged in judgements.items():
        if name not in queries:
            summary.error("judged_query_missing", None, f"the query {name!r} is judged, but not in the queries file", mend="add its text")
            continue
        answers = [document for document, grade in judged.items() if grade > 0]
        others = dict.fromkeys(entry for entry in candidates.get(name, []) if entry.id not in judged)
        if answers:
            builder.add(None, name, queries[name], map(Listed, answers), others)
    return builder


def _candidates(path: Path, policy: Policy) -> tuple[dict[str, list[Listed]], ReadSummary]:
    """Passages per query of `qid pid pid` (the third is the negative) or `qid pid query passage` (the second is the candidate)."""
    summary, found = ReadSummary(path, policy), {}
    triples = path.name.startswith("qidpidtriples")
    for _, fields in _tabs(read_lines(summary), 3 if triples else 4, summary, path.name):
        found.setdefault(fields[0], []).append(Listed(fields[2 if triples else 1]))
        summary.accepted += 1
    return found, summary.close()


def _texts(path: Path, policy: Policy) -> tuple[dict[str, str], ReadSummary]:
    """`id  text`, or MS MARCO's documents `docid  url  title  body`."""
    summary, texts = ReadSummary(path, policy), {}
    lines = read_lines(summary)
    head = list(islice(lines, SNIFFED))
    wide = bool(head) and head[0][1].count("\t") == 3
    for number, fields in _tabs(chain(head, lines), 4 if wide else 2, summary, path.name):
        text = document_text(*fields[2:]) if wide else fields[1]
        if fields[0] not in texts:
            texts[fields[0]] = text
            summary.accepted += 1
        elif texts[fields[0]] == text:
            summary.note("duplicate_doc", number, repr(fields[0]))
        else:
            summary.error("duplicate_doc", number, f"the id {fields[0]!r} has another text than before", text, "give one another id")
    return texts, summary.close()


def _tabs(lines: Iterator[Line], count: int, summary: ReadSummary, what: str) -> Iterator[tuple[int, list[str]]]:
    for number, text in lines:
        fields = text.split("\t")
        if len(fields) == count:
            yield number, fields
        else:
            summary.error("extra_tab" if len(fields) > count else "column_count", number,
                          f"expected {count} tab-separated columns in {what}, found {len(fields)} in", text, "mend or delete the line")


def _one(folder: Path, *patterns: str) -> Path:
    """The file of these patterns that comes first by name."""
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found[0]
    raise UserError(f"{folder}: found no {' or '.join(patterns)}")


# --------------------------------------------------------------------------------------------------------------- RetroMAE


def _retromae(folder: Path, split: str, policy: Policy, tokenizer: Tokenizer | None,
              strip_specials: bool) -> tuple[Builder, list[ReadSummary]]:
    """corpus/ and SPLIT_query/ (Arrow data sets of token ids with mapping_id.txt), SPLIT_qrels.txt; each line of it is one group."""
    passages, corpus_summary = _token_rows(folder / "corpus", policy, tokenizer, strip_specials)
    queries, queries_summary = _token_rows(folder / f"{split}_query", policy, tokenizer, strip_specials)
    summary = ReadSummary(_one(folder, f"{split}_qrels.txt*"), policy)
    builder = Builder(passages, summary)
    for number, (query, names) in _tabs(read_lines(summary), 2, summary, "RetroMAE's qrels"):
        if query not in queries:
            summary.error("judged_query_missing", number, f"the query {query!r} is not in {split}_query", mend="add it, or delete the line")
        else:
            builder.add(number, query, queries[query], [Listed(name) for name in names.split(",") if name])
    return builder, [corpus_summary, queries_summary, summary.close()]


def _token_rows(folder: Path, policy: Policy, tokenizer: Tokenizer | None, strip: bool) -> tuple[dict[str, np.ndarray], ReadSummary]:
    """Id -> token ids of a saved Arrow data set."""
    from datasets import load_from_disk

    summary = ReadSummary(folder, policy, unit="rows")
    try:
        rows = load_from_disk(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{folder}: expected a data set saved by the datasets library ({str(error).splitlines()[0]})") from None
    if "input_ids" not in rows.column_names:
        raise UserError(f"{folder}: expected the column input_ids, found {', '.join(rows.column_names)}")
    mapping = ReadSummary(folder / "mapping_id.txt", policy)
    tokens: dict[str, np.ndarray] = {}
    for number, (name, row) in _pairs(mapping):
        if not row.isdigit() or int(row) >= len(rows):
            raise UserError(f"{mapping.source}:{number}: expected a row from 0 to {len(rows) - 1}, found {row!r}")
        ids = np.asarray(rows[int(row)]["input_ids"], dtype=np.int64)
        ids = _checked(ids, name, int(row), summary, tokenizer, strip)
        if ids is not None:
            tokens[name] = ids
            summary.accepted += 1
    summary.lines = len(rows)
    return tokens, summary.close()


def _pairs(summary: ReadSummary) -> Iterator[tuple[int, Sequence[str]]]:
    lines = read_lines(summary)
    head = list(islice(lines, SNIFFED))
    if not head:
        summary.close()
    return columns(chain(head, lines), head, (2,), summary, "a mapping of ids")[1]


def _checked(ids: np.ndarray, name: str, row: int, summary: ReadSummary, tokenizer: Tokenizer | None, strip: bool) -> np.ndarray | None:
    if tokenizer is None:
        return ids
    outside = ids[(ids < 0) | (ids >= tokenizer.size)]
    if len(outside):
        summary.error("token_range", row + 1, f"the token id {outside[0]} of {name!r} is outside the vocabulary of {tokenizer.size}",
                      mend="take the tokenizer that made the data")
        return None
    special = tokenizer.special[ids]
    if special.any():
        if not strip:
            summary.error("special_in_ids", row + 1, f"the token ids of {name!r} hold the special token {ids[special][0]}",
                          mend="set strip_specials to remove them")
            return None
        summary.note("special_in_ids", row + 1, count=int(special.sum()))
    return ids[~special]
