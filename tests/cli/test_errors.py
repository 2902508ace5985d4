"""Tables of mistakes. Each ends with the exit code of its class, one fault and a remedy, and leaves all as it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_detr.atomic_files import remove
from lora_detr.checkpoints.opened import open_run
from lora_detr.checkpoints.stripped_file import write_stripped
from lora_detr.config.load import load_config
from lora_detr.config.presets import list_presets
from lora_detr.recipe.run_config import RunConfig
from tests.cli.conftest import Command, Ended, assert_told, files_in
from tests.limits import file_size_limit
from tests.small_runs import SMALL

USAGE, DATA, CHECKPOINT, OUTPUT = 2, 3, 4, 5
"""Exit codes of the contract."""

SHORT = {
    "TRAIN": "train --preset {small} --max-steps 1 --output-dir out --data {data}",
    "TRAIN_ON": "train --preset {small} --max-steps 1 --output-dir out --data",
    "TRAIN_INTO": "train --preset {small} --max-steps 1 --data {data} --output-dir",
}
"""Beginnings of many commands."""


@dataclass(frozen=True)
class Places:
    """What commands are given, shared by all tests: a data set, a run on it, the run's detector without branches."""

    data: Path
    run: Path
    stripped: Path
    small: Path = SMALL


Prepare = Callable[[Places], object]


@dataclass(frozen=True)
class Mistake:
    """A command that must fail.

    Attributes:
        line: the command, with names of ``Places`` in braces.
        parts: what its message says, at least.
        given: writes into the current folder what the command is about.
        faults: how many are told.
        remedy: whether a line says what to do.
    """

    line: str
    parts: tuple[str, ...]
    given: Prepare | None
    faults: int
    remedy: bool

    def __str__(self) -> str:
        """Return the line and what was given, as the name of a test."""
        return self.line if self.given is None else f"{self.line} ({self.given.__name__})"


def mistake(line: str, *parts: str, given: Prepare | None = None, faults: int = 1, remedy: bool = True) -> Mistake:
    return Mistake(line, parts, given, faults, remedy)


def named(name: str, prepare: Prepare) -> Prepare:
    prepare.__name__ = name
    return prepare


def a_file(name: str, text: str = "some text\n") -> Prepare:
    return named(f"{name} is text", lambda places: Path(name).write_text(text))


def empty_folder(places: Places) -> None:
    Path("empty").mkdir()


def a_copy(place: str, without: str = "") -> Prepare:
    """Return what copies the data or the run into the current folder, but for the files that fit a pattern."""

    def prepare(places: Places) -> None:
        shutil.copytree(vars(places)[place], place)
        for path in Path(place).glob(without) if without else ():
            remove(path)

    return named(f"no {without}" if without else f"a copy of the {place}", prepare)


def changed_data(split: str, name: str, change: Callable[[str], str]) -> Prepare:
    """Return what copies the data into the current folder and changes the text of an annotation file."""

    def prepare(places: Places) -> None:
        a_copy("data")(places)
        path = Path(f"data/annotations/instances_{split}.json")
        path.write_text(change(path.read_text()))

    return named(name, prepare)


def with_a_word_on_line_5(text: str) -> str:
    lines = json.dumps(json.loads(text), indent=1).splitlines()
    return "\n".join([*lines[:4], "oops", *lines[4:]])


def with_two_wrong_annotations(text: str) -> str:
    content = json.loads(text)
    content["annotations"][3]["bbox"][2] = -3
    content["annotations"][5]["category_id"] = 99
    return json.dumps(content)


def with_other_ids(text: str) -> str:
    content = json.loads(text)
    for key, rows in (("id", content["categories"]), ("category_id", content["annotations"])):
        for row in rows:
            row[key] += 1000
    return json.dumps(content)


def weights(content: object) -> Prepare:
    return named(f"weights {content}", lambda places: torch.save(content, "model.pth"))


