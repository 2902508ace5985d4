"""What of a model has a row for each class."""

from __future__ import annotations

import re

from torch import nn

from lora_detr.models.heads import start_rare

OF_CLASSES = re.compile(
    r"(^|\.)(class_embed|class_labels_classifier|enc_score_head|enc_out_class_embed|denoising_class_embed)"
    r"(\.\d+)?(\.(weight|bias))?$"
)
"""Names of linear layers with a row for each class, of the embedding that denoising queries start from, and of their
tensors."""


def restart_classes(model: nn.Module) -> None:
    """Re-initialise what has a row for each class, in place, so that every class has the prior probability of 0.01."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and OF_CLASSES.search(name):
            nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear):
                start_rare(module)
