"""Losses are read off our runs, whole ablations, and the log.txt of DETR's forks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lora_detr.config.dump import dump_config
from lora_detr.errors import ConfigError
from lora_detr.experiments.losses.logs import POINTS, Place, find_runs, read_log
from tests import small_runs
from tests.unit.experiments.tables.studies import study_in
from tests.unit.records.test_repair import TAILS


def write_ours(folder: Path, steps: int = 4, in_epoch: int = 2) -> Path:
    """Write the logs of a run of two decoder layers whose losses are known."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(small_runs.config(), {}), encoding="utf-8")
    records = []
    for step in range(1, steps + 1):
        terms = {f"primary/layer{layer}/{kind}": 1.0 / step for layer in range(2) for kind in ("class", "l1", "giou")}
        terms |= {"branch0/layer0/class": 9.0, "encoder/class": 9.0}
        records.append({"step": step, "epoch": (step - 1) // in_epoch, "terms": terms, "seconds": 0.1})
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + '{"step": 5, "ter', encoding="utf-8")
    epochs = [{"epoch": 0, "step": 2, "test_coco_eval_bbox": [0.1, 0.2]}, {"epoch": 1, "step": 4}]
    (folder / "log.txt").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs), encoding="utf-8")
    return folder


def test_our_losses_are_weighted_as_in_the_total_and_placed_by_epoch(tmp_path: Path) -> None:
    log = read_log(Place("mine", write_ours(tmp_path / "run")))
    weights = small_runs.config().loss.primary.weights
    assert (log.label, log.layers) == ("mine", 2)
    np.testing.assert_allclose(log.epochs, [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(log.terms[1, "l1"], weights.l1 / np.arange(1, 5))
    whole = weights.classification + weights.l1 + weights.giou
    np.testing.assert_allclose(log.total(), 2 * whole / np.arange(1, 5))
    np.testing.assert_allclose(log.total([1], ["giou"]), weights.giou / np.arange(1, 5))
    np.testing.assert_allclose((log.evaluated, log.precision), ([1.0], [0.1]))


def write_theirs(folder: Path) -> Path:
    """Write a ``log.txt`` of DETR's forks: two decoder layers, two epochs, losses that are known."""
    lines = [
        {
            "train_lr": 1e-4,
            "train_loss": 9.0,
            **{f"train_loss_{kind}": 3.0 - epoch for kind in ("ce", "bbox", "giou")},
            **{f"train_loss_{kind}_0": 4.0 - epoch for kind in ("ce", "bbox", "giou")},
            "train_loss_ce_enc": 7.0,
            "train_loss_ce_unscaled": 7.0,
            "test_coco_eval_bbox": [0.1 * (1 + epoch)] * 12,
            "epoch": epoch,
        }
        for epoch in range(2)
    ]
    folder.mkdir()
    path = folder / "log.txt"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_an_official_log_is_read_as_it_is(tmp_path: Path) -> None:
    path = write_theirs(tmp_path / "theirs")
    (place,) = find_runs([str(path)])
    log = read_log(place)
    assert (log.label, log.layers) == ("theirs", 2)
    np.testing.assert_allclose(log.epochs, [1, 2])
    np.testing.assert_allclose(log.terms[0, "class"], [4.0, 3.0])
    np.testing.assert_allclose(log.terms[1, "giou"], [3.0, 2.0])
    np.testing.assert_allclose(log.total(), [21.0, 15.0])
    np.testing.assert_allclose(log.precision, [0.1, 0.2])


def test_our_epochs_are_means_of_all_steps_weighted_alike(small_run: Path) -> None:
    """The small run logs every step, so that the means of its steps are those of its epochs."""
    by_step, by_epoch = (read_log(Place("mine", small_run), by) for by in POINTS)
    assert (by_epoch.layers, by_epoch.classification) == (by_step.layers, by_step.classification)
    np.testing.assert_allclose(by_epoch.epochs, [1, 2])
    np.testing.assert_allclose(by_epoch.total(), by_step.total().reshape(2, -1).mean(1), rtol=1e-6)
    np.testing.assert_allclose(by_epoch.precision, by_step.precision)
    alone = read_log(Place("mine", small_run / "log.txt"))
    np.testing.assert_allclose(alone.total(), by_epoch.total())


def test_an_ablation_stands_for_all_its_runs_that_have_begun(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    study.record()
    with pytest.raises(ConfigError, match="none of its runs has begun"):
        find_runs([str(study.folder)])
    for run in study.runs[:3]:
        write_ours(run.folder)
    assert [place.label for place in find_runs([str(study.folder)])] == ["base", "three branches", "base"]
    row = study.folder / "base"
    assert find_runs([str(row)]) == [Place("base", row / "seed0"), Place("base", row / "seed1")]
    assert {place.label for place in find_runs([f"mine={row}"])} == {"mine"}
    assert find_runs([str(row / "seed1")]) == [Place("seed1", row / "seed1")]


def test_a_label_may_be_given_and_hold_an_equals_sign(tmp_path: Path) -> None:
    run = write_ours(tmp_path / "run")
    assert find_runs([f"k = 6={run}"]) == [Place("k = 6", run)]
    odd = write_ours(tmp_path / "lr=1")
    assert find_runs([str(odd)]) == [Place("lr=1", odd)]


def test_what_holds_no_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        find_runs([str(tmp_path / "none")])
    with pytest.raises(ConfigError, match=r"neither metrics\.jsonl nor log\.txt"):
        find_runs([str(tmp_path)])
    path = tmp_path / "log.txt"
    path.write_text('{"epoch": 0, "train_loss": 3}\nnonsense\n', encoding="utf-8")
    (place,) = find_runs([str(tmp_path)])
    with pytest.raises(ConfigError, match="no line has a one-to-one loss"):
        read_log(place)


def test_a_term_that_a_line_lacks_is_nan(tmp_path: Path) -> None:
    run = write_ours(tmp_path / "run")
    path = run / "metrics.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('\n{"step": 6, "epoch": 2, "terms": {"primary/layer0/l1": NaN}}\n')
    log = read_log(Place("mine", run))
    assert math.isnan(log.terms[0, "class"][-1]) and math.isnan(log.total()[-1])


@pytest.mark.parametrize("damage", TAILS)
def test_losses_of_damaged_logs_are_those_of_whole_ones(
    damage: str, small_run: Path, own_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("metrics.jsonl", "log.txt", "config.yaml"):
        TAILS[damage](own_run / name)
    for by in POINTS:
        whole, found = (read_log(Place("run", folder), by) for folder in (small_run, own_run))
        np.testing.assert_array_equal(found.total(), whole.total())
        np.testing.assert_array_equal((found.evaluated, found.precision), (whole.evaluated, whole.precision))
        assert found.classification == whole.classification
    assert any("metrics.jsonl: line" in text for text in caplog.messages)


def test_half_of_the_settings_is_not_taken_for_all_of_them(
    small_run: Path, own_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = own_run / "config.yaml"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
    assert read_log(Place("run", own_run)).classification == read_log(Place("run", small_run)).classification
    assert "; the settings are taken from step-00000012" in caplog.text
    (own_run / "checkpoints").rename(own_run / "elsewhere")
    path.write_bytes(bytes(40))
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_log(Place("run", own_run))
