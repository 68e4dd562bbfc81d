"""Verbs that search: encode, search, evaluate."""

import sys
from typing import Annotated, Optional

import typer

from foretext.cli.app import Output, Overwrite, Shard, app, parse_shard, show
from foretext.errors import UserError


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
    arguments: Annotated[list[str], typer.Argument(metavar="[MODEL] DATA...", help="run folder, model folder, hub id, or bm25 (nothing with"
                         " --run); then BEIR folders: corpus.jsonl, queries.jsonl, qrels/")],
    task: Annotated[str, typer.Option(help="retrieval, or sts: sentence pairs with people's scores (csv, tsv, jsonl)")] = "retrieval",
    split: Annotated[str, typer.Option(help="judgements: test, dev, ...")] = "test",
    output: Annotated[Optional[str], typer.Option("--output", "-o", help="folder for scores.json, per-query.tsv and run.trec")] = None,
    run: Annotated[list[str], typer.Option(help="score this run file (TREC, 3 or 4 columns) instead of a model; several are compared with"
                                                " the first; DATA may then be a qrels file")] = [],
    same_id: Annotated[Optional[str], typer.Option(help="a document with the query's own id: drop or keep")] = None,
    fuse_bm25: Annotated[bool, typer.Option("--hybrid", help="also show the ranking fused with BM25")] = False,
    rerank: Annotated[Optional[str], typer.Option(metavar="CROSS_ENCODER", help="also show the first documents ranked again")] = None,
    k: Annotated[int, typer.Option("-k", help="documents ranked again")] = 100,
    precision: Annotated[str, typer.Option(help="of the documents' vectors: float32, int8 or binary")] = "float32",
    rescore: Annotated[int, typer.Option(help="int8, binary: candidates per document looked at with the float query; 0: none")] = 4,
    dimensions: Annotated[Optional[int], typer.Option(help="use only the first so many of each vector (Matryoshka models)")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score retrievers on BEIR folders (nDCG, MRR, recall, MAP, with intervals), finished runs, or a model on sentence similarity."""
    from foretext.verbs import evaluate as verb

    if run:
        show(verb.evaluate_runs(run, arguments, split, same_id, output, overwrite))
    elif task == "sts":
        show(verb.evaluate_sts(arguments[0], arguments[1:], output, dimensions, overwrite))
    elif task == "retrieval":
        options = verb.Options(split, same_id, fuse_bm25, rerank, k, precision, rescore, dimensions)
        show(verb.evaluate(arguments[0], arguments[1:], options, output, overwrite))
    else:
        raise UserError(f"--task {task}: there are retrieval and sts")
