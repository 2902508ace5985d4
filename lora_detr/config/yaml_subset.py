"""Read the part of YAML that means one thing only.

YAML 1.1 turns ``no`` into false, ``010`` into 8 and ``1e-4`` into text, keeps the last of two equal keys, and can build
objects from tags. Here a plain scalar is ``null``, ``true``, ``false``, a decimal number or text; keys are text and
occur once; tags, anchors and aliases are refused. PyYAML does the parsing, and this file gives the meaning.
"""

from __future__ import annotations

import errno
import math
import re
from pathlib import Path

import yaml
from yaml.events import CollectionStartEvent, ScalarEvent

from lora_detr.errors import ConfigError
from lora_detr.json_value import JSON
from lora_detr.regular_files import read_regular

MAX_BYTES = 1_000_000
MAX_DEPTH = 40

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,29})")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")


class _RefusedError(Exception):
    """A place in the text and what is wrong there; the caller adds the name of the file."""

    def __init__(self, node: yaml.Event | yaml.Node, problem: str, remedy: str, code: str = "") -> None:
        super().__init__(problem)
        mark = node.start_mark
        self.place = f"{mark.line + 1}:{mark.column + 1}" if mark else ""
        self.problem = problem
        self.remedy = remedy
        self.code = code


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes, and refuses what a settings file has no use for before it gets any meaning."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError(event, f"alias '*{event.anchor}' is not read", "write the value out")
        if isinstance(event, ScalarEvent | CollectionStartEvent):
            if event.anchor is not None:
                raise _RefusedError(
                    event, f"anchor '&{event.anchor}' is not read", "write the value out where it is used"
                )
            if event.tag is not None:
                raise _RefusedError(
                    event, f"tag '{event.tag}' is not read", "write plain values; nothing is executed", "X05"
                )
        if self.depth == MAX_DEPTH:
            raise _RefusedError(event, f"nested deeper than {MAX_DEPTH} levels", "flatten the file")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def read_yaml(path: Path) -> dict[str, JSON]:
    """Return the mapping that a YAML file holds; an empty file gives an empty mapping.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, is not of this subset, or its top level is not a mapping.
    """
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        remedy = "is this a configuration file?" if error.errno in (errno.EFBIG, errno.EINVAL) else "check the path"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", remedy) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}", "save the file as UTF-8") from error
    value = parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise ConfigError(f"{path}: expected a mapping of keys at the top, found {kind}", "write `key: value` lines")
    return value


def parse_yaml(text: str, source: str) -> JSON:
    """Return the value of a YAML text.

    Args:
        text: one document.
        source: name for messages, such as the path of the file.

    Raises:
        ConfigError: with ``source:line:column``.
    """
    loader: _PlainLoader | None = None
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        return None if node is None else _value(node)
    except _RefusedError as refused:
        raise ConfigError(f"{source}:{refused.place}: {refused.problem}", refused.remedy, code=refused.code) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{place}: not valid YAML: {reason}", "quote text that holds special characters") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{source}: not valid YAML: {reason}", "remove characters that cannot be printed") from None
    finally:
        if loader is not None:
            loader.dispose()


def parse_value(text: str) -> JSON:
    """Return the value written behind ``--set key=``, by the rules of a file; empty text gives null."""
    return parse_yaml(text, "--set")


def parse_scalar(text: str) -> str | int | float | bool | None:
    """Return the meaning of an unquoted scalar.

    Raises:
        ValueError: an integer that begins with zero (octal to some readers), or a number too large for a float.
    """
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(f"'{text}' begins with 0, which some readers take for octal")
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"'{text}' is too large for a floating-point number")
        return number
    return text


def _value(node: yaml.Node) -> JSON:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    if node.style is not None:  # quoted or a block: text, whatever it looks like
        return str(node.value)
    try:
        return parse_scalar(node.value)
    except ValueError as error:
        remedy = "write the number without leading zeros, or quote it to keep it as text"
        raise _RefusedError(node, str(error), remedy, "C04") from None


def _mapping(node: yaml.MappingNode) -> dict[str, JSON]:
    result: dict[str, JSON] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.value:
            raise _RefusedError(key, "a key must be text on one line", "write `key: value`")
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            problem = f"key '{name}' is given twice, on lines {lines[name]} and {line}"
            raise _RefusedError(key, problem, "keep one of the two", "C03")
        if name == "<<" and key.style is None:
            raise _RefusedError(key, "merge key '<<' is not read", "write the keys out")
        lines[name] = line
        result[name] = _value(value)
    return result
