"""The whole life of a detector of ``transformers``: from a folder to a run, back to a folder, and used from there."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from lora_detr.checkpoints.checkpoint import load_latest
from tests import huggingface_models
from tests.cli.conftest import Command, assert_told, commands_in, run_process

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
    assert "library_name: transformers" in (folder / "README.md").read_text()
    report = json.loads((run / "strip_report.json").read_text())
    assert report["largest_difference"] == 0
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name or "branch" in name]  # noqa: SIM118


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
        (("--recompute", "decoder"), "`train.recompute` is not for detectors of transformers"),
        (("--branch", "cross-ffn/topk:k=6"), "`branches.0.kind` is cross-ffn"),
        (("--set", "loss.branch.merge_one_to_one=true"), "keep to themselves"),
        (("--dac",), "detectors of lora_detr only"),
        (("--preset", "deformable-tiny"), "exclude each other"),
    ],
)
def test_what_such_a_detector_cannot_do_is_refused_before_it_starts(
    options: tuple[str, ...], said: str, loradetr: Command, life: tuple[Path, str, str], shapes_tiny: Path
) -> None:
    ended = loradetr("train", "--baseline", f"hf:{life[0].parent / 'model'}", "--data", shapes_tiny, *options)
    assert_told(ended, 2, (said,))


def test_a_missing_folder_is_one_line(loradetr: Command, shapes_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ended = loradetr("train", "--baseline", "hf:no/such", "--data", shapes_tiny)
    assert_told(ended, 4, ("hf:no/such: cannot be read",))


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
