"""Own against theirs: with the same weights, our Deformable-DETR and that of ``transformers`` predict the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import transformers

from lora_detr.checkpoints.huggingface.deformable import read_folder, write_folder
from lora_detr.checkpoints.huggingface.keys import to_ours, to_theirs
from lora_detr.config.load import load_config
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import OutputError
from lora_detr.models import TwoStageDetector
from lora_detr.models.backbones import ResNetConfig
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Images, Prediction
from tests import official_files
from tests.limits import file_size_limit

CLASSES = CategoryMap((7, 3, 12), ("cell", "plate", "rest"))
SIZES = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_n_points": 2,
    "decoder_n_points": 2,
    "two_stage": True,
    "with_box_refine": True,
    "two_stage_num_proposals": 12,
}
RESNET_50 = {"embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]}
STAGES = ["stage2", "stage3", "stage4"]


@torch.no_grad()
def shake(model: nn.Module) -> None:
    """Move all weights so far that each of them matters: no head is zero, and no agreement is trivial."""
    generator = torch.Generator().manual_seed(3)
    tied = ("model.decoder.class_embed", "model.decoder.bbox_embed")
    for name, tensor in model.state_dict().items():
        if name.startswith(tied) or not tensor.is_floating_point():
            continue
        if bool((tensor == 1).all()):  # scales and variances, which stay positive
            tensor *= 0.5 + torch.rand(tensor.shape, generator=generator)
        else:
            spread = 0.3 if tensor.dim() == 1 else 0.5 * max(0.05, tensor.std().item())
            tensor += spread * torch.randn(tensor.shape, generator=generator)


def build_theirs() -> Any:
    """Return a model whose backbone is timm's, as in what the authors' weights were published as."""
    torch.manual_seed(0)
    backbone = transformers.TimmBackboneConfig(
        backbone="resnet18", out_indices=[2, 3, 4], use_pretrained_backbone=False
    )
    names = dict(enumerate(CLASSES.names))
    config = transformers.DeformableDetrConfig(**SIZES, backbone_config=backbone, id2label=names)
    model = transformers.AutoModelForObjectDetection.from_config(config).eval()
    shake(model)
    return model


def read_theirs(folder: Path) -> Any:
    """Load a folder that must have all tensors of its model and no other."""
    model, report = transformers.AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def config_of_ours(*overrides: str) -> RunConfig:
    sizes = ("model.num_queries=12", "model.heads=4", "model.backbone.norm=frozen-batch", "model.levels=5")
    # With a channel in each group, the norms of the neck would undo its biases.
    sizes = (*official_files.SIZES, *sizes, "model.hidden_dim=64")
    return load_config(RunConfig, preset="deformable", overrides=(*sizes, *overrides)).config


def batch(padded: bool) -> Images:
    height, width = (100, 140) if padded else (96, 96)
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))
    padding = torch.zeros(2, height, width, dtype=torch.bool)
    sizes = torch.tensor([[height, width]] * 2)
    if padded:
        padding[0, :, 104:] = padding[1, 68:] = True
        sizes = torch.tensor([[height, 104], [68, width]])
    return Images(pixels.masked_fill(padding[:, None], 0.0), padding, sizes)


@torch.no_grad()
def assert_equal_predictions(theirs: Any, ours: TwoStageDetector, images: Images) -> None:
    output = theirs(pixel_values=images.pixels, pixel_mask=(~images.padding).long())
    prediction: Prediction = ours(images).prediction
    pairs = [(output.logits, prediction.logits), (output.pred_boxes, prediction.boxes)]
    for found, expected in pairs:
        assert expected.std(dim=1).amax() > 0.01, "all queries predict the same"
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


@dataclass(frozen=True)
class Written:
    """A detector of ours, what it is, the folder that it was written into, and what ``transformers`` reads there."""

    detector: TwoStageDetector
    deployment: DeploymentConfig
    folder: Path
    theirs: Any


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Shared: do not write into its folder."""
    torch.manual_seed(1)
    config = config_of_ours()
    detector = config.build_model(3, load_weights=False).detector.eval()
    shake(detector)
    path = tmp_path_factory.mktemp("ours") / "folder"
    count = write_folder(path, detector.inference_state(), config.deployment(CLASSES), Path("run"))
    theirs = read_theirs(path)
    assert count == len(theirs.state_dict())
    return Written(detector, config.deployment(CLASSES), path, theirs)


