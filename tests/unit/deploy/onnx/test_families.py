"""Detectors of ``transformers`` as ONNX files: each family predicts the same, at any size where its operators allow."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("transformers", reason="needs the extra hf")

from lora_detr.checkpoints.huggingface.stripped_folder import read_folder
from lora_detr.checkpoints.stripped_file import StrippedFile
from lora_detr.errors import ConfigError
from tests import huggingface_models
from tests.unit.deploy.onnx.test_export import assert_proven, exported, moved, noise

ALL = tuple(huggingface_models.CONFIGS)
QUICK = ("rt_detr", "deformable_detr", "conditional_detr")
IMAGES = noise((90, 120), (128, 128))


def opened(kind: str, folder: Path) -> StrippedFile:
    """Return a small detector that is read from a folder, with all weights moved."""
    read = read_folder(huggingface_models.save(kind, folder / "model"))
    moved(read.detector, 0.08)
    return read


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in ALL if kind != "rf_detr"]
)
def test_a_family_predicts_the_same_at_any_size_and_number(kind: str, tmp_path: Path) -> None:
    _, report = exported(opened(kind, tmp_path), tmp_path, IMAGES, is_dynamic=True)
    assert_proven(report, 4)


@pytest.mark.slow
def test_position_encodings_that_are_resized_are_for_a_fixed_size(tmp_path: Path) -> None:
    model = opened("rf_detr", tmp_path)
    _, report = exported(model, tmp_path, IMAGES)
    assert_proven(report, 2)
    with pytest.raises(ConfigError, match=r"an operator without an ONNX form: .*bicubic") as caught:
        exported(model, tmp_path / "dynamic", IMAGES, is_dynamic=True)
    assert "omit --dynamic" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in ("conditional_detr", "dab-detr")])
def test_gather_serves_a_family_that_samples(kind: str, tmp_path: Path) -> None:
    _, report = exported(opened(kind, tmp_path), tmp_path, IMAGES, sampler="gather")
    assert_proven(report, 2)
