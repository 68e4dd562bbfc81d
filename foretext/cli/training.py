"""Verbs that make an encoder: quickstart, init, pretrain, export."""

from typing import Annotated, Optional

import typer

from foretext.cli.app import Output, Overwrite, Sets, app, show


@app.command()
def quickstart(output: Output = "runs/quickstart", sets: Sets = []) -> None:
    """The whole pipeline, on text that is already on this machine: about ten minutes on two cores."""
    from foretext.config import load
    from foretext.verbs.quickstart import QuickstartConfig
    from foretext.verbs.quickstart import quickstart as run

    show(run(load(QuickstartConfig, settings={"output": output}, sets=sets)))


@app.command()
def init(what: Annotated[str, typer.Argument(help="an objective's name, or retriever, reranker, classifier")]) -> None:
    """Print a commented settings file: foretext init retromae > run.yaml"""
    from foretext.verbs.init import settings_file

    print(settings_file(what), end="")


@app.command()
def pretrain(
    what: Annotated[str, typer.Argument(metavar="OBJECTIVE|RUN.yaml", help="an objective's name, or a file that `init` wrote")],
    store: Annotated[Optional[str], typer.Option("--data", "-d", help="token store")] = None,
    output: Annotated[Optional[str], typer.Option("--output", "-o", help="run folder to make or to go on with")] = None,
    encoder: Annotated[Optional[str], typer.Option(help="preset (bert-mini), run folder, Hugging Face folder or hub id")] = None,
    steps: Annotated[Optional[int], typer.Option(help="number of updates")] = None,
    minutes: Annotated[Optional[float], typer.Option(help="train about this long instead")] = None,
    sets: Sets = [],
    overwrite: Overwrite = False,
) -> None:
    """Pre-train an encoder without labels. Interrupted, the same command goes on."""
    from foretext.verbs.pretrain import pretrain as run
    from foretext.verbs.pretrain import settings

    file, given = (what, {}) if what.endswith((".yaml", ".yml")) else (None, {"objective.name": what})
    given |= {"store": store, "output": output, "encoder.start": encoder, "training.steps": steps,
                 "training.minutes": minutes}
    done = run(settings(file, given, sets), overwrite)
    if done:
        show([*done.lines(), "", f"next: foretext encode {done.folder} TEXT... -o index, foretext evaluate {done.folder} BEIR-FOLDER,",
              f"      or foretext finetune retriever -d BEIR-FOLDER --encoder {done.folder} -o {done.folder}-tuned"])


@app.command()
def plan(
    what: Annotated[str, typer.Argument(metavar="OBJECTIVE|RUN.yaml", help="an objective's name, or a file that `init` wrote")],
    store: Annotated[Optional[str], typer.Option("--data", "-d", help="token store")] = None,
    encoder: Annotated[Optional[str], typer.Option(help="preset (bert-mini), run folder, Hugging Face folder or hub id")] = None,
    steps: Annotated[Optional[int], typer.Option(help="number of updates")] = None,
    gpu: Annotated[str, typer.Option(help="kind of GPU to reckon for: l4, a10, rtx4090, a100, l40s, h100, h200 or b200")] = "h100",
    gpus: Annotated[int, typer.Option(help="how many of them", min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="how long to measure", min=1)] = 30,
    sets: Sets = [],
) -> None:
    """Say how long a pre-training would take and what it needs, here and on GPUs, after half a minute of measuring."""
    from foretext.verbs.plan import plan as run
    from foretext.verbs.pretrain import settings

    file, given = (what, {}) if what.endswith((".yaml", ".yml")) else (None, {"objective.name": what})
    given |= {"store": store, "output": None if file else "unused", "encoder.start": encoder, "training.steps": steps}
    flags = {"-d": store, "--encoder": encoder, "--steps": steps}
    same = [what, *(f"{flag} {value}" for flag, value in flags.items() if value is not None), *(f"--set {text}" for text in sets)]
    same += ["-o RUN"] * (file is None)
    show([*run(settings(file, given, sets), gpu, gpus, seconds), "", f"next: foretext pretrain {' '.join(same)}"])


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="run folder")],
    output: Output,
    format: Annotated[str, typer.Option(help="folder: for transformers and sentence-transformers; onnx: graphs for machines without torch")]
    = "folder",
    int8: Annotated[bool, typer.Option("--int8", help="of onnx: products in 8 bits, smaller and on most processors faster")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a run's encoder as a folder that transformers and sentence-transformers load, and check that they do."""
    from foretext.verbs.pretrain import export_again, export_graphs

    if format != "folder" or int8:
        show([*export_graphs(run, output, format, int8, overwrite), "", "next: in Python, without torch,",
              "    from foretext.interop.onnx import OnnxEncoder", f'    OnnxEncoder("{output}").encode(["some text"], "query")'])
        return

    folder = export_again(run, output, overwrite)
    show([f"model: {folder}", "", "next: in Python,", "    from sentence_transformers import SentenceTransformer",
          f'    SentenceTransformer("{folder}").encode(["some text"])'])
