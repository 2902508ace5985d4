"""One optimiser step, as a straight line, with its finite check."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from signal import Signals

import torch
from torch import Tensor, nn

from lora_detr.config.run import RunConfig
from lora_detr.errors import NumericalError
from lora_detr.losses.criterion import Criterion, NonFiniteMatchError
from lora_detr.losses.report import LossTerm, named_terms
from lora_detr.ops.host import to_host
from lora_detr.structures import Batch, PaddedTargets
from lora_detr.training.distributed import World
from lora_detr.training.stopping import StopSignals, named

# Updates skipped in a row, for a gradient that is not finite, before the run is given up.
MAX_SKIPPED = 10


class NonFiniteLossError(NumericalError):
    """A loss or a matching cost is NaN or infinite.

    Args:
        message: names the first term, or the layer and image of the cost.
        terms: all terms of the step; empty when matching failed before any was computed.
        image_ids: of the step's images on this process.
    """

    def __init__(self, message: str, terms: Sequence[LossTerm], image_ids: Sequence[int], *, code: str = "N01") -> None:
        super().__init__(message, "lower --lr, or look at nan_report.json in the run directory", code=code)
        self.terms, self.image_ids = tuple(terms), tuple(image_ids)


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


class Stepper:
    """Owns what a step needs; keeps count of skipped updates.

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
        self.skipped_in_a_row = 0
        self.skipped = 0

    def __call__(self, batches: Sequence[Batch], step: int) -> StepResult:
        """Train on the micro-batches of one step.

        The number of targets is summed over micro-batches and ranks first, so that the gradient does not depend on
        how the global batch is divided (denoising queries excepted: their number does).

        Raises:
            NumericalError: a loss is not finite (before anything is updated), or too many updates were skipped.
        """
        start = time.perf_counter()
        batches = [batch.to(self.world.device) for batch in batches]
        count = sum(len(target.labels) for batch in batches for target in batch.targets)
        normaliser = self.config.loss.normalise(self.world.total(count), self.world.size)
        self.optimizer.zero_grad(set_to_none=True)
        values, total = None, None
        keys, weights = (), ()
        for batch in batches:
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
                output, branches = self.model(batch.images, batch.targets)
            padded = PaddedTargets.from_targets(batch.targets)
            try:
                report = self.criterion(output, branches, padded, normaliser)
            except NonFiniteMatchError as error:
                image_id = batch.targets[error.image].image_id
                raise NonFiniteLossError(
                    f"step {step}: matching cost of the {error.where} is not finite; image {image_id}",
                    (),
                    [image_id],
                    code="N06",
                ) from error
            report.total.backward()
            loss = report.total.detach()
            values = report.values if values is None else values + report.values
            total = loss if total is None else total + loss
            keys, weights = report.keys, report.weights
        assert values is not None
        assert total is not None
        norm = self._clip()
        finite = torch.stack((total, norm)).isfinite()
        # One copy for the log and the checks; the flags are those of all ranks, so that all agree.
        flags = self.world.sum(torch.cat(((~finite).float(), self.signals.flags(self.world.device))))
        host = to_host(torch.cat((values, total[None], norm[None], flags))).tolist()
        *numbers, loss_value, norm_value, bad_loss, bad_norm, requeue, interrupt = host
        terms = named_terms(keys, numbers, weights)
        if bad_loss:
            raise self._non_finite(terms, batches, step)
        if bad_norm:
            self._skip(step, norm_value)
        else:
            self.skipped_in_a_row = 0
            self.optimizer.step()
        seconds = time.perf_counter() - start
        return StepResult(loss_value, terms, norm_value, bool(bad_norm), seconds, named([requeue, interrupt]))

    def _clip(self) -> Tensor:
        limit = self.config.train.optimizer.clip_norm
        return nn.utils.clip_grad_norm_(self.parameters, float("inf") if limit is None else limit)

    def _skip(self, step: int, norm: float) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise NumericalError(
                f"step {step}: the gradient norm is {norm} for the {MAX_SKIPPED}th time in a row",
                "lower --lr, or train with --precision fp32",
                code="N02",
            )

    def _non_finite(self, terms: Sequence[LossTerm], batches: Sequence[Batch], step: int) -> NonFiniteLossError:
        ids = [target.image_id for batch in batches for target in batch.targets]
        wrong = [term for term in terms if not torch.isfinite(torch.tensor(term.value))]
        first = (
            f"{wrong[0].key} is {wrong[0].value} ({len(wrong)} of {len(terms)} terms)" if wrong else "on another rank"
        )
        return NonFiniteLossError(f"step {step}: loss is not finite: {first}; images {ids}", terms, ids)
