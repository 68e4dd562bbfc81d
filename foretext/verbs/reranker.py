"""`foretext finetune reranker` and `foretext rerank`: groups in, a cross-encoder out; candidates in, its ranking and scores out."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from foretext.errors import UserError
from foretext.files import whole_folder
from foretext.interop.classifier import export_classifier
from foretext.objectives.rerank import Rerank
from foretext.progress import console
from foretext.retrieval.bm25 import BM25
from foretext.retrieval.collection import Collection, judged_split, read_collection
from foretext.retrieval.evaluate import evaluate, table
from foretext.retrieval.group_folders import apply_scores
from foretext.retrieval.groups import Groups, numbered, read_groups, write_groups
from foretext.retrieval.rerank import CrossScorer, rerank
from foretext.retrieval.runs import Run, as_run, read_run, write_columns, write_run
from foretext.retrieval.search import search
from foretext.summary import Policy
from foretext.text.batches import uniform_of_documents
from foretext.text.grouped import GroupedPairs
from foretext.training.distributed import World
from foretext.training.loop import Result, TrainingConfig, train
from foretext.verbs.models import open_encoder
from foretext.verbs.pretrain import EncoderChoice, load_best, start_encoder, tokenizer_of
from foretext.verbs.retriever import FinetuneOptim


class RerankerTraining(TrainingConfig):
    """The loop's settings with the defaults of rerankers (RetroMAE's and Gao et al.'s recipes)."""

    default_budget: ClassVar[dict[str, float]] = {"epochs": 2}

    batch_size: int = Field(16, gt=0, description="queries of one update, each with its group")
    optim: FinetuneOptim = FinetuneOptim()


class RerankerConfig(BaseModel):
    """Settings of `foretext finetune reranker`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="groups, in any form that `finetune retriever` reads; a file that `foretext mine` wrote")
    output: str = Field(description="run folder to make, or to go on with")
    split: str = Field("train", description="of a folder: judgements to train on")
    negatives: str | None = Field(None, description="file of negatives: `qid, tab, pid,pid`, or what `foretext mine` writes")
    scores: str | None = Field(None, description="file of teacher scores, for the losses kl and margin_mse")
    skip: tuple[str, ...] = Field((), description="defects of records to skip and count instead of stopping, by reason name")
    group_size: int = Field(8, gt=1, description="passages of a query: one positive, the others negatives (RetroMAE: 65)")
    topk: int = Field(200, gt=0, description="negatives are drawn from the first so many of a query's list")
    valid_share: float = Field(0.05, ge=0, lt=1, description="share of queries held out, whose loss chooses the checkpoint")
    encoder: EncoderChoice = Field(description="what to fine-tune")
    tokenizer: str | None = Field(None, description="with an encoder from scratch: folder or hub id of its tokenizer")
    objective: Rerank.Config = Rerank.Config()
    training: RerankerTraining = RerankerTraining()


@dataclass
class Reranker:
    """What the verb leaves behind."""

    folder: Path
    export: Path
    result: Result

    def lines(self) -> list[str]:
        last = {name.removeprefix("valid_"): value for name, value in self.result.last.items() if name.startswith("valid_")}
        held_out = [f"held out: loss {last['loss']:.4f}, positive first {last['first']:.1%}"] if last else []
        return [f"{self.result.steps:,} steps, {self.result.tokens:,} tokens", *held_out, f"run:   {self.folder}",
                f"model: {self.export}  (loads in transformers and in sentence-transformers' CrossEncoder)"]  # fmt: skip


def finetune(config: RerankerConfig, overwrite: bool = False) -> Reranker | None:
    """Fine-tune a cross-encoder on groups, keep the checkpoint that is best on held-out queries, export it.

    Returns:
        None on all processes but the first.
    Raises:
        UserError: settings or data that cannot be used. Stopped: a signal came; a checkpoint is written.
    """
    world = World.join()
    tokenizer = tokenizer_of(config.encoder.start, config.tokenizer)
    groups = read_groups(config.data, config.negatives, config.scores, Policy(config.skip), split=config.split, tokenizer=tokenizer)
    if world.first:
        console.print("\n".join(groups.report()), markup=False)
    torch.manual_seed(config.training.seed)
    encoder, *_ = start_encoder(config.encoder, tokenizer, longest=config.objective.max_len or 512)
    objective = Rerank(encoder, tokenizer, config.objective)
    if config.objective.loss in ("kl", "margin_mse") and all(e.score is None for g in groups.groups for e in (*g.positives, *g.negatives)):
        raise UserError(f"{config.data}: the loss {config.objective.loss} needs teacher scores, and there are none; name a file of scores")
    kept, held_out = split_queries(groups, config.valid_share)
    source = grouped(groups, kept, objective, config)
    valid = grouped(groups, held_out, objective, config) if held_out else None
    output = Path(config.output)
    result = train(objective, source, output, config.training, valid, world, overwrite)
    if not world.first:
        return None
    load_best(objective, output, result)
    metrics = {name: round(value, 4) for name, value in result.last.items() if name.startswith("valid_")}
    card = {"title": "A reranker", "reranker": True, "data": f"{Path(config.data).resolve().name}: {len(kept):,} groups",
            "steps": result.steps, "encoder": config.encoder.start, "metrics": metrics}  # fmt: skip
    return Reranker(output, export_classifier(as_scorer(objective), output / "export", card, overwrite=True), result)


def as_scorer(objective: Rerank) -> CrossScorer:
    """The objective's live networks as something that scores."""
    objective.eval()
    return CrossScorer(objective.encoder, objective.head, objective.tokenizer, ("score",), "score", objective.max_len, cut="second")


