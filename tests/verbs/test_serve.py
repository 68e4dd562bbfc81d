"""The page and the API, asked as a browser asks them."""

import re
import socket

import pytest
import torch

from foretext.errors import UserError
from foretext.interop.export import export
from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.retrieval.embed import TextEncoder
from foretext.text.corpus import Document
from foretext.verbs.models import open_encoder
from foretext.verbs.search import encode
from tests.conftest import made_up_texts

pytest.importorskip("starlette")
pytest.importorskip("httpx2")
from starlette.testclient import TestClient  # noqa: E402

from foretext.verbs.serve import PAGE, application, serve  # noqa: E402

CORPUS = [Document(f"doc {i}", f"Title {i}", text) for i, text in enumerate(made_up_texts(40, seed=5))]
CORPUS.append(Document("evil", "<b>bold</b>", '<script>alert("x")</script> quince'))


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "export"
    export(TextEncoder(Encoder(preset("bert-tiny", tokenizer.size, width=32, max_len=48)), tokenizer, "mean"), folder)
    return folder


@pytest.fixture(scope="module")
def ask(model, tmp_path_factory):
    return TestClient(application(encode(model, CORPUS, tmp_path_factory.mktemp("index") / "index")))


def test_search(ask):
    for hybrid in ("0", "1"):
        answer = ask.get("/api/search", params={"q": f"{CORPUS[7].title} {CORPUS[7].text}", "k": "3", "hybrid": hybrid})
        found = answer.json()
        assert answer.status_code == 200 and found["hybrid"] is (hybrid == "1") and found["milliseconds"] >= 0
        assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
        assert {"rank": 1, "id": "doc 7", "title": "Title 7", "text": CORPUS[7].text}.items() <= found["hits"][0].items()
    assert len(ask.get("/api/search?q=x&k=1000").json()["hits"]) == 41


def test_markup_in_documents_is_data(ask):
    hits = ask.get("/api/search", params={"q": "quince", "k": 41, "hybrid": 1}).json()["hits"]
    assert next(hit for hit in hits if hit["id"] == "evil")["text"] == CORPUS[-1].text
    page = PAGE.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", page)  # nothing can become markup
    assert not re.search(r"""(src|href)=["'](?!data:,)""", page)  # nothing is fetched from elsewhere


def test_page(ask):
    answer = ask.get("/")
    assert answer.headers["content-type"].startswith("text/html") and "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<label" in answer.text and "prefers-color-scheme" in answer.text and 'lang="en"' in answer.text


def test_health_and_encode(ask, model):
    assert ask.get("/api/health").json() | {"source": ""} == {"status": "ok", "source": "", "documents": 41, "dimension": 32,
                                                              "similarity": "cosine", "index": "exact", "hybrid": True}
    found = ask.post("/api/encode", json={"texts": ["one", "two"], "kind": "query"}).json()
    assert found["dimension"] == 32
    torch.testing.assert_close(torch.tensor(found["vectors"]), torch.from_numpy(open_encoder(model).encode(["one", "two"], "query")))


@pytest.mark.parametrize("path, said", [
    ("/api/search", "q is empty"), ("/api/search?q=%20", "q is empty"),
    ("/api/search?q=x&k=0", "k=0: expected a whole number from 1 to 1000"),
    ("/api/search?q=x&k=ten", "k=ten"), ("/api/search?q=x&k=%C2%B2", "expected a whole number"), ("/api/search?q=x&k=99999999", "expected"),
    ("/api/search?q=x&hybrid=yes", "hybrid=yes: expected 0 or 1"), ("/api/search?q=x&page=2", "unknown parameter 'page'"),
])
def test_wrong_parameters(ask, path, said):
    answer = ask.get(path)
    assert answer.status_code == 400 and said in answer.json()["error"] and "\n" not in answer.json()["error"]


@pytest.mark.parametrize("body, said", [
    (b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[]", 'expected "texts"'), (b'{"texts": []}', 'expected "texts"'),
    (b'{"texts": [1]}', 'expected "texts"'), (b'{"texts": ["a"], "kind": "x"}', "expected query or document, found 'x'"),
    (b'{"texts": ["a"], "model": "x"}', "unknown key 'model'"), (b'{"texts": [' + b'"a",' * 256 + b'"a"]}', "at most 256"),
    (b" " * (5 << 20), "longer than 4 MB"),
])
def test_wrong_bodies(ask, body, said):
    answer = ask.post("/api/encode", content=body)
    assert answer.status_code == 400 and said in answer.json()["error"]


def test_wrong_places(ask):
    assert ask.get("/nowhere").status_code == 404 and "there is no /nowhere here" in ask.get("/nowhere").json()["error"]
    assert ask.get("/api/encode").status_code == 405


def test_a_model_alone_encodes(model):
    ask = TestClient(application(model))
    assert ask.get("/api/health").json()["documents"] == 0
    assert ask.post("/api/encode", json={"texts": ["one"]}).status_code == 200
    answer = ask.get("/api/search?q=x")
    assert answer.status_code == 400 and "a model without documents" in answer.json()["error"]


def test_a_port_that_is_taken(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of 127\.0\.0\.1 cannot be used \(.*in use\); choose another with --port"):
            serve(model, port=port)
