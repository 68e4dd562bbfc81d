"""`foretext respond` and `foretext evaluate --task response-selection`: the best responses to a message, and how good they are."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretext.errors import UserError
from foretext.files import read_json, refuse_existing, whole_folder, write_json
from foretext.retrieval import response_selection as selection
from foretext.retrieval.vectors import open_vectors
from foretext.summary import ReadSummary, read_lines
from foretext.text.corpus import ReadOptions, find_sources, read_documents
from foretext.text.dialogues import read_examples
from foretext.training.distributed import World
from foretext.verbs.models import open_encoder
from foretext.verbs.shared import shared

BASELINES = ("bm25", "mean-embeddings")


@dataclass
class Responder:
    """A model and the responses it chooses from.

    Attributes:
        vectors: float32 (R, D) of the responses.
        notes: lines for a person: what was read, and whether the vectors were there already.
    """

    model: Any
    texts: list[str]
    vectors: np.ndarray
    notes: list[str]

    def rank(self, contexts: Sequence[str], earlier: Sequence[Sequence[str]] | None = None, k: int = 5) -> list[list[tuple[float, str]]]:
        """For each context the k best responses, (score, text), best first; equal scores in the file's order.

        A response that repeats the message word for word is left out.

        Args:
            earlier: for each context the turns before it, most recent first, for a model that reads them.
        """
        similarity = getattr(self.model, "similarity", "cosine")
        asked = selection.comparable(selection.context_vectors(self.model, contexts, earlier), similarity)
        scores = asked @ selection.comparable(self.vectors, similarity).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k + 1]
        return [[(float(scores[i, j]), self.texts[j]) for j in best if self.texts[j] != context][:k]
                for i, (context, best) in enumerate(zip(contexts, order))]

    @property
    def reads_earlier_turns(self) -> bool:
        return selection.reads_earlier_turns(self.model)


def open_responder(model: str, responses: str | Path, vectors: str | Path | None = None, text_field: str | None = None) -> Responder:
    """Load a model and the responses to choose from; their vectors are made once and kept.

    Args:
        responses: a file (a response per line; jsonl, csv, tsv by field; PolyAI's JSON lines: their `response`), or a folder that
            `foretext encode` wrote with the same model.
        vectors: where the vectors are kept; default: beside the file.

    Raises:
        UserError: nothing to read there, or vectors of another model in a folder of `encode`.
    """
    encoder, path = open_encoder(model), Path(responses)
    if (path / "documents.jsonl").is_file():
        return _from_encoded(encoder, path)
    texts, notes = read_responses(path, text_field)
    folder = Path(vectors) if vectors else path.with_name(path.name + ".vectors")
    made, note = _kept_vectors(encoder, texts, folder)
    return Responder(encoder, texts, made, [*notes, note])


def read_responses(path: Path, text_field: str | None = None) -> tuple[list[str], list[str]]:
    """(different texts in the order of the file, lines for a person)."""
    if text_field is None and path.is_file() and find_sources(path)[0].kind == "jsonl":
        first = next(read_lines(ReadSummary(path)), (1, ""))[1]
        if '"response"' in first:
            text_field = "response"
    summaries: list[ReadSummary] = []
    read = [document.text.strip() for document in read_documents(path, ReadOptions(text_field, layout="lines"), summaries)]
    texts = list(dict.fromkeys(read))
    notes = [line for summary in summaries for line in summary.report()]
    return texts, notes + [f"{len(texts):,} different responses, {len(read) - len(texts):,} repeated ones left out"]


def _kept_vectors(encoder: Any, texts: Sequence[str], folder: Path) -> tuple[np.ndarray, str]:
    """The responses' vectors: those in `folder` where model and texts are the same, else made and kept there."""
    described = {"format": 1, "model": encoder.fingerprint(), "responses": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
                 "count": len(texts)}  # fmt: skip
    reason = ""
    if (folder / "responses.json").is_file():
        there = read_json(folder / "responses.json")
        if there == described:
            return np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False), f"vectors: {folder} (used again)"
        reason = " (made anew: " + ("another model)" if there.get("model") != described["model"] else "the responses changed)")
    else:
        refuse_existing(folder)
    vectors = encoder.encode(list(texts), "document", show_progress=True)
    with whole_folder(folder, overwrite=True) as temporary:
        np.save(temporary / "vectors.npy", vectors)
        write_json(temporary / "responses.json", described)
    return vectors, f"vectors: {folder}{reason or ' (kept for the next time)'}"


