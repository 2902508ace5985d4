"""What is stored beside the weights of a detector wherever they go, apart from its architecture.

Imports no module of detectors: an exported file is run where none can be built.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from lora_detr.config.base import Strict
from lora_detr.config.statistics import Mean, Std
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.images import MAX_PIXELS, MaxPixels
from lora_detr.data.transforms import EvalTransformConfig, Transform

Suppression = Literal["per-class", "any-class"]
"""Which entries a better one may suppress: those of its class (Deformable family), or of any (Relation family)."""

# A batch is padded with up to one less on each axis.
SizeDivisor = Annotated[int, Field(ge=1, le=1024)]
MaxDetections = Annotated[int, Field(ge=1, le=1_000_000)]
Score = Annotated[float, Field(ge=0, le=1)]
MinScore: TypeAlias = Score | None


def describe_suppression(iou: float | None) -> str:
    """Return in words whether duplicates are suppressed, and above which IoU."""
    return "no suppression" if iou is None else f"suppression at IoU {iou:g}"


class OperatingPoint(Strict):
    """How a detector is best used: chosen on a validation split, used by ``predict`` unless told otherwise."""

    score: Score
    """Score of best F1 over all classes together."""
    class_scores: tuple[Score | None, ...] = Field(min_length=1)
    """The same for each label; null where it has too few objects, so that ``score`` counts."""
    nms_iou: Score | None
    """IoU above which a better detection suppresses another; null where suppression does not pay."""
    f1: Score
    """F1 on that split with these settings, at IoU 0.5."""

    @property
    def scores(self) -> list[float]:
        """Score that a detection of each label must reach."""
        return [self.score if own is None else own for own in self.class_scores]


class Preparation(Strict):
    """How images become input and scores become detections, and what the classes are."""

    transform: EvalTransformConfig
    """Preparation of images."""
    size_divisor: SizeDivisor
    """Padded sizes are rounded up to a multiple of it."""
    max_detections: MaxDetections
    """Detections kept of each image."""
    min_score: MinScore = None
    """What a detection must score more than; null for no limit."""
    suppression: Suppression = "per-class"
    """Which detections a better one suppresses where suppression is asked for."""
    max_pixels: MaxPixels = MAX_PIXELS
    """Larger images are refused before they are decoded."""
    operating_point: OperatingPoint | None = None
    """How the detector is best used; null where no evaluation has chosen one."""
    mean: Mean
    """Mean of the pixels."""
    std: Std
    """Standard deviation of the pixels."""
    category_ids: tuple[int, ...] = Field(min_length=1)
    """Original category id of each label."""
    category_names: tuple[str, ...]
    """Name of each label."""

    @model_validator(mode="after")
    def _check_categories(self) -> Self:
        CategoryMap(self.category_ids, self.category_names)
        point = self.operating_point
        if point is not None and len(point.class_scores) != len(self.category_ids):
            raise ValueError(f"{len(point.class_scores)} class scores for {len(self.category_ids)} classes")
        return self

    @property
    def categories(self) -> CategoryMap:
        """Labels with their original ids and names."""
        return CategoryMap(self.category_ids, self.category_names)

    def build_transform(self) -> Transform:
        """Return what prepares an image."""
        return self.transform.build()
