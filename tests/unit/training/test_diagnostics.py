"""What branches differ in, by hand on a small matching, and on a run that it must not change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_detr.losses.criterion import Criterion
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.report import LossKey, LossReport
from lora_detr.losses.source import source_keys
from lora_detr.matchers import MatcherConfig
from lora_detr.matchers.atss import ATSSConfig
from lora_detr.structures import Assignment, PaddedTargets
from lora_detr.training.diagnostics import diagnose
from lora_detr.training.step import forward
from tests import small_runs
from tests.contracts.unions import members

# Pairs (query, target) of two images with two targets and one, by path; one decoder layer, five queries.
PAIRS = {
    "primary": [[(0, 0), (1, 1)], [(2, 0)]],
    "branch0": [[(0, 0), (1, 0), (3, 1)], [(2, 0), (4, 0)]],
    "branch1": [[(0, 0)], []],
}


def assignment(paths: list[str]) -> Assignment:
    mask, query = (
        torch.zeros(len(paths), 2, 2, 3, dtype=torch.bool),
        torch.zeros(len(paths), 2, 2, 3, dtype=torch.int64),
    )
    for group, path in enumerate(paths):
        for image, pairs in enumerate(PAIRS[path]):
            for place, (one, target) in enumerate(pairs):
                mask[group, image, target, place], query[group, image, target, place] = True, one
    return Assignment(query, torch.zeros(mask.shape), mask)


def sources() -> list[Any]:
    made = []
    for paths in (["primary"], ["branch0", "branch1"]):
        prediction = SimpleNamespace(logits=torch.zeros(len(paths), 2, 5, 3))
        keys = source_keys([(path, 0) for path in paths])
        made.append(SimpleNamespace(keys=keys, assignment=assignment(paths), prediction=prediction))
    return made


def targets() -> PaddedTargets:
    mask = torch.tensor([[True, True], [True, False]])
    return PaddedTargets(torch.zeros(2, 2, 4), torch.zeros(2, 2, dtype=torch.int64), mask, (2, 1))


def report(weighted: Tensor) -> LossReport:
    keys = tuple(LossKey(name, 0, "class") for name in PAIRS)
    return LossReport(weighted.sum(), keys, weighted.detach(), (1.0,) * 3, weighted)


def test_matching_and_gradients_are_measured_as_by_hand() -> None:
    ffn = SimpleNamespace(linear1=nn.Linear(2, 1), linear2=nn.Linear(1, 2))
    first = ffn.linear1.weight.flatten()
    losses = torch.stack((first[0] * 3, first[0] * 3 + first[1] * 4, first[1] * 0))
    found = diagnose(sources(), report(losses), targets(), [ffn], ["branch0", "branch1"])  # type: ignore[list-item]
    assert found["targets"] == 3
    assert found["positives"] == {
        "primary": [1.0],
        "branch0": [pytest.approx(5 / 3)],
        "branch1": [pytest.approx(1 / 3)],
    }
    assert found["uncovered"] == {"primary": [0.0], "branch0": [0.0], "branch1": [pytest.approx(2 / 3)]}
    assert found["jaccard"] == {
        "primary|branch0": [pytest.approx((2 / 3 + 1 / 2) / 2)],
        "primary|branch1": [pytest.approx((1 / 2 + 0) / 2)],
        "branch0|branch1": [pytest.approx((1 / 3 + 0) / 2)],
    }
    assert found["cosine"] == {"branch0": [pytest.approx(0.6)], "branch1": [None]}
    assert found["cosine_all"] == {"branch0": pytest.approx(0.6), "branch1": None}
    assert found["norm_ratio"] == {"branch0": pytest.approx(5 / 3), "branch1": 0.0}
    losses.sum().backward()  # is still possible, and has nothing of the above
    assert ffn.linear1.weight.grad.tolist() == [[6.0, 4.0]]
    assert ffn.linear2.weight.grad is None


def test_without_branches_only_the_primary_is_described() -> None:
    ffn = SimpleNamespace(linear1=nn.Linear(2, 1), linear2=nn.Linear(1, 2))
    losses = ffn.linear1.weight.sum() * torch.ones(3)
    found = diagnose(sources()[:1], report(losses), targets(), [ffn], [])  # type: ignore[list-item]
    assert (found["positives"], found["jaccard"], found["cosine"]) == ({"primary": [1.0]}, {}, {})


def test_a_batch_without_objects_has_nothing_to_measure() -> None:
    empty = SimpleNamespace(
        keys=source_keys([("primary", 0)]),
        assignment=Assignment(
            *(torch.zeros(1, 2, 1, 1, dtype=kind) for kind in (torch.int64, torch.float32, torch.bool))
        ),
        prediction=SimpleNamespace(logits=torch.zeros(1, 2, 5, 3)),
    )
    none = PaddedTargets(torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1).bool(), (0, 0))
    ffn = SimpleNamespace(linear1=nn.Linear(2, 1), linear2=nn.Linear(1, 2))
    losses = ffn.linear1.weight.sum() * torch.zeros(3)
    found = diagnose([empty, empty], report(losses), none, [ffn], ["branch0"])  # type: ignore[list-item]
    assert (found["targets"], found["positives"]) == (0, {"primary": [None], "branch0": [None]})
    assert found["jaccard"] == {"primary|branch0": [None]}
    assert found["cosine_all"] == {"branch0": None}


def test_looking_at_branches_changes_no_bit_of_a_run(tmp_path: Path, shapes_tiny: Path) -> None:
    common = ("train.max_steps=4", "train.accumulate=2")
    small_runs.train(shapes_tiny, tmp_path / "plain", *common)
    small_runs.train(shapes_tiny, tmp_path / "watched", *common, "train.diagnostics=2")
    plain, watched = (
        [line["loss_hex"] for line in small_runs.read_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("plain", "watched")
    )
    assert plain == watched
    assert not (tmp_path / "plain" / "diagnostics.jsonl").exists()
    lines = small_runs.read_lines(tmp_path / "watched" / "diagnostics.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    assert set(lines[0]["cosine_all"]) == {"branch0", "branch1", "branch2"}
    assert all(-1 <= value <= 1 for value in lines[1]["cosine_all"].values())
    assert len(lines[0]["positives"]["branch0"]) == 2


@pytest.fixture(scope="module")
def passed(shapes_tiny: Path) -> SimpleNamespace:
    """A forward pass of the small detector with three branches; its graph serves every test."""
    settings = small_runs.config(*small_runs.WITHOUT_CHANCE)
    splits = small_runs.splits_of(shapes_tiny, settings)
    model = small_runs.stepper(settings, splits.categories.num_classes).model
    batch = small_runs.batch_of(splits, settings, small_runs.with_objects(splits)[:2])
    output, branches = forward(model, batch, "fp32")
    targets = PaddedTargets.from_targets(batch.targets)
    ffns = [model.detector.ffn(layer) for layer in range(settings.model.decoder_layers)]  # type: ignore[operator,union-attr]
    return SimpleNamespace(settings=settings, output=output, branches=branches, targets=targets, ffns=ffns)


KINDS = members(MatcherConfig)
MIXES = [*combinations(KINDS, 3), *((kind,) * 3 for kind in KINDS)]


@pytest.mark.parametrize(
    "kinds", MIXES, ids=lambda kinds: "+".join(kind.model_fields["kind"].default for kind in kinds)
)
def test_every_mix_of_rules_is_described(kinds: Sequence[Any], passed: SimpleNamespace) -> None:
    """Positives are counted again in plain sets."""
    settings, targets, names = passed.settings, passed.targets, passed.settings.branch_names
    matchers = [kind(k=3).build() for kind in kinds]
    criterion = Criterion(len(passed.ffns), settings.loss, names, matchers)
    matched = criterion.match(passed.output, passed.branches, targets, Normaliser(sum(targets.counts)))
    found: Any = diagnose(matched, criterion.losses(matched, targets, passed.output), targets, passed.ffns, names)

    paths, layers, count = ("primary", *names), range(len(passed.ffns)), sum(targets.counts)
    served: dict[tuple[str, int], list[list[tuple[int, int]]]] = {}  # pairs (target, query) of each image
    for source in matched[:2]:
        for group, key in enumerate(source.keys[::3]):
            images = zip(source.assignment.mask[group], source.assignment.query[group], strict=True)
            pairs = [[(int(t), int(query[t, k])) for t, k in mask.nonzero()] for mask, query in images]
            assert key.layer is not None
            served[key.source, key.layer] = pairs
    for path in paths:
        own = [served[path, layer] for layer in layers]
        assert found["positives"][path] == pytest.approx([sum(map(len, images)) / count for images in own])
        covered = [sum(len({t for t, _ in pairs}) for pairs in images) for images in own]
        assert found["uncovered"][path] == pytest.approx([1 - number / count for number in covered])
    assert list(found["jaccard"]) == [f"{a}|{b}" for a, b in combinations(paths, 2)]
    for a, b in combinations(paths, 2):
        for layer in layers:
            queries = [[{query for _, query in pairs} for pairs in served[path, layer]] for path in (a, b)]
            each = [len(x & y) / len(x | y) for x, y in zip(*queries, strict=True) if x | y]
            assert found["jaccard"][f"{a}|{b}"][layer] == pytest.approx(sum(each) / len(each))
    assert list(found["cosine_all"]) == list(names)
    assert all(-1 <= value <= 1 for value in found["cosine_all"].values())
    assert all(value > 0 for value in found["norm_ratio"].values())
    if set(kinds) == {ATSSConfig}:  # it looks at references alone, which all branches of a layer share
        assert found["jaccard"]["branch0|branch1"] == found["jaccard"]["branch1|branch2"] == [1.0] * len(layers)
