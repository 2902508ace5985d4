"""The families that branches can be put on, by ``model_type`` of their config."""

from __future__ import annotations

from lora_detr.models.huggingface.conditional import Conditional
from lora_detr.models.huggingface.d_fine import DFine
from lora_detr.models.huggingface.dab import Dab
from lora_detr.models.huggingface.deformable import Deformable
from lora_detr.models.huggingface.family import Family
from lora_detr.models.huggingface.lw_detr import LwDetr
from lora_detr.models.huggingface.rt_detr import RTDetr

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
