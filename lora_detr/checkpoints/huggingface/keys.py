"""Tensors of ``DeformableDetrForObjectDetection``, two-stage, under their names and under ours.

Our names are those of ``TwoStageDetector.state_dict()``. Two things are more than a name. What projects queries, keys
and values of the decoder's self-attention are three layers there and one, packed, here. And there a head stands under
two names, ``class_embed.*`` and ``model.decoder.class_embed.*`` (so do boxes), which are one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lora_detr.checkpoints.renaming import rename, rules, swapped

_DEFORMABLE = (
    ("model.input_proj.#.*", "neck.projections.#.*"),
    ("model.level_embed", "level_embedding"),
    ("model.encoder.layers.#.self_attn.*", "encoder.layers.#.attention.attention.*"),
    ("model.encoder.layers.#.self_attn_layer_norm.*", "encoder.layers.#.attention.norm.*"),
    ("model.encoder.layers.#.mlp.fc@.*", "encoder.layers.#.ffn.linear@.*"),
    ("model.encoder.layers.#.final_layer_norm.*", "encoder.layers.#.ffn.norm.*"),
    ("model.decoder.layers.#.self_attn.o_proj.*", "decoder.layers.#.self_attention.attention.out_proj.*"),
    ("model.decoder.layers.#.self_attn_layer_norm.*", "decoder.layers.#.self_attention.norm.*"),
    ("model.decoder.layers.#.encoder_attn.*", "decoder.layers.#.cross_attention.attention.*"),
    ("model.decoder.layers.#.encoder_attn_layer_norm.*", "decoder.layers.#.cross_attention.norm.*"),
    ("model.decoder.layers.#.mlp.fc@.*", "decoder.layers.#.ffn.linear@.*"),
    ("model.decoder.layers.#.final_layer_norm.*", "decoder.layers.#.ffn.norm.*"),
    ("model.enc_output.*", "proposals.projection.*"),
    ("model.enc_output_norm.*", "proposals.norm.*"),
    ("model.pos_trans.*", "proposals.query_projection.*"),
    ("model.pos_trans_norm.*", "proposals.query_norm.*"),
    ("class_embed.#.*", "heads.classes.#.*"),
    ("bbox_embed.#.*", "heads.boxes.#.*"),
)
_BACKBONE = "model.backbone.model."
_BLOCK = _BACKBONE + "encoder.stages.{stage}.layers.#."
_RESNET = (
    (_BACKBONE + "embedder.embedder.convolution.*", "backbone.body.conv1.*"),
    (_BACKBONE + "embedder.embedder.normalization.*", "backbone.body.bn1.*"),
    *(
        (_BLOCK.format(stage=stage) + theirs, f"backbone.body.layer{stage + 1}.#.{ours}")
        for stage in range(4)
        for theirs, ours in (
            *((f"layer.{i}.convolution.*", f"conv{i + 1}.*") for i in range(3)),
            *((f"layer.{i}.normalization.*", f"bn{i + 1}.*") for i in range(3)),
            ("shortcut.convolution.*", "downsample.0.*"),
            ("shortcut.normalization.*", "downsample.1.*"),
        )
    ),
)
# A ResNet of timm has the names of torchvision's.
_TIMM = ((_BACKBONE + "*", "backbone.body.*"),)

_TO_OURS = rules((*_DEFORMABLE, *_RESNET, *_TIMM))
_TO_THEIRS = rules(swapped((*_DEFORMABLE, *_RESNET)))
_ALIAS = re.compile(r"^model\.decoder\.(class|bbox)_embed\.")
_PROJECTION = re.compile(r"^model\.decoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)$")
_PACKED = re.compile(r"^decoder\.layers\.(\d+)\.self_attention\.attention\.in_proj_(weight|bias)$")


def to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all tensors of a model of ``transformers`` under our names; one without such a name keeps its own."""
    named: dict[str, Tensor] = {}
    for theirs, tensor in tensors.items():
        if match := _PROJECTION.match(theirs):
            packed = torch.cat([tensors[theirs.replace("q_proj", f"{which}_proj")] for which in "qkv"])
            named["decoder.layers.{}.self_attention.attention.in_proj_{}".format(*match.groups())] = packed
        elif not _ALIAS.match(theirs) and not re.search(r"\.self_attn\.[kv]_proj\.", theirs):
            named[rename(theirs, _TO_OURS) or theirs] = tensor
    return named


def to_theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all tensors of a detector under the names of ``transformers``, with its ResNet, and heads under both."""
    named: dict[str, Tensor] = {}
    for ours, tensor in tensors.items():
        if match := _PACKED.match(ours):
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                named[f"model.decoder.layers.{match[1]}.self_attn.{which}_proj.{match[2]}"] = part
            continue
        theirs = rename(ours, _TO_THEIRS) or ours
        named[theirs] = tensor
        if theirs.startswith(("class_embed.", "bbox_embed.")):
            named[f"model.decoder.{theirs}"] = tensor
    return named
