"""A fault on one of two processes ends the same step on both, whichever micro-batch has it; a step in order is free."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training import two_ranks
from tests.unit.training.two_ranks import CASES, SIZE

pytestmark = pytest.mark.distributed

# All cases take 8 s; a process that waits for the other gives up after 30 s.
TIMEOUT = 100
BAD = [name for name, case in CASES.items() if case.parameter is not None]
GOOD = [name for name, case in CASES.items() if case.parameter is None]


@pytest.fixture(scope="module")
def found(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """Return what each process saw of each case."""
    out = tmp_path_factory.mktemp("ranks")
    processes = two_ranks.start(shapes_tiny, out)
    deadline = time.monotonic() + TIMEOUT
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()
    assert [process.exitcode for process in processes] == [0] * SIZE
    return [json.loads((out / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(SIZE)]


@pytest.mark.parametrize("name", BAD)
def test_all_processes_end_the_same_step_n01_n06(name: str, found: list[dict[str, dict[str, Any]]]) -> None:
    case, ends = CASES[name], [rank[name] for rank in found]
    assert ends[0]["code"] == ends[1]["code"] == ("N06" if "cost" in name else "N01")
    assert ends[0]["message"] == ends[1]["message"]
    assert ends[0]["seen"] == ends[1]["seen"]
    for rank, end in enumerate(ends):
        # Nothing is updated anywhere: what changed is the NaN, which differs from itself.
        assert end["changed"] == ([case.parameter] if rank in case.ranks else [])
        assert end["moments"] == 0
        assert end["calls"]["all_gather_object"] == 1


@pytest.mark.parametrize("name", BAD)
def test_the_report_has_every_batch_of_every_process_n01_n06(name: str, found: list[dict[str, dict[str, Any]]]) -> None:
    case, seen = CASES[name], found[0][name]["seen"]
    assert (seen["step"], seen["message"]) == (5, found[0][name]["message"])
    for rank, own in enumerate(seen["ranks"]):
        images = found[rank][name]["images"]
        assert (own["rank"], [batch["image_ids"] for batch in own["batches"]]) == (rank, [[image] for image in images])
        assert set(own["random"]) == {"cpu"}
        for i, batch in enumerate(own["batches"]):
            spoilt = rank in case.ranks and i >= case.batch
            assert (batch["match"] is not None) == (spoilt and "cost" in name)
            wrong = [term for term, value in batch["terms"].items() if value != value]
            assert bool(wrong) == (spoilt and "cost" not in name)
            assert all(term.startswith("branch1/layer1/") for term in wrong)
    first = case.ranks[0]
    image = found[first][name]["images"][case.batch]
    where = "matching cost of the primary path at layer" if "cost" in name else "branch1/layer1/class is nan"
    assert where in seen["message"]
    ranks = ", ".join(map(str, case.ranks))
    assert seen["message"].endswith(f"; micro-batch {case.batch + 1} of 2; on rank {ranks} of {SIZE}")
    assert (f"image {image};" if "cost" in name else f"images [{image}];") in seen["message"]


@pytest.mark.parametrize("name", GOOD)
def test_a_step_in_order_shares_two_numbers_and_copies_once_n08(
    name: str, found: list[dict[str, dict[str, Any]]]
) -> None:
    """The number of objects, and the flags; to the host go the costs of each micro-batch, and all numbers at once."""
    for end in (rank[name] for rank in found):
        assert end["code"] is None
        assert end["loss"] > 0
        assert end["calls"] == {"all_reduce": 2, "all_gather_object": 0, "broadcast": 0, "barrier": 0}
        assert end["copies"] == 3
        assert end["moments"] > 0
        assert end["without gradient"] == []
