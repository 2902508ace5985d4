"""Reading many annotations: fast, and in little memory, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

annotations = pytest.importorskip("benchmarks.annotations", reason="the benchmarks are in the repository only")


@pytest.mark.parametrize("outlines", [False, True], ids=["boxes", "outlines"])
def test_a_hundred_thousand_annotations_s04(tmp_path: Path, outlines: bool) -> None:
    path = tmp_path / "many.json"
    annotations.write_annotations(path, 100_000, outlines=outlines)
    cost = annotations.measure(path, 100_000)
    assert cost.worked < 5  # half a second to a second and a half on a machine of 2026
    assert cost.after - cost.before < 100e6


@pytest.mark.slow
def test_a_million_annotations_s04(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    annotations.write_annotations(path, 1_000_000, outlines=False)
    cost = annotations.measure(path, 1_000_000)
    assert cost.worked < 30  # a third of it on a machine that does nothing else
    assert cost.after - cost.before < 7e8  # the process may have had more in the tests before
