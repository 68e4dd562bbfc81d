"""The command line: parse, call, print. No logic.

Every verb's heavy imports happen inside it, so that `foretext --help` is quick.
"""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from foretext.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
                  help="Turns a pile of your own text into a text encoder you can search with, and proves that it helped.")
finetune_app = typer.Typer(no_args_is_help=True, help="Fine-tune an encoder on labels.")
app.add_typer(finetune_app, name="finetune")

Output = Annotated[str, typer.Option("--output", "-o", help="where the result goes")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]
Sets = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="any setting, for example training.optim.lr=1e-3")]
Shard = Annotated[Optional[str], typer.Option(metavar="I/N", help="do the I-th of N parts (from 1), on as many machines")]


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"foretext: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"foretext: {error}", file=sys.stderr)
        sys.exit(3)
    except Exception as error:
        if type(error).__name__ != "Stopped":
            raise
        print(f"foretext: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.command()
def quickstart(output: Output = "runs/quickstart", sets: Sets = []) -> None:
    """The whole road on text that is already on this machine: about ten minutes on two cores."""
    from foretext.config import load
    from foretext.verbs.quickstart import QuickstartConfig
    from foretext.verbs.quickstart import quickstart as run

    show(run(load(QuickstartConfig, settings={"output": output}, sets=sets)))


@app.command()
def prepare(
    inputs: Annotated[list[str], typer.Argument(help="files, folders, globs, BEIR folders, hf:owner/dataset, or 'environment'")],
    output: Output,
    tokenizer: Annotated[Optional[str], typer.Option(help="folder or hub id of a tokenizer; default: train one")] = None,
    tokenizer_kind: Annotated[str, typer.Option(help="of a trained tokenizer: wordpiece, bpe or unigram")] = "wordpiece",
    vocab_size: Annotated[int, typer.Option(help="of a trained tokenizer, in tokens")] = 30_528,
    lowercase: Annotated[bool, typer.Option(help="whether a trained tokenizer ignores case and accents")] = True,
    max_tokens: Annotated[int, typer.Option(help="longest row in tokens, special tokens not counted")] = 510,
    text_field: Annotated[Optional[str], typer.Option(help="column or key of the text; default: guessed and said")] = None,
    title_field: Annotated[Optional[str], typer.Option(help="column or key of the title")] = None,
    id_field: Annotated[Optional[str], typer.Option(help="column or key of the id")] = None,
    layout: Annotated[str, typer.Option(help="of .txt files: lines, blocks (between blank lines), file, or auto")] = "auto",
    skip: Annotated[list[str], typer.Option(help="defect that skips a record instead of stopping, by its reason name")] = [],
    strict: Annotated[list[str], typer.Option(help="defect that stops instead of being counted, by its reason name")] = [],
    workers: Annotated[Optional[int], typer.Option(help="processes; default: all cores")] = None,
    shard: Shard = None,
    overwrite: Overwrite = False,
) -> None:
    """Read, clean, split and tokenise text into a token store."""
    from foretext.text.prepare import prepare as run

    show(run(inputs, output, tokenizer=tokenizer, tokenizer_kind=tokenizer_kind, vocab_size=vocab_size, lowercase=lowercase,
             max_tokens=max_tokens, text_field=text_field, title_field=title_field, id_field=id_field, layout=layout, skip=skip,
             strict=strict, workers=workers, shard=parse_shard(shard), overwrite=overwrite).lines())
    if shard:
        show(["", f"next, when all shards are there: foretext merge SHARD... -o {output}-all"])
    else:
        show(["", f"next: foretext pretrain mlm -d {output} -o runs/{Path(output).name}"])


@app.command()
def merge(shards: Annotated[list[str], typer.Argument(help="folders that `prepare --shard` wrote, all of them")], output: Output,
          overwrite: Overwrite = False) -> None:
    """Join the shards of a corpus into one token store, the same as one run would have made."""
    from foretext.text.prepare import merge_stores

    show(merge_stores(shards, output, overwrite=overwrite).lines())


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
    from foretext.verbs.finetune import FinetuneConfig
    from foretext.verbs.finetune import finetune as run

    settings = {"data": data, "output": output, "encoder.start": encoder, "training.steps": steps,
                 "training.minutes": minutes}
    done = run(load(FinetuneConfig, file, settings, sets), overwrite)
    if done:
        show([*done.lines(), "", f"next: foretext evaluate {done.folder} BEIR-FOLDER"])


@app.command()
def encode(
    model: Annotated[str, typer.Argument(help="run folder, model folder or hub id")],
    inputs: Annotated[list[str], typer.Argument(help="text to embed, as for prepare; also a BEIR folder")],
    output: Output,
    shard: Shard = None,
    half: Annotated[bool, typer.Option(help="store 16-bit vectors")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Embed documents, to be searched or used elsewhere. Interrupted, the same command goes on."""
    from foretext.text.corpus import read_documents
    from foretext.verbs.search import encode as run

    part = parse_shard(shard)
    folder = run(model, list(read_documents(inputs)), output, (part[0] - 1, part[1]) if part else (0, 1), half, overwrite)
    show([f"vectors: {folder}  (vectors-*.npy, ids-*.txt, manifest.json)", "", f'next: foretext search {folder} "your question"'])


@app.command()
def search(
    folder: Annotated[str, typer.Argument(help="folder that `encode` wrote, or a run with an index/")],
    query: Annotated[list[str], typer.Argument(help="what to look for; '-' reads one query a line from standard input")],
    k: Annotated[int, typer.Option("-k", help="hits shown")] = 10,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="fuse with BM25 by reciprocal rank")] = False,
) -> None:
    """Find the documents nearest to a question."""
    from foretext.verbs.search import excerpt
    from foretext.verbs.search import search as run

    queries = [line.strip() for line in sys.stdin if line.strip()] if query == ["-"] else [" ".join(query)]
    for text, hits in zip(queries, run(folder, queries, k, hybrid)):
        show([text] if len(queries) > 1 else [])
        show([f"{rank:>3}  {hit.score:.3f}  {hit.title or hit.id}\n            {excerpt(hit.text)}" for rank, hit in enumerate(hits, 1)])


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="run folder, model folder, hub id, or the word bm25")],
    data: Annotated[str, typer.Argument(help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/")],
    split: Annotated[str, typer.Option(help="judgements: test, dev, ...")] = "test",
    output: Annotated[Optional[str], typer.Option("--output", "-o", help="folder for scores.json, per-query.tsv and run.trec")] = None,
    same_id: Annotated[Optional[str], typer.Option(help="a document with the query's own id: drop or keep")] = None,
    fuse_bm25: Annotated[bool, typer.Option("--hybrid", help="also show the ranking fused with BM25")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Score a retriever on a BEIR folder: nDCG, MRR, recall, MAP, with intervals."""
    from foretext.verbs.evaluate import evaluate as run

    show(run(model, data, split, output, same_id, fuse_bm25, overwrite))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="run folder")],
    output: Output,
    overwrite: Overwrite = False,
) -> None:
    """Write a run's encoder as a folder that transformers and sentence-transformers load, and check that they do."""
    from foretext.verbs.pretrain import export_again

    folder = export_again(run, output, overwrite)
    show([f"model: {folder}", "", "next: in Python,", "    from sentence_transformers import SentenceTransformer",
          f'    SentenceTransformer("{folder}").encode(["some text"])'])


