"""The whole life of a detector of ``transformers``: from a folder to a run, back to a folder, and used from there."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

import transformers

import lora_detr
from lora_detr.checkpoints.checkpoint import load_latest
from lora_detr.checkpoints.official.classes import categories_in
from lora_detr.errors import CheckpointError
from tests import huggingface_models
from tests.cli.conftest import Command, assert_told, commands_in, run_process
from tests.limits import file_size_limit

SMALL = ("--device", "cpu", "--workers", "0", "--set", "train.log_every=1", "--batch-size", "2")
FAMILIES = tuple(huggingface_models.CONFIGS)
CLASSES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def life(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run of RT-DETR with three branches, what training it printed, and what strip printed. Shared."""
    folder = tmp_path_factory.mktemp("life")
    with commands_in(folder) as loradetr:
        source = huggingface_models.save("rt_detr", folder / "model")
        options = ("--aux", "3", "--max-steps", "4", "--save-every", "2", "--diagnostics", "2")
        ended = loradetr("train", "--baseline", f"hf:{source}", "--data", shapes_tiny, "-o", "run", *SMALL, *options)
        assert ended.code == 0, ended.err
        stripped = loradetr("strip", "run", "--inputs", 2)
        assert stripped.code == 0, stripped.err
    return folder / "run", ended.out, stripped.out


def test_training_lists_what_it_starts_from(life: tuple[Path, str, str]) -> None:
    run, printed, _ = life
    assert "rt_detr of transformers, 3 decoder layers, 20 queries" in printed
    # Three heads, that of the proposals, and the embedding of denoising queries.
    again = json.loads((run / "weights.json").read_text())["reinitialised"]
    detector = [name for name in again if name.startswith("detector.")]
    assert len(detector) == 2 * (huggingface_models.LAYERS + 1) + 1
    assert "detector.model.model.denoising_class_embed.weight" in detector
    assert "the file's classes are 3 (LABEL_0, LABEL_1, LABEL_2)" in printed


def test_every_term_is_logged_at_its_place(life: tuple[Path, str, str]) -> None:
    lines = [json.loads(line) for line in (life[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "terms" in line]
    assert steps
    names = set(steps[0]["terms"])
    for layer in range(huggingface_models.LAYERS):
        for kind in ("class", "l1", "giou"):
            assert f"primary/layer{layer}/{kind}" in names
            assert {f"branch{i}/layer{layer}/{kind}" for i in range(3)} <= names
    assert all(math.isfinite(value) for line in steps for value in line["terms"].values())


def test_the_stripped_folder_is_one_of_transformers(life: tuple[Path, str, str]) -> None:
    run, _, printed = life
    assert "logits and boxes are equal bit for bit" in printed
    folder = run / "stripped"
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values())[:3] == list(CLASSES)
    assert config["loradetr_category_ids"][:2] == [3, 7]
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 128, "width": 128}
    assert processor["do_normalize"] is False
    assert life[0].parent.name not in (folder / "loradetr.json").read_text()  # no path of this machine
    assert len({(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}) == 1
    report = json.loads((run / "strip_report.json").read_text())
    assert report["largest_difference"] == 0
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name or "branch" in name]  # noqa: SIM118


