"""Official checkpoints on the command line: converted, and used as they are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lora_detr.checkpoints.opened import open_run
from lora_detr.data.synthetic.sets import SHAPES, generate
from tests import official_files
from tests.cli.conftest import Command, assert_told

SMALL = ("data.train.scales=[96]", "data.train.crop_probability=0.0", "data.evaluation.size=96")
# Of two layers, queries, keys and values apart; and the second names of three pairs of heads.
LESS_PACKED = 2 * 2 * 2 + 3 * (2 + 6)
SMALL_IMAGES = (*(word for setting in SMALL for word in ("--set", setting)), "--workers", 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with small official files: ``lora.pth`` of 40 classes, and ``ms-detr.pth`` of COCO's. Shared."""
    folder = tmp_path_factory.mktemp("official")
    torch.manual_seed(0)
    official_files.make("deformable-lora3", num_classes=40).save(folder / "lora.pth")
    official_files.make("ms-detr").save(folder / "ms-detr.pth")
    yield folder
    shutil.rmtree(folder)


def test_a_file_is_converted_and_told_about(loradetr: Command, files: Path, learned_data: Path) -> None:
    ended = loradetr("convert", files / "lora.pth", "run", "--data", learned_data)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == f"{files / 'lora.pth'} -> run"
    assert "deformable, resnet18, 1 + 2 layers, 300 queries, branches: lora rank 4 k=6, lora rank 3 k=4" in lines[1]
    assert re.fullmatch(r"tensors +257, all of them: 11\.\d\d M parameters", lines[2])
    assert lines[3].split(maxsplit=2)[2] == "epoch, args, optimizer"
    assert f"note: classes: 40, taken from {learned_data}" in lines
    again = loradetr("convert", "run", "back.pth", "--json")
    assert (again.code, again.err) == (0, "")
    assert json.loads(again.out)["not_converted"] == ["settings"]
    # What was converted is a run: it knows its data, and is what the file is.
    direct = loradetr("eval", files / "lora.pth", "--data", learned_data, "--workers", 0, "--json")
    converted = loradetr("eval", "run", "--workers", 0, "--json")
    assert (direct.code, converted.code) == (0, 0)
    assert json.loads(direct.out) == json.loads(converted.out)
    assert (Path("run") / "eval").is_dir()


