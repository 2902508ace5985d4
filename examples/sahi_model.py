"""A detector for the package sahi, which predicts on overlapping tiles of large photos.

    pip install sahi
    python examples/sahi_model.py stripped.safetensors large_photo.jpg

`loradetr predict MODEL PHOTO --tiles 640` does much the same without that package.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sahi.models.base import DetectionModel
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction

import lora_detr


class LoraDetrModel(DetectionModel):
    """Finds objects in one tile."""

    def load_model(self) -> None:
        """Open a run, a checkpoint, or a stripped file."""
        self.set_model(lora_detr.load(self.model_path, device=str(self.device)))

    def set_model(self, model: Any, **_: Any) -> None:
        """Take what ``lora_detr.load`` returned."""
        self.model = model
        self.category_mapping = {str(i): name for i, name in model.categories.names_by_id.items()}

    def perform_inference(self, image: NDArray[np.uint8]) -> None:
        """Predict on one tile, [H, W, 3] in RGB."""
        self._original_predictions = self.model.predict(image, score=self.confidence_threshold)

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = ((0, 0),), full_shape_list: Any = None
    ) -> None:
        found = self._original_predictions
        shift = shift_amount_list[0] if np.ndim(shift_amount_list) == 2 else shift_amount_list
        full = full_shape_list[0] if full_shape_list and np.ndim(full_shape_list) == 2 else full_shape_list
        entries = zip(
            found.boxes_xyxy_pixels.tolist(), found.category_ids, found.names, found.scores.tolist(), strict=True
        )
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=box,
                    category_id=category_id,
                    category_name=name,
                    score=score,
                    shift_amount=list(shift),
                    full_shape=list(full or found.size),
                )
                for box, category_id, name, score in entries
            ]
        ]


if __name__ == "__main__":
    detector = LoraDetrModel(model_path=sys.argv[1], confidence_threshold=0.3)
    result = get_sliced_prediction(sys.argv[2], detector, slice_height=640, slice_width=640)
    for entry in result.object_prediction_list:
        print(entry.category.name, round(entry.score.value, 2), [round(side) for side in entry.bbox.to_xyxy()])
