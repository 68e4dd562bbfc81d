"""A retrieval collection: documents, queries, judgements. Reads and writes BEIR folders."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foretext.errors import UserError
from foretext.files import whole_file, whole_folder
from foretext.retrieval.qrels import Judgements, Qrels, read_qrels, write_qrels
from foretext.retrieval.records import json_id, json_records, json_text
from foretext.summary import DEFAULT_POLICY, Policy, ReadSummary, read_lines

ID_KEYS = ("_id", "id")
COMPRESSED = ("", ".gz", ".zst", ".xz", ".bz2")
QRELS_SUFFIXES = (".tsv", ".txt", ".qrels", ".trec", ".jsonl")


@dataclass
class Collection:
    """Documents and queries, and judgements by split.

    `documents[i]` is the text of the document `document_ids[i]`: title, a blank, text (or text alone without a title).
    """

    name: str
    document_ids: list[str]
    documents: list[str]
    queries: dict[str, str]  # id -> text
    judgements: dict[str, Qrels] = field(default_factory=dict)  # split -> judgements as read
    summaries: list[ReadSummary] = field(default_factory=list)
    policy: Policy = DEFAULT_POLICY
    folder: Path | None = None
    strip_ids: bool = False

    @classmethod
    def of(cls, name: str, documents: Mapping[str, str], queries: Mapping[str, str],
           **judgements: Judgements) -> "Collection":
        """A collection from memory: `Collection.of("mine", {id: text}, {id: text}, test={query: {document: 1}})`."""
        qrels = {split: Qrels(grades, ReadSummary(f"{name} {split}", accepted=sum(map(len, grades.values()))))
                 for split, grades in judgements.items()}
        return cls(name, list(documents), list(documents.values()), dict(queries), qrels)

    def qrels(self, split: str) -> Qrels:
        """Judgements of one split, read from the folder on first use.

        Raises:
            UserError: there is no such split; the message lists those there are.
        """
        if split not in self.judgements:
            path = _find_qrels(self.folder, split) if self.folder else None
            if path is None:
                where = self.folder or self.name
                raise UserError(f"{where}: no judgements for the split {split!r};"
                                f" there are {', '.join(self.splits()) or 'none at all (expected qrels/test.tsv)'}")
            self.judgements[split] = read_qrels(path, self.policy, self.strip_ids)
            self.summaries.append(self.judgements[split].summary)
        return self.judgements[split]

    def splits(self) -> list[str]:
        """Names of the splits that have judgements, sorted."""
        found = set(self.judgements)
        if self.folder:
            for path in [*self.folder.glob("qrels/*"), *self.folder.glob("*_qrels.jsonl*")]:
                stem = path.name.split(".")[0].removesuffix("_qrels")
                if not path.name.startswith(".") and _find_qrels(self.folder, stem) is not None:
                    found.add(stem)
        return sorted(found)


@dataclass(frozen=True)
class Split:
    """What an evaluation asks: judged queries (in the order of the queries file) and their judgements."""

    name: str
    query_ids: list[str]
    query_texts: list[str]
    judgements: Judgements
    summary: ReadSummary


def read_collection(folder: str | Path, policy: Policy = DEFAULT_POLICY, strip_ids: bool = False,
                    split: str | None = None) -> Collection:
    """Read `corpus.jsonl` and `queries.jsonl` (also compressed) of a BEIR folder; judgements are read when asked for.

    Args:
        strip_ids: remove white space around all ids, counted.
        split: where there is no `queries.jsonl`, `{split}_queries.jsonl` is read (FlagEmbedding's evaluation folders).

    Raises:
        UserError: a file is missing or malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with corpus.jsonl, queries.jsonl and qrels/")
    document_ids, documents, corpus_summary = read_corpus(_file(folder, "corpus.jsonl"), policy, strip_ids)
    names = ["queries.jsonl"] + ([f"{split}_queries.jsonl"] if split else [])
    queries, queries_summary = read_queries(_file(folder, *names), policy, strip_ids)
    return Collection(folder.resolve().name, document_ids, documents, queries, {}, [corpus_summary, queries_summary],
                      policy, folder, strip_ids)


def read_corpus(path: str | Path, policy: Policy = DEFAULT_POLICY,
                strip_ids: bool = False) -> tuple[list[str], list[str], ReadSummary]:
    """Ids and texts of a `corpus.jsonl` (`_id` or `id`, `text`, optional `title`). Documents without text are kept."""
    summary = ReadSummary(path, policy)
    texts: dict[str, str] = {}
    first_lines: dict[str, int] = {}
    for number, record in json_records(read_lines(summary), summary):
        identifier = json_id(record, ID_KEYS, number, summary, strip_ids)
        title = None if identifier is None else json_text(record, "title", number, summary, required=False)
        text = None if title is None else json_text(record, "text", number, summary, required=True)
        if text is None:
            continue
        text = document_text(title, text)
        if _is_new(identifier, text, texts, first_lines, "duplicate_doc", number, summary):
            if not text.strip():
                summary.note("empty_doc", number, repr(identifier))
            texts[identifier] = text
            summary.accepted += 1
    summary.close()
    return list(texts), list(texts.values()), summary


def document_text(title: str, text: str) -> str:
    """Title, a blank, text; text alone when the title is empty. The one place where this rule stands."""
    return f"{title} {text}" if title.strip() else text


def read_queries(path: str | Path, policy: Policy = DEFAULT_POLICY,
                 strip_ids: bool = False) -> tuple[dict[str, str], ReadSummary]:
    """Texts by id of a `queries.jsonl` (`_id` or `id`, `text`)."""
    summary = ReadSummary(path, policy)
    queries: dict[str, str] = {}
    first_lines: dict[str, int] = {}
    for number, record in json_records(read_lines(summary), summary):
        identifier = json_id(record, ID_KEYS, number, summary, strip_ids)
        text = None if identifier is None else json_text(record, "text", number, summary, required=True)
        if text is None:
            continue
        if not text.strip():
            summary.error("empty_query", number, f"the query {identifier!r} has no text", mend="give it one")
        elif _is_new(identifier, text, queries, first_lines, "duplicate_query", number, summary):
            queries[identifier] = text
            summary.accepted += 1
    summary.close()
    return queries, summary


def _is_new(identifier: str, text: str, texts: dict[str, str], first_lines: dict[str, int], reason: str, number: int,
            summary: ReadSummary) -> bool:
    """False if the id was there before: noted when the text is the same, an error when it is not."""
    if identifier not in texts:
        first_lines[identifier] = number
        return True
    if texts[identifier] == text:
        summary.note(reason, number, repr(identifier))
    else:
        summary.error(reason, number, f"the id {identifier!r} has another text than on line {first_lines[identifier]}",
                      text, "give one of them another id, or delete it")
    return False


def judged_split(collection: Collection, split: str, drop_missing_docs: bool = False) -> Split:
    """Bring queries and judgements of a split together; every id that finds no partner is counted or refused.

    Args:
        drop_missing_docs: forget judgements of documents that are not in the corpus (default: they stay in the
            denominators of recall and nDCG).

    Raises:
        UserError: an id matches only after trimming, a judged query has no text, or nothing is left to evaluate.
    """
    qrels = collection.qrels(split)
    corpus, queries = set(collection.document_ids), collection.queries
    summary = ReadSummary(qrels.summary.source, collection.policy, len(queries), unit="queries")
    trimmed_corpus, trimmed_queries = _Trimmed(corpus), _Trimmed(queries)
    kept: Judgements = {}
    for query, judged in qrels.grades.items():
        if query not in queries:
            number = qrels.lines.get((query, next(iter(judged))))
            trimmed_queries.check(query, number, "queries file", summary)
            summary.error("judged_query_missing", number, f"the query {query!r} is judged, but not in the queries file",
                          mend="add its text, or delete its judgements")
            continue
        kept[query] = {}
        for document, grade in judged.items():
            if document not in corpus:
                number = qrels.lines.get((query, document))
                trimmed_corpus.check(document, number, "corpus", summary)
                if drop_missing_docs:
                    summary.note("drop_missing_docs", number, repr(document))
                    continue
                summary.note("judged_doc_missing", number, repr(document))
            kept[query][document] = grade
    summary.accepted = len(kept)
    order = [query for query in queries if query in kept]
    if unjudged := len(queries) - len(order):
        summary.note("query_unjudged", count=unjudged)
    summary.close()
    summary.source = f"{collection.name}, split {split}"  # from here on it is about the split, no longer about lines
    return Split(split, order, [queries[query] for query in order], {query: kept[query] for query in order}, summary)


class _Trimmed:
    """Finds the id that was meant when two differ only by white space around them. Built when first needed."""

    def __init__(self, ids: Iterable[str]):
        self.ids, self.index = ids, None

    def check(self, identifier: str, number: int | None, where: str, summary: ReadSummary) -> None:
        if self.index is None:
            self.index = {known.strip(): known for known in self.ids}
        if (meant := self.index.get(identifier.strip())) is not None:
            raise summary.stop("id_trim", number, f"the id {identifier!r} is not in the {where}, but {meant!r} is",
                               mend="make them equal, or set strip_ids")


def write_collection(folder: str | Path, collection: Collection, overwrite: bool = False) -> None:
    """Write a BEIR folder (`corpus.jsonl` with empty titles, `queries.jsonl`, `qrels/*.tsv`), whole or not at all."""
    corpus = zip(collection.document_ids, collection.documents)
    splits = {split: collection.qrels(split).grades for split in collection.splits()}
    with whole_folder(folder, overwrite) as temporary:
        for name, records in (
            ("corpus", ({"_id": i, "title": "", "text": t} for i, t in corpus)),
            ("queries", ({"_id": i, "text": t} for i, t in collection.queries.items())),
        ):
            with whole_file(temporary / f"{name}.jsonl", "w") as file:
                for record in records:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        for split, judgements in splits.items():
            write_qrels(temporary / "qrels" / f"{split}.tsv", judgements)


def _file(folder: Path, *names: str) -> Path:
    for name in names:
        for suffix in COMPRESSED:
            if (path := folder / (name + suffix)).exists():
                return path
    raise UserError(f"{folder}: found no {' or '.join(names)}; expected a BEIR folder with corpus.jsonl, queries.jsonl"
                    " and qrels/")


def _find_qrels(folder: Path, split: str) -> Path | None:
    if Path(split).name != split:  # a split is a name, not a way out of the folder
        return None
    names = [f"qrels/{split}{suffix}" for suffix in QRELS_SUFFIXES] + [f"{split}_qrels.jsonl"]
    return next((folder / (n + c) for n in names for c in COMPRESSED if (folder / (n + c)).exists()), None)