def test_a_file_becomes_a_folder_of_transformers_without_its_branches(loradetr: Command, files: Path) -> None:
    pytest.importorskip("transformers")
    ended = loradetr("convert", files / "lora.pth", "hf:folder", "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert (report["source"], report["output"]) == (str(files / "lora.pth"), "hf:folder")
    assert report["not_converted"] == ["branches"]
    assert report["tensors"] == len(open_run(files / "lora.pth").detector.state_dict()) + LESS_PACKED
    config = json.loads(Path("folder/config.json").read_text())
    assert (config["two_stage_num_proposals"], len(config["id2label"])) == (300, 40)


def test_eval_says_what_it_took_the_file_for(loradetr: Command, files: Path) -> None:
    file = files / "lora.pth"
    generate(SHAPES, Path("made"), train_images=1, val_images=1)
    assert_told(
        loradetr("eval", file), 2, (f"{file} records no data path, and there is no data/coco", "give --data DIR")
    )
    Path("data").mkdir()
    Path("made").rename("data/coco")
    ended = loradetr("eval", file, "--workers", 0, "--branch", 2)
    assert ended.code == 0
    assert ended.out.splitlines()[:2] == ["no --data: using data/coco", "lora.pth: 1 image of instances_val.json"]
    told = ended.err.splitlines()
    assert told[0].startswith(f"info: {file}: deformable, resnet18")
    assert told[1:] == [
        "info: classes: 40, taken from data/coco",
        "info: not in such a file, taken from the preset: k of branches, 8 attention heads, 300 queries",
        "info: not read: epoch, args, optimizer",
        "info: all 257 tensors loaded",
    ]
    assert sorted(path.name for path in files.iterdir()) == ["lora.pth", "ms-detr.pth"]


def test_classes_of_others_are_an_error(loradetr: Command, files: Path, shapes_tiny: Path) -> None:
    ended = loradetr("eval", files / "ms-detr.pth", "--data", shapes_tiny)
    assert ended.code == 3
    assert "taken for MS-DETR" in ended.err
    assert "3 'circle', not 'car'" in ended.err


def test_strip_writes_beside_the_file_and_predict_reads_it_as_it_is(
    loradetr: Command, files: Path, shapes_tiny: Path
) -> None:
    shutil.copy(files / "lora.pth", "lora.pth")
    ended = loradetr("strip", "lora.pth", "--inputs", 1)
    assert ended.code == 0
    assert "equal bit for bit" in ended.out
    assert ended.out.splitlines()[-1] == "wrote lora-stripped.safetensors"
    assert {path.name for path in Path().iterdir()} == {"lora.pth", "lora-stripped.safetensors", "strip_report.json"}
    report = json.loads(Path("strip_report.json").read_text())
    assert (report["source"], report["largest_difference"]) == ("lora.pth", 0.0)
    image = next((shapes_tiny / "val").iterdir())
    ended = loradetr("predict", "lora.pth", image, "--score", 0, "--no-draw", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert len(found["annotations"]) == 100
    assert found["categories"][7] == {"id": 7, "name": "class 7"}


def test_training_takes_system_and_weights(loradetr: Command, files: Path, shapes_tiny: Path) -> None:
    line = ("train", "--weights", files / "lora.pth", "--data", shapes_tiny, "--max-steps", 1, *SMALL_IMAGES)
    ended = loradetr(*line, "--device", "cpu", "--output-dir", "run")
    assert (ended.code, ended.err) == (0, "")
    assert f"settings of {files / 'lora.pth'}; --preset or --baseline would choose others" in ended.out
    assert "preset      deformable-lora3" in ended.out
    assert re.search(r"^weights +227 of 233 tensors from", ended.out, re.MULTILINE)
    assert "re-initialised: detector.heads.classes (6 tensors): other shapes in the file" in ended.out
    config = open_run(Path("run")).config
    assert [branch.rank for branch in config.branches] == [4, 3, 2]  # type: ignore[union-attr]
    assert (config.model.hidden_dim, config.model.backbone.name) == (32, "resnet18")
    listed = json.loads(Path("run/weights.json").read_text())
    assert listed["unused"] == []


def test_what_is_asked_for_is_stronger_than_what_is_recognised(
    loradetr: Command, files: Path, shapes_tiny: Path
) -> None:
    Path("few.yaml").write_text("model: {num_queries: 77}\n")
    options = ("--config", "few.yaml", "--aux", 1, "--num-classes", "auto", "--dry-run", *SMALL_IMAGES)
    ended = loradetr("train", "--weights", files / "ms-detr.pth", "--data", shapes_tiny, *options)
    assert ended.code == 0, ended.err
    assert "ms-detr, resnet18 (weights given), 1 + 2 layers, 77 queries" in ended.out
    assert "taken for MS-DETR" in ended.out
    ended = loradetr("train", "--weights", files / "ms-detr.pth", "--preset", "deformable-ffn3", "--data", shapes_tiny)
    assert_told(ended, 2, ("expects COCO's category ids and names",))


@pytest.mark.parametrize(
    ("line", "code", "parts"),
    [
        ("convert {files}/lora.pth other.pth", 2, ("one of the two must be an official .pth",)),
        ("convert absent new.pth", 4, ("absent: does not exist",)),
        ("convert absent.pth new", 4, ("absent.pth: cannot be read: No such file", "check the path")),
        ("convert {files}/lora.pth new --preset unknown", 2, ("unknown preset 'unknown'",)),
        ("convert {files}/lora.pth new --preset relation", 2, ("of the deformable family",)),
        ("convert {files}/lora.pth new --data {data}/absent", 2, ("expected a COCO folder",)),
        ("convert {files}/lora.pth new --checkpoint first", 2, ("expected best or last",)),
        ("convert text.pth new", 4, ("error[K05]: text.pth: not a PyTorch file of tensors",)),
        ("eval text.pth --data {data}", 4, ("error[K05]: text.pth: not a PyTorch file of tensors",)),
        (
            "predict other.pth {data}/val",
            4,
            ("2 of 2 tensor names are not recognised: fc.weight, fc.bias", "supported are two-stage"),
        ),
        ("train --weights other.pth --data {data} --output-dir new", 4, ("2 of 2 tensor names are not recognised",)),
        ("strip other.pth", 4, ("no transformer.enc_output (two-stage)",)),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(
    line: str, code: int, parts: tuple[str, ...], loradetr: Command, files: Path, shapes_tiny: Path
) -> None:
    Path("text.pth").write_text("some text\n")
    torch.save({"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}, "other.pth")
    before = sorted(path.name for path in [*Path().iterdir(), *files.iterdir()])
    ended = loradetr(*line.format(files=files, data=shapes_tiny).split())
    assert_told(ended, code, parts)
    assert sorted(path.name for path in [*Path().iterdir(), *files.iterdir()]) == before
