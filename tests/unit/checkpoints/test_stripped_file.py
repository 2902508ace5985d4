"""A stripped file says everything that inference needs, and every damage to it is found."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from lora_detr.checkpoints.opened import open_run
from lora_detr.checkpoints.stripped_file import FORMAT_VERSION, read_file, read_stripped, write_stripped
from lora_detr.errors import CheckpointError
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.tensor_files import read_tensors, write_tensors


@pytest.fixture(scope="module")
def stripped(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = open_run(small_run)
    path = tmp_path_factory.mktemp("deployed") / "stripped.safetensors"
    write_stripped(path, opened.model.detector.state_dict(), opened.deployment)
    return path


def test_it_reads_back_as_it_was_written(stripped: Path, small_run: Path) -> None:
    opened, deployed = open_run(small_run), read_stripped(stripped)
    assert deployed.deployment == opened.deployment
    expected = opened.model.detector.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in deployed.detector.state_dict().items())


def test_pixels_are_normalised_by_the_statistics_in_the_file(small_run: Path, tmp_path: Path) -> None:
    opened, path = open_run(small_run), tmp_path / "stripped.safetensors"
    config = opened.deployment.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    write_stripped(path, opened.model.detector.state_dict(), config)
    normalisation = read_stripped(path).detector.normalisation
    assert normalisation is not None
    assert torch.equal(normalisation.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(normalisation.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))


def test_every_flipped_bit_is_found_k02(stripped: Path, tmp_path: Path) -> None:
    content = stripped.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    dice = random.Random(0)
    # Half of them in the header, which is a small part of the file.
    places = [dice.randrange(header) for _ in range(50)] + [dice.randrange(header, len(content)) for _ in range(50)]
    file = tmp_path / "flipped.safetensors"
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << dice.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"flipped\.safetensors"):
            read_file(file)


def test_a_changed_config_is_found(stripped: Path, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(stripped)
    changed = metadata["config"].replace('"max_detections":100', '"max_detections":10')
    assert changed != metadata["config"]
    write_tensors(tmp_path / "changed.safetensors", tensors, {**metadata, "config": changed})
    with pytest.raises(CheckpointError, match="do not match the hash") as caught:
        read_file(tmp_path / "changed.safetensors")
    assert caught.value.code == "K02"


def test_a_config_from_before_some_settings_existed_reads_as_it_did(small_run: Path) -> None:
    config = open_run(small_run).deployment
    stored = config.model_dump(mode="json")
    del stored["min_score"], stored["suppression"], stored["transform"]["rule"]
    read = DeploymentConfig.model_validate_json(json.dumps(stored))
    assert read == config
    assert (read.min_score, read.suppression, read.transform.rule) == (None, "per-class", "deformable")


@pytest.mark.parametrize("version", ["1", str(FORMAT_VERSION + 1), ""])
def test_another_format_version_is_refused_k13(version: str, stripped: Path, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(stripped)
    write_tensors(tmp_path / "other.safetensors", tensors, {**metadata, "format_version": version})
    with pytest.raises(CheckpointError, match=f"this program reads {FORMAT_VERSION}"):
        read_file(tmp_path / "other.safetensors")


def test_nothing_of_the_machine_is_in_the_file_x11(stripped: Path, small_run: Path) -> None:
    _, metadata = read_tensors(stripped)
    assert str(small_run.parent) not in str(metadata)
    assert str(Path.home()) not in str(metadata)
