"""A JSON file that cannot be used is named in the caller's own error, with line and column where there are any."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.errors import ConfigError
from lora_detr.json_value import read_json


def test_a_mapping_is_returned(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "a.json", ConfigError) == {"a": [1, None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', "damaged: Expecting value: line 2 column 7"),
        (b"[]", "damaged: expected a mapping, found list"),
        (b'{"a": "\xff"}', "damaged: .*can't decode byte 0xff"),
        (b'{"a": ' + b"[" * 200_000, "damaged: "),
        (None, "cannot be read: No such file or directory"),
    ],
    ids=["syntax", "list", "encoding", "depth", "missing"],
)
def test_anything_else_is_the_error_of_the_caller(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"a\.json: {message}"):
        read_json(path, ConfigError)
