"""Freshly initialised parameters have the distribution of the official ones, tensor by tensor."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.branches.lora import LoRALayer
from lora_detr.checkpoints.official.keys import to_ours
from lora_detr.config.load import load_config
from lora_detr.recipe.run_config import RunConfig
from tests.golden import store
from tests.golden.systems import run_config

STATS, LORA = "init_stats", "lora_init"
LORA_KEY = re.compile(r"_lora\.lora_layers\.(\d+)\.A$")


def _json(name: str) -> dict[str, Any]:
    return store.load_json(name) if (store.folder() / f"{name}.json").is_file() else {}


def _is_ours(entry: Any) -> bool:
    """Say whether an entry holds statistics of a detector of the Deformable family."""
    return isinstance(entry, dict) and all(to_ours(key) is not None for key in entry)


def _families(distribution: str) -> list[str]:
    """Return the families whose A and B start as told: ``xavier``, or ``zero-b``."""
    return [
        family
        for family, entry in _json(LORA).items()
        if any("theoretical_xavier_uniform_bound" in one for one in entry["parameters"].values())
        == (distribution == "xavier")
    ]


DETECTORS = [name for name, entry in _json(STATS).items() if _is_ours(entry)]


def _config_of(entry: dict[str, Any]) -> RunConfig:
    branches = {int(match.group(1)) for key in entry if (match := LORA_KEY.search(key))}
    ranks = {value["shape"][1] for key, value in entry.items() if LORA_KEY.search(key)}
    if any(key.startswith("neck.") for key in entry):
        return load_config(RunConfig, preset=f"relation-lora{len(branches)}" if branches else "relation").config
    config = run_config("query_embed.weight" in entry, len(branches), next(iter(ranks), None))
    if config is None:
        pytest.skip("no preset of this system yet")
    return config


@pytest.fixture(scope="module", params=DETECTORS)
def built(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The stored statistics of a detector, and our parameters at full size."""
    entry = _json(STATS)[request.param]
    torch.manual_seed(0)
    classes = next(value["shape"][0] for key, value in entry.items() if re.search(r"class_(embed|head)\.0\.bias$", key))
    model = _config_of(entry).build_model(classes, load_weights=False)
    return entry, {name: value.detach() for name, value in model.named_parameters()}


def _bound(key: str, entry: dict[str, Any]) -> float | None:
    """Return the smallest bound of a uniform start (Xavier, or PyTorch's default) that the stored extremes obey."""
    weight = entry[key]["shape"] if len(entry[key]["shape"]) > 1 else None
    if weight is None:
        beside = entry.get(key.replace("bias", "weight"))
        if beside is None or len(beside["shape"]) < 2:
            return None
    shape = weight or beside["shape"]
    receptive = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * receptive, shape[0] * receptive
    candidates = [fan_in**-0.5] + ([(6 / (fan_in + fan_out)) ** 0.5] if weight else [])
    extreme = max(-entry[key]["min"], entry[key]["max"])
    obeyed = [bound for bound in candidates if extreme <= bound * (1 + 1e-5)]
    return min(obeyed, default=None)


def _check(value: Tensor, stored: dict[str, Any], pooled: int = 1) -> None:
    """Compare mean and standard deviation with stored ones, within the noise of two samples."""
    count, stored_count = value.numel(), math.prod(stored["shape"]) * pooled
    noise = stored["std"] * math.sqrt(1 / count + 1 / stored_count)
    assert abs(value.mean().item() - stored["mean"]) <= 5 * noise + 1e-6
    # A sample's standard deviation is itself known to std / sqrt(2 n) at most, which is coarse for a bias of 256.
    assert abs(value.std().item() - stored["std"]) <= max(0.03 * stored["std"], 5 * noise / math.sqrt(2))


def test_values_exist() -> None:
    store.require(DETECTORS, "initial values of a detector")
    for distribution in ("xavier", "zero-b"):
        store.require(_families(distribution), f"initial values of LoRA, {distribution}")


