"""The first trials of every part that has short ones; ``make soak`` runs them all."""

from __future__ import annotations

import pytest

from tests.soak.harness import Part, run_trial, use_scratch
from tests.soak.parts import PARTS


@pytest.fixture(autouse=True, scope="module")
def _scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what trials write and share in the folder of this test run."""
    use_scratch(tmp_path_factory.mktemp("soak"))


# Parts that start whole commands or evaluate many times, whose faults other tests look for too.
SLOW = ("rank-raises", "worker-killed", "eval-grid")


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=pytest.mark.slow if part.name in SLOW else ()) for part in PARTS.values() if part.short],
    ids=lambda part: part.name,
)
def test_first_trials(part: Part) -> None:
    failed = [result for result in (run_trial(part, trial) for trial in range(part.short)) if not result.ok]
    assert not failed, f"{len(failed)} of {part.short} trials failed; trial {failed[0].trial}: {failed[0].error}"
