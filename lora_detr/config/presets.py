"""Find, list and describe presets: YAML files that hold differences from the schema's defaults.

They live in the top-level ``configs/`` of a checkout and in ``lora_detr/configs`` of an installed wheel. A preset is
named by its path below that folder without the suffix, or by its stem alone where only one file has it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_detr.errors import ConfigError, nearest

EXCLUDED = frozenset({"ablations", "huggingface"})
"""Folders whose files are no presets of a run: tables of runs, and settings that a pretrained detector completes."""

# A statement goes on until the next one begins (`Command: ...`) or a line is empty.
_PAPER = re.compile(r"^Paper: *(.+(?:\n(?!\w+:).+)*)", re.MULTILINE)


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

    @property
    def title(self) -> str:
        """The first line of the description; three dots stand for the rest of a sentence that goes on."""
        first = self.description.partition("\n")[0]
        return first if not first or first.endswith(".") else f"{first} ..."

    @property
    def paper(self) -> tuple[str, ...]:
        """What the description says behind each ``Paper:``, on one line; empty where it claims nothing."""
        return tuple(" ".join(text.split()) for text in _PAPER.findall(self.description))


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
    if same_stem:
        raise ConfigError(f"preset '{name}' is ambiguous: {', '.join(same_stem)}", "give the name with its folder")
    stems = {full.rpartition("/")[2] for full in known}
    presets = list_presets(root)
    names = ", ".join(short_name(preset, presets) for preset in presets) or "none"
    close = nearest(name, known.keys() | stems)
    raise ConfigError(f"unknown preset '{name}'{close}", f"known: {names}; see loradetr config list")


def short_name(preset: PresetInfo, presets: Sequence[PresetInfo]) -> str:
    """Return the stem of ``preset`` where ``find_preset`` takes it among ``presets``, else its name."""
    stem = preset.path.stem
    return stem if [other.path.stem for other in presets].count(stem) == 1 else preset.name


def describe(path: Path) -> str:
    """Return the comment lines that begin a file, joined by newlines; empty when there are none."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines).strip()
