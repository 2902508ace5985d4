"""Load a configuration: schema defaults < preset < files < ``--set`` overrides, and remember the source of each value.

Nothing else overrides: no environment variable and no hidden argument. The schema is passed in, so this file serves
every config class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from lora_detr.config.dump import as_tree
from lora_detr.config.explain import explain
from lora_detr.config.presets import find_preset
from lora_detr.config.tree import flatten, merge, merge_origins, nested, paths
from lora_detr.config.yaml_subset import parse_value, read_yaml
from lora_detr.errors import ConfigError
from lora_detr.json_value import JSON

T = TypeVar("T", bound=BaseModel)

PRESET_METADATA = ("extends", "description")
"""Top-level keys of a preset that say something about the file and are no settings."""


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A validated configuration.

    Attributes:
        config: the settings.
        origin: key path of every leaf -> ``schema``, ``preset NAME``, ``file PATH`` or ``override``.
        raw: the merged settings before validation.
    """

    config: T
    origin: dict[str, str]
    raw: dict[str, JSON]


@dataclass(frozen=True)
class _Layer:
    """What one source sets: ``values`` are laid over whatever is below."""

    label: str
    values: dict[str, JSON]


def load_config(
    root: type[T],
    *,
    preset: str | Path | None = None,
    given: Mapping[str, dict[str, JSON]] | None = None,
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> Loaded[T]:
    """Merge all sources and validate the result strictly: text is never taken for a number or a truth value.

    Args:
        root: the schema.
        preset: a name, or a path (also as text ending in ``.yaml``); it may extend one other preset, one level deep.
        given: by what is shown as their origin, settings on top of the preset.
        files: YAML files, the last one strongest.
        overrides: ``key.path=value`` texts. Short paths are applied before long ones, so that a change of ``kind``
            never discards a setting given beside it; among equals the last one wins.

    Raises:
        ConfigError: any fault in any source; all faults of the values in one error, a line each.
    """
    raw: dict[str, JSON] = schema_defaults(root)
    origin = {path: "schema" for path, _ in flatten(raw)}
    layers = _preset_layers(preset) if preset is not None else []
    layers += [_Layer(label, values) for label, values in (given or {}).items()]
    layers += [_Layer(f"file {path}", _read_file(path, root)) for path in files]
    for layer in layers:
        raw, origin = _apply(raw, origin, layer.values, layer.values, layer.label)
    for path, value in sorted(map(parse_override, overrides), key=_override_order):
        change = nested(path, value, raw)
        assert isinstance(change, dict)
        raw, origin = _apply(raw, origin, change, value, "override", path)
    config = validate(root, raw, origin)
    return Loaded(config, _complete(config, origin), raw)


def validate(root: type[T], raw: JSON, origin: dict[str, str]) -> T:
    """Return ``raw`` as a ``root``, by pydantic's strict rules for JSON.

    Raises:
        ConfigError: one line a fault, with key path, value, what is allowed, and origin.
    """
    try:
        return root.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise explain(error, root, raw, origin, list(paths(schema_defaults(root)))) from None


def schema_defaults(root: type[BaseModel]) -> dict[str, JSON]:
    """Return the defaults of a schema as plain data; a field without one is left out, its own defaults are not."""
    defaults: dict[str, JSON] = {}
    for name, field in root.model_fields.items():
        if not field.is_required():
            value = field.get_default(call_default_factory=True, validated_data={})
            defaults[name] = TypeAdapter[object](object).dump_python(value, mode="json")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            defaults[name] = schema_defaults(field.annotation)
    return defaults


def _apply(
    raw: dict[str, JSON], origin: dict[str, str], change: dict[str, JSON], given: JSON, label: str, path: str = ""
) -> tuple[dict[str, JSON], dict[str, str]]:
    merged = merge(raw, change)
    assert isinstance(merged, dict)
    return merged, merge_origins(origin, merged, given, label, path)


def _preset_layers(preset: str | Path) -> list[_Layer]:
    """Return the layers of a preset, the extended one first."""
    path, name = _locate(preset, Path())
    values = read_yaml(path)
    base = _extends(values, path)
    layers = []
    if base is not None:
        base_path, base_name = _locate(base, path.parent)
        base_values = read_yaml(base_path)
        deeper = _extends(base_values, base_path)
        if deeper is not None:
            message = f"{path}: extends '{base_name}', which itself extends '{deeper}'; one level is allowed"
            raise ConfigError(message, f"let '{name}' extend '{deeper}' and state the differences")
        layers.append(_Layer(f"preset {base_name}", _settings(base_values)))
    return [*layers, _Layer(f"preset {name}", _settings(values))]


def _locate(preset: str | Path, folder: Path) -> tuple[Path, str]:
    if isinstance(preset, Path) or preset.endswith((".yaml", ".yml")):
        return folder / preset, Path(preset).stem
    return find_preset(preset), preset


def _extends(values: dict[str, JSON], path: Path) -> str | None:
    base = values.get("extends")
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: `extends` is {base!r}; must be the name of one preset", "give one preset")
    return base


def _settings(values: dict[str, JSON]) -> dict[str, JSON]:
    return {key: value for key, value in values.items() if key not in PRESET_METADATA}


def _read_file(path: Path, root: type[BaseModel]) -> dict[str, JSON]:
    values = read_yaml(path)
    if "extends" in values and "extends" not in root.model_fields:
        raise ConfigError(f"{path}: `extends` has a meaning in presets only", f"give the file as --preset {path}")
    return values


def parse_override(text: str) -> tuple[str, JSON]:
    """Return (key path, value) of ``key.path=value``.

    Raises:
        ConfigError: the text is not of this form, or the value is not of the YAML that is read.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path or "" in path.split("."):
        raise ConfigError(f"--set {text!r}: expected key.path=value", "write for example --set train.optimizer.lr=1e-4")
    return path, parse_value(value)


def _override_order(override: tuple[str, JSON]) -> tuple[int, bool]:
    path, _ = override
    return path.count("."), path.rpartition(".")[2] != "kind"


def _complete(config: BaseModel, origin: dict[str, str]) -> dict[str, str]:
    """Return the origin of every leaf of ``config``: a leaf that no source names belongs to the one around it."""
    return {path: _origin_of(path, origin) for path, _ in flatten(as_tree(config))}


def _origin_of(path: str, origin: dict[str, str]) -> str:
    while path:
        if path in origin:
            return origin[path]
        path = path.rpartition(".")[0]
    return "schema"
