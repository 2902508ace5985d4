"""Names of files and classes are data: none of them stops a command, and none steers the terminal."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Command, run_process

HOSTILE = ("p\udce9.png", "b\x1b[31mred.png", "two\nlines.png", "\u202egnp.exe.png", "über.png")


@pytest.fixture
def photos(loradetr: Command, shapes_tiny: Path) -> Path:
    """A folder of images under such names, in the empty folder of ``loradetr``."""
    folder = Path("photos")
    folder.mkdir()
    for source, name in zip(sorted((shapes_tiny / "val").iterdir()), HOSTILE, strict=False):
        shutil.copy(source, folder / name)
    return folder


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("utf-8:strict", marks=pytest.mark.slow)])
def test_predict_does_all_images_whatever_their_names(encoding: str, small_run: Path, photos: Path) -> None:
    ended = run_process("predict", small_run, photos, "--score", 0.99, folder=Path.cwd(), PYTHONIOENCODING=encoding)
    # The first line says what is kept, the last where it is.
    assert ended.code == 0, ended.err
    assert ended.err.splitlines() == [
        "warning: p\\xe9.png: the file name is not UTF-8; predictions.json has it as printed here"
    ]
    shown = [line.removesuffix(": 0 objects") for line in ended.out.splitlines()[1:-1]]
    last = "\\xfcber.png" if encoding == "ascii" else "über.png"
    assert sorted(shown) == sorted(["p\\xe9.png", "b\\x1b[31mred.png", "two\\nlines.png", "\\u202egnp.exe.png", last])
    text = Path("predictions", "predictions.json").read_bytes()
    names = {image["file_name"] for image in json.loads(text)["images"]}
    assert names == {"p\\xe9.png", *HOSTILE[1:]}
    assert b"\\udce9" not in text
    assert set(os.listdir("predictions")) == {"predictions.json", *HOSTILE}


def test_class_names_are_escaped_in_tables_and_pictures(loradetr: Command, shapes_tiny: Path, small_run: Path) -> None:
    data = Path(shutil.copytree(shapes_tiny, "data"))
    for split in ("train", "val"):
        path = data / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = "a\x1b]0;title\x07\nb\u202e"
        path.write_text(json.dumps(content))
    ended = loradetr("doctor", "--data", data)
    assert ended.code == 0
    assert any(line.startswith(" a\\x1b]0;title\\x07\\nb\\u202e") for line in ended.out.splitlines())
    ended = loradetr("eval", small_run, "--data", data)
    assert ended.code == 3
    assert "'a\\x1b]0;title\\x07\\nb\\u202e'" in ended.err
    assert len(ended.err.splitlines()) == 2
    assert not set("\x1b\x07\u202e") & set(ended.out + ended.err)