def test_the_model_card_is_of_this_detector(loradetr: Command, life: tuple[Path, str, str]) -> None:
    card = (life[0] / "stripped" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "Trained with 3 auxiliary branches (LoRA-DETR), dropped since" in card
    assert loradetr("strip", life[0], "--branch", 1, "--inputs", 1, "-o", "merged").code == 0
    assert "one of which is merged into the last decoder layer" in Path("merged/README.md").read_text()


def test_terms_are_weighted_in_the_log_as_in_the_model_s_own_loss(life: tuple[Path, str, str]) -> None:
    (line,) = [json.loads(text) for text in (life[0] / "log.txt").read_text().splitlines()]
    for key, weight in (("ce", 1), ("bbox", 5), ("giou", 2)):
        assert line[f"train_loss_{key}"] == pytest.approx(weight * line[f"train_loss_{key}_unscaled"])


def test_what_stands_beside_other_weights_is_ignored_aloud(
    loradetr: Command, life: tuple[Path, str, str], shapes_tiny: Path, tmp_path: Path
) -> None:
    photo = next((shapes_tiny / "val").rglob("*.png"))
    folder = Path(shutil.copytree(life[0] / "stripped", tmp_path / "folder"))
    stored = json.loads((folder / "loradetr.json").read_text())
    for text, reason in (
        (json.dumps({**stored, "weights_sha256": "0"}), "model.safetensors is not the file that it was written with"),
        ("nonsense", "it cannot be read (JSONDecodeError)"),
        (json.dumps({**stored, "deployment": {}}), "it cannot be read (ValidationError)"),
    ):
        (folder / "loradetr.json").write_text(text)
        ended = loradetr("predict", folder, photo)
        assert ended.code == 0
        assert f"warning: {folder}/loradetr.json is ignored: {reason}" in ended.err


def test_the_file_of_weights_alone_is_no_model(loradetr: Command, life: tuple[Path, str, str]) -> None:
    ended = loradetr("doctor", "--model", life[0] / "stripped" / "model.safetensors")
    assert_told(ended, 4, (f"give its folder, {life[0] / 'stripped'}",))


def test_without_the_package_a_run_says_what_to_install(
    loradetr: Command, life: tuple[Path, str, str], shapes_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_detr.models.huggingface.versions.installed_version", lambda name: None)
    photo = next((shapes_tiny / "val").rglob("*.png"))
    for line in (("eval",), ("strip",), ("train", "--resume"), ("predict",)):
        ended = loradetr(*line, life[0], *([photo] if line == ("predict",) else []))
        assert_told(ended, 2, ("needs the package transformers, which is not installed", "pip install 'lora-detr[hf]'"))


def test_queries_of_proposals_are_counted_by_another_key(loradetr: Command, shapes_tiny: Path, tmp_path: Path) -> None:
    source = huggingface_models.save("deformable_detr", tmp_path / "model")
    line = ("train", "--baseline", f"hf:{source}", "--data", shapes_tiny, "--set")
    ended = loradetr(*line, "model.config.num_queries=7")
    assert_told(ended, 2, ("has no effect", "set model.config.two_stage_num_proposals"))


def test_a_full_disk_is_a_fault_of_the_disk(loradetr: Command, life: tuple[Path, str, str]) -> None:
    with file_size_limit(1_000_000):
        ended = loradetr("strip", life[0], "-o", "other", "--inputs", 1)
    assert_told(ended, 5, ("cannot be written",))
    assert not Path("other").exists()


def test_the_folder_predicts_and_is_evaluated_as_the_run(
    loradetr: Command, life: tuple[Path, str, str], shapes_tiny: Path
) -> None:
    run, _, _ = life
    of_run, of_folder = (loradetr("eval", model, "--data", shapes_tiny, "--json") for model in (run, run / "stripped"))
    assert of_run.code == of_folder.code == 0, of_run.err + of_folder.err
    assert json.loads(of_folder.out) == json.loads(of_run.out)
    photo = next((shapes_tiny / "val").rglob("*.png"))
    assert loradetr("predict", run / "stripped", photo).code == 0
    assert loradetr("doctor", "--model", run / "stripped").code == 0


def test_the_folder_can_be_trained_further(loradetr: Command, life: tuple[Path, str, str], shapes_tiny: Path) -> None:
    again = ("train", "--baseline", f"hf:{life[0] / 'stripped'}", "--data", shapes_tiny, "-o", "again", *SMALL)
    ended = loradetr(*again, "--max-steps", "1", "--aux", "1")
    assert ended.code == 0, ended.err
    # The same classes: nothing of the detector is re-initialised.
    names = json.loads(Path("again/weights.json").read_text())["reinitialised"]
    assert not [name for name in names if name.startswith("detector.")]


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    loradetr: Command, life: tuple[Path, str, str], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(life[0], tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    ended = loradetr("train", "--resume", run)
    assert ended.code == 0, ended.err
    found, expected = (load_latest(path / "checkpoints")[0] for path in (run, life[0]))
    assert found is not None
    assert expected is not None
    assert found.step == expected.step == 4
    for mine, theirs in ((found.model, expected.model), (found.ema, expected.ema)):
        assert mine is not None
        assert theirs is not None
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "data.evaluation.square=false"), "does not see what is padding"),
        (("--set", "data.train.scales=[100]"), "multiples of 32"),
        (("--set", "data.train.scales=[128,160]"), "has 2 sizes, so that batches would be padded"),
        (("--set", "model.config.weight_loss_bbox=50"), "`model.config`: no rt_detr can be built of it"),
        (("--set", "model.config.num_queries=2000"), "`model.config.num_queries` is 2000, but images of 128 pixels"),
        (("--set", "loss.primary.weights.l1=50"), "`loss.primary` has no effect"),
        (("--recompute", "decoder"), "`train.recompute` is not for detectors of transformers"),
        (("--branch", "cross-ffn/topk:k=6"), "`branches.0.kind` is cross-ffn"),
        (("--set", "loss.branch.merge_one_to_one=true"), "keep to themselves"),
        (("--dac",), "leave out --hybrid and --dac"),
        (("--freeze", "backbone"), "for example detector.model.model.backbone"),
        (("--set", "model.config.num_querys=7"), "unknown key; did you mean 'num_queries'?"),
        (("--preset", "deformable-tiny"), "exclude each other"),
    ],
)
def test_what_such_a_detector_cannot_do_is_refused_before_it_starts(
    options: tuple[str, ...], said: str, loradetr: Command, life: tuple[Path, str, str], shapes_tiny: Path
) -> None:
    ended = loradetr("train", "--baseline", f"hf:{life[0].parent / 'model'}", "--data", shapes_tiny, *options)
    assert_told(ended, 2, (said,))


