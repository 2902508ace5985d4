"""What the classes of a folder of ``transformers`` are called by their data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from lora_detr.checkpoints.huggingface.classes import categories_of
from lora_detr.checkpoints.huggingface.system import settings_of
from lora_detr.data.coco.categories import COCO_NAMES, CategoryMap
from lora_detr.errors import CheckpointError
from lora_detr.models.huggingface.config import CATEGORY_IDS
from lora_detr.models.huggingface.pretrained import Pretrained, pretrained_of
from tests import huggingface_models

NAMES = ("cell", "plate", "rest")


def folder(*names: str, ids: Any = None) -> Pretrained:
    config = huggingface_models.CONFIGS["deformable_detr"](id2label=dict(enumerate(names)), num_labels=len(names))
    if ids is not None:
        setattr(config, CATEGORY_IDS, ids)
    return pretrained_of("folder", config, None)


def test_ids_of_classes_are_those_stored_else_cocos_else_the_data_sets(shapes_tiny: Path) -> None:
    for data in (None, shapes_tiny):
        assert categories_of(folder(*NAMES, ids=[7, 3, 12]), data)[0] == CategoryMap((7, 3, 12), NAMES)
    assert categories_of(folder(*NAMES)) == (
        CategoryMap((0, 1, 2), NAMES),
        "labels serve as ids; --data gives a data set's own",
    )
    assert categories_of(folder("circle"), shapes_tiny)[0] == CategoryMap((3,), ("circle",))


def test_cocos_names_have_cocos_ids(shapes_tiny: Path) -> None:
    slots = CategoryMap.coco91(COCO_NAMES)
    names = tuple(COCO_NAMES.values())
    assert (len(slots.names), len(names)) == (91, 80)
    for data in (None, shapes_tiny):
        assert categories_of(folder(*slots.names), data) == (slots, "labels are COCO's ids")
        assert categories_of(folder(*names), data) == (CategoryMap(tuple(COCO_NAMES), names), "ids are COCO's")
    assert categories_of(folder("dog", "cat"))[0] == CategoryMap((18, 17), ("dog", "cat"))
    assert categories_of(folder("dog", "dog"))[0] == CategoryMap((0, 1), ("dog", "dog"))
    # A data set of some of these has ids of its own.
    with pytest.raises(CheckpointError, match="has no category dog, cat"):
        categories_of(folder("dog", "cat"), shapes_tiny)


@pytest.mark.parametrize("ids", [[1, 2], [1, 1, 2], ["1", "2", "3"], 5])
def test_stored_ids_that_cannot_be_used_are_an_error(ids: Any) -> None:
    with pytest.raises(CheckpointError, match="hf:folder: loradetr_category_ids: "):
        categories_of(folder(*NAMES, ids=ids), None)


def test_data_of_other_classes_is_an_error(shapes_tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="has no category cell, plate, rest"):
        categories_of(folder(*NAMES), shapes_tiny)
    with pytest.raises(CheckpointError, match="some classes share a name"):
        categories_of(folder("circle", "circle"), shapes_tiny)


def test_a_run_with_cocos_labels_is_of_coco() -> None:
    given = {"two_stage": True, "with_box_refine": True, "id2label": dict(enumerate(NAMES))}
    import transformers

    pretrained = pretrained_of("folder", transformers.DeformableDetrConfig(**given), None)
    coco = CategoryMap.coco91(COCO_NAMES)
    assert settings_of(pretrained, coco, None).data.num_classes == "coco91"


def test_settings_of_a_run_keep_no_ids_of_other_classes() -> None:
    """A fine-tuning on other classes would write them back with its own names."""
    model = folder(*NAMES, ids=[7, 3, 12]).model
    assert CATEGORY_IDS not in model.config
    assert not hasattr(model.own_config(2), CATEGORY_IDS)
