"""Run a stripped file on stored inputs, in a process of its own, which ``strip`` starts.

The process is one half of the proof of ``strip``: it reads the written file as a user would, and it fails if anything
in it imported ``lora_detr.branches``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_detr.checkpoints.stripped_file import read_stripped
from lora_detr.errors import LoraDetrError
from lora_detr.structures import Images, Prediction
from lora_detr.tensor_files import read_tensors, write_tensors

# The proof is that the file computes the same in a process that has never imported this.
FORBIDDEN = "lora_detr.branches"


@torch.no_grad()
def run_inputs(
    predict: Callable[[Images], Prediction], inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], float]:
    """Predict on every stored batch.

    Args:
        predict: from images to a prediction.
        inputs: ``<i>.pixels``, ``<i>.padding`` and ``<i>.sizes`` of each batch i.

    Returns:
        ``<i>.logits`` and ``<i>.boxes`` of each batch, and the median seconds of a batch after one warm-up.
    """
    outputs: dict[str, Tensor] = {}
    seconds = []
    count = len({name.partition(".")[0] for name in inputs})
    for repeat in range(2):  # the first round warms up
        for i in range(count):
            images = Images(*(inputs[f"{i}.{part}"] for part in ("pixels", "padding", "sizes")))
            start = time.perf_counter()
            prediction = predict(images)
            if repeat:
                seconds.append(time.perf_counter() - start)
            outputs[f"{i}.logits"], outputs[f"{i}.boxes"] = prediction.logits, prediction.boxes
    return outputs, sorted(seconds)[len(seconds) // 2]


def main(model: str, inputs: str, outputs: str, threads: str) -> int:
    """Read ``model`` and ``inputs``, write ``outputs``; return the exit code."""
    # Results depend on the number of threads in their last bits, so both halves of a proof use the same.
    torch.set_num_threads(int(threads))
    try:
        stripped = read_stripped(Path(model))
        results, seconds = run_inputs(
            lambda images: stripped.detector(images).prediction, read_tensors(Path(inputs))[0]
        )
        imported = sorted(name for name in sys.modules if name.startswith(FORBIDDEN))
        write_tensors(Path(outputs), results, {"seconds": repr(seconds), "imported": " ".join(imported)})
    except LoraDetrError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0
