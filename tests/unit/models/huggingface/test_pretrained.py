"""A folder is read as it is: config, image processor, classes, and every tensor by the detector's own names."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.models.huggingface import HuggingFaceDetector, hub, versions
from lora_detr.models.huggingface.pretrained import read_pretrained, read_weights
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
    assert (read.names, read.notes) == (OWN, ())
    expected = HuggingFaceDetector(huggingface_models.build(kind)).state_dict()
    weights = read_weights(str(path))
    assert (weights.unused, weights.notes) == ((), ())
    found = weights.tensors
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


def test_labels_with_gaps_are_refused(tmp_path: Path) -> None:
    huggingface_models.CONFIGS["dab-detr"](id2label={1: "cell", 2: "plate"}, num_labels=2).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="id2label has the labels 1, 2, not 0 to 1"):
        read_pretrained(str(tmp_path))


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
        ("dab-detr", {"size": "large"}, 'size is "large"'),
        ("dab-detr", {"size": {"shortest_edge": 0}}, "size is {"),
        ("dab-detr", {"size": {"shortest_edge": 800, "longest_edge": 200_000}}, "size is {"),
        ("dab-detr", {"size": 800, "max_size": "more"}, "size is 800"),
        ("dab-detr", {"do_resize": False}, "do_resize is false"),
        ("dab-detr", {"rescale_factor": 1 / 127.5}, "pixels are multiplied by 0.00784314, not 1/255"),
        ("dab-detr", {"do_rescale": False}, "pixels are multiplied by 1, not 1/255"),
        ("dab-detr", {"rescale_factor": "1/255"}, 'rescale_factor is "1/255"'),
        ("dab-detr", {"image_mean": ["red"]}, 'image_mean is ["red"]: expected three numbers'),
        ("dab-detr", {"image_mean": 0.5}, "image_mean is 0.5: expected three numbers"),
        ("dab-detr", {"image_std": [0.5, 0, 0.5]}, "image_std is [0.5, 0, 0.5]: expected three numbers from 1e-06"),
        ("dab-detr", {"do_normalize": "yes"}, 'do_normalize is "yes": expected true or false'),
        ("dab-detr", {"do_pad": 1}, "do_pad is 1: expected true or false"),
    ],
)
def test_preparation_that_a_model_cannot_be_given_is_refused(
    kind: str, change: dict[str, object], said: str, tmp_path: Path
) -> None:
    huggingface_models.CONFIGS[kind]().save_pretrained(tmp_path)
    content = {**huggingface_models.processor(kind), **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        read_pretrained(str(tmp_path))
    assert caught.value.message.startswith(f"hf:{tmp_path}: preprocessor_config.json")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("dab-detr", {}, (800, 1333, False)),
        ("dab-detr", {"size": None, "do_rescale": None, "image_mean": None}, (800, 1333, False)),
        ("dab-detr", {"size": {"shortest_edge": 640, "longest_edge": 900}}, (640, 900, False)),
        ("dab-detr", {"size": {"shortest_edge": 640, "longest_edge": 100_000}}, (640, None, False)),
        ("dab-detr", {"size": {"shortest_edge": 640}}, (640, None, False)),
        ("dab-detr", {"size": 640, "max_size": 900}, (640, 900, False)),
        ("dab-detr", {"size": 640}, (640, 1333, False)),
        ("rt_detr", {"do_pad": False}, (640, None, True)),
    ],
)
def test_what_the_processor_does_not_state_is_the_default_of_transformers(
    kind: str, content: dict[str, object], expected: tuple[int, int | None, bool], tmp_path: Path
) -> None:
    huggingface_models.CONFIGS[kind]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    ready = read_pretrained(str(tmp_path)).preparation
    assert (ready.size, ready.max_size, ready.square) == expected


@pytest.mark.parametrize("content", ["{", "[1]", '"text"', "\ufeff\0"])
def test_a_processor_that_cannot_be_read_is_one_line(content: str, tmp_path: Path) -> None:
    huggingface_models.CONFIGS["dab-detr"]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json cannot be read: ") as caught:
        read_pretrained(str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


def test_layers_that_are_not_supervised_are_switched_on_where_it_changes_no_prediction(tmp_path: Path) -> None:
    huggingface_models.CONFIGS["deformable_detr"](auxiliary_loss=False).save_pretrained(tmp_path)
    read = read_pretrained(str(tmp_path))
    assert read.model.config["auxiliary_loss"] is True
    assert "every decoder layer is supervised" in read.notes[-1]
    # There the setting changes what the model predicts.
    huggingface_models.CONFIGS["conditional_detr"](auxiliary_loss=False).save_pretrained(tmp_path)
    read = read_pretrained(str(tmp_path))
    assert read.model.config["auxiliary_loss"] is False
    assert any("the last decoder layer alone is supervised" in note for note in read.notes)


@pytest.mark.parametrize(
    ("name", "is_frozen", "is_told"),
    [("tf_efficientnet_lite0", True, True), ("tf_efficientnet_lite0", False, False), ("resnet18", True, False)],
)
def test_activations_that_transformers_drops_with_batch_norms_are_told(
    name: str, is_frozen: bool, is_told: bool, tmp_path: Path
) -> None:
    backbone = transformers.TimmBackboneConfig(backbone=name, out_indices=(2, 3, 4), use_pretrained_backbone=False)
    config = huggingface_models.build("rt_detr").config
    config.backbone_config, config.freeze_backbone_batch_norms = backbone, is_frozen
    config.save_pretrained(tmp_path)
    notes = [note for note in read_pretrained(str(tmp_path)).notes if "without the activations" in note]
    assert len(notes) == is_told
    assert not notes or "set freeze_backbone_batch_norms to false" in notes[0]


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


def test_without_a_network_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the hub would try five times, for half a minute."""
    refused: list[object] = []

    def refuse(address: object, timeout: float) -> None:
        refused.append(address)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub.socket, "create_connection", refuse)
    monkeypatch.setattr(hub, "_is_reachable", hub._is_reachable.__wrapped__)
    with pytest.raises(CheckpointError, match="hf:nobody/no-such-model: cannot be read"):
        read_pretrained("nobody/no-such-model")
    assert refused == [("huggingface.co", 443)]


