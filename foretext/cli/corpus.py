"""Verbs on text: prepare, merge, show."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from foretext.cli.app import Output, Overwrite, Sets, Shard, app, parse_shard, show


@app.command()
def prepare(
    inputs: Annotated[list[str], typer.Argument(help="files, folders, globs, BEIR folders, hf:owner/dataset, or 'environment'")],
    output: Output,
    tokenizer: Annotated[Optional[str], typer.Option(help="folder or hub id of a tokenizer; default: train one")] = None,
    tokenizer_kind: Annotated[str, typer.Option(help="of a trained tokenizer: wordpiece, bpe or unigram")] = "wordpiece",
    vocab_size: Annotated[int, typer.Option(help="of a trained tokenizer, in tokens")] = 30_528,
    lowercase: Annotated[bool, typer.Option(help="whether a trained tokenizer ignores case and accents")] = True,
    max_tokens: Annotated[int, typer.Option(help="longest row in tokens, special tokens not counted")] = 510,
    text_field: Annotated[Optional[str], typer.Option(help="column or key of the text; a number from 1 where there is no header; "
                                                           "default: guessed, and printed")] = None,
    title_field: Annotated[Optional[str], typer.Option(help="column or key of the title")] = None,
    id_field: Annotated[Optional[str], typer.Option(help="column or key of the id")] = None,
    layout: Annotated[str, typer.Option(help="of .txt files: lines, blocks (between blank lines), file, or auto")] = "auto",
    skip: Annotated[list[str], typer.Option(help="defect that skips a record instead of stopping, by its reason name")] = [],
    strict: Annotated[list[str], typer.Option(help="defect that stops instead of being counted, by its reason name")] = [],
    workers: Annotated[Optional[int], typer.Option(help="processes; default: all cores")] = None,
    shard: Shard = None,
    dialogues: Annotated[bool, typer.Option("--dialogues", help="the files hold conversations: a row per turn, and which answers "
                                                                "which, for dual and convert")] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="every record is a pair: --title-field its source, --text-field its target, "
                                                        "for seq2seq")] = False,
    hash_buckets: Annotated[int, typer.Option(help="of a trained tokenizer: ids for characters it does not know (convert: 1000)")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Read, clean, split and tokenise text into a token store."""
    from foretext.text.prepare import prepare as run

    show(run(inputs, output, tokenizer=tokenizer, tokenizer_kind=tokenizer_kind, vocab_size=vocab_size, lowercase=lowercase,
             max_tokens=max_tokens, text_field=text_field, title_field=title_field, id_field=id_field, layout=layout, skip=skip,
             strict=strict, workers=workers, shard=parse_shard(shard), dialogues=dialogues, pairs=pairs, hash_buckets=hash_buckets,
             overwrite=overwrite).lines())
    if shard:
        show(["", f"next, when all shards are there: foretext merge SHARD... -o {output}-all"])
    elif dialogues:
        objective = "convert" if hash_buckets else "dual --set pairs.kind=turns"  # of the two, only convert's export keeps buckets
        show(["", f"next: foretext pretrain {objective} -d {output} -o runs/{Path(output).name}"])
    elif pairs:
        show(["", f"next: foretext pretrain seq2seq -d {output} -o runs/{Path(output).name} --set objective.noise=none"])
    else:
        show(["", f"next: foretext pretrain contrastive -d {output} -o runs/{Path(output).name}",
              f"      (how long it takes: foretext plan contrastive -d {output})"])


@app.command()
def merge(shards: Annotated[list[str], typer.Argument(help="folders that `prepare --shard` wrote, all of them")], output: Output,
          overwrite: Overwrite = False) -> None:
    """Join the shards of a corpus into one token store, the same as one run would have made."""
    from foretext.text.prepare import merge_stores

    show(merge_stores(shards, output, overwrite=overwrite).lines())


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
