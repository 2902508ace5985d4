"""What operations need by hand and by count, and what is said of a preset on an accelerator."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import bounds
from benchmarks.bounds import ACCELERATORS, INFERENCE, PRECISIONS, SAMPLING, STEP, Accelerator, Counted, bound, counted
from benchmarks.steps import Inputs, Subject, config_of, infer
from benchmarks.workload import Work, Workload, bytes_of, compiled_sampling, count
from lora_detr.ops import deform_attn
from lora_detr.ops.sampling import grid_sampling
from lora_detr.recipe.run_config import RunConfig
from tests.small_runs import SMALL

INPUTS = Inputs((64, 96), 2, 3)
SYSTEM = str(SMALL)
FLOAT = 4
UNIT = Accelerator({"float32": 10.0, "tf32": 100.0, "bf16": 100.0}, 2.0, 3.0, 1.0)


def test_a_linear_layer() -> None:
    layer, inputs = nn.Linear(5, 7, device="meta"), torch.empty(3, 5, device="meta")
    found = count(lambda: layer(inputs))
    assert found.operations == (Work(2 * 3 * 5 * 7, FLOAT * (3 * 5 + 5 * 7 + 7 + 3 * 7)),)


def test_a_convolution_and_its_backward_pass() -> None:
    layer = nn.Conv2d(2, 3, 5, stride=2, padding=2, bias=False, device="meta")
    inputs = torch.empty(4, 2, 8, 6, device="meta")
    result, flops = 4 * 3 * 4 * 3, 2 * (4 * 3 * 4 * 3) * (2 * 5 * 5)
    found = count(lambda: layer(inputs))
    assert found.operations == (Work(flops, FLOAT * (4 * 2 * 8 * 6 + 3 * 2 * 5 * 5 + result)),)
    output = layer(inputs.requires_grad_())
    back = count(lambda: torch.autograd.grad(output, (inputs, layer.weight), torch.empty_like(output)))
    assert back.flops == 2 * flops  # one product for the input, one for the weight


def test_sampling_and_its_backward_pass() -> None:
    maps = torch.empty(1, 2, 8, 8, device="meta", requires_grad=True)
    places = torch.empty(1, 3, 5, 2, device="meta", requires_grad=True)
    values = 2 * 3 * 5
    found = count(lambda: F.grid_sample(maps, places, align_corners=False))
    # Four pixels are weighed for each value; of the maps no more than these are read.
    assert found.operations == (Work(2 * 4 * values, FLOAT * (min(4 * values, 2 * 8 * 8) + 2 * 3 * 5 + values)),)
    sampled = F.grid_sample(maps, places, align_corners=False)
    back = count(lambda: torch.autograd.grad(sampled, (maps, places), torch.empty_like(sampled)))
    assert back.flops == 2 * 12 * values


def test_a_compiled_kernel_stores_nothing_between() -> None:
    value = torch.empty(1, 20, 2, 8, device="meta", requires_grad=True)  # 4 x 4 and 2 x 2 pixels, two heads
    locations = torch.empty(1, 5, 2, 2, 3, 2, device="meta", requires_grad=True)
    weights = torch.empty(1, 5, 2, 2, 3, device="meta", requires_grad=True)
    leaves, samples = (value, locations, weights), 5 * 2 * 2 * 3
    shapes = ((4, 4), (2, 2))
    given = FLOAT * (20 * 2 * 8 + 2 * samples + samples)
    found = count(lambda: compiled_sampling(value, shapes, locations, weights))
    assert found.operations == (Work(2 * (4 + 1) * samples * 8, given + FLOAT * 5 * 16),)
    output = compiled_sampling(value, shapes, locations, weights)
    back = count(lambda: torch.autograd.grad(output, leaves, torch.empty_like(output)))
    assert back.operations == (Work(2 * (12 + 2) * samples * 8, 2 * given + FLOAT * 5 * 16),)
    plain = count(lambda: grid_sampling(value, shapes, locations, weights))
    assert plain.moved > 2 * found.moved
    assert plain.flops == 2 * 4 * samples * 8  # weighing is elementwise there


def test_bytes_of_other_operations() -> None:
    rows = torch.empty(10, 4, device="meta")
    places = torch.zeros(3, dtype=torch.int64, device="meta")
    assert count(lambda: rows.t().unsqueeze(0)[:, 1:]) == Workload(())  # views
    assert count(lambda: torch.empty_like(rows)) == Workload(())
    assert count(lambda: torch.zeros_like(rows)).moved == FLOAT * 40
    assert count(lambda: rows + rows).moved == FLOAT * 3 * 40
    assert count(lambda: rows.mul_(2)).moved == FLOAT * 2 * 40
    assert count(lambda: rows[places]).moved == FLOAT * 2 * 12 + 8 * 3
    assert count(lambda: rows.relu()).flops == 0
    assert bytes_of([rows[:1].expand(10, 4)]) == FLOAT * 4


def test_a_bound_is_the_larger_of_both() -> None:
    workload = Workload((Work(100, 2), Work(0, 8)))
    slow_sums = bound(workload, UNIT, "float32")
    assert (slow_sums.compute, slow_sums.memory, slow_sums.total) == (10, 5, 10)
    assert slow_sums.one_by_one == 10 + 4
    slow_bytes = bound(workload, UNIT, "tf32")
    assert (slow_bytes.compute, slow_bytes.memory, slow_bytes.total) == (1, 5, 5)
    assert bound(workload, UNIT, "bf16").memory == 2.5  # half of the bytes


@pytest.mark.parametrize(("devices", "sent"), [(1, 0), (2, 80), (8, 140)])
def test_what_a_device_sends_in_a_ring(devices: int, sent: float) -> None:
    assert bounds.all_reduced(80, devices) == sent


def test_times_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACCELERATORS, "unit", UNIT)
    found = Counted(STEP, 4, Workload((Work(100, 2), Work(0, 8))), 12, 80, 7)
    alone = bounds.row("a", found, "unit", "float32", 0.5, 1, None)
    assert (alone["operations"], alone["bound_ms"], alone["launch_ms"]) == (2, 10_000, 1000)
    assert alone["launch_to_one_by_one"] == pytest.approx(1 / 14)
    assert (alone["all_reduce_ms"], alone["images_a_second_at_most"]) == (0, 0.4)
    assert (alone["gradients_mb"], alone["moments_mb"], alone["images_mb"]) == pytest.approx((80e-6, 160e-6, 7e-6))
    together = bounds.row("a", found, "unit", "float32", 0.5, 8, None)
    assert together["all_reduce_ms"] == pytest.approx(1000 * 140 / 3)  # over the link
    assert together["images_a_second_at_most"] == pytest.approx(4 * 3 / 140)
    machines = [bounds.row("a", found, "unit", "float32", 0.5, 16, network) for network in (None, 0.5, 50)]
    assert [row["all_reduce_ms"] for row in machines] == pytest.approx([150_000, 300_000, 50_000])


def test_a_preset_without_a_device() -> None:
    inference, step = counted(SYSTEM, INPUTS)
    subject = Subject(SYSTEM, INPUTS)
    assert (inference.what, step.what, step.batch) == (INFERENCE, STEP, 2)
    assert step.parameters == FLOAT * subject.parameters > inference.parameters
    trained = sum(one.numel() for one in subject.model.parameters() if one.requires_grad)
    assert (inference.gradients, step.gradients) == (0, FLOAT * trained)
    assert inference.copied == 2 * 64 * 96 * 4  # three colours and the padding, a byte each
    assert 0 < 2 * inference.workload.flops < step.workload.flops
    assert 0 < 2 * inference.workload.moved < step.workload.moved


def test_operations_are_those_of_a_real_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deform_attn, "kernel_for", lambda *_: grid_sampling)
    subject = Subject(SYSTEM, INPUTS)
    subject.model.eval()
    images = replace(subject.batch.images, pixels=subject.batch.images.pixels.to(torch.uint8))
    real = count(lambda: infer(subject.model.detector, images))
    found = counted(SYSTEM, INPUTS)[0].workload
    # A CPU has an operation for attention as a whole, the meta device has not.
    assert found.flops == pytest.approx(real.flops, rel=0.01)
    assert len(found.operations) == pytest.approx(len(real.operations), rel=0.03)
    assert found.moved == pytest.approx(real.moved, rel=0.03)


@pytest.mark.slow
def test_what_only_training_has_costs_training_alone() -> None:
    plain, branches, groups = (
        counted(f"{SYSTEM} {more}", INPUTS) for more in ("--aux 0", "--aux 2", "--hybrid 6 --dac")
    )
    assert plain[0].workload == branches[0].workload == groups[0].workload
    assert plain[0].parameters == branches[0].parameters
    for more in (branches, groups):
        assert more[1].workload.flops > plain[1].workload.flops
        assert more[1].workload.moved > plain[1].workload.moved


def test_sampling_of_a_preset() -> None:
    usual, compiled = (counted(SYSTEM, INPUTS, sampling) for sampling in SAMPLING)
    for plain, fused in zip(usual, compiled, strict=True):
        assert fused.workload.moved < plain.workload.moved
        assert len(fused.workload.operations) < len(plain.workload.operations)
        assert fused.workload.flops == pytest.approx(plain.workload.flops, rel=0.1)


@pytest.mark.slow
def test_denoising_queries_are_counted() -> None:
    few, many = (counted("relation-tiny-lora3", replace(INPUTS, objects=objects))[1] for objects in (0, 4))
    assert many.workload.flops > few.workload.flops


@pytest.mark.slow
def test_the_published_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zhu et al. (2021), Table 1: 40 M parameters, 173 GFLOPs (multiply-adds); their networks are 1024 wide."""

    def published(system: str) -> RunConfig:
        config = config_of(system)
        return config.model_copy(update={"model": config.model.model_copy(update={"ffn_dim": 1024})})

    monkeypatch.setattr(bounds, "config_of", published)
    inference, _ = counted("deformable", Inputs((800, 1066), 1, 1))
    assert inference.parameters / FLOAT == pytest.approx(40e6, rel=0.05)
    assert inference.workload.flops / 2 == pytest.approx(173e9, rel=0.05)


def test_json_alone_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", SYSTEM, "--size", "64", "96", "--batch", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["bounds.py", *options])
    bounds.main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    expected = [(what, name, kind) for what in (INFERENCE, STEP) for name in ACCELERATORS for kind in PRECISIONS]
    assert [(row["what"], row["accelerator"], row["precision"]) for row in rows] == expected
    for row in rows:
        assert row["bound_ms"] == max(row["compute_ms"], row["memory_ms"]) <= row["one_by_one_ms"] * (1 + 1e-9)
        assert row["launch_ms"] == pytest.approx(0.005 * row["operations"])
    assert rows[-1]["all_reduce_mb"] == pytest.approx(1.75 * rows[-1]["gradients_mb"])
