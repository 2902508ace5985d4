"""Random changes of bytes and of JSON values, each drawn from a seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

NUMBERS = ("-1", "0", "-0", "1e999", "1e308", "NaN", "-Infinity", "0.5", "007", "9" * 30, "9" * 5000, "null", '""')
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, 1e308, -1e308, float("nan"), float("inf"), 10**30, 2**63, -(2**63)),
    *("", "x", "0", "../x", "/etc/hostname", "a\0b", "\ud800", "x" * 5000, "\u202e\x1b[31m", "no\nlines"),
    *([], {}, [None], [[[[]]]], {"": {}}, {"id": 1}, [1, 2, 3, 4], ["a", "b", "c", "d"]),
)


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return the data with one to three changes of its bytes."""
    for _ in range(draw.randint(1, 3)):
        data = draw.choice(BYTE_CHANGES)(data, draw)
    return data


def mutate_value(value: Any, draw: random.Random) -> Any:
    """Return a copy of a JSON value with one to three of its nodes replaced, removed, doubled, wrapped or moved."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        nodes = _nodes(value)
        if not nodes:
            return value
        draw.choice(VALUE_CHANGES)(*draw.choice(nodes), draw)
    return value


def flip(data: bytes, draw: random.Random) -> bytes:
    """Flip one bit."""
    changed = bytearray(data)
    if changed:
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    """Cut the end off."""
    return data[: draw.randrange(len(data) + 1)]


def _drop(data: bytes, draw: random.Random) -> bytes:
    begin = draw.randrange(len(data) + 1)
    return data[:begin] + data[begin + draw.randint(1, 20) :]


def _double(data: bytes, draw: random.Random) -> bytes:
    begin = draw.randrange(len(data) + 1)
    end = begin + draw.randint(1, 200)
    return data[:end] + data[begin:]


def _insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice((draw.randbytes(draw.randint(1, 9)), b"[" * 5000, b'{"":' * 3000)) + data[at:]


def _renumber(data: bytes, draw: random.Random) -> bytes:
    """Replace a digit by another number."""
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return data
    at = draw.choice(places)
    return data[:at] + draw.choice(NUMBERS).encode() + data[at + 1 :]


def _respell(data: bytes, draw: random.Random) -> bytes:
    """Replace a character of the syntax by another."""
    places = [i for i, byte in enumerate(data) if byte in b'{}[]",:\n- ']
    if not places:
        return data
    at = draw.choice(places)
    return data[:at] + bytes([draw.choice(b'{}[]",:\n- \t&*!|>#%@\x00\xff')]) + data[at + 1 :]


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key or index) of everything that a value holds."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        container = pending.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        found += [(container, key) for key in keys]
        pending += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return found


def _replace(container: Any, key: Any, draw: random.Random) -> None:
    container[key] = copy.deepcopy(draw.choice(VALUES))


def _remove(container: Any, key: Any, draw: random.Random) -> None:
    del container[key]


def _repeat(container: Any, key: Any, draw: random.Random) -> None:
    if isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    else:
        container[draw.choice(("x", "id", f"{key}_"))] = copy.deepcopy(container[key])


def _wrap(container: Any, key: Any, draw: random.Random) -> None:
    container[key] = draw.choice(([container[key]], {"x": container[key]}, str(container[key])))


def _move(container: Any, key: Any, draw: random.Random) -> None:
    other = draw.choice(list(container) if isinstance(container, dict) else range(len(container)))
    container[key], container[other] = container[other], container[key]


BYTE_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flip, cut, _drop, _double, _insert, _renumber, _renumber, _respell, _respell),
)
VALUE_CHANGES: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    _replace,
    _replace,
    _remove,
    _repeat,
    _wrap,
    _move,
)
