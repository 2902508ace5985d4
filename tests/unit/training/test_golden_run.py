"""Twenty steps at a fixed seed against stored losses: whoever changes what training computes notices it here.

The file is made by ``LORADETR_WRITE_GOLDEN=1 pytest tests/unit/training/test_golden_run.py``; a change of it needs an
entry under *Numerics* in the changelog.

Tolerances. Bits depend on the CPU and on the number of threads, so equality cannot be asked for. The first step
starts from the same weights and pixels and differs by the rounding of one forward pass (measured: 2e-7 between one and
two threads). From then on Adam divides a gradient by its own size, so rounding grows step by step, and a matching that
flips makes a jump; the total of twenty steps moved by 2e-7 between one and two threads. Dropout and the random cap of
candidates are off, so that a rounding error cannot change which queries are drawn.

Deformable attention is that of the reference kernel, whatever else is there: another one sums in another order, which
is enough to flip a matching some steps on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from lora_detr.ops.sampling_choice import VARIABLE, choose
from tests import small_runs

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="without AVX2, torch resizes 8-bit images by another kernel: a sixth of the pixels differ by one level",
)

STORED = Path(__file__).parents[2] / "golden" / "own" / "small_run.json"
STEPS = 20
FIRST_STEP_TERMS = 1e-5
ALL_STEPS_TOTAL = 1e-3


@pytest.fixture(scope="module")
def records(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    directory = tmp_path_factory.mktemp("golden") / "run"
    settings = ("train.epochs=4", f"train.max_steps={STEPS}", "evaluation.every=9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "grid-sample")
        choose.cache_clear()
        small_runs.train(shapes_tiny, directory, *small_runs.WITHOUT_CHANCE, *settings)
        assert choose("cpu").name == "grid-sample"
    choose.cache_clear()
    lines = small_runs.read_lines(directory / "metrics.jsonl")
    kept = [{key: line[key] for key in ("step", "loss", "terms")} for line in lines]
    if os.environ.get("LORADETR_WRITE_GOLDEN"):
        STORED.parent.mkdir(exist_ok=True)
        STORED.write_text("[\n" + ",\n".join(json.dumps(record) for record in kept) + "\n]\n", encoding="utf-8")
    return kept


@pytest.fixture(scope="module")
def stored() -> list[dict[str, object]]:
    return list(json.loads(STORED.read_text(encoding="utf-8")))


def test_terms_of_the_first_step(records: list[dict[str, object]], stored: list[dict[str, object]]) -> None:
    found, expected = records[0]["terms"], stored[0]["terms"]
    assert isinstance(found, dict)
    assert isinstance(expected, dict)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=FIRST_STEP_TERMS), name


def test_total_of_every_step(records: list[dict[str, object]], stored: list[dict[str, object]]) -> None:
    assert [record["step"] for record in records] == [record["step"] for record in stored] == list(range(1, STEPS + 1))
    pairs = [(record["loss"], reference["loss"]) for record, reference in zip(records, stored, strict=True)]
    found, expected = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    difference = ((found - expected) / expected).abs()
    beyond = [step for step, one in enumerate(difference.tolist(), start=1) if one > ALL_STEPS_TOTAL]
    assert not beyond, f"first step beyond it: {beyond[0]}"
