"""How much memory a process that reads images has for itself: ``python -m tests.unit.data.coco.private_memory FOLDER``.

In a process of its own, whose memory holds nothing else: pages that a long test run has used in part are written to by
whatever a reader allocates, and would be counted.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.loader import build_loader
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.structures import Target
from tests.unit.data.coco.coco_files import content, load

IMAGES, OBJECTS = 800, 80
# Buffers for the first images belong to the process, not to the annotations.
WARM = 100


class _Weighing(CocoDataset):
    """Says, in place of the boxes, how much memory the reading process has for itself."""

    def sample(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        pixels, target = super().sample(index, epoch)
        private = _private_kilobytes() if index in (WARM, IMAGES - 1) else 0
        return pixels, Target(target.boxes[:0], target.labels[:0], target.image_id, (private, 0))


class _WeighingObjects(_Weighing):
    """The same with an object for each image, as it must not be."""

    def __init__(self, split: CocoSplit) -> None:
        super().__init__(split, _transform(), seed=0)
        self.records = [[(record, box.tolist()) for box in record.boxes_xyxy_pixels] for record in split.records]

    def sample(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        assert all(box[0] >= 0 for _, box in self.records[index])
        return super().sample(index, epoch)


def _private_kilobytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def _transform() -> object:
    return EvalTransformConfig(size=8, square=True).build()


def _growth(dataset: CocoDataset) -> tuple[int, int]:
    """Return by how many kilobytes a process that reads grows in its first epoch, and until the end of the second."""
    loader = build_loader(
        dataset, batch_size=50, shuffle=False, rank=0, world_size=1, seed=0, workers=1, drop_last=False
    )
    gc.collect()
    weights = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        weights += [target.original_size[0] for batch in loader for target in batch.targets if target.original_size[0]]
    loader.close()
    first, last, _, end = weights
    return last - first, end - first


def main(folder: str) -> None:
    """Print the bytes of the arrays, and the growth with arrays and with objects."""
    value = content(IMAGES, 8, 8)
    for row in value["images"]:
        row["file_name"] = "one.png"
    value["annotations"] = [
        {"id": i, "image_id": 10 + i // OBJECTS, "category_id": 1, "bbox": [0.5, 1, 3, 4], "area": 12, "iscrowd": 0}
        for i in range(IMAGES * OBJECTS)
    ]
    Image.new("RGB", (8, 8)).save(Path(folder) / "one.png")
    split = load(Path(folder), value)
    size = sum(array.nbytes for array in vars(split.records).values() if isinstance(array, np.ndarray))
    first, second = _growth(_Weighing(split, _transform(), seed=0))  # type: ignore[arg-type]
    copied, _ = _growth(_WeighingObjects(split))
    sys.stdout.write(json.dumps({"size": size, "first": first, "second": second, "copied": copied}))


if __name__ == "__main__":
    main(*sys.argv[1:])
