"""Verbs that train on labels, and what goes with them: mining, reranking, classifying."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from foretext.cli.app import Dtype, Output, Overwrite, Sets, app, finetune_app, show

COLUMN = "column of the text (of the first of a pair); a number from 1 where there is no header"


@finetune_app.command()
def retriever(
    file: Annotated[Optional[str], typer.Argument(metavar="[RUN.yaml]", help="a file that `foretext init retriever` wrote")] = None,
    data: Annotated[Optional[str], typer.Option("--data", "-d", help="BEIR, MS MARCO or RetroMAE folder, or a file of groups")] = None,
    output: Annotated[Optional[str], typer.Option("--output", "-o", help="run folder to make or to go on with")] = None,
    encoder: Annotated[Optional[str], typer.Option(help="run folder, Hugging Face folder or hub id")] = None,
    negatives: Annotated[Optional[str], typer.Option(help="file of negatives, as `foretext mine` writes it")] = None,
    scores: Annotated[Optional[str], typer.Option(help="file of teacher scores: qid pid score")] = None,
    teacher: Annotated[Optional[str], typer.Option(help="model folder to learn from: cross-encoder or retriever")] = None,
    distill: Annotated[Optional[str], typer.Option(help="how the teacher's scores are learned: kl or margin_mse")] = None,
    steps: Annotated[Optional[int], typer.Option(help="number of updates")] = None,
    minutes: Annotated[Optional[float], typer.Option(help="train about this long instead")] = None,
    sets: Sets = [],
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a bi-encoder on queries, their relevant passages and negatives, by labels or by a teacher."""
    from foretext.config import load
    from foretext.verbs.retriever import FinetuneConfig
    from foretext.verbs.retriever import finetune as run

    settings = {"data": data, "output": output, "encoder.start": encoder, "negatives": negatives, "scores": scores, "teacher": teacher,
                "objective.distill": distill, "training.steps": steps, "training.minutes": minutes}
    done = run(load(FinetuneConfig, file, settings, sets), overwrite)
    if done:
        show([*done.lines(), "", f"next: foretext evaluate {done.folder} BEIR-FOLDER"])


