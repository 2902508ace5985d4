"""Dropping the branches: what is written is proven, and what cannot be proven is not written."""

from __future__ import annotations

import getpass
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_detr.atomic_files import private_directory
from lora_detr.checkpoints.opened import OpenedRun, open_run
from lora_detr.checkpoints.stripped_file import StrippedFile, read_stripped, write_stripped
from lora_detr.deploy.proof_images import proof_images
from lora_detr.deploy.strip import MERGE_TOLERANCE, WORKING, StripReport, strip
from lora_detr.errors import CheckpointError, ConfigError, VerificationError
from lora_detr.models import AnyDetector
from lora_detr.structures import Images
from lora_detr.tensor_files import read_tensors
from tests import small_runs

Writer = Callable[[Path, AnyDetector, OpenedRun], None]


@pytest.fixture(scope="module")
def opened(learned_run: Path) -> OpenedRun:
    return open_run(learned_run)


@pytest.fixture(scope="module")
def images(opened: OpenedRun) -> list[Images]:
    return proof_images(opened, 4)[0]


@pytest.fixture(scope="module")
def stripped(
    opened: OpenedRun, images: list[Images], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, StripReport]:
    """A stripped file and its report. Shared: each proof starts a process of its own."""
    path = tmp_path_factory.mktemp("stripped") / "model.safetensors"
    return path, strip(opened, path, images, "four photos")


@pytest.fixture(scope="module")
def deployed(stripped: tuple[Path, StripReport]) -> StrippedFile:
    return read_stripped(stripped[0])


def test_the_proof_is_of_equal_bits(stripped: tuple[Path, StripReport], opened: OpenedRun) -> None:
    path, report = stripped
    assert report.largest_difference == 0.0
    assert report.outputs_sha256[0] == report.outputs_sha256[1]
    assert (report.branch, report.inputs, report.batches) == ("primary", "four photos", 3)
    assert report.parameters_before - report.parameters_after == 3 * 2 * 2 * 4 * (32 + 64)  # N L 2 r (D + F)
    assert report.bytes_after == path.stat().st_size < report.bytes_before
    assert report.gflops > 0
    assert (report.source, report.file) == (opened.path.name, path.name)
    json.dumps(report.to_json(), allow_nan=False)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]  # no temporary folder stays


def test_keys_and_shapes_are_those_of_the_detector_built_without_branches(
    stripped: tuple[Path, StripReport], opened: OpenedRun
) -> None:
    tensors, _ = read_tensors(stripped[0])
    config = opened.config.model_copy(update={"branches": ()})
    plain = config.build_model(opened.categories.num_classes, load_weights=False).detector
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in plain.state_dict().items()
    }
    assert not [name for name in tensors if "branch" in name or "lora" in name]
    assert all(torch.equal(tensor, opened.checkpoint.model[f"detector.{name}"]) for name, tensor in tensors.items())


def test_the_file_names_no_folder_host_or_user_x11(stripped: tuple[Path, StripReport], learned_data: Path) -> None:
    _, metadata = read_tensors(stripped[0])
    text = json.dumps(metadata)
    assert str(learned_data.parent) not in text
    assert str(Path.home()) not in text
    assert platform.node() not in text
    assert "branch" not in text
    values = list(leaves(json.loads(metadata["config"])))
    assert not [value for value in values if isinstance(value, str) and (value.startswith(("/", "~")) or "\\" in value)]
    assert getpass.getuser() not in values


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def test_the_file_stores_the_classes_under_their_original_ids(deployed: StrippedFile, opened: OpenedRun) -> None:
    assert deployed.deployment.categories == opened.categories
    assert deployed.deployment.category_ids[:3] == (3, 7, 11)
    assert "circle" in deployed.deployment.category_names


