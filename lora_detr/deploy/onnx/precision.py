"""Narrower numbers in a written graph: half precision where it is harmless, and whole numbers by calibration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MATRICES = ("Conv", "MatMul", "Gemm")
"""Operators whose weights are narrowed: nearly all of the weights and of the work."""

# What stays narrow between two of them. Sums of coordinates are not among them: half precision has no whole pixels
# beyond 2048, and all that leads to a place in an image is computed in float32.
_BETWEEN = ("Relu", "MaxPool")
_LARGEST = 65504.0


def to_half(model: Any) -> None:
    """Compute convolutions and matrix products in float16, in place; all else stays in float32.

    Args:
        model: an ``onnx.ModelProto``.
    """
    _Halved(model).run()


class _Halved:
    def __init__(self, model: Any) -> None:
        import onnx

        self.onnx = onnx
        self.graph = model.graph
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.constants = {node.output[0]: node.attribute[0].t for node in self.graph.node if node.op_type == "Constant"}
        self.narrow: dict[str, str] = {}  # tensor -> name of it in float16
        self.nodes: list[Any] = []

    def run(self) -> None:
        """Rebuild the list of nodes."""
        kinds = {value.name: value.type.tensor_type.elem_type for value in self._typed().graph.value_info}
        made: set[str] = set()  # by nodes that compute in float16
        for node in self.graph.node:
            kind = kinds.get(node.output[0], self.onnx.TensorProto.FLOAT)
            is_matrix = node.op_type in MATRICES and kind == self.onnx.TensorProto.FLOAT
            if not is_matrix and not (node.op_type in _BETWEEN and node.input[0] in made):
                self.nodes.append(node)
                continue
            for i, name in enumerate(node.input):
                if name:
                    node.input[i] = self._narrow(name)
            output = node.output[0]
            node.output[0] = self.narrow[output] = f"{output}_float16"
            made.add(output)
            self.nodes.append(node)
            self.nodes.append(self._cast(node.output[0], output, self.onnx.TensorProto.FLOAT))
        used = {name for node in self.nodes for name in node.input} | {value.name for value in self.graph.output}
        kept = [node for node in self.nodes if any(name in used for name in node.output)]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        left = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(left)

    def _typed(self) -> Any:
        model = self.onnx.helper.make_model(self.graph, opset_imports=[self.onnx.helper.make_opsetid("", 18)])
        return self.onnx.shape_inference.infer_shapes(model)

    def _narrow(self, name: str) -> str:
        if name not in self.narrow:
            self.narrow[name] = f"{name}_float16"
            stored = self.weights.get(name, self.constants.get(name))
            if stored is None:
                self.nodes.append(self._cast(name, self.narrow[name], self.onnx.TensorProto.FLOAT16))
            else:
                values = self.onnx.numpy_helper.to_array(stored).clip(-_LARGEST, _LARGEST).astype(np.float16)
                self.graph.initializer.append(self.onnx.numpy_helper.from_array(values, self.narrow[name]))
        return self.narrow[name]

    def _cast(self, source: str, target: str, kind: int) -> Any:
        return self.onnx.helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind)


# Layers of a graph by the names of their modules: what they give is a place in an image or a score, of which 8 bits
# leave too little. Together they are a hundredth of the work.
_EXACT = re.compile("heads|bbox|class|offset|reference|enc_score")


class _Calibration:
    """Gives inputs one by one, in the way that onnxruntime asks for them."""

    def __init__(self, inputs: Iterable[Mapping[str, Any]]) -> None:
        self._inputs: Iterator[Mapping[str, Any]] = iter(inputs)

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._inputs, None)


def to_int8(source: Path, target: Path, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Compute convolutions and matrix products on 8-bit integers.

    Args:
        source: file of the graph in float32.
        target: file to write.
        inputs: of the graph, from which the ranges of all that it computes are taken.
    """
    import logging

    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(_Calibration, CalibrationDataReader):  # type: ignore[misc]
        pass

    nodes = onnx.load(source).graph.node
    exact = [node.name for node in nodes if node.op_type in MATRICES and _EXACT.search(node.name)]
    logging.getLogger().addFilter(_no_remarks)  # on a step before, which changes nothing here
    try:
        quantize_static(
            str(source),
            str(target),
            Reader(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(MATRICES),
            nodes_to_exclude=exact,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.getLogger().removeFilter(_no_remarks)


def _no_remarks(record: Any) -> bool:
    return "pre-processing" not in record.getMessage()
