"""A part of nested settings, named by its key path."""

from __future__ import annotations

from lora_detr.config.tree import flatten, is_within, join, paths
from lora_detr.errors import ConfigError, nearest
from lora_detr.json_value import JSON


def select(tree: dict[str, JSON], path: str) -> JSON:
    """Return the value at ``path``: a section, a list, an item of a list, or a single value.

    Raises:
        ConfigError: C01, there is no such key; names the nearest one.
    """
    value: JSON = tree
    at = ""
    for key in path.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key in map(str, range(len(value))):
            value = value[int(key)]
        else:
            raise _unknown(tree, value, at, key, path)
        at = join(at, key)
    return value


def cut(tree: dict[str, JSON], path: str) -> dict[str, JSON]:
    """Return ``tree`` without all that lies beside ``path``; a list on the way keeps the one item.

    Except for items of lists, the result can be laid over other settings and changes this part of them alone.

    Raises:
        ConfigError: C01, as ``select``.
    """
    value = select(tree, path)
    while path:
        path, _, key = path.rpartition(".")
        value = [value] if path and isinstance(select(tree, path), list) else {key: value}
    assert isinstance(value, dict)
    return value


def cut_origin(origin: dict[str, str], tree: dict[str, JSON], path: str) -> dict[str, str]:
    """Return the origin of every leaf of ``cut(tree, path)``; ``origin`` has one for every leaf of ``tree``."""
    # Leaves keep their order; only the index of an item that lost its neighbours is another.
    kept = (origin[leaf] for leaf, _ in flatten(tree) if is_within(leaf, path))
    return {leaf: source for (leaf, _), source in zip(flatten(cut(tree, path)), kept, strict=True)}


def _unknown(tree: JSON, value: JSON, at: str, key: str, path: str) -> ConfigError:
    if isinstance(value, list):
        held = f"a list of {len(value)}, counted from 0" if value else "an empty list"
        return ConfigError(f"`{path}`: `{at}` is {held}, so it has no '{key}'", f"give `{at}`", code="C01")
    if not isinstance(value, dict):
        message = f"`{path}`: `{at}` is a single value, which has no keys"
        return ConfigError(message, f"give `{at}`", code="C01")
    elsewhere = [full for full in paths(tree) if full.rpartition(".")[2] == key]
    hint = f"; did you mean '{elsewhere[0]}'?" if elsewhere else nearest(key, value)
    where = f"`{at}`" if at else "the top level"
    return ConfigError(f"`{path}`: unknown key{hint}", f"known keys of {where}: {', '.join(value)}", code="C01")
