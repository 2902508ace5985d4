"""Options of a command as a table of rows, some of them names of settings. Imports no torch, so that help is quick."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

PACKAGE = Path(__file__).parents[1]
SCHEMA = [PACKAGE / name for name in ("recipe/run_config.py", "recipe/optimisation.py", "data/transforms.py")]


@dataclass(frozen=True)
class Option:
    """A row of the table.

    Attributes:
        parameter: as Typer wants it; None is its value when it is left out.
        key: key path of the setting that the option is a name for; empty if it is none.
    """

    parameter: inspect.Parameter
    key: str = ""


def option(panel: str, name: str, kind: Any, metavar: str, text: str, flag: str = "") -> Option:
    """Return an option with a type and a help text of its own; ``flag`` is given where it differs from the name."""
    flag = flag or "--" + name.replace("_", "-")
    default = typer.Option(None, flag, help=text, metavar=metavar or None, rich_help_panel=panel or None)
    return Option(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind | None))


def setting(panel: str, name: str, key: str, metavar: str = "") -> Option:
    """Return an option that is a name for a setting: type, choices and help are those of its field in the schema."""
    kind, choices, text = _field(key)
    metavar = metavar or choices or ("N" if kind is int else "")
    return Option(option(panel, name, kind, metavar, text).parameter, key)


def takes(options: Sequence[Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that ends in ``**chosen`` the options of a table, before those of its own signature."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        vars(command)["__signature__"] = inspect.Signature([*(row.parameter for row in options), *own])
        return command

    return decorate


def _field(key: str) -> tuple[Any, str, str]:
    """Return type, choices as ``a|b``, and the first sentence of the documentation of a setting."""
    kind, text = "RunConfig", ""
    for name in key.split("."):
        kind, text = _schema()[kind][name]
    kind = kind.removesuffix(" | None")
    choices = "|".join(ast.literal_eval(kind.removeprefix("Literal"))) if kind.startswith("Literal") else ""
    (text, *_) = re.split(r"(?<=\.)(?<!e\.g\.)\s+", text.replace("`", ""), maxsplit=1)
    types = {"int": int, "float": float, "bool": bool}
    return list[str] if kind.startswith("tuple") else types.get(kind, str), choices, text


@functools.cache
def _schema() -> dict[str, dict[str, tuple[str, str]]]:
    """Return class -> field -> (annotation, documentation), read as text: to import the schema is to import torch."""
    nodes = [node for path in SCHEMA for node in ast.parse(path.read_text(encoding="utf-8")).body]
    return {node.name: dict(_documented(node)) for node in nodes if isinstance(node, ast.ClassDef)}


def _documented(node: ast.ClassDef) -> Iterator[tuple[str, tuple[str, str]]]:
    for pair in itertools.pairwise(node.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind), ast.Expr(ast.Constant(str(text))):
                yield name, (ast.unparse(kind), text)
