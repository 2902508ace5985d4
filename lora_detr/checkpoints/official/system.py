"""What system an official file is of: a preset and what differs from it, told by names and shapes alone."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_detr.branches import LoRAConfig
from lora_detr.checkpoints.official.classes import COCO_MAP, OfficialClasses, classes_of
from lora_detr.checkpoints.official.file import OfficialFile, window_of
from lora_detr.config.dump import as_tree
from lora_detr.config.load import load_config
from lora_detr.config.presets import list_presets, short_name
from lora_detr.config.tree import flatten
from lora_detr.errors import CheckpointError, ConfigError, printable
from lora_detr.json_value import JSON
from lora_detr.models import DetectorConfig, RelationDetrConfig
from lora_detr.models.backbones import BackboneConfig
from lora_detr.models.backbones.weights import NONE
from lora_detr.recipe.branch_counts import branch_ks
from lora_detr.recipe.run_config import RunConfig

logger = logging.getLogger("lora_detr")

SUPPORTED = (
    "supported are two-stage Deformable-DETR, Deformable-DETR++, MS-DETR and Relation-DETR, with LoRA branches or "
    "branches that have networks of their own"
)
SHOWN = 5
BACKBONE = "detector.backbone."

# Whether blocks have three convolutions, and the number of blocks in each stage.
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
# Width of the first stage, number of blocks in each, and side of the windows; names are timm's.
SWINS: dict[tuple[int, tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), 7): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), 7): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), 7): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), 12): "swin_base_patch4_window12_384",
    (192, (2, 2, 18, 2), 7): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), 12): "swin_large_patch4_window12_384",
}

_LORA = r"transformer\.decoder\.layers\.\d+\.linear1_lora\.lora_layers\.(\d+)\.A"
_OWN_NETWORK = r"transformer\.decoder\.layers\.\d+\.norm([4-9]|\d\d+)\.weight"


@dataclass(frozen=True)
class OfficialSystem:
    """The configuration that a file fits.

    Attributes:
        preset: its base.
        overrides: ``key=value`` of what the file has otherwise.
        config: both together.
        classes: labels of the file.
        notes: what was chosen between, or is not in the file, a line each.
    """

    preset: str
    overrides: tuple[str, ...]
    config: RunConfig
    classes: OfficialClasses
    notes: tuple[str, ...]

    def describe(self) -> str:
        """Return detector, sizes and branches on one line."""
        model = self.config.model
        branches = [
            f"{branch.kind}{f' rank {branch.rank}' if isinstance(branch, LoRAConfig) else ''} k={branch.matcher.k}"
            for branch in self.config.branches
        ]
        return f"{describe_detector(model)}, branches: {', '.join(branches) or 'none'} (preset {self.preset})"


def describe_detector(model: DetectorConfig) -> str:
    """Return detector and sizes on one line."""
    layers = f"{model.encoder_layers} + {model.decoder_layers} layers"
    return f"{model.kind}, {model.backbone.name}, {layers}, {model.num_queries} queries"


def recognise(
    file: OfficialFile, *, preset: str | None = None, baseline: str | None = None, data: Path | None = None
) -> OfficialSystem:
    """Return the system of a file.

    Args:
        file: official checkpoint.
        preset: what else could be is taken from it: backbone, attention heads, kind of branches.
        baseline: name of the plain preset whose system is meant.
        data: names the classes of a file that does not.

    Raises:
        CheckpointError: names or shapes are of no supported system; the first unrecognised names are listed.
        ConfigError: the preset does not exist, or is of another family of systems.
    """
    unrecognised = file.unknown
    if unrecognised or "transformer.enc_output.weight" not in file.tensors:
        plain = "" if "transformer.enc_output.weight" in file.tensors else "no transformer.enc_output (two-stage); "
        listed = ", ".join(map(printable, unrecognised[:SHOWN])) + (", ..." if len(unrecognised) > SHOWN else "")
        raise CheckpointError(
            f"{file.path}: not recognised: {plain}"
            f"{len(unrecognised)} of {len(file.weights)} tensor names are not recognised"
            + (f": {listed}" if unrecognised else ""),
            SUPPORTED,
            code="K08",
        )
    base_name = preset or _preset(file, baseline or _baseline(file))
    base = load_config(RunConfig, preset=base_name).config
    if isinstance(base.model, RelationDetrConfig) != (file.family == "relation"):
        raise ConfigError(
            f"preset {base_name} is a '{base.model.kind}', but {file.path} is of the {file.family} family",
            "leave it out, or give a preset of that family",
        )
    classes = classes_of(file, data)
    wanted = {**_settings(file, base), **_backbone(file, base, preset is not None), "branches": _branches(file, base)}
    wanted["data.num_classes"] = "coco91" if classes.categories == COCO_MAP else "auto"
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in _differing(wanted, base).items())
    try:
        config = load_config(RunConfig, preset=base_name, overrides=overrides).config.resolved()
    except ConfigError as error:
        raise CheckpointError(
            f"{file.path}: sizes that make no model: {error.message}", SUPPORTED, code="K08"
        ) from error
    notes = (f"classes: {classes.described}", *_notes(file, preset is not None or baseline is not None, config))
    return OfficialSystem(base_name, overrides, config, classes, notes)


def announce(file: OfficialFile, system: OfficialSystem) -> None:
    """Write into the log what a file was taken for, and what was chosen and not read."""
    logger.info("%s: %s", file.path, system.describe())
    for note in system.notes:
        logger.info("%s", note)
    if file.rest:
        logger.info("not read: %s", ", ".join(file.rest))


def _baseline(file: OfficialFile) -> str:
    """Return the plain preset of a file's system; a single network beside each FFN is taken for MS-DETR's."""
    if file.family == "relation":
        return "relation-swin-l" if _is_swin(file) else "relation"
    plus_plus = "-pp" if "query_embed.weight" in file.tensors else ""
    return ("ms-detr" if len(_numbers(file, _OWN_NETWORK)) == 1 else "deformable") + plus_plus


def _preset(file: OfficialFile, baseline: str) -> str:
    """Return the preset of a system with branches of the file's kind, with as many as the file has if there is one."""
    kind, count = _kind(file), _count(file)
    stems = {preset.path.stem for preset in list_presets()}
    names = [f"{baseline}-{kind}{number}" for number in (count, 3)] if count else []
    return next((name for name in names if name in stems), baseline)


