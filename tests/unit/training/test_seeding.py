"""Random states and optimiser states survive JSON and tensors bit for bit."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lora_detr.checkpoints.optimizer_state import flatten_optimizer, unflatten_optimizer
from lora_detr.errors import CheckpointError
from lora_detr.training.seeding import restore_rng_state, rng_state, seed_everything


def draw() -> tuple[Any, ...]:
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.standard_normal(3).tolist(),
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
    )


def test_the_same_seed_draws_the_same() -> None:
    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first


def test_ranks_and_seeds_have_streams_of_their_own() -> None:
    draws = set()
    for seed in range(3):
        for rank in range(3):
            seed_everything(seed, rank)
            draws.add(str(draw()))
    assert len(draws) == 9


def test_state_survives_json() -> None:
    seed_everything(1)
    draw()  # leaves half of a pair of normal numbers behind in Python's and numpy's generators
    state = json.loads(json.dumps(rng_state()))
    expected = draw()
    seed_everything(99)
    restore_rng_state(state)
    assert draw() == expected


@pytest.mark.parametrize("change", [{"torch": "00"}, {"torch": "xy"}, {"python": [3, [1], None]}, {"numpy": None}])
def test_a_malformed_state_is_a_checkpoint_error(change: dict[str, Any]) -> None:
    state = rng_state()
    with pytest.raises(CheckpointError, match="random generators"):
        restore_rng_state({**state, **change})
    with pytest.raises(CheckpointError):
        restore_rng_state({})
    restore_rng_state(state)


def make(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    groups = [{"params": model[0].parameters(), "lr": 1e-3 / 3}, {"params": model[1].parameters(), "name": "head"}]
    return model, torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.999), amsgrad=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def test_optimizer_state_is_lossless() -> None:
    model, optimizer = make(0)
    for _ in range(3):
        step(model, optimizer)
    tensors, plain = flatten_optimizer(optimizer.state_dict())
    assert "state.0.exp_avg" in tensors
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    restored = unflatten_optimizer(tensors, json.loads(json.dumps(plain)))
    assert restored["param_groups"] == optimizer.state_dict()["param_groups"]
    twin, other = make(1)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(restored)
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_optimizer_state_before_the_first_step_and_with_a_tensor_as_rate() -> None:
    _, optimizer = make(0)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    tensors, plain = flatten_optimizer(optimizer.state_dict())
    assert tensors == {}
    restored = unflatten_optimizer(tensors, json.loads(json.dumps(plain)))
    assert torch.equal(restored["param_groups"][0]["lr"], torch.tensor(0.1))
    assert restored["state"] == {}


def test_what_cannot_be_restored_is_not_saved() -> None:
    with pytest.raises(TypeError, match="'hook' is a function"):
        flatten_optimizer({"state": {}, "param_groups": [{"hook": make}]})


@pytest.mark.parametrize("plain", [{}, {"groups": 1, "scalars": {}}, {"groups": [1], "scalars": {}}])
def test_a_malformed_optimizer_is_a_checkpoint_error(plain: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="optimiser"):
        unflatten_optimizer({}, plain)
