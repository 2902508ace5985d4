"""An exported file predicts what the detector does, from image file to boxes, or it is not written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

import onnx
import onnxruntime

from lora_detr.checkpoints.exported.contract import Sampler
from lora_detr.checkpoints.exported.session import ExportedDetector
from lora_detr.checkpoints.opened import OpenedRun, open_run
from lora_detr.checkpoints.stripped_file import StrippedFile
from lora_detr.config.load import load_config
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.deploy.onnx import export as module
from lora_detr.deploy.onnx.export import REPORT, ExportReport, Wanted, export
from lora_detr.deploy.onnx.graph import ExportedGraph
from lora_detr.deploy.onnx.images import ProofImages, find_images
from lora_detr.deploy.onnx.proof import BOX_TOLERANCE, SCORE_TOLERANCE, other_size
from lora_detr.deploy.onnx.tracing import trace
from lora_detr.errors import ConfigError, VerificationError
from lora_detr.evaluation.predictor import Predictor, read_source
from lora_detr.recipe.run_config import RunConfig
from tests import small_runs

CPU = torch.device("cpu")
CLASSES = CategoryMap((3, 7, 11), ("circle", "square", "triangle"))


def moved(detector: torch.nn.Module, spread: float) -> torch.nn.Module:
    """Move all weights of a detector, so that what it predicts depends on the image."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return detector.eval()


def noise(*sizes: tuple[int, int]) -> ProofImages:
    """Return images of such heights and widths, without objects."""
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return ProofImages([*arrays], "noise", None, None)


NOISE = noise((60, 100), (97, 70), (64, 64))


def stripped(preset: str, **transform: Any) -> StrippedFile:
    """Return a small detector of a preset with random weights; arguments change how images are prepared."""
    config = load_config(RunConfig, preset=preset, overrides=small_runs.REDUCED).config.resolved()
    deployment = config.deployment(CLASSES)
    prepared = {"size": 96, "square": True, **transform}
    deployment = deployment.model_copy(update={"transform": EvalTransformConfig(**prepared)})
    torch.manual_seed(0)
    detector = moved(deployment.build(), 0.02)
    return StrippedFile(detector, deployment)  # type: ignore[arg-type]


def exported(
    opened: OpenedRun | StrippedFile, place: Path, images: ProofImages = NOISE, **wanted: Any
) -> tuple[Path, ExportReport]:
    path = place / "model.onnx"
    return path, export(opened, "a model", path, Wanted(**wanted), images, lambda text: None)


def assert_proven(report: ExportReport, settings: int) -> None:
    assert len(report.proof.differences) == settings
    for one in report.proof.differences:
        assert one.detections
        assert (one.unmatched, one.score <= SCORE_TOLERANCE, one.relative_box <= BOX_TOLERANCE) == (0, True, True)


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """Trace graphs that are the same once: most tests are about what is done with one."""
    known: dict[object, bytes] = {}

    def traced(graph: ExportedGraph, side: tuple[int, int], sampler: Sampler) -> bytes:
        weights = sum(float(tensor.double().sum()) for tensor in graph.state_dict().values())
        key = (weights, graph.form, side, sampler)
        if key not in known:
            known[key] = trace(graph, side, sampler)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "trace", traced)
        yield


@pytest.fixture(scope="module")
def opened(learned_run: Path) -> OpenedRun:
    return open_run(learned_run)


@pytest.fixture(scope="module")
def images(opened: OpenedRun) -> ProofImages:
    return find_images(opened, None, 2)


@pytest.fixture(scope="module")
def plain(
    opened: OpenedRun, images: ProofImages, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExportReport]:
    """A file without options, and its report. Shared."""
    return exported(opened, tmp_path_factory.mktemp("plain"), images)


def outputs_of(path: Path, **inputs: np.ndarray[Any, Any]) -> list[Any]:
    return list(onnxruntime.InferenceSession(str(path)).run(None, inputs))


def test_ap_and_detections_are_those_of_the_run(plain: tuple[Path, ExportReport]) -> None:
    _, report = plain
    assert_proven(report, 2)
    assert [one.batch for one in report.proof.differences] == [1, 2]
    found = report.proof.precisions
    assert found is not None
    assert found.before == pytest.approx(found.after, abs=1e-6)
    assert found.before > 0.1


def test_the_report_is_beside_the_file(plain: tuple[Path, ExportReport]) -> None:
    path, report = plain
    assert json.loads((path.parent / REPORT).read_text()) == json.loads(json.dumps(report.to_json()))
    assert {one.name for one in path.parent.iterdir()} == {path.name, REPORT}


