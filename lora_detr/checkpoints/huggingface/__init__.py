"""The folders of ``transformers`` that hold a two-stage Deformable-DETR: as ours, and ours as such.

Their files are read and written by ``transformers`` alone, so names here are those of a loaded model, never those of
``model.safetensors``, where it keeps older ones.
"""