def test_reading_a_stripped_file_needs_no_branches() -> None:
    code = (
        "import sys, lora_detr.checkpoints.stripped_file, lora_detr.deploy.candidate; "
        "sys.exit(any(name.startswith('lora_detr.branches') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("sizes", [((33, 95),), ((97, 64), (64, 129)), ((128, 128), (31, 7), (90, 128))])
def test_a_reloaded_file_predicts_the_same_bits(
    sizes: tuple[tuple[int, int], ...], deployed: StrippedFile, opened: OpenedRun
) -> None:
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixels, padding = torch.zeros(len(sizes), 3, height, width), torch.ones(len(sizes), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, :h, :w] = torch.randn(3, h, w)
        padding[i, :h, :w] = False
    images = Images(pixels, padding, torch.tensor(sizes))
    with torch.no_grad():
        output, branches = opened.model(images)
        found = deployed.detector(images).prediction
    assert branches is not None
    assert torch.equal(found.logits, output.prediction.logits)
    assert torch.equal(found.boxes, output.prediction.boxes)


def damage_a_bit(path: Path, detector: AnyDetector, opened: OpenedRun) -> None:
    tensors = detector.inference_state()
    write_stripped(path, tensors, opened.deployment)
    data = bytearray(path.read_bytes())
    # The sign of the largest weight there is: a bit that no rounding can hide.
    name, tensor = max(tensors.items(), key=lambda item: float(item[1].abs().max()) if "classes.1" in item[0] else -1.0)
    header = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + header])[name]["data_offsets"][0]
    data[8 + header + begin + 4 * int(tensor.abs().argmax()) + 3] ^= 0x80
    path.write_bytes(data)


def cut(path: Path, detector: AnyDetector, opened: OpenedRun) -> None:
    write_stripped(path, detector.inference_state(), opened.deployment)
    path.write_bytes(path.read_bytes()[:-5])


def nudge(path: Path, detector: AnyDetector, opened: OpenedRun) -> None:
    name, tensors = "heads.classes.1.bias", detector.inference_state()
    write_stripped(path, {**tensors, name: tensors[name] + 1e-5}, opened.deployment)


@pytest.mark.parametrize(
    ("writer", "part"),
    [(damage_a_bit, "damaged"), (cut, "truncated"), (nudge, "differs")],
    ids=lambda item: getattr(item, "__name__", None),
)
def test_a_file_that_is_not_proven_is_not_kept(
    writer: Writer, part: str, opened: OpenedRun, images: list[Images], tmp_path: Path
) -> None:
    output = tmp_path / "out" / "model.safetensors"
    output.parent.mkdir()
    if writer is not cut:
        output.write_bytes(b"an older file")
    with pytest.raises(VerificationError, match=part) as caught:
        strip(opened, output, images, "four photos", write=writer)
    assert caught.value.exit_code == 8
    left = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    assert left == ({} if writer is cut else {output.name: b"an older file"})


def test_the_checkpoint_itself_is_never_the_output(opened: OpenedRun, images: list[Images]) -> None:
    before = {path.name: path.read_bytes() for path in opened.path.iterdir()}
    for output in (opened.path, opened.path / "model.safetensors", opened.path / "new" / "file.safetensors"):
        with pytest.raises(ConfigError, match="lies in the checkpoint that is read") as caught:
            strip(opened, output, images, "four photos")
        assert caught.value.exit_code == 2
    assert {path.name: path.read_bytes() for path in opened.path.iterdir()} == before


def test_a_branch_can_be_merged_into_the_last_layer(
    opened: OpenedRun, images: list[Images], stripped: tuple[Path, StripReport], tmp_path: Path
) -> None:
    path = tmp_path / "branch.safetensors"
    report = strip(opened, path, images, "four photos", branch=1)
    assert report.branch == "1"
    assert 0 <= report.largest_difference <= MERGE_TOLERANCE
    merged, plain = read_tensors(path)[0], read_tensors(stripped[0])[0]
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed == {f"decoder.layers.1.ffn.linear{i}.weight" for i in (1, 2)}
    detector = read_stripped(path).detector
    with torch.no_grad():
        branches = opened.model(images[0])[1]
        found = detector(images[0]).prediction
    assert branches is not None
    assert torch.allclose(found.logits, branches.layers[-1].logits[1], atol=MERGE_TOLERANCE)
    assert not torch.allclose(found.logits, branches.layers[-1].logits[0], atol=MERGE_TOLERANCE)


