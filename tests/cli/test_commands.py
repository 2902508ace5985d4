"""Train, evaluate and strip as a user does, and what a user's mistakes look like."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lora_detr.checkpoints.opened import OpenedRun
from lora_detr.checkpoints.stripped_file import write_stripped
from lora_detr.data.synthetic import sets
from lora_detr.deploy.forms import StrippedFileForm
from lora_detr.errors import OutputError
from lora_detr.evaluation.coco_eval import METRICS, USAGE
from lora_detr.models import AnyDetector
from tests.cli.conftest import Command, Ended, assert_told, commands_in, run_process
from tests.cli.test_help import COMMANDS, command_of
from tests.small_runs import SMALL, read_lines

FEW = ("--max-steps", 2)
TAKE_DATA = {
    "train": ("train --preset {small}", "train --preset {small} --set data.path=shapes-easy", "train --resume {run}"),
    "eval": ("eval {run}",),
    "report": ("report {run}",),
    "export": ("export {run}",),
    "convert": ("convert official.pth out",),
    "doctor": ("doctor", "doctor --replay {run}"),
    "ablate run": ("ablate run table1",),
}
"""Commands that take ``--data``, with ways to start them."""


@pytest.fixture(scope="module")
def pipeline(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Ended]]:
    """The folder in which the three commands ran one after the other, the first in a process of its own."""
    folder = tmp_path_factory.mktemp("pipeline")
    train = ("train", "--preset", SMALL, "--data", shapes_tiny, "--aux", 3, *FEW, "--output-dir", "run")
    ended = [run_process(*train, folder=folder)]
    with commands_in(folder) as loradetr:
        ended += [loradetr("eval", "run", "--workers", 0), loradetr("strip", "run", "--inputs", 2)]
    return folder, ended


def test_the_three_commands_run_one_after_the_other(pipeline: tuple[Path, list[Ended]]) -> None:
    folder, ended = pipeline
    assert [(command.code, command.err) for command in ended] == [(0, "")] * 3
    assert {path.name for path in (folder / "run").iterdir()} >= {
        *("checkpoints", "eval", "config.yaml", "command.txt", "log.txt", "metrics.jsonl", "results.csv", "exit.json"),
        *("stripped.safetensors", "strip_report.json"),
    }
    with Image.open(folder / "run" / "results.png") as picture:
        assert picture.size == (1620, 960)
    assert not list(folder.rglob(".tmp-*")) + list(folder.rglob(".strip-*"))
    assert [entry.name for entry in folder.iterdir()] == ["run"]
    for command in ended:
        assert "Traceback" not in command.out
        assert "\x1b" not in command.out


def test_what_train_says(pipeline: tuple[Path, list[Ended]], shapes_tiny: Path) -> None:
    folder, (train, _, _) = pipeline
    heads = [line.split()[0] for line in train.out.splitlines() if line[:1].strip()]
    heads.remove("warning")  # classes of the small set have too few objects
    order = ["preset", "detector", "branch0", "branch1", "branch2", "parameters", "train", "val", "classes"]
    assert heads[:12] == [*order, "schedule", "device", "output"]
    assert re.search(r"^parameters .* stay after strip", train.out, re.MULTILINE)
    assert re.search(r"^epoch 1/2  step 2  loss \d+\.\d+  AP ", train.out, re.MULTILINE)
    assert train.out.splitlines()[-1] == "next: loradetr eval run; loradetr strip run"
    command = (folder / "run" / "command.txt").read_text()
    assert command == (f"loradetr train --preset {SMALL} --data {shapes_tiny} --aux 3 --max-steps 2 --output-dir run\n")
    assert "max_steps: 2  # override" in (folder / "run" / "config.yaml").read_text()
    assert json.loads((folder / "run" / "exit.json").read_text())["code"] == 0


def test_what_eval_says(pipeline: tuple[Path, list[Ended]]) -> None:
    folder, (_, evaluation, _) = pipeline
    lines = evaluation.out.splitlines()
    assert lines[0] == "step-00000002: 6 images of instances_val.json"
    names = re.findall(r"(A[PR]\w*) (?:-|\d\.\d{3})", " ".join(lines[1:3]))
    assert names == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert lines[3].split() == ["class", "id", "objects", "AP", "AP50"]
    assert [line.split()[:2] for line in lines[4:6]] == [["circle", "3"], ["square", "7"]]
    assert {path.name for path in (folder / "run" / "eval").iterdir()} == {
        *("metrics.json", "per_class.csv", "predictions.json")
    }


def test_what_strip_says(pipeline: tuple[Path, list[Ended]]) -> None:
    folder, (_, _, strip) = pipeline
    first, *lines = strip.out.splitlines()
    assert first == "step-00000002"
    assert lines[0] == (
        "proven on 2 photos of instances_val.json, 2 forward passes: logits and boxes are equal bit for bit"
    )
    assert [line.split()[0] for line in lines[1:]] == [*("before", "parameters", "megabytes", "ms", "GFLOPs", "wrote")]
    assert lines[-1] == "wrote run/stripped.safetensors"
    report = json.loads((folder / "run" / "strip_report.json").read_text())
    assert report["largest_difference"] == 0
    assert report["outputs_sha256"][0] == report["outputs_sha256"][1]


def test_json_is_all_that_is_printed(pipeline: tuple[Path, list[Ended]], loradetr: Command, shapes_tiny: Path) -> None:
    run = pipeline[0] / "run"
    found = []
    for model in (run, run / "stripped.safetensors"):
        ended = loradetr("eval", model, "--data", shapes_tiny, "--workers", 0, "--batch-size", 2, "--json")
        assert (ended.code, ended.err) == (0, "")
        found.append(json.loads(ended.out))
    assert found[0] == found[1]
    assert set(found[0]) == {*METRICS, *USAGE, "operating_point", "per_class"}


def test_resuming_for_longer(own_run: Path, loradetr: Command) -> None:
    ended = loradetr("train", "--resume", own_run, "--epochs", 3)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[0] == f"resuming {own_run} at step 12 of 18"
    assert len(read_lines(own_run / "metrics.jsonl")) == 18


def test_every_command_that_takes_data_is_listed() -> None:
    taking = {name for name in COMMANDS if any("--data" in option.opts for option in command_of(name).params)}
    assert taking == set(TAKE_DATA)


@pytest.mark.parametrize("line", [line for lines in TAKE_DATA.values() for line in lines])
def test_data_may_be_the_name_of_a_generated_set(
    line: str, loradetr: Command, own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command asks for the set; that it is an ordinary folder from then on is tested elsewhere."""

    def draw(name: str) -> Path:
        raise OutputError(f"asked for {name}", "enough for a test")

    monkeypatch.setattr(sets, "cached", draw)
    given = () if "data.path" in line else ("--data", "shapes-easy")
    words = line.format(small=SMALL, run=own_run).split()
    assert_told(loradetr(*words, *given), 5, ("asked for shapes-easy",))


