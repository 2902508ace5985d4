"""The pages for those who extend the package: their code works as written and changes at most two existing lines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_detr.runs.request import Request, resolve
from tests.conftest import REPOSITORY
from tests.small_runs import REDUCED

DOCS = REPOSITORY / "docs"
# A fourth level of 1 x 1 is too small for group norm at width 32.
SMALL = (*REDUCED, "model.levels=3")
# Page, branches as `--branch` takes them, options besides, and the kinds of detector, branch and matcher to be built.
PAGES: list[tuple[str, list[str], dict[str, str], list[str]]] = [
    ("matcher", ["nearest:k=3"], {"preset": "deformable-tiny"}, ["deformable", "lora", "nearest"]),
    ("branch", ["scale/topk:k=3"], {"preset": "deformable-tiny"}, ["deformable", "scale", "topk"]),
    ("detector", ["topk:k=3"], {"baseline": "fused"}, ["fused", "lora", "topk"]),
]
# Resolves as `train` does, stores and reads the settings again, and runs one step forward and backward. One process for
# all pages, which spends its time on imports.
STEP = """
import json, sys, traceback
from pathlib import Path

import torch

import lora_detr
from lora_detr.config.dump import dump_config
from lora_detr.config.load import load_config
from lora_detr.losses.normaliser import Normaliser
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs.request import Request, resolve
from lora_detr.structures import Images, PaddedTargets, Target

assert Path(lora_detr.__file__).parent == Path("lora_detr").resolve()
images = Images(torch.rand(1, 3, 96, 128), torch.zeros(1, 96, 128).bool(), torch.tensor([[96, 128]]))
targets = [Target(torch.full((1, 4), 0.4), torch.tensor([1]), 1, (96, 128))]

def step(given):
    config = resolve(Request(data=Path("data"), **given)).loaded.config
    Path("stored.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(RunConfig, files=[Path("stored.yaml")]).config == config
    model = config.build_model(3, load_weights=False).train()
    output, branches = model(images, targets)
    report = config.build_criterion()(output, branches, PaddedTargets.from_targets(targets), Normaliser(1))
    report.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    return [config.model.kind, config.branches[0].kind, config.branches[0].matcher.kind]

found = {}
for page, given in json.loads(sys.argv[1]).items():
    try:
        found[page] = step(given)
    except Exception:
        found[page] = traceback.format_exc()
print(json.dumps(found))
"""


def blocks(page: str, language: str) -> dict[str, str]:
    """Return path -> content of the blocks of a language that stand below the name of a file."""
    text = (DOCS / f"adding_a_{page}.md").read_text(encoding="utf-8")
    found = re.findall(rf"^\*\*(\S+)\*\* \([^\n]*\)\n\n```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return dict(found)


def edited(text: str, diff: str) -> str:
    """Apply the hunks of a diff; each must fit in exactly one place."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if not line.startswith("+"))
        assert text.count(old) == 1, old
        text = text.replace(old, "".join(line[1:] for line in lines if not line.startswith("-")))
    return text


def existing_and_new_lines(old: str, new: str) -> tuple[int, int]:
    """Return how many existing lines were changed or removed, and how many lines were added."""
    steps = SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False).get_opcodes()
    existing = sum(i2 - i1 for tag, i1, i2, _, _ in steps if tag != "equal")
    return existing, len(new.splitlines()) - len(old.splitlines())


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a step gave for each page, in a copy of the package to which all pages are applied."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("lora_detr", "configs"):
        shutil.copytree(REPOSITORY / folder, copy / folder)
    for page, *_ in PAGES:
        for path, text in (blocks(page, "python") | blocks(page, "yaml")).items():
            assert not (copy / path).exists()
            (copy / path).write_text(text, encoding="utf-8")
        for path, diff in blocks(page, "diff").items():
            (copy / path).write_text(edited((copy / path).read_text(encoding="utf-8"), diff), encoding="utf-8")
    given = {page: {**options, "overrides": SMALL, "branches": names} for page, names, options, _ in PAGES}
    done = subprocess.run(
        [sys.executable, "-c", STEP, json.dumps(given)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("page", "kinds"), [(page, kinds) for page, _, _, kinds in PAGES], ids=[p[0] for p in PAGES])
def test_steps_of_a_page_give_a_kind_that_trains(page: str, kinds: list[str], steps: dict[str, Any]) -> None:
    assert steps[page] == kinds


@pytest.mark.parametrize("page", [page[0] for page in PAGES])
def test_steps_of_a_page_change_at_most_two_existing_lines(page: str) -> None:
    """Beside them there is one new line, the import; a new line in place of a changed one is as good."""
    existing, new = 0, 0
    for path, diff in blocks(page, "diff").items():
        before = (REPOSITORY / path).read_text(encoding="utf-8")
        counts = existing_and_new_lines(before, edited(before, diff))
        existing, new = existing + counts[0], new + counts[1]
    assert existing <= 2
    assert new >= 1 and 2 <= existing + new <= 3


@pytest.mark.parametrize(("page", "branches", "options", "kinds"), PAGES[:2], ids=[page[0] for page in PAGES[:2]])
def test_the_same_file_works_in_an_installed_package(
    page: str,
    branches: list[str],
    options: dict[str, Any],
    kinds: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ((path, code),) = blocks(page, "python").items()
    (toml,) = blocks(page, "toml").values()
    package, metadata = tmp_path / "own_kinds", tmp_path / "own_kinds-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / Path(path).name).write_text(code, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-kinds\nVersion: 1.0\n", encoding="utf-8")
    groups = tomllib.loads(toml)["project"]["entry-points"].items()
    rows = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
    (metadata / "entry_points.txt").write_text("".join(rows), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    request = Request(**options, data=Path("data"), overrides=SMALL, branches=branches)
    try:
        config = resolve(request).loaded.config
        assert [config.model.kind, config.branches[0].kind, config.branches[0].matcher.kind] == kinds
        assert len(config.build_model(3, load_weights=False).branches) == 1
        config.build_criterion()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "own_kinds"]:
            del sys.modules[name]


def test_training_from_python_works_as_written(
    shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a small size: the overrides are the one line that is not the page's."""
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    line = 'overrides = ["data.num_classes=auto", "train.epochs=24"]\n'
    assert line in code
    small = ["data.num_classes=auto", *SMALL, "train.schedule.drop_epochs=[]", "train.max_steps=2"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cells").symlink_to(shapes_tiny, target_is_directory=True)
    Image.new("RGB", (80, 60)).save("cells.jpg")
    exec(code.replace(line, f"overrides = {small}\n"), {})
    assert (tmp_path / "runs" / "cells" / "config.yaml").is_file()
    assert "CocoMetrics" in capsys.readouterr().out
