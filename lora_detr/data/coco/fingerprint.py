"""Hashes of the parts of a split, which tell whether a resumed run sees the data that it started on, and what differs.

Numbers are hashed as whole columns of little-endian bytes, so that a million annotations take a fraction of a second
and every machine finds the same hash.
"""

from __future__ import annotations

import hashlib
import json
import os.path
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.records import ImageTable
from lora_detr.json_value import JSON

IMAGES, FILE_NAMES, CATEGORIES, ANNOTATIONS, FILES = (
    "images",
    "file names",
    "categories",
    "annotations",
    "image files",
)
PARTS = (IMAGES, FILE_NAMES, CATEGORIES, ANNOTATIONS, FILES)
"""Ids and sizes; names of the files; labels, ids and names; boxes, categories, areas and crowd flags; contents."""


def fingerprint(
    images: ImageTable,
    categories: CategoryMap,
    annotations: Sequence[NDArray[np.generic]],
    digests: NDArray[np.uint8] | None,
) -> dict[str, JSON]:
    """Return part -> SHA-256 of it in hexadecimal.

    Args:
        images: of a split.
        categories: labels of the model.
        annotations: columns of all usable annotations, sorted.
        digests: uint8 [n, 32], SHA-256 of the file of each image; None where files have not been read, and then the
            part is None.
    """
    return {
        IMAGES: _hash(images.ids, images.widths, images.heights),
        FILE_NAMES: hashlib.sha256(json.dumps(_without_common_folder(images.file_names())).encode()).hexdigest(),
        CATEGORIES: hashlib.sha256(json.dumps(categories.to_json()).encode()).hexdigest(),
        ANNOTATIONS: _hash(*annotations),
        FILES: None if digests is None else _hash(images.ids, digests),
    }


def ids_and_sizes(images: ImageTable) -> str:
    """Return the whole fingerprint of a split as older versions stored it, which knew nothing else."""
    digest = hashlib.sha256()
    for image_id, width, height in np.stack((images.ids, images.widths, images.heights), axis=1).tolist():
        digest.update(f"{image_id} {width} {height}\n".encode())
    return digest.hexdigest()


def differing_parts(stored: Mapping[str, JSON], found: Mapping[str, JSON]) -> list[str]:
    """Return the parts that two fingerprints both know and disagree on."""
    pairs = ((part, stored.get(part), found.get(part)) for part in PARTS)
    return [part for part, old, new in pairs if old is not None and new is not None and old != new]


def with_known_files(found: dict[str, JSON] | None, stored: JSON) -> dict[str, JSON] | None:
    """Return a fingerprint with the hash of the image files that an earlier one of the same images knows.

    Without it, resuming once without reading the files would forget what they were.
    """
    if found is None or not isinstance(stored, dict) or found[FILES] is not None:
        return found
    same = all(stored.get(part) == found.get(part) for part in (IMAGES, FILE_NAMES))
    return {**found, FILES: stored.get(FILES)} if same else found


def _hash(*columns: NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        stated = column.astype(column.dtype.newbyteorder("<"), order="C", copy=False)
        digest.update(f"{stated.dtype.str} {stated.shape}\n".encode())
        digest.update(stated.tobytes())
    return digest.hexdigest()


def _without_common_folder(names: Sequence[str]) -> list[str]:
    """Return file names without the folder that all of them begin with: it changes where data moves as a whole."""
    start = os.path.commonprefix([min(names), max(names)])  # noqa: RUF071 (cut at a slash below)
    return [name[start.rfind("/") + 1 :] for name in names]