@app.command("show")
def look(
    what: Annotated[str, typer.Argument(metavar="OBJECTIVE", help="an objective's name")],
    text: Annotated[list[str], typer.Option(help="a text to show it on; several make several")] = [],
    store: Annotated[Optional[str], typer.Option("--store", "-d", help="or token store to take rows from")] = None,
    rows: Annotated[int, typer.Option(help="how many rows of the store", min=1)] = 2,
    tokenizer: Annotated[Optional[str], typer.Option(help="folder or hub id of a tokenizer, for --text")] = None,
    encoder: Annotated[Optional[str], typer.Option(help="preset, run folder, Hugging Face folder or hub id; default: untrained")] = None,
    seed: Annotated[int, typer.Option(help="of the run", min=0)] = 1,
    epoch: Annotated[int, typer.Option(help="of the run: each makes its own choices", min=0)] = 0,
    sets: Sets = [],
) -> None:
    """Show what an objective asks of the model: masked, replaced and permuted tokens, who sees what, samples, pairs."""
    from rich.console import Console

    from foretext.objectives.show import lines
    from foretext.verbs.show import show as run

    console = Console(highlight=False, soft_wrap=True)
    shown, words = run(what, text, store, tokenizer, encoder, rows, epoch, [f"training.seed={seed}", *sets])
    for line in lines(shown, words, plain=not console.is_terminal):
        console.print(line)


@app.command()
def init(what: Annotated[str, typer.Argument(help="an objective's name, or retriever")]) -> None:
    """Print a commented settings file: foretext init retromae > run.yaml"""
    from foretext.verbs.init import settings_file

    print(settings_file(what), end="")


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`2/8` -> (2, 8)"""
    if text is None:
        return None
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard {text}: write it as I/N with I from 1 to N, for example 2/8")
    return int(part), int(parts)


def show(lines: list[str]) -> None:
    for line in lines:
        print(line)


if __name__ == "__main__":  # torchrun -m foretext.cli
    main()
