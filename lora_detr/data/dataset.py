"""A split as a PyTorch data set whose samples depend on (seed, epoch, image id) and on nothing else."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.dense import Decoded, Dense
from lora_detr.data.images import MAX_PIXELS, UNUSABLE, read_image
from lora_detr.data.transforms import Transform
from lora_detr.errors import DataError
from lora_detr.structures import Target


def generator_for(seed: int, epoch: int, image_id: int) -> torch.Generator:
    """Return the source of all random draws for one image in one epoch.

    Keyed by the image and not by its place in the epoch, so that neither the number of workers nor of ranks matters.
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{image_id}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Decoded and transformed images with their targets.

    Args:
        split: which images, and the labels of their categories.
        transform: what ``TrainTransformConfig.build`` or ``EvalTransformConfig.build`` returned.
        seed: of the augmentation.
        max_pixels: larger files are refused before decoding.
        dense: strong augmentation, before the transform; None for none.
        epochs: length of the run, which decides when augmentation is strong.
    """

    def __init__(
        self,
        split: CocoSplit,
        transform: Transform,
        seed: int,
        *,
        max_pixels: int = MAX_PIXELS,
        dense: Dense | None = None,
        epochs: float = 1.0,
    ) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels
        self.dense = dense
        self.epochs = epochs
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.split.records)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of ``__getitem__``. A loader with workers asks ``sample`` and does not depend on it."""
        self.epoch = epoch

    def image_id(self, index: int) -> int:
        """Return the id of the image at ``index``, without reading it."""
        return int(self.split.records.ids[index])

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.sample(index, self.epoch)

    def sample(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        """Return one image as it looks in one epoch.

        Returns:
            Pixels uint8 [3, H, W], and the target; boxes relative to H and W.

        Raises:
            DataError: the file cannot be used (see ``read_image``).
        """
        record = self.split.records[index]
        image, boxes, labels = self._decoded(index)
        generator = generator_for(self.seed, epoch, record.id)
        if self.dense is not None:
            seed = int(torch.randint(1 << 62, (), generator=generator))
            progress = min(epoch / self.epochs, 1.0)
            image, boxes, labels = self.dense((image, boxes, labels), self._other, len(self), progress, seed)
        pixels, boxes, labels = self.transform(tv_tensors.Image(image), boxes, labels, generator)
        return pixels, Target(boxes, labels, record.id, (record.height, record.width))

    def _decoded(self, index: int) -> Decoded:
        record = self.split.records[index]
        label_of = self.split.categories.label_of
        labels = torch.tensor([label_of(i) for i in record.category_ids.tolist()], dtype=torch.int64)
        image = read_image(record, self.max_pixels, self.transform.shorter)
        boxes = torch.from_numpy(record.boxes_xyxy_pixels.copy())
        height, width = image.shape[-2:]
        if (width, height) != (record.width, record.height):
            boxes *= boxes.new_tensor([width / record.width, height / record.height] * 2)
        return image, boxes, labels

    def _other(self, index: int) -> Decoded | None:
        """Return an image that is added to another one; one that cannot be read is reported when its own turn comes."""
        try:
            return self._decoded(index)
        except DataError as error:
            if error.code not in UNUSABLE:
                raise
            return None

    def blank(self, index: int) -> tuple[Tensor, Target]:
        """Return a black image of the smallest size, without objects, in place of one that cannot be read."""
        record = self.split.records[index]
        image = tv_tensors.Image(torch.zeros((3, 1, 1), dtype=torch.uint8))
        boxes, labels = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
        pixels, boxes, labels = self.transform(image, boxes, labels, generator_for(self.seed, 0, record.id))
        return pixels, Target(boxes, labels, record.id, (record.height, record.width))
