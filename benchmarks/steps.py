"""Time training step and inference of our systems on the same made-up images, and take the memory of a step.

    python benchmarks/steps.py --threads 1
    python benchmarks/steps.py --preset deformable-tiny --preset "deformable-tiny --hybrid 6" --branches 1 3
    python benchmarks/steps.py --preset deformable --branch-preset deformable-lora3 --size 480 640 --batch 1

A system is a preset, perhaps with `--aux`, `--branch-kind`, `--hybrid` or `--dac` behind it, as `loradetr train` has
them. The branch preset is measured with every number of branches. Ratios are to the row that `compared_with` names:

- whole steps and inference, to the first system;
- whole steps once more, to the smallest number of branches that is not 0;
- "after the decoder": branches, matching, losses and their backward pass alone, to the same;
- "stripped": the branch preset as `loradetr strip` writes it, to the detector that was built without branches and given
  the same weights; `identical` says whether all three, branches executed, answer with the same bits.

Memory is what the first step of a process of its own takes above what it held before, gradients and moments included;
of a branch, the difference to none, divided by their number. Images and weights are random: neither changes the cost.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Row, Value, give, parse
from benchmarks.systems import SYSTEMS
from lora_detr.checkpoints.stripped_file import read_stripped, write_stripped
from lora_detr.data.coco.categories import COCO_SLOTS, CategoryMap
from lora_detr.experiments.cost.interleaved import Timing, interleaved
from lora_detr.experiments.cost.memory import megabytes_alone, rise
from lora_detr.experiments.cost.synthetic_workload import Inputs, SyntheticTraining, infer, without_weights
from lora_detr.models import TwoStageDetector
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs.request import Request, resolve
from lora_detr.structures import PaddedTargets

CLASSES = 10
BRANCH_PRESET = "deformable-tiny-lora3"


def config_of(system: str) -> RunConfig:
    """Return the settings of a system, its backbone frozen as with ImageNet weights, but random.

    Raises:
        ConfigError: the preset is unknown, or an option is wrong.
    """
    parser = argparse.ArgumentParser(prog="a system", add_help=False)
    parser.add_argument("preset")
    parser.add_argument("--aux", type=int)
    parser.add_argument("--branch-kind")
    parser.add_argument("--hybrid", type=int)
    parser.add_argument("--dac", action="store_true")
    said = parser.parse_args(shlex.split(system))
    # Which weights a machine has must not decide what is measured, and no data is read.
    overrides = ("model.backbone.weights=imagenet",)
    request = Request(data=Path("made-up"), overrides=overrides, **vars(said))
    return without_weights(resolve(request).loaded.config)


def classes_of(config: RunConfig) -> int:
    """Return K."""
    return COCO_SLOTS if config.data.num_classes == "coco91" else CLASSES


class Subject(SyntheticTraining):
    """A system that is measured, by its command line.

    Args:
        system: preset and options.
        inputs: what it is given.
    """

    def __init__(self, system: str, inputs: Inputs) -> None:
        config = config_of(system)
        super().__init__(config, classes_of(config), inputs)
        self.system = system

    def after_decoder(self) -> Callable[[], None]:
        """Return what runs branches, losses and their backward pass on the detector's output, computed here once."""
        self.model.train()
        with torch.no_grad():
            output = self.model.detector(self.batch.images, self.batch.targets)
        normaliser = self.config.loss.normalise(sum(len(target.labels) for target in self.batch.targets), 1)

        def run() -> None:
            self.stepper.optimizer.zero_grad(set_to_none=True)
            published = as_leaves(output)
            branches = self.model.branches(published, self.model.detector)
            targets = PaddedTargets.from_targets(self.batch.targets)
            self.stepper.criterion(published, branches, targets, normaliser).total.backward()

        return run


def as_leaves(value: Any) -> Any:
    """Return the same data with every floating-point tensor in it a leaf that wants a gradient."""
    return mapped(value, lambda one: one.detach().requires_grad_() if one.is_floating_point() else one)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the same data with every tensor in it changed; tuples and dataclasses are gone through in order."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(part, change) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: mapped(getattr(value, field.name), change) for field in fields(value)}
        return replace(value, **parts)
    return value


def step_bytes(subject: Subject, inputs: Inputs) -> int | None:
    """Return what the first step of a system adds to what this process holds."""
    subject.model.train()
    return rise(subject.step, inputs.device)


def whole_rows(systems: Sequence[str], preset: str, counts: Sequence[int], inputs: Inputs, rounds: int) -> list[Row]:
    """Measure steps, inference and memory of the systems, and of a preset with each number of branches.

    Returns:
        A row for each, ratios being to the first; then one for each number of branches but 0, if there are two.
    """
    counted = {count: f"{preset} --aux {count}" for count in counts}
    subjects = {system: Subject(system, inputs) for system in [*systems, *counted.values()]}
    for subject in subjects.values():
        subject.model.train()
    steps = interleaved([subject.step for subject in subjects.values()], rounds, device=inputs.device)
    some = [subjects[counted[count]] for count in counts if count > 0]
    again = interleaved([subject.step for subject in some], rounds, device=inputs.device) if len(some) > 1 else []
    for subject in subjects.values():
        subject.model.eval()
    inferences = interleaved([subject.infer for subject in subjects.values()], rounds, device=inputs.device)
    memory = {system: megabytes_alone(__file__, [*inputs.options(), "--alone", system]) for system in subjects}
    first = next(iter(subjects))
    without = memory.get(counted.get(0, ""))
    rows = []
    for (system, subject), step, inference in zip(subjects.items(), steps, inferences, strict=True):
        took, least = memory[system], memory[first]
        count = len(subject.config.branches)
        own = system in counted.values() and count > 0 and took is not None and without is not None
        rows.append(
            _row(
                system,
                first,
                count,
                step,
                inference,
                memory_mb=took,
                memory_ratio=None if took is None or least is None else took / least,
                memory_a_branch_mb=(took - without) / count if own else None,
                parameters=subject.parameters,
            )
        )
    return rows + (_rows_of_counts("", some, again) if again else [])


