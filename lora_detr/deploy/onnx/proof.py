"""The proof of an export: a written file and the detector it was made of find the same in images.

Both sides start from image files and end at boxes, as ``predict`` does; AP is measured as ``eval`` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lora_detr.checkpoints.exported.contract import STORED, Precision
from lora_detr.checkpoints.exported.session import ExportedDetector, on_canvas
from lora_detr.data.coco.split import CocoSplit
from lora_detr.deploy.onnx.comparison import Difference, compare
from lora_detr.deploy.onnx.images import ProofImages
from lora_detr.errors import VerificationError
from lora_detr.evaluation.detect import detect_all, plain_predictor
from lora_detr.evaluation.predictor import ImageSource, Predictor
from lora_detr.models import AnyDetector
from lora_detr.processes.world import World
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.preparation import Preparation
from lora_detr.structures import DetectorOutput, Images

SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 1e-3
"""Of the longer side of an image. Both are a hundred times what sums in another order change."""

RESIZED = 10.0
"""Times as much is allowed where the graph resizes: some bytes differ by 1, as between torchvision and Pillow."""

AP_LOSS: dict[Precision, float] = {"fp32": 0.005, "fp16": 0.005, "int8": 0.05}
"""AP that an export may cost; in float32 it costs none but by chance, or by the padding of a fixed size."""

# Images that are run at further sizes and batch sizes.
FEW = 4


@dataclass(frozen=True)
class Precisions:
    """AP of the detector and of the file.

    Attributes:
        images: that it was measured on.
        split: name of their annotation file.
        before: of the detector, images one by one.
        after: of the file.
    """

    images: int
    split: str
    before: float
    after: float

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


@dataclass(frozen=True)
class Proof:
    """What was found.

    Attributes:
        inputs: what the comparison ran on.
        differences: at each size and batch size.
        precisions: AP before and after; None where there is no labelled split.
        seconds_before: median of an image of the detector, from file to boxes.
        seconds_after: the same of the file.
    """

    inputs: str
    differences: tuple[Difference, ...]
    precisions: Precisions | None
    seconds_before: float
    seconds_after: float


class OnCanvas(nn.Module):
    """A detector that is given images padded to a fixed size, as an exported graph is."""

    def __init__(self, detector: AnyDetector, height: int | None, width: int | None) -> None:
        super().__init__()
        self.detector = detector
        self.canvas = height, width

    def forward(self, images: Images) -> DetectorOutput:
        """Detect."""
        found: DetectorOutput = self.detector(on_canvas(images, *self.canvas))
        return found


def prove(
    path: Path, detector: AnyDetector, config: DeploymentConfig, given: ProofImages, say: Callable[[str], None]
) -> Proof:
    """Run the file and the detector on the same images.

    Args:
        path: of the file.
        detector: what it was made of.
        config: of the detector.
        given: images.
        say: told what takes a while.

    Raises:
        VerificationError: they differ by more than the tolerance of the precision.
    """
    cpu = torch.device("cpu")
    try:
        exported = ExportedDetector(path, cpu)
    except Exception as error:  # whatever is wrong with what was just written is a fault of the export
        raise VerificationError(f"the written file cannot be used: {error}", "nothing was written") from error
    contract = exported.contract
    canvas = OnCanvas(detector, contract.height, contract.width) if contract.input != STORED else detector
    differences: list[Difference] = []
    seconds = [(0.0, 0.0)]
    times = RESIZED if contract.input == STORED else 1.0
    for size, batch in _settings(contract):
        sized, own = _resized(contract, size), _resized(config, size)
        sources = given.sources if not differences else given.sources[: max(FEW, batch)]
        pairs, seconds_each = _run(
            Predictor(cast(AnyDetector, canvas), own, cpu), _predictor(exported, sized), sources, batch
        )
        seconds = seconds if differences else seconds_each
        shown = f"{size}" if config.transform.square else f"shorter side {size}"
        differences.append(compare(shown, batch, pairs, SCORE_TOLERANCE * times))
    precisions = None
    if given.labelled is not None:
        say(f"measuring AP on {len(given.labelled)} images, twice")
        before = _precision(plain_predictor(detector), given.labelled, config)
        after = _precision(exported, given.labelled, contract)
        name = given.labelled.report.file
        precisions = Precisions(len(given.labelled), name, before, after)
    middle = [sorted(side)[len(side) // 2] for side in zip(*seconds, strict=True)]
    proof = Proof(given.described, tuple(differences), precisions, *middle)
    _check(proof, contract.precision, contract.height is not None and contract.image_sizes, times)
    return proof


def _settings(contract: Any) -> list[tuple[int, int]]:
    """Return the sizes and batch sizes to run: two of each, as far as the graph takes them."""
    size = contract.transform.size
    batches = (1, 2) if contract.batch is None else (contract.batch,)
    sizes = [size]
    if contract.height is None and contract.input != STORED:
        sizes.append(other_size(size, contract.size_divisor))
    return [(one, batch) for one in sizes for batch in batches]


def other_size(size: int, divisor: int) -> int:
    """Return another size that a detector takes: about three quarters, or a divisor more where that is the same."""
    step = divisor if divisor > 1 else 8
    smaller = 3 * size // 4 // step * step
    return smaller if 0 < smaller < size else size + step


def _resized(config: Any, size: int) -> Any:
    if config.transform.size == size:
        return config
    transform = config.transform
    limit = None if transform.max_size is None else max(size, transform.max_size * size // transform.size)
    changed = transform.model_copy(update={"size": size, "max_size": limit})
    return config.model_copy(update={"transform": changed})


def _predictor(exported: ExportedDetector, contract: Preparation) -> Predictor:
    return Predictor(exported, contract, torch.device("cpu"))


def _run(
    expected: Predictor, found: Predictor, sources: Sequence[ImageSource], batch: int
) -> tuple[list[Any], list[tuple[float, float]]]:
    """Return pairs of predictions with all that was found, and seconds of an image of both."""
    pairs: list[Any] = []
    seconds = []
    for start in range(0, len(sources), batch):
        group, times, both = sources[start : start + batch], [], []
        for predictor in (expected, found):
            began = time.perf_counter()
            both.append(list(predictor.predict_many(group, 0.0, None, batch_size=batch)))
            times.append((time.perf_counter() - began) / len(group))
        pairs += zip(*both, strict=True)
        seconds.append((times[0], times[1]))
    return pairs, seconds


def _precision(predict: Any, split: CocoSplit, config: Preparation) -> float:
    world = World(0, 1, torch.device("cpu"))
    found = detect_all(predict, split, config, world, batch_size=1, workers=0, nms_ious=(None,), on_bad_data="skip")
    return found[None].compute().values["AP"]


def _check(proof: Proof, precision: Precision, is_padded: bool, times: float) -> None:
    """Raise VerificationError where a difference exceeds its tolerance."""
    nothing = "nothing was written"
    for one in proof.differences if precision == "fp32" else ():
        where = f"at size {one.size}, {one.batch} per batch"
        if one.unmatched:
            raise VerificationError(
                f"{where}: {one.unmatched} of {one.detections} detections are not among those of the file", nothing
            )
        if not (one.score <= SCORE_TOLERANCE * times and one.relative_box <= BOX_TOLERANCE * times):
            raise VerificationError(
                f"{where}: scores differ by up to {one.score:.2g} and boxes by up to {one.box:.2g} pixels; "
                f"allowed are {SCORE_TOLERANCE * times:g} and {BOX_TOLERANCE * times:g} of the longer side",
                nothing,
            )
    if proof.precisions is None or proof.precisions.before < 0:
        return
    before, after = proof.precisions.before, proof.precisions.after
    if not after >= before - AP_LOSS[precision]:
        remedy = {
            "fp32": "export with --dynamic: padding to a fixed size costs that" if is_padded else "export it again",
            "fp16": "export without --precision",
            "int8": "export with --precision fp16",
        }[precision]
        raise VerificationError(
            f"AP falls from {before:.4f} to {after:.4f}; allowed are {AP_LOSS[precision]:g} less",
            f"{nothing}; {remedy}",
        )
