"""Read and write the authors' checkpoint files: tensors by official name, and nothing in them is executed."""

from __future__ import annotations

import argparse
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_detr.atomic_files import write_file
from lora_detr.checkpoints.official.keys import Family, aliases, to_official, to_ours
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import CheckpointError
from lora_detr.models.backbones.swin_names import relative_position_index
from lora_detr.regular_files import check_regular
from lora_detr.tensor_files import (
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    describe_differences,
    first_non_finite,
    list_differences,
)

CATEGORIES = "categories"
"""Key beside the model: ids and names of labels that official code has no place for."""
CLASSES = "_classes_"
"""A buffer of the Relation family: names of the classes, letter by letter."""

POSITION_INDEX, BIAS_TABLE = ".relative_position_index", ".relative_position_bias_table"
"""Ends of names: what an official Swin stores and ours computes, and the table that it points into."""

# Plain data that official files hold beside the weights: their command line, and numbers of numpy under both names
# that its module has had.
_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN_DATA: list[Any] = [
    argparse.Namespace,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?")},
]

EMA = "ema"
_NESTING = ("model", "state_dict", "module")
_HEADS = ("class_embed", "transformer.decoder.class_embed", "transformer.decoder.class_head")
# Bytes that different parts of a storage may have together, as a multiple of its own: weights that are packed into one
# tensor stand in it twice at most.
MAX_OVERLAP = 4
_DECODER_LAYER = re.compile(r"^transformer\.decoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class OfficialFile:
    """What an official checkpoint holds.

    Attributes:
        path: the file.
        tensors: by official name, in the order of the file; a head stands under both of its names.
        averaged: whether the tensors are averaged weights (EMA).
        rest: what else the file holds and is not read, such as ``optimizer``.
        categories: labels, where the file was written by ``convert`` and they are not the ids of the data set.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    averaged: bool = False
    rest: tuple[str, ...] = ()
    categories: CategoryMap | None = None

    @cached_property
    def num_layers(self) -> int:
        """L, decoder layers; 0 where there are none."""
        return len({match[1] for match in map(_DECODER_LAYER.match, self.tensors) if match})

    @cached_property
    def num_classes(self) -> int:
        """K, rows of the class heads; 0 where there are none."""
        biases = [self.tensors.get(f"{head}.0.bias") for head in _HEADS]
        return next((bias.numel() for bias in biases if bias is not None), 0)

    @cached_property
    def family(self) -> Family:
        """Which of the two naming families the file is of."""
        return "relation" if "transformer.level_embeds" in self.tensors else "deformable"

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Return the tensors by our name, heads once; those without a name of ours keep the official one.

        Buffers that our models compute, and the names of classes, are left out.
        """
        return {
            to_ours(name, num_layers=self.num_layers) or name: tensor
            for name, tensor in self.tensors.items()
            if name != CLASSES and not name.endswith(POSITION_INDEX)
        }

    @property
    def unknown(self) -> list[str]:
        """Official names that stand for nothing in any system that is supported."""
        return [name for name in self.weights if name in self.tensors]

    def check_fit(self, model: nn.Module) -> None:
        """Refuse a model whose tensors are not exactly those of the file.

        Args:
            model: a ``BranchedDetector``.

        Raises:
            CheckpointError: K08, names the first differences by official name, and their number.
        """

        def officially(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            layers = self.num_layers
            names = {name: to_official(name, family=self.family, num_layers=layers) for name in tensors}
            return {names[name] or name: tensor for name, tensor in tensors.items()}

        differences = list_differences(officially(model.state_dict()), officially(self.weights))
        for name, tensor in self.tensors.items():
            if name.endswith(POSITION_INDEX):
                table = self.tensors.get(name.replace(POSITION_INDEX, BIAS_TABLE))
                if table is None or not torch.equal(tensor, position_index(table)):
                    differences.append(f"{name}: not that of the model's windows")
        if differences:
            raise CheckpointError(
                f"{self.path}: {describe_differences(differences)}",
                "use a complete file, or convert it with the --preset it was trained with",
                code="K08",
            )


def position_index(table: Tensor) -> Tensor:
    """Return the index that belongs to a table of position biases [(2 w - 1)^2, heads], int64 [w^4]."""
    return relative_position_index(window_of(table.shape[0]))


def window_of(rows: int) -> int:
    """Return the side w of the windows whose table of position biases has (2 w - 1)^2 rows."""
    return (isqrt(rows) + 1) // 2


def read_official(path: Path, *, ema: bool = True) -> OfficialFile:
    """Read an official ``.pth``: named tensors, possibly nested, below ``model``, ``state_dict`` or ``ema``.

    Args:
        path: the file.
        ema: take the averaged weights where the file has both.

    Raises:
        CheckpointError: not such a file, or one whose tensors cannot be used.
    """
    try:
        check_regular(path)
        _check_bounds(path)
        with torch.serialization.safe_globals(_PLAIN_DATA):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", "check the path") from error
    except Exception as error:
        # PyTorch's own message advises to execute what is in the file.
        raise CheckpointError(
            f"{path}: not a PyTorch file of tensors, or it holds code, which is never executed",
            "give a .pth whose weights were saved as a state dict",
            code="K05",
        ) from error
    averaged = False
    rest: list[str] = []
    said = content.get(CATEGORIES) if isinstance(content, Mapping) else None
    categories = None if said is None else CategoryMap.from_json(said)
    order = (EMA, *_NESTING) if ema else (*_NESTING, EMA)
    for _ in order:
        inner = next((key for key in order if isinstance(content, Mapping) and _is_mapping(content, key)), None)
        if inner is None:
            break
        rest += [str(key) for key in content if key not in (inner, CATEGORIES)]
        averaged = averaged or inner == EMA
        content = content[inner]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no weights", "give a file with a 'model' of named tensors", code="K05")
    rest += [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    named = [(str(name).removeprefix("module."), t) for name, t in content.items() if isinstance(t, Tensor)]
    tensors = dict(named)
    if len(tensors) != len(named) or not all(map(_is_plain, tensors.values())) or len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{path}: its tensors are not plain, or share a name", "use another copy", code="K05")
    # Names may share what they name, by the ten thousand: each piece of memory is read once.
    distinct = {_view(tensor): (name, tensor) for name, tensor in reversed(tensors.items())}
    held = {view[0]: tensor.untyped_storage().nbytes() for view, (_, tensor) in distinct.items()}
    if sum(tensor.nbytes for _, tensor in distinct.values()) > MAX_OVERLAP * sum(held.values()):
        raise CheckpointError(f"{path}: its tensors overlap each other", "use another copy", code="K05")
    fault = first_non_finite(dict(reversed(distinct.values())))
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}", "use another copy", code="K10")
    for name, second in aliases(tensors).items():
        if second not in tensors or _view(tensors[name]) == _view(tensors[second]):
            continue
        if not torch.equal(tensors[name], tensors[second]):
            raise CheckpointError(
                f"{path}: '{name}' and '{second}' differ, but the model has one tensor for both",
                "use another copy",
                code="K08",
            )
    return OfficialFile(path, tensors, averaged, tuple(rest), categories)


def write_official(path: Path, tensors: Mapping[str, Tensor], categories: CategoryMap | None = None) -> None:
    """Write ``{"model": tensors}`` as the authors' code does, atomically; a tensor under two names is stored once.

    Args:
        path: of the file.
        tensors: by official name.
        categories: labels, if they are to stand beside the model; the authors' code reads past them.

    Raises:
        OutputError: the file cannot be written.
    """
    content = io.BytesIO()
    beside = {} if categories is None else {CATEGORIES: categories.to_json()}
    torch.save({"model": dict(tensors), **beside}, content)
    write_file(path, content.getvalue())


def _is_mapping(content: Mapping[object, object], key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds all its values itself: one that repeats a few could be of any size."""
    held = tensor.layout == torch.strided and not tensor.is_quantized and tensor.dim() <= MAX_DIMENSIONS
    return held and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _view(tensor: Tensor) -> tuple[object, ...]:
    """Return what two tensors share that are one: their storage, and how they lie in it."""
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return *place, tensor.dtype, tuple(tensor.shape), tensor.stride()


def _check_bounds(path: Path) -> None:
    """Refuse an archive that unpacks to more than its file, or whose header is huge; older files are no archives.

    Raises:
        ValueError: it does.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    headers = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_TENSORS or headers > MAX_HEADER_BYTES or unpacked > path.stat().st_size:
        raise ValueError(f"{len(entries)} entries of {unpacked} bytes, {headers} of them headers")
