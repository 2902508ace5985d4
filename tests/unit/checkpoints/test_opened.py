"""What a path that a user names as a model is, and what every command answers to each kind of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from lora_detr.checkpoints.initial_weights import read_initial_weights
from lora_detr.checkpoints.opened import ModelKind, OpenedRun, kind_of, kind_of_name, open_model, open_run
from lora_detr.checkpoints.stripped_file import StrippedFile, write_stripped
from lora_detr.deploy.conversion import convert
from lora_detr.doctor.model_checks import model_checks
from lora_detr.errors import LoraDetrError
from lora_detr.evaluation.predictor import open_predictor
from lora_detr.runs.evaluate import evaluate_parts
from lora_detr.runs.request import Request, resolve
from tests import official_files

Command = Callable[[Path, Path], None]
Fault = tuple[str, str, str, str]
"""Class, code, a part of the message and a part of the remedy."""


@pytest.fixture(scope="module")
def places(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One path of every kind, by what it is. Shared."""
    folder = tmp_path_factory.mktemp("models")
    opened = open_run(small_run)
    write_stripped(folder / "stripped.safetensors", opened.detector.inference_state(), opened.deployment)
    (folder / "empty").mkdir()
    (folder / "empty.pth").mkdir()
    (folder / "notes.txt").write_text("some text\n")
    (folder / "damaged.safetensors").write_text("some text\n")
    return {
        "run": small_run,
        "checkpoints of a run": small_run / "checkpoints",
        "checkpoint of a run": opened.path,
        "checkpoint alone": Path(shutil.copytree(opened.path, folder / "copy")),
        "stripped": folder / "stripped.safetensors",
        "damaged": folder / "damaged.safetensors",
        "official": official_files.make("deformable-lora3", num_classes=40).save(folder / "official.pth"),
        "empty folder": folder / "empty",
        "folder.pth": folder / "empty.pth",
        "other file": folder / "notes.txt",
        "missing": folder / "absent",
        "missing.pth": folder / "absent.pth",
        "missing.safetensors": folder / "absent.safetensors",
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("run", "run"),
        ("checkpoints of a run", "run"),
        ("checkpoint of a run", "checkpoint"),
        ("checkpoint alone", "checkpoint"),
        ("stripped", "stripped"),
        ("damaged", "stripped"),
        ("official", "official"),
        ("empty folder", "folder"),
        ("folder.pth", "folder"),
        ("other file", "file"),
        ("missing", "missing"),
        ("missing.pth", "missing"),
        ("missing.safetensors", "missing"),
    ],
)
def test_every_path_has_one_kind(name: str, kind: ModelKind, places: Mapping[str, Path]) -> None:
    assert kind_of(places[name]) == kind


def test_a_file_is_known_by_its_name_and_a_name_alone_makes_no_file(tmp_path: Path) -> None:
    kinds = {"file.pth": "official", "file.pt": "official", "file.safetensors": "stripped", "file.bin": "file"}
    for name, kind in kinds.items():
        path = tmp_path / name
        assert (kind_of_name(path), kind_of(path)) == (kind, "missing")
        torch.save({"a.weight": torch.ones(2)}, path)
        assert kind_of(path) == kind


