"""What is stored beside the weights of a stripped detector, so that it needs no settings of a run.

Imports neither branches nor ``run_config``: the process that proves a stripped file loads this module.
"""

from __future__ import annotations

from lora_detr.models import AnyDetector, DetectorConfig
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.recipe.preparation import Preparation


class DeploymentConfig(Preparation):
    """Everything that is stored beside the weights of a stripped detector."""

    model: DetectorConfig
    """Architecture; the backbone names no weights, since the file brings them."""

    def build(self) -> AnyDetector:
        """Build the detector, its weights still random."""
        detector = self.model.build(len(self.category_ids), load_weights=False)
        detector.normalisation = PixelNormalisation(self.mean, self.std)
        return detector
