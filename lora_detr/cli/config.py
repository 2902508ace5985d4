"""``loradetr config``: list, show, validate and compare settings. Nothing here builds a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lora_detr.cli.choices import json_option
from lora_detr.cli.console import console, render_error
from lora_detr.cli.help_screen import Group
from lora_detr.config.presets import list_presets, short_name
from lora_detr.errors import ConfigError, counted
from lora_detr.json_value import json_text

if TYPE_CHECKING:
    from lora_detr.config.load import Loaded
    from lora_detr.recipe.run_config import RunConfig

SETTINGS = "Preset, YAML file or run directory."

app = typer.Typer(cls=Group, help="List, show, validate and compare settings.", no_args_is_help=True)


@app.command("list")
def list_settings(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list and nothing else.")] = False,
) -> None:
    """List the presets with their descriptions.

    Example: loradetr config list
    """
    presets = sorted(list_presets(), key=lambda preset: preset.name)
    named = [(short_name(preset, presets), preset) for preset in presets]
    if as_json:
        rows = [
            {"name": name, "title": preset.title, "paper": preset.paper, "file": str(preset.path)}
            for name, preset in named
        ]
        _print_json(rows)
        return
    table = Table(box=None)
    table.add_column("preset", no_wrap=True)  # a broken name could not be copied
    table.add_column("what")
    for name, preset in named:
        table.add_row(name, "\n".join((preset.title, *(f"Paper: {text}" for text in preset.paper))))
    out = console()
    out.print(table)
    out.print("next: loradetr config show PRESET; loradetr train --preset PRESET", soft_wrap=True)


@app.command("show")
def show(
    settings: Annotated[str, typer.Argument(help=SETTINGS, metavar="SETTINGS")],
    key: Annotated[str | None, typer.Argument(help="Show this part only, e.g. model.backbone.", metavar="KEY")] = None,
    config: Annotated[list[Path] | None, typer.Option(help="YAML on top; repeatable.", metavar="FILE")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting; repeatable.", metavar="KEY=VALUE")
    ] = None,
    origin: Annotated[bool, typer.Option("--origin", help="Add where each value comes from.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Show all settings, defaults included, as YAML that --preset and --config take.

    Example: loradetr config show deformable-lora3 train.optimizer --origin
    """
    from lora_detr.config.dump import as_tree, dump_aligned, dump_tree
    from lora_detr.config.section import cut, cut_origin, select
    from lora_detr.config.tree import flatten

    loaded = _load(settings, config or (), set_ or ())
    tree = as_tree(loaded.config)
    part = select(tree, key) if key else tree
    if as_json and origin:
        leaves = flatten(part, key or "")
        _print_json({leaf: {"value": value, "origin": loaded.origin[leaf]} for leaf, value in leaves})
    elif as_json:
        _print_json(part)
    else:
        shown = cut(tree, key) if key else tree
        origins = cut_origin(loaded.origin, tree, key) if key else loaded.origin
        if key and any(name.isdecimal() for name in key.split(".")):
            _print(f"# one item of a list: {key}\n")
        _print(dump_aligned(shown, origins) if origin else dump_tree(shown))


@app.command("validate")
def validate(
    settings: Annotated[list[str], typer.Argument(help="Presets, YAML files or run directories.", metavar="SETTINGS")],
) -> None:
    """Check every file as train --preset would, and report all faults.

    A file for --config is checked on top of its preset by config show PRESET --config FILE.
    Example: loradetr config validate mine.yaml other.yaml
    """
    out, err = console(), console(stderr=True)
    failed = False
    for name in settings:
        try:
            made_of = _composition(name)
        except ConfigError as error:
            failed = True
            err.print(render_error(error), soft_wrap=True)
        else:
            out.print(f"{name}: valid ({made_of})", soft_wrap=True)
    if failed:
        raise typer.Exit(ConfigError.exit_code)


@app.command("diff")
def diff(
    a: Annotated[str, typer.Argument(help=SETTINGS, metavar="A")],
    b: Annotated[str, typer.Argument(help="Settings to compare with.", metavar="B")],
    as_json: Annotated[bool, json_option()] = False,
) -> None:
    """Show the differences between two configurations, one per line.

    The exit code is 0 in either case.
    Example: loradetr config diff deformable deformable-lora1
    """
    from lora_detr.config.dump import ABSENT, diff_configs, dump_value

    rows = diff_configs(_load(a).config, _load(b).config)
    if as_json:
        # A key that one side lacks is left out there: null would be a value.
        found = [
            {"key": key, **{side: value for side, value in (("a", x), ("b", y)) if value != ABSENT}}
            for key, x, y in rows
        ]
        _print_json({"a": a, "b": b, "differences": found})
        return
    out = console()
    if not rows:
        out.print(f"no difference between {a} and {b}", soft_wrap=True)
        return
    out.print(f"{counted(len(rows), 'difference')}, {a} -> {b}", soft_wrap=True)
    column = max(len(key) for key, _, _ in rows)
    for key, x, y in rows:
        change = " -> ".join(ABSENT if value == ABSENT else dump_value(value) for value in (x, y))
        line = f"{key:<{column}}  {change}"
        out.print(line if len(line) <= out.width else f"{key}\n    {change}", soft_wrap=True)


def _load(name: str, files: Sequence[Path] = (), overrides: Sequence[str] = ()) -> Loaded[RunConfig]:
    from lora_detr.config.source import find_source, load_source
    from lora_detr.recipe.run_config import RunConfig

    return load_source(RunConfig, find_source(name), files=files, overrides=overrides)


def _composition(name: str) -> str:
    """Return what the settings are made of, once they are known to be valid."""
    from lora_detr.config.source import composition, find_source, load_source
    from lora_detr.recipe.run_config import RunConfig

    source = find_source(name)
    try:
        load_source(RunConfig, source)
    except ConfigError as error:
        # Each line says by itself which file it is about; where a place in the file is named, it does already.
        place = str(source.path)
        lines = (line if line.startswith(place) else f"{name}: {line}" for line in error.message.splitlines())
        raise ConfigError("\n".join(lines), error.remedy, code=error.code) from None
    return composition(source)


def _print_json(value: object) -> None:
    _print(json_text(value, indent=1) + "\n")


def _print(text: str) -> None:
    """Write text that another program may read: nothing is wrapped."""
    sys.stdout.write(text)