def branch_rows(preset: str, counts: Sequence[int], inputs: Inputs, rounds: int) -> list[Row]:
    """Measure what comes after the decoder with each number of branches but 0; ratios are to the first of them."""
    subjects = [Subject(f"{preset} --aux {count}", inputs) for count in counts if count > 0]
    timings = interleaved([subject.after_decoder() for subject in subjects], rounds, 2, inputs.device)
    return _rows_of_counts("after the decoder, ", subjects, timings)


def stripped_row(system: str, inputs: Inputs, rounds: int) -> Row:
    """Measure a stripped detector against the one that was built without branches and given the same weights."""
    subject = Subject(system, inputs)
    subject.model.eval()
    classes, weights = classes_of(subject.config), subject.model.detector.inference_state()
    categories = CategoryMap.from_categories({label: f"class {label}" for label in range(classes)})
    without = config_of(f"{system} --aux 0")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stripped.safetensors"
        write_stripped(file, weights, subject.config.deployment(categories))
        stripped = read_stripped(file).detector.to(inputs.device)
    plain = without.build_model(classes, load_weights=False).detector.to(inputs.device).eval()
    plain.load_state_dict(weights)
    images = subject.batch.images
    ways = [lambda detector=detector: infer(detector, images) for detector in (plain, stripped)]
    _, timing = interleaved(ways, rounds, 2, inputs.device)
    return _row(
        f"{system}, stripped",
        "the same built without branches",
        0,
        None,
        timing,
        parameters=sum(parameter.numel() for parameter in stripped.parameters()),
        identical=are_identical(subject, (plain, stripped)),
    )


@torch.no_grad()
def are_identical(subject: Subject, detectors: Sequence[TwoStageDetector]) -> bool:
    """Return whether detectors answer with the bits of a model in evaluation mode whose branches are executed."""
    images = subject.batch.images
    expected = subject.model(images)[0].prediction
    found = [detector(images).prediction for detector in detectors]
    return all(torch.equal(one.logits, expected.logits) and torch.equal(one.boxes, expected.boxes) for one in found)


def _rows_of_counts(prefix: str, subjects: Sequence[Subject], timings: Sequence[Timing]) -> list[Row]:
    """Return a row of steps, or of a part of them, for each subject that was timed."""
    return [
        _row(prefix + subject.system, prefix + subjects[0].system, len(subject.config.branches), timing)
        for subject, timing in zip(subjects, timings, strict=True)
    ]


def _row(
    what: str,
    compared_with: str,
    branches: int,
    step: Timing | None,
    inference: Timing | None = None,
    *,
    memory_mb: float | None = None,
    memory_ratio: float | None = None,
    memory_a_branch_mb: float | None = None,
    parameters: int | None = None,
    identical: bool | None = None,
) -> Row:
    return {
        "what": what,
        "compared_with": compared_with,
        "branches": branches,
        **_timed("step", step),
        **_timed("inference", inference),
        "memory_mb": memory_mb,
        "memory_ratio": memory_ratio,
        "memory_a_branch_mb": memory_a_branch_mb,
        "parameters": parameters,
        "identical": identical,
    }


def _timed(what: str, timing: Timing | None) -> dict[str, Value]:
    names = ("seconds", "ratio", "lowest", "highest")
    return {f"{what}_{name}": None if timing is None else getattr(timing, name) for name in names}


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is measured on."""
    parser.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help="height and width, or both in one")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--objects", type=int, default=8, help="in each image")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def inputs_of(given: argparse.Namespace, size: tuple[int, int], batch: int) -> Inputs:
    """Return what the options of ``add_inputs`` say, with a default for size and batch."""
    sides = given.size or size
    return Inputs((sides[0], sides[-1]), given.batch or batch, given.objects, given.device)


def main() -> None:
    """Measure and give the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", metavar="SYSTEM", help="repeatable; default: every small system")
    parser.add_argument("--branch-preset", default=BRANCH_PRESET, metavar="SYSTEM")
    parser.add_argument("--branches", type=int, nargs="*", default=[0, 1, 2, 3, 5], help="none leaves them out")
    add_inputs(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parse(parser)
    inputs = inputs_of(given, (256, 256), 4)
    if given.alone is not None:
        print(json.dumps(step_bytes(Subject(given.alone, inputs), inputs)))
        return
    counts = sorted(set(given.branches))
    small = [shlex.join(options[1:]) for options in SYSTEMS.values() if options[1] != BRANCH_PRESET]
    given.preset = given.preset or small
    rows = whole_rows(given.preset, given.branch_preset, counts, inputs, given.rounds)
    if any(counts):
        rows += branch_rows(given.branch_preset, counts, inputs, given.rounds)
        rows.append(stripped_row(f"{given.branch_preset} --aux {counts[-1]}", inputs, given.rounds))
    del given.alone
    give(rows, given)


if __name__ == "__main__":
    main()
