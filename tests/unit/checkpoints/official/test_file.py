"""Reading and writing official files: what is found in them, and what is refused."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_detr.checkpoints.official.file import read_official, write_official
from lora_detr.errors import CheckpointError

RAW, AVERAGE = {"a.weight": torch.tensor([1.0, 2.0])}, {"a.weight": torch.tensor([3.0, 4.0])}


def saved(content: object, path: Path, *, archive: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    return path


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "older format"])
def test_plain_data_beside_the_weights_is_no_obstacle(archive: bool, tmp_path: Path) -> None:
    """Command lines and numbers of numpy stand in real files; they are named, and not read."""
    beside = {"args": Namespace(lr=2e-4), "best": np.float64(0.49), "epoch": np.int64(11), "lr": [np.float32(1e-4)]}
    file = read_official(saved({"model": RAW, **beside}, tmp_path / "file.pth", archive=archive))
    assert file.tensors.keys() == RAW.keys()
    assert file.rest == tuple(beside)


@pytest.mark.parametrize(
    "content",
    [
        RAW,
        {"model": RAW, "epoch": 3},
        {"model": {"state_dict": RAW}, "epoch": 3},
        {"state_dict": OrderedDict((f"module.{name}", tensor) for name, tensor in RAW.items())},
        {"model": RAW, "ema": {"module": AVERAGE}},
    ],
    ids=["flat", "model", "nested", "parallel", "with an average"],
)
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "older format"])
def test_weights_are_found_wherever_they_lie(content: object, archive: bool, tmp_path: Path) -> None:
    file = read_official(saved(content, tmp_path / "file.pth", archive=archive), ema=False)
    assert {name: tensor.tolist() for name, tensor in file.tensors.items()} == {"a.weight": [1.0, 2.0]}
    assert not file.averaged


def test_the_average_is_taken_unless_the_raw_weights_are_asked_for(tmp_path: Path) -> None:
    path = saved({"model": RAW, "ema": {"module": AVERAGE, "updates": 7}, "epoch": 3}, tmp_path / "file.pth")
    file = read_official(path)
    assert (file.tensors["a.weight"].tolist(), file.averaged) == ([3.0, 4.0], True)
    assert sorted(file.rest) == ["epoch", "model", "updates"]
    file = read_official(path, ema=False)
    assert (file.tensors["a.weight"].tolist(), file.averaged) == ([1.0, 2.0], False)
    assert sorted(file.rest) == ["ema", "epoch"]


def test_a_state_of_a_schedule_is_no_obstacle(tmp_path: Path) -> None:
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 3])
    content = {"model": RAW, "optimizer": optimiser.state_dict(), "lr_scheduler": schedule.state_dict()}
    assert read_official(saved(content, tmp_path / "file.pth")).rest == ("optimizer", "lr_scheduler")


def test_order_is_kept_and_a_tensor_of_two_names_is_written_once(tmp_path: Path) -> None:
    head = torch.arange(100_000.0)
    tensors = {"z": torch.ones(1), "class_embed.0.weight": head, "transformer.decoder.class_embed.0.weight": head}
    path = tmp_path / "file.pth"
    write_official(path, tensors)
    assert path.stat().st_size < 1.5 * head.nbytes
    assert list(read_official(path).tensors) == list(tensors)


def test_the_two_names_of_a_head_must_agree(tmp_path: Path) -> None:
    differing = {"class_embed.0.bias": torch.zeros(2), "transformer.decoder.class_embed.0.bias": torch.ones(2)}
    with pytest.raises(CheckpointError, match="differ, but the model has one tensor for both") as caught:
        read_official(saved({"model": differing}, tmp_path / "file.pth"))
    assert caught.value.code == "K08"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"model": {"a": torch.ones(1).expand(10**12)}}, "not plain"),
        ({"model": {"a": torch.eye(3).to_sparse()}}, "not plain"),
        ({"model": {"a": torch.ones((1,) * 17)}}, "not plain"),
        ({"model": {"a": torch.ones(1), "module.a": torch.ones(1)}}, "share a name"),
        ({"model": {"a": torch.tensor([1.0, float("nan")])}}, "tensor 'a' has 1 of 2 values not finite"),
        ({"model": {"a": 3}}, "holds no weights"),
        ([1, 2], "holds no weights"),
    ],
    ids=["repeats", "sparse", "axes", "twice", "nan", "numbers", "list"],
)
def test_tensors_that_cannot_be_used_are_refused(content: object, part: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=part) as caught:
        read_official(saved(content, tmp_path / "file.pth"))
    assert caught.value.code in ("K05", "K10")
    assert "file.pth" in caught.value.message


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_official(saved(content, tmp_path / "file.pth"))


def test_an_archive_that_unpacks_to_more_than_itself_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved({"model": {"a": torch.zeros(10**6)}}, tmp_path / "plain.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))

    def load(*arguments: object, **named: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError, match="not a PyTorch file of tensors") as caught:
        read_official(packed)
    assert isinstance(caught.value.__cause__, ValueError)