def split_queries(groups: Groups, share: float) -> tuple[list[int], list[int]]:
    """Numbers of the groups to train on and of those held out; a query is never on both sides."""
    number: dict[str, int] = {}
    asks = torch.tensor([number.setdefault(group.query_id, len(number)) for group in groups.groups])
    held_out = uniform_of_documents(asks) < share
    if held_out.all():
        held_out[:] = False
    return (~held_out).nonzero().flatten().tolist(), held_out.nonzero().flatten().tolist()


def grouped(groups: Groups, rows: list[int], objective: Rerank, config: RerankerConfig) -> GroupedPairs:
    """Some of the groups as the loop reads them: `group_size` passages of each query, the positive first."""
    some = [groups.groups[row] for row in rows]
    passages, positives, negatives = numbered(some, groups.passages, config.group_size, config.topk)
    queries: dict[str, int] = {}
    asks = np.array([queries.setdefault(group.query_id, len(queries)) for group in some], np.int64)
    texts = {group.query_id: group.query for group in some}
    source = GroupedPairs([texts[query] for query in queries], passages, asks, positives, negatives, objective.tokenizer,
                          config.group_size, config.topk, longest=(objective.max_len, objective.max_len))
    refuse_long_queries(source, list(queries), objective)
    return source


def refuse_long_queries(source: GroupedPairs, names: list[str], objective: Rerank) -> None:
    """Only passages are cut: a query that fills the input alone is an error, unless it may be cut."""
    config = objective.encoder.config
    room = objective.max_len - 2 - objective.tokenizer.separators[config.family in ("bert", "electra")]
    longest = int(source.queries.lengths.argmax())
    if source.queries.lengths[longest] >= room and not objective.config.truncate_query:
        raise UserError(f"the query {names[longest]!r} has {source.queries.lengths[longest]:,} tokens, which leaves a passage no room in "
                        f"max_len {objective.max_len}: raise objective.max_len, or set objective.truncate_query")


# ------------------------------------------------------------------------------------------------------------------ scoring


