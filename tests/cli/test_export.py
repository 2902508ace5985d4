"""``loradetr export``, and the commands that take what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

import onnx

from lora_detr.checkpoints.exported import versions
from lora_detr.deploy.onnx import export as module
from tests.cli.conftest import Command, Ended, assert_told, commands_in

# Runs a command where no detector can be built, and prints which packages it imported.
WITHOUT_MODELS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("lora_detr.models", "lora_detr.branches", "lora_detr.losses")):
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Blocked())
from lora_detr.cli import main
try:
    main()
finally:
    print(sorted({"onnx", "timm", "transformers"} & {*sys.modules}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def model(learned_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """An exported run, and what the command printed. Shared."""
    folder = tmp_path_factory.mktemp("exported")
    with commands_in(folder) as loradetr:
        ended = loradetr("export", learned_run, "-o", folder / "model.onnx")
    assert ended.code == 0, ended.err
    return folder / "model.onnx", ended


def test_what_is_proven_and_what_the_file_takes_is_printed(model: tuple[Path, Ended]) -> None:
    printed = model[1].out
    assert "compared on 2 photos of two.json, from file to boxes" in printed
    assert "(+0.0000) on 2 images of two.json" in printed
    assert "images (float32 [N,3,H,W] RGB in [0,1], 96x96, any number of images)" in printed
    assert "orig_target_sizes (int64 [N,2], width and height of the stored image)" in printed
    assert "outputs  labels, boxes, scores" in printed


def test_predict_and_eval_give_what_they_give_of_the_run(
    model: tuple[Path, Ended], learned_run: Path, learned_data: Path, loradetr: Command
) -> None:
    photos = next(path for path in learned_data.parent.iterdir() if path.is_dir())
    found = {}
    for name, source in (("run", learned_run), ("file", model[0])):
        assert loradetr("predict", source, photos, "-o", name, "--no-draw", "--batch-size", 2).code == 0
        found[name] = json.loads(Path(name, "predictions.json").read_text())["annotations"]
    assert len(found["run"]) == len(found["file"]) > 5
    for ours, theirs in zip(found["run"], found["file"], strict=True):
        assert ours["category_id"] == theirs["category_id"]
        np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=1e-2)
    ended = [loradetr("eval", source, "--data", learned_data, "--json") for source in (learned_run, model[0])]
    before, after = (json.loads(one.out) for one in ended)
    for name, value in before["metrics"].items() if "metrics" in before else before.items():
        other = after["metrics"][name] if "metrics" in after else after[name]
        assert other == pytest.approx(value, abs=1e-4) if isinstance(value, float) else True


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_a_file_runs_where_no_detector_can_be_built(
    command: str, model: tuple[Path, Ended], learned_data: Path, tmp_path: Path
) -> None:
    photos = next(path for path in learned_data.parent.iterdir() if path.is_dir())
    what = [str(photos)] if command == "predict" else ["--data", str(learned_data), "--workers", "0"]
    line = [sys.executable, "-c", WITHOUT_MODELS, command, str(model[0]), *what]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (0, ["[]"]), done.stderr
    assert ("wrote predictions" if command == "predict" else "AP 0.") in done.stdout


def test_a_changed_graph_is_refused_and_nothing_is_left(
    learned_run: Path, loradetr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(path: Path, graph: Any) -> None:
        largest = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(largest) + np.float32(0.1)
        largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
        path.write_bytes(graph.SerializeToString())

    monkeypatch.setattr(module, "_write", damaged)
    (tmp_path / "out").mkdir()
    ended = loradetr("export", learned_run, "-o", tmp_path / "out" / "model.onnx")
    lines = ended.err.splitlines()
    assert (ended.code, lines[-1]) == (8, "  nothing was written")
    assert lines[-2].startswith("error: at size 96")
    assert [*(tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--format", "tflite"), ("--format tflite", "onnx")),
        (("--precision", "fp8"), ("--precision fp8", "fp16")),
        (("--sampler", "none"), ("--sampler none", "gather")),
        (("-o", "model.bin"), ("--output model.bin", ".onnx")),
    ],
)
def test_a_wrong_option_is_reported(
    options: tuple[str, ...], parts: tuple[str, ...], learned_run: Path, loradetr: Command
) -> None:
    assert_told(loradetr("export", learned_run, *options), 2, parts)


@pytest.mark.parametrize("command", ["export", "predict", "eval"])
@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_reported_with_the_extra(
    command: str, package: str, model: tuple[Path, Ended], loradetr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command != "export" and package == "onnx":
        pytest.skip("only export needs it")
    known = versions.installed_version
    monkeypatch.setattr(versions, "installed_version", lambda name: None if name.startswith(package) else known(name))
    (Path.cwd() / "photo").mkdir()
    (Path.cwd() / "photo" / "a.png").write_bytes(b"")
    what = {"export": (), "predict": ("photo",), "eval": ("--data", "photo")}[command]
    ended = loradetr(command, model[0], *what)
    assert_told(ended, 2, (f"needs the package {package}, which is not installed", 'pip install "lora-detr[onnx]"'))


def test_files_that_are_none_of_ours_are_refused(model: tuple[Path, Ended], loradetr: Command, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    broken, foreign, edited = (tmp_path / f"{name}.onnx" for name in ("broken", "foreign", "edited"))
    broken.write_bytes(b"no graph")
    graph = onnx.load(model[0])
    foreign_graph = onnx.load(model[0])
    del foreign_graph.metadata_props[:]
    onnx.save(foreign_graph, foreign)
    next(one for one in graph.metadata_props if one.key == "mean").value = '"red"'
    onnx.save(graph, edited)
    for path, part in (
        (broken, "cannot be read"),
        (foreign, "has no metadata of 'loradetr export'"),
        (edited, "its metadata cannot be used: `mean`"),
        (tmp_path / "absent.onnx", "no such file"),
    ):
        assert_told(loradetr("predict", path, tmp_path / "a.png"), 4, (str(path), part))


@pytest.mark.parametrize("command", ["export", "strip"])
def test_an_exported_file_is_for_predict_and_eval_alone(
    command: str, model: tuple[Path, Ended], loradetr: Command
) -> None:
    ended = loradetr(command, model[0])
    assert_told(ended, 4, ("is an exported file", "predict and eval take it"))
