"""Find objects in single images: from a file or an array to boxes, names and scores."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from lora_detr.checkpoints.exported.session import ExportedDetector, is_exported
from lora_detr.data.coco.categories import UNUSED, CategoryMap
from lora_detr.data.images import MAX_PIXELS, decode_file, decode_pillow
from lora_detr.data.loader import collate
from lora_detr.data.reading import Sample
from lora_detr.errors import counted, printable
from lora_detr.evaluation.drawing import LabelledBox, draw_boxes
from lora_detr.evaluation.postprocess import selections
from lora_detr.processes.world import choose_device
from lora_detr.recipe.preparation import Preparation
from lora_detr.structures import Detections, Target

if TYPE_CHECKING:  # what runs an exported file can build no detector, and imports none
    from lora_detr.models import AnyDetector

ImageSource = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor
"""A file, an image of Pillow, or pixels as uint8 in RGB: an array [H, W, 3] or a tensor [3, H, W]."""

NmsChoice = float | None | Literal["chosen"]
"""IoU of a suppression, None for none, or that of the operating point."""

DEFAULT_SCORE = 0.3
"""Least score of an object where the model has no operating point."""

EXPECTED = "a path, a Pillow image, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W], in RGB"


@dataclass(frozen=True)
class ImagePrediction:
    """The objects found in one image, n of them, best first; n may be 0.

    Attributes:
        boxes_xyxy_pixels: float32 [n, 4] in pixels of the image as it is shown (EXIF orientation applied), clipped to
            it; every box has a width and a height.
        scores: float32 [n] in [0, 1].
        labels: int64 [n], 0..K-1.
        category_ids: original category id of each object.
        names: of the class of each object.
        size: (height, width) of the image in pixels.
        source: the image as it was given; kept for ``draw`` and not copied.
    """

    boxes_xyxy_pixels: Tensor
    scores: Tensor
    labels: Tensor
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    size: tuple[int, int]
    source: ImageSource

    def __len__(self) -> int:
        """Return how many objects were found."""
        return len(self.names)

    def describe(self) -> str:
        """Return the counts in words, such as ``3 objects (rbc 2, wbc 1)``; the most frequent class first."""
        counts = Counter(zip(self.labels.tolist(), self.names, strict=True))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{printable(name)} {count}" for (_, name), count in ordered)
        return counted(len(self), "object") + (f" ({listed})" if listed else "")

    def to_coco(self, image_id: int, first_id: int = 1) -> list[dict[str, Any]]:
        """Return the objects as annotations of a COCO file, each with a score, best first.

        Args:
            image_id: of this image.
            first_id: id of the first annotation; the others count on from it.
        """
        annotations = []
        entries = zip(self.boxes_xyxy_pixels.tolist(), self.scores.tolist(), self.category_ids, strict=True)
        for i, ((x1, y1, x2, y2), score, category_id) in enumerate(entries, start=first_id):
            width, height = x2 - x1, y2 - y1
            annotations.append(
                {
                    "id": i,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x1, y1, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
            )
        return annotations

    def to_supervision(self) -> Any:
        """Return the objects as ``Detections`` of the package supervision: ``class_id`` is the label.

        ``data`` has ``class_name`` and ``category_id``, the original ids.

        Raises:
            ModuleNotFoundError: the package is not installed.
        """
        from supervision import Detections as Found

        named = {"class_name": np.array(self.names, dtype=str), "category_id": np.array(self.category_ids, dtype=int)}
        parts = (self.boxes_xyxy_pixels, self.scores, self.labels)
        boxes, scores, labels = (part.numpy() for part in parts)
        return Found(xyxy=boxes, confidence=scores, class_id=labels, data=named)

    def labelled_boxes(self) -> list[LabelledBox]:
        """Return the objects in the form in which they are drawn."""
        entries = zip(
            self.boxes_xyxy_pixels.tolist(), self.labels.tolist(), self.names, self.scores.tolist(), strict=True
        )
        return [LabelledBox(x1, y1, x2, y2, label, name, score) for (x1, y1, x2, y2), label, name, score in entries]

    def draw(self) -> Image.Image:
        """Return the image with the objects drawn on it; a small one is enlarged (see ``drawing.draw_boxes``).

        Raises:
            DataError: the file can no longer be read.
            ValueError: the image is of another size by now.
        """
        # No larger than what has been read once.
        pixels = read_source(self.source, max(MAX_PIXELS, self.size[0] * self.size[1]))
        if tuple(pixels.shape[1:]) != self.size:
            found, expected = " x ".join(map(str, pixels.shape[1:])), " x ".join(map(str, self.size))
            raise ValueError(f"the image is {found} pixels high and wide; it was {expected} when objects were sought")
        return draw_boxes(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), self.labelled_boxes())


class Predictor:
    """A detector with everything around it: preparation of images, selection, and the names of its classes.

    Args:
        detector: without branches, put on the device and in evaluation mode; or an exported file.
        config: its input and classes.
        device: where to compute; results are on the CPU.
    """

    def __init__(self, detector: AnyDetector | ExportedDetector, config: Preparation, device: torch.device) -> None:
        self.detector = detector if isinstance(detector, ExportedDetector) else detector.to(device).eval()
        self.config = config
        self.device = device
        self._transform = config.build_transform()

    @property
    def categories(self) -> CategoryMap:
        """Original id and name of every label."""
        return self.config.categories

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each label 0..K-1; ``N/A`` for a label that stands for nothing and is never predicted."""
        return self.config.category_names

    def predict(
        self,
        image: ImageSource,
        score: float | None = None,
        nms_iou: NmsChoice = "chosen",
        *,
        tiles: int | None = None,
    ) -> ImagePrediction:
        """Find the objects of one image.

        Args:
            image: path of a file; image of Pillow; uint8 array [H, W, 3]; or uint8 tensor [3, H, W] on any device.
                All in RGB. The EXIF orientation of a file or a Pillow image is applied.
            score: least score of an object, in [0, 1]; 0 gives as many objects as the model keeps of an image. None
                takes the operating point of the model, a score for each class, or 0.3 where it has none.
            nms_iou: suppress objects that overlap a better one of their class (or of any, where the settings of the
                model say so) by more than this, in [0, 1]; None for no suppression. ``chosen`` takes the operating
                point of the model, and no suppression where it has none.
            tiles: side in pixels of overlapping tiles, on which small objects of a large photo are sought besides; None
                for no tiles.

        Raises:
            DataError: the image cannot be read.
            TypeError: ``image`` is none of these, or its pixels are not uint8.
            ValueError: it has the wrong shape, or a number is out of its range.
        """
        return next(self.predict_many([image], score, nms_iou, tiles=tiles))

    def predict_many(
        self,
        images: Iterable[ImageSource],
        score: float | None = None,
        nms_iou: NmsChoice = "chosen",
        *,
        batch_size: int = 1,
        tiles: int | None = None,
    ) -> Iterator[ImagePrediction]:
        """Find the objects of several images, in their order; each batch is read and computed when it is asked for.

        Images of different sizes are padded to one size where a batch has several, which changes the last digits of
        their scores.

        Args:
            images: see ``predict``; may be empty, and may be endless.
            score: see ``predict``.
            nms_iou: see ``predict``.
            batch_size: images, or tiles of one image, of one forward pass, at least 1.
            tiles: see ``predict``.

        Raises:
            DataError: an image cannot be read; likewise while iterating.
            TypeError: ``images`` is one image, or an entry is none.
            ValueError: an entry has the wrong shape, or a number is out of its range.
        """
        if isinstance(images, str | os.PathLike | Image.Image):
            raise TypeError(f"expected several images, found one ({type(images).__name__}); use predict for one")
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"score must be in [0, 1] or None, found {score}")
        suppressed = self.chosen_nms_iou if nms_iou == "chosen" else nms_iou
        if suppressed is not None and not 0 <= suppressed <= 1:
            raise ValueError(f"nms_iou must be in [0, 1], None or 'chosen', found {nms_iou}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        if tiles is not None:
            if tiles < 1:
                raise ValueError(f"tiles must be at least 1 pixel, found {tiles}")
            from lora_detr.evaluation.tiled import predict_tiled

            return (predict_tiled(self, image, tiles, score, nms_iou, batch_size) for image in images)
        scores = torch.tensor(self.chosen_scores if score is None else [score] * len(self.classes), dtype=torch.float64)
        return self._batches(iter(images), scores, suppressed, batch_size)

    @property
    def chosen_scores(self) -> list[float]:
        """Least score of an object of each label: that of the operating point, or 0.3."""
        point = self.config.operating_point
        return [DEFAULT_SCORE] * len(self.classes) if point is None else point.scores

    @property
    def chosen_nms_iou(self) -> float | None:
        """IoU of the suppression that the operating point has; None for no suppression."""
        point = self.config.operating_point
        return None if point is None else point.nms_iou

    def _batches(
        self, images: Iterator[ImageSource], scores: Tensor, nms_iou: float | None, batch_size: int
    ) -> Iterator[ImagePrediction]:
        while batch := list(islice(images, batch_size)):
            yield from self._batch(batch, scores, nms_iou)

    @torch.no_grad()
    def _batch(self, sources: Sequence[ImageSource], least: Tensor, nms_iou: float | None) -> list[ImagePrediction]:
        samples = [self._sample(read_source(source, self.config.max_pixels)) for source in sources]
        batch = collate(samples, self.config.size_divisor)
        sizes = [target.original_size for target in batch.targets]
        if isinstance(self.detector, ExportedDetector):
            given = self.detector(batch)
        else:
            given = self.detector(batch.images.to(self.device)).prediction
        found = selections(
            given,
            torch.tensor(sizes),
            max_detections=self.config.max_detections,
            nms_iou=nms_iou,
            suppression=self.config.suppression,
            min_score=self.config.min_score,
        )
        results = zip(sources, sizes, found, strict=True)
        return [self._select(source, size, detections, least) for source, size, detections in results]

    def _sample(self, pixels: tv_tensors.Image) -> Sample:
        no_boxes, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        height, width = pixels.shape[1:]
        # The transform of an evaluation draws nothing from the generator.
        prepared, boxes, labels = self._transform(pixels, no_boxes, no_labels, torch.Generator())
        return prepared, Target(boxes, labels, 0, (height, width))

    def _select(self, source: ImageSource, size: tuple[int, int], found: Detections, least: Tensor) -> ImagePrediction:
        """Return the detections that reach the score of their class, have a name, and lie partly inside the image."""
        boxes, scores, labels = (part.cpu() for part in (found.boxes_xyxy_pixels, found.scores, found.labels))
        height, width = size
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
        named = torch.tensor([name != UNUSED for name in self.classes])
        kept = (scores >= least[labels]) & named[labels] & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        labels = labels[kept]
        return ImagePrediction(
            boxes[kept],
            scores[kept],
            labels,
            tuple(self.config.category_ids[label] for label in labels.tolist()),
            tuple(self.classes[label] for label in labels.tolist()),
            size,
            source,
        )


def open_predictor(model: Path, which: Literal["best", "last"], *, device: str, ema: bool = True) -> Predictor:
    """Open what a user names as a model. Branches are left behind; of a run, the primary path predicts.

    Args:
        model: run directory, checkpoint directory, official file, stripped file or exported file.
        which: checkpoint of a run directory; unused otherwise.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for the best there is.
        ema: take the averaged weights where a checkpoint has them.

    Raises:
        CheckpointError: there is no model, or it is damaged.
        ConfigError: the device is unknown or not there.
    """
    # A device alone, no `World`: whoever predicts may be one process of another program.
    chosen = choose_device(device)
    if is_exported(model):
        exported = ExportedDetector(model, chosen)
        return Predictor(exported, exported.contract, chosen)
    from lora_detr.checkpoints.opened import open_model

    opened = open_model(model, which, ema=ema)
    return Predictor(opened.detector, opened.deployment, chosen)


def read_source(image: ImageSource, max_pixels: int = MAX_PIXELS) -> tv_tensors.Image:
    """Return the pixels of an image, uint8 [3, H, W] in RGB on the CPU; see ``Predictor.predict``.

    Args:
        image: file, Pillow image or pixels.
        max_pixels: larger files and Pillow images are refused before decoding.

    Raises:
        DataError: a file or a Pillow image cannot be read.
        TypeError: ``image`` is no image, or its pixels are not uint8.
        ValueError: its shape is wrong or empty.
    """
    if isinstance(image, str | os.PathLike):
        return decode_file(Path(image), max_pixels)
    if isinstance(image, Image.Image):
        return decode_pillow(image, max_pixels)
    if isinstance(image, np.ndarray):
        _check(str(image.dtype), image.shape, channels=2, layout="array [H, W, 3]")
        # Copied: torch can neither share an array that is read-only nor one that runs backwards, such as BGR turned.
        return tv_tensors.Image(torch.from_numpy(image.copy()).permute(2, 0, 1))
    if isinstance(image, Tensor):
        _check(str(image.dtype).removeprefix("torch."), tuple(image.shape), channels=0, layout="tensor [3, H, W]")
        return tv_tensors.Image(image.detach().cpu())
    raise TypeError(f"expected {EXPECTED}; found {type(image).__name__}")


def coco_document(
    categories: CategoryMap, predictions: Sequence[ImagePrediction], image_ids: Sequence[int], file_names: Sequence[str]
) -> dict[str, Any]:
    """Return predictions as a whole COCO file, which ``pycocotools`` and labelling tools can read.

    Args:
        categories: of the model; labels that stand for nothing are left out.
        predictions: one an image; may be empty.
        image_ids: of each image, all different.
        file_names: of each image.
    """
    images = []
    annotations: list[dict[str, Any]] = []
    for prediction, image_id, file_name in zip(predictions, image_ids, file_names, strict=True):
        height, width = prediction.size
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        annotations += prediction.to_coco(image_id, first_id=len(annotations) + 1)
    named = [{"id": category_id, "name": name} for category_id, name in categories.names_by_id.items()]
    # Importers of labelling tools want the first two; without outlines, "segmentation" must be absent.
    head = {"info": {"description": "objects found by loradetr"}, "licenses": []}
    return {**head, "images": images, "annotations": annotations, "categories": named}


def _check(dtype: str, shape: tuple[int, ...], *, channels: int, layout: str) -> None:
    found = f"found {dtype} {list(shape)}"
    if dtype != "uint8":
        raise TypeError(f"expected a uint8 {layout} with values 0 to 255, {found}")
    if len(shape) != 3 or shape[channels] != 3 or 0 in shape:
        raise ValueError(f"expected a uint8 {layout} in RGB, {found}")
