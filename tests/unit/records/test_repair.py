"""Every log of a run, damaged in every way: what makes sense stays, and the rest is reported and kept aside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_detr.records.log_reading import json_lines, read_evaluations, read_object
from lora_detr.records.repair import repair
from lora_detr.records.run_directory import RunDirectory

LOGS = ("metrics.jsonl", "log.txt", "diagnostics.jsonl", "results.csv", "changes.jsonl", "command.txt")

Damage = Callable[[Path], None]


def append(data: bytes) -> Damage:
    def damage(path: Path) -> None:
        path.write_bytes(path.read_bytes() + data)

    return damage


def insert_line(data: bytes) -> Damage:
    """Damage the line before the last."""

    def damage(path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:-1], data, lines[-1]]))

    return damage


def halve_the_end(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data + data.splitlines()[-1][:7])


def make_folder(path: Path) -> None:
    path.unlink()
    (path / "within").mkdir(parents=True)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def lead_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


TAILS: dict[str, Damage] = {
    "zeros at the end": append(bytes(4096)),
    "half a row": halve_the_end,
    "half a row and zeros": lambda path: (halve_the_end(path), append(bytes(100))(path))[0],
    "zeros and a line end": append(bytes(50) + b"\n"),
    "a line that is not UTF-8": insert_line(b'{"step": 1, "\xff\xfe": 2}\r\n'),
}
IN_THE_WAY: dict[str, Damage] = {"a folder": make_folder, "a pipe": make_pipe, "a link to nothing": lead_nowhere}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run with three lines in every log, one of them after step 2."""
    found = RunDirectory(tmp_path / "run")
    found.create(resume=False)
    lines = [json.dumps({"step": step, "epoch": step, "changes": []}) + "\n" for step in (1, 2, 3)]
    for name in LOGS:
        found.write_text(name, "".join(lines))
    found.write_text("command.txt", "loradetr train\nloradetr train --resume 1\nloradetr train --resume 2\n")
    found.write_text("results.csv", "epoch,step,AP\r\n1,1,0.25\r\n2,2,0.5\r\n3,3,0.75\r\n")
    return found


def repaired(directory: RunDirectory) -> list[str]:
    said: list[str] = []
    repair(directory, step=2, report=said.append)
    return said


def content(directory: RunDirectory) -> dict[str, bytes]:
    return {name: (directory.path / name).read_bytes() for name in LOGS if (directory.path / name).exists()}


def test_a_whole_run_is_cut_back_without_a_word(directory: RunDirectory) -> None:
    before = content(directory)
    assert repaired(directory) == []
    for name in LOGS[:4]:
        assert content(directory)[name] == b"".join(before[name].splitlines(keepends=True)[:-1])
    for name in LOGS[4:]:
        assert content(directory)[name] == before[name]


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("damage", TAILS)
def test_damaged_lines_are_left_out_and_the_others_stay(damage: str, name: str, directory: RunDirectory) -> None:
    before = content(directory)
    if name == "command.txt" and damage == "a line that is not UTF-8":
        insert_line(b"\xff\n")(directory.path / name)
    else:
        TAILS[damage](directory.path / name)
    damaged = (directory.path / name).read_bytes()
    said = repaired(directory)
    if damage in ("zeros and a line end", "a line that is not UTF-8"):
        assert (directory.path / f"{name}.damaged").read_bytes() == damaged
        assert said[0].endswith(f"what it was is kept as {name}.damaged")
    (line,) = said
    assert f"{name}: line " in line
    assert " left out (" in line
    after = content(directory)
    for each in LOGS:
        kept = -1 if each in LOGS[:4] else None
        assert after[each] == b"".join(before[each].splitlines(keepends=True)[:kept]), each
    assert repaired(directory) == []


@pytest.mark.parametrize("name", [*LOGS, "exit.json", "config.yaml", "data_report.json", "eval/metrics.json"])
@pytest.mark.parametrize("damage", IN_THE_WAY)
def test_what_is_in_the_way_of_a_file_is_moved_aside(damage: str, name: str, directory: RunDirectory) -> None:
    path = directory.path / name
    path.touch()
    IN_THE_WAY[damage](path)
    (line,) = repaired(directory)
    assert line == f"note: {path}: not a file; what it was is kept as {path.name}.damaged"
    assert not os.path.lexists(path)
    assert os.path.lexists(f"{path}.damaged")
    IN_THE_WAY["a folder"]((path.touch(), path)[1])
    assert repaired(directory)[0].endswith(f"{path.name}.damaged-2")


@pytest.mark.parametrize("text", [b"train:\n  epochs: 2\n\xff", b"train: [\n", b"a: 1\n" + bytes(9)])
def test_a_damaged_copy_of_the_settings_is_moved_aside(text: bytes, directory: RunDirectory) -> None:
    path = directory.path / "config.yaml"
    path.write_bytes(text)
    (line,) = repaired(directory)
    assert "config.yaml: damaged: " in line
    assert path.with_name("config.yaml.damaged").read_bytes() == text


def test_a_table_without_its_header_is_kept_aside(directory: RunDirectory) -> None:
    directory.results.write_bytes(b"epo\0\r\n1,1,0.25\r\n")
    (line,) = repaired(directory)
    assert "2 lines from line 1 left out (16 bytes)" in line
    assert not directory.results.exists()  # the next row begins a new one


@pytest.mark.parametrize("folder", ["eval", "tensorboard"])
def test_a_file_in_place_of_a_folder_is_moved_aside(folder: str, directory: RunDirectory) -> None:
    path = directory.path / folder
    if path.exists():
        path.rmdir()
    path.write_text("in the way")
    directory.create(resume=True)
    assert path.with_name(f"{folder}.damaged").read_text() == "in the way"
    assert not path.is_file()


@pytest.mark.parametrize("damage", TAILS)
def test_readers_of_a_damaged_log_give_the_rest_and_warn(
    damage: str, directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (directory.results, directory.metrics):
        TAILS[damage](path)
    assert [row["AP"] for row in read_evaluations(directory.results)] == [0.25, 0.5, 0.75]
    assert [row["step"] for row in json_lines(directory.metrics)] == [1, 2, 3]
    assert [*read_evaluations(directory.results)]  # a second time without a second warning
    assert [
        f"{path.name}: line" in text
        for path, text in zip((directory.results, directory.metrics), caplog.messages, strict=True)
    ] == [True, True]


@pytest.mark.parametrize(
    ("data", "found", "fault"),
    [
        (b'{"a": 1}\n', {"a": 1}, False),
        (b'{"a": 1}\n' + bytes(20), {"a": 1}, True),
        (b'{"a": 1}\n\xff\xfe', {"a": 1}, True),
        (b'{"a": ', {}, True),
        (b'{"\xff": 1}\n{"a": 1}\n', {}, True),
        (b"[1]", {}, True),
        (bytes(9), {}, True),
        (b"", {}, False),
    ],
)
def test_an_object_is_read_as_far_as_it_is_whole(
    data: bytes, found: dict[str, int], fault: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "exit.json"
    path.write_bytes(data)
    assert read_object(path) == found
    assert len(caplog.messages) == fault
