"""Read and write one safetensors file, trusting nothing that it says about itself.

The library bounds a header at 100 MB and takes duplicate keys; our files have a thousand tensors, so tighter bounds
cost nothing and keep a damaged or hostile file from costing seconds and gigabytes. Non-finite values are refused in
both directions: weights that hold NaN are never worth keeping.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lora_detr.atomic_files import write_file
from lora_detr.errors import CheckpointError, LoraDetrError, NumericalError, PackageError, printable
from lora_detr.regular_files import open_regular

M = TypeVar("M", bound=nn.Module)

MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 16

_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_RECOVER = "the file is damaged or not ours: use another copy or an earlier checkpoint"
# Differences between a file and a model that a message lists.
SHOWN_DIFFERENCES = 10


@dataclass(frozen=True)
class _Header:
    metadata: dict[str, str]
    spans: tuple[tuple[int, int, str], ...]


def read_tensors(path: Path, *, finite: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, on the CPU, and its metadata.

    Args:
        path: of the file.
        finite: refuse values that are not.

    Raises:
        CheckpointError: the file is absent, damaged, beyond the bounds of this module, or holds non-finite values.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            metadata = read_header(file, size, path)
            file.seek(0)
            tensors = safetensors.torch.load(file.read(size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", "check the path") from error
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    fault = first_non_finite(tensors) if finite else None
    if fault is not None:
        raise CheckpointError(
            f"{path}: {fault}", "use an earlier checkpoint, from before training diverged", code="K10"
        )
    return tensors, metadata


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Replace ``path`` by a safetensors file, atomically; a symbolic link there is replaced, not followed.

    Raises:
        NumericalError: a tensor holds NaN or Inf; nothing is written.
        OutputError: the system refused to write; the old file is unchanged.
    """
    write_file(path, encode_tensors(tensors, metadata))


def encode_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, finite: bool = True
) -> bytes:
    """Return the bytes of a safetensors file; tensors that share memory are written in full under each name.

    Args:
        tensors: by name.
        metadata: of the file.
        finite: refuse values that are not; what finds a fault needs the very values that have it.

    Raises:
        NumericalError: a tensor holds NaN or Inf.
    """
    fault = first_non_finite(tensors) if finite else None
    if fault is not None:
        raise NumericalError(
            f"not saved: {fault}", "lower the learning rate or resume an earlier checkpoint", code="N03"
        )
    seen: set[int] = set()
    owned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        owned[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return safetensors.torch.save(owned, dict(metadata) if metadata else None)


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return a sentence on the first tensor with NaN or Inf and how many there are, or None when all are finite."""
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if not bad:
        return None
    count = int((~torch.isfinite(tensors[bad[0]])).sum())
    others = f", and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    return f"tensor '{printable(bad[0])}' has {count} of {tensors[bad[0]].numel()} values not finite{others}"


def read_header(file: BinaryIO, size: int, path: Path) -> dict[str, str]:
    """Check the header at the start of ``file`` and return its metadata; the tensors' bytes are not read.

    Args:
        file: positioned anywhere.
        size: bytes in the whole file.
        path: for messages.

    Raises:
        CheckpointError: names ``path`` and what is wrong.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        cut = f"truncated: {size} bytes, but the header alone needs {8 + length}"
        raise _damaged(path, cut if length <= MAX_HEADER_BYTES else "not a safetensors file")
    if length > MAX_HEADER_BYTES:
        raise _damaged(path, f"header of {length} bytes, at most {MAX_HEADER_BYTES} are read")
    try:
        header = _parse(file.read(length))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"header: {error}") from None
    end = _check_spans(header.spans, path)
    if end != size - 8 - length:
        raise _damaged(path, f"truncated or extended: the tensors need {end} bytes, found {size - 8 - length}")
    return header.metadata


def _parse(text: bytes) -> _Header:
    # Counting brackets first bounds what the JSON parser may allocate, whatever the text is.
    if text.count(b"{") > MAX_TENSORS + 2 or text.count(b"[") > 2 * MAX_TENSORS:
        raise ValueError(f"more than {MAX_TENSORS} tensors")
    if text.count(b",") > MAX_TENSORS * 6 + MAX_HEADER_BYTES // 16:
        raise ValueError("more items than its tensors can have")
    entries = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(entries, dict):
        raise ValueError("not a mapping of names")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata is not a mapping of text to text")
    return _Header(metadata, tuple(sorted(_span(name, entry) for name, entry in entries.items())))


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"name '{printable(key[:80])}' occurs twice")
        result[key] = value
    return result


