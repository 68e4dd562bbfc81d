"""The files of a model folder: where it is, its tensors whatever they are packed in, and foretext's own heads beside them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretext.errors import UserError
from foretext.files import inside, read_json, write_json

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
SMALL_FILES = ["*.json", "*.txt", "*.model", "README.md", "*/config.json"]


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: `source` itself, or the snapshot of a hub id (downloaded on first use).

    Raises:
        UserError: neither a folder nor a hub id that can be fetched.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"{source} is a file: name the model folder that holds it")
    if not HUB_ID.fullmatch(str(source)):
        raise UserError(f"{source}: there is no such folder; name a model folder, or a hub id like sentence-transformers/all-MiniLM-L6-v2")
    return _snapshot(str(source), revision)


def _snapshot(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))

    try:
        # Weights once: pytorch_model.bin only where a repository has nothing better.
        folder = fetch([*SMALL_FILES, "model*.safetensors", "*/model*.safetensors", "heads.safetensors"])
        return folder if any(folder.rglob("model*.safetensors")) else fetch([*SMALL_FILES, "pytorch_model*.bin", "*/pytorch_model*.bin"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{repo}: there is no such folder, and it cannot be fetched from the hub ({reason})") from None


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, by its own name, on the CPU.

    Takes the first that exists of `model.safetensors`, its shards, `pytorch_model.bin`, its shards.

    Raises:
        UserError: no such file, a damaged one, or a pickle that holds anything but tensors.
    """
    for name, read in (("model.safetensors", _safetensors), ("pytorch_model.bin", _pickle)):
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index)["weight_map"].values()))
            tensors = {}
            for shard in shards:
                path = inside(folder, shard)
                if not path.is_file():
                    raise UserError(f"{index}: it names the shard {shard!r}, which is not in the folder; fetch it again")
                tensors.update(read(path))
            return tensors
    raise UserError(f"{folder}: no model.safetensors and no pytorch_model.bin (or their index) here; name a model folder")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch or write it again") from None


def _pickle(path: Path) -> dict[str, Tensor]:
    import pickle

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        found = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        what = f"it holds the class {found[1]}" if found else f"it cannot be read ({str(error).splitlines()[0]})"
        raise UserError(f"{path}: only tensors are read from a pickle, but {what}; save it as safetensors instead") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path}: expected a dictionary of tensors; save the model's state_dict() alone")
    return tensors


@dataclass(frozen=True)
class Heads:
    """Objective heads that no stock class holds: `heads.safetensors` and `heads.json`, ignored by transformers."""

    objective: str
    options: dict[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # "retromae.layer.qkv.weight", "condenser.0.out.bias", ...
    roles: Mapping[str, str] = field(default_factory=dict)  # what each tensor is for; default: its name


def write_heads(folder: Path, heads: Heads) -> None:
    """Write `heads` into an existing folder."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(heads.tensors.items())}
    save_file(tensors, folder / "heads.safetensors", metadata={"format": "pt"})
    described = {name: {"shape": list(x.shape), "role": heads.roles.get(name, name)} for name, x in tensors.items()}
    write_json(folder / "heads.json", {"format": 1, "objective": heads.objective, "options": heads.options, "tensors": described})


def read_heads(folder: Path) -> Heads | None:
    """The heads beside a model, None where there are none: then they start fresh, and the caller says so.

    Raises:
        UserError: `heads.json` and `heads.safetensors` do not belong together.
    """
    if not (folder / "heads.json").is_file():
        return None
    info = read_json(folder / "heads.json")
    if info.get("format") != 1:
        raise UserError(f"{folder}/heads.json: format {info.get('format')!r} is unknown to this version, which reads format 1")
    tensors = _safetensors(folder / "heads.safetensors")
    if {name: list(x.shape) for name, x in tensors.items()} != {name: x["shape"] for name, x in info["tensors"].items()}:
        raise UserError(f"{folder}: heads.json and heads.safetensors list different tensors; export the model again")
    roles = {name: x["role"] for name, x in info["tensors"].items()}
    return Heads(info["objective"], info["options"], tensors, roles)
