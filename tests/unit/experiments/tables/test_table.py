"""The tables of the paper as data: every row resolves, and trains as many parameters as the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_detr.errors import ConfigError
from lora_detr.experiments.tables.results import parameters
from lora_detr.experiments.tables.table import (
    Scale,
    TableInfo,
    TableRow,
    TrainOptions,
    find_table,
    list_tables,
    read_table,
    tables_root,
)
from lora_detr.runs.request import resolve

TABLES = {path.stem for path in tables_root().glob("*.yaml")}
ROWS = [
    pytest.param(info, row, scale, id=f"{info.name}-{row.name}-{scale}")
    for info in list_tables()
    for row in info.table.rows
    for scale in row.scales
]
PUBLISHED = [
    case
    for case in ROWS
    if case.values[2] == "paper" and "parameters" in case.values[1].published and case.id != "table6-ms-detr-paper"
]

# Millions by which a count may differ from the published figure, which has one digit, rounded or cut off.
ROUNDED = 0.1


COUNTED: dict[tuple[str, ...], float] = {}


def counted(row: TableRow) -> float:
    """Return the parameters of a row in millions; several tables have the same rows."""
    arguments = tuple(row.options.arguments())
    if arguments not in COUNTED:
        COUNTED[arguments] = parameters(row, "paper")
    return COUNTED[arguments]


def test_the_tables_of_the_paper_are_there() -> None:
    assert {"table1", "table2", "diversity", "table5", "table6", "table7"} <= TABLES
    assert {info.name for info in list_tables()} == TABLES


@pytest.mark.parametrize(("info", "row", "scale"), ROWS)
def test_every_row_is_a_configuration(info: TableInfo, row: TableRow, scale: Scale) -> None:
    config = resolve(row.at(scale).request(Path("no-data"))).loaded.config
    paper = resolve(row.options.request(Path("no-data"))).loaded.config
    # The small preset differs in sizes, not in what the table is about.
    assert [branch.kind for branch in config.branches] == [branch.kind for branch in paper.branches]
    assert [branch.matcher for branch in config.branches] == [branch.matcher for branch in paper.branches]
    assert config.model.kind == paper.model.kind
    assert config.model.dac == paper.model.dac
    assert (config.model.hybrid is None) == (paper.model.hybrid is None)
    assert config.loss.primary.classification == paper.loss.primary.classification
    assert (config.model.num_queries < paper.model.num_queries) == (scale == "tiny")


def test_arguments_say_the_same_as_the_request() -> None:
    options = TrainOptions(
        baseline="deformable",
        branches=("ffn/topk:k=6,tau=0.3", "ffn/topk:k=2"),
        hybrid=6,
        dac=True,
        set={"train.epochs": 3, "model.backbone.name": "resnet18", "train.freeze": ["detector.backbone"]},
    )
    assert options.arguments() == [
        *("--baseline", "deformable", "--hybrid", "6"),
        *("--branch", "ffn/topk:k=6,tau=0.3", "--branch", "ffn/topk:k=2", "--dac"),
        *("--set", "train.epochs=3", "--set", "model.backbone.name=resnet18"),
        *("--set", 'train.freeze=["detector.backbone"]'),
    ]
    config = resolve(options.request(Path("no-data"), ["train.batch_size=5"])).loaded.config
    assert config.train.freeze == ("detector.backbone",)
    assert (config.train.epochs, config.train.batch_size, config.model.backbone.name) == (3, 5, "resnet18")
    assert [branch.matcher.k for branch in config.branches] == [6, 2]


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_a_table(tmp_path: Path) -> None:
    path = write(tmp_path, "title: Mine\nrows:\n  - {name: a, label: A, options: {baseline: deformable}}\n")
    info = find_table(str(path))
    assert (info.name, info.table.title, len(info.table.rows)) == ("mine", "Mine", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: Mine\nrows: []\n", "rows"),
        ("title: Mine\nrows:\n  - {name: a, label: A, options: {}}\n", "give baseline or preset"),
        (
            "title: Mine\nrows:\n  - {name: a, label: A, options: {baseline: deformable}, published: {mAP: 4}}\n",
            "unknown published figures: mAP",
        ),
        (
            "title: Mine\nrows:\n  - {name: a, label: A, options: {baseline: relation}}\n"
            "  - {name: a, label: B, options: {baseline: deformable}}\n",
            "rows of the same name: a",
        ),
        (
            "title: Mine\nanswers: [{name: x, branch: 0}]\n"
            "rows:\n  - {name: a, label: A, options: {baseline: deformable}}\n",
            "the first answer is the primary path's",
        ),
        ("title: Mine\nrows:\n  - {name: a, label: A, options: {bassline: deformable}}\n", "bassline"),
    ],
)
def test_a_faulty_table_is_refused_with_its_file(text: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_table(path)
    assert said in str(caught.value)


def test_unknown_tables_and_rows_are_named_with_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown table 'tabel1'.*table1"):
        find_table("tabel1")
    table = find_table("table2").table
    with pytest.raises(ConfigError, match="no such row at --scale tiny"):
        table.at("tiny", ["pp-24"])
    assert [row.name for row in table.at("paper", ["pp-24", "deformable"])] == ["deformable", "pp-24"]


def test_the_paper_contradicts_itself_on_ms_detr() -> None:
    (table6,) = find_table("table6").table.at("paper", ["ms-detr"])
    (table1,) = find_table("table1").table.at("paper", ["b1"])
    assert (table6.options, table6.published["parameters"]) == (table1.options, 53.8)
    assert table1.published["parameters"] == 53.6


@pytest.mark.parametrize(("info", "row", "scale"), PUBLISHED)
def test_parameters_are_those_of_the_paper(info: TableInfo, row: TableRow, scale: Scale) -> None:
    assert counted(row) == pytest.approx(row.published["parameters"], abs=ROUNDED)