def test_constants_are_exact(built: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    entry, ours = built
    constants = {key: stored for key, stored in entry.items() if stored["std"] == 0}
    for key, stored in store.require(constants, "constant parameters").items():
        value = ours[to_ours(key) or ""]
        assert list(value.shape) == stored["shape"], key
        assert torch.allclose(value, torch.full_like(value, stored["min"]), rtol=1e-6, atol=0), key


def test_distributions(built: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    entry, ours = built
    drawn = {key: stored for key, stored in entry.items() if stored["std"] > 0}
    bounded = 0
    for key, stored in store.require(drawn, "random parameters").items():
        value = ours[to_ours(key) or ""]
        assert list(value.shape) == stored["shape"], key
        _check(value, stored)
        bound = _bound(key, entry)
        extremes = (value.min().item(), value.max().item())
        if bound is not None:
            bounded += 1
            assert max(-extremes[0], extremes[1]) <= bound * (1 + 1e-6), key
            if value.numel() >= 1000:
                assert extremes[1] == pytest.approx(stored["max"], rel=0.02), key
                assert extremes[0] == pytest.approx(stored["min"], rel=0.02), key
        elif stored["max"] < 2 * stored["std"]:
            # Neither uniform nor with tails: a fixed pattern, the ring of sampling offsets.
            assert extremes == pytest.approx((stored["min"], stored["max"]), rel=1e-5), key
    assert bounded > len(drawn) // 2


def test_heads_start_as_copies_and_branches_do_not(built: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    entry, ours = built
    # The proposals' pair, the last one, is a copy in the Deformable family and a draw of its own in the other.
    own_proposals = any(key.startswith("transformer.encoder_class_head.") for key in entry)
    last = max(int(match.group(1)) for name in ours if (match := re.match(r"detector\.heads\.classes\.(\d+)", name)))
    heads = [name for name in ours if re.match(r"detector\.heads\.(classes|boxes)\.0\.", name)]
    for name in store.require(heads, "heads"):
        copies = [other for other in ours if re.sub(r"s\.\d+\.", "s.0.", other, count=1) == name]
        assert len(copies) > 1
        for other in copies:
            is_drawn = own_proposals and f"s.{last}." in other and ours[other].any() and "bias" not in other
            assert torch.equal(ours[other], ours[name]) != is_drawn
            assert other == name or ours[other].data_ptr() != ours[name].data_ptr()
    matrices = [value for name, value in ours.items() if name.startswith("branches.") and value.any()]
    sums = {value.double().sum().item() for value in matrices}
    assert len(sums) == len(matrices)


@pytest.mark.parametrize("family", _families("xavier"))
def test_lora_pooled_over_layers_and_branches(family: str) -> None:
    stored = _json(LORA)[family]["parameters"]
    rank, pooled = stored["linear1.A"]["shape"][1], stored["linear1.A"]["tensors_pooled"]
    hidden_dim, ffn_dim = stored["linear1.A"]["shape"][0], stored["linear1.B"]["shape"][1]
    layers = [LoRALayer(hidden_dim, ffn_dim, rank, "xavier") for _ in range(pooled)]
    for key, values in stored.items():
        ours = torch.stack([getattr(layer, _attribute(key)).detach() for layer in layers])
        assert list(ours.shape[1:]) == values["shape"]
        _check(ours, values, pooled)
        bound = values["theoretical_xavier_uniform_bound"]
        assert ours.abs().max().item() <= bound * (1 + 1e-6)
        assert ours.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert values["all_tensors_distinct"] == (len({one.sum().item() for one in ours}) == pooled)


@pytest.mark.parametrize("family", _families("zero-b"))
def test_lora_that_starts_equal_to_the_primary_path(family: str) -> None:
    stored = _json(LORA)[family]["parameters"]
    rank = stored["linear1.A"]["shape"][1]
    layer = LoRALayer(stored["linear1.A"]["shape"][0], stored["linear1.B"]["shape"][1], rank, "zero-b")
    for key, values in stored.items():
        ours = getattr(layer, _attribute(key)).detach()
        assert list(ours.shape) == values["shape"]
        if values["theoretical_std"] == 0:
            assert not ours.any()
        else:
            assert ours.std().item() == pytest.approx(rank**-0.5, rel=0.05)
            # The official draw is one tensor copied to all layers and branches, so nothing is pooled.
            _check(ours, values)


def _attribute(key: str) -> str:
    """Return the name in ``LoRALayer`` of ``linear<i>.<A or B>``."""
    linear, matrix = key.split(".")
    return matrix.lower() + linear.removeprefix("linear")
