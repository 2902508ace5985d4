"""Every command that a page of documentation shows is run on small data, or at least read as the command line reads it.

README and the pages that continue it are run in ``test_readme.py``, the pages for those who extend the package in
``tests/unit/test_adding_pages.py``. Reports of studies (``docs/evidence/``) record what was run, with settings of then.
"""

from __future__ import annotations

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from lora_detr.cli import app
from lora_detr.cli.choices import fill_in_values
from lora_detr.experiments.tables.table import find_table
from lora_detr.runs.request import Request, resolve
from tests.cli.conftest import Ended, commands_in
from tests.cli.test_readme import COMMANDS, CUT_DOWN, subcommands
from tests.conftest import REPOSITORY
from tests.shown import shown_in

KEYS: dict[str, str] = import_module("lora_detr.cli.train").KEYS  # in its package, the name is that of the function
EXTENDING = {f"adding_a_{what}.md" for what in ("matcher", "branch", "detector")}
PAGES = [
    *(path for path in sorted((REPOSITORY / "docs").glob("*.md")) if path.name not in EXTENDING),
    *(REPOSITORY / path for path in ("README.md", "CONTRIBUTING.md", "tests/README.md", "benchmarks/README.md")),
]
STEPS = list(dict.fromkeys(step for page in PAGES for step in shown_in(page.read_text(encoding="utf-8"))))

# What is read and not run, and why. All the rest of the blocks is run.
ONLY_READ = {
    r"ablate (?!list)|ablations/": "hours, or what hours have left; tests/unit/experiments/tables resolves every row",
    r"official": "a file of the authors with COCO's classes; tests/cli/test_convert.py has small ones",
    r"--gpus|torchrun": "several GPUs or machines; tests/cli/test_ranks.py runs processes on the CPU",
    r"export |\.onnx": "seconds, and a package that may be missing; tests/cli/test_export.py runs the three",
    r"--data more": "needs a run, and other data beside its own; tests/unit/runs/test_data_change.py has both",
}
# What a text writes for a value of the user's.
PLACEHOLDERS = {"COMMAND": "doctor", "RUN": "runs/a", "PRESET": "deformable", "SEED": "0", "i": "0"}


def words_of(command: str) -> list[str]:
    """Return the words behind the program, and without what the shell would do."""
    arguments = re.sub(r"^torchrun .* -m lora_detr |^loradetr ", "", command.split(";")[0])
    return fill_in_values([PLACEHOLDERS.get(word, word) for word in shlex.split(arguments.split(" > ")[0])])


def read(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Return path and values of a command as the command line reads them; fail as it does."""
    command: Any = get_command(app)
    context, path = None, []
    while hasattr(command, "commands"):
        context = command.make_context("loradetr" if context is None else path[-1], words, parent=context)
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        path.append(name)
    return " ".join(path), command.make_context(path[-1], list(words), parent=context).params


MENTIONED = {f"loradetr {name}" for name in subcommands()}
READ = [
    step.text
    for step in STEPS
    if (step.kind == "command" and step.text not in MENTIONED) or "-m lora_detr " in step.text
]
RUN = [
    step.text
    for step in STEPS
    if step.kind == "command" and step.block and step.text not in COMMANDS
    if not any(re.search(pattern, step.text) for pattern in ONLY_READ)
]


@pytest.mark.parametrize("command", READ)
def test_commands_are_read(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, values = read(words_of(command))
    given = {key: value for key, value in values.items() if value not in (None, (), [], False)}
    fields = {key: given[key] for key in Request.__dataclass_fields__ if key in given}
    from_files = "weights" in given or "resume" in given or str(given.get("baseline", "")).startswith("hf:")
    if name == "train" and not from_files and fields.get("baseline") != "fused":
        resolve(Request(**fields, named={key: given[option] for option, key in KEYS.items() if option in given}))
    if name == "ablate run":
        assert find_table(given["table"]).table.at(given["scale"], [*filter(None, given.get("rows", "").split(","))])


@pytest.fixture(scope="module")
def ended(shapes_tiny: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Run the commands in order, in a folder with what they ask for; a training takes no step but that of a dry run."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "my_data").symlink_to(shapes_tiny, target_is_directory=True)
    (folder / "data").mkdir()
    (folder / "data" / "coco").symlink_to(shapes_tiny, target_is_directory=True)
    for run in ("a", "b", "c"):
        shutil.copytree(small_run, folder / "runs" / run)
    (folder / "their_run").symlink_to(small_run, target_is_directory=True)
    with commands_in(folder, XDG_CACHE_HOME=str(folder / "cache")) as loradetr:
        return {command: loradetr(*made_small(words_of(command))) for command in RUN}


def made_small(words: list[str]) -> list[str]:
    """Return the words of a command; a training becomes a dry run of a small detector, a resume gets an epoch to do."""
    if words[0] != "train" or "--launcher" in words:
        return words
    return [*words, "--epochs", "3"] if "--resume" in words else [*words, *map(str, CUT_DOWN), "--dry-run"]


@pytest.mark.parametrize("command", RUN)
def test_commands_of_blocks_are_run(command: str, ended: dict[str, Ended]) -> None:
    assert ended[command].code == 0, ended[command].err
    assert ended[command].out.strip()


def test_what_is_only_read_is_known() -> None:
    blocks = {step.text for step in STEPS if step.block and step.kind in ("command", "script")}
    left = [text for text in blocks if text not in {*RUN, *COMMANDS} and not text.startswith("python ")]
    assert left
    assert [text for text in left if not any(re.search(pattern, text) for pattern in ONLY_READ)] == []
    assert [pattern for pattern in ONLY_READ if not any(re.search(pattern, text) for text in left)] == []


@pytest.mark.parametrize("command", [step.text for step in STEPS if re.match(r"python (-m )?\w+[./]\w", step.text)])
def test_scripts_exist_and_have_the_options(command: str) -> None:
    script, *options = [word for word in shlex.split(command.split(";")[0])[1:] if word != "-m"]
    path = REPOSITORY / (script if script.endswith(".py") else script.replace(".", "/"))
    sources = [*path.parent.glob("*.py")] if path.suffix else [*path.glob("*.py"), path.with_suffix(".py")]
    assert path.is_dir() or path.with_suffix(".py").is_file()
    code = "".join(source.read_text(encoding="utf-8") for source in sources if source.is_file())
    assert [word for word in options if word.startswith("--") and f'"{word}"' not in code] == []


@pytest.mark.parametrize("command", [step.text for step in STEPS if step.kind == "make"])
def test_targets_and_variables_of_make_exist(command: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for word in shlex.split(command)[1:]:
        name, is_variable, _ = word.partition("=")
        assert (f"$({name})" in makefile or f"$(if $({name})" in makefile) if is_variable else f"\n{name}:" in makefile
