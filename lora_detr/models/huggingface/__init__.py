"""Detectors of ``transformers`` behind the ``Detector`` protocol: their own layers, published for branches to read.

Nothing of a detector is copied or changed. Hooks keep what its decoder layers compute (``recording``), a view of a
layer's feed-forward network shows its two seams (``feed_forward``), and a file for each family has the rule by which
its heads turn a hidden state into classes and boxes. ``transformers`` itself is imported by whoever builds the model.
"""

from __future__ import annotations

from lora_detr.models.huggingface.config import HuggingFaceConfig
from lora_detr.models.huggingface.detector import HuggingFaceDetector
from lora_detr.models.huggingface.families import FAMILIES

__all__ = ["FAMILIES", "HuggingFaceConfig", "HuggingFaceDetector"]
