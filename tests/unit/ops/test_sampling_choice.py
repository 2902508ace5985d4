"""Which kernel is taken, and what is said of one that is missing or wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import Tensor

from lora_detr.errors import ConfigError
from lora_detr.ops import sampling_choice
from lora_detr.ops.deform_attn import deformable_sampling
from lora_detr.ops.sampling import bag_sampling, grid_sampling
from lora_detr.ops.sampling_choice import COMPILED, PLAIN, VARIABLE, choose, fault_of, kernel_for
from tests.unit.ops.test_sampling import problem

Install = Callable[[Callable[..., Tensor] | None], None]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    choose.cache_clear()
    yield
    choose.cache_clear()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a stand-in with this function, or nothing, where the package would be imported from."""

    def place(function: Callable[..., Tensor] | None) -> None:
        if function is None:
            monkeypatch.setitem(sys.modules, "torch_ms_deform_attn", None)  # type: ignore[arg-type]
            monkeypatch.setattr(sampling_choice, "find_spec", lambda name: None)
            return
        module = ModuleType("torch_ms_deform_attn")
        module.__spec__ = ModuleSpec(module.__name__, None)
        module.ms_deform_attn = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return place


def of_the_package(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """What ``torch-ms-deform-attn`` documents."""
    sizes = [(int(height), int(width)) for height, width in shapes]
    assert starts.tolist() == [sum(h * w for h, w in sizes[:i]) for i in range(len(sizes))]
    assert all(part.is_contiguous() and part.dtype == torch.float32 for part in (value, locations, weights))
    return grid_sampling(value, sizes, locations, weights)


def test_without_packages_the_processor_takes_bags_for_wide_heads_and_all_else_is_the_reference(
    install: Install,
) -> None:
    install(None)
    assert kernel_for("cpu", True, 32) is bag_sampling
    assert kernel_for("cpu", True, 31) is grid_sampling
    assert kernel_for("xpu", True, 32) is grid_sampling
    assert choose("cpu").names == "embedding-bag, grid-sample for heads narrower than 32"
    assert choose("xpu").names == "grid-sample"
    assert choose("cpu").reason == "plain PyTorch; no compiled kernel is installed"


def test_a_package_that_is_right_is_taken_for_single_precision(install: Install) -> None:
    install(of_the_package)
    assert choose("cpu").name == "torch-ms-deform-attn"
    for depth in (8, 32):
        assert kernel_for("cpu", True, depth) is COMPILED["torch-ms-deform-attn"].sample
    assert kernel_for("cpu", False, 32) is bag_sampling
    assert kernel_for("cpu", False, 8) is grid_sampling
    value, shapes, locations, weights = problem(0, [(3, 4), (2, 2)], dtype=torch.float32)
    expected = grid_sampling(value, shapes, locations, weights)
    assert torch.equal(deformable_sampling(value, shapes, locations, weights), expected)
    low = deformable_sampling(value.bfloat16(), shapes, locations, weights)  # as under autocast
    assert low.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (lambda *a: of_the_package(*a) * 1.01, "differs from the reference: result by 1.0e-02"),
        (lambda *a: of_the_package(a[0].detach() + 0 * a[0], *a[1:]), "gradient of the features by 1.0e+00"),
        (lambda *a: of_the_package(*a).flatten(1), "gives a result of shape (2, 96), expected (2, 6, 16)"),
        (lambda *a: of_the_package(*a) * torch.nan, "result by nan"),
        (lambda *a: 1 / 0, "fails: ZeroDivisionError: division by zero"),
        (lambda *a: a[0].new_zeros(2, 6, 16), "fails: RuntimeError"),
    ],
    ids=["wrong", "gradient", "shape", "nan", "raises", "no gradient"],
)
def test_one_that_is_wrong_is_left_and_named(
    function: Callable[..., Tensor], fault: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(function)
    with pytest.warns(UserWarning, match="using instead: embedding-bag"):
        found = choose("cpu")
    assert found.name == "embedding-bag"
    assert fault in found.reason
    monkeypatch.setenv(VARIABLE, "torch-ms-deform-attn")
    choose.cache_clear()
    with pytest.raises(ConfigError) as caught:
        choose("cpu")
    assert fault in caught.value.message


@pytest.mark.parametrize("name", ["grid-sample", "embedding-bag"])
def test_the_environment_names_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, name)
    assert choose("cpu").names == name
    for depth in (8, 32):
        assert kernel_for("cpu", False, depth) is PLAIN[name]


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("fastest", "cpu", "no such kernel"),
        ("torch-ms-deform-attn", "cpu", "is not installed"),
        ("torch-ms-deform-attn", "xpu", "runs on cpu, cuda, not on xpu"),
    ],
)
def test_what_cannot_be_had_is_refused(
    name: str, device: str, message: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(None)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(ConfigError, match=message) as caught:
        choose(device)
    assert caught.value.remedy


def test_the_check_leaves_random_state_and_gradients_as_they_were(install: Install) -> None:
    install(of_the_package)
    before = torch.get_rng_state()
    with torch.inference_mode():
        assert choose("cpu").name == "torch-ms-deform-attn"
    assert torch.equal(torch.get_rng_state(), before)


def test_the_package_itself_where_it_is_installed() -> None:
    pytest.importorskip("torch_ms_deform_attn")
    assert fault_of(COMPILED["torch-ms-deform-attn"].sample, "cpu") == ""
