"""There and back: official files to run directories and to official files again, without loss."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_detr.checkpoints.initial_weights import build_from_weights, read_initial_weights
from lora_detr.checkpoints.official.classes import encode_names
from lora_detr.checkpoints.official.file import CLASSES, POSITION_INDEX, read_official, write_official
from lora_detr.checkpoints.opened import OpenedRun, open_model, open_run
from lora_detr.checkpoints.stripped_file import write_stripped
from lora_detr.config.load import load_config
from lora_detr.data.coco.categories import COCO_NAMES, CategoryMap
from lora_detr.deploy.conversion import convert
from lora_detr.errors import CheckpointError, ConfigError, OutputError
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs.run import start
from lora_detr.structures import Images
from tests import official_files, small_runs
from tests.golden import store
from tests.limits import file_size_limit
from tests.small_runs import SMALL
from tests.unit.models.backbones import small_swin

# Ids of the generated shapes go up to 39.
SHAPES_CLASSES = 40


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed at once: each file is 45 MB, most of it a backbone."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def small_swin_preset(folder: Path) -> Path:
    """Write a preset of Relation-DETR on a Swin that no table knows."""
    sizes = "hidden_dim: 32, ffn_dim: 48, encoder_layers: 1, decoder_layers: 2, heads: 4, points: 2, num_queries: 12"
    path = folder / "swin.yaml"
    backbone = f"{{kind: timm, name: {small_swin.NAME}}}"
    path.write_text(f"extends: relation-swin-l\nmodel: {{backbone: {backbone}, {sizes}}}\n")
    return path


def predictions(opened: OpenedRun) -> list[Tensor]:
    """Return what the model makes of a noise image, branches included."""
    images = Images(
        torch.randn(1, 3, 96, 131, generator=torch.Generator().manual_seed(5)),
        torch.zeros(1, 96, 131, dtype=torch.bool),
        torch.tensor([[96, 131]]),
    )
    with torch.no_grad():
        output, branches = opened.model(images)
    found = [output.prediction.logits, output.prediction.boxes]
    return found if branches is None else [*found, branches.layers[-1].logits, branches.layers[-1].boxes]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(bool(x.isfinite().all()) for x in a)


def assert_same_file(first: Path, second: Path) -> None:
    """Assert equal names in equal order, types and bits, and that heads are one tensor under two names."""
    a, b = (torch.load(path, weights_only=False)["model"] for path in (first, second))
    assert list(a) == list(b)
    assert [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])] == []
    for name in (name for name in b if name.startswith("class_embed.")):
        assert b[name].data_ptr() == b[f"transformer.decoder.{name}"].data_ptr()


# Those with LoRA branches have all that the others of their family have.
@pytest.mark.parametrize(
    "system",
    [
        system if system.endswith("lora3") else pytest.param(system, marks=pytest.mark.slow)
        for system in official_files.SYSTEMS
    ],
)
def test_there_and_back_keeps_every_bit_and_every_answer(system: str, place: Path) -> None:
    official = official_files.make(system)
    file = official.save(place / "official.pth")
    there = convert(file, place / "run")
    back = convert(place / "run", place / "back.pth")
    assert (there.tensors, back.tensors) == (len(official.tensors), len(official.tensors))
    assert there.not_converted == ("epoch", "args", "optimizer")
    assert (back.not_converted, back.notes) == (("settings",), ())
    assert_same_file(file, place / "back.pth")
    direct, run = open_run(file), open_run(place / "run")
    assert direct.config == run.config == official.config
    assert direct.categories == run.categories == CategoryMap.coco91(COCO_NAMES)
    expected = predictions(OpenedRun(file, official.config, run.categories, official.model, run.checkpoint))
    assert_same(predictions(direct), expected)
    assert_same(predictions(run), expected)


def test_relation_detr_on_a_swin_with_names_of_classes(place: Path) -> None:
    preset = small_swin_preset(place)
    official = official_files.of_config(load_config(RunConfig, preset=preset).config, num_classes=8)
    names = CategoryMap(tuple(range(8)), ("N/A", "cat", "N/A", "N/A", "dog", "fish", "N/A", "bird"))
    encoded = encode_names(names)
    assert encoded is not None
    official.tensors[CLASSES] = encoded
    file = official.save(place / "official.pth")
    with pytest.raises(CheckpointError, match=r"a Swin of width 12 with .* windows of 7") as caught:
        convert(file, place / "run")
    assert "--preset" in caught.value.remedy
    convert(file, place / "run", preset=str(preset))
    report = convert(place / "run", place / "back.pth")
    assert_same_file(file, place / "back.pth")
    assert sum(name.endswith(POSITION_INDEX) for name in official.tensors) == sum(small_swin.DEPTHS)
    run = open_run(place / "run")
    assert run.categories == names
    assert run.config.data.num_classes == "auto"
    expected = predictions(OpenedRun(file, official.config, run.categories, official.model, run.checkpoint))
    assert_same(predictions(run), expected)
    assert len(report.notes) == 1
    assert report.notes[0].startswith("read again, it needs --preset: backbone not recognised")


def test_windows_that_are_not_the_models_are_refused(place: Path) -> None:
    preset = small_swin_preset(place)
    official = official_files.of_config(load_config(RunConfig, preset=preset).config)
    name = next(name for name in official.tensors if name.endswith(POSITION_INDEX))
    official.tensors[name] = official.tensors[name].flip(0)
    with pytest.raises(CheckpointError, match="not that of the model's windows"):
        convert(official.save(place / "official.pth"), place / "run", preset=str(preset))
    assert not (place / "run").exists()


def test_a_run_of_ours_becomes_a_file_that_its_preset_reads(small_run: Path, place: Path) -> None:
    report = convert(small_run, place / "ours.pth")
    assert report.not_converted == ("settings", "optimiser", "progress")
    assert report.notes[0].startswith("read again, it needs --preset")
    convert(place / "ours.pth", place / "run", preset=str(SMALL))
    before, after = open_run(small_run), open_run(place / "run")
    assert after.config.model == before.config.model
    assert_same(predictions(after), predictions(before))
    assert after.categories == before.categories


def test_averaged_weights_are_taken_unless_the_raw_ones_are_asked_for(shapes_tiny: Path, place: Path) -> None:
    run = small_runs.train(shapes_tiny, place / "run", "train.ema_decay=0.9", "train.max_steps=2").directory
    assert "averaged weights" in convert(run, place / "average.pth").source
    convert(run, place / "raw.pth", ema=False)
    for name, ema in (("average", True), ("raw", False)):
        found = read_official(place / f"{name}.pth").tensors["transformer.enc_output.weight"]
        assert torch.equal(found, open_run(run, ema=ema).model.detector.proposals.projection.weight)
    both = {name: read_official(place / f"{name}.pth").tensors for name in ("raw", "average")}
    torch.save({"model": both["raw"], "ema": {"module": both["average"]}}, place / "both.pth")
    report = convert(place / "both.pth", place / "again", preset=str(SMALL))
    assert report.source.endswith("both.pth (averaged weights)")
    assert_same(predictions(open_run(place / "again")), predictions(open_run(run)))


def test_a_single_network_beside_each_ffn_is_said_to_be_ambiguous(place: Path) -> None:
    file = official_files.make("ms-detr").save(place / "official.pth")
    taken = convert(file, place / "ms-detr")
    assert any("taken for MS-DETR" in note and "--preset deformable-ffn3" in note for note in taken.notes)
    other = convert(file, place / "ffn", preset="deformable-ffn3")
    assert not any("MS-DETR" in note for note in other.notes)
    config = open_run(place / "ffn").config
    assert (config.model.kind, [branch.kind for branch in config.branches]) == ("deformable", ["ffn"])
    assert convert(file, place / "by-baseline", baseline="deformable").system == other.system
    back = convert(place / "ffn", place / "back.pth")
    assert_same_file(file, place / "back.pth")
    assert "`model.kind` is deformable, read again it is ms-detr" in "".join(back.notes)


def test_what_a_file_does_not_say_is_noted(place: Path) -> None:
    preset = place / "four.yaml"
    preset.write_text("extends: deformable\nmodel: {heads: 4}\nevaluation: {max_detections: 7}\n")
    file = official_files.make("deformable", "model.heads=4").save(place / "official.pth")
    convert(file, place / "run", preset=str(preset))
    notes = "\n".join(convert(place / "run", place / "back.pth").notes)
    assert "`model.heads` is 4, read again it is 8" in notes
    assert "`max_detections` is 7, read again it is 100" in notes
    assert "dropout" not in notes


class TestStripped:
    """A stripped file becomes an official one where that holds no more than a detector."""

    @staticmethod
    def strip(system: str, place: Path) -> Path:
        official = official_files.make(system)
        official.save(place / "official.pth")
        opened = open_run(place / "official.pth")
        write_stripped(place / "stripped.safetensors", opened.model.detector.inference_state(), opened.deployment)
        return place / "stripped.safetensors"

    def test_a_detector_of_lora_becomes_a_plain_one(self, place: Path) -> None:
        report = convert(self.strip("deformable-lora3", place), place / "plain.pth")
        assert report.not_converted == ("preparation of images",)
        plain, with_branches = open_run(place / "plain.pth"), open_run(place / "official.pth")
        assert plain.config.branches == ()
        assert_same(predictions(plain), predictions(with_branches)[:2])

    @pytest.mark.parametrize(
        ("system", "part"), [("relation", "no hybrid or denoising queries"), ("ms-detr", "has 0 branches")]
    )
    def test_what_lacks_a_part_is_refused(self, system: str, part: str, place: Path) -> None:
        with pytest.raises(CheckpointError, match=part) as caught:
            convert(self.strip(system, place), place / "plain.pth")
        assert caught.value.remedy == "convert the run that it comes from"
        assert not (place / "plain.pth").exists()


def test_tensors_without_official_name_are_refused(shapes_tiny: Path, place: Path) -> None:
    few = ("model.hybrid.num_queries=3", "model.mixed_selection=true", "train.max_steps=1")
    run = small_runs.train(shapes_tiny, place / "run", *few).directory
    with pytest.raises(
        CheckpointError, match=r"1 of \d+ tensors have no official name: detector\.query_groups\.hybrid"
    ):
        convert(run, place / "ours.pth")


@pytest.mark.parametrize(
    ("preset", "options", "fault"),
    [
        ("deformable-tiny", ["model.backbone={kind: resnet, name: resnet18, weights: none}"], "could not load it"),
        ("ms-detr-tiny", ["branches=[{kind: lora, matcher: {kind: topk, k: 1}}]"], r"1 branches \(lora\)"),
        (
            "relation-tiny",
            [
                "model.backbone={kind: resnet, name: resnet18, weights: none, norm: frozen-batch}",
                "branches=[{kind: ffn, matcher: {kind: topk, k: 1}}]",
            ],
            "no official relation has",
        ),
    ],
    ids=["GroupNorm", "MS-DETR with LoRA", "Relation-DETR with networks"],
)
def test_what_the_authors_code_could_not_load_is_refused(
    preset: str, options: list[str], fault: str, shapes_tiny: Path, place: Path
) -> None:
    resolved = small_runs.reduced(preset, shapes_tiny, "train.max_steps=1", *options)
    run = start(resolved, place / "run", None, False, small_runs.Lines()).directory
    with pytest.raises(CheckpointError, match=fault) as caught:
        convert(run, place / "ours.pth")
    assert caught.value.code == "K08"
    assert not (place / "ours.pth").exists()


class TestClasses:
    """What labels stand for: nothing is guessed in silence."""

    def test_labels_that_are_not_ids_come_back(self, place: Path) -> None:
        """Data of ids 1, 2, 3 have the labels 0, 1, 2, which official code cannot say: they stand beside the model."""
        file = official_files.make("deformable", num_classes=3).save(place / "official.pth")
        categories = CategoryMap((1, 2, 7), ("RBC", "WBC", "Platelets"))
        write_official(place / "ours.pth", read_official(file).tensors, categories)
        assert open_run(place / "ours.pth").categories == categories
        assert read_official(place / "ours.pth").rest == ()
        convert(place / "ours.pth", place / "run")
        assert open_run(place / "run").categories == categories

    @pytest.fixture
    def file(self, place: Path) -> Path:
        return official_files.make("deformable", num_classes=SHAPES_CLASSES).save(place / "official.pth")

    def test_data_names_them_by_their_own_ids(self, file: Path, shapes_tiny: Path, place: Path) -> None:
        report = convert(file, place / "run", data=shapes_tiny)
        assert f"classes: 40, taken from {shapes_tiny}" in report.notes
        opened = open_run(place / "run")
        assert opened.categories.label_of(39) == 39
        assert opened.categories.names[39] == json_categories(shapes_tiny)[39]
        assert opened.categories.names_by_id == json_categories(shapes_tiny)
        assert (opened.config.data.num_classes, opened.config.data.path) == ("auto", str(shapes_tiny))

    def test_nobody_names_them(self, file: Path) -> None:
        opened = open_run(file)
        assert opened.categories == CategoryMap(tuple(range(40)), tuple(f"class {i}" for i in range(40)))

    def test_data_with_ids_beyond_them_is_refused(self, shapes_tiny: Path, place: Path) -> None:
        file = official_files.make("deformable", num_classes=39).save(place / "official.pth")
        with pytest.raises(CheckpointError, match=r"the ids 0 to 38, but .* has 39 'ell' \(1 of 10") as caught:
            convert(file, place / "run", data=shapes_tiny)
        assert (caught.value.code, caught.value.exit_code) == ("K08", 4)

    def test_names_in_the_file_are_stronger_than_their_number(self, place: Path) -> None:
        official = official_files.make("relation")
        other = CategoryMap(tuple(range(91)), ("N/A", *(f"thing {i}" for i in range(1, 91))))
        encoded = encode_names(other)
        assert encoded is not None
        official.tensors[CLASSES] = encoded
        opened = open_run(official.save(place / "official.pth"))
        assert (opened.categories, opened.config.data.num_classes) == (other, "auto")

    def test_all_that_has_a_row_for_each_class_starts_anew_on_others(self, place: Path) -> None:
        official = official_files.make("relation")
        weights = read_initial_weights(official.save(place / "official.pth"))
        other = CategoryMap(tuple(range(91)), tuple(f"thing {i}" for i in range(91)))
        model, report = build_from_weights(official.config, other, weights)
        assert {".".join(name.split(".")[1:4]) for name in report.reinitialised} == {
            *(f"heads.classes.{i}" for i in range(3)),
            "query_groups.hybrid.classes",
            "query_groups.denoising.labels",
        }
        assert (len(report.taken) + len(report.reinitialised), report.unused) == (len(model.state_dict()), ())
        _, report = build_from_weights(official.config, CategoryMap.coco91(COCO_NAMES), weights)
        assert report.reinitialised == {}

    @pytest.mark.parametrize("stored", [torch.tensor([7, 1 << 40, -1]), torch.tensor([65, -1] * 92)])
    def test_a_list_of_names_that_is_none_is_refused(self, stored: Tensor, place: Path) -> None:
        official = official_files.make("relation")
        official.tensors[CLASSES] = stored
        with pytest.raises(CheckpointError, match=r"official\.pth"):
            open_run(official.save(place / "official.pth"))


def json_categories(data: Path) -> dict[int, str]:
    content = json.loads((data / "annotations" / "instances_val.json").read_text(encoding="utf-8"))
    return {row["id"]: row["name"] for row in content["categories"]}


@pytest.mark.parametrize(
    ("source", "output"),
    [("a.pth", "b.pth"), ("run", "other"), ("a.pth", "b.safetensors"), ("a.safetensors", "b.safetensors")],
)
def test_a_pair_without_direction_is_explained(source: str, output: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one of the two must be an official \.pth") as caught:
        convert(tmp_path / source, tmp_path / output)
    assert "a .pth and a new run directory, or a run" in caught.value.remedy


@pytest.mark.parametrize("output", ["there.pth", "there"])
def test_nothing_that_exists_is_touched_c06(output: str, small_run: Path, tmp_path: Path) -> None:
    (tmp_path / output).write_text("precious")
    with pytest.raises(ConfigError, match="exists already; nothing was touched") as caught:
        convert(small_run if output.endswith(".pth") else tmp_path / "any.pth", tmp_path / output)
    assert caught.value.code == "C06"
    assert (tmp_path / output).read_text() == "precious"


def test_options_that_do_not_fit_are_refused(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are about an official source"):
        convert(small_run, tmp_path / "out.pth", preset="deformable")
    with pytest.raises(ConfigError, match="exclude each other"):
        convert(tmp_path / "in.pth", tmp_path / "out", preset="deformable", baseline="deformable")


def test_a_preset_of_the_other_family_is_refused(place: Path) -> None:
    file = official_files.make("deformable").save(place / "official.pth")
    with pytest.raises(ConfigError, match="preset relation is a 'relation'"):
        convert(file, place / "run", baseline="relation")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("transformer.decoder.layers.1.norm2.bias", "missing in the file: transformer.decoder.layers.1.norm2.bias"),
        ("transformer.level_embed", "not recognised: it has no 'transformer.level_embed'"),
        ("transformer.enc_output.weight", r"no transformer.enc_output \(two-stage\)"),
    ],
)
def test_a_file_that_lacks_something_is_refused_whole(name: str, part: str, place: Path) -> None:
    official = official_files.make("deformable")
    del official.tensors[name]
    with pytest.raises(CheckpointError, match=part) as caught:
        open_run(official.save(place / "official.pth"))
    assert caught.value.code == "K08"


def test_other_types_are_refused(place: Path) -> None:
    official = official_files.make("deformable")
    official.tensors["transformer.enc_output.bias"] = official.tensors["transformer.enc_output.bias"].half()
    with pytest.raises(CheckpointError, match=r"transformer\.enc_output\.bias: float16 in the file, float32"):
        open_run(official.save(place / "official.pth"))


def test_a_full_disk_leaves_nothing_behind(small_run: Path, place: Path) -> None:
    file = official_files.make("deformable").save(place / "official.pth")
    with file_size_limit(100_000), pytest.raises(OutputError):
        convert(file, place / "run")
    with file_size_limit(100_000), pytest.raises(OutputError):
        convert(small_run, place / "out.pth")
    assert [path.name for path in place.iterdir()] == ["official.pth"]


@pytest.mark.slow
def test_a_file_of_full_size_goes_there_and_back(place: Path) -> None:
    content = json.loads((store.folder() / "state_keys" / "deformable_300.json").read_text(encoding="utf-8"))
    tensors = {key: torch.randn(shape).to(getattr(torch, dtype)) for key, shape, dtype in content["keys"]}
    official = official_files.Official(RunConfig(), RunConfig().build_model(2, load_weights=False), tensors)
    for pair in content["aliased_keys"]:
        tensors[pair[0]] = tensors[pair[1]]
    convert(official.save(place / "official.pth"), place / "run")
    convert(place / "run", place / "back.pth")
    assert_same_file(place / "official.pth", place / "back.pth")


@pytest.mark.parametrize(
    "preset",
    [
        "deformable-pp-tiny-lora3",
        pytest.param("deformable-tiny", marks=pytest.mark.slow),
        pytest.param("deformable-tiny-ffn3", marks=pytest.mark.slow),
    ],
)
def test_a_file_of_a_tiny_preset_names_the_preset_to_give(preset: str, place: Path) -> None:
    small = [setting for setting in small_runs.REDUCED if not setting.startswith(("model.backbone", "model.num"))]
    config = load_config(RunConfig, preset=preset, overrides=small).config
    official = official_files.of_config(config.resolved(), num_classes=3)
    path = official.save(place / "out.pth")
    remedy = f"loradetr convert {path} OUTPUT --preset {preset}$"
    with pytest.raises(CheckpointError, match=rf"it is that of preset {preset}\b") as caught:
        open_model(path)
    assert re.search(remedy, caught.value.remedy)
    with pytest.raises(CheckpointError) as again:
        convert(path, place / "new")
    assert again.value.remedy == caught.value.remedy
    convert(path, place / "new", preset=preset)
    assert open_run(place / "new").config.model.backbone.name == "tf_efficientnet_lite0"


def test_a_file_whose_backbone_no_preset_has_asks_for_one(place: Path) -> None:
    config = load_config(RunConfig, preset="deformable-tiny", overrides=small_runs.REDUCED).config
    path = official_files.of_config(config, num_classes=3).save(place / "out.pth")
    with pytest.raises(CheckpointError, match="no preset has it") as caught:
        open_model(path)
    assert caught.value.remedy.endswith("OUTPUT --preset PRESET.yaml")
