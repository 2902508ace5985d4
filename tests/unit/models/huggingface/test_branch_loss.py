"""The loss of branches beside RT-DETR is that of RT-DETR; boxes reach its loss relative to the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from lora_detr.losses.config import ClassificationConfig, TermWeights
from lora_detr.losses.source import Source, all_terms, source_keys
from lora_detr.models.huggingface import HuggingFaceDetector
from lora_detr.structures import Assignment, Images, PaddedTargets, Prediction, Target
from tests import huggingface_models

Q, K = 30, 3


def test_iou_aware_is_the_varifocal_loss_of_rt_detr() -> None:
    from transformers.loss.loss_rt_detr import RTDetrLoss

    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, Q, K, generator=generator)
    centres = torch.rand(2, Q, 2, generator=generator)
    boxes = torch.cat((centres, 0.1 + 0.5 * torch.rand(2, Q, 2, generator=generator)), -1)
    objects = [Target(boxes[i, 5 : 5 + n] * 0.9 + 0.02, torch.arange(n) % K, i, (9, 9)) for i, n in enumerate((4, 2))]
    theirs: Any = RTDetrLoss(huggingface_models.CONFIGS["rt_detr"]())
    labels = [{"class_labels": one.labels, "boxes": one.boxes} for one in objects]
    indices = [(torch.arange(5, 5 + n), torch.arange(n)) for n in (4, 2)]
    outputs = {"logits": logits, "pred_boxes": boxes}
    expected = [
        theirs.loss_labels_vfl(outputs, labels, indices, 6)["loss_vfl"],
        theirs.loss_boxes(outputs, labels, indices, 6)["loss_bbox"],
        theirs.loss_boxes(outputs, labels, indices, 6)["loss_giou"],
    ]
    targets = PaddedTargets.from_targets(objects)
    query = (5 + torch.arange(4)).view(1, 1, 4, 1).expand(1, 2, 4, 1)
    pairs = Assignment(query, torch.zeros(1, 2, 4, 1), targets.mask[None, :, :, None])
    source = Source(
        source_keys([("branch0", 0)]),
        Prediction(logits[None], boxes[None]),
        pairs,
        targets.labels,
        "iou-aware",
        "iou",
        one_to_one=True,
        weights=TermWeights(),
        normaliser=1.0,
    )
    found = all_terms([source], targets, ClassificationConfig()) / 6
    assert torch.allclose(found, torch.stack(expected), rtol=1e-6)


def test_boxes_of_a_padded_batch_are_relative_to_each_image() -> None:
    """The image processors of transformers make them relative to the padded batch instead."""
    detector = HuggingFaceDetector(huggingface_models.build("deformable_detr")).train()
    padding = torch.ones(2, 640, 640, dtype=torch.bool)
    padding[0, :300, :500] = padding[1] = False
    images = Images(torch.randn(2, 3, 640, 640), padding, torch.tensor([[300, 500], [640, 640]]))
    centred = Target(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([1]), 0, (300, 500))
    other = Target(torch.tensor([[0.35, 0.35, 0.5, 0.5]]), torch.tensor([0]), 1, (640, 640))
    kept: list[Any] = []
    own = detector.loss
    detector.loss = lambda logits, labels, *rest, **named: (kept.extend(labels), own(logits, labels, *rest, **named))[1]
    output = detector(images, [centred, other])
    assert output.own_loss is not None
    output.own_loss()
    assert [labels["boxes"].tolist() for labels in kept] == [centred.boxes.tolist(), other.boxes.tolist()]
