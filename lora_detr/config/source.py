"""What a user may name as settings: a preset, a YAML file, or the directory of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from lora_detr.config.load import PRESET_METADATA, Loaded, load_config
from lora_detr.config.presets import find_preset
from lora_detr.config.tree import flatten
from lora_detr.config.yaml_subset import read_yaml
from lora_detr.errors import ConfigError, counted

T = TypeVar("T", bound=BaseModel)

SUFFIXES = (".yaml", ".yml")
RUN_SETTINGS = "config.yaml"
"""File of a run directory that holds all its settings."""


@dataclass(frozen=True)
class Source:
    """Settings that were named.

    Attributes:
        path: the YAML file that holds them.
        preset: what ``load_config`` takes as a preset; None for a run, whose file is complete.
    """

    path: Path
    preset: str | Path | None


def find_source(name: str) -> Source:
    """Return what ``name`` stands for: text that ends as a YAML file is one; then a preset comes before a run.

    Whether the file can be read shows when it is.

    Raises:
        ConfigError: no preset has this name, and it is no run directory either; names the nearest preset.
    """
    path = Path(name)
    if name.endswith(SUFFIXES):
        return Source(path, path)
    try:
        return Source(find_preset(name), name)
    except ConfigError as error:
        if (path / RUN_SETTINGS).is_file():
            return Source(path / RUN_SETTINGS, None)
        if path.is_dir() and name:
            remedy = "give a run directory, a preset or a YAML file"
            raise ConfigError(f"{name}: this folder holds no {RUN_SETTINGS}", remedy) from None
        if path.is_file():
            remedy = "rename it, or give a preset or a run directory"
            raise ConfigError(f"{name}: expected a file that ends in {' or '.join(SUFFIXES)}", remedy) from None
        raise ConfigError(error.message, f"{error.remedy}; or give a YAML file or a run directory") from None


def load_source(
    root: type[T], source: Source, *, files: Sequence[Path] = (), overrides: Sequence[str] = ()
) -> Loaded[T]:
    """Return the settings of ``source`` with ``files`` and ``overrides`` laid over them, as ``load_config`` does.

    Raises:
        ConfigError: any fault in any of them.
    """
    if source.preset is None:
        return load_config(root, files=[source.path, *files], overrides=overrides)
    return load_config(root, preset=source.preset, files=files, overrides=overrides)


def composition(source: Source) -> str:
    """Return what ``source`` is made of, such as ``preset deformable + 4 settings``; a list of values counts each.

    Raises:
        ConfigError: the file cannot be read.
    """
    values = read_yaml(source.path)
    extends = values.get("extends")
    count = sum(1 for _ in flatten({key: value for key, value in values.items() if key not in PRESET_METADATA}))
    if extends is None:
        base = "schema defaults"
    else:
        base = str(extends) if str(extends).endswith(SUFFIXES) else f"preset {extends}"
    return f"{base} + {counted(count, 'setting')}"
