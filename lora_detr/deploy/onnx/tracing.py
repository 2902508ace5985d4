"""Traces a detector to an ONNX graph.

By the exporter that records one forward pass: it writes every kind of detector in seconds, where the one that compiles
takes minutes and writes invalid graphs of some. What it would turn into constants, sizes of feature maps above all, is
kept as arithmetic here; and the proof runs the graph at sizes that it was not traced at.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_detr.checkpoints.exported.contract import Sampler
from lora_detr.deploy.onnx.graph import ExportedGraph
from lora_detr.errors import ConfigError
from lora_detr.models import AnyDetector
from lora_detr.ops.gathered import gathered_grid_sample
from lora_detr.structures import Images

OPSET = 18
"""The first in which Resize averages, as images are shrunk here."""

BATCH = 2


def trace(graph: ExportedGraph, side: tuple[int, int], sampler: Sampler) -> bytes:
    """Return the graph as the content of a file.

    Args:
        graph: in evaluation mode.
        side: height and width of the input that it is traced at.
        sampler: what samples features.

    Raises:
        ConfigError: the detector has an operator that ONNX lacks.
    """
    form = graph.form
    height, width = side
    arguments = (
        torch.rand(BATCH, 3, height, width, generator=torch.Generator().manual_seed(0)),
        *(torch.tensor([[width, height]] * BATCH) for _ in form.inputs[1:]),
    )
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in (*form.inputs, *form.outputs)}
    if form.height is None:
        axes["images"] |= {2: "height", 3: "width"}
    content = io.BytesIO()
    with torch.no_grad(), _exportable(graph.detector, arguments[0], sampler, is_fixed=form.height is not None):
        try:
            torch.onnx.export(
                graph,
                arguments,
                content,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=OPSET,
                input_names=form.inputs,
                output_names=form.outputs,
                dynamic_axes=axes,
            )
        except torch.onnx.errors.UnsupportedOperatorError as error:
            fixed = "" if form.height is not None else "; it may have one at a fixed size: omit --dynamic"
            raise ConfigError(
                f"this detector has an operator without an ONNX form: {str(error).partition(chr(10))[0]}",
                f"it cannot be exported{fixed}",
            ) from error
    return content.getvalue()


@contextmanager
def _exportable(detector: AnyDetector, pixels: Tensor, sampler: Sampler, is_fixed: bool) -> Iterator[None]:
    """Replace what cannot be traced, for as long as the context lasts."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of an exporter that will leave, and of constants, which the proof looks for
        for name in ("tensor", "as_tensor"):
            _replace(stack, torch, name, _following(getattr(torch, name)))
        if sampler == "gather":
            _replace(stack, F, "grid_sample", gathered_grid_sample)
        if is_fixed:
            _hold_positions(detector, pixels, stack)
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one operator for all of attention, which ONNX lacks
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        yield


def _replace(stack: ExitStack, owner: Any, name: str, value: object) -> None:
    """Set an attribute until the stack is left."""
    own = vars(owner)
    if name in own:
        stack.callback(setattr, owner, name, own[name])
    else:  # found in its class
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def _following(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what makes tensors of numbers, so that those among them that are traced stay so."""

    def made(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not (isinstance(data, list | tuple) and _has_tensor(data)):
            return make(data, *args, **kwargs)
        tensor = _stacked(data)
        return tensor.to(dtype=kwargs.get("dtype"), device=kwargs.get("device"))

    return made


def _has_tensor(data: Sequence[Any]) -> bool:
    return any(_has_tensor(one) if isinstance(one, list | tuple) else isinstance(one, Tensor) for one in data)


def _stacked(data: Sequence[Any]) -> Tensor:
    parts = [_stacked(one) if isinstance(one, list | tuple) else torch.as_tensor(one) for one in data]
    return torch.stack(parts)


def _hold_positions(detector: AnyDetector, pixels: Tensor, stack: ExitStack) -> None:
    """Make constants of position encodings that are resized to the input by operators that ONNX lacks."""
    method = "interpolate_pos_encoding"
    for module in detector.modules():
        if hasattr(module, method):
            _replace(stack, module, method, _Held(getattr(module, method)))
    detector(_as_images(pixels))


def _as_images(pixels: Tensor) -> Images:

    return Images(pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool), torch.zeros(len(pixels), 2))


class _Held:
    """Gives what a function gave first, as a constant.

    Args:
        compute: it.
    """

    def __init__(self, compute: Callable[..., Tensor]) -> None:
        self._compute = compute
        self._value: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._value is None:
            self._value = self._compute(*args, **kwargs).detach()
        return self._value