def test_a_path_that_is_no_name_of_the_hub_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no such folder"):
        read_pretrained(str(tmp_path / "absent"))


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


def test_weights_without_a_place_are_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The model is whole without them, and published folders have such; a config with too few layers looks the same."""
    huggingface_models.build("rt_detr").save_pretrained(tmp_path)
    huggingface_models.CONFIGS["rt_detr"](decoder_layers=huggingface_models.LAYERS - 1).save_pretrained(tmp_path)
    weights = read_weights(str(tmp_path))
    assert weights.unused
    assert all(f".{huggingface_models.LAYERS - 1}." in name for name in weights.unused)
    (note,) = weights.notes
    assert note.startswith(f"hf:{tmp_path}: not used, the model has no place for {len(weights.unused)} tensors")
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


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


@pytest.mark.parametrize("kind", ["deformable_detr", "conditional_detr", "d_fine"])
def test_all_is_trained_that_from_pretrained_would_train(kind: str, tmp_path: Path) -> None:
    """Built of a config alone, transformers 5.24 freezes backbones of some families; of a folder, it does not."""
    from transformers import AutoModelForObjectDetection

    path = huggingface_models.save(kind, tmp_path)
    theirs = AutoModelForObjectDetection.from_pretrained(path)
    built = read_pretrained(str(path)).model.build(3, load_weights=False)
    idle = {id(parameter) for parameter in built.family.idle(built.model)}
    found = {name for name, p in built.model.named_parameters() if p.requires_grad or id(p) in idle}
    assert found == {name for name, p in theirs.named_parameters() if p.requires_grad}


def test_a_buffer_that_is_not_finite_is_found(tmp_path: Path) -> None:
    model = huggingface_models.build("deformable_detr")
    next(buffer for name, buffer in model.named_buffers() if name.endswith("running_var")).fill_(math.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not finite"):
        read_weights(str(tmp_path))
