"""The environment corpus: read, never run; every documented thing once, in an order that does not depend on workers."""

from foretext.text.corpus import read_documents
from foretext.text.environment import Docstring, read_environment, split_docstring

MODULE = '''"""The summary of a module.

Its body.
"""
raise SystemExit("this must never run")

class Thing:
    """A thing that
    spans lines. It does more.

        Indented stays.
    """
    def method(self):
        r"""Do it."""
        def inner():
            """Unreachable."""
    if True:
        @property
        def value(self): "Single quotes."
try:
    async def fast(): """Fast way."""
except ImportError:
    def fast(): """Slow way."""
def bare(): pass
def blank():
    """ """
'''


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def test_what_is_read(tmp_path):
    write(tmp_path, "pack/__init__.py", MODULE)
    write(tmp_path, "pack/sub.py", '# -*- coding: latin-1 -*-\n"""Caf\xe9."""\n'.encode("latin-1"))
    write(tmp_path, "pack/broken.py", '"""A docstring."""\ndef f(:\n')
    write(tmp_path, "pack/bytes.py", b'"""bad \xff byte"""\n')
    write(tmp_path, "pack/tests/test_a.py", '"""A test."""')
    write(tmp_path, "pack/test_b.py", '"""A test."""')
    write(tmp_path, "other-1.0.dist-info/x.py", '"""Not importable."""')
    found, summary = read_environment([tmp_path], workers=1)
    assert found == [
        Docstring("pack", "The summary of a module.", "Its body.", "module", "pack/__init__.py"),
        Docstring("pack.Thing", "A thing that spans lines.", "It does more.\n\n    Indented stays.", "class", "pack/__init__.py"),
        Docstring("pack.Thing.method", "Do it.", "", "method", "pack/__init__.py"),
        Docstring("pack.Thing.value", "Single quotes.", "", "method", "pack/__init__.py"),
        Docstring("pack.fast", "Fast way.", "", "function", "pack/__init__.py"),
        Docstring("pack.sub", "Caf\xe9.", "", "module", "pack/sub.py"),
    ]
    assert summary.skipped == {"syntax_error": 2} and summary.notes == {"repeated_name": 1} and summary.accepted == 6
    assert found[1].text == "A thing that spans lines.\n\nIt does more.\n\n    Indented stays."


def test_workers_do_not_matter(tmp_path, monkeypatch):
    from foretext.text import environment

    monkeypatch.setattr(environment, "GROUP_BYTES", 40)
    for i in range(30):
        write(tmp_path, f"m{i}.py", f'"""Module {i}."""\n' if i % 7 else "def (")
    assert read_environment([tmp_path], workers=1) == read_environment([tmp_path], workers=3)


def test_summary_and_body():
    assert split_docstring("  One line  ") == ("One line", "")
    assert split_docstring("Mean, e.g. The mean. More.\n\nBody") == ("Mean, e.g. The mean.", "More.\n\nBody")
    wrapped = "Use numpy.mean for it\nand be glad\n\n    a\n      b"
    assert split_docstring(wrapped) == ("Use numpy.mean for it and be glad", "    a\n      b")
    assert split_docstring("-----\n") == ("", "")


def test_the_word_environment(tmp_path, monkeypatch):
    from foretext.text import environment
    from foretext.text.prepare import prepare
    from foretext.text.store import Store

    write(tmp_path, "lib/pack/__init__.py", MODULE)
    monkeypatch.setattr(environment, "environment_roots", lambda: [tmp_path / "lib"])
    documents = list(read_documents("environment"))
    assert [(d.id, d.title) for d in documents[:2]] == [("pack", ""), ("pack.Thing", "")] and documents[2].text == "Do it."
    report = prepare("environment", tmp_path / "s", vocab_size=200, workers=1, max_tokens=32, min_tokens=2)
    assert Store.open(tmp_path / "s").document_id(1) == "pack.Thing" and report.sources[0].accepted == 5
