"""How large the images of a run can become, which decides whether its largest step fits into memory."""

from __future__ import annotations

from collections.abc import Iterable

from lora_detr.data.transforms import EvalTransform, TrainTransform


def largest_size(
    transform: TrainTransform | EvalTransform, stored: Iterable[tuple[int, int]], batch_size: int, divisor: int
) -> tuple[int, int]:
    """Return the (height, width) in pixels that no padded batch exceeds, without reading an image.

    A wide image beside a tall one is padded to the width of the one and the height of the other; one that is alone is
    not. A crop can turn either into the other, so with crops the bound is seldom reached.

    Args:
        transform: prepares the images.
        stored: (height, width) of each image as stored, at least one.
        batch_size: images padded together.
        divisor: padded sides are rounded up to a multiple of it.
    """
    shorter = max(transform.scales) if isinstance(transform, TrainTransform) else transform.size
    if transform.square:
        sizes = {(shorter, shorter)}
    else:
        shapes = set(stored)
        if isinstance(transform, TrainTransform) and transform.crop_probability:
            low, high = transform.crop_range
            low = min(low, *transform.crop_scales)
            shapes |= {(low, high), (high, low)}
        sizes = {transform.size_rule(height, width, shorter, transform.max_size) for height, width in shapes}
    if batch_size == 1:
        height, width = max(sizes, key=lambda size: size[0] * size[1])
    else:
        height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor
