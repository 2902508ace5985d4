"""A detector as a folder that ``transformers`` reads: weights, config, image processor, model card.

Beside these stands what only this program reads: preparation of images in full, and the operating point. It counts as
long as the weights are those it was written with.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from lora_detr.atomic_files import write_file
from lora_detr.checkpoints.huggingface.classes import categories_of
from lora_detr.checkpoints.huggingface.writing import CONFIG, WEIGHTS, write_model
from lora_detr.checkpoints.manifest import hash_file
from lora_detr.checkpoints.stripped_file import StrippedFile
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.errors import counted, listed
from lora_detr.json_value import JSON, json_text
from lora_detr.models.huggingface import HuggingFaceConfig, HuggingFaceDetector
from lora_detr.models.huggingface.pretrained import Pretrained, read_pretrained, read_weights
from lora_detr.models.huggingface.processor import FILE as PROCESSOR
from lora_detr.models.huggingface.versions import PREFIX
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.preparation import describe_suppression
from lora_detr.tensor_files import build_exact

logger = logging.getLogger("lora_detr")

DEPLOYMENT = "loradetr.json"
CARD = "README.md"


def is_transformers(path: Path) -> bool:
    """Return whether a path is such a folder, or a name behind ``hf:``."""
    return str(path).startswith(PREFIX) or (path / CONFIG).is_file()


def read_folder(path: Path, data: Path | None = None) -> StrippedFile:
    """Read a folder, or a name of the hub behind ``hf:``, that this program or anyone else has written.

    Args:
        path: of the folder.
        data: data set that has the ids of its classes, where the folder has none.

    Raises:
        CheckpointError: there is nothing, it cannot be read, or it has classes that the data set has not.
        ConfigError: the package is missing, or it is no detector of a known family.
        LoraDetrError: the data cannot be read.
    """
    source = str(path).removeprefix(PREFIX)
    config = _stored(Path(source))
    if config is None:
        found = read_pretrained(source)
        config = _of_others(found, categories_of(found, data)[0])
        if found.preparation.note:
            logger.info("%s", found.preparation.note)
    weights = read_weights(source)
    for note in weights.notes:
        logger.warning("%s", note)
    return StrippedFile(build_exact(config.build, weights.tensors, path).eval(), config)


def write_folder(folder: Path, detector: HuggingFaceDetector, deployment: DeploymentConfig, training: str) -> None:
    """Write a detector for ``transformers`` and for this program.

    Args:
        folder: exists and is empty.
        detector: its config gets the classes.
        deployment: of the detector.
        training: a sentence on how it was trained, for the model card.

    Raises:
        OutputError: something cannot be written.
    """
    own = deployment.model
    assert isinstance(own, HuggingFaceConfig)
    write_model(folder, folder, detector.model, deployment, own.processor)
    written: dict[str, JSON] = {
        "weights_sha256": hash_file(folder / WEIGHTS),
        "deployment": deployment.model_dump(mode="json"),
    }
    write_file(folder / DEPLOYMENT, (json_text(written, indent=1) + "\n").encode())
    write_file(folder / CARD, _card(own, deployment, training).encode())


def _stored(folder: Path) -> DeploymentConfig | None:
    """Return what was written beside these weights; None if there is nothing, or if it cannot be used."""
    file = folder / DEPLOYMENT
    try:
        written = json.loads(file.read_bytes())
        if written["weights_sha256"] == hash_file(folder / WEIGHTS):
            return DeploymentConfig.model_validate_json(json.dumps(written["deployment"]))
        reason = f"{WEIGHTS} is not the file that it was written with"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it cannot be read ({type(error).__name__})"
    logger.warning("%s is ignored: %s; thresholds are unknown, the other files have the rest", file, reason)
    return None


def _of_others(found: Pretrained, classes: CategoryMap) -> DeploymentConfig:
    ready = found.preparation
    return DeploymentConfig(
        model=found.model,
        transform=EvalTransformConfig(size=ready.size, max_size=ready.max_size, square=ready.square),
        size_divisor=ready.divisor,
        max_detections=100,
        mean=ready.mean,
        std=ready.std,
        category_ids=classes.ids,
        category_names=classes.names,
    )


def _card(own: HuggingFaceConfig, deployment: DeploymentConfig, training: str) -> str:
    names = deployment.categories.names_by_id
    size = deployment.transform.size
    shape = f"{size} x {size} pixels" if deployment.transform.square else f"shorter side {size} pixels"
    point = deployment.operating_point
    score, advice = 0.3, "No evaluation has chosen a score threshold yet."
    if point is not None and not point.f1:
        advice = "Its evaluation found no object at any score threshold."
    elif point is not None:
        score = point.score
        advice = (
            f"Best F1 on its validation split ({point.f1:.3f} at IoU 0.5): scores from {point.score:.2f}, "
            f"{describe_suppression(point.nms_iou)}."
        )
    return f"""---
library_name: transformers
pipeline_tag: object-detection
tags: [object-detection, {own.model_type}, lora-detr]
---

# {own.model_type}, fine-tuned with LoRA-DETR

Finds {counted(len(names), "class", "classes")}: {listed(names.values(), 20)}.

{training} This is a plain `{own.model_type}`. Images are prepared with {shape}; `{PROCESSOR}` has all of it.

{advice} COCO's AP is measured on all scores, without suppression.

```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

processor = AutoImageProcessor.from_pretrained("THIS_FOLDER")
model = AutoModelForObjectDetection.from_pretrained("THIS_FOLDER").eval()
image = Image.open("photo.jpg").convert("RGB")
found = processor.post_process_object_detection(
    model(**processor(image, return_tensors="pt")), target_sizes=[image.size[::-1]], threshold={score:.2f}
)
```

`loradetr predict THIS_FOLDER photo.jpg` does the same, with a threshold for each class where one was
chosen. The license is that of the weights it was fine-tuned from and of the data; both are for you to state here.
"""
