"""The folders of ``transformers``: what ``strip`` writes, and those that hold our own two-stage Deformable-DETR.

Weights are read and written by ``transformers`` alone, so names here are those of a loaded model, never those of
``model.safetensors``, where it keeps older ones.
"""
