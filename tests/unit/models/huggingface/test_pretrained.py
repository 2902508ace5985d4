"""A folder is loaded as it is for its own classes; for others exactly the class layers are re-initialised."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.models.huggingface import pretrained
from lora_detr.models.huggingface.pretrained import CATEGORY_IDS, load_model, read_pretrained
from tests import huggingface_models

OWN = ("LABEL_0", "LABEL_1", "LABEL_2")
L = huggingface_models.LAYERS
# Linear layers with a row for each class have two tensors; those that are tied count once.
RESTARTED = {
    "conditional_detr": 2,
    "dab-detr": 2,
    "deformable_detr": 2 * (L + 1),
    "rt_detr": 2 * (L + 1) + 1,
    "rt_detr_v2": 2 * (L + 1) + 1,
    "d_fine": 2 * (L + 1) + 1,
    "lw_detr": 2 + 2 * 4,
    "rf_detr": 2 + 2 * 4,
}


@pytest.fixture(scope="module", params=huggingface_models.CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family, and a folder with one of its models. Shared: do not write into it."""
    kind: str = request.param
    path = tmp_path_factory.mktemp("folder") / kind
    huggingface_models.build(kind).save_pretrained(path)
    return kind, path


def test_for_its_own_classes_every_tensor_is_taken_over(folder: tuple[str, Path]) -> None:
    kind, path = folder
    read = read_pretrained(str(path))
    assert read.names == OWN
    loaded = load_model(read, OWN, [1, 2, 3])
    assert loaded.restarted == ()
    expected = huggingface_models.build(kind).state_dict()
    found = loaded.model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("names", [("cell", "plate", "rest"), ("cell",), tuple(f"class {i}" for i in range(80))])
def test_for_other_classes_their_layers_start_at_the_prior_and_nothing_else(
    names: tuple[str, ...], folder: tuple[str, Path]
) -> None:
    kind, path = folder
    loaded = load_model(read_pretrained(str(path)), names, range(7, 7 + len(names)))
    assert len(loaded.restarted) == RESTARTED[kind]
    expected = huggingface_models.build(kind).state_dict()
    found = loaded.model.state_dict()
    tied = {name for name in found if "class" in name or "score_head" in name}
    assert set(loaded.restarted) <= tied
    for name, tensor in found.items():
        if name not in tied:
            assert torch.equal(tensor, expected[name]), name
    for name in loaded.restarted:
        assert len(found[name]) in (len(names), len(names) + 1), name
        assert found[name].abs().max() < 10
        if name.endswith("bias"):
            assert torch.allclose(found[name], torch.tensor(-math.log(99)))
    assert loaded.model.config.id2label == dict(enumerate(names))
    assert getattr(loaded.model.config, CATEGORY_IDS) == list(range(7, 7 + len(names)))


def test_classes_outlive_saving(folder: tuple[str, Path], tmp_path: Path) -> None:
    _, path = folder
    names = ("cell", "plate")
    load_model(read_pretrained(str(path)), names, [4, 9]).model.save_pretrained(tmp_path / "again")
    again = read_pretrained(str(tmp_path / "again"))
    assert again.names == names
    assert getattr(again.config, CATEGORY_IDS) == [4, 9]


@pytest.mark.parametrize(
    ("kind", "said"), [("detr", "softmax"), ("yolos", "no decoder"), ("deimv2", "SwiGLU"), ("bert", "is no detector")]
)
def test_other_kinds_are_refused_by_name(kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigError) as caught:
        read_pretrained(str(tmp_path))
    assert f"{kind}: " in caught.value.message
    assert said in caught.value.message
    assert "conditional_detr" in caught.value.remedy


def test_layers_that_are_left_out_at_random_are_refused(tmp_path: Path) -> None:
    huggingface_models.CONFIGS["conditional_detr"](decoder_layerdrop=0.1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"decoder_layerdrop is 0\.1"):
        read_pretrained(str(tmp_path))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_type": "no-such-thing"}', "{}"])
def test_what_is_no_folder_of_a_model_is_an_error_of_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        read_pretrained(str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.remedy


def test_a_name_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="hf:nobody/no-such-model: cannot be read") as caught:
        read_pretrained("nobody/no-such-model")
    assert "download it and give the folder" in caught.value.remedy


def test_missing_and_damaged_weights(folder: tuple[str, Path], tmp_path: Path) -> None:
    kind, path = folder
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    read = read_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        load_model(read, OWN, [1, 2, 3])
    (tmp_path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        load_model(read, OWN, [1, 2, 3])
    model = huggingface_models.build(kind)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(math.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not finite"):
        load_model(read, OWN, [1, 2, 3])


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    huggingface_models.build("dab-detr").save_pretrained(tmp_path)
    huggingface_models.CONFIGS["dab-detr"](decoder_ffn_dim=96).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="tensors are missing or of another shape: model"):
        load_model(read_pretrained(str(tmp_path)), OWN, [1, 2, 3])


@pytest.mark.parametrize("found", ["4.57.1", "5.23.0", "6.0.0"])
def test_other_versions_are_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "installed_version", lambda package: found)
    with pytest.raises(ConfigError, match=rf"from 5\.24 to below 6\.0, found {found}") as caught:
        read_pretrained("anything")
    assert caught.value.remedy == "pip install 'lora-detr[hf]'"


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "installed_version", lambda package: None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="is not installed") as caught:
        read_pretrained("anything")
    assert caught.value.remedy == "pip install 'lora-detr[hf]'"
