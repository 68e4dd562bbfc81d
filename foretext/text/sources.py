"""What a person named -> the sources to read: files, globs, folders, BEIR folders, saved and hub datasets, the environment."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from foretext.archives import COMPRESSIONS
from foretext.errors import UserError
from foretext.files import inside, read_json
from foretext.text.documents import DEFAULT_OPTIONS, ReadOptions, Source

SUFFIXES = {".txt": "txt", ".text": "txt", ".md": "file", ".rst": "file", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
            ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}


def find_sources(inputs: str | Path | Sequence[str | Path], options: ReadOptions = DEFAULT_OPTIONS) -> list[Source]:
    """Inputs -> sources, in the order given; files of a folder or glob sorted bytewise, hidden ones ignored.

    Args:
        inputs: files, globs, folders, BEIR folders, saved datasets, `hf:owner/name[:config[:split]]` (or owner/name where no such
            path exists), and the word `environment`.

    Raises:
        UserError: something is missing, or a folder holds nothing readable.
    """
    inputs = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not inputs:
        raise UserError("no input given: name files, folders or data sets to read")
    sources = [source for given in inputs for source in _sources_of(str(given), options)]
    merged: list[Source] = []
    for source in sources:  # files that are a document each count as one source, or ten thousand of them drown the summary
        if source.kind == "file" and merged and merged[-1].kind == "file":
            last = merged[-1]
            root = os.path.commonpath([path.absolute().parent for path in last.paths + source.paths])
            merged[-1] = Source(os.path.basename(root), "file", last.paths + source.paths, last.size + source.size)
        else:
            merged.append(source)
    return merged


def _sources_of(given: str, options: ReadOptions) -> list[Source]:
    path = Path(given).expanduser()
    if given == "environment" and not path.exists():
        return [Source("environment", "environment")]
    if given.startswith("hf:"):
        return [Source(given, "hub")]
    if path.is_file():
        return [_file_source(path, path.name, options)]
    if path.is_dir():
        return _folder_sources(path, options)
    if any(character in given for character in "*?["):
        found = sorted((Path(name) for name in glob.glob(str(path), recursive=True)), key=os.fsencode)
        found = [name for name in found if name.is_file()]
        if not found:
            raise UserError(f"{given}: no file matches this pattern")
        return [_file_source(name, name.name, options) for name in found]
    suffixes = Path(given).suffixes
    if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and not (set(suffixes) & {*SUFFIXES, *COMPRESSIONS}) and not path.parent.exists():
        return [Source(f"hf:{given}", "hub")]
    raise UserError(f"{given}: no such file or folder")


def _kind(path: Path) -> str | None:
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes = suffixes[:-1]
    return SUFFIXES.get(suffixes[-1].lower()) if suffixes else None


def _file_source(path: Path, name: str, options: ReadOptions) -> Source:
    kind = _kind(path) or "txt"  # a file that was named is text unless its suffix says otherwise
    if kind in ("txt", "file") and options.layout != "auto":
        kind = "file" if options.layout == "file" else "txt"
    return Source(name, kind, (path,), path.stat().st_size)


def _folder_sources(folder: Path, options: ReadOptions) -> list[Source]:
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json").get("splits", [])
        if "train" not in splits and len(splits) != 1:
            raise UserError(f"{folder}: a saved dataset with the splits {', '.join(splits)}; name the folder of one of them")
        return _folder_sources(inside(folder, "train" if "train" in splits else splits[0]), options)
    if (folder / "state.json").is_file():
        state = read_json(folder / "state.json")
        if state.get("_indices_data_files"):
            raise UserError(f"{folder}: this saved dataset is a selection of another; call flatten_indices() and save it again")
        paths = tuple(inside(folder, entry["filename"]) for entry in state["_data_files"])
        return [Source(f"{folder.name}/{path.name}", "arrow", (path,), path.stat().st_size) for path in paths]
    for name in ("corpus.jsonl", *(f"corpus.jsonl{suffix}" for suffix in COMPRESSIONS)):
        if (folder / name).is_file():  # BEIR: queries and judgements are not documents
            return [_file_source(folder / name, f"{folder.name}/{name}", options)]
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".") and _kind(Path(name))]
    if not found:
        raise UserError(f"{folder}: holds no file with a known suffix ({', '.join(SUFFIXES)}, each also {', '.join(COMPRESSIONS)})")
    found.sort(key=os.fsencode)
    return [_file_source(path, path.relative_to(folder.parent).as_posix(), options) for path in found]
