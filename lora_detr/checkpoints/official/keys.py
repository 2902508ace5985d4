"""Names of parameters in the authors' checkpoints, and ours, in both directions.

Our names are those of ``BranchedDetector.state_dict()``. There are two families of official files: the Deformable one
(Deformable-DETR, ++, MS-DETR, branches with networks of their own) and the Relation one; LoRA branches are named alike
in both. A file of the Deformable family holds each head twice, as ``class_embed.*`` and as
``transformer.decoder.class_embed.*`` (likewise boxes); both map to the same tensor of ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Literal

from lora_detr.checkpoints.renaming import Rules, rename, rules, swapped
from lora_detr.models.backbones.swin_names import to_timm, to_torchvision

Family = Literal["deformable", "relation"]

# Pairs (official, ours).
_BOTH = (
    ("transformer.encoder.layers.#.self_attn.*", "detector.encoder.layers.#.attention.attention.*"),
    ("transformer.encoder.layers.#.norm1.*", "detector.encoder.layers.#.attention.norm.*"),
    ("transformer.encoder.layers.#.norm2.*", "detector.encoder.layers.#.ffn.norm.*"),
    ("transformer.encoder.layers.#.linear@.*", "detector.encoder.layers.#.ffn.linear@.*"),
    ("transformer.decoder.layers.#.self_attn.*", "detector.decoder.layers.#.self_attention.attention.*"),
    ("transformer.decoder.layers.#.norm2.*", "detector.decoder.layers.#.self_attention.norm.*"),
    ("transformer.decoder.layers.#.cross_attn.*", "detector.decoder.layers.#.cross_attention.attention.*"),
    ("transformer.decoder.layers.#.norm1.*", "detector.decoder.layers.#.cross_attention.norm.*"),
    ("transformer.decoder.layers.#.norm3.*", "detector.decoder.layers.#.ffn.norm.*"),
    ("transformer.decoder.layers.#.linear@.*", "detector.decoder.layers.#.ffn.linear@.*"),
    ("transformer.enc_output.*", "detector.proposals.projection.*"),
    ("transformer.enc_output_norm.*", "detector.proposals.norm.*"),
)
_DEFORMABLE = (
    ("backbone.0.body.*", "detector.backbone.body.*"),
    ("input_proj.#.*", "detector.neck.projections.#.*"),
    ("transformer.level_embed", "detector.level_embedding"),
    ("transformer.pos_trans.*", "detector.proposals.query_projection.*"),
    ("transformer.pos_trans_norm.*", "detector.proposals.query_norm.*"),
    ("query_embed.*", "detector.proposals.content.*"),
    ("class_embed.#.*", "detector.heads.classes.#.*"),
    ("bbox_embed.#.*", "detector.heads.boxes.#.*"),
)
# The pair of heads that Relation-DETR gives its proposals is the last of ours; its number depends on the model.
_RELATION_PROPOSAL_HEADS = (
    ("transformer.encoder_class_head.*", "detector.heads.classes.{L}.*"),
    ("transformer.encoder_bbox_head.*", "detector.heads.boxes.{L}.*"),
)
_RELATION = (
    ("backbone.conv1.*", "detector.backbone.body.conv1.*"),
    ("backbone.bn1.*", "detector.backbone.body.bn1.*"),
    ("backbone.layer#.*", "detector.backbone.body.layer#.*"),
    ("neck.convs.#.*", "detector.neck.projections.#.*"),
    ("transformer.level_embeds", "detector.level_embedding"),
    ("transformer.encoder.memory_fusion.*", "detector.encoder.fusion.*"),
    ("transformer.tgt_embed.*", "detector.proposals.content.*"),
    ("transformer.decoder.class_head.#.*", "detector.heads.classes.#.*"),
    ("transformer.decoder.bbox_head.#.*", "detector.heads.boxes.#.*"),
    ("transformer.decoder.norm.*", "detector.heads.norm.*"),
    ("transformer.decoder.ref_point_head.*", "detector.decoder.reference_projection.*"),
    ("transformer.decoder.query_scale.*", "detector.decoder.query_scale.*"),
    ("transformer.decoder.position_relation_embedding.pos_proj.0.*", "detector.decoder.relation.projection.*"),
    ("transformer.hybrid_tgt_embed.*", "detector.query_groups.hybrid.content.*"),
    ("transformer.hybrid_class_head.*", "detector.query_groups.hybrid.classes.*"),
    ("transformer.hybrid_bbox_head.*", "detector.query_groups.hybrid.boxes.*"),
    ("denoising_generator.label_encoder.*", "detector.query_groups.denoising.labels.*"),
)
_SWIN, _BODY = "backbone.0.", "detector.backbone.body."
_ALIAS = re.compile(r"^transformer\.decoder\.((?:class|bbox)_embed\..*)$")
_OFFICIAL_LORA = re.compile(r"^transformer\.decoder\.layers\.(\d+)\.linear([12])_lora\.lora_layers\.(\d+)\.([AB])$")
_OUR_LORA = re.compile(r"^branches\.members\.(\d+)\.layers\.(\d+)\.([ab])([12])$")
# Networks of branches are numbered on from the primary one: linear1, linear2, norm3; then linear3, linear4, norm4.
_OFFICIAL_FFN = re.compile(r"^transformer\.decoder\.layers\.(\d+)\.(linear|norm)(\d+)\.(weight|bias)$")
_OUR_FFN = re.compile(r"^branches\.members\.(\d+)\.layers\.(\d+)\.(linear1|linear2|norm)\.(weight|bias)$")
_FIRST_LINEAR, _FIRST_NORM = 3, 4

_TO_OURS = rules((*_BOTH, *_DEFORMABLE, *_RELATION))
_TO_OFFICIAL: dict[Family, Rules] = {
    "deformable": rules(swapped((*_BOTH, *_DEFORMABLE))),
    "relation": rules(swapped((*_BOTH, *_RELATION))),
}


def to_ours(official: str, *, num_layers: int = 6) -> str | None:
    """Return our name of an official parameter of either family, or None for any other name.

    Args:
        official: name in the file.
        num_layers: L, decoder layers of the model; places the proposal heads of Relation-DETR.
    """
    if match := _OFFICIAL_LORA.match(official):
        layer, linear, branch, matrix = match.groups()
        return f"branches.members.{branch}.layers.{layer}.{matrix.lower()}{linear}"
    if match := _OFFICIAL_FFN.match(official):
        layer, kind, place, leaf = match.groups()
        if kind == "linear" and int(place) >= _FIRST_LINEAR:
            branch, linear = divmod(int(place) - _FIRST_LINEAR, 2)
            return f"branches.members.{branch}.layers.{layer}.linear{linear + 1}.{leaf}"
        if kind == "norm" and int(place) >= _FIRST_NORM:
            return f"branches.members.{int(place) - _FIRST_NORM}.layers.{layer}.norm.{leaf}"
    if match := _ALIAS.match(official):
        official = match.group(1)
    if official.startswith(_SWIN) and (timm := to_timm(official.removeprefix(_SWIN))) is not None:
        return _BODY + timm
    return rename(official, _TO_OURS) or rename(official, _proposal_heads(num_layers, "ours"))


def to_official(ours: str, *, family: Family = "deformable", num_layers: int = 6) -> str | None:
    """Return the official name of one of our parameters (heads without their alias), or None if there is none.

    Args:
        ours: name in ``BranchedDetector.state_dict()``.
        family: of the detector; decides most names outside encoder and decoder layers.
        num_layers: L, as for ``to_ours``.
    """
    if match := _OUR_LORA.match(ours):
        branch, layer, matrix, linear = match.groups()
        return f"transformer.decoder.layers.{layer}.linear{linear}_lora.lora_layers.{branch}.{matrix.upper()}"
    if match := _OUR_FFN.match(ours):
        branch, layer, part, leaf = match.groups()
        if part == "norm":
            return f"transformer.decoder.layers.{layer}.norm{int(branch) + _FIRST_NORM}.{leaf}"
        place = 2 * int(branch) + _FIRST_LINEAR + int(part == "linear2")
        return f"transformer.decoder.layers.{layer}.linear{place}.{leaf}"
    if family == "deformable":
        return rename(ours, _TO_OFFICIAL[family])
    if ours.startswith(_BODY) and (torchvision := to_torchvision(ours.removeprefix(_BODY))) is not None:
        return _SWIN + torchvision
    return rename(ours, _proposal_heads(num_layers, "official")) or rename(ours, _TO_OFFICIAL[family])


def aliases(official: Iterable[str]) -> dict[str, str]:
    """Return, for every head among official names, the second name under which a checkpoint holds it.

    Files of the Relation family hold nothing twice.
    """
    heads = [name for name in official if name.startswith(("class_embed.", "bbox_embed."))]
    return {name: f"transformer.decoder.{name}" for name in heads}


@functools.cache
def _proposal_heads(num_layers: int, to: Literal["ours", "official"]) -> Rules:
    pairs = [(official, ours.replace("{L}", str(num_layers))) for official, ours in _RELATION_PROPOSAL_HEADS]
    return rules(pairs if to == "ours" else swapped(pairs))
