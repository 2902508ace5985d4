"""Which kernel samples on which device: the fastest that is there, after a check against the reference."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from lora_detr.errors import ConfigError
from lora_detr.ops.compiled_sampling import package_sampling
from lora_detr.ops.sampling import bag_sampling, grid_sampling

# Names a kernel; without it, or with ``auto``, the choice is made here.
VARIABLE = "LORADETR_ATTENTION"
# Greatest difference from the reference, relative to the greatest value of it: sums in another order give 1e-6.
TOLERANCE = 1e-4

Kernel = Callable[[Tensor, Sequence[tuple[int, int]], Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel that needs a package.

    Attributes:
        sample: runs it.
        module: what the package is imported as.
        package: what pip calls it.
        devices: types of device it runs on.
    """

    sample: Kernel
    module: str
    package: str
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The kernel of a device.

    Attributes:
        name: of the kernel.
        narrow: of the kernel for heads narrower than ``WIDE``.
        reason: why it was taken, in words for the user.
    """

    name: str
    narrow: str
    reason: str

    @property
    def names(self) -> str:
        """Both kernels in words, or the one that serves all heads."""
        return self.name if self.narrow == self.name else f"{self.name}, {self.narrow} for heads narrower than {WIDE}"


PLAIN: dict[str, Kernel] = {"grid-sample": grid_sampling, "embedding-bag": bag_sampling}
COMPILED: dict[str, CompiledKernel] = {
    "torch-ms-deform-attn": CompiledKernel(
        package_sampling, "torch_ms_deform_attn", "torch-ms-deform-attn", ("cpu", "cuda")
    ),
}
# The winner in plain PyTorch where it has been measured (docs/performance.md); elsewhere the reference.
BEST_PLAIN = {"cpu": "embedding-bag"}
# Width of a head from which on that holds: the work of bags hardly depends on it, that of the reference grows with it.
WIDE = 32
REFERENCE = "grid-sample"


def kernel_for(device: str, single_precision: bool, depth: int) -> Kernel:
    """Return what samples heads of width ``depth`` on a type of device; compiled kernels serve float32 only.

    Raises:
        ConfigError: see ``choose``.
    """
    if torch.onnx.is_in_onnx_export():  # which knows the reference alone
        return PLAIN[REFERENCE]
    name = _chosen_name(device, depth)
    if name in PLAIN:
        return PLAIN[name]
    return COMPILED[name].sample if single_precision else PLAIN[_best_plain(device, depth)]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen_name(device: str, depth: int) -> str:
    chosen = choose(device)
    return chosen.narrow if depth < WIDE else chosen.name


@functools.cache
def choose(device: str) -> Choice:
    """Choose the kernel of a type of device, once for the process.

    Raises:
        ConfigError: ``LORADETR_ATTENTION`` names a kernel that is unknown, does not run on this device, is not
            installed, or differs from the reference.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted == "auto":
        return _best(device)
    if wanted in PLAIN:
        return Choice(wanted, wanted, f"set by {VARIABLE}")
    if wanted not in COMPILED:
        known = ", ".join(("auto", *PLAIN, *COMPILED))
        raise ConfigError(f"{VARIABLE}={wanted}: no such kernel", f"expected one of {known}")
    kernel = COMPILED[wanted]
    if device not in kernel.devices:
        raise ConfigError(f"{VARIABLE}={wanted}: runs on {', '.join(kernel.devices)}, not on {device}", "unset it")
    if find_spec(kernel.module) is None:
        raise ConfigError(
            f"{VARIABLE}={wanted}: is not installed", f"pip install {kernel.package}, or unset {VARIABLE}"
        )
    fault = fault_of(kernel.sample, device)
    if fault:
        raise ConfigError(f"{VARIABLE}={wanted}: {fault}", f"unset {VARIABLE}")
    return Choice(wanted, wanted, f"set by {VARIABLE}; equals the reference")


def _best(device: str) -> Choice:
    """Return the first compiled kernel that is there and right, else the best plain one."""
    faults = []
    for name, kernel in COMPILED.items():
        if device in kernel.devices and find_spec(kernel.module) is not None:
            fault = fault_of(kernel.sample, device)
            if not fault:
                return Choice(name, name, "installed; equals the reference")
            faults.append(f"{name} {fault}")
    plain, narrow = _best_plain(device, WIDE), _best_plain(device, WIDE - 1)
    if not faults:
        return Choice(plain, narrow, "plain PyTorch; no compiled kernel is installed")
    found = Choice(plain, narrow, f"plain PyTorch, since {'; '.join(faults)}")
    warnings.warn(f"{'; '.join(faults)}; using instead: {found.names}", stacklevel=2)
    return found


def _best_plain(device: str, depth: int) -> str:
    return BEST_PLAIN.get(device, REFERENCE) if depth >= WIDE else REFERENCE


def fault_of(kernel: Kernel, device: str) -> str:
    """Compare a kernel with the reference on a small problem with points outside, gradients included.

    Returns:
        What is wrong with it, in words; empty if nothing is.
    """
    shapes = ((5, 7), (3, 4), (1, 1))
    # Gradients are wanted wherever the caller stands, and nothing of this may be cast.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        generator = torch.Generator().manual_seed(0)
        value = torch.randn(2, sum(height * width for height, width in shapes), 2, 8, generator=generator)
        locations = 1.6 * torch.rand(2, 6, 2, 3, 4, 2, generator=generator) - 0.3
        weights = torch.rand(2, 6, 2, 3, 4, generator=generator)
        factor = torch.randn(2, 6, 16, generator=generator).to(device)
        results = []
        for sample in (grid_sampling, kernel):
            leaves = [part.to(device, copy=True).requires_grad_() for part in (value, locations, weights)]
            try:
                out = sample(leaves[0], shapes, leaves[1], leaves[2])
                if out.shape != factor.shape:
                    return f"gives a result of shape {tuple(out.shape)}, expected {tuple(factor.shape)}"
                results.append((out, *torch.autograd.grad((out * factor).sum(), leaves)))
            except Exception as error:
                return f"fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    for what, expected, found in zip(("result", *_GRADIENTS), *results, strict=True):
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
        if not difference <= TOLERANCE:
            return f"differs from the reference: {what} by {difference:.1e} of its greatest value"
    return ""


_GRADIENTS = ("gradient of the features", "gradient of the locations", "gradient of the weights")