def _span(name: str, entry: object) -> tuple[int, int, str]:
    """Return (first byte, last byte + 1, name) of a tensor whose entry is well-formed."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"entry of '{printable(name[:80])}' has not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"tensor '{printable(name[:80])}' has the unsupported dtype {str(dtype)[:20]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor '{printable(name[:80])}' has a malformed shape or data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"tensor '{printable(name[:80])}' of shape {shape} does not fill bytes {begin} to {end}")
    return begin, end, name


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_spans(spans: tuple[tuple[int, int, str], ...], path: Path) -> int:
    """Return where the tensors end, having checked that they follow one another without overlap or hole."""
    at = 0
    for begin, end, name in spans:
        if begin != at:
            what = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise _damaged(path, f"header: tensor '{printable(name[:80])}' {what}")
        at = end
    return at


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: {reason}", _RECOVER, code="K07")


def build_exact(build: Callable[[], M], tensors: Mapping[str, Tensor], source: Path) -> M:
    """Build a module and load all of its tensors. Nothing is allocated before names, shapes and dtypes fit.

    Args:
        build: makes the module of settings that stand beside the tensors, and so may be wrong or forged; called twice.
        tensors: the whole ``state_dict``.
        source: the file they came from, for the message.

    Raises:
        CheckpointError: no module can be built of the settings; or names the first differences and their number.
    """
    check_exact(build, tensors, source)
    module = build()
    load_exact(module, tensors, source)
    return module


def check_exact(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], source: Path) -> None:
    """Do the checks of ``build_exact`` alone, on the meta device, whose tensors have shapes and no values."""
    differences = list_differences(build_outline(build, source).state_dict(), tensors)
    if differences:
        raise _does_not_fit(differences, source)


def build_outline(build: Callable[[], M], source: Path) -> M:
    """Return the module on the meta device; arguments and errors as for ``build_exact``."""
    try:
        with torch.device("meta"):
            return build()
    except PackageError:
        raise
    except Exception as error:  # libraries raise almost anything on sizes that do not fit each other
        reason = error.message if isinstance(error, LoraDetrError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{source}: no model can be built of its stored config: {reason.splitlines()[0]}",
            "use the version that wrote it, or another copy",
            code="K08",
        ) from error


def load_exact(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy ``tensors`` into ``module``, which is unchanged unless every name, shape and dtype fits.

    Args:
        module: any module.
        tensors: its whole ``state_dict``; on any device.
        source: the file they came from, for the message.

    Raises:
        CheckpointError: names the first differences and their number.
    """
    differences = list_differences(module.state_dict(), tensors)
    if differences:
        raise _does_not_fit(differences, source)
    module.load_state_dict(dict(tensors), strict=True)


def _does_not_fit(differences: Sequence[str], source: Path) -> CheckpointError:
    message = f"{source}: {describe_differences(differences)}"
    return CheckpointError(message, "use the configuration it was trained with", code="K08")


def describe_differences(differences: Sequence[str]) -> str:
    """Return how many places do not fit, and the first of them, a line each."""
    shown = "\n".join(f"  {printable(line)}" for line in differences[:SHOWN_DIFFERENCES])
    more = f"\n  and {len(differences) - SHOWN_DIFFERENCES} more" if len(differences) > SHOWN_DIFFERENCES else ""
    return f"does not fit the model in {len(differences)} places\n{shown}{more}"


def list_differences(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that only one side has, or whose shape or dtype differs."""
    lines = [f"missing in the file: {name}" for name in model if name not in file]
    lines += [f"unknown to the model: {name}" for name in file if name not in model]
    for name, tensor in model.items():
        if name in file and file[name].shape != tensor.shape:
            lines.append(f"{name}: shape {list(file[name].shape)} in the file, {list(tensor.shape)} in the model")
        elif name in file and file[name].dtype != tensor.dtype:
            lines.append(f"{name}: {file[name].dtype} in the file, {tensor.dtype} in the model".replace("torch.", ""))
    return lines
