"""Every part: a few trials in the default run, all of them under the mark ``slow``."""

from __future__ import annotations

import pytest

from tests.soak.harness import Part, run_trial, use_scratch
from tests.soak.parts import PARTS


@pytest.fixture(autouse=True, scope="module")
def _scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what trials write and share in the folder of this test run."""
    use_scratch(tmp_path_factory.mktemp("soak"))


@pytest.mark.parametrize("part", [part for part in PARTS.values() if part.short], ids=lambda part: part.name)
def test_short(part: Part) -> None:
    _assert_all_hold(part, part.short)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_full(part: Part) -> None:
    _assert_all_hold(part, part.trials)


def _assert_all_hold(part: Part, trials: int) -> None:
    failed = [result for result in (run_trial(part, trial) for trial in range(trials)) if not result.ok]
    assert not failed, f"{len(failed)} of {trials} trials failed; trial {failed[0].trial}: {failed[0].error}"
