"""LoRA-DETR: detection transformers trained with diverse one-to-many branches that are dropped at inference."""

__version__ = "0.1.0"
