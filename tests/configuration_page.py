"""``python -m tests.configuration_page`` writes ``docs/configuration.md`` from the schema."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_detr.config.dump import dump_value
from lora_detr.recipe.run_config import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Settings

Every setting of a run, as the schema documents it. A key path is given with `--set KEY=VALUE`, or as nested keys in a
YAML file for `--preset` or `--config`; N is the index in a list, from 0. Presets change some defaults:
`loradetr config show PRESET --origin` prints the values that apply.

This page is generated: `python -m tests.configuration_page` writes it again.
"""
SCHEMA = RunConfig.model_json_schema(mode="serialization")
WORDS = {"boolean": "`true`, `false`", "string": "text", "null": "`null`", "object": "section"}
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def type_of(schema: dict[str, Any]) -> str:
    """Return a type with its limits in words."""
    if "anyOf" in schema:
        return " or ".join(map(type_of, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        pair = schema.get("prefixItems", [])
        return f"list of {len(pair)}: {type_of(pair[0])}" if pair else f"list: {type_of(schema['items'])}"
    limits = [f"{word} {schema[key]:g}" for key, word in LIMITS.items() if key in schema]
    name = schema.get("type", "object")
    return WORDS.get(name, name) + (f" ({', '.join(limits)})" if limits else "")


def kind_of(section: dict[str, Any]) -> str | None:
    return section["properties"].get("kind", {}).get("const")


def sections(path: str, schema: dict[str, Any], values: dict[str, Any]) -> Iterator[str]:
    """Give a section, then those in it; ``values`` are its defaults where they differ from its class."""
    rows, below = ["| key | type | default | meaning |", "|---|---|---|---|"], []
    kind = kind_of(schema)
    for name, field in schema["properties"].items():
        default, here = values.get(name, field.get("default", ...)), f"{path}.{name}".removeprefix(".")
        if "$ref" not in field and name != "kind":
            value = default.get("kind", {}) if isinstance(default, dict) else default
            shown = "required" if value is ... else f"`{dump_value(value)}`"
            meaning = re.sub(r"\s+", " ", field["description"]).replace("``", "`").replace("|", r"\|")
            rows.append(f"| `{here}` | {type_of(field)} | {shown} | {meaning} |")
        for ref in dict.fromkeys(re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(field))):
            inner = SCHEMA["$defs"][ref]
            if "properties" not in inner:  # any JSON
                continue
            fits = isinstance(default, dict) and default.get("kind") == kind_of(inner)
            below += sections(here + ".N" * (field.get("type") == "array"), inner, default if fits else {})
    title = (f"`{path}`" if path else "Top level") + (f" of kind `{kind}`" if kind else "")
    table = "\n".join(["", *rows, ""]) if rows[2:] else ""
    if kind or table:
        yield f"## {title}\n\n{schema['description'].replace('``', '`')}\n{table}"
    yield from below


def page() -> str:
    """Return the page; a section that several detectors share appears once."""
    return "\n".join([HEAD, *dict.fromkeys(sections("", SCHEMA, {}))]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
