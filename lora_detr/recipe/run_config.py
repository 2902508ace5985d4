"""The configuration of a run: every section in one place, and the builders that flatten it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from lora_detr.branches import (
    AuxiliaryBranches,
    BranchClasses,
    BranchConfig,
    BranchedDetector,
    LoRABranch,
    LoRAConfig,
    share_first_draw,
)
from lora_detr.config.base import Strict
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.source import AUTO, ReadAs, VocDifficult, VocOffset
from lora_detr.data.images import MAX_PIXELS, MaxPixels
from lora_detr.data.layouts.registry import Format
from lora_detr.data.transforms import EvalTransformConfig, TrainTransformConfig
from lora_detr.errors import ConfigError
from lora_detr.losses.config import CriterionConfig
from lora_detr.losses.criterion import Criterion
from lora_detr.models import (
    AnyDetector,
    DeformableDetrConfig,
    DetectorConfig,
    HuggingFaceConfig,
    RelationDetrConfig,
)
from lora_detr.models.transformer_config import TransformerConfig
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.optimisation import OptimizerConfig, ScheduleConfig
from lora_detr.recipe.preparation import MaxDetections, MinScore, SizeDivisor, Suppression
from lora_detr.structures import Matcher

# Parts of a detector whose layers can run again in backward.
RecomputedPart = Literal["backbone", "encoder", "decoder"]


class DataConfig(Strict):
    """What is trained on and how images are prepared."""

    path: str | None = None
    """Data set: COCO folder, YAML file of paths, or an export that is recognised (see ``format``)."""
    format: Format = AUTO
    """Layout of the data set. ``auto`` recognises it; else coco, roboflow, yolo, voc, cvat or label-studio."""
    voc_offset: VocOffset = AUTO
    """Coordinate of the first pixel in Pascal VOC files.

    ``auto`` takes 1 if no box of the training split begins at 0 and one ends at the border of its image, else 0.
    """
    voc_difficult: VocDifficult = "ignore"
    """Objects marked as difficult in Pascal VOC files. ``ignore`` makes them crowd regions, ``keep`` trains on them."""
    num_classes: Literal["auto", "coco91"] = "auto"
    """Classes to predict. ``auto``: the data set's own; ``coco91``: COCO's ids in 91 slots (official weights)."""
    on_bad_data: Literal["error", "skip"] = "error"
    """Stop at invalid data, or skip it. Invalid are malformed or negative boxes, and images that cannot be read.

    ``skip`` drops and counts such boxes, and leaves out images whose file is missing (more than half of them missing
    is an error all the same). In training the next image that can be read, by id, replaces one that cannot, and in
    evaluation it is left out.
    """
    strict: bool = False
    """Stop at empty boxes, shared images.

    Boxes without width or height, or outside their image, are errors instead of being dropped and counted. So are
    images that the training and the validation split share, and boxes that are not x, y, width, height in pixels,
    instead of warnings.
    """
    allow_outside: bool = False
    """Allow images outside their folder. File names may then be absolute, or lead out of it."""
    verify: Literal["none", "decode", "hash"] = "none"
    """Check all images before a run. Decode each, or compare it with ``SHA256SUMS`` (by ``sha256sum``) beside it."""
    max_pixels: MaxPixels = MAX_PIXELS
    """Width times height of the largest image that is decoded. A larger one cannot be read (see ``on_bad_data``)."""
    workers: int = Field(2, ge=0)
    """Processes that load images."""
    size_divisor: SizeDivisor = 1
    """Padded sizes are rounded up to a multiple of it."""
    group_by_shape: bool = False
    """Put images of similar aspect ratio into the same batch, so that less is padded: tall ones apart from the rest."""
    train: TrainTransformConfig = TrainTransformConfig()
    """Augmentation."""
    evaluation: EvalTransformConfig = EvalTransformConfig()
    """Preparation for evaluation."""

    @property
    def read_as(self) -> ReadAs:
        """How the files are read."""
        return ReadAs(self.format, self.voc_offset, self.voc_difficult)


class EvalConfig(Strict):
    """How the detector is evaluated."""

    # COCO's AP counts as many.
    max_detections: MaxDetections = 100
    """Detections kept of each image."""
    min_score: MinScore = None
    """What a detection must score more than; null keeps all, as COCO's numbers need."""
    suppression: Suppression = "per-class"
    """What ``--nms`` drops: what overlaps a better box of its class, or of ``any-class`` among those kept."""
    batch_size: int = Field(2, ge=1)
    """Images of one forward pass."""
    every: int = Field(1, ge=1)
    """Epochs between evaluations, each with a checkpoint; the last epoch always has both."""


