"""What the program prints avoids the habits that make English hard to read."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from lora_detr.cli import app
from tests.conftest import REPOSITORY

HABITS = {
    "'a' for 'per'": r"\b(ms|s|min|h|one|images|steps|positives|tasks?|batch|process|line) an? "
    r"(step|epoch|batch|image|line|node|GPU|target|point|row|pass|second)\b|\} an? (step|epoch|batch|image)\b"
    r"|\ban? \w+ each\b",
    "a fragment without a head": r"^(Of|That|At|Not to|For|In) ",
    "'say', 'tell' or 'name' for print, report, list": r"\bsay(s|ing)?\b|\bsaid\b|\btell(s|ing)?\b|\btold\b|\bnaming\b"
    r"|\bnamed (by|in)\b|\bnames (\{\}|no|nothing|only|one|an?|the)(?= |$)|\bname (only|one|an?|the|val_\w+)\b",
    "'go on' for continue or resume": r"\b(go|goes|going|went) on\b",
    "'anew'": r"\banew\b",
    "'likewise'": r"\blikewise\b",
    "'strange'": r"\bstrange\b",
    "'is there' for exists": r"\b(is|are) (not )?there\b|\bthere (is|are)$",
    "'come to', 'at hand', 'part from'": r"\b(come|comes|came) to\b|\bat hand\b|\bparts? (it|them) from\b",
}


def strings(tree: ast.Module) -> Iterator[str]:
    """Give the text of every string that is no docstring; each value in a formatted one stands as ``{}``."""
    nodes = [*ast.walk(tree)]
    left_out = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    yield from (
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out
    )


def help_texts(command: Any) -> Iterator[str]:
    """Give all that help screens of a command and of those below it consist of."""
    yield command.help or ""
    yield from (parameter.help or "" for parameter in command.params)
    for below in getattr(command, "commands", {}).values():
        yield from help_texts(below)


@functools.cache
def texts() -> list[tuple[str, str]]:
    """Return where and what: every message and every text of a help screen."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "lora_detr").rglob("*.py")}
    found = [(path.name, text) for path, tree in trees.items() for text in strings(tree)]
    return [*found, *(("--help", text) for text in help_texts(get_command(app)))]


@pytest.mark.parametrize(
    "text",
    [
        *("{} s a step", "one task a node", "Processes, one a GPU.", "ms a batch", "about {} an epoch"),
        *("Of everything random.", "the file says so", "0,1,2, say", "{} names no data", "named by {}", "it was told"),
        *("a run that goes on", "starts anew", "AP (likewise)", "names are strange", "nothing is there"),
        *("is not there", "until there is", "it comes to 5", "the data at hand", "what parts it from others"),
    ],
)
def test_a_habit_is_recognised(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in HABITS.values())


@pytest.mark.parametrize("habit", HABITS)
def test_messages_and_help_are_free_of_a_habit(habit: str) -> None:
    assert [f"{where}: {text}" for where, text in texts() if re.search(HABITS[habit], text)] == []