def test_what_is_read_of_theirs_predicts_the_same(tmp_path: Path) -> None:
    model = build_theirs()
    model.save_pretrained(tmp_path)
    found = read_folder(str(tmp_path))
    assert found.tensors == len(model.state_dict())
    for padded in (False, True):
        assert_equal_predictions(model, found.model.detector, batch(padded))
    ours = found.model.detector.state_dict()
    assert not any(name in model.state_dict() for name in ours)
    assert_same_tensors(to_ours(model.state_dict()), ours)


@pytest.mark.parametrize("padded", [False, True])
def test_what_is_written_of_ours_predicts_the_same(padded: bool, written: Written) -> None:
    assert_equal_predictions(written.theirs, written.detector, batch(padded))


def test_there_and_back_keeps_every_bit(written: Written) -> None:
    found = read_folder(str(written.folder))
    assert_same_tensors(found.model.detector.inference_state(), written.detector.inference_state())
    theirs = written.theirs.state_dict()
    assert_same_tensors(to_theirs(to_ours(theirs)), theirs)
    again, before = found.config.deployment(found.categories), written.deployment
    assert again.categories == CLASSES
    assert again.model.backbone.name == "resnet18"
    assert again == before
    assert found.notes == ("classes: 3, ids from loradetr_category_ids of the config",)


def test_a_folder_has_classes_and_can_be_read_by_others(written: Written) -> None:
    config = json.loads((written.folder / "config.json").read_text())
    assert config["id2label"] == {"0": "cell", "1": "plate", "2": "rest"}
    assert config["loradetr_category_ids"] == [7, 3, 12]
    files = sorted(written.folder.iterdir())
    assert [file.name for file in files] == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert len({file.stat().st_mode for file in files}) == 1


def backbone_of_theirs(network: nn.Module) -> dict[str, Tensor]:
    named = {f"model.backbone.model.{name}": tensor for name, tensor in network.state_dict().items()}
    ours = {name.removeprefix("backbone."): tensor for name, tensor in to_ours(named).items()}
    return {name: tensor for name, tensor in ours.items() if not name.endswith("num_batches_tracked")}


def test_tensors_of_bottleneck_blocks_have_their_names() -> None:
    with torch.device("meta"):
        theirs = transformers.ResNetBackbone(transformers.ResNetConfig(**RESNET_50, out_features=STAGES))
        ours = ResNetConfig(name="resnet50", weights="none", norm="frozen-batch").build(load_weights=False)
    found, expected = backbone_of_theirs(theirs), ours.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.slow
def test_bottleneck_blocks_are_the_same_network() -> None:
    torch.manual_seed(0)
    theirs = transformers.ResNetBackbone(transformers.ResNetConfig(**RESNET_50, out_features=STAGES)).eval()
    shake(theirs)
    ours = ResNetConfig(name="resnet50", weights="none", norm="frozen-batch").build(load_weights=False)
    ours.load_state_dict(backbone_of_theirs(theirs))
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for found, expected in zip(ours(pixels), theirs(pixels).feature_maps, strict=True):
            assert expected.std() > 0.01
            # Random weights make values of any size, so rounding is judged by the largest.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_full_disk_leaves_no_folder(written: Written, tmp_path: Path) -> None:
    with file_size_limit(1_000_000), pytest.raises(OutputError, match="folder: cannot be written"):
        write_folder(tmp_path / "folder", written.detector.inference_state(), written.deployment, Path("run"))
    assert list(tmp_path.iterdir()) == []