class TrainConfig(Strict):
    """How long and with what."""

    # The paper's 12 epochs. Batches of 2 are those of the authors' scripts, on 8 GPUs.
    epochs: int = Field(12, ge=1)
    """Passes over the training split."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps."""
    batch_size: int = Field(2, ge=1)
    """Images per process and forward pass."""
    accumulate: int = Field(1, ge=1)
    """Gradient accumulation steps. Forward passes per optimiser step."""
    seed: int = Field(42, ge=0)
    """Random seed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Forward-pass precision. ``bf16`` is by autocast; matching and losses stay in float32."""
    device: str = "auto"
    """Device to train on. ``auto``, ``cpu`` or ``cuda``."""
    # Half an hour, PyTorch's default for gloo: the others wait while one rank computes COCO's numbers.
    rank_timeout: float = Field(1800.0, gt=0)
    """Seconds that a process waits for the others before the run is given up."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of ``metrics.jsonl``."""
    on_full_log: Literal["warn", "error"] = "warn"
    """When a disk is too full for a line of a log: leave it out, warn once and train on, or end the run."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints in an epoch. A killed run loses at most this many; null saves at evaluations only."""
    # Two, so that one is left if the newest is damaged.
    keep_last: int = Field(2, ge=1)
    """Newest checkpoints kept, besides the best."""
    keep_every: int | None = Field(None, ge=1)
    """Epochs between permanent checkpoints. Null keeps only the newest and the best."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """EMA decay of the weights, e.g. 0.9997. What is evaluated and deployed is then this running average.

    Early on a smaller decay is used, (1 + n) / (10 + n) after n updates, so a short run hardly depends on this value.
    """
    freeze: tuple[str, ...] = ()
    """Prefixes of parameters to freeze, e.g. ``detector.backbone``."""
    recompute: tuple[RecomputedPart, ...] = ()
    """Recompute backbone, encoder or decoder to save memory. Layers run again in backward; results stay identical."""
    tensorboard: bool = False
    """Also log for TensorBoard. The files are in ``tensorboard/`` of the run."""
    diagnostics: int | None = Field(None, ge=1)
    """Log branch diversity every N steps. ``diagnostics.jsonl`` compares positives and gradients; null: never."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its parameter groups."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over time."""


class RunConfig(Strict):
    """Everything that defines a run."""

    model: DetectorConfig = DeformableDetrConfig()
    """The detector that will be deployed."""
    branches: tuple[BranchConfig, ...] = Field((), max_length=32)
    """Auxiliary branches, dropped at inference; an empty list is the plain detector."""
    loss: CriterionConfig = CriterionConfig()
    """Matching and losses."""
    data: DataConfig = DataConfig()
    """Data set and transforms."""
    train: TrainConfig = TrainConfig()
    """Optimisation."""
    evaluation: EvalConfig = EvalConfig()
    """Evaluation."""
    weights: str | None = None
    """Run, checkpoint, stripped file or official ``.pth`` that the weights start from; what does not fit is listed."""

    @model_validator(mode="after")
    def _check_sections_fit(self) -> RunConfig:
        for i, branch in enumerate(self.branches):
            if branch.matcher.k > self.model.num_queries:
                raise ValueError(
                    f"`branches.{i}.matcher.k` is {branch.matcher.k} but `{self.model.queries_key}` is "
                    f"{self.model.num_queries}; lower k or raise the number of queries"
                )
        if self.loss.encoder.classes == "own" and not isinstance(self.model, RelationDetrConfig):
            raise ValueError(
                f"`loss.encoder.classes` is own but `model.kind` is {self.model.kind}, which ranks proposals by their "
                "first class alone; use foreground"
            )
        if isinstance(self.model, HuggingFaceConfig):
            self._check_fits_transformers(self.model)
        return self

    @property
    def primary_weights(self) -> dict[str, float]:
        """Weight of each kind of loss of the primary path."""
        if isinstance(self.model, HuggingFaceConfig):
            return self.model.loss_weights
        return self.loss.primary.weights.by_kind()

    @property
    def own_model(self) -> TransformerConfig:
        """Settings of a detector of this package.

        Raises:
            ConfigError: it is one of ``transformers``.
        """
        if isinstance(self.model, HuggingFaceConfig):
            raise ConfigError(
                f"this works for detectors of lora_detr only, not for {self.model.model_type} of transformers",
                "choose another --preset",
            )
        return self.model

    def _check_fits_transformers(self, model: HuggingFaceConfig) -> None:
        """Refuse what a detector of ``transformers`` cannot do: its primary path and its loss are its own."""
        for i, branch in enumerate(self.branches):
            if branch.kind == "cross-ffn":
                raise ValueError(
                    f"`branches.{i}.kind` is cross-ffn, which reads what no detector of transformers shows"
                )
        default = CriterionConfig()
        for part in ("primary", "encoder", "hybrid", "denoising", "dac"):
            if getattr(self.loss, part) != getattr(default, part):
                raise ValueError(
                    f"`loss.{part}` has no effect: the losses beside the branches are those of transformers"
                )
        if self.loss.branch.merge_one_to_one:
            raise ValueError(
                "`loss.branch.merge_one_to_one` needs the primary path's pairs, which the losses of transformers keep "
                "to themselves"
            )
        if self.loss.branch.shift is not None:
            raise ValueError("`loss.branch.shift` weighs the primary path's losses, which are those of transformers")
        if self.train.recompute:
            raise ValueError("`train.recompute` is not for detectors of transformers; leave it empty")
        multiple = model.family.size_multiple(model.config)
        for name, prepared in (("train", self.data.train), ("evaluation", self.data.evaluation)):
            if model.family.ignores_mask and not prepared.square:
                raise ValueError(
                    f"`data.{name}.square` is false, but {model.model_type} does not see what is padding; "
                    "set it to true"
                )
            sides = (prepared.size,) if isinstance(prepared, EvalTransformConfig) else prepared.scales
            if model.family.ignores_mask and len(sides) > 1:
                raise ValueError(
                    f"`data.{name}.scales` has {len(sides)} sizes, so that batches would be padded, which "
                    f"{model.model_type} does not see; give one"
                )
            if prepared.square and any(side % multiple for side in sides):
                raise ValueError(f"`data.{name}`: {model.model_type} takes sides that are multiples of {multiple}")
            strides = model.config.get("feat_strides")
            if prepared.square and isinstance(strides, list):
                tokens = sum((min(sides) // stride) ** 2 for stride in strides if isinstance(stride, int))
                if tokens < model.num_queries:
                    raise ValueError(
                        f"`{model.queries_key}` is {model.num_queries}, but images of {min(sides)} pixels give "
                        f"{tokens} places to choose from; lower it or take larger images"
                    )
        if self.data.size_divisor % multiple and not self.data.evaluation.square:
            raise ValueError(
                f"`data.size_divisor` is {self.data.size_divisor}, but {model.model_type} takes multiples of {multiple}"
            )

    @property
    def branch_names(self) -> tuple[str, ...]:
        """Names of the branches, as logs and ``--branch`` use them."""
        return tuple(f"branch{i}" for i in range(len(self.branches)))

    def resolved(self) -> RunConfig:
        """Replace what depends on this machine by what was found, so that the run can be repeated elsewhere."""
        return self.model_copy(update={"model": self.model.resolved(self.train.batch_size)})

    def build_model(self, num_classes: int, load_weights: bool) -> BranchedDetector[AnyDetector]:
        """Build detector and branches.

        Args:
            num_classes: K.
            load_weights: read the backbone's pretrained weights; false when a checkpoint follows.

        Raises:
            CheckpointError: the backbone's weights cannot be fetched, read or fitted.
            ConfigError: the backbone does not exist.
        """
        detector = self.model.build(num_classes, load_weights)
        sizes = (self.model.decoder_layers, self.model.hidden_dim, self.model.ffn_dim, self.model.dropout)
        built = [branch.build(*sizes) for branch in self.branches]
        pairs = zip(built, self.branches, strict=True)
        share_first_draw(
            [
                one
                for one, config in pairs
                if isinstance(one, LoRABranch) and isinstance(config, LoRAConfig) and config.shared_draw
            ]
        )
        kind = self.loss.branch.class_layer
        own = built and kind != "shared"
        classes = BranchClasses(kind, len(built), detector.class_layers()) if own else None
        return BranchedDetector(detector, AuxiliaryBranches(built, classes))

    def build_criterion(self, branch_matchers: Sequence[Matcher] | None = None) -> Criterion:
        """Build matchers and losses.

        Args:
            branch_matchers: one for each branch, in place of those that the settings name.

        Raises:
            ConfigError: there are more or fewer matchers than branches, or one gives no scores where they are compared.
        """
        matchers = [branch.matcher.build() for branch in self.branches] if branch_matchers is None else branch_matchers
        if len(matchers) != len(self.branches):
            message = f"expected a matcher for each of {len(self.branches)} branches, found {len(matchers)}"
            raise ConfigError(message, "give as many as `branches` lists")
        return Criterion(self.model.decoder_layers, self.loss, self.branch_names, matchers, self.model.has_denoising)

    def deployment(self, categories: CategoryMap) -> DeploymentConfig:
        """Return what inference needs to know, without anything of this machine."""
        mean, std = self.model.input_statistics
        return DeploymentConfig(
            model=self.model.for_inference(),
            transform=self.data.evaluation,
            size_divisor=self.data.size_divisor,
            max_detections=self.evaluation.max_detections,
            min_score=self.evaluation.min_score,
            suppression=self.evaluation.suppression,
            max_pixels=self.data.max_pixels,
            mean=mean,
            std=std,
            category_ids=categories.ids,
            category_names=categories.names,
        )
