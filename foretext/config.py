"""Settings from YAML files and flags: checked by pydantic models, explained by their field descriptions.

Every verb has one model of its settings. `load` fills it, `commented_yaml` writes it out, and a mistake is one sentence.
"""

import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from foretext.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def load(model: type[Model], file: str | Path | None = None, settings: dict[str, Any] | None = None, sets: list[str] = ()) -> Model:
    """Fill `model` from what `gather` finds.

    Raises:
        UserError: no such file, not YAML, an unknown key, a value out of range: one sentence with file and key.
    """
    return check(model, gather(file, settings, sets), str(file) if file else None)


def gather(file: str | Path | None = None, settings: dict[str, Any] | None = None, sets: list[str] = ()) -> dict[str, Any]:
    """Values from a YAML file, then from `settings`, then from `key.sub=value` strings; the later wins.

    Args:
        settings: dotted keys; a value of None is not given.
    """
    values = read_yaml(file) if file else {}
    for key, value in (settings or {}).items():
        if value is not None:
            put(values, key, value)
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write it as key=value, for example --set training.steps=2000")
        put(values, key.strip(), yaml.safe_load(value) if value else "")
    return values


def underlay(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`values`, with `defaults` where they say nothing; neither is changed."""
    merged = dict(defaults)
    for key, value in values.items():
        merged[key] = underlay(value, defaults[key]) if isinstance(value, dict) and isinstance(defaults.get(key), dict) else value
    return merged


def check(model: type[Model], values: dict[str, Any], where: str | None = None) -> Model:
    """`model(**values)`, with its complaint turned into one sentence."""
    try:
        return model(**values)
    except ValidationError as error:
        raise UserError((f"{where}: " if where else "") + sentence(model, joined(model, error.errors()))) from None


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path}: no such file; `foretext init` writes one to start from")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {str(values)[:80]!r}")
    return values


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested dictionaries."""
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"{key}: {parent} is a value, not a section")
    values[last] = value


def joined(model: type[BaseModel], problems: list[dict[str, Any]]) -> dict[str, Any]:
    """The first of pydantic's complaints; where each member of a union has one (a number, or `auto`), all of them about its value."""
    *place, member = problems[0]["loc"] or ("",)
    fields = section(model, place[:-1]).model_fields
    field = fields.get(place[-1]) if place else None
    if field is None or isinstance(member, int) or submodel(field):
        return problems[0]
    messages = [problem["msg"] for problem in problems if problem["loc"][:-1] == tuple(place)]
    later = [message[0].lower() + message[1:] for message in messages[1:]]
    return problems[0] | {"loc": tuple(place), "msg": ", or ".join([messages[0], *later])}


def sentence(model: type[BaseModel], problem: dict[str, Any]) -> str:
    """One of pydantic's complaints as a sentence."""
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        known = list(section(model, place[:-1]).model_fields)
        near = difflib.get_close_matches(place[-1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{key}: no such setting; {hint}"
    if problem["type"] == "missing":
        field = section(model, place[:-1]).model_fields.get(place[-1])
        about = f" ({field.description})" if field and field.description else ""
        return f"{key}{about}: missing, and it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{key}: {message}{found}" if key else f"{message}{found}"


def section(model: type[BaseModel], place: list[str]) -> type[BaseModel]:
    """The model of a nested section."""
    for part in place:
        inner = submodel(model.model_fields[part]) if part in model.model_fields else None
        if inner is None:
            break
        model = inner
    return model


def submodel(field: FieldInfo) -> type[BaseModel] | None:
    """The settings model that a field holds, if it holds one."""
    union = typing.get_origin(field.annotation) in (typing.Union, types.UnionType)
    options = typing.get_args(field.annotation) if union else (field.annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def commented_yaml(model: type[BaseModel], values: dict[str, Any] | None = None, indent: int = 0) -> str:
    """Every setting with its default (or the one in `values`), its choices and what it means, as YAML.

    Settings that have no value yet are written as comments.
    """
    values, lines, pad = values or {}, [], " " * indent
    for name, field in model.model_fields.items():
        inner = submodel(field)
        if inner:
            given = values.get(name) if isinstance(values.get(name), dict) else {}
            note = f"  # {field.description}" if field.description else ""
            section = commented_yaml(inner, given, indent + 2).rstrip("\n")
            empty = all(line.lstrip().startswith("#") for line in section.split("\n"))  # to YAML a header without content is a null
            lines += [f"{pad}{'# ' * empty}{name}:{note}", section]
            continue
        value = values.get(name, None if field.is_required() else field.get_default(call_default_factory=True))
        notes = [field.description or ""]
        if choices := literal_choices(field.annotation):
            notes.append("one of " + ", ".join(map(str, choices)))
        note = "  # " + "; ".join(filter(None, notes)) if any(notes) else ""
        written = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000).split("\n")[0]
        lines.append(f"{pad}# {name}:{note.replace('  #', '', 1)}" if value is None else f"{pad}{name}: {written}{note}")
    return "\n".join(lines) + "\n"


def literal_choices(annotation: Any) -> tuple:
    """The values of a `Literal`, also of an optional one; none where something else (a number) may stand instead."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    found = [literal_choices(part) for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and not all(found):
        return ()
    return next((choices for choices in found if choices), ())
