"""Settings inside a model file are data: what was forged in them is refused before it costs memory or time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_detr.checkpoints.checkpoint import MODEL, STATE
from lora_detr.checkpoints.manifest import NAME, Manifest, encode, read_manifest
from lora_detr.checkpoints.opened import open_model, open_run
from lora_detr.checkpoints.stripped_file import read_file, write_stripped
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import CheckpointError
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.tensor_files import build_exact, read_tensors
from tests.cli.conftest import commands_in

MEGABYTE = 1_000_000

# Key path -> (value, what the message reports). Of sizes that are allowed by themselves, but not those of the file.
FORGED: dict[str, tuple[Any, str]] = {
    "model.encoder_layers": (1_000_000, "must be at most 32"),
    "model.decoder_layers": (32, "does not fit the model in"),
    "model.hidden_dim": (1_000_000_000 - 32, "must be at most 8192"),
    "model.ffn_dim": (65_536, "does not fit the model in"),
    "model.heads": (0, "must be at least 1"),
    "model.heads ": (3, "not a multiple of `model.heads` 3"),
    "model.levels": (-4, "must be at least 1"),
    "model.points": (10**400, "must be at most 64"),
    "model.num_queries": (-1, "must be at least 1"),
    "model.dropout": (float("inf"), "must be finite"),
    "model.backbone.name": ("resnet152", "does not fit the model in"),
    "model.backbone.name ": ("no_such_network", "no model can be built of its stored config"),
    "model.backbone.strides": ([], "no model can be built of its stored config"),
}
IN_STRIPPED: dict[str, tuple[Any, str]] = {
    "size_divisor": (0, "must be at least 1"),
    "size_divisor ": (10**9, "must be at most 1024"),
    "max_detections": (10**12, "must be at most 1000000"),
    "mean": ([], "mean"),
    "mean ": ([0.1, 0.2], "mean"),
    "mean  ": ([float("inf"), 0.5, 0.5], "must be finite"),
    "std": ([0.0, 1.0, 1.0], "must be at least 1e-06"),
    "std ": ([float("nan"), 1.0, 1.0], "must be finite"),
    "min_score": (-1.0, "must be at least 0"),
    "category_ids": ([], "category_ids"),
    "category_ids ": ([1, 1], "ids"),
    "category_ids  ": ([10**30], "ids"),
    "transform.size": (10**9, "must be at most 100000"),
}

# A process of its own, so that what others have used before does not hide what a file costs.
MEASURE = """
import resource, sys, time
from pathlib import Path
from lora_detr.checkpoints.opened import open_model
from lora_detr.errors import CheckpointError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

good, *forged = map(Path, sys.argv[1:])
open_model(good)
before, worst = peak(), 0.0
for path in forged:
    started = time.process_time()
    try:
        open_model(path)
    except CheckpointError:
        worst = max(worst, time.process_time() - started)
    else:
        sys.exit(f"{path}: accepted")
print(peak() - before, worst)
"""


def _changed(config: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(config))
    *sections, key = path.strip().split(".")
    inside = copy
    for section in sections:
        inside = inside[section]
    inside[key] = value
    return copy


class _Forged(DeploymentConfig):
    """Stands for a config of any content."""

    def model_dump_json(self, **_: Any) -> str:
        return str(self.__dict__["text"])


def _forge_stripped(source: Path, target: Path, path: str, value: object) -> Path:
    """Copy a stripped file with another value in its config; its hash fits."""
    tensors, config = read_file(source)
    forged = _Forged.model_construct()
    forged.__dict__["text"] = json.dumps(_changed(config.model_dump(mode="json"), path, value))
    write_stripped(target, tensors, forged)
    return target


def _forge_checkpoint(source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Copy a checkpoint with another config in its state; its manifest fits."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    state = json.loads((target / STATE).read_text())
    data = json.dumps({**state, "config": change(state["config"])}).encode()
    (target / STATE).write_bytes(data)
    manifest = read_manifest(target)
    files = {**manifest.files, STATE: (len(data), hashlib.sha256(data).hexdigest())}
    (target / NAME).write_bytes(encode(Manifest(manifest.step, files, manifest.facts)))
    return target


@pytest.fixture(scope="session")
def good(small_run: Path) -> Path:
    """A checkpoint. Shared: do not write into it."""
    return small_run / "checkpoints" / "step-00000012"


@pytest.fixture(scope="session")
def stripped(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stripped file. Shared: do not write into it."""
    opened = open_run(good)
    path = tmp_path_factory.mktemp("stripped") / "good.safetensors"
    write_stripped(path, opened.detector.inference_state(), opened.deployment)
    return path


