"""Settings of a fine-tuning from a detector of ``transformers``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lora_detr.config.presets import configs_root
from lora_detr.config.tree import paths
from lora_detr.data.transforms import TrainTransformConfig
from lora_detr.errors import ConfigError, nearest
from lora_detr.json_value import JSON
from lora_detr.models.huggingface import HuggingFaceConfig
from lora_detr.models.huggingface.pretrained import Pretrained, read_pretrained, read_weights
from lora_detr.models.huggingface.processor import SHORTER, Preparation
from lora_detr.models.huggingface.versions import PREFIX

# What batch norms have that train, beside their statistics; those that are frozen by design have not.
COUNT = ".num_batches_tracked"


@dataclass(frozen=True)
class FineTuning:
    """What a detector of ``transformers`` brings to a run.

    Attributes:
        recipe: file of settings for its family.
        settings: what it says itself.
        notes: choices that were made, a line each.
    """

    recipe: Path
    settings: dict[str, JSON]
    notes: tuple[str, ...]


def fine_tuning(name: str, weights: Path | None = None) -> FineTuning:
    """Return the settings for ``hf:DIR_OR_NAME``.

    Args:
        name: ``hf:DIR_OR_NAME``.
        weights: what the weights come from if not from there.

    Raises:
        CheckpointError: there is nothing, or it cannot be read.
        ConfigError: the package is missing, or branches cannot be put on this kind of detector.
    """
    if name == PREFIX:
        raise ConfigError(f"--baseline {PREFIX}: expected a folder, or a name of the hub, behind it", "add it")
    source = absolute(Path(name)).removeprefix(PREFIX)
    found = read_pretrained(source)
    model = found.model
    if weights is None and _has_untrained_norms(read_weights(source).tensors):
        # Frozen, they would leave activations of any size.
        model = model.model_copy(update={"batch_norm": "train"})
    return FineTuning(recipe_of(model), settings_for(found, model), found.notes)


def check_changes(before: HuggingFaceConfig, after: HuggingFaceConfig) -> None:
    """Check what a user changed in a detector's own config.

    Raises:
        ConfigError: C01, a key is unknown; or it has no effect.
    """
    known = set(paths(before.config))
    for key in paths(after.config):
        if key not in known:
            raise ConfigError(
                f"`model.config.{key}`: unknown key{nearest(key, known)}", "see config.json of the detector", code="C01"
            )
    key = "num_queries"
    if after.config.get(key) != before.config.get(key) and after.queries_key != f"model.config.{key}":
        raise ConfigError(
            f"`model.config.{key}` has no effect: this detector's queries are its best proposals",
            f"set {after.queries_key}",
        )


def recipe_of(model: HuggingFaceConfig) -> Path:
    """Return the file of settings for a family."""
    return configs_root() / "huggingface" / f"{model.family.recipe}.yaml"


def absolute(weights: Path) -> str:
    """Return where weights are, from whatever folder a run is resumed; a name on the hub stays as it is."""
    name = str(weights)
    if not name.startswith(PREFIX):
        return str(weights.resolve())
    folder = Path(name.removeprefix(PREFIX))
    return f"{PREFIX}{folder.resolve()}" if folder.is_dir() else name


def _has_untrained_norms(weights: Mapping[str, Tensor]) -> bool:
    """Return whether a batch norm has the statistics that it was made with."""
    norms = [name.removesuffix(COUNT) for name in weights if name.endswith(COUNT)]
    return any(
        not bool(weights[f"{name}.running_mean"].any()) and bool((weights[f"{name}.running_var"] == 1).all())
        for name in norms
    )


def settings_for(found: Pretrained, model: HuggingFaceConfig) -> dict[str, JSON]:
    """Return what a detector itself says of a run, on top of the recipe; ``model`` stands for its own settings."""
    ready = found.preparation
    return {
        "model": model.model_dump(mode="json"),
        "data": {
            "size_divisor": ready.divisor,
            "train": _augmentation(ready),
            "evaluation": {"size": ready.size, "max_size": ready.max_size, "square": ready.square},
        },
        "weights": f"{PREFIX}{found.source}",
    }


def _augmentation(ready: Preparation) -> dict[str, JSON]:
    """Return DETR's augmentation, its sizes in proportion to those that the detector is used with."""
    default = TrainTransformConfig()

    def scaled(side: int) -> int:
        return max(ready.divisor, round(side * ready.size / SHORTER / ready.divisor) * ready.divisor)

    scales = [ready.size] if ready.square else sorted({scaled(side) for side in default.scales})
    return {
        "scales": list[JSON](scales),
        "max_size": ready.max_size,
        "square": ready.square,
        "crop_scales": [scaled(side) for side in default.crop_scales],
        "crop_range": [scaled(side) for side in default.crop_range],
    }
