"""The forward pass is one graph: nothing in it depends on the values of tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lora_detr.config.load import load_config
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Images, Target

PRESETS = ["ms-detr-tiny", "relation-tiny-lora3"]  # between them: both kinds of branches, every part of a decoder
SIZE = (64, 96)


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def build(preset: str) -> nn.Module:
    overrides = ["model.backbone.weights=none", "model.backbone.norm=frozen-batch"]
    overrides += ["model.encoder_layers=1", "model.decoder_layers=2", "model.num_queries=8"]
    torch.manual_seed(0)
    config = load_config(RunConfig, preset=preset, overrides=overrides).config
    return config.build_model(3, load_weights=False)


def images(dtype: torch.dtype = torch.uint8) -> Images:
    padding = torch.zeros(2, *SIZE, dtype=torch.bool)
    padding[1, :, 64:] = True
    pixels = torch.randn(2, 3, *SIZE) if dtype.is_floating_point else torch.randint(256, (2, 3, *SIZE), dtype=dtype)
    return Images(pixels, padding, torch.tensor([SIZE, (64, 64)]))


class _Tensors(nn.Module):
    """A detector with tensors in place of structures, as an exporter wants it."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: Tensor, padding: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        prediction = self.detector(Images(pixels, padding, sizes)).layers[-1].prediction
        return prediction.logits, prediction.boxes


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_training_pass_with_branches_is_traced_without_a_break(preset: str) -> None:
    model = build(preset).train()
    targets = [Target(torch.tensor([[0.5, 0.5, 0.4, 0.3]]), torch.tensor([1]), image_id, SIZE) for image_id in range(2)]
    traced = torch.compile(model, backend="eager", fullgraph=True)
    output, branches = traced(images(), targets)
    assert output.layers[-1].prediction.boxes.isfinite().all()
    assert len(branches.layers) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "dtype"),
    [("deformable-tiny", torch.uint8), ("relation-tiny", torch.float32)],
)
def test_inference_is_exported_whole_and_gives_the_same_bits(preset: str, dtype: torch.dtype) -> None:
    detector = _Tensors(build(preset).detector).eval()
    given = images(dtype)
    arguments = (given.pixels, given.padding, given.sizes)
    with torch.no_grad():
        exported = torch.export.export(detector, arguments, strict=True).module()
        expected, found = detector(*arguments), exported(*arguments)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