def _settings(file: OfficialFile, base: RunConfig) -> dict[str, JSON]:
    """Return sizes and parts by key path."""
    levels = _size(file, "transformer.level_embeds" if file.family == "relation" else "transformer.level_embed")
    relation = "transformer.decoder.position_relation_embedding.pos_proj.0.weight"
    heads = _size(file, relation) if file.family == "relation" else base.model.heads
    found: dict[str, JSON] = {
        "model.hidden_dim": _size(file, "transformer.enc_output.weight"),
        "model.ffn_dim": _size(file, "transformer.encoder.layers.0.linear1.weight"),
        "model.encoder_layers": len(_numbers(file, r"transformer\.encoder\.layers\.(\d+)\..*")),
        "model.decoder_layers": file.num_layers,
        "model.levels": levels,
        "model.heads": heads,
        "model.points": _size(file, "transformer.encoder.layers.0.self_attn.attention_weights.bias")
        // max(1, heads * levels),
    }
    if file.family == "relation":
        hybrid, denoising = "transformer.hybrid_tgt_embed.weight", "denoising_generator.label_encoder.weight"
        found["model.num_queries"] = _size(file, "transformer.tgt_embed.weight")
        if hybrid in file.tensors:
            found["model.hybrid.num_queries"] = _size(file, hybrid)
        else:
            found["model.hybrid"] = None
        if denoising not in file.tensors:
            found["model.denoising"] = None
        return found
    plus_plus = "query_embed.weight" in file.tensors
    if plus_plus:
        found["model.num_queries"] = _size(file, "query_embed.weight")
    return found | {"model.mixed_selection": plus_plus, "model.look_forward_twice": plus_plus}


def _branches(file: OfficialFile, base: RunConfig) -> JSON:
    """Return the branch list; k are the preset's where it has as many branches, else those of the paper."""
    kind, count = _kind(file), _count(file)
    if kind == "ffn" and base.model.kind == "ms-detr":
        kind = "cross-ffn"
    own: list[dict[str, JSON]] = [as_tree(branch) for branch in base.branches if branch.kind == kind]
    if len(own) != count:
        template: dict[str, JSON] = own[0] if own else {"kind": kind}
        matcher = template.get("matcher", {"kind": "topk"})
        assert isinstance(matcher, dict)
        own = [{**template, "matcher": {**matcher, "k": k}} for k in branch_ks(count, base.model.kind, kind)]
    if kind == "lora":
        name = "transformer.decoder.layers.0.linear1_lora.lora_layers.{}.A"
        own = [{**branch, "rank": _size(file, name.format(i), 1)} for i, branch in enumerate(own)]
    return list[JSON](own)


