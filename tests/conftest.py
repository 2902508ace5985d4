"""Fixtures of all tests."""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image

from lora_detr.atomic_files import write_file
from lora_detr.data.coco import kept
from lora_detr.data.synthetic.sets import SHAPES, generate
from lora_detr.deploy import strip
from lora_detr.records.run_directory import RunDirectory
from lora_detr.training import run_log
from tests import small_runs
from tests.forks import run_forked

REPOSITORY = Path(__file__).parents[1]
DRAW = run_log.draw
"""What draws ``results.png`` of a run; see ``_blank_pictures``."""


def pytest_configure(config: pytest.Config) -> None:
    """Compute on one thread unless told otherwise, so that no sum depends on how work was divided."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _blank_pictures() -> Iterator[None]:
    """Draw no ``results.png`` of runs in this process: it takes four times as long as all the rest of a tiny run."""
    content = io.BytesIO()
    Image.new("L", (2, 2)).save(content, "PNG")

    def blank(directory: RunDirectory) -> None:
        write_file(directory.path / "results.png", content.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log, "draw", blank)
        yield


@pytest.fixture(scope="session", autouse=True)
def _forked_proofs() -> Iterator[None]:
    """Prove stripped files in a fork of this process; commands that are processes of their own start a new one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strip, "subprocess", SimpleNamespace(run=run_forked))
        yield


@pytest.fixture(scope="session", autouse=True)
def _unwatched() -> Iterator[None]:
    """Keep commands in this process from watching it, which would outlast their test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_detr.cli.watch_contention", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is read of many files in a folder of the tests."""
    folder = tmp_path_factory.mktemp("splits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "kept_in", lambda: folder)
        yield


@pytest.fixture
def real_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw ``results.png`` in this test."""
    monkeypatch.setattr(run_log, "draw", DRAW)


@pytest.fixture(scope="session")
def shapes_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated COCO folder of 12 training and 6 validation images of 112 pixels. Shared: do not write into it."""
    spec = replace(SHAPES, name="shapes-tiny", size=112, max_objects=8, min_scale=0.08)
    return generate(spec, tmp_path_factory.mktemp("data") / "shapes-tiny", train_images=12, val_images=6)


@pytest.fixture(scope="session")
def small_run(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a finished run of ``tests/small.yaml``. Shared: copy it before changing anything in it."""
    directory = small_runs.train(shapes_tiny, tmp_path_factory.mktemp("runs") / "small").directory
    evaluated = directory / "eval" / "metrics.json"
    before = evaluated.read_bytes()
    yield directory
    assert evaluated.read_bytes() == before, "a test has evaluated the run that others share; give it `own_run`"


@pytest.fixture
def own_run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of ``small_run`` that a test may change."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def learned_data(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two images that are trained on and evaluated on; category ids are 3, 7, 11, ... Shared."""
    return small_runs.write_two_images(shapes_tiny, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="session")
def learned_run(learned_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows the two images of ``learned_data``, so that its results are far from zero. Shared."""
    directory = tmp_path_factory.mktemp("runs") / "learned"
    return small_runs.train(learned_data, directory, *small_runs.LEARNED).directory


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real photographs, named by LORADETR_DATA or found beside the repository."""
    path = Path(os.environ.get("LORADETR_DATA") or REPOSITORY.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set LORADETR_DATA")
    return path
