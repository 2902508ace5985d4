"""The preparation of an image as part of a graph: from pixels as stored to the input of a detector of square images."""

from __future__ import annotations

from typing import Any

from lora_detr.deploy.onnx.tracing import OPSET
from lora_detr.errors import ConfigError
from lora_detr.recipe.deployment import DeploymentConfig

PREFIX = "detector/"


def check(config: DeploymentConfig) -> None:
    """Refuse a detector whose images keep their aspect ratio.

    Raises:
        ConfigError: it is one.
    """
    if not config.transform.square or config.transform.size % config.size_divisor:
        raise ConfigError(
            "--with-preprocessing: this detector keeps the aspect ratio of images, and pads them",
            "leave it out: the metadata of the file has the rule of sizes",
        )


def with_preprocessing(model: Any, config: DeploymentConfig, raw: bool) -> Any:
    """Return a graph that resizes pixels as they are stored, and gives the other one what it takes.

    Its input ``images`` is uint8 [1, H, W, 3]; it is resized as bytes, since rounding is part of it.

    Args:
        model: the ``onnx.ModelProto`` of a detector, for images of a fixed size.
        config: of the detector.
        raw: whether the detector gives boxes relative to the image, so that it does not ask for its size.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = config.transform.size
    constants: dict[str, Any] = {
        "whole": np.array([1, 3, size, size], np.int64),
        "per_level": np.array(1.0 / 255, np.float32),
        "width_height": np.array([2, 1], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Resize",
            ["planes", "", "", "whole"],
            ["resized"],
            mode="linear",
            antialias=1,
            exclude_outside=1,  # at the border, as Pillow and torchvision do
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Cast", ["resized"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "per_level"], [f"{PREFIX}images"]),
    ]
    if not raw:
        nodes += [
            helper.make_node("Shape", ["images"], ["shape"]),
            helper.make_node("Gather", ["shape", "width_height"], ["stored"]),
            helper.make_node("Unsqueeze", ["stored", "first"], [f"{PREFIX}orig_target_sizes"]),
        ]
        constants["first"] = np.array([0], np.int64)
    outputs = [value.name for value in model.graph.output]
    inner = onnx.compose.add_prefix(model, PREFIX)
    nodes += inner.graph.node
    nodes += [helper.make_node("Identity", [f"{PREFIX}{name}"], [name]) for name in outputs]
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, "height", "width", 3])
    results = [
        helper.make_tensor_value_info(
            name,
            value.type.tensor_type.elem_type,
            [1, *(dim.dim_value or None for dim in value.type.tensor_type.shape.dim[1:])],
        )
        for name, value in zip(outputs, inner.graph.output, strict=True)
    ]
    weights = [*inner.graph.initializer, *(numpy_helper.from_array(value, name) for name, value in constants.items())]
    graph = helper.make_graph(nodes, "detector", [given], results, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=model.ir_version)
