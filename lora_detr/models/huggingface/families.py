"""The families that branches can be put on, by ``model_type`` of their config."""

from __future__ import annotations

from lora_detr.models.huggingface.conditional import Conditional
from lora_detr.models.huggingface.d_fine import DFine
from lora_detr.models.huggingface.dab import Dab
from lora_detr.models.huggingface.deformable import Deformable
from lora_detr.models.huggingface.family import Family
from lora_detr.models.huggingface.lw_detr import LwDetr
from lora_detr.models.huggingface.rt_detr import RTDetr

SOFTMAX = "its class loss is a softmax with a class for no object, which branches do not have yet"
REFUSED = {
    "detr": SOFTMAX,
    "table-transformer": SOFTMAX,
    "yolos": "it has no decoder to put branches on",
    "deimv2": "its feed-forward networks have three matrices (SwiGLU), and branches read two",
}
"""Detectors that are refused by name, and why."""

FAMILIES: dict[str, Family] = {
    "conditional_detr": Conditional(),
    "dab-detr": Dab(),
    "deformable_detr": Deformable(),
    "rt_detr": RTDetr(),
    "rt_detr_v2": RTDetr(),
    "d_fine": DFine(),
    "lw_detr": LwDetr(),
    "rf_detr": LwDetr(),
}