@finetune_app.command()
def reranker(
    file: Annotated[Optional[str], typer.Argument(metavar="[RUN.yaml]", help="a file that `foretext init reranker` wrote")] = None,
    data: Annotated[Optional[str], typer.Option("--data", "-d", help="groups: a file that `mine` wrote, or what retriever reads")] = None,
    output: Annotated[Optional[str], typer.Option("--output", "-o", help="run folder to make or to go on with")] = None,
    encoder: Annotated[Optional[str], typer.Option(help="run folder, Hugging Face folder or hub id")] = None,
    steps: Annotated[Optional[int], typer.Option(help="number of updates")] = None,
    minutes: Annotated[Optional[float], typer.Option(help="train about this long instead")] = None,
    sets: Sets = [],
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a cross-encoder, which reads query and passage together, on groups of passages."""
    from foretext.config import load
    from foretext.verbs.reranker import RerankerConfig
    from foretext.verbs.reranker import finetune as run

    settings = {"data": data, "output": output, "encoder.start": encoder, "training.steps": steps, "training.minutes": minutes}
    done = run(load(RerankerConfig, file, settings, sets), overwrite)
    if done:
        show([*done.lines(), "", f"next: foretext rerank {done.folder} BEIR-FOLDER --run RUN.trec -o {done.folder}-scores"])


@finetune_app.command()
def classifier(
    file: Annotated[Optional[str], typer.Argument(metavar="[RUN.yaml]", help="a file that `foretext init classifier` wrote")] = None,
    data: Annotated[Optional[str], typer.Option("--data", "-d", help="labelled texts or pairs: .csv, .tsv, .jsonl or .parquet")] = None,
    output: Annotated[Optional[str], typer.Option("--output", "-o", help="run folder to make or to go on with")] = None,
    encoder: Annotated[Optional[str], typer.Option(help="preset, run folder, Hugging Face folder or hub id")] = None,
    valid: Annotated[Optional[str], typer.Option(help="file to choose the best checkpoint on; default: a tenth of the data")] = None,
    test: Annotated[Optional[str], typer.Option(help="file to predict and score at the end")] = None,
    text: Annotated[Optional[str], typer.Option(help=COLUMN)] = None,
    second: Annotated[Optional[str], typer.Option(help="column of the second text of a pair")] = None,
    label: Annotated[Optional[str], typer.Option(help="column of the label")] = None,
    steps: Annotated[Optional[int], typer.Option(help="number of updates")] = None,
    minutes: Annotated[Optional[float], typer.Option(help="train about this long instead")] = None,
    sets: Sets = [],
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a classifier, or a regression, of texts or pairs of texts."""
    from foretext.config import load
    from foretext.verbs.classifier import ClassifierConfig
    from foretext.verbs.classifier import finetune as run

    settings = {"data": data, "output": output, "encoder.start": encoder, "valid": valid, "test": test, "columns.text": text,
                "columns.second": second, "columns.label": label, "training.steps": steps, "training.minutes": minutes}
    done = run(load(ClassifierConfig, file, settings, sets), overwrite)
    if done:
        show([*done.lines(), "", f"next: foretext classify {done.folder} TEXTS.jsonl -o predictions.tsv"])


@app.command()
def classify(
    model: Annotated[str, typer.Argument(help="run folder, *ForSequenceClassification folder or hub id")],
    file: Annotated[str, typer.Argument(help="texts or pairs, with labels or without")],
    output: Output,
    text: Annotated[Optional[str], typer.Option(help=COLUMN)] = None,
    second: Annotated[Optional[str], typer.Option(help="column of the second text of a pair")] = None,
    label: Annotated[Optional[str], typer.Option(help="column of the label")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict with a classifier: one line a text, .tsv or .jsonl; where there are labels, say how well."""
    from foretext.verbs.classifier import Columns
    from foretext.verbs.classifier import classify as run

    show(run(model, file, output, Columns(text=text, second=second, label=label), overwrite))


@app.command()
def rerank(
    model: Annotated[str, typer.Argument(help="run folder of a reranker, or any cross-encoder's folder or hub id")],
    data: Annotated[str, typer.Argument(help="BEIR folder; or a file of groups, whose passages are all scored")],
    output: Output,
    run: Annotated[Optional[str], typer.Option(help="TREC run with the candidates")] = None,
    first: Annotated[str, typer.Option(help="without a run: the model that finds candidates, or bm25")] = "bm25",
    k: Annotated[int, typer.Option("-k", help="candidates scored per query", min=1)] = 200,
    split: Annotated[str, typer.Option(help="judgements that name the queries")] = "test",
    with_positives: Annotated[bool, typer.Option("--with-positives", help="score judged answers too, for distillation")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Rank candidates again with a cross-encoder; writes a run, and a teacher's scores to distil."""
    from foretext.verbs.reranker import score_candidates

    show(score_candidates(model, data, output, run, first, k, split, with_positives, overwrite))
    lists = " --negatives FILE" if Path(data).is_dir() else ""  # a file of groups has its own
    show(["", f"next: foretext finetune retriever -d {data}{_judged(split)}{lists} --scores {output}/scores.tsv --distill kl",
          "      --encoder MODEL -o RUN"])


@app.command()
def mine(
    model: Annotated[str, typer.Argument(help="run folder, model folder, hub id, or the word bm25")],
    data: Annotated[str, typer.Argument(help="BEIR folder, or any groups with texts that `finetune retriever` reads")],
    output: Output,
    also: Annotated[Optional[str], typer.Option(help="a second retriever (or bm25), whose negatives are mixed in")] = None,
    split: Annotated[str, typer.Option(help="of a folder: judgements that name queries and answers")] = "train",
    rank_from: Annotated[int, typer.Option(help="best rank taken", min=1)] = 1,
    rank_to: Annotated[int, typer.Option(help="worst rank taken", min=1)] = 200,
    negatives: Annotated[int, typer.Option(help="kept per query and retriever", min=1)] = 15,
    sample: Annotated[bool, typer.Option("--sample", help="draw them from the range instead of taking the best")] = False,
    margin: Annotated[Optional[float], typer.Option(help="leave out what scores over this share of the answer's, such as .95")] = None,
    absolute: Annotated[bool, typer.Option("--absolute", help="the margin is taken off the answer's score instead")] = False,
    seed: Annotated[int, typer.Option(help="seed of --sample", min=0)] = 1,
    rounds: Annotated[Optional[int], typer.Option(help="mine and train in turns, so many times; the output is a folder", min=1)] = None,
    first: Annotated[str, typer.Option(help="of rounds: where the first negatives come from, bm25 or model")] = "bm25",
    eval_split: Annotated[str, typer.Option(help="of rounds: judgements to evaluate on")] = "test",
    dtype: Dtype = "auto",
    sets: Sets = [],
    overwrite: Overwrite = False,
) -> None:
    """Mine hard negatives: what a retriever finds and what is no answer. With --rounds, train on them and mine again."""
    from foretext.config import check, gather
    from foretext.retrieval.mine import MineConfig
    from foretext.verbs import mine as verb

    config = check(MineConfig, {"rank_from": rank_from, "rank_to": rank_to, "negatives": negatives, "margin": margin, "seed": seed,
                                "choose": "sample" if sample else "top", "margin_kind": "absolute" if absolute else "relative"})
    if rounds is None:
        models = [model, also] if also else [model]
        show(verb.mine_to(models, data, output, config, split, overwrite, dtype))
        show(["", f"next: foretext finetune retriever -d {data}{_judged(split)} --negatives {output} --encoder MODEL -o RUN"])
    else:
        done = verb.rounds(model, data, output, rounds, config, gather(sets=sets), first, split, eval_split, overwrite, dtype)
        show([*done.report, "", f"next: foretext encode {output}/round-{rounds}/run TEXT... -o index"])


def _judged(split: str) -> str:
    """What `finetune retriever` has to be told of the split."""
    return "" if split == "train" else f" --set split={split}"