def _from_encoded(encoder: Any, folder: Path) -> Responder:
    vectors = open_vectors(folder)
    if vectors.manifest.get("model") != encoder.fingerprint():
        raise UserError(f"{folder}: holds vectors of another model; encode the responses with this one, or name a file of responses")
    texts = {}
    with open(folder / "documents.jsonl", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            texts[record["_id"]] = record["text"]
    return Responder(encoder, [texts[name] for name in vectors.ids], np.concatenate(vectors.shards).astype(np.float32),
                     [f"vectors: {folder} ({len(vectors.ids):,} responses, of `foretext encode`)"])


def evaluate_responses(model: str, data: Sequence[str | Path] | str | Path, baselines: Sequence[str] = (), drop_same_author: bool = False,
                       output: str | Path | None = None, overwrite: bool = False, seed: int = 0, dtype: str = "auto") -> list[str]:
    """1-of-100 response selection on dialogue files, and recall over all their responses. Returns lines for a person.

    A model that reads earlier turns, and BM25, are scored with and without them.

    Args:
        model: run folder, model folder, hub id, or the word bm25.
        baselines: of `BASELINES`, scored beside it; mean-embeddings takes the model's own word vectors.
        drop_same_author: leave out responses in which the writer of the message goes on.
        output: folder for scores.json and per-example-N.tsv.
        dtype: see `models.open_encoder`.

    Raises:
        UserError: an unknown baseline, or data without dialogues or without authors.
    """
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise UserError(f"no baseline {unknown[0]!r}; there are {', '.join(BASELINES)}")
    if model == "bm25" and "mean-embeddings" in baselines:
        raise UserError("mean-embeddings are those of a model: name a model's folder instead of bm25")
    if output:
        refuse_existing(output, overwrite)
    summaries: list[ReadSummary] = []
    examples = list(read_examples(data, summaries=summaries))
    lines = [line for summary in summaries for line in summary.report()]
    if drop_same_author:
        if all(example.same_author is None for example in examples):
            raise UserError(f"{data}: no record says who wrote what (same_author, or context_author and response_author); "
                            "leave out --drop-same-author")
        kept = [example for example in examples if not example.same_author]
        lines.append(f"{len(examples) - len(kept):,} responses by the writer of the message left out")
        examples = kept
    found = []
    world = World.join()
    encoder = None if model == "bm25" else shared(open_encoder(model, dtype, world.device), world)
    if encoder is not None:
        name = Path(model).name or model
        for earlier in (True, False) if selection.reads_earlier_turns(encoder) else (False,):
            scorer = selection.vector_scorer(encoder, examples, earlier)
            found.append(selection.select(f"{name}, with earlier turns" if earlier else name, scorer, examples, seed=seed))
    if model == "bm25" or "bm25" in baselines:
        for earlier in (False, True):
            scorer = selection.bm25_scorer(examples, earlier)
            found.append(selection.select("BM25, with earlier turns" if earlier else "BM25", scorer, examples, seed=seed))
    if "mean-embeddings" in baselines:
        means = selection.MeanEmbeddings(encoder.encoder.words.weight.detach().cpu().numpy(), encoder.tokenizer, encoder.lowercase)
        found.append(selection.select("mean of embeddings", selection.vector_scorer(means, examples), examples, seed=seed))
    lines += ["", *selection.table(found)]
    if not world.first:
        return []
    if output:
        options = {"model": model, "data": str(data), "drop_same_author": drop_same_author, "seed": seed}
        selection.write(output, found, options, overwrite)
        lines += ["", f"{output}: scores.json, per-example-1.tsv, ..."]
    return lines