@pytest.mark.parametrize("branch", [3, 99, -1])
def test_an_unknown_branch_is_refused(branch: int, opened: OpenedRun, images: list[Images], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--branch {branch}: the model has 3 branches") as caught:
        strip(opened, tmp_path / "x.safetensors", images, "four photos", branch=branch)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_strip_leaves_no_process_and_the_next_one_removes_its_folder(
    opened: OpenedRun, images: list[Images], learned_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "stripped.safetensors"
    command = [sys.executable, "-m", "lora_detr", "strip", str(learned_run), "--output", str(output)]
    started = subprocess.Popen(command, cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL)
    children: list[str] = []
    deadline = time.monotonic() + 120
    while not children and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        if any(output.parent.glob(f"{WORKING}*/inputs.safetensors")):
            tasks = Path(f"/proc/{started.pid}/task")
            children = [child for path in tasks.glob("*/children") for child in path.read_text().split()]
    assert len(children) == 1
    # A strip beside it leaves the folder of a live process alone.
    (folder,) = output.parent.glob(f"{WORKING}*")
    with private_directory(output.parent, WORKING) as other:
        assert folder.is_dir() and other != folder
    started.kill()
    started.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{children[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{children[0]}").exists()
    assert folder.is_dir()
    (output.parent / f"{WORKING}older").mkdir()  # of a version that named them otherwise
    strip(opened, output, images, "four photos")
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_stripped_file_is_not_stripped_again_k12(stripped: tuple[Path, StripReport], learned_run: Path) -> None:
    with pytest.raises(CheckpointError, match="stripped file already") as caught:
        open_run(stripped[0])
    assert (caught.value.exit_code, caught.value.code) == (4, "K12")
    assert open_run(learned_run).model.branches.members


def test_a_run_without_branches_and_without_its_data_is_exported_the_same_way(
    shapes_tiny: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(shapes_tiny, tmp_path / "data"))
    directory = small_runs.train(data, tmp_path / "run", "train.max_steps=1", "branches=[]").directory
    shutil.rmtree(data)
    opened = open_run(directory)
    images, described = proof_images(opened, 2)
    assert described == "2 noise images"
    report = strip(opened, tmp_path / "model.safetensors", images, described)
    assert report.largest_difference == 0.0
    assert report.parameters_before == report.parameters_after
    assert read_stripped(tmp_path / "model.safetensors").deployment.max_detections == 100


class TestProofImages:
    """The inputs of a proof."""

    def test_photos_have_odd_sizes_and_come_alone_and_in_padded_pairs(self, opened: OpenedRun) -> None:
        images, described = proof_images(opened, 5)
        assert described == "5 photos of two.json"
        assert [len(batch.sizes) for batch in images] == [1, 1, 2, 1]
        sizes = [tuple(size) for batch in images for size in batch.sizes.tolist()]
        assert all(height % 2 and width % 2 for height, width in sizes)
        assert len(set(sizes)) == 5
        assert images[2].padding.any()
        assert {batch.pixels.dtype for batch in images} == {torch.uint8}

    def test_noise_takes_their_place_when_the_data_is_gone_or_damaged(self, opened: OpenedRun, tmp_path: Path) -> None:
        for path in (tmp_path / "absent", tmp_path):
            data = opened.config.data.model_copy(update={"path": str(path)})
            without = replace(opened, config=opened.config.model_copy(update={"data": data}))
            images, described = proof_images(without, 6)
            assert described == "6 noise images"
            assert sum(len(batch.sizes) for batch in images) == 6
            assert any(batch.padding.any() for batch in images)
            assert {batch.pixels.dtype for batch in images} == {torch.uint8}

    @pytest.mark.parametrize("count", [1, 2, 3, 40])
    def test_any_number(self, count: int, opened: OpenedRun) -> None:
        images, _ = proof_images(opened, count)
        assert sum(len(batch.sizes) for batch in images) == count


@pytest.mark.parametrize("branch", [None, 1])
def test_plus_plus_is_stripped_too(branch: int | None, shapes_tiny: Path, images: list[Images], tmp_path: Path) -> None:
    overrides = ("model.mixed_selection=true", "model.look_forward_twice=true", "train.max_steps=1")
    run = small_runs.train(shapes_tiny, tmp_path / "run", *overrides).directory
    report = strip(open_run(run), tmp_path / "stripped.safetensors", images, "four photos", branch)
    assert (report.largest_difference == 0) == (branch is None)
    assert report.gflops > 0
