"""One safetensors file: exact, atomic, and safe to read whoever wrote it."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from lora_detr.errors import CheckpointError, NumericalError, OutputError
from lora_detr.tensor_files import MAX_HEADER_BYTES, MAX_TENSORS, load_exact, read_tensors, write_tensors

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def write_raw(path: Path, header: object, data: bytes = b"\0" * 4, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_round_trip_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.randn(2, 3), "a": torch.arange(3), "empty": torch.zeros(0), "scalar": torch.tensor(True)}
    write_tensors(path, tensors, {"config": "{}"})
    found, metadata = read_tensors(path)
    assert metadata == {"config": "{}"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in safetensors.torch.load_file(path).items())


def test_shared_and_strided_tensors_are_written_in_full(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weight = nn.Parameter(torch.randn(4, 3))
    write_tensors(path, {"a": weight, "b": weight, "row": weight[1], "transposed": weight.T})
    found, _ = read_tensors(path)
    assert torch.equal(found["a"], weight)
    assert torch.equal(found["b"], weight)
    assert torch.equal(found["row"], weight[1])
    assert torch.equal(found["transposed"], weight.T)


def test_what_the_length_says_k07(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in (2**63, 2**64 - 1, 100_000_001, 10_000):
        write_raw(path, {"a": ENTRY}, length=length)
        with pytest.raises(CheckpointError, match="truncated" if length == 10_000 else "not a safetensors file"):
            read_tensors(path)
    with path.open("wb") as file:  # sparse: the size is real, the bytes are not
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(CheckpointError, match=f"at most {MAX_HEADER_BYTES}"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": ENTRY, "b": ENTRY}, "overlaps"),
        ({"a": {**ENTRY, "data_offsets": [1, 5]}}, "hole"),
        ({"a": {**ENTRY, "data_offsets": [4, 0]}}, "does not fill"),
        ({"a": {**ENTRY, "data_offsets": [-4, 0]}}, "malformed"),
        ({"a": {**ENTRY, "shape": [-1]}}, "malformed"),
        ({"a": {**ENTRY, "shape": [2**62, 4]}}, "does not fill"),
        ({"a": {**ENTRY, "shape": [True]}}, "malformed"),
        ({"a": {**ENTRY, "shape": [1.0]}}, "malformed"),
        ({"a": {**ENTRY, "shape": [2]}}, "does not fill"),
        ({"a": {**ENTRY, "shape": [1] * 17}}, "malformed"),
        ({"a": {**ENTRY, "dtype": "F8_E4M3"}}, "unsupported dtype"),
        ({"a": {**ENTRY, "dtype": ["F32"]}}, "unsupported dtype"),
        ({"a": {**ENTRY, "more": 1}}, "exactly"),
        ({"a": [1]}, "exactly"),
        ({}, "extended"),
        ([], "not a mapping"),
        ({"a": ENTRY, "__metadata__": {"k": 1}}, "metadata"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', "twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "twice"),
        (b"[" * 150_000, "header"),
        (b"\xff\xfe", "header"),
        (b"", "header"),
        (b"nonsense", "header"),
    ],
)
def test_header_attacks_k07(tmp_path: Path, header: object, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_tensors(write_raw(tmp_path / "a.safetensors", header))
    assert caught.value.code == "K07"


@pytest.mark.parametrize(
    "header",
    [
        b"{" + b",".join(b'"%d":{}' % i for i in range(MAX_TENSORS + 5)) + b"}",
        b"[" + b"[]," * 5_000_000 + b"[]]",
        b"[" + b"0," * 7_000_000 + b"0]",
        b'"' + b"a" * 15_000_000 + b'"',
    ],
    ids=["tensors", "lists", "items", "text"],
)
def test_a_large_header_is_refused_fast_k07(tmp_path: Path, header: bytes) -> None:
    path = write_raw(tmp_path / "a.safetensors", header)
    started = time.perf_counter()
    with pytest.raises(CheckpointError):
        read_tensors(path)
    assert time.perf_counter() - started < 1


def test_a_pickle_is_refused_and_not_executed_k04(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(sentinel), "w")

    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError):
        read_tensors(path)
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(CheckpointError):
        read_tensors(path)
    assert not sentinel.exists()


def test_non_finite_values_are_refused_both_ways_k10(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    poisoned = {"good": torch.ones(2), "bad": torch.tensor([float("nan"), 1, float("-inf")])}
    with pytest.raises(NumericalError, match="'bad' has 2 of 3"):
        write_tensors(path, poisoned)
    assert list(tmp_path.iterdir()) == []
    safetensors.torch.save_file(poisoned, path)
    with pytest.raises(CheckpointError, match="'bad' has 2 of 3"):
        read_tensors(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_tensors(path)


def test_symlink_is_replaced_and_its_target_unchanged_x04(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link.safetensors"
    victim.write_text("precious")
    link.symlink_to(victim)
    write_tensors(link, {"a": torch.ones(1)})
    assert victim.read_text() == "precious"
    assert not link.is_symlink()
    assert read_tensors(link)[0].keys() == {"a"}


def test_output_error_names_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "a.safetensors", tmp_path / "folder"):
        with pytest.raises(OutputError, match=path.name):
            write_tensors(path, {"a": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_misfit_lists_ten_differences_and_changes_nothing_k08() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    wrong = {name: tensor + 1 for name, tensor in before.items()}
    wrong["0.weight"] = torch.zeros(3, 4)
    del wrong["1.bias"]
    wrong |= {f"extra{i}": torch.zeros(1) for i in range(12)}
    with pytest.raises(CheckpointError) as caught:
        load_exact(module, wrong, Path("weights.safetensors"))
    message = caught.value.message
    assert "weights.safetensors: does not fit the model in 14 places" in message
    assert "missing in the file: 1.bias" in message
    assert message.endswith("and 4 more")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_shapes_and_dtypes_are_named_k08_k11() -> None:
    module = nn.Linear(2, 3)
    for change, reason in (
        ({"weight": torch.zeros(3, 4)}, r"weight: shape \[3, 4\] in the file, \[3, 2\] in the model"),
        ({"bias": torch.zeros(3, dtype=torch.float16)}, "bias: float16 in the file, float32 in the model"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            load_exact(module, {**module.state_dict(), **change}, Path("w"))


def test_load_exact_copies() -> None:
    module = nn.Linear(2, 3)
    tensors = {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    load_exact(module, tensors, Path("w"))
    assert torch.equal(module.weight, tensors["weight"])
