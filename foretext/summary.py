"""Reading files line by line, with an account of everything that was not plain: nothing changes silently.

Every kind of defect has a reason name (`REASONS`). A reader meets a defect in one of two ways: `ReadSummary.error`
stops with one sentence, or skips the record and counts it where `skip` names the reason; `ReadSummary.note` goes on and
counts it, or stops where `strict` names the reason.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretext.archives import damage_is_a_sentence, open_bytes
from foretext.errors import UserError

EXAMPLES = 5  # lines remembered per reason

REASONS = {
    "crlf": "CRLF line end; the CR was removed",
    "bom": "byte-order mark at the start of the file; removed",
    "no_header": "no header line; the first line was read as data",
    "header_names": "other column names or another order than usual; columns taken by name",
    "column_count": "another number of columns than usual for this kind of file",
    "json_qrels": "judgements as JSON lines",
    "numeric_id": "JSON number as an id; its decimal text was used",
    "blank_in_id": "white space inside an id",
    "id_trim": "id that only matches after trimming white space",
    "strip_ids": "white space around an id; removed as asked",
    "same_id": "document with the query's own id; dropped from the ranking",
    "judged_doc_missing": "judged document that is not in the corpus; it still counts in recall and nDCG",
    "drop_missing_docs": "judgement of a document that is not in the corpus; dropped as asked",
    "judged_query_missing": "judged query that is not in the queries file",
    "query_unjudged": "query without judgements; not evaluated",
    "query_not_in_run": "judged query that is not in the run; scored 0",
    "no_relevant": "judged query without a relevant document; scored 0",
    "negative_grade": "negative grade; counts as gain 0",
    "score_missing": "listed passage or judgement without a score",
    "duplicate_doc": "document id that occurs twice",
    "duplicate_query": "query id that occurs twice",
    "duplicate_judgement": "the same (query, document) judged twice",
    "duplicate_in_run": "the same (query, document) ranked twice",
    "rank_order": "rank that disagrees with the order of the scores; the scores were used",
    "empty_doc": "document without text",
    "empty_query": "query without text",
    "empty_context": "response to a message without text",
    "empty_response": "response without text",
    "empty_turn": "earlier turn without text; left out",
    "single_turn": "dialogue of fewer than two turns",
    "context_gap": "earlier turns numbered with gaps; taken in the order of their numbers",
    "no_thread": "record without thread_id; it counts as a conversation of its own",
    "tab_count": "line with another number of tabs than one",
    "null_text": "null text; treated as empty",
    "text_type": "title or text that is not a string",
    "non_utf8": "bytes that are not UTF-8",
    "nul": "NUL character in a text; removed",
    "extra_tab": "tab inside a field of a tab file",
    "truncated_json": "line that is not valid JSON",
    "missing_key": "JSON record without a required key",
    "blank_line": "blank line",
    "empty_list": "id with an empty list",
    "negative_is_positive": "negative that is also a positive; removed from the negatives",
    "duplicate_negative": "negative listed twice; removed",
    "no_positive": "training group without a positive passage",
    "doc_missing": "id of a document that is not in the corpus",
    "score_value": "score that is not a plain number",
    "score_count": "score list of another length than its texts",
    "token_range": "token id outside the vocabulary",
    "special_in_ids": "special token inside an id list",
    "memmap_size": "file size that does not fit the shape",
    "knn_range": "neighbour number outside the collection",
    "too_long": "text over the token limit",
    "too_short": "text too short to use",
    "changed": "file that differs from its manifest",
    "syntax_error": "source file that does not parse",
    "repeated_name": "name that was documented before; the first is kept",
}
LEFT_OUT_ANYWAY = {  # nothing is lost with them, so they are outside `max_skip_share`
    "blank_line", "empty_doc", "empty_context", "empty_response", "single_turn", "tab_count"}


@dataclass(frozen=True)
class Policy:
    """What a user wants done about defects.

    Args:
        skip: reasons whose records are skipped and counted instead of stopping.
        strict: reasons that stop instead of being counted.
        max_skip_share: largest share of records that may be skipped, 0 to 1.

    Raises:
        UserError: an unknown reason.
    """

    skip: frozenset[str] = frozenset()
    strict: frozenset[str] = frozenset()
    max_skip_share: float = 0.05

    def __post_init__(self):
        for name in ("skip", "strict"):
            reasons = getattr(self, name)
            reasons = frozenset([reasons] if isinstance(reasons, str) else reasons)
            if unknown := sorted(reasons - REASONS.keys()):
                raise UserError(f"{name}: unknown reason {unknown[0]!r}; the reasons are {', '.join(sorted(REASONS))}")
            object.__setattr__(self, name, reasons)


DEFAULT_POLICY = Policy()


@dataclass
class ReadSummary:
    """What a reader met in one file. `source` is the path (or another name) that error messages show."""

    source: str | Path
    policy: Policy = DEFAULT_POLICY
    lines: int = 0  # lines (or records, where there are no lines) seen
    accepted: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    first_examples: list[tuple[int, str]] = field(default_factory=list)  # (line, reason), at most 5 per reason
    details: dict[str, list[str]] = field(default_factory=dict)  # reason -> what to show a person, at most 5
    unit: str = "lines"  # what `lines` counts
    guesses: list[str] = field(default_factory=list)  # what the reader decided for itself, as sentences

    def error(self, reason: str, line: int | None, message: str, found: str | None = None, mend: str = "") -> None:
        """Stop with one sentence, or, if the policy skips `reason`, count a skipped record and return.

        Args:
            line: line number from 1, or None when the defect has no single line.
            message: what was expected and what is wrong.
            found: the offending text; its first 80 characters are shown.
            mend: how to mend it; empty offers to skip such records.

        Raises:
            UserError: `reason` is not skipped.
        """
        if reason in self.policy.skip:
            self._count(self.skipped, reason, line, 1, None)
            return
        raise self.stop(reason, line, message, found, mend or f"mend the line, or skip such records with skip={reason}")

    def stop(self, reason: str, line: int | None, message: str, found: str | None = None, mend: str = "") -> UserError:
        """The exception of `error`, for defects that cannot be skipped."""
        place = str(self.source) if line is None else f"{self.source}:{line}"
        if found is not None:
            message += f", found {found[:80]!r}{'...' if len(found) > 80 else ''}"
        return UserError(f"{place}: {message} ({reason}){'; ' + mend if mend else ''}")

    def note(self, reason: str, line: int | None = None, detail: str | None = None, count: int = 1) -> None:
        """Count something worth knowing and go on; if the policy is strict about `reason`, stop.

        Raises:
            UserError: `reason` is in the policy's `strict`.
        """
        if reason in self.policy.strict:
            what = REASONS[reason] + (f": {detail}" if detail else "")
            raise self.stop(reason, line, what, mend=f"mend the file, or take {reason} out of strict")
        self._count(self.notes, reason, line, count, detail)

    def skip(self, reason: str, line: int | None = None, detail: str | None = None) -> None:
        """Count a record that this kind of reader always leaves out (blank documents in pre-training, for example)."""
        if reason in self.policy.strict:
            self.note(reason, line, detail)
        self._count(self.skipped, reason, line, 1, detail)

    def _count(self, counter: Counter[str], reason: str, line: int | None, count: int, detail: str | None) -> None:
        assert reason in REASONS, reason
        counter[reason] += count
        if counter[reason] - count < EXAMPLES:  # cheap test first: this runs once per line of a CRLF file
            if line is not None:
                self.first_examples.append((line, reason))
            if detail is not None:
                self.details.setdefault(reason, []).append(detail)

    def add(self, other: "ReadSummary") -> None:
        """Take in the summary of a later piece of the same source."""
        self.lines += other.lines
        self.accepted += other.accepted
        self.unit = other.unit
        self.guesses += [guess for guess in other.guesses if guess not in self.guesses]
        for line, reason in other.first_examples:
            if sum(known == reason for _, known in self.first_examples) < EXAMPLES:
                self.first_examples.append((line, reason))
        for reason, details in other.details.items():
            self.details[reason] = (self.details.get(reason, []) + details)[:EXAMPLES]
        self.skipped += other.skipped
        self.notes += other.notes

    def close(self) -> "ReadSummary":
        """Check the whole file: something was accepted, and not too much was skipped.

        Raises:
            UserError: nothing was accepted, or more than `max_skip_share` of the records was skipped.
        """
        skipped = sum(count for reason, count in self.skipped.items() if reason not in LEFT_OUT_ANYWAY)
        records = skipped + self.accepted
        why = ", ".join(f"{reason} {count:,}" for reason, count in self.skipped.most_common())
        if not self.accepted:
            raise UserError(f"{self.source}: no usable record in {self.lines:,} {self.unit}"
                            f"{' (skipped: ' + why + ')' if why else ''}; is this the right file?")
        if skipped > self.policy.max_skip_share * records:
            raise UserError(f"{self.source}: {skipped:,} of {records:,} records skipped ({why}), more than"
                            f" {self.policy.max_skip_share:.0%}; mend the file, or raise max_skip_share")
        return self

    def report(self) -> list[str]:
        """Lines for a person: one with the counts, one per guess, one per reason."""
        out = [f"{self.source}: {self.lines:,} {self.unit}, {self.accepted:,} accepted"
               + (f", {self.skipped.total():,} skipped" if self.skipped else "")]
        out += [f"  {guess}" for guess in self.guesses]
        for what, counter in (("skipped ", self.skipped), ("", self.notes)):
            for reason, count in sorted(counter.items()):
                lines = [line for line, name in self.first_examples if name == reason]
                where = f"; line {', '.join(map(str, lines))}" if lines else ""
                details = f"; {', '.join(self.details[reason])}" if self.details.get(reason) else ""
                more = ", ..." if count > EXAMPLES and (lines or details) else ""
                out.append(f"  {what}{reason} {count:,}: {REASONS[reason]}{details or where}{more}")
        return out

    def as_dict(self) -> dict[str, Any]:
        """For manifests: plain values, stable order."""
        return {"source": str(self.source), "unit": self.unit, "lines": self.lines, "accepted": self.accepted,
                "skipped": dict(sorted(self.skipped.items())), "notes": dict(sorted(self.notes.items())),
                "first_examples": [list(example) for example in self.first_examples], "guesses": self.guesses}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "ReadSummary":
        """The inverse of `as_dict`, but for the policy."""
        return ReadSummary(value["source"], DEFAULT_POLICY, value["lines"], value["accepted"], Counter(value["skipped"]),
                           Counter(value["notes"]), [(line, reason) for line, reason in value["first_examples"]], {}, value["unit"],
                           list(value["guesses"]))


def read_lines(summary: ReadSummary) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without its line end) of the UTF-8 file `summary.source`; counts the lines.

    Lines end at LF only. One CR before the LF, a byte-order mark and NUL characters are removed and counted, blank
    lines are left out and counted. Files that end in .gz, .zst, .xz or .bz2 are decompressed on the way.

    Raises:
        UserError: the file is missing, an archive is damaged, or bytes are not UTF-8.
    """
    path = Path(summary.source)
    first = True
    with damage_is_a_sentence(path), open_bytes(path) as file:
        for number, raw in enumerate(file, start=1):
            summary.lines = number
            if first:
                first = False
                if raw.startswith(b"\xef\xbb\xbf"):
                    raw = raw[3:]
                    summary.note("bom", number)
            if raw.endswith(b"\r\n"):
                raw = raw[:-2]
                summary.note("crlf", number)
            elif raw.endswith(b"\n"):
                raw = raw[:-1]
            elif raw.endswith(b"\r"):  # the last line of a CRLF file that was cut before its LF
                raw = raw[:-1]
                summary.note("crlf", number)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                summary.error("non_utf8", number, f"expected UTF-8, found byte 0x{raw[error.start]:02x} at byte"
                              f" {error.start} of the line", mend="convert the file to UTF-8")
                continue
            if "\0" in text:
                summary.note("nul", number, count=text.count("\0"))
                text = text.replace("\0", "")
            if not text or text.isspace():
                summary.note("blank_line", number)
                continue
            yield number, text
