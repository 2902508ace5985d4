"""Made-up training steps as large as those of a preset, for measuring what supervises them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_detr.config.load import load_config
from lora_detr.errors import ConfigError
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.normaliser import Normaliser
from lora_detr.models.denoising import DenoisingQueries
from lora_detr.models.relation_detr import RelationDetrConfig
from lora_detr.recipe.branch_counts import branch_ks
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs.request import system_of
from lora_detr.structures import EncoderOutput, Prediction, QueryGroupOutput, Target
from tests.unit.losses.step_outputs import Step, make_step
from tests.unit.matchers.random_problems import draw_boxes, near_targets

CLASSES = 91
TOKENS = 60 * 80 + 30 * 40 + 15 * 20 + 8 * 10
"""Of the encoder for images of 480x640 pixels, at strides 8, 16, 32 and 64."""


@dataclass(frozen=True)
class Case:
    """A made-up step with the settings that it is supervised by.

    Attributes:
        config: of the preset, with as many branches as were asked for.
        criterion: ours.
        step: outputs and targets.
        leaves: all tensors of ``step`` that want a gradient: logits and boxes of each layer.
        normaliser: of the losses.
        priority: float [N * L, B, Q], which candidates stay where there are too many.
    """

    config: RunConfig
    criterion: Criterion
    step: Step
    leaves: Sequence[Tensor]
    normaliser: Normaliser
    priority: Tensor

    def total(self, priority: Tensor | None = None) -> Tensor:
        """Return our total; without a priority candidates are drawn, as in training."""
        step = self.step
        targets = replace(step.targets)  # as new in every step: they keep what was computed of them
        total: Tensor = self.criterion(step.output, step.branches, targets, self.normaliser, priority).total
        return total


def synthetic_case(
    preset: str,
    images: int,
    objects: int,
    branches: int,
    *,
    queries: int | None = None,
    classes: int = CLASSES,
    tokens: int = TOKENS,
    device: str = "cpu",
) -> Case:
    """Draw a step, always the same for equal arguments.

    Args:
        preset: whose losses, matchers and query groups are taken.
        images: B, at least 1.
        objects: of each image; may be 0.
        branches: N; may be 0.
        queries: Q instead of the preset's; hybrid queries are cut down to as many.
        classes: K.
        tokens: S, at least Q.
        device: where all tensors are.

    Raises:
        ConfigError: the preset is unknown, or has no branches that further ones could be like.
    """
    config = _with_branches(preset, branches)
    layers, num_queries = config.model.decoder_layers, queries or config.model.num_queries
    leaves: list[Tensor] = []

    def leaf(prediction: Prediction) -> Prediction:
        parts = [part.detach().clone().requires_grad_() for part in (prediction.logits, prediction.boxes)]
        leaves.extend(parts)
        return Prediction(*parts)

    def proposals(encoder: EncoderOutput, selected: int) -> EncoderOutput:
        best = encoder.prediction.logits.amax(-1).topk(selected).indices
        return replace(encoder, prediction=leaf(encoder.prediction), selected=best)

    with torch.device(device):
        step = make_step(
            0,
            layers=layers,
            branches=branches,
            counts=[objects] * images,
            queries=num_queries,
            classes=classes,
            tokens=tokens,
        )
        output, side_car = step.output, step.branches
        assert output.encoder is not None
        output = replace(
            output,
            layers=tuple(replace(layer, prediction=leaf(layer.prediction)) for layer in output.layers),
            encoder=proposals(output.encoder, num_queries),
            groups=tuple(
                replace(
                    group,
                    layers=tuple(map(leaf, group.layers)),
                    encoder=group.encoder and proposals(group.encoder, group.layers[0].boxes.shape[1]),
                )
                for group in _query_groups(config, step.images, num_queries, classes, tokens)
            ),
        )
        side_car = side_car and replace(side_car, layers=tuple(map(leaf, side_car.layers)))
        priority = torch.rand(branches * layers, images, num_queries)
    normaliser = config.loss.normalise(float(images * objects), 1)
    step = replace(step, output=output, branches=side_car)
    return Case(config, config.build_criterion(), step, leaves, normaliser, priority)


def _with_branches(preset: str, count: int) -> RunConfig:
    """Return a preset with so many branches, all but k like its first."""
    config = load_config(RunConfig, preset=preset).config
    if not config.branches:
        raise ConfigError(
            f"preset {preset}: expected branches, found none", "name one that has some, such as deformable-lora3"
        )
    first = config.branches[0]
    ks = branch_ks(count, system_of(config), first.kind)
    branches = tuple(first.model_copy(update={"matcher": first.matcher.model_copy(update={"k": k})}) for k in ks)
    return config.model_copy(update={"branches": branches})


def _query_groups(
    config: RunConfig, images: tuple[Target, ...], queries: int, classes: int, tokens: int
) -> list[QueryGroupOutput]:
    """Draw what the denoising and the hybrid queries of a preset give, as far as it has them."""
    model, groups = config.model, []

    def predicted(boxes: Tensor) -> Prediction:
        return Prediction(torch.randn(*boxes.shape[:-1], classes), boxes)

    if isinstance(model, RelationDetrConfig) and model.denoising is not None:
        noised = DenoisingQueries(1, classes, **model.denoising.model_dump(), eps=1e-3)(images, queries)
        boxes = noised.reference.detach().expand(model.decoder_layers, -1, -1, -1)
        restored = (boxes * (1 + 0.05 * torch.randn_like(boxes))).clamp(0.001, 0.999)
        layers = tuple(map(predicted, restored))
        groups.append(QueryGroupOutput("denoising", layers, pairs=noised.pairs, copies=noised.groups))
    if model.hybrid is not None:
        number = min(model.hybrid.num_queries, tokens)
        boxes = near_targets(draw_boxes(model.decoder_layers, len(images), number), images)
        proposed, anchors = near_targets(draw_boxes(2, len(images), tokens), images)
        groups.append(
            QueryGroupOutput("hybrid", tuple(map(predicted, boxes)), EncoderOutput(predicted(proposed), anchors))
        )
    return groups
