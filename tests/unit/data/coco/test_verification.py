"""Looking at every image before a run, and lists of checksums."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_detr.data import progress
from lora_detr.data.coco import verification
from lora_detr.data.coco.checksums import SHA256SUMS, read_sums
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.coco.verification import verify_images
from lora_detr.data.images import read_image
from lora_detr.errors import DataError, WorkerError
from tests.unit.data.coco.coco_files import content, load, write_images


def _split(folder: Path, images: int = 6) -> CocoSplit:
    value = content(images)
    write_images(folder, value)
    return load(folder, value, check_files=True)


def _list(folder: Path) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(folder.glob("*.png"))]
    (folder / SHA256SUMS).write_text("\n".join(lines) + "\n")


def _with_one_bit_flipped(whole: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(whole)
    damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


@pytest.mark.parametrize("processes", [0, 2])
def test_decode_finds_every_image_that_cannot_be_used(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "WORTH_A_PROCESS", 1)
    split = _split(tmp_path, 40)
    (tmp_path / "1.png").write_bytes(b"<html>")
    (tmp_path / "2.png").unlink()
    Image.new("RGB", (41, 30)).save(tmp_path / "3.png")
    Image.new("1", (20032, 20032)).save(tmp_path / "4.png")
    found = verify_images(split.records, "decode", processes=processes)
    assert {image_id: problem.code for image_id, problem in found.problems.items()} == {
        11: "D18",
        12: "D18",
        13: "D23",
        14: "D25",
    }
    for image_id, problem in found.problems.items():
        assert f"{tmp_path / f'{image_id - 10}.png'} (image id {image_id}): " in problem.text
    assert found.digests[15] == hashlib.sha256((tmp_path / "5.png").read_bytes()).digest()
    assert len(found.digests) == 39


def test_nothing_is_read_unless_asked_for(tmp_path: Path) -> None:
    split = _split(tmp_path)
    shutil.rmtree(tmp_path)
    found = verify_images(split.records, "none")
    assert (found.problems, found.digests) == ({}, {})


def test_a_png_with_any_bit_flipped_leaves_the_process_alive_d19(tmp_path: Path) -> None:
    split = _split(tmp_path, 1)
    path = tmp_path / "0.png"
    whole = path.read_bytes()
    pixels = read_image(split.records[0])
    draw = random.Random(0)
    refused = 0
    for _ in range(60):
        path.write_bytes(_with_one_bit_flipped(whole, draw))
        problems = verify_images(split.records, "decode").problems
        refused += bool(problems)
        if not problems:  # a bit that says nothing about pixels
            assert bool((read_image(split.records[0]) == pixels).all())
        else:
            assert problems[10].code in ("D18", "D23", "D25")
    assert refused > 50


def test_bit_flips_in_a_jpeg_are_caught_by_the_hash_whether_or_not_it_decodes_d20(tmp_path: Path) -> None:
    value = content(1)
    value["images"][0]["file_name"] = "0.jpg"
    split = load(tmp_path, value)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    whole, path = file.getvalue(), tmp_path / "0.jpg"
    (tmp_path / SHA256SUMS).write_text(f"{hashlib.sha256(whole).hexdigest()} *0.jpg\n")
    path.write_bytes(whole)
    assert not verify_images(split.records, "hash").problems
    draw = random.Random(0)
    invisible = 0
    for _ in range(200):
        path.write_bytes(_with_one_bit_flipped(whole, draw))
        assert [problem.code for problem in verify_images(split.records, "hash").problems.values()] == ["D20"]
        invisible += not verify_images(split.records, "decode").problems
    assert invisible > 50  # which is why there are hashes


def test_what_differs_or_is_not_listed_is_named_d20(tmp_path: Path) -> None:
    split = _split(tmp_path)
    _list(tmp_path)
    text = (tmp_path / SHA256SUMS).read_text().splitlines()
    (tmp_path / SHA256SUMS).write_text("\n".join(text[1:]) + "\n")
    shutil.copy(tmp_path / "3.png", tmp_path / "4.png")
    (tmp_path / "5.png").unlink()
    problems = verify_images(split.records, "hash").problems
    assert {image_id: problem.code for image_id, problem in problems.items()} == {10: "D20", 14: "D20", 15: "D18"}
    assert f"{tmp_path / '0.png'} (image id 10): not listed in {tmp_path / SHA256SUMS}" in problems[10].text
    assert "SHA-256 is " in problems[14].text
    assert f"{SHA256SUMS} has " in problems[14].text


def test_a_list_that_is_not_there_or_no_list_is_refused_d20(tmp_path: Path) -> None:
    split = _split(tmp_path)
    with pytest.raises(DataError, match=r"SHA256SUMS: the list of checksums cannot be read") as caught:
        verify_images(split.records, "hash")
    assert caught.value.code == "D20"
    (tmp_path / SHA256SUMS).write_text("\n0123  0.png\n")
    with pytest.raises(DataError, match=r"SHA256SUMS:2: expected a SHA-256"):
        verify_images(split.records, "hash")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
@pytest.mark.parametrize("mode", ["--text", "--binary"])
def test_lists_of_sha256sum_itself_are_read(tmp_path: Path, mode: str) -> None:
    names = ["a.png", "with space.png", "größe.png", "sub/b.png", "line\nend.png", "back\\slash.png"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_text(name)
    listed = subprocess.run(
        ["sha256sum", mode, *(f"./{name}" for name in names)], cwd=tmp_path, capture_output=True, check=True
    )
    (tmp_path / SHA256SUMS).write_bytes(listed.stdout)
    assert read_sums(tmp_path) == {name: hashlib.sha256(name.encode()).digest() for name in names}


def test_progress_is_shown_when_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    split = _split(tmp_path)
    monkeypatch.setattr(logging.getLogger("lora_detr"), "propagate", True)
    with caplog.at_level(logging.INFO, "lora_detr"):
        verify_images(split.records, "decode")
        assert not caplog.messages
        monkeypatch.setattr(progress, "EVERY", -1.0)
        verify_images(split.records, "decode")
    assert caplog.messages[2] == f"{tmp_path}: check 3 of 6 files"


def test_a_decoder_that_kills_its_process_is_named_with_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(record: object, max_pixels: int) -> None:
        os._exit(3)

    monkeypatch.setattr(verification, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(verification, "read_image", die)
    with pytest.raises(WorkerError, match=r"one of these images: \[10, 11") as caught:
        verify_images(_split(tmp_path).records, "decode", processes=1)
    assert caught.value.exit_code == 7
