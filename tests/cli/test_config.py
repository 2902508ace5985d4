"""``loradetr config``: what it prints can be read, copied, piped and given back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from lora_detr.cli import app
from lora_detr.config.load import load_config
from lora_detr.config.presets import list_presets
from lora_detr.recipe.run_config import RunConfig
from tests.cli.conftest import Command, Ended, run_process
from tests.small_runs import SMALL

COMMANDS = ("list", "show", "validate", "diff")


def printed(ended: Ended) -> str:
    """Return the standard output of a command that ended well."""
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text)
    return path


class TestHelp:
    """Each command fits a screen, says what every part is, and shows a line that works."""

    @pytest.fixture
    def narrow(self, loradetr: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
        """The command on a screen of 80 columns."""
        monkeypatch.setenv("COLUMNS", "80")
        return loradetr

    @pytest.mark.parametrize("name", COMMANDS)
    def test_it_fits_a_screen_and_its_example_works(self, name: str, narrow: Command) -> None:
        lines = printed(narrow("config", name, "--help")).splitlines()
        assert len(lines) <= 26
        assert max(map(len, lines)) <= 80
        shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", "\n".join(lines)).split())
        for parameter in get_command(app).commands["config"].commands[name].params:  # type: ignore[attr-defined]
            text = getattr(parameter, "help", None)
            assert text, f"{name}: {parameter.name} has no help"
            assert " ".join(text.split()[:2]) in shown
        example = re.search(r"Example: loradetr (config .*)", "\n".join(lines))
        assert example
        for path in re.findall(r"\S+\.yaml", example[1]):
            write(path, "extends: deformable\n")
        assert narrow(*example[1].split()).code == 0

    def test_the_group_lists_its_commands(self, narrow: Command) -> None:
        out = printed(narrow("config", "--help"))
        assert re.findall(r"^│ (\w+) +[A-Z]", out, re.MULTILINE) == list(COMMANDS)
        assert re.search(r"│ config +[A-Z]", printed(narrow("--help")))

    def test_help_and_list_need_no_torch(self, tmp_path: Path) -> None:
        # A stand-in that cannot be imported: the commands must not even try.
        (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
        source = str(Path(__file__).parents[2])
        for line in (("--help",), ("show", "--help"), ("list",), ("list", "--json")):
            ended = run_process("config", *line, folder=tmp_path, PYTHONPATH=f"{tmp_path}:{source}")
            assert (ended.code, ended.err) == (0, ""), line


class TestList:
    """Every preset is there with the name that works and the figures its file states."""

    @pytest.mark.parametrize("columns", [80, 120])
    def test_nothing_is_lost_at_any_width(
        self, columns: int, loradetr: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        out = printed(loradetr("config", "list"))
        assert max(map(len, out.splitlines())) <= columns
        shown = " ".join(out.split())
        for preset in list_presets():
            for text in (preset.title, *preset.paper):
                assert " ".join(text.split()) in shown
        assert "49.0 AP (published), 49.9 M parameters" in shown
        names = re.findall(r"^ (\S+)", out, re.MULTILINE)
        assert names == ["preset", *(row["name"] for row in json.loads(printed(loradetr("config", "list", "--json"))))]
        assert out.splitlines()[-1].startswith("next: ")

    def test_json_has_the_names_that_other_commands_take(self, loradetr: Command) -> None:
        rows = json.loads(printed(loradetr("config", "list", "--json")))
        assert len(rows) == len(list_presets())
        by_name = {row["name"]: row for row in rows}
        assert by_name["deformable-lora3"]["paper"][0].startswith('Table 2, row "LoRA-DETR, 3 branches')
        assert by_name["deformable-tiny"]["paper"] == []
        assert list(by_name).index("deformable-tiny") < list(by_name).index("deformable-tiny-lora3")
        for name, row in by_name.items():
            assert load_config(RunConfig, preset=name) == load_config(RunConfig, preset=row["file"])


def test_a_pipe_that_closes_early_is_no_fault_of_the_user(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        line = [sys.executable, "-m", "lora_detr", "config", "list", "--json"]
        # Unbuffered, the fault would show at once anyway.
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": ""}
        ended = subprocess.run(
            line, stdout=closed, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (141, "")


class TestShow:
    """The settings of a run before it starts, as YAML that is accepted back."""

    def test_what_is_shown_is_accepted_back(self, loradetr: Command, shapes_tiny: Path) -> None:
        changes = ("--set", "train.epochs=3", "--set", "branches.1.rank=8")
        expected = load_config(RunConfig, preset=SMALL, overrides=changes[1::2]).config
        for option in ((), ("--origin",)):
            file = write("mine.yaml", printed(loradetr("config", "show", SMALL, *changes, *option)))
            assert load_config(RunConfig, preset=file).config == expected
            assert printed(loradetr("config", "validate", file)).startswith("mine.yaml: valid (schema defaults + ")
            ended = loradetr("train", "--preset", file, "--data", shapes_tiny, "--dry-run")
            assert "branch1     lora rank 8" in printed(ended)

    def test_origins_stand_beside_the_values(self, loradetr: Command) -> None:
        file = write("more.yaml", "train: {epochs: 3}\n")
        changes = ("--config", file, "--set", "train.seed=1")
        lines = printed(loradetr("config", "show", "deformable-lora3", *changes, "--origin")).splitlines()
        found = {
            line.strip().partition(":")[0]: line.partition("#")[2] for line in lines if not line.startswith("    ")
        }
        assert found["epochs"] == " file more.yaml"
        assert found["seed"] == " override"
        assert found["batch_size"] == " schema"
        assert found["num_classes"] == " preset deformable"
        assert "  - kind: lora                             # preset deformable-lora3" in lines
        assert max(map(len, lines)) <= 80

    def test_a_section_is_shown_in_its_place(self, loradetr: Command) -> None:
        out = printed(
            loradetr("config", "show", "deformable", "model.backbone", "--set", "model.backbone.weights=none")
        )
        assert out.startswith("model:\n  backbone:\n    kind: resnet\n    name: resnet50\n    weights: none\n")
        assert "num_queries" not in out
        # Laid over another preset, it changes this section alone.
        file = write("backbone.yaml", out)
        laid_over = load_config(RunConfig, preset="deformable-lora3", files=[file]).config
        assert (
            laid_over
            == load_config(RunConfig, preset="deformable-lora3", overrides=["model.backbone.weights=none"]).config
        )

    def test_an_item_of_a_list_is_shown_with_its_own_origins(self, loradetr: Command) -> None:
        change = ("--set", "branches.1.rank=8")
        out = printed(loradetr("config", "show", "deformable-lora3", "branches.1", "--origin", *change))
        lines = out.splitlines()
        assert lines[:2] == ["# one item of a list: branches.1", "branches:"]
        assert [" ".join(line.split()) for line in lines[2:4]] == [
            "- kind: lora # preset deformable-lora3",
            "rank: 8 # override",
        ]
        assert out.count("kind: lora") == 1

    def test_json_is_the_bare_value(self, loradetr: Command) -> None:
        assert printed(loradetr("config", "show", "deformable", "train.epochs", "--json")) == "12\n"
        assert (
            json.loads(printed(loradetr("config", "show", "deformable-lora3", "branches.2.matcher.k", "--json"))) == 2
        )
        whole = json.loads(printed(loradetr("config", "show", "deformable", "--json")))
        assert RunConfig.model_validate(whole) == load_config(RunConfig, preset="deformable").config

    def test_json_with_origins_is_a_flat_list_of_key_paths(self, loradetr: Command) -> None:
        change = ("--set", "train.optimizer.betas=[0.8, 0.99]")
        out = printed(loradetr("config", "show", "deformable", "train.optimizer", "--origin", "--json", *change))
        found = json.loads(out)
        assert found["train.optimizer.betas.1"] == {"value": 0.99, "origin": "override"}
        assert found["train.optimizer.no_decay"] == {"value": [], "origin": "schema"}
        assert all(key.startswith("train.optimizer.") for key in found)

    def test_a_run_directory_shows_the_settings_of_its_run(self, loradetr: Command, small_run: Path) -> None:
        shown = json.loads(printed(loradetr("config", "show", small_run, "--json")))
        assert shown["model"]["hidden_dim"] == 32
        assert Path(shown["data"]["path"]).is_absolute()
        assert printed(loradetr("config", "show", small_run)) == printed(
            loradetr("config", "show", small_run / "config.yaml")
        )


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (("show", "deformable-lora33"), "did you mean 'deformable-lora3'?"),
        (("show", "deformable", "model.bakbone"), "`model.bakbone`: unknown key; did you mean 'backbone'?"),
        (("show", "deformable", "model.bakbone", "--json"), "`model.bakbone`: unknown key; did you mean 'backbone'?"),
        (("show", "deformable", "--set", "train.epocs=3"), "`train.epocs`: unknown key; did you mean 'epochs'?"),
        (("show", "deformable", "--config", "absent.yaml"), "absent.yaml: cannot be read"),
        (("show", "absent.yaml"), "absent.yaml: cannot be read"),
        (("show", "."), "this folder holds no config.yaml"),
        (("diff", "deformable", "deformabel"), "did you mean 'deformable'?"),
        (("validate", "deformabel"), "did you mean 'deformable'?"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, tuple) else "",
)
def test_mistakes_are_named_with_a_remedy(line: tuple[str, ...], part: str, loradetr: Command) -> None:
    ended = loradetr("config", *line)
    assert (ended.code, ended.out) == (2, "")
    first, remedy = ended.err.splitlines()
    assert first.startswith("error")
    assert part in first
    assert remedy.startswith("  ")


class TestValidate:
    """Every file is looked at, and each fault says which file it is in."""

    def test_valid_settings_of_every_form(self, loradetr: Command, small_run: Path) -> None:
        write("mine.yaml", "extends: deformable\ndescription: mine\ntrain: {epochs: 3, seed: 1}\n")
        write("part.yaml", "evaluation: {every: 2}\n")
        out = printed(loradetr("config", "validate", "mine.yaml", "part.yaml", "deformable-lora1", small_run))
        assert out.splitlines()[:2] == [
            "mine.yaml: valid (preset deformable + 2 settings)",
            "part.yaml: valid (schema defaults + 1 setting)",
        ]
        assert re.fullmatch(r"deformable-lora1: valid \(preset deformable \+ \d+ settings\)", out.splitlines()[2])
        assert out.splitlines()[3].startswith(f"{small_run}: valid (schema defaults + ")

    def test_all_presets_are_valid(self, loradetr: Command) -> None:
        names = [preset.name for preset in list_presets()]
        assert len(re.findall(r": valid \(", printed(loradetr("config", "validate", *names)))) == len(names)

    def test_every_file_is_looked_at_and_every_fault_is_told(self, loradetr: Command) -> None:
        write("bad.yaml", "extends: deformable\ntrain: {epocs: 3, seed: -1}\n")
        write("broken.yaml", "train: [1\n")
        write("deep.yaml", "extends: bad.yaml\n")
        write("good.yaml", "extends: deformable\n")
        ended = loradetr("config", "validate", "bad.yaml", "broken.yaml", "nope", "deep.yaml", "good.yaml")
        assert ended.code == 2
        assert ended.out == "good.yaml: valid (preset deformable + 0 settings)\n"
        faults = [line for line in ended.err.splitlines() if not line.startswith("  ")]
        starts = [
            "error[C01]: bad.yaml: `train.seed` is -1 (from preset bad); must be at least 0",
            "bad.yaml: `train.epocs`: unknown key; did you mean 'epochs'?",
            "error: broken.yaml:2:1: not valid YAML",
            "error: unknown preset 'nope'",
            "error: deep.yaml: extends 'bad', which itself extends 'deformable'; one level is allowed",
        ]
        assert [line[: len(start)] for line, start in zip(faults, starts, strict=True)] == starts
        assert "Traceback" not in ended.err


class TestDiff:
    """A line a difference, none of it cut."""

    @pytest.mark.parametrize("columns", [80, 120])
    def test_a_line_a_key(self, columns: int, loradetr: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = printed(loradetr("config", "diff", "deformable", "deformable-lora1")).splitlines()
        rows = json.loads(printed(loradetr("config", "diff", "deformable", "deformable-lora1", "--json")))[
            "differences"
        ]
        assert lines[0] == f"{len(rows)} differences, deformable -> deformable-lora1"
        assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == [row["key"] for row in rows]
        assert "loss.primary.classification           focal -> quality" in lines
        assert "branches.0.rank                       <absent> -> 32" in lines
        assert max(map(len, lines)) <= columns
        rule = '"*.sampling_offsets.*" -> "detector.heads.boxes.*"'
        pattern = lines.index(next(line for line in lines if line.startswith("train.optimizer.lr_rules.1.pattern")))
        assert (lines[pattern + 1] == f"    {rule}") if columns == 80 else lines[pattern].endswith(f"  {rule}")

    def test_json_leaves_out_what_a_side_lacks(self, loradetr: Command) -> None:
        backbone = "backbone: {kind: timm, name: tf_efficientnet_lite0, strides: [16, 32]}"
        write("mine.yaml", f"extends: deformable\nmodel: {{{backbone}}}\ntrain: {{optimizer: {{clip_norm: null}}}}\n")
        found = json.loads(printed(loradetr("config", "diff", "deformable", "mine.yaml", "--json")))
        assert (found["a"], found["b"]) == ("deformable", "mine.yaml")
        assert {"key": "train.optimizer.clip_norm", "a": 0.1, "b": None} in found["differences"]
        assert {"key": "model.backbone.strides", "b": [16, 32]} in found["differences"]
        assert {"key": "model.backbone.freeze_stem", "a": None} in found["differences"]
        assert all(row["key"].startswith(("model.backbone.", "train.optimizer.")) for row in found["differences"])

    def test_one_difference_between_a_preset_and_a_file(self, loradetr: Command) -> None:
        write("mine.yaml", "extends: deformable\ntrain: {epochs: 24}\n")
        out = printed(loradetr("config", "diff", "deformable", "mine.yaml"))
        assert out == "1 difference, deformable -> mine.yaml\ntrain.epochs  12 -> 24\n"

    def test_equal_settings(self, loradetr: Command, small_run: Path) -> None:
        write("same.yaml", "extends: deformable\n")
        out = printed(loradetr("config", "diff", "deformable", "same.yaml"))
        assert out == "no difference between deformable and same.yaml\n"
        assert "no difference" in printed(loradetr("config", "diff", small_run, small_run / "config.yaml"))
        assert json.loads(printed(loradetr("config", "diff", "deformable", "same.yaml", "--json")))["differences"] == []

    def test_a_run_differs_from_its_preset_by_what_was_found(self, loradetr: Command, small_run: Path) -> None:
        rows = json.loads(printed(loradetr("config", "diff", SMALL, small_run, "--json")))["differences"]
        assert [row["key"] for row in rows] == ["model.backbone.mean", "model.backbone.std", "data.path"]
