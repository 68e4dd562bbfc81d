"""`foretext serve`: a web page to search with, and a small JSON API.

    GET  /                                  the page
    GET  /api/search?q=TEXT&k=10&hybrid=1   {"query", "k", "hybrid", "milliseconds", "hits": [{"rank", "score", "id", "title", "text"}]}
    POST /api/encode                        {"texts": [TEXT, ...], "kind": "query" | "document"} -> {"dimension", "vectors": [[...], ...]}
    GET  /api/health                        what is served

A request that cannot be answered gets status 4xx and {"error": one sentence}.
"""

import json
import socket
import time
from dataclasses import asdict
from pathlib import Path

from foretext.errors import UserError
from foretext.retrieval.embed import TextEncoder
from foretext.verbs.models import open_encoder
from foretext.verbs.search import Searcher

MOST_HITS, MOST_TEXTS, MOST_BYTES = 1000, 256, 4 << 20  # of one request
PAGE = Path(__file__).with_name("serve.html")
SECURITY = {"Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                                       "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}  # fmt: skip


def application(source: str | Path, exact: bool = False):
    """The Starlette application that serves an index folder (or a run with an index/), or, to encode only, a model folder.

    Raises:
        UserError: neither, or starlette is missing.
    """
    needed()
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    searcher, encoder = _open(source, exact)
    name = Path(source).resolve().name  # strangers need not know where it lies
    page = PAGE.read_text(encoding="utf-8")
    about = {"status": "ok", "source": name, "documents": len(searcher.vectors.ids) if searcher else 0,
             "dimension": encoder.dimension, "similarity": encoder.similarity,
             "index": searcher.index.settings["kind"] if searcher and searcher.index else "exact" if searcher else None,
             "hybrid": bool(searcher) and (searcher.folder / "bm25").is_dir()}  # fmt: skip

    if searcher:
        searcher.search(["warm"], 1, about["hybrid"])  # opens what is opened at first use, so that nobody waits for it

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers=SECURITY)

    async def health(request: Request) -> Response:
        return JSONResponse(about)

    async def search(request: Request) -> Response:
        if searcher is None:
            raise UserError(f"{name} is a model without documents; `foretext encode MODEL TEXT... -o FOLDER`, then serve FOLDER")
        query, k, hybrid = _asked(request.query_params)
        if hybrid and not about["hybrid"]:
            raise UserError("hybrid=1: this folder has no bm25/; encode it again, or search without hybrid")
        began = time.perf_counter()
        hits = (await run_in_threadpool(searcher.search, [query], k, hybrid))[0]
        spent = round(1000 * (time.perf_counter() - began), 1)
        return JSONResponse({"query": query, "k": k, "hybrid": hybrid, "milliseconds": spent,
                             "hits": [{"rank": rank} | asdict(hit) for rank, hit in enumerate(hits, 1)]})

    async def encode(request: Request) -> Response:
        texts, kind = _to_encode(await _body(request))
        vectors = await run_in_threadpool(encoder.encode, texts, kind)
        return JSONResponse({"dimension": encoder.dimension, "vectors": vectors.tolist()})

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        said = error.detail if isinstance(error, HTTPException) else str(error)
        if status == 404:
            said = f"there is no {request.url.path} here; there are /, /api/search, /api/encode, /api/health"
        return JSONResponse({"error": said}, status, headers=getattr(error, "headers", None))

    return Starlette(routes=[Route("/", index), Route("/api/health", health), Route("/api/search", search),
                             Route("/api/encode", encode, methods=["POST"])],
                     exception_handlers={UserError: refused, HTTPException: refused})  # fmt: skip


def serve(source: str | Path, host: str = "127.0.0.1", port: int = 8000, exact: bool = False) -> None:
    """Serve until interrupted.

    Raises:
        UserError: nothing to serve, the port is taken or not ours to take, or starlette or uvicorn is missing.
    """
    uvicorn = needed()
    listening = _listen(host, port)
    app = application(source, exact)
    shown = f"[{host}]" if ":" in host else host
    print(f"{source}: http://{shown}:{listening.getsockname()[1]}/  (control-C ends it)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """The port, taken before the model is loaded: who has to choose another should not wait for that."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # only now is a port that another server listens on refused for certain
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} of {host} cannot be used ({getattr(error, 'strerror', None) or error}); choose another with "
                        "--port") from None
    return listening


def needed():
    """uvicorn, if it and starlette are there."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError("serving needs starlette and uvicorn: pip install 'foretext[serve]'") from None
    return uvicorn


def _open(source: str | Path, exact: bool) -> tuple[Searcher | None, TextEncoder]:
    folder = Path(source)
    if (folder / "model.json").is_file() or (folder / "index" / "model.json").is_file():
        searcher = Searcher(folder, exact, hold=True)
        return searcher, searcher.encoder
    return None, open_encoder(source)


def _asked(parameters) -> tuple[str, int, bool]:
    """q, k and hybrid of a search."""
    if unknown := sorted(set(parameters) - {"q", "k", "hybrid"}):
        raise UserError(f"unknown parameter {unknown[0]!r}; there are q, k, hybrid")
    query = parameters.get("q", "").strip()
    if not query:
        raise UserError("q is empty; give a question, for example /api/search?q=what+you+look+for")
    text = parameters.get("k", "10")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= MOST_HITS and len(text) <= 4):
        raise UserError(f"k={text[:20]}: expected a whole number from 1 to {MOST_HITS}")
    hybrid = parameters.get("hybrid", "0")
    if hybrid not in ("0", "1"):
        raise UserError(f"hybrid={hybrid[:20]}: expected 0 or 1")
    return query, int(text), hybrid == "1"


async def _body(request) -> bytes:
    """The request's body; refused as soon as it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise UserError(f"the request is longer than {MOST_BYTES >> 20} MB; send fewer texts at a time")
    return body


def _to_encode(body: bytes) -> tuple[list[str], str]:
    """texts and kind of a request to encode."""
    try:
        asked = json.loads(body)
    except ValueError:
        raise UserError('the body is not valid JSON; expected {"texts": ["..."], "kind": "query"}') from None
    texts = asked.get("texts") if isinstance(asked, dict) else None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError('expected "texts": a list of one or more strings')
    if len(texts) > MOST_TEXTS:
        raise UserError(f"{len(texts)} texts: at most {MOST_TEXTS} at a time")
    if unknown := sorted(set(asked) - {"texts", "kind"}):
        raise UserError(f"unknown key {unknown[0]!r}; there are texts, kind")
    kind = asked.get("kind", "document")
    if kind not in ("query", "document"):
        raise UserError(f"kind: expected query or document, found {str(kind)[:20]!r}")
    return texts, kind