def cut_checkpoints(places: Places) -> None:
    a_copy("run")(places)
    for path in Path("run/checkpoints").glob("step-*/model.safetensors"):
        os.truncate(path, 1000)


def cut_file(places: Places) -> None:
    Path("cut.safetensors").write_bytes(places.stripped.read_bytes()[:-10])


def flipped_file(places: Places) -> None:
    content = bytearray(places.stripped.read_bytes())
    content[-1000] ^= 1
    Path("flipped.safetensors").write_bytes(content)


def tensors_of_others(places: Places) -> None:
    save_file({"x": torch.ones(3)}, "other.safetensors")


A_FILE, TEXT = a_file("file"), a_file("text.safetensors")
NO_MANIFEST, NO_CHECKPOINT = a_copy("run", "checkpoints/step-*/MANIFEST.json"), a_copy("run", "checkpoints")
NO_VALIDATION = a_copy("data", "annotations/instances_val.json")
BAD_YAML = a_file("bad.yaml", "train: [1\n")
TWICE = a_file("twice.yaml", "train:\n  epochs: 3\n  epochs: 4\n")
ODD_KEY = a_file("cells.yaml", "train_labels: a.json\ntrain_images: photos\n")
TWO_IMAGES = a_file("cells.yaml", "train_images: a\ntrain_images: b\n")
HALF = a_file("cells.yaml", "train_annotations: a.json\n")
BAD_JSON = changed_data("train", "a word on line 5", with_a_word_on_line_5)
TWO_FAULTS = changed_data("train", "two wrong annotations", with_two_wrong_annotations)
OTHER_NAMES = changed_data("val", "other names", lambda text: text.replace('"name": "', '"name": "a '))
OTHER_IDS = changed_data("val", "other ids", with_other_ids)

