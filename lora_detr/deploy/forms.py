"""What ``strip`` writes: a file of this program, or a folder for ``transformers``; and how the proof reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lora_detr.atomic_files import reporting
from lora_detr.checkpoints.huggingface.stripped_folder import DEPLOYMENT, write_folder
from lora_detr.checkpoints.huggingface.writing import CONFIG, WEIGHTS
from lora_detr.checkpoints.opened import OpenedRun, kind_of_name
from lora_detr.checkpoints.stripped_file import write_stripped
from lora_detr.errors import ConfigError, OutputError, counted
from lora_detr.models import AnyDetector, HuggingFaceDetector
from lora_detr.models.huggingface.pretrained import read_weights
from lora_detr.structures import Images
from lora_detr.tensor_files import read_tensors


class Form(Protocol):
    """One form of a stripped detector."""

    name: str
    """Of what is written before it is proven."""
    candidate: str
    """Program of the process that reads it: it is given what was written, inputs, outputs and a number of threads."""
    forbidden: str
    """What that process must not have imported."""

    def check(self, output: Path) -> None:
        """Raise ConfigError or OutputError where ``output`` cannot be written."""

    def write(self, place: Path, detector: AnyDetector, opened: OpenedRun) -> None:
        """Write it."""

    def inputs(self, detector: AnyDetector, images: Sequence[Images]) -> list[Images]:
        """Return what both halves of the proof are given."""

    def tensors(self, place: Path) -> Mapping[str, Tensor]:
        """Return its weights by the names of the detector."""

    def weights(self, place: Path) -> Path:
        """Return the file that holds them."""

    def put(self, place: Path, output: Path) -> None:
        """Move it to where the user wants it; what stood there is replaced."""


# Watches its parent before it imports torch, which takes seconds.
_OF_FILE = """
import sys
from lora_detr.processes.process import end_with_parent
end_with_parent()
from lora_detr.deploy.candidate import main
sys.exit(main(*sys.argv[1:]))
"""


class StrippedFileForm:
    """A file of this program; the process that proves it may import everything but branches."""

    name = "stripped.safetensors"
    candidate = _OF_FILE
    forbidden = "lora_detr.branches"

    def check(self, output: Path) -> None:
        """Refuse other suffixes, checkpoints and folders."""
        if kind_of_name(output) != "stripped":
            raise ConfigError(f"--output {output}: expected a name that ends in .safetensors", "rename it")
        if (output.parent / "MANIFEST.json").exists():
            raise ConfigError(f"--output {output}: lies in a checkpoint", "choose another --output")
        if output.is_dir():
            raise OutputError(f"{output}: is a folder", "give --output the name of a file")

    def write(self, place: Path, detector: AnyDetector, opened: OpenedRun) -> None:
        """Write it."""
        write_stripped(place, detector.inference_state(), opened.deployment)

    def inputs(self, detector: AnyDetector, images: Sequence[Images]) -> list[Images]:
        """Return the images as they are."""
        return list(images)

    def tensors(self, place: Path) -> Mapping[str, Tensor]:
        """Return its weights."""
        return read_tensors(place)[0]

    def weights(self, place: Path) -> Path:
        """Return the file itself."""
        return place

    def put(self, place: Path, output: Path) -> None:
        """Move it, atomically."""
        with reporting(output):
            os.replace(place, output)


# Nothing of this package: what it reads and runs is what a user of transformers alone would.
_OF_FOLDER = """
import os, sys, threading, time
def watch():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForObjectDetection
folder, inputs, outputs, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
faults = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
if faults:
    sys.exit(f"not all weights fit: {faults}")
model.eval()
found, seconds = {}, []
with safe_open(inputs, "pt") as stored, torch.no_grad():
    count = len({name.partition(".")[0] for name in stored.keys()})
    for repeat in range(2):
        for i in range(count):
            pixels, padding = stored.get_tensor(f"{i}.pixels"), stored.get_tensor(f"{i}.padding")
            start = time.perf_counter()
            output = model(pixel_values=pixels, pixel_mask=(~padding).long())
            if repeat:
                seconds.append(time.perf_counter() - start)
            found[f"{i}.logits"] = output.logits.float().contiguous()
            found[f"{i}.boxes"] = output.pred_boxes.float().contiguous()
imported = " ".join(sorted(name for name in sys.modules if name.startswith("lora_detr")))
save_file(found, outputs, {"seconds": repr(sorted(seconds)[len(seconds) // 2]), "imported": imported})
"""


class TransformersForm:
    """A folder for ``transformers``; the process that proves it imports nothing of this program."""

    name = "stripped"
    candidate = _OF_FOLDER
    forbidden = "lora_detr"

    def check(self, output: Path) -> None:
        """Refuse files, and folders that hold anything else."""
        if output.is_file():
            raise OutputError(f"{output}: is a file", "give --output the name of a folder")
        others = output.is_dir() and any(output.iterdir())
        if others and not ((output / DEPLOYMENT).is_file() and (output / CONFIG).is_file()):
            raise OutputError(f"{output}: is a folder of something else", "give --output the name of a new folder")

    def write(self, place: Path, detector: AnyDetector, opened: OpenedRun) -> None:
        """Write it."""
        assert isinstance(detector, HuggingFaceDetector)
        place.mkdir()
        write_folder(place, detector, opened.deployment, _training(detector, opened))

    def inputs(self, detector: AnyDetector, images: Sequence[Images]) -> list[Images]:
        """Return the images normalised: the other process has no detector of ours to do it."""
        normalise = detector.normalisation
        return [Images(normalise(one) if normalise else one.pixels, one.padding, one.sizes) for one in images]

    def tensors(self, place: Path) -> Mapping[str, Tensor]:
        """Return its weights, as ``transformers`` reads them."""
        return read_weights(str(place)).tensors

    def weights(self, place: Path) -> Path:
        """Return the file that holds them."""
        return place / WEIGHTS

    def put(self, place: Path, output: Path) -> None:
        """Move it; an earlier one is moved away first, to be removed with the working folder."""
        with reporting(output):
            if output.exists():
                os.replace(output, place.with_name("before"))
            os.replace(place, output)


def _training(detector: AnyDetector, opened: OpenedRun) -> str:
    """Return in a sentence how a detector was trained."""
    count = len(opened.model.branches.members)
    if not count:
        return "Trained without auxiliary branches."
    trained = f"Trained with {counted(count, 'auxiliary branch', 'auxiliary branches')} (LoRA-DETR)"
    if detector is opened.model.detector:
        return f"{trained}, dropped since; all other weights were trained too."
    return f"{trained}, one of which is merged into the last decoder layer: use it with non-maximum suppression."


def form_of(detector: AnyDetector) -> Form:
    """Return the form that a detector is written in."""
    return TransformersForm() if isinstance(detector, HuggingFaceDetector) else StrippedFileForm()
