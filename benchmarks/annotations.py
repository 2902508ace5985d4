"""Generate a large annotation file, read and check it in a process of its own, and print seconds and memory.

    python benchmarks/annotations.py --annotations 1000000
    python benchmarks/annotations.py --annotations 1000000 --outlines

The process imports what reading needs and nothing else, so that its memory is that of the data. Image files are not
looked for: how long that takes depends on the disk.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PER_IMAGE = 10
"""Annotations of an image."""

CATEGORIES = 80

POLYGONS = 1_000
"""Different outlines: drawing one takes longer than reading it."""

READ = """
import resource, sys, time
from pathlib import Path
from lora_detr.data.coco.split import load_coco

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before, start, worked = peak(), time.perf_counter(), time.process_time()
split = load_coco(Path(sys.argv[1]), Path("."), check_files=False)
seconds, worked = time.perf_counter() - start, time.process_time() - worked
assert split.report.objects == int(sys.argv[2]), split.report
print(seconds, worked, before, peak())
"""


@dataclass(frozen=True)
class Cost:
    """What reading took.

    Attributes:
        seconds: until it was done.
        worked: seconds of the processor, which other processes do not lengthen much.
        before: bytes, largest memory of the process before reading.
        after: likewise, after it.
    """

    seconds: float
    worked: float
    before: int
    after: int


def write_annotations(path: Path, annotations: int, *, outlines: bool = False, seed: int = 0) -> None:
    """Write a COCO file with so many annotations, a tenth as many images and 80 categories, row by row.

    Args:
        path: of the file.
        annotations: boxes of 10 to 200 pixels in images of 640x480.
        outlines: give each a polygon of 20 points, as COCO has them.
        seed: of the boxes.
    """
    draw = random.Random(seed)
    polygons = [json.dumps([[round(draw.uniform(0, 480), 2) for _ in range(40)]]) for _ in range(POLYGONS)]
    images = -(-annotations // PER_IMAGE)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "images": [')
        for i in range(1, images + 1):
            image = {"license": 1, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640, "id": i}
            file.write((", " if i > 1 else "") + json.dumps(image))
        file.write('], "annotations": [')
        for i in range(1, annotations + 1):
            width, height = round(draw.uniform(10, 200), 2), round(draw.uniform(10, 200), 2)
            x, y = round(draw.uniform(0, 640 - width), 2), round(draw.uniform(0, 480 - height), 2)
            row: dict[str, object] = {"area": round(width * height, 4), "iscrowd": 0, "image_id": 1 + i % images}
            row |= {"bbox": [x, y, width, height], "category_id": 1 + i % CATEGORIES, "id": i}
            outline = f', "segmentation": {polygons[i % POLYGONS]}}}' if outlines else "}"
            file.write((", " if i > 1 else "") + json.dumps(row)[:-1] + outline)
        categories = [{"id": i, "name": f"category {i}"} for i in range(1, CATEGORIES + 1)]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def measure(path: Path, annotations: int) -> Cost:
    """Read a file of so many annotations in a new process."""
    command = [sys.executable, "-c", READ, str(path), str(annotations)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, worked, before, after = done.stdout.split()
    return Cost(float(seconds), float(worked), int(before), int(after))


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--outlines", action="store_true", help="give each annotation a polygon")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        write_annotations(path, arguments.annotations, outlines=arguments.outlines)
        size = path.stat().st_size
        cost = measure(path, arguments.annotations)
    print(
        f"{arguments.annotations:,} annotations, {size / 1e6:.0f} MB: {cost.seconds:.1f} s ({cost.worked:.1f} s of the "
        f"processor), largest memory {cost.after / 1e6:.0f} MB, of which {cost.before / 1e6:.0f} MB before reading"
    )


if __name__ == "__main__":
    main()
