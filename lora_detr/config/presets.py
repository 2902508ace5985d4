"""Find, list and describe presets: YAML files that hold differences from the schema's defaults.

They live in the top-level ``configs/`` of a checkout and in ``lora_detr/configs`` of an installed wheel. A preset is
named by its path below that folder without the suffix, or by its stem alone where only one file has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_detr.errors import ConfigError, nearest

EXCLUDED = frozenset({"ablations"})
"""Folders whose files are not presets of a run."""


@dataclass(frozen=True)
class PresetInfo:
    """One preset.

    Attributes:
        name: what ``--preset`` takes.
        path: its file.
        description: the comment lines at the top of the file, without ``#``.
    """

    name: str
    path: Path
    description: str


def configs_root() -> Path:
    """Return the folder that holds the presets, of the wheel or of the checkout.

    Raises:
        ConfigError: the installation has neither.
    """
    package = Path(__file__).resolve().parent.parent
    # The wheel's copy is asked for first: beside an installed package, `configs` may belong to somebody else.
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no `configs` folder in {package} or beside it", "install the package again")


def list_presets(root: Path | None = None) -> list[PresetInfo]:
    """Return all presets by name; ``root`` defaults to ``configs_root()``."""
    root = configs_root() if root is None else root
    paths = sorted(path for path in root.rglob("*.yaml") if not EXCLUDED & set(path.relative_to(root).parts[:-1]))
    return [PresetInfo(path.relative_to(root).with_suffix("").as_posix(), path, describe(path)) for path in paths]


def find_preset(name: str, root: Path | None = None) -> Path:
    """Return the file of a preset.

    Raises:
        ConfigError: no preset has this name, or several have this stem.
    """
    known = {preset.name: preset.path for preset in list_presets(root)}
    if name in known:
        return known[name]
    same_stem = [full for full in known if full.rpartition("/")[2] == name]
    if len(same_stem) == 1:
        return known[same_stem[0]]
    names = ", ".join(known) or "none"
    if same_stem:
        raise ConfigError(f"preset '{name}' is ambiguous: {', '.join(same_stem)}", "give the name with its folder")
    stems = {full.rpartition("/")[2] for full in known}
    raise ConfigError(f"unknown preset '{name}'{nearest(name, known.keys() | stems)}", f"known presets: {names}")


def describe(path: Path) -> str:
    """Return the comment lines that begin a file, joined by newlines; empty when there are none."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines).strip()
