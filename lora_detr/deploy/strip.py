"""Drop the branches and prove that inference stays the same, bit for bit.

The proof compares two independent executions: the run's checkpoint with its branches built and executed, and the
written file, loaded in another process that never imports the code of branches.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lora_detr.atomic_files import prepare_directory, private_directory, reporting, write_file
from lora_detr.checkpoints.manifest import hash_file
from lora_detr.checkpoints.opened import OpenedRun
from lora_detr.deploy.candidate import run_inputs
from lora_detr.deploy.forms import Form, form_of
from lora_detr.errors import ConfigError, VerificationError
from lora_detr.models import AnyDetector
from lora_detr.structures import Branch, Images, Prediction
from lora_detr.tensor_files import read_tensors, write_tensors

# Largest difference between a branch and its merged form, which computes in another order.
MERGE_TOLERANCE = 1e-4
# Folders with this prefix, beside the output, hold what is not proven yet.
WORKING = ".strip-"


@dataclass(frozen=True)
class StripReport:
    """What ``strip`` did and proved.

    Attributes:
        source: name of the checkpoint.
        file: name of the file written.
        sha256: of the file written.
        averaged: whether the averaged weights (EMA) were taken.
        branch: ``primary``, or the number of the branch that was merged into the last layer.
        inputs: what the proof ran on.
        batches: number of batches compared.
        largest_difference: over all logits and boxes; 0 means bit-identical.
        outputs_sha256: of all outputs of reference and candidate.
        parameters_before: of detector and branches.
        parameters_after: of the file.
        bytes_before: of the checkpoint's weights.
        bytes_after: of the file.
        gflops: of one batch, equal for the plain detector and the file.
        seconds_before: median of a batch with all branches executed.
        seconds_after: median of a batch of the file, in its own process.
    """

    source: str
    file: str
    sha256: str
    averaged: bool
    branch: str
    inputs: str
    batches: int
    largest_difference: float
    outputs_sha256: tuple[str, str]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    gflops: float
    seconds_before: float
    seconds_after: float

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


def strip(
    opened: OpenedRun,
    output: Path,
    images: Sequence[Images],
    described: str,
    branch: int | None = None,
    write: Callable[[Path, AnyDetector, OpenedRun], None] | None = None,
) -> StripReport:
    """Write the detector without branches and query groups, and keep the file only if it is proven.

    Args:
        opened: checkpoint with its model.
        output: file to write, or folder of a detector of ``transformers``; replaced when it exists.
        images: batches of the proof.
        described: what the batches are, for the report.
        branch: merge this branch into the last layer instead of dropping it (for use with NMS); the earlier layers
            stay primary, since only the primary path feeds the next layer. Checked to a tolerance.
        write: how the file is written; replaced in tests by a writer that damages it.

    Raises:
        ConfigError: there is no such branch, or ``output`` is the input.
        VerificationError: a bit differs, keys or FLOPs are not the plain detector's; no file is left.
        OutputError: the file cannot be written.
    """
    if output.resolve() == opened.path.resolve() or opened.path.resolve() in output.resolve().parents:
        raise ConfigError(f"{output}: lies in the checkpoint that is read", "choose another --output")
    detector = opened.model.detector if branch is None else _with_branch(opened, branch)
    form = form_of(detector)
    form.check(output)
    reference = _reference(opened, branch)
    inputs = _as_tensors(form.inputs(detector, images))
    expected, seconds_before = run_inputs(reference, inputs)
    plain = opened.deployment.build().eval()
    prepare_directory(output.parent)
    with ExitStack() as working:
        with reporting(output.parent):
            folder = working.enter_context(private_directory(output.parent, WORKING))
        written = folder / form.name
        (write or form.write)(written, detector, opened)
        found, seconds_after = _run_candidate(form, written, inputs, folder)
        difference = _compare(expected, found, 0.0 if branch is None else MERGE_TOLERANCE)
        _same_keys(plain, form.tensors(written))
        gflops = _same_flops(plain, detector, images[0])
        sha256, size = hash_file(form.weights(written)), form.weights(written).stat().st_size
        form.put(written, output)
    return StripReport(
        source=opened.path.name,
        file=output.name,
        sha256=sha256,
        averaged=opened.averaged,
        branch="primary" if branch is None else str(branch),
        inputs=described,
        batches=len(images),
        largest_difference=difference,
        outputs_sha256=(_digest(expected), _digest(found)),
        parameters_before=sum(p.numel() for p in opened.model.parameters()),
        parameters_after=sum(p.numel() for p in plain.parameters()),
        bytes_before=sum(tensor.numel() * tensor.element_size() for tensor in opened.checkpoint.model.values()),
        bytes_after=size,
        gflops=gflops,
        seconds_before=seconds_before,
        seconds_after=seconds_after,
    )


def write_report(report: StripReport, output: Path) -> None:
    """Write ``strip_report.json`` beside the stripped file.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps(report.to_json(), indent=1)
    write_file(output.with_name("strip_report.json"), (text + "\n").encode())