def test_a_dry_run_writes_nothing(loradetr: Command, shapes_tiny: Path) -> None:
    ended = loradetr("train", "--preset", SMALL, "--data", shapes_tiny, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert "parameters" in ended.out
    assert list(Path.cwd().iterdir()) == []


def test_the_default_run_directory_is_numbered(loradetr: Command, shapes_tiny: Path) -> None:
    for n in (1, 2):
        ended = loradetr("train", "--preset", SMALL, "--data", shapes_tiny, "--max-steps", 1)
        assert ended.code == 0
        assert Path("runs", f"small-{n}", "exit.json").is_file()


def damaged(form: StrippedFileForm, path: Path, detector: AnyDetector, opened: OpenedRun) -> None:
    tensors, name = detector.inference_state(), "heads.classes.1.weight"
    write_stripped(path, {**tensors, name: -tensors[name]}, opened.deployment)


def test_a_strip_that_fails_its_proof_exits_with_8(
    loradetr: Command, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StrippedFileForm, "write", damaged)
    ended = loradetr("strip", small_run, "--output", "out.safetensors", "--inputs", 1)
    assert_is_a_fault(ended, 8, "differs from the checkpoint's by up to")
    assert "nothing was written" in ended.err
    assert list(Path.cwd().iterdir()) == []


def assert_is_a_fault(ended: Ended, code: int, part: str) -> None:
    """A fault of the user is one line that names it and one line of remedy; no traceback, and nothing else."""
    assert ended.code == code, ended.err
    assert re.match(r"error(\[\w+\])?: ", ended.err), ended.err
    assert part in ended.err
    first, *rest = ended.err.splitlines()
    assert first.startswith("error")
    assert len(rest) == 1, ended.err
    assert rest[0].startswith("  ")
    assert rest[0].strip()
    assert "Traceback" not in ended.err + ended.out


SMALL_ON = ("train", "--preset", SMALL, "--max-steps", 1, "--data")


class TestMistakesOfTrain:
    """Each ends before anything is trained, with a line and a remedy."""

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (("--preset", "deformable-lora33"), "did you mean 'deformable-lora3'?"),
            (("--baseline", "deformabel"), "did you mean 'deformable'?"),
            (("--set", "train.optimizer.lrr=1"), "did you mean"),
            (("--set", "train.epochs=many"), "train.epochs"),
            (("--set", "train.epochs"), "expected key.path=value"),
            (("--epochs", 0), "train.epochs"),
            (("--precision", "fp8"), "train.precision"),
            (("--aux", 3, "--branch", "topk:k=3"), "exclude each other"),
            (("--config", "absent.yaml"), "absent.yaml"),
            (("--preset", "absent.yaml"), "absent.yaml"),
        ],
        ids=lambda item: " ".join(map(str, item)) if isinstance(item, tuple) else "",
    )
    def test_wrong_settings(self, options: tuple[object, ...], part: str, loradetr: Command, shapes_tiny: Path) -> None:
        ended = loradetr("train", *options, "--data", shapes_tiny, "--output-dir", "run")
        assert_is_a_fault(ended, 2, part)
        assert not Path("run").exists()

    def test_several_wrong_settings_are_told_at_once(self, loradetr: Command, shapes_tiny: Path) -> None:
        ended = loradetr("train", "--aux", 2, "--rank", 0, "--epochs", 0, "--data", shapes_tiny)
        assert ended.code == 2
        for key in ("branches.0.rank", "branches.1.rank", "train.epochs"):
            assert f"`{key}` is 0 (from override); must be at least 1" in ended.err

    def test_data_that_is_not_there(self, loradetr: Command) -> None:
        assert_is_a_fault(loradetr(*SMALL_ON, "absent"), 2, "--data")

    def test_a_folder_without_annotations(self, loradetr: Command) -> None:
        Path("images").mkdir()
        assert_is_a_fault(loradetr(*SMALL_ON, "images"), 3, "instances_train")

    def test_annotations_that_end_too_early(self, loradetr: Command, shapes_tiny: Path) -> None:
        path = Path("data/annotations/instances_train.json")
        path.parent.mkdir(parents=True)
        Path("data/train").symlink_to(shapes_tiny / "train")
        text = (shapes_tiny / "annotations" / "instances_train.json").read_text()
        path.write_text(text[: len(text) // 2])
        assert_is_a_fault(loradetr(*SMALL_ON, "data", "--output-dir", "run"), 3, "instances_train.json")
        assert not Path("run").exists()

    def test_classes_of_coco_on_other_data(self, loradetr: Command, shapes_tiny: Path) -> None:
        ended = loradetr(*SMALL_ON, shapes_tiny, "--num-classes", "coco91")
        assert_is_a_fault(ended, 2, "not COCO")
        assert "--num-classes auto" in ended.err

    def test_an_output_path_that_is_a_file(self, loradetr: Command, shapes_tiny: Path) -> None:
        Path("run").write_text("a file")
        assert_is_a_fault(loradetr(*SMALL_ON, shapes_tiny, "--output-dir", "run"), 5, "found a file")
        assert Path("run").read_text() == "a file"

    def test_an_output_directory_that_is_in_use(self, loradetr: Command, shapes_tiny: Path, own_run: Path) -> None:
        before = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
        assert_is_a_fault(loradetr(*SMALL_ON, shapes_tiny, "--output-dir", own_run), 2, "is not empty")
        assert {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize(
        "option",
        [
            ("--lr", 1),
            ("--aux", 0),
            ("--set", "train.seed=1"),
            ("--set", "train.optimizer.clip_norm=null"),
            ("--dry-run",),
            ("--weights", "elsewhere"),
        ],
        ids=lambda option: " ".join(map(str, option)),
    )
    def test_resuming_with_other_settings(self, option: tuple[object, ...], loradetr: Command, own_run: Path) -> None:
        assert_is_a_fault(loradetr("train", "--resume", own_run, *option), 2, "error[C07]")

    def test_resuming_what_is_not_there(self, loradetr: Command) -> None:
        assert_is_a_fault(loradetr("train", "--resume", "absent"), 2, "error[C10]")

    def test_an_unknown_option_is_named(self, loradetr: Command) -> None:
        ended = loradetr("train", "--epoch", 3)
        assert ended.code == 2
        assert "No such option: --epoch" in ended.err
        assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["eval", "strip"])
class TestMistakesWithModels:
    """``eval`` and ``strip`` refuse the same things."""

    def test_a_model_that_is_not_there(self, command: str, loradetr: Command) -> None:
        assert_is_a_fault(loradetr(command, "absent"), 4, "absent")

    def test_a_folder_that_is_no_run(self, command: str, loradetr: Command) -> None:
        assert_is_a_fault(loradetr(command, "."), 4, "holds no checkpoint")

    def test_a_damaged_checkpoint(self, command: str, loradetr: Command, own_run: Path) -> None:
        for path in (own_run / "checkpoints").glob("step-*/model.safetensors"):
            data = bytearray(path.read_bytes())
            data[-100] ^= 4
            path.write_bytes(bytes(data))
        assert_is_a_fault(loradetr(command, own_run), 4, "its hash does not fit")

    def test_an_unknown_branch(self, command: str, loradetr: Command, small_run: Path) -> None:
        ended = loradetr(command, small_run, "--branch", 3)
        assert ended.code == 2
        assert ended.err.startswith("error: --branch 3: the model has 3 branches, counted from 0\n")

    def test_an_unknown_checkpoint(self, command: str, loradetr: Command, small_run: Path) -> None:
        assert_is_a_fault(loradetr(command, small_run, "--checkpoint", "first"), 2, "expected best or last")


def test_eval_of_all_parts(loradetr: Command, small_run: Path) -> None:
    table = loradetr("eval", small_run, "--branch", "all", "--workers", 0, "--nms", 0.7).out
    rows = [line.split()[0] for line in table.splitlines() if line.strip().startswith(("primary", "branch"))]
    assert rows == ["primary", "branch0", "branch1", "branch2"]
    said = json.loads(loradetr("eval", small_run, "--branch", "all", "--workers", 0, "--nms", 0.7, "--json").out)
    assert list(said) == rows
    assert said["branch1"] == json.loads(
        loradetr("eval", small_run, "--branch", 1, "--workers", 0, "--nms", 0.7, "--json").out
    )


def test_a_stripped_file_is_not_stripped_again(pipeline: tuple[Path, list[Ended]], loradetr: Command) -> None:
    stripped = pipeline[0] / "run" / "stripped.safetensors"
    assert_is_a_fault(loradetr("strip", stripped), 4, "stripped file already")


def test_a_stripped_file_needs_data(pipeline: tuple[Path, list[Ended]], loradetr: Command) -> None:
    stripped = pipeline[0] / "run" / "stripped.safetensors"
    assert_is_a_fault(loradetr("eval", stripped), 2, "records no data path")


def test_debug_shows_where_a_fault_came_from(loradetr: Command) -> None:
    ended = loradetr("--debug", "eval", "absent")
    assert ended.code == 4
    assert "Traceback" in ended.err


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_eval_writes_confusion_matrix_and_kinds_of_errors(
    loradetr: Command, learned_run: Path, tmp_path: Path, suffix: str
) -> None:
    run, path = tmp_path / "run", Path(f"confusion.{suffix}")
    shutil.copytree(learned_run, run)
    ended = loradetr("eval", run, "--workers", 0, "--confusion", path)
    assert ended.code == 0, ended.err
    text = path.read_text(encoding="utf-8")
    if suffix == "csv":
        assert text.startswith("category_id,name,found as circle,")
        return
    content = json.loads(text)
    stored = json.loads((run / "eval" / "metrics.json").read_text())
    assert content["operating_point"] == stored["operating_point"]
    objects = [row["objects"] for row in content["per_class"]]
    assert objects == [row["objects"] for row in stored["per_class"]]
    assert [sum(row) for row in content["matrix"][:-1]] == objects
    total = content["error_kinds"]
    shown = total["right"] + sum(total[kind] for kind in ("double", "wrong class", "poorly placed", "background"))
    assert sum(sum(row[:-1]) for row in content["matrix"]) == shown
    f1 = 2 * total["right"] / (shown + total["objects"])
    assert f1 == pytest.approx(stored["operating_point"]["f1"])


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--confusion", "c.txt"), ".json or .csv"),
        (("--confusion", "."), "is a folder"),
        (("--confusion", "absent/c.json"), "no such folder"),
        (("--confusion", "c.json", "--branch", "all"), "--branch"),
        (("--confusion", "c.json", "--nms", 0.5), "--nms"),
    ],
)
def test_a_place_or_choice_that_confusion_cannot_use_is_refused(
    loradetr: Command, learned_run: Path, options: tuple[object, ...], part: str
) -> None:
    assert_told(loradetr("eval", learned_run, *options), 2, ("--confusion", part))
    assert not any(Path().iterdir())
