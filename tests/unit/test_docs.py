"""Documentation names files, links and packages that exist."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import pytest

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
