"""Inputs that were changed at random: each is used, or refused by an error that says which file it is about."""

from __future__ import annotations

import io
import json
import os
import random
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_detr.checkpoints import manifest as manifests
from lora_detr.checkpoints.checkpoint import STATE, latest, load_checkpoint
from lora_detr.checkpoints.opened import open_run
from lora_detr.config.dump import dump_config
from lora_detr.config.load import load_config
from lora_detr.data.coco.records import ImageRecord
from lora_detr.data.coco.split import load_coco
from lora_detr.data.images import read_image
from lora_detr.errors import CheckpointError, ConfigError, DataError, LoraDetrError
from lora_detr.json_value import JSON
from lora_detr.recipe.run_config import RunConfig
from tests import small_runs
from tests.soak import mutations, runs
from tests.soak.harness import Part

SECONDS = 5.0
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
DEEP = ("png", "tif", "tif integers", "pgm", "tif floats", "pfm")
WIDTH, HEIGHT = 48, 40


def mutated_json(trial: int, folder: Path) -> Mapping[str, JSON]:
    """D01 to D29, C01 to C05, K03: a changed annotation file, run configuration or state of a checkpoint."""
    draw = random.Random(trial)
    try_one = (_coco, _coco, _settings, _state)[trial % 4]
    return try_one(draw, folder)


