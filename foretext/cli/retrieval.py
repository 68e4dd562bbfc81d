"""Verbs that search: encode, index, search, serve, evaluate."""

import sys
from typing import Annotated, Optional

import typer

from foretext.cli.app import Dtype, Output, Overwrite, Shard, app, parse_shard, show
from foretext.errors import UserError


@app.command()
def encode(
    model: Annotated[str, typer.Argument(help="run folder, model folder or hub id")],
    inputs: Annotated[list[str], typer.Argument(help="text to embed, as for prepare; also a BEIR folder")],
    output: Output,
    shard: Shard = None,
    half: Annotated[bool, typer.Option(help="store 16-bit vectors")] = False,
    index: Annotated[Optional[str], typer.Option(help="also an approximate index: hnsw, ivfflat or ivfpq")] = None,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Embed documents, to be searched or used elsewhere. Interrupted, the same command goes on; under torchrun processes share it."""
    from foretext.text.corpus import read_documents
    from foretext.verbs.search import encode as run

    folder = run(model, read_documents(inputs), output, _from_zero(shard), half, overwrite, index, dtype)
    show([f"vectors: {folder}  (vectors-*.npy, ids-*.txt, manifest.json)", "", f'next: foretext search {folder} "your question"'])


@app.command()
def index(
    folder: Annotated[str, typer.Argument(help="folder that `encode` wrote, or a run with an index/")],
    kind: Annotated[str, typer.Option(help="hnsw, ivfflat or ivfpq (small, for millions)")] = "hnsw",
    overwrite: Overwrite = False,
) -> None:
    """Build an approximate index beside the vectors, and measure what it misses. Searching then uses it."""
    from foretext.verbs.search import build

    show([*build(folder, kind, overwrite), "", f'next: foretext search {folder} "your question"  (--exact looks at every vector)'])


@app.command()
def search(
    folder: Annotated[str, typer.Argument(help="folder that `encode` wrote, or a run with an index/")],
    query: Annotated[Optional[list[str]], typer.Argument(help="what to look for; '-' reads one query a line from standard input")] = None,
    k: Annotated[Optional[int], typer.Option("-k", min=1, help="documents for each query; default: 10, in a run 1000")] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="fuse with BM25 by reciprocal rank")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="look at every vector even if there is an approximate index")] = False,
    queries: Annotated[Optional[str], typer.Option(help="a queries.jsonl: search for all of them, and write a run to --output")] = None,
    output: Annotated[Optional[str], typer.Option("--output", "-o", help="with --queries: the TREC run to write")] = None,
    shard: Shard = None,
    join: Annotated[list[str], typer.Option(help="instead of searching, join the runs that shards wrote, into --output")] = [],
    overwrite: Overwrite = False,
) -> None:
    """Find the documents nearest to a question, or to every query of a file."""
    from foretext.verbs import search as verb

    if queries or join:
        if query or not output:
            raise UserError("--queries and --join write a run: give --output RUN, and no question beside them")
        show((verb.join(folder, join, output, k or verb.RUN_DEPTH, overwrite) if join else
              verb.search_file(folder, queries, output, k or verb.RUN_DEPTH, hybrid, exact, _from_zero(shard), overwrite)) or [])
        return
    if not query:
        raise UserError("nothing to look for: give a question, '-' for standard input, or --queries FILE -o RUN")
    if shard or output:
        raise UserError("--shard and --output belong to --queries FILE")
    asked = [line.strip() for line in sys.stdin if line.strip()] if query == ["-"] else [" ".join(query)]
    for text, hits in zip(asked, verb.search(folder, asked, k or 10, hybrid, exact)):
        show([text] if len(asked) > 1 else [])
        for rank, hit in enumerate(hits, 1):
            show([f"{rank:>3}  {hit.score:.3f}  {hit.title or hit.id}", f"            {verb.excerpt(hit.text)}"])


@app.command()
def serve(
    source: Annotated[str, typer.Argument(help="folder that `encode` wrote, a run with an index/, or a model folder (to encode only)")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    host: Annotated[str, typer.Option(help="address to listen at; the default is this machine alone")] = "127.0.0.1",
    exact: Annotated[bool, typer.Option("--exact", help="look at every vector even if there is an approximate index")] = False,
) -> None:
    """Serve a web page to search with, and a JSON API."""
    from foretext.verbs.serve import serve as run

    run(source, host, port, exact)


def _from_zero(shard: str | None) -> tuple[int, int]:
    part = parse_shard(shard)
    return (part[0] - 1, part[1]) if part else (0, 1)


@app.command()
def evaluate(
    arguments: Annotated[list[str], typer.Argument(metavar="[MODEL] DATA...", help="run folder, model folder, hub id, or bm25 (nothing with"
                         " --run); then BEIR folders: corpus.jsonl, queries.jsonl, qrels/")],
    task: Annotated[str, typer.Option(help="retrieval; sts: sentence pairs with people's scores (csv, tsv, jsonl); or response-selection: "
                                           "dialogues, the true response among 100 (jsonl, tab-separated)")] = "retrieval",
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
    baseline: Annotated[list[str], typer.Option(help="response-selection: also show bm25 or mean-embeddings (of the model)")] = [],
    drop_same_author: Annotated[bool, typer.Option("--drop-same-author", help="response-selection: leave out messages in which their "
                                                                              "own writer goes on")] = False,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Score retrievers on BEIR folders (nDCG, MRR, recall, MAP, with intervals), finished runs, or a model on sentence similarity."""
    from foretext.verbs import evaluate as verb

    if run:
        show(verb.evaluate_runs(run, arguments, split, same_id, output, overwrite))
    elif task == "sts":
        show(verb.evaluate_sts(arguments[0], arguments[1:], output, dimensions, overwrite, dtype))
    elif task == "response-selection":
        from foretext.verbs.respond import evaluate_responses

        if len(arguments) < 2:
            raise UserError("response-selection needs a model and dialogue files: foretext evaluate MODEL FILE --task response-selection")
        show(evaluate_responses(arguments[0], arguments[1:], baseline, drop_same_author, output, overwrite, dtype=dtype))
    elif task == "retrieval":
        options = verb.Options(split, same_id, fuse_bm25, rerank, k, precision, rescore, dimensions, dtype)
        show(verb.evaluate(arguments[0], arguments[1:], options, output, overwrite))
    else:
        raise UserError(f"--task {task}: there are retrieval, sts and response-selection")


@app.command()
def respond(
    model: Annotated[str, typer.Argument(help="run folder, model folder or hub id")],
    responses: Annotated[str, typer.Option("--responses", "-r", help="file of responses, or a folder that `encode` wrote")],
    context: Annotated[Optional[list[str]], typer.Argument(help="the newest message; none: typed at a prompt, or piped in, one a line (or "
                                                                "a JSON object with context, context/0, ...)")] = None,
    earlier: Annotated[list[str], typer.Option(help="the turn before the message; again for the one before that")] = [],
    k: Annotated[int, typer.Option("-k", help="responses shown", min=1)] = 5,
    vectors: Annotated[Optional[str], typer.Option(help="folder that keeps the responses' vectors; default: FILE.vectors")] = None,
    text_field: Annotated[Optional[str], typer.Option(help="column or key of the response; default: guessed, and printed")] = None,
) -> None:
    """Find the best responses to a message."""
    from foretext.progress import console
    from foretext.text.dialogues import typed_context
    from foretext.verbs.respond import open_responder

    asked = " ".join(context or []).strip()
    if context and not asked:
        raise UserError("the message is empty; type some words after the model")
    if earlier and not asked:
        raise UserError("--earlier goes with a message after the model; piped in, write JSON objects with context and context/0, ...")
    responder = open_responder(model, responses, vectors, text_field)
    for note in responder.notes:
        console.print(note)

    def answer(text: str, turns: tuple[str, ...], several: bool) -> None:
        show([text] if several else [])
        best = responder.rank([text], [turns] if turns else None, k)[0]
        show([f"{rank:>3}  {score:.3f}  {found}" for rank, (score, found) in enumerate(best, 1)])

    if asked:
        answer(asked, tuple(earlier), False)
        return
    prompt = sys.stdin.isatty()
    if prompt:
        console.print("type a message; an empty line ends")
    number = 0
    while line := (_typed("> ") if prompt else sys.stdin.readline()):
        number += 1
        if line.strip():
            answer(*typed_context(line, f"standard input, line {number}"), not prompt)
        elif prompt:
            return


def _typed(prompt: str) -> str:
    """A line somebody types; empty at the end of input."""
    try:
        return input(prompt) + "\n"
    except EOFError:
        return ""


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="run folder of seq2seq, clm or marge, or a BART folder that a run wrote")],
    text: Annotated[list[str], typer.Argument(help="what to write from; '-' reads one text a line from standard input")],
    longest: Annotated[int, typer.Option(help="tokens made at most")] = 100,
    beams: Annotated[int, typer.Option(help="hypotheses kept at once; 1: always the likeliest token")] = 1,
    length_penalty: Annotated[float, typer.Option(help="of beams: above 1 favours longer texts")] = 1.0,
    temperature: Annotated[float, typer.Option(help="sample at this temperature instead; 1: as the model says")] = 0.0,
    top_k: Annotated[int, typer.Option(help="sample among so many likeliest tokens; 0: all")] = 0,
    top_p: Annotated[float, typer.Option(help="sample among the likeliest tokens that hold this probability")] = 1.0,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
) -> None:
    """Write text from text: a target for each source (seq2seq), one from all lines together (marge), or how a text goes on (clm)."""
    from foretext.config import check
    from foretext.model.generation import GenerationConfig
    from foretext.verbs.generate import generate as run

    texts = [line.strip() for line in sys.stdin if line.strip()] if text == ["-"] else [" ".join(text)]
    config = {"longest": longest, "beams": beams, "length_penalty": length_penalty, "temperature": temperature, "top_k": top_k,
              "top_p": top_p, "seed": seed}
    show(run(model, texts, check(GenerationConfig, config)))
