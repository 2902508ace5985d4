"""Documentation names files, links and packages that exist."""

from __future__ import annotations

import re
import runpy
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_detr.branches import BranchConfig
from lora_detr.models import DetectorConfig
from lora_detr.models.backbones import BackboneConfig
from tests import configuration_page
from tests.conftest import REPOSITORY
from tests.contracts.unions import members
from tests.unit.test_imports import ROOMS

DOCS = REPOSITORY / "docs"
PAGES = sorted(
    [*(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "tests/README.md")), *DOCS.glob("*.md")]
)
LINKED = [*PAGES, REPOSITORY / "CHANGELOG.md", REPOSITORY / "benchmarks" / "README.md"]


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`([^`\s]+\.py)`", page.read_text(encoding="utf-8"))
    folders = (REPOSITORY, REPOSITORY / "lora_detr", DOCS)
    assert [path for path in named if not any((folder / path).is_file() for folder in folders)] == []


def anchors(page: Path) -> set[str]:
    """Return what may follow ``#`` in a link: GitHub joins the words of a heading, in lower case, by dashes."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            if not linked.exists() or (anchor and anchor not in anchors(linked)):
                broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", DOCS / "architecture.md"], ids=name_of)
def test_list_of_packages_has_the_order_of_imports(page: Path) -> None:
    (tree,) = re.findall(r"^```\nlora_detr/\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line.split() for line in tree.splitlines() if line.startswith(" ")]
    listed = [list(takewhile(lambda word: word.endswith(("/", ".py")), words)) for words in lines]
    rows = [{name.removesuffix("/").removesuffix(".py") for name in names} for names in listed]
    assert rows == [row for row in ROOMS if not row <= {"", "__main__"}]


def test_every_folder_of_tests_is_described() -> None:
    described = re.findall(
        r"^\| `(\w+)/` \|", (REPOSITORY / "tests" / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(described) == {path.parent.name for path in (REPOSITORY / "tests").glob("*/__init__.py")}


def test_page_of_settings_is_current() -> None:
    remedy = "run `python -m tests.configuration_page`"
    assert configuration_page.PAGE.read_text(encoding="utf-8") == configuration_page.page(), remedy


def test_page_of_settings_has_every_kind_of_every_union() -> None:
    text = configuration_page.page()
    for path, union in (("model", DetectorConfig), ("model.backbone", BackboneConfig), ("branches.N", BranchConfig)):
        for member in members(union):
            assert f"## `{path}` of kind `{member.model_fields['kind'].default}`\n" in text
    assert (
        "| `loss.hybrid.encoder.matcher.eps` | number (above 0) | `1e-06` |" in text
    )  # as it is there, not in its class
    assert "`train.optimizer.clip`" not in text  # read from earlier runs only


def files_of(navigation: Any) -> list[str]:
    """Return the pages that a site leads to, in order."""
    if isinstance(navigation, str):
        return [navigation]
    values = navigation.values() if isinstance(navigation, dict) else navigation
    return [path for value in values for path in files_of(value)]


def test_the_site_leads_to_every_page() -> None:
    listed = files_of(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(name_of(page) for page in LINKED)


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ('<a href="docs/there.html#part">', None),
        ('<a href="#here">', None),
        ('<a href="https://example.org/">', None),
        ('<img src="docs/there.html">', None),
        ('<a href="docs/nowhere.html">', "no such file"),
        ('<a href="docs">', "no such file"),
        ('<a href="docs/there.html#other">', "no such anchor"),
        ('<a href="#there">', "no such anchor"),
        ('<img src="nowhere.png">', "no such file"),
        ('<script src="https://example.org/a.js">', "is loaded from another host"),
        ('<link href="//example.org/a.css">', "is loaded from another host"),
    ],
)
def test_broken_links_of_a_site_are_found(link: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "there.html").write_text('<h1 id="part">', encoding="utf-8")
    (tmp_path / "index.html").write_text(f'<h1 id="here">{link}', encoding="utf-8")
    found = list(runpy.run_path(str(DOCS / "site" / "check.py"))["broken_links"](tmp_path))
    assert [line.rsplit(": ", 1)[1] for line in found] == ([] if fault is None else [fault])
