"""Everything that README.md and the pages that continue it show is run, in order, in one folder, on small data."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from lora_detr.cli import app
from lora_detr.config.presets import list_presets
from lora_detr.losses.criterion import Criterion
from lora_detr.runs.request import Request, resolve
from tests import huggingface_models
from tests.cli.conftest import Ended, commands_in
from tests.conftest import REPOSITORY
from tests.shown import FENCE, shown_in
from tests.small_runs import REDUCED, SMALL

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# In this order, so that each page finds the runs that it uses.
CHAIN = ("docs/own_data.md", "README.md", "docs/quick_start.md", "docs/presets.md", "docs/results.md")
ALL = "\n".join((REPOSITORY / name).read_text(encoding="utf-8") for name in CHAIN)

# What is added to `train`, so that each one takes a step of a small detector, on data whose ids are not COCO's.
SMALLER = ("--config", SMALL, "--num-classes", "auto", "--max-steps", 1)
# Another system stays what it is, and is cut down instead.
CUT_DOWN = (*(word for change in REDUCED for word in ("--set", change)), "--num-classes", "auto", "--max-steps", 1)
SMALLER_BESIDE = {
    "--resume": ("--max-steps", 2),
    "--weights": ("--max-steps", 1),
    "relation": CUT_DOWN,
    "hf:DIR": ("--max-steps", 1, "--workers", 0),
}
# What needs `transformers`, and what follows from it.
OF_TRANSFORMERS = ("hf:DIR", "runs/DIR-1")
HAS_TRANSFORMERS = find_spec("transformers") is not None

# What a text writes for a value of the user's.
PLACEHOLDERS = {"N": "1"}


STEPS = tuple(shown_in(ALL))


def shown(*kinds: str) -> list[str]:
    return [step.text for step in STEPS if step.kind in kinds]


COMMANDS, PYTHON, CODE = shown("command"), shown("python"), shown("code")


@dataclass(frozen=True)
class Visited:
    """The folder in which everything was run, and how each thing ended, by its text."""

    folder: Path
    ended: dict[str, Ended]


@pytest.fixture(scope="module")
def visited(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Visited:
    """Run all commands and all of the Python code, in order."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_data").symlink_to(shapes_tiny, target_is_directory=True)
    (folder / "data").mkdir()
    (folder / "data" / "coco").symlink_to(shapes_tiny, target_is_directory=True)
    write_cells(folder, shapes_tiny)
    for part in ("train", "annotations/instances_train.json"):  # a data set without a validation split
        (folder / "PATH" / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / "PATH" / part).symlink_to(shapes_tiny / part)
    (folder / "cells-settings.yaml").write_text("extends: deformable\ntrain: {epochs: 4}\n")
    if HAS_TRANSFORMERS:
        huggingface_models.save("rt_detr", folder / "DIR")
    ended = {}
    with commands_in(folder, XDG_CACHE_HOME=str(folder / "cache")) as loradetr:
        for step in STEPS:
            if step.kind == "command":
                ended[step.text] = loradetr(*made_small(step.text))
            elif step.kind == "python":
                ended[step.text] = executed(step.text)
    return Visited(folder, ended)


def write_cells(folder: Path, shapes: Path) -> None:
    """Write ``cells.yaml`` as the page has it, and its files: photos and labels of other classes than the shapes."""
    (folder / "cells.yaml").write_text(shown("yaml")[0])
    (folder / "labels").mkdir()
    (folder / "photos").mkdir()
    for split in ("train", "val"):
        content: dict[str, Any] = json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())
        content["categories"] = [{**row, "name": f"{row['name']}-cell"} for row in content["categories"]]
        (folder / "labels" / f"{split}.json").write_text(json.dumps(content))
        for path in (shapes / split).iterdir():
            shutil.copy(path, folder / "photos")
    shutil.copy(next((shapes / "val").iterdir()), folder / "photos" / "first.png")


def made_small(command: str) -> list[object]:
    """Return the words of a command; a training gets the options that make it small."""
    words = shlex.split(command)[1:]
    if words[0] != "train":
        return [*words]
    return [*words, *next((few for option, few in SMALLER_BESIDE.items() if option in words), SMALLER)]


def executed(code: str) -> Ended:
    """Run Python code; a detector of one step is sure of nothing, so any score will do."""
    code, count = re.subn(r"predict\((\"[^\"]+\")\)", r"predict(\1, score=0)", code)
    assert count == 1
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    except Exception:
        return Ended(1, out.getvalue(), traceback.format_exc())
    return Ended(0, out.getvalue(), "")


@pytest.mark.parametrize("text", [*COMMANDS, *PYTHON], ids=lambda text: str(text).splitlines()[0])
def test_everything_that_can_be_run_works(text: str, visited: Visited) -> None:
    if not HAS_TRANSFORMERS and any(word in text for word in OF_TRANSFORMERS):
        pytest.skip("transformers is not installed")
    ended = visited.ended[text]
    assert ended.err == ""
    assert ended.code == 0
    assert ended.out.strip()


def test_nothing_is_left_out(visited: Visited) -> None:
    # Counted in the text as it is, so that a command which the reading above misses shows.
    assert len(re.findall(r"\bloradetr\s+[a-z]", ALL)) == len(COMMANDS) + len(shown("mention"))
    assert ALL.count("```python\n") == len(PYTHON)
    assert visited.ended.keys() == {*COMMANDS, *PYTHON}
    assert {step.kind for step in STEPS} == {"command", "mention", "make", "python", "yaml", "text", "code"}
    for text in shown("mention"):
        assert text.split()[1] in subcommands(), text


