"""Verbs that train on labels."""

from typing import Annotated, Optional

import typer

from foretext.cli.app import Overwrite, Sets, finetune_app, show


@finetune_app.command()
def retriever(
    file: Annotated[Optional[str], typer.Argument(metavar="[RUN.yaml]", help="a file that `foretext init retriever` wrote")] = None,
    data: Annotated[Optional[str], typer.Option("--data", "-d", help="BEIR folder with qrels/train.tsv")] = None,
    output: Annotated[Optional[str], typer.Option("--output", "-o", help="run folder to make or to go on with")] = None,
    encoder: Annotated[Optional[str], typer.Option(help="run folder, Hugging Face folder or hub id")] = None,
    steps: Annotated[Optional[int], typer.Option(help="number of updates")] = None,
    minutes: Annotated[Optional[float], typer.Option(help="train about this long instead")] = None,
    sets: Sets = [],
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a bi-encoder on queries and their relevant passages, with in-batch negatives."""
    from foretext.config import load
    from foretext.verbs.retriever import FinetuneConfig
    from foretext.verbs.retriever import finetune as run

    settings = {"data": data, "output": output, "encoder.start": encoder, "training.steps": steps,
                 "training.minutes": minutes}
    done = run(load(FinetuneConfig, file, settings, sets), overwrite)
    if done:
        show([*done.lines(), "", f"next: foretext evaluate {done.folder} BEIR-FOLDER"])