def test_the_settings_of_a_run_make_no_model(places: Mapping[str, Path], tmp_path: Path) -> None:
    shutil.copy(places["run"] / "config.yaml", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert kind_of(tmp_path) == "folder"
    # A checkpoint whose writing was cut short is one: what is missing in it must be reported.
    (tmp_path / "checkpoints" / "step-00000003").mkdir()
    assert kind_of(tmp_path) == "run"
    assert kind_of(tmp_path / "checkpoints" / "step-00000003") == "checkpoint"


@pytest.mark.parametrize("name", ["run", "checkpoints of a run", "checkpoint of a run", "checkpoint alone", "official"])
def test_what_has_branches_is_opened_with_them(name: str, places: Mapping[str, Path]) -> None:
    opened = open_model(places[name])
    assert isinstance(opened, OpenedRun)
    assert opened.detector is opened.model.detector
    assert len(opened.model.branches.members) == len(opened.config.branches) > 0


def test_a_stripped_file_is_opened_without_branches(places: Mapping[str, Path]) -> None:
    opened = open_model(places["stripped"])
    assert isinstance(opened, StrippedFile)
    expected = open_run(places["run"])
    assert opened.deployment == expected.deployment
    state = expected.detector.inference_state()
    assert all(torch.equal(tensor, state[key]) for key, tensor in opened.detector.state_dict().items())


def test_every_kind_predicts_and_is_checked(places: Mapping[str, Path]) -> None:
    for name in ("run", "checkpoint of a run", "checkpoint alone", "stripped", "official"):
        assert not open_predictor(places[name], "best", device="cpu").detector.training
        checks = {check.name: check.state for check in model_checks(places[name], torch.device("cpu"))}
        assert set(checks.values()) == {"ok"}, name
        assert ("file" in checks) == (name == "stripped")
        # Only a run is judged by all of its checkpoints.
        assert ("best" in checks) == (name == "run")


def evaluate(path: Path, data: Path) -> None:
    evaluate_parts(path, say=str, data=data, device="cpu")


def predict(path: Path, data: Path) -> None:
    open_predictor(path, "best", device="cpu")


def strip(path: Path, data: Path) -> None:
    open_run(path)


def to_official(path: Path, data: Path) -> None:
    convert(path, data / "new.pth")


def to_run(path: Path, data: Path) -> None:
    convert(path, data / "new")


def start_from(path: Path, data: Path) -> None:
    read_initial_weights(path)


def settings_of(path: Path, data: Path) -> None:
    resolve(Request(weights=path, data=data))


def check(path: Path, data: Path) -> None:
    failed = [check for check in model_checks(path, torch.device("cpu")) if check.state != "ok"]
    raise LoraDetrError(failed[0].found, failed[0].remedy)


WHERE = "give a run directory or a checkpoint directory"
ABSENT: Fault = ("CheckpointError", "", "does not exist", WHERE)
UNREADABLE: Fault = ("CheckpointError", "", "cannot be read: No such file", "check the path")
NO_DIRECTION: Fault = ("ConfigError", "", "one of the two must be an official .pth", "give a .pth and a new run")
NO_SETTINGS: Fault = ("ConfigError", "", "brings no settings", "add --preset NAME")
NOTHING: Fault = ("ConfigError", "", "does not exist", "check the path")

REFUSALS: dict[str, Fault] = {
    "missing": ABSENT,
    "missing.pth": ABSENT,
    "missing.safetensors": ABSENT,
    "empty folder": ("CheckpointError", "C10", "holds no checkpoint", "it has a `checkpoints` folder"),
    "other file": ("CheckpointError", "", "is a file", WHERE),
    "damaged": ("CheckpointError", "K07", "not a safetensors file", "use another copy"),
}
MISSING = ("missing", "missing.pth", "missing.safetensors")
OWN_REFUSALS: dict[Command, dict[str, Fault]] = {
    check: {"damaged": ("LoraDetrError", "", "not a safetensors file", "use another copy")},
    to_official: {"missing.pth": NO_DIRECTION},
    to_run: {**dict.fromkeys(REFUSALS, NO_DIRECTION), "missing.pth": UNREADABLE},
    start_from: {
        **dict.fromkeys(MISSING, UNREADABLE),
        "other file": ("CheckpointError", "", "expected a run, a checkpoint folder", "give one of these"),
    },
    settings_of: {**dict.fromkeys(REFUSALS, NO_SETTINGS), **dict.fromkeys(MISSING, NOTHING)},
}
"""Where a command does not refuse a path as ``REFUSALS`` says."""


@pytest.mark.parametrize("command", [evaluate, predict, strip, check, to_official, to_run, start_from, settings_of])
@pytest.mark.parametrize("name", REFUSALS)
def test_every_command_refuses_what_is_no_model(
    command: Command, name: str, places: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(LoraDetrError) as caught:
        command(places[name], tmp_path)
    error = caught.value
    kind, code, message, remedy = OWN_REFUSALS.get(command, {}).get(name, REFUSALS[name])
    assert (type(error).__name__, error.code) == (kind, code)
    assert message in error.message
    assert remedy in error.remedy


def test_a_stripped_file_gives_a_detector_and_nothing_else(places: Mapping[str, Path], tmp_path: Path) -> None:
    path = places["stripped"]
    weights = read_initial_weights(path)
    assert all(name.startswith("detector.") for name in weights.tensors)
    with pytest.raises(LoraDetrError, match="is a stripped file already") as caught:
        open_run(path)
    assert (caught.value.code, caught.value.remedy) == ("K12", "give the run directory or checkpoint")
    with pytest.raises(LoraDetrError, match="has no branches") as caught:
        evaluate_parts(path, say=str, data=tmp_path, part=0, device="cpu")
    assert caught.value.remedy == "give the run directory it comes from"
    with pytest.raises(LoraDetrError, match="brings no settings"):
        settings_of(path, tmp_path)
