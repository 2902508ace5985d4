"""``loradetr doctor`` tells a good machine, data set and model from a bad one, and what to do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_detr.checkpoints.opened import open_run
from lora_detr.checkpoints.stripped_file import write_stripped
from lora_detr.doctor import checks as machine
from lora_detr.doctor import self_test
from lora_detr.doctor.checks import CheckFailedError, attempt
from lora_detr.doctor.self_test import several_processes
from tests import small_runs
from tests.cli.conftest import Command, Ended, assert_told, files_in

CPU = torch.device("cpu")
ALONE = ("doctor", "--device", "cpu", "--nproc", 1)


def checks(ended: Ended, section: str = "machine") -> dict[str, dict[str, str]]:
    """Return the checks that ``--json`` printed, by name."""
    return {check["name"]: check for check in json.loads(ended.out)[section]}


@pytest.fixture
def broken_checkpoint(own_run: Path) -> Callable[[str], Path]:
    """Return what changes a byte in the weights of a checkpoint of the run."""

    def damage(step: str) -> Path:
        path = own_run / "checkpoints" / step / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return own_run

    return damage


class TestMachine:
    def test_a_line_for_each_check(self, loradetr: Command) -> None:
        ended = loradetr(*ALONE)
        assert (ended.code, ended.err) == (0, "")
        rows = [line.split()[:2] for line in ended.out.splitlines() if not line.startswith(" ")]
        states = {name: state for state, name in rows}
        assert states["versions"] == states["training"] == "ok"
        assert f"torch {torch.__version__.partition('+')[0]}" in ended.out
        assert list(Path().iterdir()) == []  # nothing is left behind

    def test_json_has_the_environment_too(self, loradetr: Command) -> None:
        ended = loradetr(*ALONE, "--json")
        assert ended.code == 0
        found = json.loads(ended.out)
        assert found["environment"]["packages"]["torch"].startswith(torch.__version__.partition("+")[0])
        assert {"shared memory", "disk", "folder", "training"} <= set(checks(ended))

    def test_what_computes_wrongly_is_named(self, loradetr: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            self_test, "build_optimizer", lambda model, config: torch.optim.SGD(model.parameters(), lr=0.0)
        )
        ended = loradetr(*ALONE)
        assert_told(ended, 8, ("1 of 9 checks failed: training",))
        (line,) = [line for line in ended.out.splitlines() if line.startswith("FAILED")]
        assert line.split()[1] == "training"

    def test_little_shared_memory_is_a_warning(self, loradetr: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "WANTED_SHARED_MEMORY", 2**80)
        monkeypatch.setattr(machine, "WANTED_DISK", 2**80)
        ended = loradetr(*ALONE, "--json")
        assert ended.code == 0
        for name, advice in (("shared memory", "--shm-size"), ("disk", "--output-dir")):
            assert checks(ended)[name]["state"] == "warning"
            assert advice in checks(ended)[name]["remedy"]

    def test_what_a_check_raises_becomes_its_result(self) -> None:
        def ends() -> str:
            raise KeyError("surprise")

        found = attempt("name", ends)
        assert (found.state, found.found) == ("FAILED", "KeyError: 'surprise'")
        assert found.remedy

    def test_another_process_is_found(self) -> None:
        assert several_processes(CPU, 2).startswith("2 processes added up over gloo")

    def test_processes_that_do_not_end_are_killed(self) -> None:
        with pytest.raises(CheckFailedError, match=r"2 processes did not find each other over gloo within 0 s") as told:
            several_processes(CPU, 2, seconds=0.3)
        assert "GLOO_SOCKET_IFNAME" in told.value.remedy

    def test_processes_that_fail_are_quoted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", shutil.which("false"))
        with pytest.raises(CheckFailedError, match=r"ended with codes \[1, 1\]: no message"):
            several_processes(CPU, 2)


class TestModel:
    def test_a_run(self, loradetr: Command, small_run: Path) -> None:
        before = files_in(small_run)
        ended = loradetr("doctor", "--model", small_run, "--json")
        assert (ended.code, ended.err) == (0, "")
        found = checks(ended, "model")
        assert [check["state"] for check in found.values()] == ["ok"] * len(found)
        assert list(found) == ["step-00000006", "step-00000012", "weights", "best", "forward"]
        assert files_in(small_run) == before

    def test_damage_to_an_older_checkpoint_is_a_warning(
        self, loradetr: Command, broken_checkpoint: Callable[[str], Path]
    ) -> None:
        ended = loradetr("doctor", "--model", broken_checkpoint("step-00000006"), "--json")
        assert ended.code == 0
        found = checks(ended, "model")
        assert found["step-00000006"]["state"] == "warning"
        assert "its hash does not fit" in found["step-00000006"]["found"]
        assert {found[name]["state"] for name in ("step-00000012", "weights", "forward")} == {"ok"}

    def test_damage_to_the_newest_is_told_with_what_goes_on(
        self, loradetr: Command, broken_checkpoint: Callable[[str], Path]
    ) -> None:
        ended = loradetr("doctor", "--model", broken_checkpoint("step-00000012"))
        assert_told(
            ended, 4, ("cannot be used: the check of its step-00000012 failed", "--resume continues from step-")
        )

    def test_weights_that_are_not_finite(
        self, loradetr: Command, own_run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (own_run / "checkpoints" / "best").unlink()
        monkeypatch.setattr("lora_detr.tensor_files.first_non_finite", lambda tensors: "tensor 'x' has 1 of 2 values")
        ended = loradetr("doctor", "--model", own_run / "checkpoints" / "step-00000012", "--json")
        assert ended.code == 4
        assert "tensor 'x'" in checks(ended, "model")["step-00000012"]["found"]

    def test_a_prediction_that_is_not_finite(
        self, loradetr: Command, small_run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lora_detr.doctor.model_checks._noise", _infinite_images)
        ended = loradetr("doctor", "--model", small_run)
        assert_told(ended, 4, ("the check of its forward failed",))

    def test_a_stripped_file(self, loradetr: Command, small_run: Path) -> None:
        opened = open_run(small_run)
        write_stripped(Path("stripped.safetensors"), opened.model.detector.inference_state(), opened.deployment)
        assert loradetr("doctor", "--model", "stripped.safetensors").code == 0
        with Path("stripped.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
        assert_told(loradetr("doctor", "--model", "stripped.safetensors"), 4, ("the check of its file failed",))

    def test_nothing_there(self, loradetr: Command) -> None:
        assert_told(loradetr("doctor", "--model", "nothing"), 4, ("nothing: does not exist",))


def _infinite_images() -> Any:
    from lora_detr.structures import Images

    pixels = torch.full((1, 3, 96, 96), torch.inf)
    return Images(pixels, torch.zeros(1, 96, 96, dtype=torch.bool), torch.tensor([[96, 96]]))


class TestData:
    def test_counts_and_classes(self, loradetr: Command, shapes_tiny: Path) -> None:
        ended = loradetr("doctor", "--data", shapes_tiny, "--report", "out/report.json", "--json")
        assert (ended.code, ended.err) == (0, "")
        found = json.loads(ended.out)["data"]
        assert json.loads(Path("out/report.json").read_text()) == found
        assert [report["images"] for report in found["reports"]] == [12, 6]
        for split, report in zip(("train", "val"), found["reports"], strict=True):
            assert sum(each[split] for each in found["classes"]) == report["objects"] > 0
        shown = loradetr("doctor", "--data", shapes_tiny).out
        assert "12 images" in shown
        assert "no problem found (annotations, and every image read)" in shown
        assert all(each["name"] in shown for each in found["classes"])

    def test_problems_of_both_splits_are_shown(self, loradetr: Command, shapes_tiny: Path) -> None:
        shutil.copytree(shapes_tiny, "data")
        for split in ("train", "val"):
            path = Path(f"data/annotations/instances_{split}.json")
            content = json.loads(path.read_text())
            content["annotations"][0]["bbox"][2] = -3
            path.write_text(json.dumps(content))
        ended = loradetr("doctor", "--data", "data")
        assert_told(ended, 3, ("data: 2 problems", "--report FILE keeps all of them"))
        rows = [line for line in ended.out.splitlines() if line.startswith("error[D07]: ")]
        assert ["instances_train.json" in rows[0], "instances_val.json" in rows[1]] == [True, True]
        assert loradetr("doctor", "--data", "data", "--on-bad-data", "skip").code == 0

    def test_what_was_dropped_is_a_warning_and_said_once(self, loradetr: Command, shapes_tiny: Path) -> None:
        shutil.copytree(shapes_tiny, "data")
        path = Path("data/annotations/instances_train.json")
        content = json.loads(path.read_text())
        content["annotations"][0]["bbox"][2] = 0
        path.write_text(json.dumps(content))
        ended = loradetr("doctor", "--data", "data")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.count("without width or height") == 1
        assert loradetr("doctor", "--data", "data", "--strict").code == 3

    def test_images_are_read_unless_asked_not_to(self, loradetr: Command, shapes_tiny: Path) -> None:
        shutil.copytree(shapes_tiny, "data")
        broken = min(Path("data/val").iterdir())
        broken.write_bytes(broken.read_bytes()[:200])
        quick = loradetr("doctor", "--data", "data", "--verify", "none")
        assert quick.code == 0
        assert "no problem found (annotations only; --verify decode reads every image too)" in quick.out
        ended = loradetr("doctor", "--data", "data", "--report", "report.json")
        assert_told(ended, 3, ("data: 1 problem", "all of them are in report.json"))
        (problem,) = json.loads(Path("report.json").read_text())["problems"]
        assert problem["code"] == "D18"
        assert broken.name in problem["text"]

    @pytest.mark.parametrize(
        "option",
        [
            *(("--strict",), ("--verify", "decode"), ("--report", "file"), ("--preset", "relation")),
            *(("--fix", "new"), ("--pictures", "look"), ("--data-format", "coco")),
        ],
    )
    def test_options_about_data_need_data(self, option: tuple[str, ...], loradetr: Command) -> None:
        assert_told(loradetr("doctor", *option), 2, (f"{option[0]} needs --data", "add --data PATH"))
        assert list(Path().iterdir()) == []

    def test_a_report_that_cannot_be_written_is_told_first(self, loradetr: Command, shapes_tiny: Path) -> None:
        Path("file").write_text("")
        ended = loradetr("doctor", "--data", shapes_tiny, "--report", "file/report.json")
        assert_told(ended, 5, ("file: cannot be written",))
        assert ended.out == ""

    def test_a_report_replaces_a_link_and_leaves_its_target_x04(self, loradetr: Command, shapes_tiny: Path) -> None:
        Path("victim").write_text("precious")
        Path("report.json").symlink_to("victim")
        assert loradetr("doctor", "--data", shapes_tiny, "--report", "report.json").code == 0
        assert Path("victim").read_text() == "precious"
        assert not Path("report.json").is_symlink()


class TestFindings:
    """What stops no run, and is told all the same."""

    @pytest.fixture
    def data(self, shapes_tiny: Path) -> Path:
        """Return a data set with an object that is annotated twice."""
        shutil.copytree(shapes_tiny, "data")
        path = Path("data/annotations/instances_train.json")
        content = json.loads(path.read_text())
        content["annotations"].append({**content["annotations"][0], "id": 9999})
        path.write_text(json.dumps(content))
        return Path("data")

    def test_a_finding_has_id_severity_number_places_and_remedy(self, loradetr: Command, data: Path) -> None:
        ended = loradetr("doctor", "--data", data, "--json")
        assert (ended.code, ended.err) == (0, "")
        (found,) = [each for each in json.loads(ended.out)["data"]["findings"] if each["severity"] == "warning"]
        assert set(found) == {"id", "severity", "count", "text", "places", "remedy"}
        assert (found["id"], found["count"], len(found["places"])) == ("Q04", 1, 1)
        shown = loradetr("doctor", "--data", data).out
        assert f"warning[Q04]: {found['text']}" in shown
        assert f"  {found['places'][0]}" in shown
        assert f"  {found['remedy']}" in shown
        assert "no error found, 1 warning (annotations, and every image read)" in shown

    def test_problems_are_findings_by_kind(self, loradetr: Command, data: Path) -> None:
        path = data / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        for row in content["annotations"][:12]:
            row["bbox"][2] = -3
        path.write_text(json.dumps(content))
        ended = loradetr("doctor", "--data", data, "--json")
        assert ended.code == 3
        found = json.loads(ended.out)["data"]["findings"]
        assert [(each["id"], each["severity"], each["count"], len(each["places"])) for each in found[:1]] == [
            ("D07", "error", 12, 10)
        ]

    def test_warnings_count_with_strict(self, loradetr: Command, data: Path, shapes_tiny: Path) -> None:
        assert_told(loradetr("doctor", "--data", data, "--strict"), 3, ("data: 1 warning", "or leave --strict out"))
        assert loradetr("doctor", "--data", shapes_tiny, "--strict").code == 0

    def test_the_detector_is_of_a_preset_or_of_a_model(
        self, loradetr: Command, shapes_tiny: Path, small_run: Path
    ) -> None:
        def codes(*options: object) -> set[str]:
            ended = loradetr("doctor", "--data", shapes_tiny, "--verify", "none", "--json", *options)
            assert ended.code == 0, ended.err
            return {each["id"] for each in json.loads(ended.out)["data"]["findings"]}

        Path("few.yaml").write_text("model: {num_queries: 6}\nbranches: []\n")
        assert codes() == set()
        assert codes("--model", small_run) == {"Q11"}  # it takes images of 96 pixels
        assert codes("--preset", "few.yaml") == {"Q09"}
        ended = loradetr("doctor", "--data", shapes_tiny, "--preset", "x", "--model", small_run)
        assert_told(ended, 2, ("--preset and --model exclude each other",))
        assert_told(loradetr("doctor", "--data", shapes_tiny, "--preset", "x"), 2, ("x",))

    def test_fix_writes_what_reads_clean_and_changes_nothing(self, loradetr: Command, data: Path) -> None:
        before = files_in(data)
        ended = loradetr("doctor", "--data", data, "--fix", "new")
        assert (ended.code, ended.err) == (0, "")
        assert "repaired: instances_train.json: 1 box removed: the same as another of its class and image" in ended.out
        assert "next: loradetr doctor --data new/data.yaml" in ended.out
        assert files_in(data) == before
        assert loradetr("doctor", "--data", "new/data.yaml", "--strict").code == 0
        again = loradetr("doctor", "--data", data, "--fix", "new")
        assert_told(again, 2, ("error[C06]: new: is not empty",))
        assert again.out == ""
        found = json.loads(loradetr("doctor", "--data", data, "--fix", "other", "--json").out)["data"]["repaired"]
        assert (found["data"], [each["id"] for each in found["findings"]]) == ("other/data.yaml", ["Q04"])

    def test_pictures_are_drawn(self, loradetr: Command, shapes_tiny: Path) -> None:
        ended = loradetr("doctor", "--data", shapes_tiny, "--pictures", "look", "--json")
        assert (ended.code, ended.err) == (0, "")
        paths = json.loads(ended.out)["data"]["pictures"]
        assert "look/object_sizes.png" in paths
        assert sorted(paths) == sorted(map(str, Path("look").iterdir()))
        Path("file").write_text("")
        assert_told(loradetr("doctor", "--data", shapes_tiny, "--pictures", "file"), 5, ("file: ",))

    def test_a_training_prints_warnings_before_it_starts(self, loradetr: Command, data: Path) -> None:
        ended = loradetr(
            *("train", "--preset", small_runs.SMALL, "--data", data, "--dry-run", "--set", "model.num_queries=7"),
            *("--set", "branches=[]"),
        )
        assert ended.code == 0, ended.err
        assert ended.out.count("1 object repeats another of its class and image") == 1
        assert "more objects than the 7 queries" in ended.out


class TestReplay:
    def test_a_step_that_was_not_finite_is_run_again(
        self, loradetr: Command, shapes_tiny: Path, tmp_path: Path
    ) -> None:
        ended = loradetr(
            "train", "--preset", small_runs.SMALL, "--data", shapes_tiny, "--output-dir", "run", "--lr", "1e30"
        )
        assert ended.code == 6
        ended = loradetr("doctor", "--replay", "run")
        assert ended.code == 0, ended.err
        assert "recorded: step" in ended.out
        assert "replay" in json.loads(loradetr("doctor", "--replay", "run", "--json").out)

    def test_nothing_to_replay(self, loradetr: Command) -> None:
        Path("empty").mkdir()
        assert_told(loradetr("doctor", "--replay", "empty"), 4, ("nan_report.json",))