TABLE = {
    USAGE: [
        mistake("TRAIN --lr -1", "`train.optimizer.lr` is -1.0", "greater than 0"),
        mistake("TRAIN --seed -1", "`train.seed` is -1", "at least 0"),
        mistake("TRAIN --keep-every 0", "`train.keep_every` is 0", "at least 1"),
        mistake("TRAIN --ema 1", "`train.ema_decay` is 1.0", "less than 1"),
        mistake("TRAIN --on-bad-data ignore", "'ignore'", "'error' or 'skip'"),
        mistake("TRAIN --num-classes 80", "`data.num_classes` is '80'", "'auto' or 'coco91'"),
        mistake("TRAIN --device gpu", "--device gpu: unknown", "auto, cpu, cuda"),
        mistake("TRAIN --freeze detector.bakbone", "did you mean 'detector.backbone'?"),
        mistake("TRAIN --set =3", "'=3'", "expected key.path=value"),
        mistake("TRAIN --set train=3", "`train` is 3", "must be a mapping"),
        mistake("TRAIN --set branches.7.rank=3", "`branches.7.rank`", "a list of 3"),
        mistake("TRAIN --set train.seed=010", "error[C04]", "'010' begins with 0"),
        mistake("TRAIN --aux -1", "--aux -1: expected 0 or more branches"),
        mistake("TRAIN --branch lorra/topk:k=3", "unknown kind 'lorra'; did you mean 'lora'?"),
        mistake("TRAIN --branch topkk:k=3", "`branches.0.matcher.kind` is 'topkk'", "'topk'"),
        mistake("TRAIN --branch topk:k", "expected key=value, found 'k'", "topk:k=6,tau=0.4"),
        mistake("TRAIN --branch topk:k=3,tau=2", "`branches.0.matcher.threshold` is 2", "at most 1"),
        mistake("TRAIN --branch topk:k=300", "is 300 but `model.num_queries` is 20"),
        mistake("train --data {data} --rank 4 --output-dir out", "there are no branches", "--aux N"),
        mistake("TRAIN --config .", ".: cannot be read: Is a directory"),
        mistake("TRAIN --config bad.yaml", "bad.yaml:2:1: not valid YAML", given=BAD_YAML),
        mistake("TRAIN --config twice.yaml", "error[C03]: twice.yaml:3:3: ", "on lines 2 and 3", given=TWICE),
        mistake("TRAIN_ON cells.yaml", "unknown key 'train_labels'; did you mean", given=ODD_KEY),
        mistake("TRAIN_ON cells.yaml", "cells.yaml: missing key 'train_images'", given=HALF),
        mistake("TRAIN_ON file", "file: expected a mapping of keys", "known keys: train_annotations", given=A_FILE),
        mistake("TRAIN_ON cells.yaml", "error[C03]: ", "cells.yaml:2:1: key 'train_images'", given=TWO_IMAGES),
        mistake("eval {run} --branch first", "--branch first: expected primary, all or the number of a branch"),
        mistake("eval {run} --on-bad-data ignore", "--on-bad-data ignore: expected error or skip"),
        mistake("eval {run} --device gpu", "--device gpu: unknown", "auto, cpu, cuda"),
        mistake("eval {run} --data absent", "--data absent: expected a COCO folder or a YAML file"),
        mistake("eval {run} --predictions file/below.json", "no such folder file", given=A_FILE),
        mistake("eval {run} --predictions empty", "--predictions empty: is a folder", given=empty_folder),
        mistake("eval {stripped} --data {data} --branch 0", "has no branches", "give the run"),
        mistake("strip {run} --output out.pth", "ends in .safetensors"),
        mistake("strip run --output run/checkpoints/step-00000012/x.safetensors", "lies in", given=a_copy("run")),
        mistake("train --resume run", "has done all of its 12 steps", "raise --epochs", given=a_copy("run")),
        mistake("train --resume run --batch-size 7", "error[C07]", "train.batch_size: ", given=a_copy("run")),
        mistake("train --resume {run} --config more.yaml", "error[C07]", "--config cannot be given"),
        mistake("train --resume empty", "error[C10]: --resume empty: not a run directory", given=empty_folder),
        mistake("train --resume run", "error[C10]", "no checkpoints folder", given=NO_CHECKPOINT),
        mistake("train --data {data} --weights absent", "does not exist", "check the path"),
        mistake("train --data {data} --weights {stripped}", "brings no settings", "add --preset NAME"),
    ],
    DATA: [
        mistake("TRAIN_ON empty", "expected annotations/instances_train", "found nothing", given=empty_folder),
        mistake("TRAIN_ON data", "expected images in train2017/ or train/", given=a_copy("data", "train")),
        mistake("TRAIN_ON data", "12 of 12 image files are missing", given=a_copy("data", "train/*")),
        mistake("TRAIN_ON data", "(id=2): no image", "1 of 12", given=a_copy("data", "train/0000002.png")),
        mistake("TRAIN_ON data", "error[D01]: instances_train.json:5:1: not valid JSON", given=BAD_JSON),
        mistake("TRAIN_ON data", "annotations[3] (id=4", "error[D10]", "id 99", given=TWO_FAULTS, faults=2),
        mistake("eval {run} --data empty", "expected annotations/instances_train", given=empty_folder),
        mistake("eval {run} --data data", "no validation split", given=NO_VALIDATION),
        mistake("eval {run} --data data", "are not among the model's: 1003 'circle'", given=OTHER_IDS),
        mistake("eval {stripped} --data data", "3 'a circle', not 'circle'", given=OTHER_NAMES),
        mistake("predict {run} empty", "empty: expected images (.jpg", "among 0 entries", given=empty_folder),
    ],
    CHECKPOINT: [
        mistake("eval run", "model.safetensors: truncated", "1000 bytes", given=cut_checkpoints),
        mistake("strip run", "model.safetensors: truncated", given=cut_checkpoints),
        mistake("predict run {data}/val", "model.safetensors: truncated", given=cut_checkpoints),
        mistake("TRAIN --weights run", "model.safetensors: truncated", given=cut_checkpoints),
        mistake("train --resume run --epochs 3", "none of 2 checkpoints", "truncated", given=cut_checkpoints),
        mistake("train --resume run --epochs 3", "none of 2 checkpoints", "MANIFEST.json", given=NO_MANIFEST),
        mistake("eval run", "incomplete: MANIFEST.json is missing", given=NO_MANIFEST),
        mistake("eval run", "run: holds no checkpoint", given=NO_CHECKPOINT),
        mistake(
            "eval flipped.safetensors --data {data}", "error[K02]: flipped.safetensors: damaged", given=flipped_file
        ),
        mistake("strip flipped.safetensors", "flipped.safetensors: damaged", given=flipped_file),
        mistake("eval cut.safetensors --data {data}", "cut.safetensors: truncated", given=cut_file),
        mistake("predict cut.safetensors {data}/val", "cut.safetensors: truncated", given=cut_file),
        mistake("TRAIN --weights cut.safetensors", "cut.safetensors: truncated", given=cut_file),
        mistake("eval text.safetensors --data {data}", "text.safetensors: not a safetensors file", given=TEXT),
        mistake("strip text.safetensors", "text.safetensors: not a safetensors file", given=TEXT),
        mistake("TRAIN --weights text.safetensors", "text.safetensors: not a safetensors file", given=TEXT),
        mistake("predict other.safetensors {data}/val", "not a stripped detector", given=tensors_of_others),
        mistake("eval file", "file: is a file", "run directory", given=A_FILE),
        mistake("TRAIN --weights file", "expected a run, a checkpoint folder", given=A_FILE),
        mistake("TRAIN --weights absent", "absent: cannot be read", "check the path"),
        mistake("TRAIN --weights model.pth", "model.pth: not a PyTorch file of tensors", given=a_file("model.pth")),
        mistake("TRAIN --weights model.pth", "model.pth: holds no weights", given=weights({"model": {}})),
        mistake("TRAIN --weights model.pth", "none of its 1 tensors", given=weights({"conv1.bias": torch.ones(2)})),
    ],
    OUTPUT: [
        mistake("TRAIN_INTO file/below", "file/below: cannot be written", given=A_FILE),
        mistake("TRAIN_INTO /proc/run", "/proc/run: cannot be written"),  # read-only for everybody
        mistake("strip {run} --output file/below.safetensors", "file: cannot be written", given=A_FILE),
    ],
}

