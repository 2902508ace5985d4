"""Images that stand in both splits of a data set, which makes every number of an evaluation too good."""

from __future__ import annotations

import filecmp
import os.path
from collections.abc import Iterator, Mapping

from lora_detr.data.coco.records import ImageTable


def shared_images(
    first: ImageTable,
    second: ImageTable,
    first_digests: Mapping[int, bytes] | None = None,
    second_digests: Mapping[int, bytes] | None = None,
) -> list[tuple[int, int]]:
    """Return the ids, in the first split and in the second, of images that are one.

    One is a file that both name; two files of one name and the same bytes; and, where digests are given, any two
    files of the same bytes. Two files of one name that differ are two images: many data sets number both splits from 1.

    Args:
        first: images of a split.
        second: of the other.
        first_digests: of the files, by image id; may be of some only.
        second_digests: likewise.

    Returns:
        Pairs by place in ``second``, each of whose images appears at most once.
    """
    names = {os.path.normpath(name): i for i, name in enumerate(first.file_names())}
    paths = {path: i for i, path in enumerate(_paths(first))}
    contents = {digest: image_id for image_id, digest in (first_digests or {}).items()}
    digests = second_digests or {}
    pairs = []
    for j, (name, path) in enumerate(zip(second.file_names(), _paths(second), strict=True)):
        image_id = int(second.ids[j])
        same = paths.get(path)
        if same is None:
            same = names.get(os.path.normpath(name))
            same = same if same is not None and _equal(first, same, second, j) else None
        if same is not None:
            pairs.append((int(first.ids[same]), image_id))
        elif digests.get(image_id) in contents:
            pairs.append((contents[digests[image_id]], image_id))
    return pairs


def _paths(images: ImageTable) -> Iterator[str]:
    folder = os.path.realpath(images.folder)
    return (os.path.normpath(os.path.join(folder, name)) for name in images.file_names())


def _equal(first: ImageTable, i: int, second: ImageTable, j: int) -> bool:
    try:
        return filecmp.cmp(first[i].path, second[j].path, shallow=False)
    except (OSError, ValueError):  # the file is not there, or the name can be no path
        return False