def _reference(opened: OpenedRun, branch: int | None) -> Callable[[Images], Prediction]:
    """Return the checkpoint's own answer, with all branches executed."""

    def predict(images: Images) -> Prediction:
        output, branches = opened.model(images)
        if branch is None:
            return output.prediction  # type: ignore[no-any-return]
        last = branches.layers[-1]
        return Prediction(last.logits[branch], last.boxes[branch])

    return predict


def _with_branch(opened: OpenedRun, index: int) -> AnyDetector:
    members = opened.model.branches.members
    if not 0 <= index < len(members):
        raise ConfigError(
            f"--branch {index}: the model has {len(members)} branches, counted from 0",
            "leave --branch out to keep the primary path",
        )
    member = cast(Branch, members[index])
    detector = copy.deepcopy(opened.model.detector)
    last = detector.num_layers - 1
    member.merge_into(last, detector.ffn(last))
    classes = opened.model.branches.classes
    own = None if classes is None else classes.of(index, last)
    if own is not None:
        detector.class_layer(last).load_state_dict(own.state_dict())
    return detector


def _as_tensors(images: Sequence[Images]) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    for i, batch in enumerate(images):
        inputs |= {f"{i}.pixels": batch.pixels, f"{i}.padding": batch.padding, f"{i}.sizes": batch.sizes}
    return inputs


def _run_candidate(
    form: Form, written: Path, inputs: Mapping[str, Tensor], folder: Path
) -> tuple[dict[str, Tensor], float]:
    """Load the written file in another process and return its outputs and median seconds."""
    stored, answered = folder / "inputs.safetensors", folder / "outputs.safetensors"
    write_tensors(stored, inputs)
    command = [sys.executable, "-c", form.candidate]
    command += [str(written), str(stored), str(answered), str(torch.get_num_threads())]
    # The package may be run from a checkout that only this process has on its path.
    source = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    own_end, end_of_this = os.pipe()  # the system closes the second end with this process, however it ends
    try:
        done = subprocess.run(
            command,
            stdin=own_end,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            check=False,
        )
    finally:
        os.close(own_end)
        os.close(end_of_this)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1 if "Traceback" in done.stderr else 0]
        raise VerificationError(
            f"the written file cannot be used: {last.removeprefix('error: ')}", "nothing was written; run strip again"
        )
    outputs, metadata = read_tensors(answered)
    if metadata["imported"]:
        raise VerificationError(f"the stripped detector needs {form.forbidden}: {metadata['imported']}")
    return outputs, float(metadata["seconds"])


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float) -> float:
    """Return the largest difference; 0 only if all tensors are equal bit for bit.

    Raises:
        VerificationError: the difference exceeds the tolerance, or is not a number.
    """
    if expected.keys() != found.keys():
        raise VerificationError("reference and candidate gave different outputs")
    largest = 0.0
    for name, tensor in expected.items():
        if torch.equal(tensor, found[name]):
            continue
        difference = float((tensor - found[name]).abs().max())
        largest = max(largest, difference)
        if not difference <= tolerance or tolerance == 0.0:
            raise VerificationError(
                f"output {name} of the stripped file differs from the checkpoint's by up to {difference:.3g}",
                "nothing was written; run strip again, and report it if it happens twice",
            )
    return largest


def _same_keys(plain: AnyDetector, tensors: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    if wanted != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise VerificationError(
            "keys or shapes of the stripped file are not those of the detector built without branches"
        )


def _same_flops(plain: AnyDetector, stripped: AnyDetector, images: Images) -> float:
    """Return the GFLOPs of one batch, which must be equal for both."""
    counts = []
    for model in (plain, stripped):
        # The counter hooks gradients, and trips over a view of a parameter, such as a table of queries. A copy without
        # gradients has none; the model itself stays as it is, since its last bits may depend on that.
        counted = copy.deepcopy(model).requires_grad_(False)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            counted(images)
        counts.append(counter.get_total_flops())
    if counts[0] != counts[1]:
        raise VerificationError(f"FLOPs differ: {counts[0]} for the plain detector, {counts[1]} after strip")
    return counts[0] / 1e9


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
