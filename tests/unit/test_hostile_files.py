"""What a file says is data: no name in it becomes a path, and no header costs much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from lora_detr.checkpoints.checkpoint import load_checkpoint
from lora_detr.checkpoints.manifest import NAME, Manifest, encode, read_manifest
from lora_detr.checkpoints.official.file import read_official
from lora_detr.data.coco.split import load_coco
from lora_detr.data.layouts.registry import find_splits
from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.tensor_files import load_exact, read_tensors, write_tensors

NAMES = ("../../outside", "/tmp/../outside", "__proto__", "constructor", "a/../../b", "..", "name\nof\ntwo lines", "\0")
MEGABYTE = 1_000_000

# A process of its own, so that what others have used before does not hide what a header costs.
MEASURE = """
import resource, sys, time
from pathlib import Path
from lora_detr.errors import CheckpointError
from lora_detr.tensor_files import MAX_HEADER_BYTES, read_tensors

def header(length, text, data=b""):
    return length.to_bytes(8, "little") + text + data

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def entries(count):
    rows = (b'"%d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (i, i, i + 1) for i in range(count))
    return b"{" + b",".join(rows) + b"}"

many = entries(1_000_000)
nested = b"[" * 1_000_000
ATTACKS = {
    "2^63": header(2**63, b"{}"),
    "100 MB + 1": header(100_000_001, b"{}"),
    "millions of tensors": header(len(many), many, b"\\0" * 1_000_000),
    "as many tensors as fit": header(MAX_HEADER_BYTES, many[:MAX_HEADER_BYTES]),
    "nesting": header(len(nested), nested),
    "text": header(15_000_002, b'"' + b"a" * 15_000_000 + b'"'),
    "duplicate": header(26, b'{"a":{},"a":{},"a":{}}    '),
}
path = Path(sys.argv[1])
worst, before = 0.0, peak()  # what the attacks themselves take is in it
for name, data in ATTACKS.items():
    path.write_bytes(data)
    started = time.perf_counter()
    try:
        read_tensors(path)
    except CheckpointError:
        worst = max(worst, time.perf_counter() - started)
    else:
        sys.exit(f"{name}: accepted")
print(peak() - before, worst)
"""


def test_a_header_costs_little_time_and_memory_k07(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.safetensors")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, seconds = map(float, done.stdout.split())
    assert grown < 200 * MEGABYTE
    assert seconds < 1


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_tensor_is_never_a_path_x12(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    path = folder / "a.safetensors"
    write_tensors(path, {name: torch.ones(1)})
    assert read_tensors(path)[0].keys() == {name}
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_exact(nn.Linear(1, 1), read_tensors(path)[0], path)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


@pytest.mark.parametrize("name", ["../../outside", "__proto__", "/tmp/../outside"])
def test_a_name_in_an_official_file_is_never_a_path_x12(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    path = folder / "a.pth"
    torch.save({"model": {name: torch.ones(1)}}, path)
    assert name in read_official(path).unknown
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


@pytest.mark.parametrize(
    "name", ["../../../outside", "/etc/hostname", "sub/file", "..", ".", "", "a\0b", "\ud800", "a\nb", "a" * 300]
)
def test_a_manifest_names_no_file_outside_x12(name: str, own_run: Path) -> None:
    checkpoint = own_run / "checkpoints" / "step-00000012"
    manifest = read_manifest(checkpoint)
    files = {**manifest.files, name: (1, "0" * 64)}
    (checkpoint / NAME).write_bytes(encode(Manifest(manifest.step, files, manifest.facts)))
    with pytest.raises(CheckpointError, match="the manifest lists a file outside"):
        load_checkpoint(checkpoint, with_optimizer=True)


def test_a_size_in_a_manifest_that_is_no_number_of_bytes_k03(own_run: Path) -> None:
    checkpoint = own_run / "checkpoints" / "step-00000012"
    manifest = read_manifest(checkpoint)
    files = {**manifest.files, "state.json": (float("inf"), "0" * 64)}
    (checkpoint / NAME).write_bytes(encode(Manifest(manifest.step, files, manifest.facts)))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="damaged or edited"):
        load_checkpoint(checkpoint, with_optimizer=True)


def test_a_pipe_in_place_of_a_file_of_a_checkpoint_is_not_waited_for_k01(own_run: Path) -> None:
    checkpoint = own_run / "checkpoints" / "step-00000012"
    (checkpoint / "state.json").unlink()
    os.mkfifo(checkpoint / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json: is no file"):
        load_checkpoint(checkpoint, with_optimizer=True)


def test_names_that_share_memory_are_read_once_k05(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    shared = torch.zeros(2_000_000)
    torch.save({"model": {f"n{i}": shared for i in range(20_000)}}, path)
    started = time.process_time()
    assert len(read_official(path).tensors) == 20_000
    assert time.process_time() - started < 3  # reading each takes 40


def test_heads_that_share_memory_are_compared_once_k08(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    shared = torch.zeros(2_000_000)
    names = [f"{head}.{i}.weight" for i in range(5_000) for head in ("class_embed", "transformer.decoder.class_embed")]
    torch.save({"model": dict.fromkeys(names, shared)}, path)
    started = time.process_time()
    assert not read_official(path).unknown
    assert time.process_time() - started < 3


def test_names_that_overlap_in_memory_are_refused_k05(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    shared = torch.zeros(2_000_000)
    torch.save({"model": {f"n{i}": shared[i:] for i in range(5_000)}}, path)
    started = time.process_time()
    with pytest.raises(CheckpointError, match="its tensors overlap each other"):
        read_official(path)
    assert time.process_time() - started < 3


def test_a_value_that_is_not_finite_is_found_in_shared_memory_k10(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    packed = torch.zeros(3, 4)
    packed[2, 1] = torch.nan
    torch.save({"model": {"first": packed[0], "second": packed[1], "third": packed[2], "whole": packed}}, path)
    with pytest.raises(CheckpointError, match="tensor 'third' has 1 of 4 values not finite, and 1 more tensors"):
        read_official(path)


def test_keys_of_an_annotation_file_that_mean_something_elsewhere_x12(shapes_tiny: Path, tmp_path: Path) -> None:
    content = json.loads((shapes_tiny / "annotations" / "instances_val.json").read_text())
    plain = load_coco(shapes_tiny / "annotations" / "instances_val.json", shapes_tiny / "val")
    content["__proto__"] = content["constructor"] = {"images": []}
    for section in ("images", "annotations", "categories"):
        for row in content[section]:
            row.update({"__proto__": {"id": -1}, "__class__": "os", "../../outside": 1})
    changed = tmp_path / "val.json"
    changed.write_text(json.dumps(content))
    found = load_coco(changed, shapes_tiny / "val")
    assert [record.id for record in found.records] == [record.id for record in plain.records]
    assert found.report.objects == plain.report.objects
    assert list(tmp_path.iterdir()) == [changed]


def test_metadata_and_categories_with_such_names_x12(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"__proto__": "../../outside", "format": "pt"})
    assert read_tensors(path)[1]["__proto__"] == "../../outside"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [executed]", "!!python/name:os.system ''"])
def test_a_tag_in_a_file_that_names_data_is_refused_x05(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data.yaml"
    path.write_text(f"train_annotations: {tag}\ntrain_images: photos\n")
    with pytest.raises(ConfigError, match=r"data\.yaml") as caught:
        find_splits(path)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [path]
