"""The generated data sets ``shapes``, ``shapes-sparse`` and ``shapes-easy``, as ordinary COCO folders.

For trying, testing and comparing without a download. A set follows from its specification and a seed alone: the same
pixels and annotations on every machine. (Bytes of the PNG files too, as far as the zlib behind Pillow is the same.)
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lora_detr.data.synthetic.scene import Dice, Scene
from lora_detr.data.synthetic.shapes import LABELLED
from lora_detr.errors import ConfigError, DataError, OutputError, nearest
from lora_detr.json_value import MAX_BYTES
from lora_detr.regular_files import read_regular

logger = logging.getLogger("lora_detr")

VERSION = 1
"""Raised whenever the same specification and seed would give other images."""

_SPLITS = ("train", "val")
_RECORD = "generated.json"
# Places that are drawn for an object before it is left out; with another number the same seed gives other images.
_TRIES_PER_OBJECT = 6


@dataclass(frozen=True)
class ShapesSpec:
    """What a generated set contains.

    Attributes:
        name: of the set.
        classes: names of shapes, from ``synthetic_shapes.LABELLED``.
        train_images: number of training images.
        val_images: number of validation images.
        size: longer side of every image in pixels; the shorter one is at least three quarters of it.
        min_objects: fewest objects in an image that has any, as far as there is room.
        max_objects: most objects in an image.
        min_scale: smallest diameter of an object, as a share of ``size``.
        max_scale: largest diameter; diameters are spread evenly on a logarithmic scale.
        clutter: texture and number of distractors, 0 to 1.
        empty_every: one image in so many has no object.
    """

    name: str
    classes: tuple[str, ...]
    train_images: int
    val_images: int
    size: int
    min_objects: int = 1
    max_objects: int = 20
    min_scale: float = 0.045
    max_scale: float = 0.72
    clutter: float = 1.0
    empty_every: int = 16

    def __post_init__(self) -> None:
        for name in self.classes:
            if name not in LABELLED:
                raise ConfigError(f"unknown shape '{name}'{nearest(name, LABELLED)}", f"known: {', '.join(LABELLED)}")


SHAPES = ShapesSpec("shapes", tuple(LABELLED), train_images=2000, val_images=400, size=256)
"""Ten classes, 1 to 20 objects of a 16-fold range of sizes, cluttered backgrounds."""

SHAPES_EASY = ShapesSpec(
    "shapes-easy",
    ("circle", "square", "triangle", "star"),
    train_images=400,
    val_images=100,
    size=160,
    max_objects=5,
    min_scale=0.2,
    max_scale=0.6,
    clutter=0.15,
)
"""Four classes, at most five large objects, almost plain backgrounds: a small model learns it on a CPU in minutes."""

SHAPES_SPARSE = ShapesSpec("shapes-sparse", tuple(LABELLED), train_images=1000, val_images=200, size=256, max_objects=5)
"""As ``shapes`` with at most five objects an image, so that matching one to one leaves most queries unsupervised."""

SPECS = {spec.name: spec for spec in (SHAPES, SHAPES_SPARSE, SHAPES_EASY)}


def cached(spec_name: str, cache_dir: Path | None = None) -> Path:
    """Return the folder of a generated set, making it on first use.

    Args:
        spec_name: a key of ``SPECS``.
        cache_dir: where generated sets are kept; default ``lora_detr`` in ``XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        ConfigError: there is no such set.
        OutputError: the folder cannot be written.
    """
    if spec_name not in SPECS:
        raise ConfigError(
            f"unknown generated set '{spec_name}'{nearest(spec_name, SPECS)}", f"known: {', '.join(SPECS)}"
        )
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_detr"
    spec = SPECS[spec_name]
    return generate(spec, cache_dir / _folder(spec))


def resolve_generated(data: Path) -> Path:
    """Return the folder or file that ``--data`` means: a path, or else the name of a generated set, made on first use.

    Raises:
        OutputError: the generated set cannot be written.
    """
    return cached(str(data)) if str(data) in SPECS and not data.exists() else data


def display_name(data: Path) -> str:
    """Return what is typed behind ``--data`` for a folder: the name of a generated set, or that of the folder."""
    return next((name for name, spec in SPECS.items() if _folder(spec) == data.name), data.name)


def _folder(spec: ShapesSpec) -> str:
    return f"{spec.name}-{spec.train_images}-v{VERSION}"


def generate(
    spec: ShapesSpec,
    directory: Path,
    seed: int = 0,
    train_images: int | None = None,
    val_images: int | None = None,
) -> Path:
    """Make a COCO folder and return it: ``annotations/instances_<split>.json`` and ``<split>/<number>.png``.

    The folder appears at once and complete: it is made beside its place and then renamed, so that several processes may
    ask for it at the same time. A complete folder of the same specification and seed is left as it is; one with missing
    files is generated again. The first n images are the same whatever the number of images.

    Args:
        spec: what the set contains.
        directory: the folder to make.
        seed: other seeds give other images.
        train_images: instead of the number in ``spec``.
        val_images: instead of the number in ``spec``.

    Raises:
        DataError: ``directory`` holds something else, which is not touched.
        OutputError: the folder cannot be written.
    """
    directory = Path(directory)
    counts = {
        "train": spec.train_images if train_images is None else train_images,
        "val": spec.val_images if val_images is None else val_images,
    }
    record = {"version": VERSION, "seed": seed, "images": counts, "spec": asdict(spec)}
    try:
        if _is_ours(directory, record) and _is_complete(directory, counts):
            return directory
        logger.info("drawing the generated set %s: %d images, once", spec.name, sum(counts.values()))
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            made = Path(scratch) / directory.name
            for split_index, split in enumerate(_SPLITS):
                _write_split(spec, made, (seed, split_index), counts[split])
            (made / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            _move_into_place(made, directory, counts)
    except OSError as error:
        raise OutputError(
            f"cannot write the generated set to {directory}: {error.strerror or error}",
            "give another folder, or make room",
        ) from error
    return directory


def _is_ours(directory: Path, record: dict[str, Any]) -> bool:
    """Return whether the folder was made from the same record; false when nothing is there; raise for other content."""
    if not directory.is_dir() or not any(directory.iterdir()):
        return False
    found: Any = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(read_regular(directory / _RECORD, MAX_BYTES))
    if found != json.loads(json.dumps(record)):
        what = "another generated set" if isinstance(found, dict) else "other files"
        raise DataError(f"{directory} already holds {what}", "give another folder, or delete this one")
    return True


def _is_complete(directory: Path, counts: dict[str, int]) -> bool:
    return all(
        (directory / "annotations" / f"instances_{split}.json").is_file()
        and sum(1 for _ in (directory / split).glob("*.png")) == count
        for split, count in counts.items()
    )


def _move_into_place(made: Path, directory: Path, counts: dict[str, int]) -> None:
    if directory.is_dir() and any(directory.iterdir()):
        if _is_complete(directory, counts):
            return  # another process was faster
        shutil.rmtree(directory)
    try:
        made.rename(directory)
    except OSError:
        if not (directory.is_dir() and _is_complete(directory, counts)):
            raise


def _write_split(spec: ShapesSpec, directory: Path, keys: tuple[int, int], count: int) -> None:
    """Write one split; ``keys`` are the seed and the index of the split."""
    split = _SPLITS[keys[1]]
    (directory / split).mkdir(parents=True)
    (directory / "annotations").mkdir(exist_ok=True)
    category_ids = _category_ids()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        image_id = 1 + index + 1_000_000 * keys[1]  # no id occurs in two splits
        scene = _draw(spec, Dice(*keys, index), is_empty=index % spec.empty_every == 5 % spec.empty_every)
        pixels = scene.pixels()
        file_name = f"{image_id:07d}.png"
        # Level 1 costs a tenth more space than the default and a fifth of its time.
        Image.fromarray(pixels).save(directory / split / file_name, compress_level=1)
        images.append(
            {"id": image_id, "file_name": file_name, "height": pixels.shape[0], "width": pixels.shape[1]},
        )
        for placed in scene.placed:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[placed.name],
                    "bbox": [float(number) for number in placed.box],
                    "area": float(placed.area),
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {"description": f"generated set {spec.name}, version {VERSION}, seed {keys[0]}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category_ids[name], "name": name, "supercategory": "shape"} for name in spec.classes],
    }
    (directory / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _category_ids() -> dict[str, int]:
    """Return 3, 7, 11, ...: with gaps, like the ids of COCO, so that code which takes an id for an index fails here."""
    return {name: 3 + 4 * index for index, name in enumerate(LABELLED)}


def _draw(spec: ShapesSpec, dice: Dice, *, is_empty: bool) -> Scene:
    longer, shorter = spec.size, round(spec.size * dice.uniform(0.75, 1))
    height, width = (longer, shorter) if dice.chance(0.5) else (shorter, longer)
    scene = Scene(dice, height, width, spec.clutter)
    scene.distract(round(spec.clutter * dice.uniform(2, 10)))
    if is_empty:
        return scene
    # Squaring a uniform number makes a few objects common and many rare.
    count = spec.min_objects + int((spec.max_objects - spec.min_objects + 1) * dice.uniform() ** 2)
    # Rounded, because the last digit of a power differs between platforms.
    ratio = spec.max_scale / spec.min_scale
    diameters = [round(spec.size * spec.min_scale * ratio ** dice.uniform(), 3) for _ in range(count)]
    for diameter in sorted(diameters, reverse=True):  # the large ones first, lest they bury the small ones
        name = dice.choice(spec.classes)
        for _ in range(_TRIES_PER_OBJECT):
            if scene.place(name, diameter / 2):
                break
    for _ in range(_TRIES_PER_OBJECT * 20):  # small ones fit anywhere, but a bound keeps any specification finite
        if len(scene.placed) >= spec.min_objects:
            break
        scene.place(dice.choice(spec.classes), max(spec.size * spec.max_scale / 8, 4))
    scene.strike_through(round(spec.clutter * dice.uniform(0, 2.4)))
    return scene