REFUSAL = (Path("out"), Path("out/data_report.json"))

# What the parser of the command line refuses by itself.
WORDS = {
    "trains": "No such command 'trains'. Did you mean 'train'",
    "train extra": "unexpected extra argument",
    "train --bach-size 2": "--batch-size",
    "train --epochs": "'--epochs' requires an argument",
    "train --epochs x": "'--epochs'",
    "train --overfit 0": "'--overfit'",
    "eval": "Missing argument 'MODEL'",
    "eval {run} --nms 2": "'--nms'",
    "strip": "Missing argument 'MODEL'",
    "strip {run} --inputs 0": "'--inputs'",
    "predict": "Missing argument 'MODEL'",
    "demo --epochs 0": "'--epochs'",
    "config shows": "No such command 'shows'. Did you mean 'show'?",
    "config show": "Missing argument",
    "config diff deformable": "Missing argument",
}


@pytest.fixture(scope="module")
def places(shapes_tiny: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Data, a run and a stripped file that no command may change."""
    stripped = tmp_path_factory.mktemp("stripped") / "stripped.safetensors"
    opened = open_run(small_run)
    write_stripped(stripped, opened.model.detector.state_dict(), opened.deployment)
    return Places(shapes_tiny, small_run, stripped)


def words_of(line: str, places: Places) -> list[str]:
    first, _, rest = line.partition(" ")
    return [word.format(**vars(places)) for word in f"{SHORT.get(first, first)} {rest}".split()]


@pytest.mark.parametrize(
    ("code", "wrong"),
    [pytest.param(code, wrong, id=f"{code}: {wrong}") for code, rows in TABLE.items() for wrong in rows],
)
def test_a_mistake_is_told_and_changes_nothing(code: int, wrong: Mistake, loradetr: Command, places: Places) -> None:
    if wrong.given is not None:
        wrong.given(places)
    before = files_in(Path(), places.data, places.run, places.stripped.parent)
    ended = loradetr(*words_of(wrong.line, places))
    assert_told(ended, code, wrong.parts, wrong.faults, wrong.remedy)
    after = files_in(Path(), places.data, places.run, places.stripped.parent)
    if code == DATA:  # refused data leaves the list of its problems, and a later run may start there
        after = {path: state for path, state in after.items() if path not in REFUSAL}
    assert after == before


@pytest.mark.parametrize(("line", "part"), WORDS.items(), ids=WORDS)
def test_a_wrong_word_is_named(line: str, part: str, loradetr: Command, places: Places) -> None:
    ended = loradetr(*words_of(line, places))
    assert (ended.code, ended.out) == (USAGE, "")
    message = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.err).split())
    assert part in message
    assert message.count("Error") == 1
    assert "Traceback" not in ended.err
    assert list(Path().iterdir()) == []


def test_nothing_in_a_file_of_weights_is_executed(loradetr: Command, places: Places) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, ("executed",)

    torch.save(Payload(), "model.pth")
    for model in ("model.pth", "model.pt"):
        shutil.copy("model.pth", "model.pt")
        ended = loradetr(*words_of("TRAIN", places), "--weights", model)
        assert_told(ended, CHECKPOINT, ("error[K05]", f"{model}: not a PyTorch file of tensors"))
    assert sorted(os.listdir()) == ["model.pt", "model.pth"]


def test_tensorboard_that_is_not_installed(loradetr: Command, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    ended = loradetr(*words_of("TRAIN", places), "--tensorboard")
    assert_told(ended, USAGE, ("--tensorboard: the package tensorboard is not installed", "pip install"))
    assert not Path("out").exists()


def presets_with_labels_of_coco() -> list[str]:
    names = [preset.name for preset in list_presets()]
    return [name for name in names if load_config(RunConfig, preset=name).config.data.num_classes == "coco91"]


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["train", "dry run"])
@pytest.mark.parametrize("preset", presets_with_labels_of_coco())
def test_a_preset_for_coco_refuses_other_data_before_it_builds_anything(
    preset: str, options: tuple[str, ...], loradetr: Command, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: object, **named: object) -> None:
        raise AssertionError("built, which may fetch the weights of a backbone")

    monkeypatch.setattr(RunConfig, "build_model", build)
    ended = loradetr("train", "--preset", preset, "--data", places.data, "--output-dir", "out", *options)
    assert_told(ended, USAGE, ("the data set is not COCO: found 3 'circle'", "use --num-classes auto"))
    assert list(Path().iterdir()) == []
    # The way out that it names is one: the next thing is to build.
    ended = loradetr("train", "--preset", preset, "--data", places.data, *options, "--num-classes", "auto")
    assert ended.code == 1
    assert "built, which may fetch" in ended.err


def test_presets_for_coco_exist() -> None:
    assert {"deformable", "lora_detr/deformable-lora3"} <= set(presets_with_labels_of_coco())


@pytest.mark.parametrize("words", [("train", "--data", ""), ("eval", ""), ("train", "--output-dir", " ")])
def test_empty_text_is_not_taken_for_the_current_folder(words: tuple[str, ...], loradetr: Command) -> None:
    assert_told(loradetr(*words), USAGE, (f"empty text after '{words[-2]}'", "unset variable"))
    assert list(Path().iterdir()) == []


def test_the_demo_looks_at_its_folder_before_it_makes_data(loradetr: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").resolve()))
    Path("file").write_text("a file")
    assert_told(loradetr("demo", "--output-dir", "file"), OUTPUT, ("file: expected a folder, found a file",))
    assert {path.name for path in Path().iterdir()} <= {"file", "cache"}  # fonts of matplotlib may be in the cache
    assert not Path("cache", "lora_detr").exists()


def test_an_image_that_breaks_off_ends_the_run_and_is_named(loradetr: Command, places: Places) -> None:
    a_copy("data")(places)
    os.truncate("data/train/0000001.png", 200)
    words = [word for word in words_of("TRAIN_ON", places) if word not in ("--max-steps", "1")]
    ended = loradetr(*words, "data", "--epochs", 1)
    assert_told(ended, DATA, ("error[D18]", "data/train/0000001.png (image id 1): the image cannot be read"))
    report = json.loads(Path("out/exit.json").read_text())
    assert (report["code"], report["class"]) == (DATA, "DataError")
    assert "0000001.png" in report["message"]


class TestFullDisk:
    """No file may grow beyond a bound, which is what a full disk looks like to a program, with other words."""

    @pytest.fixture
    def full(self, loradetr: Command, places: Places) -> Command:
        """A command that may write so many bytes into a file, given first."""

        def call(room: object, *arguments: object) -> Ended:
            assert isinstance(room, int)
            with file_size_limit(room):
                return loradetr(*arguments)

        # What is imported on first use writes files too.
        assert loradetr("predict", places.run, places.data / "val", "--output", "warm").code == 0
        shutil.rmtree("warm")
        return call

    @pytest.mark.parametrize(
        "line",
        [
            "TRAIN_INTO out",
            "strip {run} --inputs 1 --output out/stripped.safetensors",
            "predict {run} {data}/val --output out",
        ],
    )
    def test_no_room_at_all_shows_before_anything_is_computed(self, line: str, full: Command, places: Places) -> None:
        ended = full(0, *words_of(line, places))
        assert_told(ended, OUTPUT, ("out: cannot be written", "free some space"))
        assert [path for path in Path().rglob("*") if path.is_file()] == []

    def test_no_room_for_a_checkpoint(self, full: Command, places: Places) -> None:
        ended = full(100_000, *words_of("TRAIN_INTO out", places))
        assert_told(ended, OUTPUT, ("out/checkpoints: cannot be written", "free some space"))
        assert list(Path("out/checkpoints").iterdir()) == []
        report = json.loads(Path("out/exit.json").read_text())
        assert (report["code"], report["last_checkpoint"]) == (OUTPUT, None)

    def test_no_room_for_a_second_checkpoint_leaves_the_first(self, full: Command, places: Places) -> None:
        a_copy("run")(places)
        checkpoints = sorted(Path("run/checkpoints").glob("step-*"))
        before = files_in(*checkpoints)
        ended = full(100_000, "train", "--resume", "run", "--epochs", 3)
        assert_told(ended, OUTPUT, ("run/checkpoints: cannot be written",))
        assert files_in(*checkpoints) == before
        assert sorted(Path("run/checkpoints").glob("*-*")) == checkpoints

    def test_no_room_for_a_stripped_file_keeps_the_one_that_is_there(self, full: Command, places: Places) -> None:
        Path("out.safetensors").write_bytes(b"an earlier file")
        ended = full(100_000, "strip", places.run, "--inputs", 1, "--output", "out.safetensors")
        assert_told(ended, OUTPUT, ("cannot be written", "free some space"))
        assert os.listdir() == ["out.safetensors"]
        assert Path("out.safetensors").read_bytes() == b"an earlier file"

    def test_no_room_for_results(self, full: Command, places: Places) -> None:
        a_copy("run")(places)
        before = files_in(Path("run"))
        ended = full(0, "eval", "run", "--workers", 0, "--predictions", "found.json")
        assert_told(ended, OUTPUT, ("run/eval: cannot be written", "free some space"))
        assert files_in(Path("run")) == before
        assert os.listdir() == ["run"]
