"""The store: what is written is what is read; what changed is named; duplicates are found in bounded memory."""

import json
import pickle

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.text.prepare import prepare
from foretext.text.store import Store


@pytest.fixture
def folder(tmp_path, texts):
    (tmp_path / "a.txt").write_text("\n".join(text.replace("\n", " ") for text in texts))
    prepare(tmp_path / "a.txt", tmp_path / "store", vocab_size=320, max_tokens=64, workers=1)
    return tmp_path / "store"


def test_shapes_and_access(folder, texts):
    store = Store.open(folder)
    store.verify()
    assert store.offsets.shape == store.sentence_offsets.shape == (len(store) + 1,)
    assert store.offsets[-1] == len(store.tokens) and store.sentence_offsets[-1] == len(store.sentence_starts)
    assert store.tokenizer.size == store.manifest["vocabulary"] and "documents" in repr(store)
    assert store.text(0).lower().split()[:3] == texts[0].lower().split()[:3]
    with pytest.raises(IndexError):
        store.document_id(store.document_count)
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.tokens, store.tokens) and isinstance(again.tokens, np.memmap)


def test_changes_are_found(folder):
    name = "tokens.bin"
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(UserError, match="tokens.bin: changed"):
        Store.open(folder).verify()
    (folder / name).write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"tokens.bin: changed: expected \d"):
        Store.open(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match="no file"):
        Store.open(folder)


def test_not_a_store(folder, tmp_path):
    with pytest.raises(UserError, match="no token store"):
        Store.open(tmp_path / "nowhere")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Store.open(folder)
