"""Names of parameters in the authors' Deformable-family checkpoints, and ours, in both directions.

Our names are those of ``BranchedDetector.state_dict()``. An official file holds each head twice, as ``class_embed.*``
and as ``transformer.decoder.class_embed.*`` (likewise boxes); both map to the same tensor of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Pairs of equal length: (official, ours). ``#`` stands for a number, ``*`` for the rest of the name.
_PAIRS = (
    ("backbone.0.body.*", "detector.backbone.body.*"),
    ("input_proj.#.*", "detector.neck.projections.#.*"),
    ("transformer.level_embed", "detector.level_embedding"),
    ("transformer.encoder.layers.#.self_attn.*", "detector.encoder.layers.#.attention.attention.*"),
    ("transformer.encoder.layers.#.norm1.*", "detector.encoder.layers.#.attention.norm.*"),
    ("transformer.encoder.layers.#.norm2.*", "detector.encoder.layers.#.ffn.norm.*"),
    ("transformer.encoder.layers.#.linear#.*", "detector.encoder.layers.#.ffn.linear#.*"),
    ("transformer.decoder.layers.#.self_attn.*", "detector.decoder.layers.#.self_attention.attention.*"),
    ("transformer.decoder.layers.#.norm2.*", "detector.decoder.layers.#.self_attention.norm.*"),
    ("transformer.decoder.layers.#.cross_attn.*", "detector.decoder.layers.#.cross_attention.attention.*"),
    ("transformer.decoder.layers.#.norm1.*", "detector.decoder.layers.#.cross_attention.norm.*"),
    ("transformer.decoder.layers.#.norm3.*", "detector.decoder.layers.#.ffn.norm.*"),
    ("transformer.decoder.layers.#.linear#.*", "detector.decoder.layers.#.ffn.linear#.*"),
    ("transformer.enc_output.*", "detector.proposals.projection.*"),
    ("transformer.enc_output_norm.*", "detector.proposals.norm.*"),
    ("transformer.pos_trans.*", "detector.proposals.query_projection.*"),
    ("transformer.pos_trans_norm.*", "detector.proposals.query_norm.*"),
    ("query_embed.*", "detector.proposals.content.*"),
    ("class_embed.#.*", "detector.heads.classes.#.*"),
    ("bbox_embed.#.*", "detector.heads.boxes.#.*"),
)
_ALIAS = re.compile(r"^transformer\.decoder\.((?:class|bbox)_embed\..*)$")
_OFFICIAL_LORA = re.compile(r"^transformer\.decoder\.layers\.(\d+)\.linear([12])_lora\.lora_layers\.(\d+)\.([AB])$")
_OUR_LORA = re.compile(r"^branches\.members\.(\d+)\.layers\.(\d+)\.([ab])([12])$")


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("^" + re.escape(text).replace(r"\#", r"(\d+)").replace(r"\*", "(.*)") + "$")


def _template(text: str) -> str:
    pieces = re.split(r"[#*]", text)
    return "".join(piece + (f"\\g<{i + 1}>" if i + 1 < len(pieces) else "") for i, piece in enumerate(pieces))


_TO_OURS = tuple((_pattern(official), _template(ours)) for official, ours in _PAIRS)
_TO_OFFICIAL = tuple((_pattern(ours), _template(official)) for official, ours in _PAIRS)


def to_ours(official: str) -> str | None:
    """Return our name of an official parameter, or None for a name that is not of the family."""
    if match := _OFFICIAL_LORA.match(official):
        layer, linear, branch, matrix = match.groups()
        return f"branches.members.{branch}.layers.{layer}.{matrix.lower()}{linear}"
    if match := _ALIAS.match(official):
        official = match.group(1)
    return _rename(official, _TO_OURS)


def to_official(ours: str) -> str | None:
    """Return the official name of one of our parameters (heads without their alias), or None."""
    if match := _OUR_LORA.match(ours):
        branch, layer, matrix, linear = match.groups()
        return f"transformer.decoder.layers.{layer}.linear{linear}_lora.lora_layers.{branch}.{matrix.upper()}"
    return _rename(ours, _TO_OFFICIAL)


def aliases(official: Iterable[str]) -> dict[str, str]:
    """Return, for every head among official names, the second name under which a checkpoint holds it."""
    heads = [name for name in official if name.startswith(("class_embed.", "bbox_embed."))]
    return {name: f"transformer.decoder.{name}" for name in heads}


def _rename(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        if match := pattern.match(name):
            return match.expand(template)
    return None
