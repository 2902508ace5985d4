"""Nothing but our own errors is printed while images are decoded, and their largest size is a setting."""

from __future__ import annotations

import random
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_detr.checkpoints.opened import open_run
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.images import decode_file, decode_pillow
from lora_detr.data.loader import build_loader
from lora_detr.errors import DataError
from lora_detr.evaluation.predictor import Predictor
from lora_detr.processes.world import choose_device
from lora_detr.recipe.loaders import eval_loader, policy_of, read_splits, train_loader
from tests import small_runs

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files that Pillow and libtiff remark on."""
    folder = tmp_path_factory.mktemp("remarked")
    image = Image.fromarray(PIXELS)
    image.convert("P").save(folder / "palette.png", transparency=bytes([0, 255] * 50))
    exif = image.getexif()
    exif[274] = 6
    image.save(folder / "exif.jpg", exif=exif)
    data = bytearray((folder / "exif.jpg").read_bytes())
    at = data.find(b"Exif") + 14
    data[at : at + 6] = b"\xff" * 6
    (folder / "exif.jpg").write_bytes(data)
    for compression, mode in (("tiff_lzw", "RGB"), ("tiff_adobe_deflate", "RGB"), ("group4", "1")):
        whole = folder / f"{compression}.tif"
        image.convert(mode).save(whole, compression=compression)
        for seed in range(5):
            damaged, draw = bytearray(whole.read_bytes()), random.Random(seed)
            for _ in range(5):
                damaged[draw.randrange(8, len(damaged))] = draw.randrange(256)
            (folder / f"{compression}{seed}.tif").write_bytes(damaged)
    Image.new("L", (12_000, 8_000)).save(folder / "large.png")
    return sorted(folder.iterdir())


def _decode(path: Path) -> bool:
    try:
        decode_file(path)
    except DataError:
        return False
    return True


def test_decoding_prints_nothing(files: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded = [_decode(path) for path in files]
        decode_pillow(Image.open(files[-5]))
    assert not caught
    assert True in decoded and False in decoded
    assert capfd.readouterr() == ("", "")


def test_threads_that_decode_leave_warnings_and_standard_error_as_they_were(
    files: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    small = [path for path in files if path.name != "large.png"]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_decode, small * 5))
    assert warnings.filters == before
    sys.stderr.write("heard\n")
    assert capfd.readouterr() == ("", "heard\n")


def test_processes_that_read_images_print_nothing(
    shapes_tiny: Path, files: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = small_runs.config()
    split = read_splits(shapes_tiny, settings.data).train.subset([1])
    record = split.records[0]
    path = tmp_path / record.file_name
    Image.open(record.path).convert("P").save(path, transparency=bytes([0, 255] * 50))
    object.__setattr__(split.records, "folder", tmp_path)
    dataset = CocoDataset(split, settings.data.evaluation.build(), seed=0)
    loader = build_loader(
        dataset, batch_size=1, shuffle=False, rank=0, world_size=1, seed=0, workers=1, drop_last=False
    )
    assert len(list(loader)) == 1
    loader.close()
    assert capfd.readouterr() == ("", "")


def test_the_limit_of_pixels_is_a_setting_of_training_evaluation_and_prediction_d25(shapes_tiny: Path) -> None:
    low = small_runs.config("data.max_pixels=99")
    splits = read_splits(shapes_tiny, low.data)
    assert splits.val is not None
    deployment = low.deployment(splits.categories)
    assert (policy_of(low.data).max_pixels, deployment.max_pixels) == (99, 99)
    loaders = (
        train_loader(splits, low, small_runs.ALONE),
        eval_loader(splits.val, deployment, small_runs.ALONE, batch_size=1, workers=0),
    )
    for loader in loaders:
        with pytest.raises(DataError, match=r"pixels, the limit is 99 \(data\.max_pixels\)"):
            next(iter(loader))
    with pytest.raises(DataError, match=r"data\.max_pixels"):
        read_splits(shapes_tiny, low.data, verify="decode")
    enough = small_runs.config("data.max_pixels=100000")
    read_splits(shapes_tiny, enough.data, verify="decode")


def test_a_predictor_keeps_to_the_limit_of_its_model_d25(small_run: Path, tmp_path: Path) -> None:
    opened = open_run(small_run)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    for limit in (4095, 4096):
        config = opened.deployment.model_copy(update={"max_pixels": limit})
        predictor = Predictor(opened.detector, config, choose_device("cpu"))
        if limit == 4096:
            assert predictor.predict(tmp_path / "a.png").size == (64, 64)
            continue
        with pytest.raises(DataError, match=r"64x64 = 4,096 pixels, the limit is 4,095 \(data\.max_pixels\)"):
            predictor.predict(tmp_path / "a.png")
