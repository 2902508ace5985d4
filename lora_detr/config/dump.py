"""Write settings as YAML that reads back as the same values, and compare two of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from lora_detr.config.tree import flatten, is_within, join
from lora_detr.config.yaml_subset import parse_scalar
from lora_detr.json_value import JSON

ABSENT = "<absent>"
"""What ``diff_configs`` shows for a key that only the other side has."""

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+-]*")


def as_tree(config: BaseModel) -> dict[str, JSON]:
    """Return all values of a config as plain data, in the order in which the schema declares them."""
    tree: dict[str, JSON] = config.model_dump(mode="json")
    return tree


def dump_config(config: BaseModel, origin: Mapping[str, str] | None = None) -> str:
    """Return ``config`` as YAML.

    Args:
        config: the settings, written in the order of the schema; reading the text gives the same config.
        origin: key path -> where the value came from, written as a comment behind the value.
    """
    return "".join(line + "\n" for line in _lines(as_tree(config), "", "", origin or {}))


def diff_configs(a: BaseModel, b: BaseModel) -> list[tuple[str, JSON, JSON]]:
    """Return (key path, value in a, value in b) wherever they differ, in the order of ``a``, then of ``b``."""
    left, right = dict(flatten(as_tree(a))), dict(flatten(as_tree(b)))
    paths = list(left) + [path for path in right if path not in left]
    pairs = ((path, left.get(path, ABSENT), right.get(path, ABSENT)) for path in paths)
    return [(path, x, y) for path, x, y in pairs if type(x) is not type(y) or x != y]


def _lines(tree: Mapping[str, JSON], path: str, indent: str, origin: Mapping[str, str]) -> Iterator[str]:
    for key, value in tree.items():
        here, name = join(path, key), _key(key)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, here, indent + "  ", origin)
        elif isinstance(value, list) and any(isinstance(item, dict | list) and item for item in value):
            yield f"{indent}{name}:"
            yield from _items(value, here, indent + "  ", origin)
        else:
            yield f"{indent}{name}: {_inline(value)}{_comment(here, origin)}"


def _items(items: list[JSON], path: str, indent: str, origin: Mapping[str, str]) -> Iterator[str]:
    for i, item in enumerate(items):
        here = join(path, i)
        if isinstance(item, dict) and item:
            inner = list(_lines(item, here, indent + "  ", origin))
        elif isinstance(item, list) and any(isinstance(part, dict | list) and part for part in item):
            inner = list(_items(item, here, indent + "  ", origin))
        else:
            inner = [f"{indent}  {_inline(item)}{_comment(here, origin)}"]
        yield f"{indent}- {inner[0][len(indent) + 2 :]}"
        yield from inner[1:]


def _comment(path: str, origin: Mapping[str, str]) -> str:
    sources = list(dict.fromkeys(source for known, source in origin.items() if is_within(known, path)))
    return "  # " + ", ".join(" ".join(source.split()) for source in sources) if sources else ""


def _inline(value: JSON) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else _text(value)


def _key(key: str) -> str:
    return key if _PLAIN.fullmatch(key) else _quoted(key)


def _text(value: str) -> str:
    return value if _PLAIN.fullmatch(value) and parse_scalar(value) == value else _quoted(value)


def _quoted(value: str) -> str:
    return '"' + "".join(_escaped(char) for char in value) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\U{ord(char):08x}"
