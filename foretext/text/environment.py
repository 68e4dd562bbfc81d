"""The corpus every machine has: the documentation of the Python packages installed in this environment.

Docstrings of modules, classes and functions of the standard library and site-packages, read with `ast`; nothing is ever imported
or executed.
"""

import ast
import gc
import inspect
import multiprocessing
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretext.summary import ReadSummary

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}
GROUP_BYTES = 2_000_000  # source code parsed by one process at a time
# A line that begins with a quote: without one there is no docstring, and parsing is what takes the time.
MAYBE_DOCSTRING = re.compile(rb"""^[ \t]*[rRuU]?["']""", re.MULTILINE)
FIRST_SENTENCE = re.compile(r"[.!?](?=\s+[^\sa-z])")
NOT_THE_END = re.compile(r"(?:\b(?:e\.g|i\.e|vs|etc|cf)|\b[A-Z])\.$")


@dataclass(frozen=True)
class Docstring:
    """One documented thing.

    Attributes:
        name: qualified, e.g. `numpy.lib.npyio.load`; unique.
        summary: the first sentence of the first paragraph, on one line.
        body: the rest, unindented; may be empty.
        kind: "module", "class", "function" or "method".
        path: the source file, relative to its root.
    """

    name: str
    summary: str
    body: str
    kind: str
    path: str

    @property
    def text(self) -> str:
        """Summary and body, a blank line between."""
        return f"{self.summary}\n\n{self.body}" if self.body else self.summary


def read_environment(roots: Sequence[str | Path] | None = None, workers: int | None = None) -> tuple[list[Docstring], ReadSummary]:
    """Every docstring of the environment, in the order of roots, file names and lines.

    Args:
        roots: folders from which packages are imported; None takes the standard library and site-packages of this interpreter.
        workers: processes; None takes every core. The result does not depend on it.

    Returns:
        docstrings, and a summary whose `lines` are files: those that do not parse are skipped as `syntax_error`, repeated
        names (conditional definitions, overloads) are noted as `repeated_name`, the first is kept.
    """
    groups = list(_groups(_files([Path(root) for root in roots] if roots is not None else environment_roots())))
    workers = min(workers or len(os.sched_getaffinity(0)), max(len(groups), 1))
    summary = ReadSummary("environment", unit="files")
    found: dict[str, Docstring] = {}
    if workers == 1:
        results: Any = map(_parse_group, groups)
        return _collect(results, found, summary)
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(workers, multiprocessing.get_context(method)) as pool:
        return _collect(pool.map(_parse_group, groups), found, summary)


def _collect(results: Iterator, found: dict[str, Docstring], summary: ReadSummary) -> tuple[list[Docstring], ReadSummary]:
    for docstrings, broken, files in results:
        for number in broken:
            summary.skip("syntax_error", summary.lines + number)
        summary.lines += files
        for docstring in docstrings:
            if found.setdefault(docstring.name, docstring) is not docstring:
                summary.note("repeated_name")
    summary.accepted = len(found)
    return list(found.values()), summary


def environment_roots() -> list[Path]:
    """Standard library, then site-packages (pure and platform-specific where they differ)."""
    paths = sysconfig.get_paths()
    return [Path(path) for path in dict.fromkeys(paths[name] for name in ("stdlib", "purelib", "platlib")) if Path(path).is_dir()]


def environment_state() -> list[str]:
    """What changes when packages come or go: the interpreter and the names of the installed distributions."""
    names = [sys.version]
    for root in environment_roots():
        names += sorted(f"{root}/{entry.name}" for entry in root.iterdir() if entry.suffix in (".dist-info", ".egg-info"))
    return names


def _files(roots: Sequence[Path]) -> Iterator[tuple[Path, str, str]]:
    """(file, module name, path relative to its root), sorted bytewise within a root; tests are left out."""
    for root in roots:
        found = []
        for folder, folders, names in os.walk(root):
            # A folder that is not an identifier (numpy-2.4.dist-info, lib-dynload) cannot hold an importable module.
            folders[:] = [name for name in folders if name.isidentifier() and name not in SKIPPED_FOLDERS]
            found += [Path(folder, name) for name in names if name.endswith(".py") and name[:-3].isidentifier()
                      and not name.startswith("test_")]
        for path in sorted(found, key=os.fsencode):
            relative = path.relative_to(root)
            parts = relative.parts[:-1] if relative.name == "__init__.py" else (*relative.parts[:-1], relative.stem)
            if parts:
                yield path, ".".join(parts), relative.as_posix()


def _groups(files: Iterator[tuple[Path, str, str]]) -> Iterator[list[tuple[Path, str, str]]]:
    group, volume = [], 0
    for entry in files:
        group.append(entry)
        volume += entry[0].stat().st_size if entry[0].exists() else 0
        if volume >= GROUP_BYTES:
            yield group
            group, volume = [], 0
    if group:
        yield group


def _parse_group(files: Sequence[tuple[Path, str, str]]) -> tuple[list[Docstring], list[int], int]:
    """Docstrings of some files, numbers (from 1) of those that do not parse, and how many there were."""
    docstrings: list[Docstring] = []
    broken = []
    collecting = gc.isenabled()
    gc.disable()  # a syntax tree is millions of small objects; looking for cycles among them doubles the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escape sequences
            for number, (path, module, relative) in enumerate(files, 1):
                try:
                    source = path.read_bytes()
                    if MAYBE_DOCSTRING.search(source):
                        docstrings += _docstrings(ast.parse(source), module, relative)
                except (SyntaxError, ValueError, RecursionError, OSError, MemoryError):
                    broken.append(number)
    finally:
        if collecting:
            gc.enable()
    return docstrings, broken, len(files)


def _docstrings(tree: ast.Module, module: str, path: str) -> Iterator[Docstring]:
    def visit(node: ast.AST, name: str, kind: str) -> Iterator[Docstring]:
        text = ast.get_docstring(node, clean=False)
        summary, body = split_docstring(text) if text else ("", "")
        if summary:
            yield Docstring(name, summary, body, kind, path)
        if kind in ("function", "method"):
            return  # what is defined inside a function cannot be reached by name
        inner = "method" if kind == "class" else "function"
        for child in _statements(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, f"{name}.{child.name}", inner)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{name}.{child.name}", "class")

    yield from visit(tree, module, "module")


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Statements of a body, those under if, try and with included."""
    for field in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, field, ()):
            if isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                yield from _statements(child)
            else:
                yield child


def split_docstring(text: str) -> tuple[str, str]:
    """Docstring -> (summary on one line, unindented body). A first paragraph of several sentences gives its first one.

    Both are empty where the text holds no letter or digit.
    """
    text = inspect.cleandoc(text.encode("utf-8", "replace").decode("utf-8")).replace("\0", "").strip()
    first, _, rest = text.partition("\n\n")
    first = " ".join(first.split())
    for match in FIRST_SENTENCE.finditer(first):
        if not NOT_THE_END.search(first, max(match.end() - 6, 0), match.end()):
            first, more = first[:match.end()], first[match.end():].strip()
            rest = f"{more}\n\n{rest}" if rest.strip() else more
            break
    if not any(character.isalnum() for character in first):
        return "", ""
    return first, rest.strip("\n").rstrip()