@pytest.mark.parametrize("path", [*FORGED, *IN_STRIPPED])
def test_a_forged_config_in_a_stripped_file_is_refused(path: str, stripped: Path, tmp_path: Path) -> None:
    value, expected = (FORGED | IN_STRIPPED)[path]
    forged = _forge_stripped(stripped, tmp_path / "a.safetensors", path, value)
    with pytest.raises(CheckpointError) as caught:
        open_model(forged)
    assert expected in caught.value.message
    assert str(forged) in caught.value.message
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("path", FORGED)
def test_a_forged_config_in_a_checkpoint_is_refused(path: str, good: Path, tmp_path: Path) -> None:
    value, expected = FORGED[path]
    forged = _forge_checkpoint(good, tmp_path / good.name, lambda config: _changed(config, path, value))
    with pytest.raises(CheckpointError) as caught:
        open_model(forged)
    assert caught.value.exit_code == 4
    # Of a run, sections must fit each other as well.
    assert expected in caught.value.message or "not a multiple of" in caught.value.message


def test_forged_configs_cost_little_time_and_memory(good: Path, stripped: Path, tmp_path: Path) -> None:
    paths = [stripped]
    for i, (path, (value, _)) in enumerate((FORGED | IN_STRIPPED).items()):
        paths.append(_forge_stripped(stripped, tmp_path / f"{i}.safetensors", path, value))
    for i, (path, (value, _)) in enumerate(FORGED.items()):
        paths.append(_forge_checkpoint(good, tmp_path / f"step-{i:08d}", lambda c, p=path, v=value: _changed(c, p, v)))
    branch = json.loads((good / STATE).read_text())["config"]["branches"][0]
    many = {**branch, "rank": 8192}
    for i, branches in enumerate(([branch] * 10_000, [many] * 32)):
        change = lambda config, value=branches: {**config, "branches": value}  # noqa: E731
        paths.append(_forge_checkpoint(good, tmp_path / f"step-{i + 100:08d}", change))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    grown, seconds = map(float, done.stdout.split())
    assert grown < 200 * MEGABYTE
    assert seconds < 2


def test_commands_refuse_a_forged_run_with_code_4(own_run: Path, tmp_path: Path) -> None:
    folder = own_run / "checkpoints"
    original = next(folder.glob("step-*"))
    for old in folder.glob("step-*"):
        old.rename(tmp_path / old.name)
    _forge_checkpoint(tmp_path / original.name, original, lambda c: _changed(c, "model.ffn_dim", 65_536))
    (folder / "best").unlink(missing_ok=True)
    with commands_in(tmp_path) as loradetr:
        Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
        commands = [
            ("eval", own_run),
            ("predict", own_run, tmp_path / "a.png"),
            ("strip", own_run),
            ("convert", own_run, tmp_path / "out.pth"),
            ("train", "--resume", own_run, "--epochs", "5"),
        ]
        for command in commands:
            ended = loradetr(*command)
            assert ended.code == 4, (command, ended.err)
            assert "Traceback" not in ended.err
            assert "does not fit the model" in ended.err, (command, ended.err)
        ended = loradetr("doctor", "--model", own_run)
        assert ended.code == 4, ended.out
        assert "does not fit the model" in ended.out


def test_a_category_id_beyond_64_bits_is_refused() -> None:
    with pytest.raises(CheckpointError, match="64-bit integers, found one of 1329 bits"):
        CategoryMap.from_json({"ids": [10**400], "names": ["a"]})


def test_a_category_name_with_half_a_character_is_refused() -> None:
    with pytest.raises(CheckpointError, match="half a character"):
        CategoryMap.from_json({"ids": [1], "names": ["\ud800"]})


def test_a_module_is_built_on_the_meta_device_first(good: Path) -> None:
    devices: list[torch.device] = []

    def build() -> torch.nn.Linear:
        devices.append(torch.empty(0).device)
        return torch.nn.Linear(2, 3)

    with pytest.raises(CheckpointError, match="does not fit the model"):
        build_exact(build, {"weight": torch.ones(3, 2)}, Path("a"))
    assert [device.type for device in devices] == ["meta"]
    built = build_exact(build, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, Path("a"))
    assert [device.type for device in devices[1:]] == ["meta", "cpu"]
    assert bool((built.weight == 1).all())


def test_checking_a_checkpoint_draws_no_random_number(good: Path) -> None:
    opened = open_run(good)

    def drawn(build: Callable[[], object]) -> torch.Tensor:
        torch.manual_seed(3)
        build()
        return torch.rand(4)

    def plain() -> torch.nn.Module:
        return opened.config.build_model(opened.categories.num_classes, load_weights=False)

    assert torch.equal(drawn(plain), drawn(lambda: build_exact(plain, read_tensors(good / MODEL)[0], good)))
