"""Nested settings as plain values: merge, set one path, list all paths. Nothing here knows the schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lora_detr.errors import ConfigError
from lora_detr.json_value import JSON


def join(path: str, key: str | int) -> str:
    """Return the key path of ``key`` inside ``path``; the root is the empty path."""
    return f"{path}.{key}" if path else str(key)


def flatten(value: JSON, path: str = "") -> Iterator[tuple[str, JSON]]:
    """Yield (key path, value) of every leaf in order; an empty list or mapping is a leaf, except at the root."""
    if isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            yield from flatten(item, join(path, key))
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from flatten(item, join(path, i))
    else:
        yield path, value


def paths(value: JSON, path: str = "") -> Iterator[str]:
    """Yield the key path of every key, sections included; items of lists are left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield join(path, key)
            yield from paths(item, join(path, key))


def merge(base: JSON, change: JSON) -> JSON:
    """Return ``base`` with ``change`` laid over it; neither is edited.

    Mappings merge key by key; anything else, lists included, is replaced. A mapping that names another ``kind`` is
    another component, whose settings mean something else, so it replaces the mapping as a whole.
    """
    if not isinstance(base, dict) or not isinstance(change, dict) or _changes_kind(base, change):
        return copy(change)
    result = dict(base)
    for key, item in change.items():
        result[key] = merge(base[key], item) if key in base else copy(item)
    return result


def merge_origins(origin: Mapping[str, str], merged: JSON, given: JSON, label: str, path: str = "") -> dict[str, str]:
    """Return the origin of every leaf of ``merged``: ``label`` where ``given``, at ``path``, set it, else the old."""
    changed = {leaf for leaf, _ in flatten(given, path)}
    return {leaf: label if leaf in changed else origin.get(leaf, label) for leaf, _ in flatten(merged)}


def nested(path: str, value: JSON, tree: JSON) -> JSON:
    """Return the change that sets ``path`` in ``tree``, to be given to ``merge``.

    An index into a list yields the whole list with one item changed, because lists are replaced.

    Raises:
        ConfigError: the path enters a value that has no parts, or an index is missing or out of range.
    """
    return _nested(path.split("."), value, tree, "", path)


def is_within(path: str, parent: str) -> bool:
    """Whether ``path`` is ``parent`` or lies below it."""
    return not parent or path == parent or path.startswith(parent + ".")


def copy(value: JSON) -> JSON:
    """Return a copy that shares no list or mapping with ``value``."""
    if isinstance(value, dict):
        return {key: copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy(item) for item in value]
    return value


def _changes_kind(base: Mapping[str, JSON], change: Mapping[str, JSON]) -> bool:
    return "kind" in base and "kind" in change and base["kind"] != change["kind"]


def _nested(keys: list[str], value: JSON, tree: JSON, at: str, whole: str) -> JSON:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    here = join(at, key)
    if isinstance(tree, list):
        index = _index(key, tree, at, whole)
        items = [copy(item) for item in tree]
        items[index] = merge(items[index], _nested(rest, value, items[index], here, whole))
        return items
    if isinstance(tree, dict) or tree is None:
        return {key: _nested(rest, value, tree.get(key) if tree else None, here, whole)}
    raise ConfigError(
        f"`{whole}` cannot be set: `{at}` is {tree!r}, which has no keys",
        "the config.yaml of any run shows all key paths",
    )


def _index(key: str, items: list[JSON], at: str, whole: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        held = f"a list of {len(items)} (indices 0 to {len(items) - 1})" if items else "an empty list"
        example = join(at, "0") if items else f"{at}=[...]"
        raise ConfigError(f"`{whole}` cannot be set: `{at}` is {held}, so it has no '{key}'", f"write {example}")
    return int(key)