def _backbone(file: OfficialFile, base: RunConfig, chosen: bool) -> dict[str, JSON]:
    """Return the name of the backbone, or nothing where a preset that was chosen knows better than the tables here."""
    own = base.model.backbone
    if _is_swin(file):
        stages = tuple(len(_numbers(file, rf"backbone\.0\.features\.{i}\.(\d+)\..*")) for i in (1, 3, 5, 7))
        rows = _size(file, "backbone.0.features.1.0.attn.relative_position_bias_table")
        width, window = _size(file, "backbone.0.features.0.0.weight"), window_of(rows)
        kind, name = "timm", SWINS.get((width, stages, window))
        found = f"a Swin of width {width} with {stages} blocks and windows of {window}"
    else:
        prefix = "backbone." if file.family == "relation" else "backbone.0.body."
        pattern = re.escape(prefix) + r"layer{}\.(\d+)\..*"
        stages = tuple(len(_numbers(file, pattern.format(i))) for i in (1, 2, 3, 4))
        kind, name = "resnet", RESNETS.get((f"{prefix}layer1.0.conv3.weight" in file.tensors, stages))
        found = f"not a ResNet, with {stages} blocks"
    if name is not None and own.kind == kind:
        # A preset's name of timm also says which weights it was pretrained with, thus how pixels are normalised.
        return {} if name == own.name.partition(".")[0] else {"model.backbone.name": name}
    if chosen:
        return {}
    fitting = _presets_with_backbone(file)
    raise CheckpointError(
        f"{file.path}: backbone not recognised: {found}"
        + (f"; it is that of preset {', '.join(fitting[:SHOWN])}" if fitting else "; no preset has it"),
        "give the preset it was trained with, and use what that makes: "
        f"loradetr convert {file.path} OUTPUT --preset {fitting[0] if fitting else 'PRESET.yaml'}",
        code="K08",
    )


def _presets_with_backbone(file: OfficialFile) -> list[str]:
    """Return presets of the file's family whose backbone has exactly its tensors, most similar first.

    Those of a ResNet or Swin are left out: such a backbone has been recognised without.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in file.weights.items() if name.startswith(BACKBONE)}
    fits: dict[BackboneConfig, bool] = {}
    found: list[tuple[tuple[bool, ...], str]] = []
    presets = list_presets()
    for preset in presets:
        config = load_config(RunConfig, preset=preset.name).config
        own = config.model.backbone
        known = own.kind == "resnet" or own.name.partition(".")[0] in SWINS.values()
        if known or isinstance(config.model, RelationDetrConfig) != (file.family == "relation"):
            continue
        # What weights it started from decides only whether its norms are frozen.
        backbones = [own.model_copy(update={"weights": NONE, "norm": norm}) for norm in ("frozen-batch", "group")]
        for backbone in backbones:
            if backbone not in fits:
                fits[backbone] = _shapes(backbone) == wanted
        if any(fits[backbone] for backbone in backbones):
            kinds = [branch.kind for branch in config.branches]
            plus_plus = getattr(config.model, "mixed_selection", False)
            differs = (
                file.family == "deformable" and plus_plus != ("query_embed.weight" in file.tensors),
                len(kinds) != _count(file),
                any(not kind.endswith(_kind(file)) for kind in kinds),
            )
            found.append((differs, short_name(preset, presets)))
    return [name for _, name in sorted(found)]


def _shapes(backbone: BackboneConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        tensors = backbone.build(load_weights=False).state_dict()
    return {f"{BACKBONE}{name}": tuple(tensor.shape) for name, tensor in tensors.items()}


def _notes(file: OfficialFile, chosen: bool, config: RunConfig) -> list[str]:
    notes = []
    if not chosen and _kind(file) == "ffn" and _count(file) == 1:
        notes.append(
            "one network beside each FFN: taken for MS-DETR; files of Deformable-DETR with one such branch look alike: "
            "convert those with --preset deformable-ffn3, train from them with --preset deformable-ffn3 --aux 1"
        )
    unsaid = ["k of branches"] if config.branches else []
    if file.family == "deformable":
        unsaid.append(f"{config.model.heads} attention heads")
        if "query_embed.weight" not in file.tensors:
            unsaid.append(f"{config.model.num_queries} queries")
    if unsaid:
        notes.append(f"not in such a file, taken from the preset: {', '.join(unsaid)}")
    return notes


def _is_swin(file: OfficialFile) -> bool:
    return any(name.startswith("backbone.0.features.") for name in file.tensors)


def _kind(file: OfficialFile) -> str:
    return "ffn" if _numbers(file, _OWN_NETWORK) else "lora"


def _count(file: OfficialFile) -> int:
    return len(_numbers(file, _OWN_NETWORK) or _numbers(file, _LORA))


def _numbers(file: OfficialFile, pattern: str) -> set[int]:
    """Return the numbers that stand in a group of names."""
    found = map(re.compile(pattern).fullmatch, file.tensors)
    return {int(match[1]) for match in found if match}


def _size(file: OfficialFile, name: str, axis: int = 0) -> int:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.dim() <= axis:
        raise CheckpointError(f"{file.path}: not recognised: it has no '{name}' of known shape", SUPPORTED, code="K08")
    return tensor.shape[axis]


def _differing(wanted: Mapping[str, JSON], base: RunConfig) -> dict[str, JSON]:
    """Return those of the settings that the preset has otherwise."""
    tree = as_tree(base)
    leaves = {**dict(flatten(tree)), "branches": tree["branches"]}
    return {key: value for key, value in wanted.items() if key not in leaves or leaves[key] != value}
