"""The made-up steps, the loop that is compared, the counting of operations, and what is said of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.criterion import main, row_of, size
from benchmarks.criterion_case import TOKENS, Case, synthetic_case
from benchmarks.criterion_loop import Loop, iou_aware
from benchmarks.operations import BOOLEAN_INDEX, cost_of
from lora_detr.errors import ConfigError
from lora_detr.losses.config import ClassificationConfig
from tests.reference import losses


def small(preset: str, objects: int = 3, branches: int = 2) -> Case:
    return synthetic_case(preset, 2, objects, branches, queries=20, classes=4, tokens=30)


def test_sizes_are_those_of_the_preset() -> None:
    case = synthetic_case("deformable-lora3", 2, 8, 3)
    output, branches = case.step.output, case.step.branches
    assert branches is not None and output.encoder is not None
    assert len(output.layers) == len(branches.layers) == 6
    assert output.prediction.logits.shape == (2, 300, 91)
    assert branches.layers[0].boxes.shape == (3, 2, 300, 4)
    assert output.encoder.prediction.boxes.shape == (2, TOKENS, 4) == (2, 6380, 4)
    assert output.groups == ()
    assert [branch.matcher.k for branch in case.config.branches] == [6, 4, 2]
    assert case.normaliser.total == 16
    assert case.priority.shape == (18, 2, 300)


def test_query_groups_of_relation_detr() -> None:
    case = small("relation-lora3", objects=3)
    denoising, hybrid = case.step.output.groups
    assert (denoising.name, denoising.copies, hybrid.name) == ("denoising", 33, "hybrid")
    assert denoising.layers[5].boxes.shape == (2, 33 * 2 * 3, 4)
    assert hybrid.layers[5].logits.shape == (2, 30, 4)
    assert hybrid.encoder is not None
    assert [branch.matcher.k for branch in case.config.branches] == [3, 6]
    empty, _ = small("relation-lora3", objects=0).step.output.groups
    assert empty.layers[0].boxes.shape == (2, 0, 4)


@pytest.mark.parametrize("preset", ["deformable-lora3", "relation-lora3"])
def test_always_the_same_and_every_tensor_takes_part(preset: str) -> None:
    first, second = small(preset), small(preset)
    gradients = torch.autograd.grad(first.total(first.priority), first.leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(first.total(first.priority), second.total(second.priority))
    predictions = sum(len(group.layers) + 1 for group in first.step.output.groups) + 6 + 6 + 1
    assert len(first.leaves) == 2 * predictions - 2 * (preset == "relation-lora3")  # denoising has no proposals


def test_a_preset_without_branches() -> None:
    with pytest.raises(ConfigError, match="deformable: expected branches"):
        small("deformable")


@pytest.mark.parametrize("objects", [0, 3])
@pytest.mark.parametrize("preset", ["deformable-lora3", "deformable-pp-lora3", "ms-detr", "relation-lora3"])
def test_the_loop_gives_the_same(preset: str, objects: int) -> None:
    case = small(preset, objects)
    ours, loop = case.total(case.priority), Loop(case).total()
    assert ours.item() == pytest.approx(loop.item(), rel=1e-5)
    found, expected = (torch.autograd.grad(total, case.leaves) for total in (ours, loop))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_iou_aware_loss_is_that_of_the_reference() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64)
    pairs, labels, quality = [(1, 0), (4, 1), (1, 2), (0, 2)], [2, 0, 1], [0.9, 0.25, 0.5, 0.75]
    found = iou_aware(logits, pairs, labels, quality, ClassificationConfig())
    torch.testing.assert_close(found, losses.iou_aware(logits, pairs, labels, quality))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda x: x * x[0].item(), {"aten::_local_scalar_dense": 1}),
        (lambda x: x if x[0] > 0 else -x, {"aten::_local_scalar_dense": 1}),
        (lambda x: x[x > 0], {BOOLEAN_INDEX: 2}),  # forward and backward
        (lambda x: x.masked_select(x > 0), {"aten::masked_select": 1}),
        (lambda x: x[(x > 0).nonzero()[:, 0]], {"aten::nonzero": 1}),
        (lambda x: x[torch.tensor([0, 2])].where(x[:2] > 0, 0.0), {}),
    ],
)
def test_what_makes_the_host_wait(operation: Callable[[Tensor], Tensor], expected: dict[str, int]) -> None:
    x = torch.tensor([1.0, -1.0, 2.0], requires_grad=True)
    cost = cost_of(lambda: operation(x).sum(), [x])
    assert cost.waiting == expected
    assert (cost.host_copies, cost.reads) == (sum(expected.values()), 0)


def test_operations_and_reads_are_counted() -> None:
    x, y = torch.ones(3, requires_grad=True), torch.ones(3)
    cost = cost_of(lambda: (x * sum(x.tolist()) + float(y.numpy()[0])).sum(), [x])
    assert (cost.total, cost.reads) == (12.0, 2)
    assert (cost.waiting, cost.copies, cost.host_copies) == ({}, 0, 2)
    plain = cost_of(lambda: (2 * x + y).sum(), [x])
    assert plain.forward_names == {"aten::mul": 1, "aten::add": 1, "aten::sum": 1}
    assert plain.forward == 3
    assert plain.backward_names["aten::mul"] == 1
    assert plain.backward == plain.backward_names.total() > 1


def test_a_row() -> None:
    case = small("deformable-lora3")
    row = row_of(case, {"images": 2}, rounds=2)
    assert next(iter(row)) == "images"
    assert row["layers"] == 6
    assert row["host_copies"] == 1
    assert row["waiting"] == 0
    for name in ("operations", "operations_backward", "host_copies"):
        assert 0 < float(row[name] or 0) < float(row[f"loop_{name}"] or 0)
    assert float(row["lowest"] or 0) <= float(row["ratio"] or 0) <= float(row["highest"] or 0)
    alone = row_of(case, {"images": 2}, rounds=1, with_loop=False)
    assert list(alone) == list(row)
    assert alone["operations"] == row["operations"]
    assert {alone[name] for name in row if name.startswith(("loop", "ratio", "lowest", "highest"))} == {None}


def test_totals_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Loop.total
    monkeypatch.setattr(Loop, "total", lambda loop: exact(loop) * 1.001)
    with pytest.raises(RuntimeError, match="that of the loop"):
        row_of(small("deformable-lora3"), {}, rounds=1)


def test_sizes_are_read() -> None:
    assert size("8x20") == (8, 20)
    for text in ("8", "0x2", "2x-1"):
        with pytest.raises(ValueError):
            size(text)


def test_json_alone_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process: a new one needs five seconds to import all it takes."""
    arguments = ["--sizes", "1x0", "1x1", "--branches", "1", "--queries", "10", "--classes", "3", "--tokens", "20"]
    monkeypatch.setattr(sys, "argv", ["criterion.py", *arguments, "--rounds", "1", "--json"])
    main()
    content = json.loads(capsys.readouterr().out)
    assert set(content) == {"machine", "options", "rows"}
    assert content["options"]["sizes"] == [[1, 0], [1, 1]]
    assert [(row["objects"], row["branches"]) for row in content["rows"]] == [(0, 1), (1, 1)]


def test_a_preset_without_branches_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["criterion.py", "--preset", "deformable"])
    with pytest.raises(SystemExit):
        main()
    assert "expected branches, found none" in capsys.readouterr().err
