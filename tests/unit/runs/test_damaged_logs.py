"""A run whose checkpoint is whole resumes to the same end, whatever happened to its logs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from lora_detr.records.plots import write_results_picture
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs import run
from tests import small_runs
from tests.small_runs import Lines, read_lines
from tests.unit.records.test_repair import IN_THE_WAY, TAILS, Damage

FILES = ("metrics.jsonl", "log.txt", "results.csv", "command.txt", "changes.jsonl", "exit.json", "config.yaml")
EVALUATION = ("eval/metrics.json", "eval/per_class.csv", "eval/predictions.json")


@pytest.fixture
def interrupted(own_run: Path) -> Path:
    """A run of twelve steps that was killed behind the sixth, with the lines of later ones in its logs."""
    shutil.rmtree(own_run / "checkpoints" / "step-00000012")
    (own_run / "checkpoints" / "best").unlink()
    (own_run / "changes.jsonl").write_text('{"step": 3, "changes": []}\n')
    return own_run


def outcome(directory: Path) -> dict[str, object]:
    """Return what two runs must have in common; no clock and no path."""
    last = directory / "checkpoints" / "step-00000012"
    with (directory / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = [{name: value for name, value in row.items() if name != "time"} for row in csv.DictReader(file)]
    return {
        "model": (last / "model.safetensors").read_bytes(),
        "optimiser": (last / "optim.safetensors").read_bytes(),
        "steps": [(line["step"], line["loss_hex"]) for line in read_lines(directory / "metrics.jsonl")],
        "epochs": read_lines(directory / "log.txt"),
        "results": rows,
        "evaluation": [(directory / name).read_bytes() for name in EVALUATION],
        "settings": [line.partition("  # ")[0] for line in (directory / "config.yaml").read_text().splitlines()],
        "exit": json.loads((directory / "exit.json").read_text()),
    }


def resumed(directory: Path, data: Path) -> list[str]:
    lines = Lines()
    run.start(small_runs.request(data), directory, None, False, lines, auto_resume=True)
    assert any("at step 6 of 12" in line for line in lines.lines)
    return lines.lines


@pytest.mark.parametrize("damage", TAILS)
def test_damaged_logs_end_as_those_of_an_undisturbed_run(
    damage: str, interrupted: Path, small_run: Path, shapes_tiny: Path
) -> None:
    for name in (*FILES, *EVALUATION):
        TAILS[damage](interrupted / name)
    lines = resumed(interrupted, shapes_tiny)
    assert outcome(interrupted) == outcome(small_run)
    for name in (*FILES[:5], "config.yaml"):
        assert len([line for line in lines if line.startswith(f"note: {interrupted / name}: ")]) == 1, (name, lines)
    assert len((interrupted / "command.txt").read_bytes().splitlines()) == 2
    assert read_lines(interrupted / "changes.jsonl") == [{"step": 3, "changes": []}]


@pytest.mark.parametrize("damage", ["a folder", "a link to nothing"])
def test_what_is_in_the_way_of_logs_blocks_no_resume(
    damage: str, interrupted: Path, small_run: Path, shapes_tiny: Path
) -> None:
    obstruct: Damage = IN_THE_WAY[damage]
    for name in (*FILES, *EVALUATION):
        obstruct(interrupted / name)
    lines = resumed(interrupted, shapes_tiny)
    found, expected = outcome(interrupted), outcome(small_run)
    # What was in the logs is beside them; the rest is written again.
    assert {name for name in expected if found[name] != expected[name]} == {"steps", "epochs", "results"}
    for name in ("steps", "epochs", "results"):
        assert found[name] == expected[name][len(expected[name]) // 2 :], name  # type: ignore[index, arg-type]
    assert len([line for line in lines if "not a file; what it was is kept as" in line]) == len(FILES + EVALUATION)


def test_settings_that_were_edited_in_the_run_directory_do_not_count_and_are_named(
    interrupted: Path, small_run: Path, shapes_tiny: Path
) -> None:
    path = interrupted / "config.yaml"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2].rpartition("\n")[0] + "\n")  # half of it is still YAML
    lines = resumed(interrupted, shapes_tiny)
    (note,) = [line for line in lines if line.startswith(f"note: {path}: ends before line ")]
    assert "the settings in the checkpoint count" in note
    assert outcome(interrupted)["settings"] == outcome(small_run)["settings"]


@pytest.mark.parametrize("damage", TAILS)
def test_a_picture_is_drawn_of_damaged_logs(damage: str, own_run: Path) -> None:
    for name in ("metrics.jsonl", "log.txt", "results.csv", "data_report.json"):
        TAILS[damage](own_run / name)
    assert write_results_picture(RunDirectory(own_run))


def test_killed_before_its_first_checkpoint_a_run_starts_beside_damaged_logs(shapes_tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    (output / "checkpoints").mkdir(parents=True)
    for name in FILES:
        (output / name).write_bytes(b"\xff\0" * 9 + b"\n")
    (output / "eval").write_text("in the way")
    small = small_runs.request(shapes_tiny, "train.max_steps=1")
    run.start(small, output, None, False, Lines(), auto_resume=True)
    assert [line["step"] for line in read_lines(output / "metrics.jsonl")] == [1]
    assert json.loads((output / "exit.json").read_text())["code"] == 0
