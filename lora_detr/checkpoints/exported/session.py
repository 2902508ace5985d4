"""Runs an exported file by onnxruntime: from prepared images to detections, without a detector of this program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lora_detr.checkpoints.exported.contract import STORED, Contract
from lora_detr.checkpoints.exported.versions import require
from lora_detr.errors import CheckpointError, DataError
from lora_detr.structures import Batch, Detections, Images, Prediction

SUFFIX = ".onnx"

Arrays = dict[str, NDArray[Any]]


def is_exported(path: Path) -> bool:
    """Return whether the name of a path is that of an exported file."""
    return path.suffix == SUFFIX


class ExportedDetector:
    """An exported file that is ready to run.

    Args:
        path: of the file.
        device: where to compute; CUDA is used where onnxruntime has it.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
        ConfigError: onnxruntime is not installed.
    """

    contract: Contract

    def __init__(self, path: Path, device: torch.device) -> None:
        require("onnxruntime", what=f"running {path}")
        import onnxruntime

        if not path.is_file():
            raise CheckpointError(f"{path}: no such file", "check the path")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # its remarks on graphs of others are of no use here
        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        available = onnxruntime.get_available_providers()
        providers = [*(one for one in wanted if one in available), "CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime has exceptions of its own for every kind of damage
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"{path}: cannot be read: {reason}", "use another copy, or export it again"
            ) from error
        self.path = path
        self.contract = Contract.from_metadata(self._session.get_modelmeta().custom_metadata_map, path)
        self.inputs = [one.name for one in self._session.get_inputs()]

    def __call__(self, batch: Batch) -> Prediction | list[Detections]:
        """Run the graph.

        Args:
            batch: prepared as the contract says.

        Returns:
            Logits and boxes, or the best detections of each image, as the graph gives them.

        Raises:
            DataError: an image does not fit the input.
        """
        count = len(batch.targets)
        limit = self.contract.batch or count
        found = [self._run(batch, start, min(start + limit, count)) for start in range(0, count, limit)]
        named = [dict(zip(self.contract.outputs.split(", "), parts, strict=True)) for parts in found]
        together = {name: torch.cat([part[name] for part in named]) for name in named[0]}
        if "logits" in together:
            return Prediction(together["logits"], together["boxes"])
        unknown = torch.full_like(together["labels"], -1)  # which query a detection is of
        parts = zip(together["boxes"], together["scores"], together["labels"], unknown, strict=True)
        return [Detections(*part) for part in parts]

    def _run(self, batch: Batch, start: int, end: int) -> list[Tensor]:
        own = slice(start, end)
        images = Images(batch.images.pixels[own], batch.images.padding[own], batch.images.sizes[own])
        originals = torch.tensor([target.original_size for target in batch.targets[own]])
        arrays = self.feed(images, originals)
        outputs = self._session.run(None, {name: arrays[name] for name in self.inputs})
        return [torch.from_numpy(np.asarray(output)) for output in outputs]

    def feed(self, images: Images, originals: Tensor) -> Arrays:
        """Return what the inputs of the graph are given, by name.

        Args:
            images: pixels as bytes.
            originals: int64 [B, 2], (height, width) of the images as stored.

        Raises:
            DataError: an image does not fit the input.
        """
        if self.contract.input == STORED:
            height, width = images.sizes[0].tolist()
            stored = images.pixels[:, :, :height, :width].permute(0, 2, 3, 1)
            return {"images": stored.contiguous().numpy()}
        pixels = on_canvas(images, self.contract.height, self.contract.width).pixels
        return {
            "images": pixels.to(torch.float32).mul_(1.0 / 255).numpy(),
            "image_sizes": images.sizes.flip(1).contiguous().numpy(),
            "orig_target_sizes": originals.flip(1).contiguous().numpy(),
        }


def on_canvas(images: Images, height: int | None, width: int | None) -> Images:
    """Return images padded to a height and width; None leaves them as they are.

    Raises:
        DataError: one is larger.
    """
    if height is None or width is None:
        return images
    own_height, own_width = images.pixels.shape[-2:]
    if own_height > height or own_width > width:
        raise DataError(
            f"a prepared image is {own_width}x{own_height} pixels, the input of the graph is {width}x{height}",
            "export with --dynamic, which takes images of any size",
        )
    more = (0, width - own_width, 0, height - own_height)
    return Images(F.pad(images.pixels, more), F.pad(images.padding, more, value=True), images.sizes)
