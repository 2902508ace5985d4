"""X04: where a command writes, somebody has put links to files of others; those stay as they were."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_detr.records.run_directory import LOCK
from tests.cli.conftest import Command, assert_told

PRECIOUS = b"precious"


def make_links(folder: Path, names: Sequence[str]) -> dict[Path, bytes]:
    """Put links under names and return what the files have that they lead to, which had been there or are new."""
    victims = folder.parent / "victims"
    victims.mkdir(exist_ok=True)
    content = {}
    for number, name in enumerate(names):
        victim = victims / f"{number}-{Path(name).name}"
        place = folder / name
        if place.exists():
            shutil.move(place, victim)
        else:
            victim.write_bytes(PRECIOUS)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(victim)
        content[victim] = victim.read_bytes()
    return content


def changed(victims: dict[Path, bytes]) -> list[str]:
    """Return the names of files that are not as they were."""
    assert victims
    return [path.name for path, content in victims.items() if path.read_bytes() != content]


def files_of(run: Path, *without: str) -> list[str]:
    paths = [path for path in run.rglob("*") if path.is_file() and not path.parent.name.startswith("step-")]
    return sorted(str(path.relative_to(run)) for path in paths if path.name not in without)


def test_training_goes_on_in_a_run_full_of_links_x04(loradetr: Command, own_run: Path) -> None:
    names = files_of(own_run, LOCK)
    assert {"metrics.jsonl", "log.txt", "results.csv", "results.png", "config.yaml", "checkpoints/best"} <= set(names)
    victims = make_links(own_run, [*names, "nan_report.json", "nan_report.safetensors"])
    ended = loradetr("train", "--resume", own_run, "--epochs", 3)
    assert ended.code == 0, ended.err
    assert changed(victims) == []


def test_a_run_whose_loss_is_not_finite_x04(loradetr: Command, own_run: Path) -> None:
    victims = make_links(own_run, [*files_of(own_run, LOCK), "nan_report.json", "nan_report.safetensors"])
    options = ("--epochs", 3, "--set", "train.optimizer.lr=1e30", "--override", "train.optimizer.lr")
    assert loradetr("train", "--resume", own_run, *options).code == 6
    assert changed(victims) == []


def test_eval_x04(loradetr: Command, own_run: Path) -> None:
    victims = make_links(own_run, [name for name in files_of(own_run) if name.startswith("eval/")])
    assert len(victims) >= 2
    victims |= make_links(Path().resolve(), ["found.json"])
    assert loradetr("eval", own_run, "--workers", 0, "--predictions", "found.json").code == 0
    assert changed(victims) == []
    assert not Path("found.json").is_symlink()


@pytest.mark.parametrize("suffix", ["pth", "pt"])
def test_convert_x04(suffix: str, loradetr: Command, small_run: Path) -> None:
    victims = make_links(Path().resolve(), [f"out.{suffix}"])
    # A name that is taken is refused, or the link is replaced; either way the victim stays.
    loradetr("convert", small_run, f"out.{suffix}")
    assert changed(victims) == []


def test_strip_x04(loradetr: Command, own_run: Path) -> None:
    victims = make_links(own_run, ["stripped.safetensors", "strip_report.json"])
    assert loradetr("strip", own_run, "--inputs", 1).code == 0
    assert changed(victims) == []
    assert not (own_run / "stripped.safetensors").is_symlink()


def test_predict_x04(loradetr: Command, small_run: Path, shapes_tiny: Path) -> None:
    command = ("predict", small_run, shapes_tiny / "val", "--output", "out")
    assert loradetr(*command).code == 0
    names = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file())
    assert len(names) > 6
    shutil.rmtree("out")
    victims = make_links(Path("out").resolve(), names)
    loradetr(*command)
    assert changed(victims) == []


def test_output_that_is_the_input_is_refused_k12(loradetr: Command, own_run: Path) -> None:
    checkpoint = own_run / "checkpoints" / "step-00000012"
    before = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
    Path("link.safetensors").symlink_to(checkpoint / "model.safetensors")
    for output in (checkpoint / "model.safetensors", checkpoint / "other.safetensors"):
        ended = loradetr("strip", own_run, "--checkpoint", "last", "--inputs", 1, "--output", output)
        assert ended.code == 2, ended.err
    loradetr("strip", own_run, "--inputs", 1, "--output", "link.safetensors")
    assert {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()} == before


def test_a_lock_that_is_a_link_is_refused_x04(loradetr: Command, own_run: Path) -> None:
    victims = make_links(own_run, [LOCK])
    ended = loradetr("train", "--resume", own_run, "--epochs", 3)
    assert changed(victims) == []
    assert_told(ended, 5, (".lock",), remedy=True)