def score_candidates(model: str, data: str, output: str, run: str | None = None, first: str = "bm25", k: int = 200, split: str = "test",
                     with_positives: bool = False, overwrite: bool = False, dtype: torch.dtype | None = None) -> list[str]:  # fmt: skip
    """Score the first `k` candidates of every judged query, or every passage of a file of groups.

    Writes into the folder `output`: `run.trec` (the new ranking), `scores.tsv` (`qid pid score`, a teacher's scores), and for a file
    of groups `groups.jsonl` (the same groups with scores).

    Args:
        run: candidates; default: those that `first` (a model, or bm25) finds.
        with_positives: score the judged answers too, also where no candidate is one: distillation needs them.
        dtype: of the computation; default: fp32 on the CPU, bf16 on a GPU that multiplies it.
    """
    scorer = CrossScorer.load(model, dtype=dtype)
    if Path(data).is_file():
        return _score_groups(scorer, data, output, overwrite)
    collection = read_collection(data)
    asked = judged_split(collection, split)
    texts = dict(zip(collection.document_ids, collection.documents))
    queries = dict(zip(asked.query_ids, asked.query_texts))
    if run:
        found = {query: ranked for query, ranked in read_run(run)[0].items() if query in queries}
        if not found:
            raise UserError(f"{run}: ranks none of the queries judged in the split {split!r}; is it of another split?")
    else:
        found = candidates(first, collection, queries, k)
    again = rerank(scorer, found, queries, texts, k, show_progress=True)
    teacher = again
    if with_positives:
        missing: Run = {query: {name: 0.0 for name, grade in asked.judgements[query].items()
                                if grade > 0 and name in texts and name not in again.get(query, {})} for query in queries}  # fmt: skip
        extra = rerank(scorer, missing, queries, texts, max(map(len, missing.values())) or 1, show_progress=True)
        teacher = {query: again.get(query, {}) | extra[query] for query in queries}
    with whole_folder(output, overwrite) as folder:
        write_run(folder / "run.trec", again, "foretext-rerank")
        write_columns(folder / "scores.tsv", teacher)
    before, after = (evaluate(ranked, collection, split, name=name) for ranked, name in ((found, "candidates"), (again, "reranked")))
    return [*table([before, after], against=0), f"scores: {output}  (run.trec, scores.tsv: {sum(map(len, teacher.values())):,} pairs)"]


def _score_groups(scorer: CrossScorer, data: str, output: str, overwrite: bool) -> list[str]:
    groups = read_groups(data)
    pairs = [(g.query_id, g.query, entry.id) for g in groups.groups for entry in (*g.positives, *g.negatives)]
    if not all(isinstance(groups.passages[name], str) and isinstance(query, str) for _, query, name in pairs):
        raise UserError(f"{data}: holds token ids, and a reranker of another vocabulary reads texts")
    scores = scorer.score([query for _, query, _ in pairs], [groups.passages[name] for _, _, name in pairs], show_progress=True)
    run: Run = {}
    for (query, _, name), score in zip(pairs, scores.tolist()):
        run.setdefault(query, {})[name] = score
    apply_scores(groups, run)
    with whole_folder(output, overwrite) as folder:
        write_groups(folder / "groups.jsonl", groups)
        write_columns(folder / "scores.tsv", run)
    return [f"scores: {output}  (groups.jsonl, scores.tsv: {len(pairs):,} pairs of {len(groups):,} groups)"]


def candidates(model: str, collection: Collection, queries: dict[str, str], k: int) -> Run:
    """The first k documents of each query by a model folder, or by BM25 for the word bm25."""
    k = min(k, len(collection.documents))
    if model == "bm25":
        return as_run(queries, collection.document_ids, *BM25(collection.documents).search(list(queries.values()), k))
    encoder = open_encoder(model)
    documents = encoder.encode(collection.documents, "document", show_progress=True)
    found = search(encoder.encode(list(queries.values()), "query"), documents, k, encoder.similarity)
    return as_run(queries, collection.document_ids, *found)
