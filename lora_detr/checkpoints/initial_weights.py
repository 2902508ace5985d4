"""Start a run from weights that exist: what fits is taken, the rest is re-initialised and listed, nothing silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lora_detr.branches import BranchedDetector
from lora_detr.checkpoints.checkpoint import load_checkpoint, resolve_checkpoint
from lora_detr.checkpoints.huggingface.classes import categories_of
from lora_detr.checkpoints.huggingface.stripped_folder import is_transformers
from lora_detr.checkpoints.official.classes import classes_of
from lora_detr.checkpoints.official.file import read_official
from lora_detr.checkpoints.opened import kind_of, stored_categories
from lora_detr.checkpoints.stripped_file import read_file
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import CheckpointError, counted
from lora_detr.models import AnyDetector
from lora_detr.models.huggingface.classes import OF_CLASSES
from lora_detr.models.huggingface.pretrained import read_pretrained, read_weights
from lora_detr.models.huggingface.versions import PREFIX
from lora_detr.recipe.run_config import RunConfig

BRANCH_CLASSES = "branches.classes."
# What has a row for every class.
CLASS_HEADS = (
    "detector.heads.classes.",
    "detector.query_groups.hybrid.classes.",
    "detector.query_groups.denoising.labels.",
    BRANCH_CLASSES,
)
BACKBONE = "detector.backbone."


@dataclass(frozen=True)
class InitialWeights:
    """Weights of another training.

    Attributes:
        source: what they are called in messages.
        tensors: by the names of ``BranchedDetector.state_dict()``.
        categories: what their class heads predict; None when the file does not say.
        unused: names of further tensors, which not even the model of the file has a place for.
    """

    source: str
    tensors: Mapping[str, Tensor]
    categories: CategoryMap | None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Initialised:
    """What was taken over, and what was not.

    Attributes:
        source: where from.
        taken: names of the tensors that were copied.
        reinitialised: name -> reason, of tensors of the model that are not taken from the file.
        unused: names of tensors that the model has no place for.
    """

    source: str
    taken: tuple[str, ...]
    reinitialised: Mapping[str, str]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return a summary line and one for each part that is re-initialised or not used."""
        total = len(self.taken) + len(self.reinitialised)
        lines = [f"{len(self.taken)} of {total} tensors from {self.source}"]
        groups: dict[tuple[str, str], int] = {}
        for name, reason in self.reinitialised.items():
            groups[_part(name), reason] = groups.get((_part(name), reason), 0) + 1
        lines += [
            f"re-initialised: {part} ({counted(count, 'tensor')}): {reason}" for (part, reason), count in groups.items()
        ]
        dropped: dict[str, int] = {}
        for name in self.unused:
            dropped[_part(name)] = dropped.get(_part(name), 0) + 1
        lines += [
            f"not used: {part} ({counted(count, 'tensor')}): the model has none" for part, count in dropped.items()
        ]
        return lines

    def to_json(self) -> dict[str, object]:
        """Return all names."""
        return {
            "source": self.source,
            "taken": list(self.taken),
            "reinitialised": dict(self.reinitialised),
            "unused": list(self.unused),
        }


def read_initial_weights(source: str | Path) -> InitialWeights:
    """Read the weights of a run (its best checkpoint), a checkpoint, a stripped file or an official ``.pth``.

    Averaged weights are taken where a checkpoint has them. ``hf:`` stands before a folder or name of ``transformers``.

    Raises:
        CheckpointError: there is nothing, or it cannot be read.
    """
    if is_transformers(Path(source)):
        published = read_pretrained(str(source).removeprefix(PREFIX))
        weights = read_weights(published.source)
        tensors = {f"detector.{name}": tensor for name, tensor in weights.tensors.items()}
        unused = tuple(f"detector.model.{name}" for name in weights.unused)
        return InitialWeights(str(source), tensors, categories_of(published)[0], unused)
    path = Path(source)
    kind = kind_of(path)
    if kind == "official":
        file = read_official(path)
        classes = classes_of(file) if file.num_classes else None
        known = classes.categories if classes is not None and classes.known else None
        return InitialWeights(str(path), file.weights, known)
    if kind == "file":
        raise CheckpointError(
            f"--weights {path}: expected a run, a checkpoint folder, a stripped .safetensors file or an official .pth",
            "give one of these",
        )
    if kind in ("stripped", "missing"):
        tensors, config = read_file(path)
        return InitialWeights(str(path), {f"detector.{name}": t for name, t in tensors.items()}, config.categories)
    folder = resolve_checkpoint(path)
    checkpoint = load_checkpoint(folder, with_optimizer=False)
    categories = stored_categories(checkpoint, folder)
    return InitialWeights(f"{path} ({folder.name})", checkpoint.ema or checkpoint.model, categories)


