"""One optimiser step, as a straight line, with its finite check."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import Signals
from typing import Literal

import torch
from torch import nn

from lora_detr.errors import NumericalError
from lora_detr.losses.criterion import MIDDLE, Criterion, NonFiniteMatchError
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.report import LossReport, LossTerm, named_terms
from lora_detr.losses.source import Source
from lora_detr.ops.host import to_host
from lora_detr.processes.stopping import StopSignals, named
from lora_detr.processes.world import World
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Batch, BranchOutput, DetectorOutput, PaddedTargets
from lora_detr.training.nonfinite import BatchRecord, MatchFault, NonFiniteLossError, NonFiniteStep, RankRecord
from lora_detr.training.seeding import torch_state, torch_state_to_json

# Sees what was matched and the losses of each micro-batch before their backward pass.
Observer = Callable[[Sequence[Source], LossReport, PaddedTargets], None]

# Updates skipped in a row, for a gradient that is not finite, before the run is given up: an unlucky batch
# overflows once, but weights that are past repair give no finite gradient again.
MAX_SKIPPED = 10


class GradientError(NumericalError):
    """Too many gradients in a row were not finite; they are those of all processes together."""

    on_all_ranks = True


@dataclass(frozen=True)
class StepResult:
    """What a step did, on the host.

    Attributes:
        loss: the weighted total of this process's share times the number of processes, that is, its estimate of the
            loss of the global batch.
        terms: before weighting.
        gradient_norm: before clipping.
        skipped: the gradient was not finite and nothing was updated.
        seconds: of the whole step.
        signal: any process got meanwhile that asks the run to end.
    """

    loss: float
    terms: tuple[LossTerm, ...]
    gradient_norm: float
    skipped: bool
    seconds: float
    signal: Signals | None = None


def forward(
    model: nn.Module, batch: Batch, precision: Literal["fp32", "bf16"]
) -> tuple[DetectorOutput, BranchOutput | None]:
    """Return what detector and branches say of a batch in training.

    Args:
        model: both, perhaps wrapped.
        batch: on the device of the model.
        precision: of the pass; losses that follow are computed in float32.
    """
    with torch.autocast(batch.images.pixels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output, branches = model(batch.images, batch.targets)
    return output, branches


class Stepper:
    """Owns what a step needs; keeps count of skipped updates.

    Between steps, ``observer`` and ``progress`` (the share of the run that is behind) may be set.

    Args:
        model: what is trained, as wrapped for gradient averaging.
        criterion: the losses.
        optimizer: updates the parameters.
        config: precision, clipping, normaliser.
        world: ranks and device.
        signals: what asks the run to end; looked at in every step.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        world: World,
        signals: StopSignals | None = None,
    ) -> None:
        self.model, self.criterion, self.optimizer, self.world = model, criterion, optimizer, world
        self.signals = signals or StopSignals()
        self.config = config
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = config.train.optimizer.clip_norm
        self.clip_norm = math.inf if limit is None else limit
        self.skipped_in_a_row = 0
        self.skipped = 0
        self.observer: Observer | None = None
        self.progress = MIDDLE

    def __call__(self, batches: Sequence[Batch], step: int) -> StepResult:
        """Train on the micro-batches of one step.

        The number of targets is summed over micro-batches and ranks first, so that the gradient does not depend on
        how the global batch is divided (denoising queries excepted: their number does).

        Raises:
            NumericalError: a loss is not finite (before anything is updated, on all processes in the same step), or too
                many updates were skipped.
        """
        start = time.perf_counter()
        random = torch_state(self.world.device)
        batches = [batch.to(self.world.device) for batch in batches]
        count = sum(len(target.labels) for batch in batches for target in batch.targets)
        targets = self.world.total(count)
        normaliser = self.config.loss.normalise(targets, self.world.size)
        self.optimizer.zero_grad(set_to_none=True)
        computed = [self._forward_backward(batch, normaliser, len(batches)) for batch in batches]
        reports = [found for found in computed if isinstance(found, LossReport)]
        # A batch whose matching failed has no loss, which makes that of the step as little finite as NaN does.
        loss = sum((report.total for report in reports), torch.zeros((), device=self.world.device))
        if len(reports) < len(computed):
            loss = loss * math.nan
        values = sum((report.values for report in reports[1:]), reports[0].values) if reports else loss.new_zeros(0)
        # Backward has averaged the gradients, but losses and signals are those of this rank. Their flags are summed, as
        # a rank that raised or stopped on its own would leave the others waiting in the next step.
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        finite = torch.stack((loss, norm)).isfinite()
        flags = self.world.sum(torch.cat(((~finite).float(), self.signals.flags(self.world.device))))
        # A copy waits for the device, so log, checks and signals share one. It precedes the update because a NaN cannot
        # be taken out of weights and moments again.
        host = to_host(torch.cat((values, loss[None], norm[None], flags))).tolist()
        *numbers, loss_value, norm_value, bad_loss, bad_norm, requeue, interrupt = host
        if bad_loss:
            seen = tuple(_seen(found, batch) for found, batch in zip(computed, batches, strict=True))
            ranks = self.world.gather(RankRecord(seen, torch_state_to_json(random)))
            raise NonFiniteLossError(NonFiniteStep(step, self.progress, targets, tuple(ranks)))
        if bad_norm:
            self._skip(step, norm_value)
        else:
            self.skipped_in_a_row = 0
            self.optimizer.step()
        seconds = time.perf_counter() - start
        terms = named_terms(reports[0].keys, numbers, reports[0].weights)
        return StepResult(loss_value, terms, norm_value, bool(bad_norm), seconds, named([requeue, interrupt]))

    def _forward_backward(self, batch: Batch, normaliser: Normaliser, count: int) -> LossReport | MatchFault:
        """Add the gradient of one of ``count`` micro-batches, and return its detached losses.

        A detector's own loss is divided by the objects of the batch, on this process. So are then the branches' losses,
        as their share would otherwise change from batch to batch, and the step takes the mean of its micro-batches.

        A process whose matching fails takes part in the backward pass all the same: the others wait for its gradients.
        """
        output, branches = forward(self.model, batch, self.config.train.precision)
        brings_loss = output.own_loss is not None
        if brings_loss:
            normaliser = self.config.loss.normalise(sum(len(target.labels) for target in batch.targets), 1)
        try:
            targets = PaddedTargets.from_targets(batch.targets)
            sources = self.criterion.match(output, branches, targets, normaliser, progress=self.progress)
            report = self.criterion.losses(sources, targets, output)
            report = report.scaled(1 / count) if brings_loss else report
        except NonFiniteMatchError as error:
            # Every parameter takes part.
            (torch.stack([parameter.sum() for parameter in self.parameters]).sum() * math.nan).backward()
            return MatchFault(error.where, batch.targets[error.image].image_id)
        if self.observer is not None:
            self.observer(sources, report, targets)
        report.total.backward()
        return report.detached()

    def _skip(self, step: int, norm: float) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise GradientError(
                f"step {step}: the gradient norm is {norm} for the {MAX_SKIPPED}th time in a row",
                "lower --lr, or train with --precision fp32",
                code="N02",
            )


def _seen(found: LossReport | MatchFault, batch: Batch) -> BatchRecord:
    ids = tuple(target.image_id for target in batch.targets)
    return BatchRecord(ids, (), found) if isinstance(found, MatchFault) else BatchRecord(ids, found.terms())
