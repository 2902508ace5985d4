"""The weight of the branches: a factor for the whole run, and how it rises and falls over it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lora_detr.losses.config import BranchLossConfig, CriterionConfig
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.report import LossReport
from lora_detr.matchers import TopKConfig
from tests.unit.losses.step_outputs import make_step

LAYERS, COUNTS = 2, [3, 0, 5]


@pytest.mark.parametrize(
    ("rise", "fall", "shares"),
    [
        (0.0, 0.0, [1, 1, 1, 1, 1]),
        (0.5, 0.0, [0, 0.5, 1, 1, 1]),
        (0.0, 0.5, [1, 1, 1, 0.5, 0]),
        (0.25, 0.75, [0, 1, 2 / 3, 1 / 3, 0]),
        (1.0, 0.0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_the_share_over_a_run(rise: float, fall: float, shares: list[float]) -> None:
    config = BranchLossConfig(rise=rise, fall=fall)
    assert [config.share(progress / 4) for progress in range(5)] == pytest.approx(shares)


def test_rise_and_fall_do_not_overlap() -> None:
    with pytest.raises(ValidationError, match="at most 1 together"):
        BranchLossConfig(rise=0.6, fall=0.5)


def report_with(branch: BranchLossConfig, progress: float) -> LossReport:
    step = make_step(3, layers=LAYERS, branches=2, counts=COUNTS, queries=12, classes=2)
    config = CriterionConfig(branch=branch)
    matchers = [TopKConfig(k=k, positive_fraction=None).build() for k in (6, 2)]
    criterion = Criterion(LAYERS, config, ["branch0", "branch1"], matchers)
    return criterion(step.output, step.branches, step.targets, Normaliser(sum(COUNTS)), progress=progress)


@pytest.mark.parametrize(("factor", "share"), [(0.5, 1.0), (1.0, 0.25), (0.5, 0.25), (0.0, 1.0), (1.0, 0.0)])
def test_only_the_weights_of_branches_change(factor: float, share: float) -> None:
    plain = report_with(BranchLossConfig(), 0.5)
    changed = report_with(BranchLossConfig(factor=factor, rise=1.0), share)
    for before, after in zip(plain.terms(), changed.terms(), strict=True):
        scale = factor * share if before.key.source.startswith("branch") else 1.0
        assert (after.key, after.value) == (before.key, before.value)
        assert after.weight == pytest.approx(scale * before.weight)
    assert changed.total.item() == pytest.approx(sum(term.value * term.weight for term in changed.terms()), rel=1e-5)
