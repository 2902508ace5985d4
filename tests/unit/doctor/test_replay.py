"""A step whose loss is not finite is kept, and run again: the same terms bit for bit, and where it went wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from lora_detr.doctor.replay import replay
from lora_detr.errors import CheckpointError, DataError, NumericalError, OutputError
from lora_detr.training.step import Stepper
from tests import small_runs
from tests.commands import end, free_port, start
from tests.small_runs import SMALL
from tests.unit.doctor.diverging import spoil

BRANCH = "branches.members.1.layers.1.b2"
COSTS = "detector.heads.classes.1.bias"


def diverge(data: Path, run: Path, *overrides: str) -> NumericalError:
    """Train until the NaN of a weight is noticed."""
    with pytest.raises(NumericalError) as caught:
        small_runs.train(data, run, *overrides)
    return caught.value


@pytest.fixture
def spoiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Stepper, "__call__", Stepper.__call__)  # so that it is given back
    spoil(4, request.param)
    return str(request.param)


@pytest.mark.parametrize("spoiled", [BRANCH], indirect=True)
@pytest.mark.parametrize("overrides", [(), ("train.accumulate=2",), ("train.precision=bf16",)], ids=str)
def test_the_same_terms_come_again_n01(
    overrides: tuple[str, ...], spoiled: str, shapes_tiny: Path, tmp_path: Path
) -> None:
    """With augmentation, dropout and the random cap of candidates, all drawn as they were."""
    error = diverge(shapes_tiny, tmp_path / "run", "train.epochs=4", *overrides)
    found = replay(tmp_path / "run", data=None, device="cpu")
    assert (found.step, found.message, found.weights) == (4, error.message, (spoiled,))
    assert found.is_reproduced
    assert len(found.batches) == (2 if "train.accumulate=2" in overrides else 1)
    for batch in found.batches:
        assert batch.is_alike
        wrong = {name for name, value in batch.found.items() if not math.isfinite(value)}
        assert wrong == {"branch1/layer1/class", "branch1/layer1/l1", "branch1/layer1/giou"}
        assert batch.module is not None
        assert batch.module.endswith("called from branches")
    lines = found.lines()
    assert lines[0] == f"recorded: {error.message}"
    assert lines[-1] == "the fault came up again"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["reproduced"] is True


@pytest.mark.parametrize("spoiled", [COSTS], indirect=True)
def test_matching_fails_again_at_the_same_layer_n06(spoiled: str, shapes_tiny: Path, tmp_path: Path) -> None:
    diverge(shapes_tiny, tmp_path / "run")
    state = torch.get_rng_state()
    found = replay(tmp_path / "run" / "nan_report.json", data=shapes_tiny, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)  # whoever calls it draws as before
    (batch,) = found.batches
    assert (batch.found_fault, batch.is_alike) == ("primary path at layer 1", True)
    assert batch.module == "detector.heads.classes.1"


@pytest.mark.parametrize("spoiled", [BRANCH], indirect=True)
def test_what_cannot_be_replayed_is_said(spoiled: str, shapes_tiny: Path, learned_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match="cannot be read"):
        replay(run, data=None, device="cpu")
    diverge(shapes_tiny, run)
    with pytest.raises(DataError, match="the data has no image"):
        replay(run, data=learned_data, device="cpu")
    whole = (run / "nan_report.json").read_bytes()
    (run / "nan_report.json").write_bytes(whole + bytes(4096))  # what a power failure leaves
    assert replay(run, data=None, device="cpu").is_reproduced
    (run / "nan_report.json").write_bytes(whole[:-9])
    with pytest.raises(CheckpointError, match=r"nan_report\.json: damaged: "):
        replay(run, data=None, device="cpu")
    (run / "nan_report.json").write_bytes(whole)
    content = bytearray((run / "nan_report.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "nan_report.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not the file that was written with"):
        replay(run, data=None, device="cpu")
    report = json.loads((run / "nan_report.json").read_text())
    del report["ranks"][0]["random"]
    (run / "nan_report.json").write_text(json.dumps(report))
    (run / "nan_report.safetensors").write_bytes(bytes(content[:-1]) + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged or of another version"):
        replay(run, data=None, device="cpu")


@pytest.mark.parametrize("spoiled", [BRANCH], indirect=True)
def test_no_room_for_the_report_does_not_hide_the_error(
    spoiled: str, shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OutputError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("lora_detr.training.nonfinite.write_file", full)
    error = diverge(shapes_tiny, tmp_path / "run")
    assert error.code == "N01"
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["code"] == 6


@pytest.mark.distributed
@pytest.mark.slow
def test_all_processes_stop_in_the_same_step_n06(shapes_tiny: Path, tmp_path: Path) -> None:
    """One of two processes has a NaN. The other one neither waits for it nor updates, and both are in the report."""
    run = tmp_path / "run"
    fault = ("1", "2", COSTS)
    command = ("train", "--preset", SMALL, "--data", shapes_tiny, "--output-dir", run, "--device", "cpu")
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{**shared, "RANK": number, "LOCAL_RANK": number} for number in ("0", "1")]
    processes = [start(*fault, *command, module="tests.unit.doctor.diverging", **own) for own in ranks]
    ended = [end(process) for process in processes]
    errors = [err for _, _, err in ended]
    assert [code for code, _, _ in ended] == [6, 6], errors
    report = json.loads((run / "nan_report.json").read_text())
    assert report["step"] == 2
    assert report["message"].endswith("; on rank 1 of 2")
    first, second = report["ranks"]
    assert [len(rank["batches"]) for rank in (first, second)] == [1, 1]
    images = [set(rank["batches"][0]["image_ids"]) for rank in (first, second)]
    assert not images[0] & images[1]
    assert all(math.isfinite(value) for value in first["batches"][0]["terms"].values())
    assert errors[0].count("error[N06]: step 2: ") == 1
    assert report["message"] in errors[0]  # the process that speaks names what another one saw
    assert errors[1] == ""
    # The report holds the weights of the first process, which are in order: only what it saw itself comes again.
    found = replay(run, data=None, device="cpu")
    assert found.batches[0].is_alike