def test_the_run_directory_holds_what_is_said(visited: Visited) -> None:
    run = visited.folder / "runs" / "deformable-lora3-1"
    names = ("config.yaml", "metrics.jsonl", "results.csv", "results.png", "eval", "strip_report.json")
    assert [name for name in names if not (run / name).exists()] == []
    assert re.search(r"rank: \d+ +# ", (run / "config.yaml").read_text())  # with its origin
    terms = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["terms"]
    assert {key.split("/")[0] for key in terms} >= {"primary", "branch0", "branch1", "branch2"}
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert saved == ["step-00000001", "step-00000002"]  # the second one by --resume
    with Image.open(run / "results.png") as image:
        image.verify()


def test_own_data_keeps_its_ids_and_other_classes_start_anew(visited: Visited) -> None:
    labels = json.loads((visited.folder / "labels" / "val.json").read_text())
    document = json.loads((visited.folder / "predictions" / "predictions.json").read_text())
    assert {(row["id"], row["name"]) for row in document["categories"]} == {
        (row["id"], row["name"]) for row in labels["categories"]
    }
    photos = sorted(path.name for path in (visited.folder / "photos").iterdir())
    assert sorted(row["file_name"] for row in document["images"]) == photos
    assert {path.name for path in (visited.folder / "predictions").iterdir()} == {*photos, "predictions.json"}
    (fine_tuning,) = [visited.ended[command] for command in COMMANDS if "--weights" in command]
    assert re.search(r"^weights +\d+ of \d+ tensors from \S+lora3-1 ", fine_tuning.out, re.MULTILINE)
    reinitialised = re.findall(r"re-initialised: (\S+) .*'?circle-cell", fine_tuning.out)
    assert reinitialised == ["detector.heads.classes"]


def test_the_python_code_finds_and_draws(visited: Visited) -> None:
    (code,) = PYTHON
    lines = visited.ended[code].out.splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"\S+-cell [01]\.\d\d \[.*\]", line)] == []
    with Image.open(visited.folder / "drawn.png") as drawn, Image.open(visited.folder / "photos/first.png") as first:
        assert drawn.format == "PNG"
        assert drawn.width / drawn.height == pytest.approx(first.width / first.height, rel=0.01)  # small ones grow


def test_the_criterion_takes_what_the_text_gives_it() -> None:
    (call,) = [code for code in CODE if code.startswith("Criterion(")]
    signature = inspect.signature(Criterion)
    bound = eval(call, {"Criterion": signature.bind, "num_layers": 2, "config": None, "MyMatcher": object})
    assert bound.arguments.keys() == {"num_layers", "config", "branch_names", "branch_matchers"}


@pytest.mark.parametrize("command", shown("make"))
def test_make_would_run_what_is_said(command: str, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    environment = tmp_path / "environment"
    line = [*shlex.split(command), "--dry-run", f"VENV={environment}"]
    # These tests may be run by make itself, which tells its children how it was called.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(line, cwd=REPOSITORY, env=inherited, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    *installing, last = done.stdout.splitlines()
    assert any("pip install" in step for step in installing)
    runs = {
        "make demo": f"{environment}/bin/loradetr demo",
        "make test": f"{environment}/bin/python -m pytest",
        "make docs": f"{environment}/bin/python docs/site/check.py",
    }
    assert runs[command] in last
    assert not environment.exists()


def subcommands() -> dict[str, Any]:
    commands: dict[str, Any] = dict(get_command(app).commands)  # type: ignore[attr-defined]
    nested = {name: group.commands for name, group in commands.items() if hasattr(group, "commands")}
    return commands | {f"{name} {inner}": command for name, group in nested.items() for inner, command in group.items()}


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


def test_options_that_are_mentioned_exist() -> None:
    known = {"--help"}.union(*(options_of(command) for command in subcommands().values()))
    mentioned = {word for code in CODE for word in code.split() if word.startswith("--")}
    assert len(mentioned) > 5
    assert mentioned - known == set()


def test_options_without_a_command_are_taken_by_train() -> None:
    train, presets = subcommands()["train"], {preset.path.stem for preset in list_presets()}
    taken = 0
    for code in CODE:
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(code)]
        if words[0] in presets:
            words = ["--preset", *words]
        options = {word for word in words if word.startswith("--")}
        if not words[0].startswith("--") or len(words) == 1 or not options <= options_of(train):
            continue
        values = train.make_context("train", words).params
        branches, overrides = values["branches"] or (), values["overrides"] or ()
        preset = values["preset"] or "deformable-lora3"
        resolve(Request(preset, None, values["aux"], None, branches, data=Path("my_data"), overrides=overrides))
        taken += 1
    assert taken > 8


def test_links_and_images_lead_somewhere() -> None:
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", README)]
    local = [target for target in targets if target and not target.startswith(("http:", "https:"))]
    assert len(local) > 3
    assert [target for target in local if not (REPOSITORY / target).exists()] == []


def names_of(line: str) -> Iterator[str]:
    """Give the folders and modules that a line of the tree begins with; what follows describes them."""
    return takewhile(lambda word: word.endswith(("/", ".py")), line.split())


def test_the_list_of_folders_is_true() -> None:
    (tree,) = [text for _, text in FENCE.findall(README) if text.startswith("lora_detr/\n")]
    lines = tree.splitlines()
    paths = [("lora_detr/" if line.startswith(" ") else "") + name for line in lines for name in names_of(line)]
    assert len(paths) > len(lines)
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
