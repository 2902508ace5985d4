"""What is stored beside the weights of a stripped detector, so that it needs no settings of a run.

Imports neither branches nor ``run_config``: the process that proves a stripped file loads this module.
"""

from __future__ import annotations

from typing import Literal

from lora_detr.config.base import Strict
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.models import DetectorConfig, TwoStageDetector
from lora_detr.models.pixels import PixelNormalisation

Suppression = Literal["per-class", "any-class"]
"""Which entries a better one may suppress: those of its class (Deformable family), or of any (Relation family)."""


class DeploymentConfig(Strict):
    """Everything that is stored beside the weights of a stripped detector."""

    model: DetectorConfig
    """Architecture; the backbone names no weights, since the file brings them."""
    transform: EvalTransformConfig
    """Preparation of images."""
    size_divisor: int
    """Padded sizes are rounded up to a multiple of it."""
    max_detections: int
    """Detections kept of each image."""
    min_score: float | None = None
    """What a detection must score more than; null for no limit."""
    suppression: Suppression = "per-class"
    """Which detections a better one suppresses where suppression is asked for."""
    mean: tuple[float, ...]
    """Mean of the pixels."""
    std: tuple[float, ...]
    """Standard deviation of the pixels."""
    category_ids: tuple[int, ...]
    """Original category id of each label."""
    category_names: tuple[str, ...]
    """Name of each label."""

    @property
    def categories(self) -> CategoryMap:
        """Labels with their original ids and names."""
        return CategoryMap(self.category_ids, self.category_names)

    def build(self) -> TwoStageDetector:
        """Build the detector, its weights still random."""
        detector = self.model.build(len(self.category_ids), load_weights=False)
        detector.normalisation = PixelNormalisation(self.mean, self.std)
        return detector
