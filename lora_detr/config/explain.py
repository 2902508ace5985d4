"""Turn a validation error into one line a fault: key path, value found, what is allowed, where it came from."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lora_detr.config.tree import is_within, join
from lora_detr.errors import ConfigError, nearest
from lora_detr.json_value import JSON

_LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
_TYPES = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "dataclass": "a mapping",
    "none": "null",
    "path": "a path",
}
_TYPE_FAULTS = ("type", "parsing", "from_float", "attributes_type")
_LENGTHS = {"too_short": ("min_length", "at least"), "too_long": ("max_length", "at most")}


def explain(
    error: ValidationError, root: type[BaseModel], raw: JSON, origin: Mapping[str, str], known_paths: Sequence[str]
) -> ConfigError:
    """Return one ``ConfigError`` for all faults that pydantic found.

    Args:
        error: what pydantic raised.
        root: the schema that refused ``raw``.
        raw: the merged settings.
        origin: key path -> where its value came from.
        known_paths: key paths of the schema, to suggest one for a key given in the wrong section.
    """
    faults: dict[str, list[str]] = {}  # a field that may be of several types is refused once for each
    remedy, code = "change the values named above", "C05"
    for detail in error.errors(include_url=False):
        path = _path(detail, raw)
        if detail["type"] == "extra_forbidden":
            known = _fields_at(root, detail["loc"][:-1])
            text = f": unknown key{_suggestion(path, known, known_paths)}{_source(path, origin)}"
            remedy, code = f"known keys of {_where(path)}: {', '.join(known) or 'none'}", "C01"
        elif detail["type"] in ("value_error", "assertion_error"):  # a sentence of our own validators
            text = f": {str(detail['msg']).partition(', ')[2]}{_source(path, origin)}"
        elif detail["type"] == "union_tag_not_found":
            text = f" must be given, one of {', '.join(repr(kind) for kind in _kinds_at(root, detail['loc']))}"
        elif detail["type"] == "missing":
            section = path.rpartition(".")[0]
            text = f" must be given: it has no default{_source(section, origin) if section else ''}"
        else:
            text = f" is {_shown(detail['input'])}{_source(path, origin)}; must be {_allowed(detail)}"
        faults.setdefault(path, []).append(text)
    return ConfigError("\n".join(_line(path, texts) for path, texts in faults.items()), remedy, code=code)


def first_fault(error: ValidationError, raw: JSON) -> str:
    """Return the first fault of settings that a file brings, whose user has not written them.

    Args:
        error: what pydantic raised.
        raw: the settings.
    """
    detail = error.errors(include_url=False)[0]
    path = _path(detail, raw)
    if detail["type"] in ("value_error", "assertion_error"):
        return _line(path, [f": {str(detail['msg']).partition(', ')[2]}"])
    if detail["type"] in ("missing", "extra_forbidden", "json_invalid", "union_tag_not_found"):
        return _line(path, [f": {detail['msg'][0].lower()}{detail['msg'][1:]}"])
    return _line(path, [f" is {_shown(detail['input'])}; must be {_allowed(detail)}"])


def kinds_of(annotation: Any) -> tuple[str, ...]:
    """Return the names that ``kind`` has for the members of a union of config classes, in its order."""
    return tuple(str(tag) for model in models_of(annotation) for tag in _kind_of(model))


def _line(path: str, texts: Sequence[str]) -> str:
    heads = list(dict.fromkeys(text.partition("; must be ")[0] for text in texts))
    allowed = list(dict.fromkeys(text.partition("; must be ")[2] for text in texts))
    name = f"`{path}`" if path else "configuration"
    return name + ", ".join(heads) + (f"; must be {' or '.join(allowed)}" if any(allowed) else "")


def _path(detail: ErrorDetails, raw: JSON) -> str:
    """Return the key path as the user writes it: pydantic puts names of union members into its own."""
    path, here = "", raw
    loc = detail["loc"]
    for i, key in enumerate(loc):
        if isinstance(here, list) and isinstance(key, int) and key < len(here):
            path, here = join(path, key), here[key]
        elif isinstance(here, dict) and str(key) in here and not _is_tag(here, loc, i):
            path, here = join(path, key), here[str(key)]
        elif detail["type"] == "missing" and i == len(loc) - 1:
            path = join(path, key)
    return join(path, "kind") if detail["type"].startswith("union_tag") else path


def _is_tag(here: Mapping[str, JSON], loc: Sequence[str | int], i: int) -> bool:
    """Whether element ``i`` names a member of a union: a section of that name would not also be its ``kind``."""
    return here.get("kind") == loc[i] and i + 1 < len(loc) and str(loc[i + 1]) in here


def _source(path: str, origin: Mapping[str, str]) -> str:
    at = path
    while at and at not in origin:
        at = at.rpartition(".")[0]
    if at in origin:
        return f" (from {origin[at]})"
    below = [source for known, source in origin.items() if is_within(known, path) and source != "schema"]
    return f" (from {', '.join(dict.fromkeys(below))})" if below else ""


def _allowed(detail: ErrorDetails) -> str:
    kind, limits = detail["type"], detail.get("ctx", {})
    if kind in _LIMITS:
        name, phrase = _LIMITS[kind]
        return f"{phrase} {limits[name]}"
    if kind in ("literal_error", "enum"):
        return f"one of {limits['expected']}"
    if kind == "union_tag_invalid":
        return f"one of {limits['expected_tags']}{nearest(str(limits['tag']), _kinds(str(limits['expected_tags'])))}"
    if kind in _LENGTHS:
        name, phrase = _LENGTHS[kind]
        return f"a list of {phrase} {limits[name]} items"
    if kind == "finite_number":
        return "finite"
    for prefix, phrase in _TYPES.items():
        if kind.startswith(f"{prefix}_") and kind.removeprefix(f"{prefix}_") in _TYPE_FAULTS:
            return phrase
    return f"valid: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _kinds(expected: str) -> list[str]:
    return [tag.strip(" '") for tag in expected.split(",")]


def _shown(value: object) -> str:
    if isinstance(value, dict) and "kind" in value:
        return repr(value["kind"])
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _where(path: str) -> str:
    section = path.rpartition(".")[0]
    return f"`{section}`" if section else "the top level"


def _suggestion(path: str, known: Sequence[str], known_paths: Sequence[str]) -> str:
    name = path.rpartition(".")[2]
    here = nearest(name, known)
    elsewhere = [full for full in known_paths if full.rpartition(".")[2] == name]
    if elsewhere and not here:
        return f"; did you mean '{elsewhere[0]}'?"
    return here or nearest(path, known_paths)


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield every config class inside an annotation: members of unions, items of lists, values of mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from models_of(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType, list, tuple, dict, Sequence, Mapping):
        for part in get_args(annotation):
            yield from models_of(part)


def _classes_at(root: type[BaseModel], loc: Sequence[str | int]) -> list[type[BaseModel]]:
    classes: list[type[BaseModel]] = [root]
    for key in loc:
        if isinstance(key, int):
            continue
        of_kind = [cls for cls in classes if key in _kind_of(cls)]
        inner = [
            model for cls in classes if key in cls.model_fields for model in models_of(cls.model_fields[key].annotation)
        ]
        classes = of_kind or inner or classes
    return classes


def _kind_of(cls: type[BaseModel]) -> tuple[Any, ...]:
    field = cls.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def _fields_at(root: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    return list(dict.fromkeys(name for cls in _classes_at(root, loc) for name in cls.model_fields))


def _kinds_at(root: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    return [str(tag) for cls in _classes_at(root, loc) for tag in _kind_of(cls)]
