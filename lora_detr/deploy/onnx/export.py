"""Write a detector as an ONNX file, and keep the file only if it is proven."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_detr.atomic_files import prepare_directory, private_directory, reporting, write_file
from lora_detr.checkpoints.exported.contract import STORED, UNIT, Contract, Precision, Sampler
from lora_detr.checkpoints.exported.session import SUFFIX, ExportedDetector
from lora_detr.checkpoints.exported.versions import require
from lora_detr.checkpoints.manifest import hash_file
from lora_detr.checkpoints.opened import OpenedRun
from lora_detr.checkpoints.stripped_file import StrippedFile
from lora_detr.config.installed import installed_version
from lora_detr.data.coco.split import CocoSplit
from lora_detr.deploy.onnx import preprocessing
from lora_detr.deploy.onnx.graph import ExportedGraph, Form
from lora_detr.deploy.onnx.images import ProofImages
from lora_detr.deploy.onnx.precision import to_half, to_int8
from lora_detr.deploy.onnx.proof import Proof, prove
from lora_detr.deploy.onnx.tracing import OPSET, trace
from lora_detr.errors import ConfigError, OutputError
from lora_detr.json_value import json_text
from lora_detr.models import AnyDetector
from lora_detr.processes.world import World
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.loaders import eval_loader
from lora_detr.tensor_files import build_exact

WORKING = ".export-"
REPORT = "export_report.json"
# A fixed input that images are padded to is a multiple of this: the rule of sizes may exceed its limit by some pixels.
STEP = 32


@dataclass(frozen=True)
class Wanted:
    """What kind of file is wanted.

    Attributes:
        raw: logits and boxes of every query, instead of the best detections.
        is_dynamic: images of any height and width.
        sampler: what samples features.
        precision: of convolutions and matrix products.
        with_preprocessing: resize in the graph.
    """

    raw: bool = False
    is_dynamic: bool = False
    sampler: Sampler = "grid"
    precision: Precision = "fp32"
    with_preprocessing: bool = False


@dataclass(frozen=True)
class ExportReport:
    """What was written and proven.

    Attributes:
        source: of the model.
        file: name of the file.
        sha256: of the file.
        bytes: of the file.
        contract: its metadata.
        proof: what was found.
    """

    source: str
    file: str
    sha256: str
    bytes: int
    contract: Contract
    proof: Proof

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return {
            "source": self.source,
            "file": self.file,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "contract": self.contract.model_dump(mode="json"),
            "proof": asdict(self.proof),
        }


def export(
    opened: OpenedRun | StrippedFile,
    source: str,
    output: Path,
    wanted: Wanted,
    images: ProofImages,
    say: Callable[[str], None],
    write: Callable[[Path, Any], None] | None = None,
) -> ExportReport:
    """Write an ONNX file and its report.

    Args:
        opened: the model.
        source: what it is called in the report.
        output: file to write; replaced when it exists.
        wanted: what kind of file.
        images: what it is proven on.
        say: told what takes a while.
        write: how a graph is written; replaced in tests by a writer that damages it.

    Raises:
        ConfigError: the detector cannot be exported like that.
        VerificationError: the file predicts something else; none is left.
        OutputError: it cannot be written.
    """
    require("onnx", "onnxruntime", what="export")
    import onnx

    if output.suffix != SUFFIX:
        raise ConfigError(f"--output {output}: expected a name that ends in {SUFFIX}", "rename it")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder", "give --output the name of a file")
    config = opened.deployment
    detector, weights = plain_detector(opened, config)
    form = _form(config, wanted)
    if wanted.precision != "fp32" and (images.labelled is None or images.train is None):
        raise ConfigError(
            f"--precision {wanted.precision} needs a data set: its cost is measured, and int8 is calibrated",
            "give --data DIR",
        )
    prepare_directory(output.parent)
    say("tracing the detector")
    side = _side(config, form)
    content = trace(ExportedGraph(detector, config, form).eval(), side, wanted.sampler)
    contract = _contract(config, wanted, form, weights)
    with ExitStack() as working:
        with reporting(output.parent):
            folder = working.enter_context(private_directory(output.parent, WORKING))
        written = folder / output.name
        model = onnx.load_from_string(content)
        if wanted.precision == "fp16":
            to_half(model)
        if wanted.precision == "int8":
            assert images.train is not None
            say(f"calibrating on {len(images.train)} training images")
            model = _calibrated(model, contract, images.train, folder)
        if wanted.with_preprocessing:
            model = preprocessing.with_preprocessing(model, config, wanted.raw)
        _describe(model, contract)
        (write or _write)(written, model)
        proof = prove(written, detector, config, images, say)
        sha256, size = hash_file(written), written.stat().st_size
        with reporting(output):
            os.replace(written, output)
    report = ExportReport(source, output.name, sha256, size, contract, proof)
    write_file(output.with_name(REPORT), (json_text(report.to_json(), indent=1) + "\n").encode())
    return report


def place_of(opened: OpenedRun | StrippedFile, model: Path) -> Path:
    """Return where the file of a model is written unless a user says otherwise."""
    if isinstance(opened, OpenedRun) and opened.path.is_dir():
        return opened.run / f"model{SUFFIX}"
    if model.is_dir():
        return model / f"model{SUFFIX}"
    return model.with_suffix(SUFFIX) if model.is_file() else Path(f"model{SUFFIX}")


def plain_detector(opened: OpenedRun | StrippedFile, config: DeploymentConfig) -> tuple[AnyDetector, str]:
    """Return the detector built without branches, and the SHA-256 of its weights."""
    tensors: Mapping[str, Tensor] = opened.detector.inference_state()
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return build_exact(config.build, tensors, Path(SUFFIX)).eval(), digest.hexdigest()


def _form(config: DeploymentConfig, wanted: Wanted) -> Form:
    transform = config.transform
    padded = not transform.square or transform.size % config.size_divisor != 0
    if wanted.with_preprocessing:
        preprocessing.check(config)
        if wanted.is_dynamic:
            raise ConfigError(
                "--with-preprocessing and --dynamic exclude each other: the graph resizes to the model's own size",
                "leave one out",
            )
    if wanted.is_dynamic:
        return Form(wanted.raw, padded, None, None)
    longest = transform.size if transform.square else transform.max_size
    if longest is None:
        raise ConfigError(
            "images keep their aspect ratio, without a limit of the longer side, so no fixed size holds them",
            "export with --dynamic",
        )
    step = config.size_divisor if transform.square else _step(config)
    side = -(-max(longest, transform.size) // step) * step
    return Form(wanted.raw, padded, side, side)


def _step(config: DeploymentConfig) -> int:
    return config.size_divisor if config.size_divisor > 1 else STEP


def _side(config: DeploymentConfig, form: Form) -> tuple[int, int]:
    """Return the size that a graph is traced at; that of any size has unequal sides where it can."""
    if form.height is not None and form.width is not None:
        return form.height, form.width
    step = _step(config)
    side = -(-config.transform.size // step) * step
    return side, side if config.transform.square else side + step


def _contract(config: DeploymentConfig, wanted: Wanted, form: Form, weights: str) -> Contract:
    fixed = None if wanted.with_preprocessing else form.height
    values = {name: value for name, value in dict(config).items() if name != "model"}
    return Contract(
        **values,
        loradetr_version=installed_version("lora-detr") or "not installed",  # but on the path
        weights_sha256=weights,
        input=STORED if wanted.with_preprocessing else UNIT,
        image_sizes=form.image_sizes,
        outputs="logits, boxes" if wanted.raw else "labels, boxes, scores",
        height=fixed,
        width=fixed,
        batch=1 if wanted.with_preprocessing else None,
        opset=OPSET,
        precision=wanted.precision,
        sampler=wanted.sampler,
    )


def _describe(model: Any, contract: Contract) -> None:
    import onnx

    model.producer_name, model.producer_version = "loradetr", contract.loradetr_version
    onnx.helper.set_model_props(model, contract.to_metadata())


def _write(path: Path, model: Any) -> None:
    write_file(path, model.SerializeToString())


def _calibrated(model: Any, contract: Contract, train: CocoSplit, folder: Path) -> Any:
    """Return a graph on 8-bit integers, its ranges taken from training images."""
    import onnx

    plain, narrow = folder / "fp32.onnx", folder / "int8.onnx"
    prepared = contract.model_copy(update={"input": UNIT, "batch": None})
    _describe(model, prepared)
    _write(plain, model)
    exported = ExportedDetector(plain, torch.device("cpu"))
    with reporting(folder):
        to_int8(plain, narrow, _inputs(exported, prepared, train))
        return onnx.load(narrow)


def _inputs(exported: ExportedDetector, contract: Contract, train: CocoSplit) -> Iterator[Mapping[str, Any]]:
    world = World(0, 1, torch.device("cpu"))
    loader = eval_loader(train, contract, world, batch_size=1, workers=0, on_bad_data="skip")
    for batch in loader:
        originals = torch.tensor([target.original_size for target in batch.targets])
        given = exported.feed(batch.images, originals)
        yield {name: given[name] for name in exported.inputs}