@pytest.fixture(scope="module")
def others(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ``transformers`` wrote alone, of the data set's classes in another order. Shared."""
    names = sorted(categories_in(shapes_tiny).values())
    labels = {"id2label": dict(enumerate(names)), "num_labels": len(names)}
    return huggingface_models.save("rt_detr", tmp_path_factory.mktemp("others") / "rt_detr", **labels)


def test_a_folder_of_others_is_evaluated_by_the_names_of_its_classes(
    loradetr: Command, others: Path, shapes_tiny: Path
) -> None:
    of_name, of_path = (
        loradetr("eval", model, "--data", shapes_tiny, "--json", "--predictions", "found.json")
        for model in (f"hf:{others}", others)
    )
    assert of_name.code == of_path.code == 0, of_name.err + of_path.err
    assert json.loads(of_name.out) == json.loads(of_path.out)
    found = {row["category_id"] for row in json.loads(Path("found.json").read_text())}
    assert found  # of the data set; labels are 0, 1, ...
    assert found <= categories_in(shapes_tiny).keys()


def test_weights_of_a_folder_are_found_from_the_folder_of_the_user(
    loradetr: Command, others: Path, shapes_tiny: Path
) -> None:
    Path("linked").symlink_to(others)
    ended = loradetr("train", "--preset", "deformable-tiny", "--weights", "hf:linked", "--data", shapes_tiny)
    # It was read: RT-DETR's weights are no Deformable-DETR's.
    assert_told(ended, 4, (f"error[K08]: --weights hf:{others}: none of its", "tensors fits the model"))


def test_a_folder_of_others_predicts_as_it_does_in_transformers(
    loradetr: Command, others: Path, shapes_tiny: Path
) -> None:
    photo = next((shapes_tiny / "val").rglob("*.png"))
    answers = [loradetr("predict", model, photo, "--json") for model in (f"hf:{others}", others)]
    assert [(ended.code, ended.err) for ended in answers] == [(0, "")] * 2
    assert json.loads(answers[0].out) == json.loads(answers[1].out)
    processor = transformers.AutoImageProcessor.from_pretrained(others)
    network = transformers.AutoModelForObjectDetection.from_pretrained(others).eval()
    image = Image.open(photo).convert("RGB")
    with torch.no_grad():
        output = network(**processor(image, return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(output, target_sizes=[image.size[::-1]], threshold=0.0)
    first = slice(0, huggingface_models.QUERIES)
    for model in (f"hf:{others}", others):
        found = lora_detr.load(model, device="cpu").predict(photo)
        torch.testing.assert_close(found.scores[first], expected["scores"][first], rtol=0, atol=1e-4)
        assert found.names[0] == network.config.id2label[int(expected["labels"][0])]


def test_a_folder_of_others_is_checked_and_what_it_has_too_much_is_listed(
    loradetr: Command, others: Path, tmp_path: Path
) -> None:
    for model in (f"hf:{others}", others):
        ended = loradetr("doctor", "--model", model)
        assert (ended.code, ended.err) == (0, "")
        assert "predictions on noise are finite" in ended.out
    folder = Path(shutil.copytree(others, tmp_path / "more"))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.decoder.more": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    ended = loradetr("doctor", "--model", f"hf:{folder}", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["model"][0]["state"] == "ok"
    note = f"hf:{folder}: not used, the model has no place for 1 tensor of the weights: model.decoder.more"
    assert ended.err.splitlines() == [f"warning: {note}"]


@pytest.mark.parametrize(
    "line",
    [
        "train --baseline {} --data {data}",
        "train --preset deformable-tiny --weights {} --data {data}",
        "eval {} --data {data}",
        "eval {} --data {data} --json",
        "predict {} {photo}",
        "predict {} {photo} --json",
        "doctor --model {}",
        "doctor --model {} --json",
        "convert {} run",
    ],
)
def test_a_missing_folder_is_one_line(
    line: str, loradetr: Command, shapes_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    photo = next((shapes_tiny / "val").rglob("*.png"))
    for name, said in (("hf:no/such", ": cannot be read: "), ("hf:/no/such", ": no such folder")):
        ended = loradetr(*line.format(name, data=shapes_tiny, photo=photo).split())
        assert_told(ended, 4, (f"error: {name}{said}",))
        assert ended.out == ""
    with pytest.raises(CheckpointError, match="hf:no/such: cannot be read"):
        lora_detr.load("hf:no/such")


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_trains_with_branches_and_comes_back_bit_for_bit(
    kind: str, loradetr: Command, shapes_tiny: Path, tmp_path: Path
) -> None:
    source = huggingface_models.save(kind, tmp_path / kind)
    options = ("--aux", "3", "--max-steps", "3", "--precision", "bf16", *SMALL)
    trained = loradetr("train", "--baseline", f"hf:{source}", "--data", shapes_tiny, "-o", "run", *options)
    assert trained.code == 0, trained.err
    stripped = loradetr("strip", "run", "--inputs", 2)
    assert stripped.code == 0, stripped.err
    assert "logits and boxes are equal bit for bit" in stripped.out
    merged = loradetr("strip", "run", "--inputs", 2, "--branch", 1, "-o", "merged")
    assert merged.code == 0, merged.err
    assert "branch 1 merged" in merged.out


@pytest.mark.slow
def test_two_processes_train_and_a_third_proves_the_folder(shapes_tiny: Path, tmp_path: Path) -> None:
    source = huggingface_models.save("rt_detr", tmp_path / "model")
    options = ("--nproc", "2", "--aux", "2", "--max-steps", "3", *SMALL, "-o", "run")
    ended = run_process("train", "--baseline", f"hf:{source}", "--data", shapes_tiny, *options, folder=tmp_path)
    assert ended.code == 0, ended.err
    ended = run_process("strip", "run", "--inputs", 2, folder=tmp_path)
    assert ended.code == 0, ended.err
    assert "logits and boxes are equal bit for bit" in ended.out