def test_metadata_has_all_that_a_caller_needs(plain: tuple[Path, ExportReport], opened: OpenedRun) -> None:
    path, report = plain
    text = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    values = {key: json.loads(value) for key, value in text.items()}
    config = opened.deployment
    assert values["names"] == list(config.category_names)
    assert values["category_ids"] == list(config.category_ids)
    assert (values["mean"], values["std"]) == (list(config.mean), list(config.std))
    expected = {"size": 96, "square": True, "max_size": 1333, "rule": "deformable", "size_divisor": 1}
    expected |= {"interpolation": "bilinear", "antialias": True, "score_type": "sigmoid", "labels": "index"}
    expected |= {"height": 96, "width": 96, "batch": None, "precision": "fp32", "sampler": "grid"}
    expected |= {"outputs": "labels, boxes, scores", "image_sizes": False, "max_detections": 100}
    assert {key: values[key] for key in expected} == expected
    assert config.operating_point is not None
    assert values["operating_point"] == config.operating_point.model_dump(mode="json")
    assert len(values["weights_sha256"]) == 64
    assert values["loradetr_version"]
    assert ExportedDetector(path, CPU).contract == report.contract


def test_the_graph_alone_gives_labels_boxes_and_scores_of_any_number_of_images(
    plain: tuple[Path, ExportReport], opened: OpenedRun
) -> None:
    pixels = torch.randint(256, (3, 3, 96, 96), dtype=torch.uint8)
    sizes = np.array([[200, 100], [96, 96], [50, 80]])
    labels, boxes, scores = outputs_of(plain[0], images=(pixels / 255.0).numpy(), orig_target_sizes=sizes)
    assert (labels.shape, boxes.shape, scores.shape) == ((3, 100), (3, 100, 4), (3, 100))
    predictor = Predictor(opened.detector, opened.deployment, CPU)
    for i, (width, height) in enumerate(sizes.tolist()):
        found = predictor.predict(pixels[i], 0.0)  # of 96 x 96, so nothing is resized
        kept = len(found)
        np.testing.assert_allclose(np.sort(scores[i])[::-1][:kept], found.scores, atol=1e-5)
        scale = np.array([width, height, width, height]) / 96
        clipped = np.clip(boxes[i] / scale, 0, 96)
        best = int(found.scores.argmax())
        assert labels[i][0] == found.labels[best]
        np.testing.assert_allclose(clipped[0], found.boxes_xyxy_pixels[best], atol=1e-2)


def weakened(path: Path, model: Any) -> None:
    """Write a graph of which one weight was changed."""
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(largest) + np.float32(0.1)
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    path.write_bytes(model.SerializeToString())


def with_boxes_of_another_size(path: Path, model: Any) -> None:
    """Write a graph that takes height for width."""
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "orig_target_sizes":
                node.input[i] = "turned"
    axis = onnx.helper.make_tensor("places", onnx.TensorProto.INT64, [2], [1, 0])
    model.graph.initializer.append(axis)
    turn = onnx.helper.make_node("Gather", ["orig_target_sizes", "places"], ["turned"], axis=1)
    model.graph.node.insert(0, turn)
    path.write_bytes(model.SerializeToString())


def cut_off(path: Path, model: Any) -> None:
    path.write_bytes(model.SerializeToString()[:-1000])


@pytest.mark.parametrize("write", [weakened, with_boxes_of_another_size, cut_off])
def test_a_graph_that_predicts_something_else_is_refused_and_nothing_is_left(
    write: Callable[[Path, Any], None], tmp_path: Path
) -> None:
    model = stripped("relation-tiny")
    (tmp_path / "model.onnx").write_bytes(b"an earlier one")
    with pytest.raises(VerificationError, match=r"differ|not among|cannot be used") as caught:
        export(model, "a model", tmp_path / "model.onnx", Wanted(), NOISE, lambda text: None, write)
    assert caught.value.exit_code == 8
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"an earlier one"


def test_a_loss_of_ap_is_refused(
    opened: OpenedRun, images: ProofImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "to_half", lambda model: weaken_heads(model))
    with pytest.raises(VerificationError, match="AP falls from"):
        exported(opened, tmp_path, images, precision="fp16")
    assert [*tmp_path.iterdir()] == []


def weaken_heads(model: Any) -> None:
    for tensor in model.graph.initializer:
        if "heads" in tensor.name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(tensor), tensor.name))


def test_half_precision_halves_weights_and_keeps_ap(
    opened: OpenedRun, images: ProofImages, plain: tuple[Path, ExportReport], tmp_path: Path
) -> None:
    path, report = exported(opened, tmp_path, images, precision="fp16")
    assert report.proof.precisions is not None
    assert report.proof.precisions.after == pytest.approx(report.proof.precisions.before, abs=0.005)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.raw_data) > 4096}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert report.bytes < plain[1].bytes


