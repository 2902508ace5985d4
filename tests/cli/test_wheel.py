"""The wheel has all that the commands need: it is built, installed into an empty folder, and run from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="pip install hatchling to build the wheel")

from lora_detr.config.presets import list_presets
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

TINY = ("--set", "model.backbone.weights=none", "--device", "cpu", "--workers", "0", "--max-steps", "2")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(REPOSITORY)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_every_file_that_is_no_code_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = REPOSITORY / "lora_detr"
    wanted = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"lora_detr/{path.relative_to(package).as_posix()}" for path in wanted} <= names
    presets = {f"lora_detr/configs/{preset.path.name}" for preset in list_presets()}
    assert {name.rpartition("/")[2] for name in presets} <= {name.rpartition("/")[2] for name in names}
    assert "lora_detr/configs/huggingface/rt-detr.yaml" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]


def test_the_commands_of_the_readme_work_from_it(wheel: Path, shapes_tiny: Path, tmp_path: Path) -> None:
    site, place = tmp_path / "site", tmp_path / "place"
    zipfile.ZipFile(wheel).extractall(site)
    place.mkdir()
    run = "runs/deformable-tiny-lora3-1"
    commands = [
        ("config", "list"),
        ("train", "--preset", "deformable-tiny-lora3", "--data", shapes_tiny, *TINY),
        ("eval", run, "--device", "cpu", "--workers", "0"),
        ("report", run, "--device", "cpu"),
        ("strip", run, "--inputs", "1"),
        ("predict", f"{run}/stripped.safetensors", shapes_tiny / "val", "--device", "cpu"),
        ("data", "convert", shapes_tiny, "clean"),
        ("doctor", "--data", "clean"),
    ]
    # Only the wheel and the packages that are installed: neither the checkout nor its folder is on the path.
    start = "import sys; sys.path[:] = [p for p in sys.path if p != sys.argv[1]]; sys.path.insert(0, sys.argv[2]); "
    start += "import lora_detr; assert lora_detr.__file__.startswith(sys.argv[2]); "
    start += "sys.argv[:] = ['loradetr', *sys.argv[3:]]; from lora_detr.cli import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in commands:
        line = [sys.executable, "-P", "-c", start, str(REPOSITORY), str(site), *map(str, command)]
        done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
    assert (place / run / "report.html").is_file()
    assert (place / "predictions" / "predictions.json").is_file()
