"""Reading many annotations: fast, and in little memory, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.annotations import measure, write_annotations


@pytest.mark.parametrize("outlines", [False, True], ids=["boxes", "outlines"])
def test_s04_a_hundred_thousand_annotations(tmp_path: Path, outlines: bool) -> None:
    path = tmp_path / "many.json"
    write_annotations(path, 100_000, outlines=outlines)
    seconds, before, after = measure(path, 100_000)
    assert seconds < 10  # a tenth of that on a machine that does nothing else
    assert after - before < 100e6  # as Python objects these would be 200 MB


@pytest.mark.slow
@pytest.mark.parametrize("outlines", [False, True], ids=["boxes", "outlines"])
def test_s04_a_million_annotations(tmp_path: Path, outlines: bool) -> None:
    path = tmp_path / "many.json"
    write_annotations(path, 1_000_000, outlines=outlines)
    seconds, _, after = measure(path, 1_000_000)
    assert seconds < (20 if outlines else 10)
    assert after < 1e9