def build_from_weights(
    config: RunConfig, categories: CategoryMap, weights: InitialWeights
) -> tuple[BranchedDetector[AnyDetector], Initialised]:
    """Build the model of a run and copy into it what fits.

    A tensor fits if name and shape do. Class heads fit only if they predict the same classes in the same order: a head
    for other classes would start from answers that are wrong. Weights without a list of classes are taken by shape.
    A backbone that does not come with the weights is loaded as the configuration says.

    Args:
        config: of the run.
        categories: labels of the run.
        weights: to start from.

    Raises:
        CheckpointError: nothing fits, or the backbone's own weights are needed and cannot be had.
    """
    model = config.build_model(categories.num_classes, load_weights=False)
    report = _compare(model, categories, weights)
    if any(name.startswith(BACKBONE) for name in report.reinitialised):
        model = config.build_model(categories.num_classes, load_weights=True)
    if not report.taken:
        raise CheckpointError(
            f"--weights {weights.source}: none of its {len(weights.tensors)} tensors fits the model",
            "give the --preset it was trained with",
            code="K08",
        )
    model.load_state_dict({name: weights.tensors[name] for name in report.taken}, strict=False)
    if model.branches.classes is not None and not any(name.startswith(BRANCH_CLASSES) for name in report.taken):
        # As in a run that starts from nothing: copies of the primary's, which may have been taken just now.
        model.branches.classes.copy_from(model.detector.class_layers())
    return model, report


def _compare(model: BranchedDetector[AnyDetector], categories: CategoryMap, weights: InitialWeights) -> Initialised:
    known = model.state_dict(keep_vars=True)
    same_classes = weights.categories is None or weights.categories.names == categories.names
    taken, reinitialised = [], {}
    for name, tensor in _once(known).items():
        other = weights.tensors.get(name)
        if other is None:
            reinitialised[name] = "not in the file"
        elif (name.startswith(CLASS_HEADS) or OF_CLASSES.search(name)) and not same_classes:
            assert weights.categories is not None
            reinitialised[name] = (
                f"the file's classes are {_classes(weights.categories)}, the data's {_classes(categories)}"
            )
        elif other.shape != tensor.shape:
            reinitialised[name] = "other shapes in the file"
        else:
            taken.append(name)
    unused = tuple(name for name in weights.tensors if name not in known)
    return Initialised(weights.source, tuple(taken), reinitialised, unused + weights.unused)


def _once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without further names of those that have one already, as tied layers have."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first.values()}


def _classes(categories: CategoryMap) -> str:
    names = list(categories.names_by_id.values())
    count = f"{len(names)}" if len(names) == categories.num_classes else f"{categories.num_classes} with gaps"
    return f"{count} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _part(name: str) -> str:
    """Return the part of the model a tensor belongs to, such as ``detector.heads.classes``."""
    pieces = _without_leaf(name.split("."))
    return ".".join(pieces if OF_CLASSES.search(name) else pieces[:3])


def _without_leaf(pieces: Sequence[str]) -> list[str]:
    """Return the names of modules alone: no index of a layer, no ``weight`` or ``bias``."""
    kept = []
    for piece in pieces[:-1] or pieces:
        if piece.isdigit():
            break
        kept.append(piece)
    return kept
