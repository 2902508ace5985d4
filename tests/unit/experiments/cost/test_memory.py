"""What is said of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.experiments.cost.memory import STATUS, megabytes_alone

HUNDRED_MEGABYTES = """
import torch
from lora_detr.experiments.cost.memory import rise
torch.ones(100_000_000)
print(rise(lambda: torch.ones(25_000_000), "cpu"))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


@pytest.mark.skipif(not STATUS.is_file(), reason="the system does not tell the memory of a process")
def test_the_rise_is_that_of_the_peak_and_not_of_an_earlier_one(script: Path) -> None:
    script.write_text(HUNDRED_MEGABYTES, encoding="utf-8")
    assert megabytes_alone(str(script), []) == pytest.approx(100, abs=10)


def test_bytes_of_another_process(script: Path) -> None:
    script.write_text("import os, sys; print(int(sys.argv[1]) * bool(os.environ['MALLOC_MMAP_THRESHOLD_']))")
    assert megabytes_alone(str(script), ["2500000"]) == 2.5
    script.write_text("print('null')")
    assert megabytes_alone(str(script), []) is None


def test_a_script_that_fails_ends_the_measurement(script: Path) -> None:
    script.write_text("raise ValueError('nonsense')")
    with pytest.raises(SystemExit, match="nonsense"):
        megabytes_alone(str(script), [])
