"""``docs/errors.md`` lists every error code and exit code of the program, and no other."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from lora_detr.cli.console import INTERNAL, INTERRUPTED
from lora_detr.cli.streams import LOST_OUTPUT
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
SOURCE = sorted((REPOSITORY / "lora_detr").rglob("*.py"))
CODE = re.compile(r"[CDKNPQSX]\d\d")


def codes_of(node: ast.AST, at_top: bool = True) -> Iterator[str]:
    """Give the codes that an error can be given.

    Comparisons, and tables at the top of a module, only look up the code of an error.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
        yield node.value
    inside = at_top and not isinstance(node, ast.FunctionDef)
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Compare) and not (inside and isinstance(child, ast.Dict | ast.Tuple | ast.Set)):
            yield from codes_of(child, inside)


@functools.cache
def trees() -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE]


def rows(section: str) -> list[list[str]]:
    """Return the cells of the table in a section, without its head."""
    (text,) = re.findall(rf"^## {section}[^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_codes_that_are_only_looked_up_do_not_count() -> None:
    looked_up = 'LABELS = {"D91": 1}\ndef check(one):\n    return one.code == "D92" and one.code in ("D93",)'
    raised = (
        'LAST = "D94"\nclass A:\n    code: str = "D95"\n    def a(self):\n        return ("D96", "D97" if self else f)'
    )
    assert list(codes_of(ast.parse(looked_up))) == []
    assert list(codes_of(ast.parse(raised))) == ["D94", "D95", "D96", "D97"]


def test_no_code_is_assembled_from_parts() -> None:
    values = [
        node.value
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "code"
    ]
    assert len(values) > 50
    assert {type(value) for value in values} <= {ast.Constant, ast.Name, ast.Attribute, ast.IfExp}
    assert [one.value for one in values if isinstance(one, ast.Constant) and not CODE.fullmatch(str(one.value))] == []


@pytest.mark.parametrize("letter", "CDKNPQSX")
def test_codes_of_the_page_are_those_of_the_program(letter: str) -> None:
    known = {code for tree in trees() for code in codes_of(tree)}
    listed = [code for code, *_ in rows(f"{letter}:")]
    assert listed == sorted(code for code in known if code.startswith(letter))


def test_every_code_has_a_meaning_an_example_and_a_remedy() -> None:
    for letter in "CDKNPQSX":
        for row in rows(f"{letter}:"):
            assert len(row) == 4
            assert all(row)
            assert row[2].startswith("`")


def exits(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Give class name and value of everything that is assigned to ``exit_code``."""
    for node in ast.walk(tree):
        for statement in ast.walk(node) if isinstance(node, ast.ClassDef) else ():
            match statement:
                case ast.Assign(targets=[ast.Name("exit_code") | ast.Attribute(attr="exit_code")]):
                    yield node.name, ast.literal_eval(statement.value)


def test_exit_codes_of_the_page_are_those_of_the_program() -> None:
    found = {(code, f"`{name}`") for tree in trees() for name, code in exits(tree) if name != "LoraDetrError"}
    assert (75, "`Stopped`") in found
    assert (INTERRUPTED, "`Stopped`") in found
    listed = [(int(code), name) for code, name, *_ in rows("Exit codes")]
    assert listed == [(0, ""), (INTERNAL, ""), *sorted({*found, (LOST_OUTPUT, "")})]
