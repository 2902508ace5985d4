"""Own against theirs: with the same weights, our Deformable-DETR and that of ``transformers`` predict the same."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from lora_detr.checkpoints.huggingface.folder import read_folder, write_folder
from lora_detr.checkpoints.huggingface.keys import to_ours, to_theirs
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import OutputError
from lora_detr.models import TwoStageDetector
from lora_detr.models.backbones import ResNetConfig
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.recipe.deployment import DeploymentConfig
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
RESNET_18 = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2] * 4, "layer_type": "basic"}
RESNET_50 = {"embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]}
STAGES = ["stage2", "stage3", "stage4"]


def shake(model: nn.Module) -> None:
    """Move all weights, so that no head is zero, no two tensors are alike and no agreement is trivial."""
    generator = torch.Generator().manual_seed(3)
    tied = ("model.decoder.class_embed", "model.decoder.bbox_embed")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.startswith(tied) and tensor.is_floating_point():
                # A random network with frozen batch norm would let values grow from block to block.
                tensor += 0.02 * torch.rand(tensor.shape, generator=generator) + 5.0 * name.endswith("running_var")


def build_theirs(backbone: str) -> Any:
    torch.manual_seed(0)
    made: Any = transformers.ResNetConfig(**RESNET_18, out_features=STAGES)
    if backbone == "timm":
        made = transformers.TimmBackboneConfig(
            backbone="resnet18", out_indices=[2, 3, 4], use_pretrained_backbone=False
        )
    config = transformers.DeformableDetrConfig(**SIZES, backbone_config=made, id2label=dict(enumerate(CLASSES.names)))
    model = transformers.AutoModelForObjectDetection.from_config(config).eval()
    shake(model)
    return model


def read_theirs(folder: Path) -> Any:
    """Load a folder that must have all tensors of its model and no other."""
    model, report = transformers.AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def build_ours(*overrides: str) -> tuple[TwoStageDetector, DeploymentConfig]:
    torch.manual_seed(1)
    sizes = ("model.num_queries=12", "model.heads=4", "model.backbone.norm=frozen-batch", "model.levels=5")
    made = official_files.make("deformable", *sizes, *overrides, num_classes=3)
    return made.model.detector, made.config.deployment(CLASSES)


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


@pytest.fixture(scope="module", params=["resnet", "timm"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model of theirs, and the folder that it was saved into. Shared: do not write into it."""
    model = build_theirs(request.param)
    path = tmp_path_factory.mktemp("theirs") / request.param
    model.save_pretrained(path)
    return model, path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[TwoStageDetector, DeploymentConfig, Path]:
    """A detector of ours, what it is, and the folder that it was written into. Shared: do not write into it."""
    detector, deployment = build_ours()
    path = tmp_path_factory.mktemp("ours") / "folder"
    count = write_folder(path, detector.inference_state(), deployment, Path("run"))
    assert count == len(read_theirs(path).state_dict())
    return detector, deployment, path


def test_what_is_read_of_theirs_predicts_the_same(folder: tuple[Any, Path]) -> None:
    model, path = folder
    found = read_folder(str(path))
    assert found.tensors == len(model.state_dict())
    for padded in (False, True):
        assert_equal_predictions(model, found.model.detector, batch(padded))


def test_what_is_written_of_ours_predicts_the_same(
    written: tuple[TwoStageDetector, DeploymentConfig, Path],
) -> None:
    detector, _, path = written
    theirs = read_theirs(path)
    for padded in (False, True):
        assert_equal_predictions(theirs, detector, batch(padded))


def test_theirs_to_ours_and_back_keeps_every_bit(folder: tuple[Any, Path]) -> None:
    model, path = folder
    if model.config.backbone_config.model_type == "timm_backbone":
        pytest.skip("is written with a ResNet of transformers, so names of the backbone differ")
    ours = to_ours(model.state_dict())
    assert not any(name in model.state_dict() for name in ours)
    assert_same_tensors(to_theirs(ours), model.state_dict())


def test_ours_to_theirs_and_back_keeps_every_bit(written: tuple[TwoStageDetector, DeploymentConfig, Path]) -> None:
    detector, deployment, path = written
    found = read_folder(str(path))
    assert_same_tensors(found.model.detector.inference_state(), detector.inference_state())
    again = found.config.deployment(found.categories)
    assert again.categories == CLASSES
    assert again.model.model_copy(update={"backbone": deployment.model.backbone}) == deployment.model
    assert again.model.backbone.name == "resnet18"
    assert (again.transform, again.mean, again.std) == (deployment.transform, deployment.mean, deployment.std)
    assert found.notes == ("classes: 3, ids from loradetr_category_ids of the config",)


def test_a_folder_has_classes_and_can_be_read_by_others(
    written: tuple[TwoStageDetector, DeploymentConfig, Path],
) -> None:
    _, _, path = written
    config = json.loads((path / "config.json").read_text())
    assert config["id2label"] == {"0": "cell", "1": "plate", "2": "rest"}
    assert config["loradetr_category_ids"] == [7, 3, 12]
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {
        stat.S_IMODE((path / "config.json").stat().st_mode)
    }


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.evaluation.size=64", "data.evaluation.max_size=null"),
        ("data.evaluation.size=48", "data.evaluation.square=true"),
    ],
)
def test_their_processor_prepares_images_as_ours(overrides: tuple[str, ...], tmp_path: Path) -> None:
    from torchvision import tv_tensors

    from lora_detr.checkpoints.huggingface.system import processor_of

    _, deployment = build_ours(*overrides)
    deployment = deployment.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.4, 0.3)})
    processor_of(deployment).save_pretrained(tmp_path)
    image = torch.randint(256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    pixels = deployment.transform.build()(tv_tensors.Image(image), *nothing, torch.Generator())[0]
    prepared = Images(
        pixels[None], torch.zeros(1, *pixels.shape[1:], dtype=torch.bool), torch.tensor([pixels.shape[1:]])
    )
    expected = PixelNormalisation(deployment.mean, deployment.std)(prepared)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    found = processor(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_bottleneck_blocks_are_the_same_network() -> None:
    torch.manual_seed(0)
    theirs = transformers.ResNetBackbone(transformers.ResNetConfig(**RESNET_50, out_features=STAGES)).eval()
    shake(theirs)
    ours = ResNetConfig(name="resnet50", weights="none", norm="frozen-batch").build(load_weights=False)
    state = to_ours({f"model.backbone.model.{name}": tensor for name, tensor in theirs.state_dict().items()})
    named = {name.removeprefix("backbone."): t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    ours.load_state_dict(named)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for found, expected in zip(ours(pixels), theirs(pixels).feature_maps, strict=True):
            assert expected.std() > 0.01
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    detector, deployment = build_ours()
    with file_size_limit(1_000_000), pytest.raises(OutputError, match="folder: cannot be written"):
        write_folder(tmp_path / "folder", detector.inference_state(), deployment, Path("run"))
    assert list(tmp_path.iterdir()) == []