@pytest.mark.slow
def test_integers_are_calibrated_and_their_cost_is_in_the_report(
    opened: OpenedRun, images: ProofImages, tmp_path: Path
) -> None:
    path, report = exported(opened, tmp_path, images, precision="int8")
    found = report.proof.precisions
    assert found is not None
    assert found.after > found.before - 0.05
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_with_a_cost_needs_data(precision: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--precision {precision} needs a data set"):
        exported(stripped("relation-tiny"), tmp_path, precision=precision)


def test_a_graph_with_preprocessing_takes_bytes_of_any_size(
    opened: OpenedRun, images: ProofImages, tmp_path: Path
) -> None:
    path, report = exported(opened, tmp_path, images, with_preprocessing=True)
    assert_proven(report, 1)
    photo = read_source(images.sources[0])[:, :100].permute(1, 2, 0).contiguous().numpy()
    labels, boxes, scores = outputs_of(path, images=photo[None])
    expected = Predictor(opened.detector, opened.deployment, CPU).predict(photo, 0.0)
    assert (labels.shape, boxes.shape) == ((1, 100), (1, 100, 4))
    # Resized bytes differ by 1 in two pixels of a thousand, also between torchvision and Pillow.
    np.testing.assert_allclose(scores[0][:20], expected.scores[:20], atol=1e-3)


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param("deformable-pp-tiny", marks=pytest.mark.slow),
        pytest.param("ms-detr-tiny", marks=pytest.mark.slow),
        "relation-tiny",
    ],
)
def test_detectors_of_every_kind_at_any_size_and_number(preset: str, tmp_path: Path) -> None:
    _, report = exported(stripped(preset, square=False, max_size=160), tmp_path, is_dynamic=True)
    assert_proven(report, 4)
    assert {(one.size, one.batch) for one in report.proof.differences} == {
        (f"shorter side {size}", batch) for size in (96, 72) for batch in (1, 2)
    }
    assert (report.contract.height, report.contract.image_sizes) == (None, True)


def test_images_of_unequal_sides_are_padded_to_a_fixed_square(tmp_path: Path) -> None:
    path, report = exported(stripped("deformable-pp-tiny", square=False, max_size=150), tmp_path)
    assert_proven(report, 2)
    assert (report.contract.height, report.contract.width, report.contract.image_sizes) == (160, 160, True)
    inputs = {one.name: one.shape for one in onnxruntime.InferenceSession(str(path)).get_inputs()}
    assert inputs == {"images": ["batch", 3, 160, 160], "image_sizes": ["batch", 2], "orig_target_sizes": ["batch", 2]}


def test_no_fixed_size_holds_images_without_a_limit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no fixed size holds them") as caught:
        exported(stripped("relation-tiny", square=False, max_size=None), tmp_path)
    assert caught.value.remedy == "export with --dynamic"


@pytest.mark.slow
def test_gather_replaces_the_operator_and_predicts_the_same(tmp_path: Path) -> None:
    model = stripped("relation-tiny", square=False, max_size=160)
    path, report = exported(model, tmp_path, sampler="gather", is_dynamic=True, raw=True)
    assert_proven(report, 4)
    assert "GridSample" not in {node.op_type for node in onnx.load(path).graph.node}
    pixels = torch.rand(1, 3, 96, 128)
    logits, boxes = outputs_of(path, images=pixels.numpy(), image_sizes=np.array([[128, 96]]))
    other, _ = exported(model, tmp_path / "other", raw=True, is_dynamic=True)
    for found, expected in zip(
        (logits, boxes), outputs_of(other, images=pixels.numpy(), image_sizes=np.array([[128, 96]])), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_preprocessing_is_for_square_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keeps the aspect ratio"):
        exported(stripped("relation-tiny", square=False, max_size=160), tmp_path, with_preprocessing=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        exported(stripped("relation-tiny"), tmp_path, with_preprocessing=True, is_dynamic=True)


@pytest.mark.parametrize(("size", "divisor", "other"), [(96, 1, 72), (640, 32, 480), (112, 28, 84), (32, 32, 64)])
def test_the_other_size_is_one_that_the_detector_takes(size: int, divisor: int, other: int) -> None:
    assert other_size(size, divisor) == other


def test_noise_stands_for_photos_that_are_gone(opened: OpenedRun, tmp_path: Path) -> None:
    data = opened.config.data.model_copy(update={"path": str(tmp_path / "gone")})
    moved_run = replace(opened, config=opened.config.model_copy(update={"data": data}))
    found = find_images(moved_run, None, 3)
    assert (found.described, found.labelled, found.train, len(found.sources)) == ("3 noise images", None, None, 3)
