"""A setting that nothing reads is worse than none: it promises what does not happen."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import BaseModel

import lora_detr
from lora_detr.recipe.run_config import RunConfig

PACKAGE = Path(lora_detr.__file__).parent


def sections(model: type[BaseModel], seen: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Return every config class that is reachable from ``model``, by name."""
    seen[model.__name__] = model
    for field in model.model_fields.values():
        pending = [field.annotation]
        while pending:
            annotation = pending.pop()
            pending += getattr(annotation, "__args__", ())
            if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation.__name__ not in seen:
                sections(annotation, seen)
    return seen


def attributes_read() -> set[str]:
    """Return the names of all attributes that the package reads from anything."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    return names


READ = attributes_read()
FIELDS = [
    (name, field)
    for name, section in sorted(sections(RunConfig, {}).items())
    for field in section.model_fields
    if field != "kind"  # read by pydantic, which chooses the class by it
]


def test_sections_are_found() -> None:
    names = {name for name, _ in FIELDS}
    assert {"RunConfig", "DeformableDetrConfig", "TimmConfig", "LoRAConfig", "TopKConfig", "OptimizerConfig"} <= names


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda value: str(value))
def test_field_is_read(section: str, field: str) -> None:
    assert field in READ, f"{section}.{field} is read nowhere in the package"
