"""A detector as a function of plain tensors: what an exported graph computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lora_detr.models import AnyDetector
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.ops.boxes import cxcywh_to_xyxy
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.structures import Images, Prediction


@dataclass(frozen=True)
class Form:
    """What goes into a graph and comes out of it.

    Attributes:
        raw: logits and boxes of every query, instead of the best detections.
        image_sizes: an input has the size of each image within the padded one.
        height: of the input; None for any.
        width: of the input; None for any.
    """

    raw: bool
    image_sizes: bool
    height: int | None
    width: int | None

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs."""
        sizes = ["image_sizes"] if self.image_sizes else []
        return ["images", *sizes, *([] if self.raw else ["orig_target_sizes"])]

    @property
    def outputs(self) -> list[Literal["labels", "boxes", "scores", "logits"]]:
        """Names of the outputs."""
        return ["logits", "boxes"] if self.raw else ["labels", "boxes", "scores"]


class ExportedGraph(nn.Module):
    """Normalises pixels, detects, and selects the best detections.

    Args:
        detector: without branches, in evaluation mode.
        config: of it.
        form: of the graph.
    """

    def __init__(self, detector: AnyDetector, config: DeploymentConfig, form: Form) -> None:
        super().__init__()
        assert isinstance(detector.normalisation, PixelNormalisation)
        self.detector = detector
        self.normalisation = detector.normalisation
        self.max_detections = config.max_detections
        self.form = form

    def forward(self, images: Tensor, *sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the form.

        Args:
            images: float [B, 3, H, W] in [0, 1], zero where padded.
            sizes: int64 [B, 2] each, (width, height): of the images within the padded ones, and as stored.
        """
        batch, _, height, width = images.shape
        padding = torch.zeros((batch, height, width), dtype=torch.bool)
        own = torch.zeros((batch, 2), dtype=torch.int64)  # read by no detector
        if self.form.image_sizes:
            columns, rows = torch.arange(width)[None, None], torch.arange(height)[None, :, None]
            right, bottom = sizes[0][:, 0, None, None], sizes[0][:, 1, None, None]
            padding = (columns >= right) | (rows >= bottom)
        # The arithmetic of ``PixelNormalisation``, which starts from bytes.
        pixels = ((images - self.normalisation.mean) / self.normalisation.std).masked_fill(padding[:, None], 0.0)
        prediction = self.detector(Images(pixels, padding, own)).prediction
        if self.form.raw:
            return prediction.logits, prediction.boxes
        return best_detections(prediction, sizes[-1], self.max_detections)


def best_detections(prediction: Prediction, stored: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels [B, n], boxes [B, n, 4] and scores [B, n], as ``postprocess`` does without suppression.

    Args:
        prediction: logits [B, Q, K] and boxes [B, Q, 4].
        stored: int64 [B, 2], (width, height) of the images as stored.
        limit: n, unless Q * K is less.
    """
    _, queries, classes = (int(size) for size in prediction.logits.shape)
    scores, entries = prediction.logits.sigmoid().flatten(1).topk(min(limit, queries * classes), dim=1)
    chosen = torch.div(entries, classes, rounding_mode="floor")
    boxes = cxcywh_to_xyxy(prediction.boxes) * torch.cat((stored, stored), 1)[:, None]
    return entries % classes, boxes.gather(1, chosen[..., None].expand(-1, -1, 4)), scores
