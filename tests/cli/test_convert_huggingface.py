"""Folders of ``transformers`` on the command line: converted to runs and written."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_detr.checkpoints.huggingface.deformable import write_folder
from lora_detr.config.load import load_config
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.models.huggingface import versions
from lora_detr.recipe.run_config import RunConfig
from tests import official_files
from tests.cli.conftest import Command, assert_told

CLASSES = CategoryMap((3, 7), ("circle", "square"))
OVERRIDES = ("model.num_queries=12", "model.backbone.norm=frozen-batch", "data.size_divisor=32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ``transformers``. Shared: do not write into it."""
    pytest.importorskip("transformers")
    config = load_config(RunConfig, preset="deformable", overrides=(*official_files.SIZES, *OVERRIDES)).config
    detector = config.build_model(2, load_weights=False).detector
    path = tmp_path_factory.mktemp("theirs") / "folder"
    write_folder(path, detector.inference_state(), config.deployment(CLASSES), path)
    return path


def test_a_folder_becomes_a_run_and_a_folder_again(loradetr: Command, folder: Path) -> None:
    ended = loradetr("convert", f"hf:{folder}", "run")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == f"hf:{folder} -> run"
    assert lines[1].split(maxsplit=1)[1] == "deformable, resnet18, 1 + 2 layers, 12 queries"
    assert re.fullmatch(r"tensors +\d+, all of them: 11\.\d\d M parameters", lines[2])
    assert lines[3].split(maxsplit=2)[2] == "nothing"
    assert lines[4:] == ["note: classes: 2, ids from loradetr_category_ids of the config"]
    again = loradetr("convert", "run", "hf:new/again", "--json")
    assert (again.code, again.err) == (0, "")
    report = json.loads(again.out)
    assert (report["not_converted"], report["notes"]) == (["settings"], [])
    for file in sorted(folder.iterdir()):
        assert (Path("new/again") / file.name).read_bytes() == file.read_bytes(), file.name
    assert [path.name for path in Path("new").iterdir()] == ["again"]
    shutil.rmtree("run")


def test_weights_without_a_place_are_not_converted_and_listed(loradetr: Command, folder: Path) -> None:
    shutil.copytree(folder, "more")
    weights = load_file("more/model.safetensors")
    save_file({**weights, "model.decoder.more": torch.zeros(1)}, "more/model.safetensors", {"format": "pt"})
    ended = loradetr("convert", "hf:more", "run", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["not_converted"] == ["model.decoder.more"]


@pytest.mark.parametrize(
    ("line", "code", "parts"),
    [
        ("convert hf:{folder} hf:other", 2, ("a folder of transformers becomes a run directory",)),
        ("convert hf:{folder} other.pth", 2, ("a folder of transformers becomes a run directory",)),
        ("convert hf:{folder} other.safetensors", 2, ("a folder of transformers becomes a run directory",)),
        ("convert {folder} other", 2, ("one of the two must be an official .pth or hf:FOLDER", "write hf: before")),
        ("convert hf:{folder} other --preset deformable", 2, ("--preset and --baseline are about an official",)),
        ("convert hf:{folder} there", 2, ("error[C06]: there: exists already",)),
        ("convert absent hf:there", 2, ("error[C06]: there: exists already",)),
        ("convert absent hf:other", 4, ("absent: does not exist",)),
        ("convert hf:there other", 4, ("hf:there: expected a folder with config.json",)),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(
    line: str, code: int, parts: tuple[str, ...], loradetr: Command, folder: Path
) -> None:
    Path("there").mkdir()
    assert_told(loradetr(*line.format(folder=folder).split()), code, parts)
    assert [path.name for path in Path().iterdir()] == ["there"]


@pytest.mark.parametrize("line", ["convert hf:folder run", "convert run hf:folder"])
def test_without_transformers_one_line_tells_what_to_install(
    line: str, loradetr: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda _: None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert_told(loradetr(*line.split()), 2, ("needs the package transformers, which is not installed", "pip install"))
    assert list(Path().iterdir()) == []
