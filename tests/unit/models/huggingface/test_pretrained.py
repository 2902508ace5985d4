"""A folder is read as it is: config, image processor, classes, and every tensor by the detector's own names."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.models.huggingface import HuggingFaceDetector, versions
from lora_detr.models.huggingface.pretrained import CATEGORY_IDS, read_pretrained, read_weights
from tests import huggingface_models

OWN = ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.fixture(scope="module", params=huggingface_models.CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family, and a folder with one of its models. Shared: do not write into it."""
    kind: str = request.param
    return kind, huggingface_models.save(kind, tmp_path_factory.mktemp("folder") / kind)


def test_settings_and_weights_make_the_model_that_was_saved(folder: tuple[str, Path]) -> None:
    kind, path = folder
    read = read_pretrained(str(path))
    assert (read.names, read.ids, read.notes) == (OWN, (0, 1, 2), ())
    expected = HuggingFaceDetector(huggingface_models.build(kind)).state_dict()
    found = read_weights(str(path))
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    built = read.model.build(3, load_weights=False)
    assert {name: tensor.shape for name, tensor in built.state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert (read.model.decoder_layers, read.model.num_queries) == (
        huggingface_models.LAYERS,
        huggingface_models.QUERIES,
    )
    assert (read.model.hidden_dim, read.model.ffn_dim) == (huggingface_models.WIDTH, huggingface_models.FFN)


def test_images_are_prepared_as_the_processor_says(folder: tuple[str, Path]) -> None:
    kind, path = folder
    ready = read_pretrained(str(path)).preparation
    plain = kind in ("rt_detr", "rt_detr_v2", "d_fine")
    assert (ready.size, ready.square) == (huggingface_models.size_of(kind), plain or kind in ("lw_detr", "rf_detr"))
    assert ready.mean == ((0.0, 0.0, 0.0) if plain else (0.485, 0.456, 0.406))
    assert ready.divisor == {"lw_detr": 32, "rf_detr": 28}.get(kind, 32 if plain else 1)


def test_ids_of_categories_are_those_of_the_training_where_the_config_has_them(tmp_path: Path) -> None:
    config = huggingface_models.CONFIGS["dab-detr"]()
    setattr(config, CATEGORY_IDS, [4, 9, 11])
    config.save_pretrained(tmp_path)
    assert read_pretrained(str(tmp_path)).ids == (4, 9, 11)


@pytest.mark.parametrize(("kind", "size"), [("rt_detr", 640), ("deformable_detr", 800)])
def test_without_a_processor_the_familys_own_preparation_is_taken_aloud(kind: str, size: int, tmp_path: Path) -> None:
    huggingface_models.CONFIGS[kind]().save_pretrained(tmp_path)
    read = read_pretrained(str(tmp_path))
    assert read.preparation.size == size
    assert "has no preprocessor_config.json" in read.notes[0]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("rt_detr", {"size": {"shortest_edge": 640}}, "does not see what is padding"),
        ("d_fine", {"size": {"height": 640, "width": 480}}, "height and width that are equal"),
        ("rt_detr", {"size": {"height": 100, "width": 100}}, "no multiple of 32"),
        ("rf_detr", {"size": {"height": 100, "width": 100}}, "no multiple of 28"),
        ("dab-detr", {"size": None}, "size is null"),
    ],
)
def test_sizes_that_a_model_cannot_be_given_are_refused(
    kind: str, change: dict[str, object], said: str, tmp_path: Path
) -> None:
    huggingface_models.CONFIGS[kind]().save_pretrained(tmp_path)
    content = {**huggingface_models.processor(kind), **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=said):
        read_pretrained(str(tmp_path))


def test_layers_that_are_not_supervised_are_switched_on_where_it_changes_no_prediction(tmp_path: Path) -> None:
    huggingface_models.CONFIGS["deformable_detr"](auxiliary_loss=False).save_pretrained(tmp_path)
    read = read_pretrained(str(tmp_path))
    assert read.model.config["auxiliary_loss"] is True
    assert "every decoder layer is supervised" in read.notes[-1]
    # There the setting changes what the model predicts.
    huggingface_models.CONFIGS["conditional_detr"](auxiliary_loss=False).save_pretrained(tmp_path)
    assert read_pretrained(str(tmp_path)).model.config["auxiliary_loss"] is False


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
    with pytest.raises(ConfigError, match="decoder_layerdrop must be 0"):
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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hf:nobody/no-such-model: cannot be read") as caught:
        read_pretrained("nobody/no-such-model")
    assert "download it and give the folder" in caught.value.remedy


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    path = huggingface_models.save("dab-detr", tmp_path / "whole")
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        read_weights(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        read_weights(str(tmp_path))
    model = huggingface_models.build("dab-detr")
    with torch.no_grad():
        next(iter(model.parameters())).fill_(math.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not finite"):
        read_weights(str(tmp_path))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    huggingface_models.build("dab-detr").save_pretrained(tmp_path)
    huggingface_models.CONFIGS["dab-detr"](decoder_ffn_dim=96).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="tensors are missing or of another shape: model"):
        read_weights(str(tmp_path))


@pytest.mark.parametrize("found", ["4.57.1", "5.23.0", "6.0.0"])
def test_other_versions_are_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda package: found)
    with pytest.raises(ConfigError, match=rf"from 5\.24 to below 6\.0, found {found}") as caught:
        read_pretrained("anything")
    assert caught.value.remedy == "pip install 'lora-detr[hf]'"


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda package: None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="is not installed") as caught:
        read_pretrained("anything")
    assert caught.value.remedy == "pip install 'lora-detr[hf]'"
