"""Options of ``train``: names of settings agree with the schema, and none is ignored beside ``--resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from lora_detr.cli import app
from lora_detr.cli.train import KEYS, OPTIONS
from lora_detr.recipe.branch_counts import BRANCH_KINDS, baselines
from lora_detr.recipe.run_config import RecomputedPart, RunConfig
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs import request, run
from lora_detr.runs.ending import Finished
from tests.cli.conftest import Command

TRAIN: Any = get_command(app).commands["train"]  # type: ignore[attr-defined]
PARAMETERS = {parameter.name: parameter for parameter in TRAIN.params}
ANNOTATIONS = {row.parameter.name: row.parameter.annotation for row in OPTIONS}


def field(key: str) -> FieldInfo:
    """Return the field of a setting."""
    section: type[BaseModel] = RunConfig
    *sections, name = key.split(".")
    for part in sections:
        inner = section.model_fields[part].annotation
        assert isinstance(inner, type)
        section = inner
    return section.model_fields[name]


@pytest.mark.parametrize("name", KEYS)
def test_an_option_that_names_a_setting_shows_what_the_schema_says(name: str) -> None:
    parameter, setting = PARAMETERS[name], field(KEYS[name])
    documented = " ".join((setting.description or "").replace("`", "").split())
    assert documented.startswith(parameter.help)
    assert parameter.help.endswith(".")
    if get_origin(setting.annotation) is Literal:
        assert parameter.metavar == "|".join(get_args(setting.annotation))
    kinds = (setting.annotation, *get_args(setting.annotation))
    kind = next((kind for kind in (int, float, bool) if kind in kinds), str)
    assert ANNOTATIONS[name] == (list[str] if get_origin(setting.annotation) is tuple else kind) | None


def test_choices_that_help_spells_out_are_all_there_are() -> None:
    assert PARAMETERS["branch_kind"].metavar == "|".join(BRANCH_KINDS)
    for text, known in (
        (PARAMETERS["baseline"].help, baselines()),
        (PARAMETERS["recompute"].help, get_args(RecomputedPart)),
    ):
        assert [name for name in known if name not in text] == []


def test_every_other_option_of_the_table_is_a_field_of_a_request() -> None:
    fields = request.Request.__dataclass_fields__
    assert [row.parameter.name for row in OPTIONS if not row.key and row.parameter.name not in fields] == []


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name not in ("resume", "help")])
def test_beside_resume_an_option_is_used_or_refused(
    name: str, loradetr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def launch(*arguments: object) -> bool:
        calls.append(arguments)
        return False

    def resume(folder: Path, changes: dict[str, object], display: object, overrides: list[str]) -> Finished:
        calls.append((folder, dict(changes), list(overrides)))
        return Finished(RunDirectory(folder).path, None)

    monkeypatch.setattr("lora_detr.processes.launch.launch_if_wanted", launch)
    monkeypatch.setattr(run, "resume", resume)
    parameter = PARAMETERS[name]
    value = [] if parameter.is_flag else ["train.lr=1" if parameter.opts[0] == "--set" else "1"]
    plain = [("auto", None, None), (tmp_path, {}, [])]
    assert loradetr("train", "--resume", tmp_path).code == 0
    assert calls == plain
    calls.clear()
    ended = loradetr("train", "--resume", tmp_path, parameter.opts[0], *value)
    if ended.code == 0:
        assert calls != plain, f"{parameter.opts[0]} is ignored"
    else:
        assert ended.code == 2
        assert plain[1] not in calls
        assert f"{parameter.opts[0]} cannot be given" in ended.err or "exclude each other" in ended.err