def mutated_images(trial: int, folder: Path) -> Mapping[str, JSON]:
    """D18 to D20, D25: a changed image gives pixels of the expected size, or an error with path and image id."""
    draw = random.Random(trial)
    form = FORMATS[trial % len(FORMATS)]
    path = folder / f"image.{form.lower()}"
    path.write_bytes(_change_image(_image(form), draw))
    record = ImageRecord(7, path.name, path, WIDTH, HEIGHT, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def decode() -> None:
        pixels = read_image(record)
        assert tuple(pixels.shape) == (3, HEIGHT, WIDTH)

    result = _result_of(decode, DataError, (str(path), "image id 7"))
    return {"format": form, "result": result}


def deep_images(trial: int, folder: Path) -> Mapping[str, JSON]:
    """D18, D22: a picture of more than 8 bits and any range gives what its type shows, or an error with the range."""
    form = DEEP[trial % len(DEEP)]
    path, values, white = _deep_file(form, random.Random(trial), folder)
    record = ImageRecord(7, path.name, path, WIDTH, HEIGHT, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    expected = values / white * 255
    is_in_range = values.min() >= 0 and values.max() <= white
    error = None
    try:
        pixels = read_image(record).numpy()
    except DataError as caught:
        error = caught
    if error is not None:
        assert not is_in_range or np.ptp(expected) < 2, f"refused, although it can be shown: {error}"
        assert (error.code, str(path) in error.message, "8 bits" in str(error)) == ("D18", True, True), error
        return {"file": form, "result": "refused D18"}
    assert is_in_range, f"values from {values.min()} to {values.max()} were used"
    assert np.abs(pixels - expected).max() <= 1.01, "another picture than the file shows"
    assert np.ptp(values) == 0 or np.ptp(pixels) > 0, "all of one colour, which the file is not"
    return {"file": form, "result": "used"}


def _deep_file(form: str, draw: random.Random, folder: Path) -> tuple[Path, NDArray[np.float64], float]:
    """Write a grey picture of noise, and return its path, the values in it and the one that is white.

    Its range is that of its type, a part of it, or up to eight times as much; the lowest value is 0, above or below it.
    """
    kind = {"floats": np.float32, "pfm": np.float32, "integers": np.int32}.get(form.split()[-1], np.uint16)
    white = 1.0 if kind is np.float32 else draw.choice((1023.0, 4095.0, 65535.0)) if form == "pgm" else 65535.0
    highest = white * draw.choice((1, 0.5, 2 ** draw.uniform(-9, 3)))
    lowest = highest * draw.choice((0, 0, draw.random(), -draw.random()))
    values = np.random.default_rng(draw.randrange(2**32)).uniform(lowest, highest, (HEIGHT, WIDTH))
    if kind is np.uint16:
        values = values.clip(0, white)
    stored = values.astype(kind)
    path = folder / f"image.{form.split()[0]}"
    if form == "pgm":
        path.write_bytes(f"P5 {WIDTH} {HEIGHT} {white:.0f}\n".encode() + stored.astype(">u2").tobytes())
    else:
        Image.fromarray(stored).save(path)
    return path, stored.astype(np.float64), white


def _coco(draw: random.Random, folder: Path) -> Mapping[str, JSON]:
    content = _content()
    for row in content["images"]:
        (folder / row["file_name"]).touch()
    path = folder / "train.json"
    way = _write_mutated(path, content, draw)

    def load() -> None:
        split = load_coco(path, folder, on_bad_data=draw.choice(("error", "skip")), strict=draw.random() < 0.2)
        json.dumps(split.report.to_json(), allow_nan=False)
        for text in (*split.categories.names, *(record.file_name for record in split.records)):
            text.encode()  # it is printed
        for record in split.records:
            assert np.isfinite(record.boxes_xyxy_pixels).all()
            assert record.path.parent == folder

    return {"input": f"annotations, {way}", "result": _result_of(load, DataError, (path.name,))}


def _settings(draw: random.Random, folder: Path) -> Mapping[str, JSON]:
    path = folder / "settings.yaml"
    path.write_bytes(mutations.mutate_bytes(_settings_text(), draw))
    as_preset = draw.random() < 0.5  # an error of a value then names the preset, which is the stem of the file

    def load() -> None:
        if as_preset:
            load_config(RunConfig, preset=path)
        else:
            load_config(RunConfig, preset=small_runs.SMALL, files=[path])

    return {
        "input": "settings, bytes",
        "result": _result_of(load, ConfigError, (path.stem if as_preset else str(path),)),
    }


def _state(draw: random.Random, folder: Path) -> Mapping[str, JSON]:
    """Change the state of a checkpoint; every other time the manifest is made to fit, so that what it says is read."""
    path = latest(runs.own_checkpoints(folder))
    assert path is not None
    way = _write_mutated(path / STATE, json.loads((path / STATE).read_bytes()), draw)
    fits = draw.random() < 0.5
    if fits:
        known = manifests.read_manifest(path)
        entry = (path / STATE).stat().st_size, manifests.hash_file(path / STATE)
        refreshed = replace(known, files={**known.files, STATE: entry})
        (path / manifests.NAME).write_bytes(manifests.encode(refreshed))

    def load() -> None:
        load_checkpoint(path, with_optimizer=True)
        open_run(path)

    kind = f"state, {way}, {'hash fits' if fits else 'hash does not fit'}"
    return {"input": kind, "result": _result_of(load, CheckpointError, (str(path),))}


def _write_mutated(path: Path, value: Any, draw: random.Random) -> str:
    """Write a value with changes of its bytes or of its nodes, and return which."""
    if draw.random() < 0.5:
        path.write_bytes(mutations.mutate_bytes(json.dumps(value, indent=1).encode(), draw))
        return "bytes"
    path.write_text(json.dumps(mutations.mutate_value(value, draw)), encoding="utf-8")
    return "nodes"


def _result_of(action: Callable[[], None], expected: type[LoraDetrError], parts: tuple[str, ...]) -> str:
    """Return ``used`` or ``refused CODE`` of an action in a child of this process.

    Raises:
        AssertionError: it crashed, took too long, raised anything else, or its message lacks one of the parts.
    """
    answer, ask = os.pipe()
    child = runs.in_child(lambda: _answer(action, ask))
    os.close(ask)
    text = b""
    began = time.monotonic()
    try:
        while remaining := max(0.0, began + SECONDS - time.monotonic()):
            if select.select([answer], [], [], remaining)[0]:
                piece = os.read(answer, 65536)
                text += piece
                if not piece:
                    break
        else:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"not done after {SECONDS} seconds")
    finally:
        os.close(answer)
        _, status = os.waitpid(child, 0)
    assert status == 0, f"the process died: {status}"
    said = json.loads(text)
    assert said["kind"] in ("", expected.__name__, *_names_below(expected)), f"{said['kind']}: {said['message']}"
    if not said["kind"]:
        return "used"
    missing = [part for part in parts if part not in said["message"]]
    assert not missing, f"the message lacks {missing}: {said['message']}"
    return f"refused {said['code']}".strip()


def _answer(action: Callable[[], None], ask: int) -> None:
    said = {"kind": "", "message": "", "code": ""}
    try:
        action()
    except LoraDetrError as error:
        said = {"kind": type(error).__name__, "message": str(error), "code": error.code}
    except BaseException as error:
        said = {"kind": f"{type(error).__module__}.{type(error).__name__}", "message": str(error), "code": ""}
    with open(ask, "wb") as file:
        file.write(json.dumps(said).encode())


def _names_below(kind: type[LoraDetrError]) -> list[str]:
    return [below.__name__ for below in kind.__subclasses__()]


def _content() -> dict[str, Any]:
    """Return a faultless annotation file of four images with two objects each, one of them a crowd."""
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(4)]
    objects = [
        {
            "id": 100 + i,
            "image_id": 10 + i // 2,
            "category_id": 1 + i % 2,
            "bbox": [2.5, 3, 10, 12],
            "area": 120.0,
            "iscrowd": int(i == 3),
            "segmentation": [[2.5, 3, 12.5, 3, 12.5, 15]],
        }
        for i in range(8)
    ]
    categories = [{"id": 1, "name": "cell", "supercategory": "thing"}, {"id": 2, "name": "plate"}]
    return {"info": {"year": 2020}, "images": images, "annotations": objects, "categories": categories}


@cache
def _settings_text() -> bytes:
    return dump_config(small_runs.config(), {}).encode()


@cache
def _image(form: str) -> bytes:
    """Return an image file of a smooth part and a noisy part."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    noise[:, : WIDTH // 2] = np.arange(HEIGHT, dtype=np.uint8)[:, None, None] * 6
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format=form)
    return file.getvalue()


def _change_image(data: bytes, draw: random.Random) -> bytes:
    """Flip some bits anywhere, cut the file, or overwrite a few bytes of its header, where sizes and kinds stand."""
    way = draw.randrange(3)
    if way == 0:
        for _ in range(draw.randint(1, 8)):
            data = mutations.flip(data, draw)
        return data
    if way == 1:
        return mutations.cut(data, draw)
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(min(64, len(changed)))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    return bytes(changed)


PARTS = (
    Part("mutated-json", 2000, 16, mutated_json, "changed annotations, settings, states: used, or refused by name"),
    Part("mutated-images", 1000, 16, mutated_images, "changed images: decoded, or refused by path and image id"),
    Part("deep-images", 600, 12, deep_images, "pictures of more than 8 bits: shown as their type says, or refused"),
)
