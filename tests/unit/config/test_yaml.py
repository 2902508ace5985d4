"""The YAML subset: one meaning a value, and a place in every message."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_detr.config.yaml_subset import MAX_BYTES, MAX_DEPTH, parse_value, parse_yaml, read_yaml
from lora_detr.errors import ConfigError


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "file.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-7", -7),
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("1.0", 1.0),
        ("text", "text"),
        ("'010'", "010"),
        ('"true"', "true"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{k: [1]}", {"k": [1]}),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:00", "12:30:00"),
        ("topk:k=6", "topk:k=6"),
    ],
)
def test_a_plain_value_has_one_meaning_c02(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y", "n", "True", "FALSE"])
def test_only_true_and_false_are_booleans_c04(word: str) -> None:
    assert parse_value(word) == word


@pytest.mark.parametrize("text", ["010", "-007", "0_1", "00"])
def test_integer_with_leading_zero_is_refused_c04(text: str) -> None:
    error = refused(f"seed: {text}")
    assert error.code == "C04"
    assert "file.yaml:1:7" in error.message
    assert text in error.message


def test_duplicate_key_names_both_lines_c03() -> None:
    error = refused("lr: 1\nbatch: 2\nlr: 3\n")
    assert error.code == "C03"
    assert "lines 1 and 3" in error.message
    assert "file.yaml:3:1" in error.message


def test_duplicate_key_in_a_nested_flow_mapping_c03() -> None:
    assert refused("a: {b: 1, b: 2}").code == "C03"


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch sentinel']",
        "a: !!python/name:os.system",
        "!!python/object:object {}",
        "a: !!str 5",
        "a: !custom b",
    ],
)
def test_tags_are_refused_x05(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(text).code == "X05"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x", "a: [&x [1], *x]", "a: *x", "<<: {a: 1}"])
def test_anchors_aliases_and_merge_keys_are_refused(text: str) -> None:
    assert "not read" in refused(text).message


def test_deep_nesting_is_refused() -> None:
    assert "nested deeper" in refused("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)).message
    assert "nested deeper" in refused("[" * 50_000).message


@pytest.mark.parametrize(
    ("text", "place"),
    [("a: [1, 2\nb: 3", "file.yaml:2:2"), ("a: 1\n\tb: 2", "file.yaml:2:1"), ("a: b: c", "file.yaml:1:5")],
)
def test_syntax_error_names_line_and_column(text: str, place: str) -> None:
    assert place in refused(text).message


@pytest.mark.parametrize("text", ["a: 1\n---\nb: 2", "? [a]\n: 1", "a: '\x07'", "a: 1e999", "@home"])
def test_other_faults_are_config_errors(text: str) -> None:
    assert refused(text).exit_code == 2


def test_read_yaml_refuses_what_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="found a list"):
        read_yaml(path)
    path.write_text("")
    assert read_yaml(path) == {}


@pytest.mark.parametrize("content", [b"a: \xff", b"#" * (MAX_BYTES + 1)])
def test_read_yaml_refuses_bytes_that_are_no_configuration(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        read_yaml(path)


def test_read_yaml_names_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(path)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_yaml(text, "any")
