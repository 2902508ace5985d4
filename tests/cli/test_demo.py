"""``loradetr demo``, on a data set and a detector of seconds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

import lora_detr
from lora_detr.cli import app
from lora_detr.data.synthetic import sets
from tests.cli.conftest import Command, Ended, commands_in
from tests.small_runs import SMALL

command = import_module("lora_detr.cli.demo")  # in its package, the name is that of the function


@dataclass(frozen=True)
class Shown:
    """A demo that has ended.

    Attributes:
        folder: it ran in.
        ended: what it said.
        made: names of what it wrote, in the folder and in ``runs``.
        loradetr: a command that may go on in the folder.
    """

    folder: Path
    ended: Ended
    made: list[str]
    loradetr: Command


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Run the demo as a newcomer does: in an empty folder, without an option that names a place."""
    folder, cache = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("cache")
    tiny = replace(sets.SHAPES_EASY, train_images=6, val_images=4, size=96)
    with pytest.MonkeyPatch.context() as patch, commands_in(folder, XDG_CACHE_HOME=str(cache)) as loradetr:
        patch.setattr(command, "PRESET", str(SMALL))
        patch.setitem(sets.SPECS, command.DATA, tiny)
        ended = loradetr("demo", "--epochs", 2, "--seed", 7)
        made = sorted(path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("runs/*")))
        yield Shown(folder, ended, made, loradetr)


def test_five_parts_one_after_the_other(demo: Shown) -> None:
    assert demo.ended.err == ""
    assert demo.ended.code == 0
    headings = re.findall(r"^\[(\d)/5\] (\w+): \S", demo.ended.out, re.MULTILINE)
    names = ("data", "train", "evaluate", "strip", "pictures")
    assert headings == [(str(number), name) for number, name in enumerate(names, start=1)]
    assert "\x1b" not in demo.ended.out


def test_every_part_did_its_work(demo: Shown) -> None:
    # Between two headings stands what the command of that name prints.
    _, data, train, evaluation, strip, pictures = re.split(r"^\[\d/5\] ", demo.ended.out, flags=re.MULTILINE)
    assert "shapes-easy-6-v1" in data
    assert re.findall(r"^epoch (\d)/2 ", train, re.MULTILINE) == ["1", "2"]
    assert re.search(r"^AP -?\d\.\d{3}  AP50 ", evaluation, re.MULTILINE)
    assert "logits and boxes are equal bit for bit" in strip
    assert re.search(r"^done in \d+ min \d+ s: AP50 -?\d\.\d{3} on 4 images", pictures, re.MULTILINE)


def test_the_options_reach_the_run(demo: Shown) -> None:
    settings = (demo.folder / "runs" / "demo-1" / "config.yaml").read_text()
    assert re.search(r"^  epochs: 2 ", settings, re.MULTILINE)
    assert re.search(r"^  seed: 7 ", settings, re.MULTILINE)


def test_the_files_it_names_are_there_and_can_be_read(demo: Shown) -> None:
    pictures = demo.ended.out.partition("[5/5]")[2]
    named = [Path(path) for path in re.findall(r" (runs/demo-1/\S+)$", pictures, re.MULTILINE)]
    assert [path.name for path in named] == [
        *("predictions.png", "losses.png", "results.png", "stripped.safetensors"),
    ]
    for path in named:
        if path.suffix == ".png":
            with Image.open(demo.folder / path) as image:
                assert image.format == "PNG"
                image.verify()
    detector = lora_detr.load(demo.folder / named[-1], device="cpu")
    assert detector.categories.names == sets.SHAPES_EASY.classes
    assert demo.made == ["runs", "runs/demo-1"]


def test_what_it_says_to_do_next_works(demo: Shown) -> None:
    lines = re.findall(r"^  loradetr (\w+) (.*)$", demo.ended.out, re.MULTILINE)
    assert [name for name, _ in lines] == ["predict", "train"]
    for name, rest in lines:
        parser = get_command(app).commands[name]  # type: ignore[attr-defined]
        assert parser.make_context(name, shlex.split(rest)).params
    (data,) = re.findall(r"^(/.*shapes-easy-6-v1)$", demo.ended.out, re.MULTILINE)
    predict, train = (shlex.split(rest) for _, rest in lines)
    images = ["predict", *(f"{data}/val" if word == "IMAGES" else word for word in predict)]
    assert demo.loradetr(*images).code == 0
    own = ["train", *(data if word == "DIR" else word for word in train), "--max-steps", "1"]
    assert demo.loradetr(*own).code == 0


def test_a_second_demo_leaves_the_first_alone(demo: Shown) -> None:
    before = {path: path.stat().st_mtime_ns for path in (demo.folder / "runs" / "demo-1").rglob("*")}
    ended = demo.loradetr("demo", "--output-dir", "runs/demo-1")
    assert ended.code == 2
    assert "error[C06]: runs/demo-1: the run directory is not empty; nothing was touched" in ended.err
    assert {path: path.stat().st_mtime_ns for path in (demo.folder / "runs" / "demo-1").rglob("*")} == before
