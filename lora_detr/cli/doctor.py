"""``loradetr doctor``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_detr.cli.choices import bad_data, data_format_option, data_set, device_option, how_to_verify, json_option
from lora_detr.cli.console import console
from lora_detr.cli.progress import show_log
from lora_detr.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LoraDetrError,
    VerificationError,
    counted,
    escape_controls,
    printable,
)
from lora_detr.json_value import json_text

if TYPE_CHECKING:
    from lora_detr.data.coco.audit import Audit
    from lora_detr.data.coco.report import ClassCount
    from lora_detr.data.coco.source import ReadAs
    from lora_detr.data.quality.detector_limits import DetectorLimits
    from lora_detr.doctor.checks import Check

DATA = "Data"
STYLES = {"ok": "green", "info": "cyan", "warning": "yellow", "FAILED": "red"}
SHOWN_PLACES = 3
LOOKED: dict[Literal["none", "decode", "hash"], str] = {
    "none": "annotations only; --verify decode reads every image too",
    "decode": "annotations, and every image read",
    "hash": "annotations, and every image compared with its hash",
}


def doctor(
    data: Annotated[
        Path | None, typer.Option(help="Data set to check (none).", metavar="PATH", rich_help_panel=DATA)
    ] = None,
    data_format: Annotated[str | None, data_format_option(rich_help_panel=DATA)] = None,
    verify: Annotated[
        str | None,
        typer.Option(help="Check image files too (decode).", metavar="none|decode|hash", rich_help_panel=DATA),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Treat doubtful data, and warnings, as invalid.", rich_help_panel=DATA)
    ] = False,
    on_bad_data: Annotated[
        str, typer.Option(help="Report invalid data, or skip it.", metavar="error|skip", rich_help_panel=DATA)
    ] = "error",
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Allow images outside their folder.", rich_help_panel=DATA)
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write all findings to this JSON file (none).", metavar="FILE", rich_help_panel=DATA),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Detector to compare with (deformable).", metavar="NAME", rich_help_panel=DATA),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(help="Write repaired annotation files here (none).", metavar="DIR", rich_help_panel=DATA),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Draw samples and histograms here (none).", metavar="DIR", rich_help_panel=DATA),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Run, checkpoint, stripped file or .pth to check (none).", metavar="MODEL")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Repeat a step that was not finite (none).", metavar="RUN|FILE")
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Processes of the connection check (2, or one per GPU).", min=1, metavar="N")
    ] = None,
    device: Annotated[str, device_option()] = "auto",
    as_json: Annotated[bool, json_option()] = False,
) -> None:
    """Check this machine; or a data set, a model, a failed step.

    Exit codes: 8, a check of the machine failed; 3, bad data (warnings count with --strict); 4, the model cannot be
    used; 0 otherwise.
    Example: loradetr doctor --data data/coco
    """
    from lora_detr.atomic_files import prepare_directory, write_file
    from lora_detr.processes.world import choose_device

    about_data = {"--verify": verify, "--strict": strict or None, "--report": report, "--preset": preset}
    about_data |= {"--fix": fix, "--pictures": pictures, "--data-format": data_format}
    _refuse_without_data(data, about_data)
    if preset is not None and model is not None:
        raise ConfigError("--preset and --model exclude each other", "the model has settings of its own")
    chosen_verify, policy, chosen = how_to_verify(verify or "decode"), bad_data(on_bad_data), choose_device(device)
    if report is not None:
        prepare_directory(report.parent)  # before the work, not after it
    if pictures is not None:
        prepare_directory(pictures)
    show_log(console(stderr=True))
    data = data_set(data)
    out = None if as_json else console()
    found: dict[str, object] = {}
    faults: list[LoraDetrError] = []
    if data is None and model is None and replay is None:
        from lora_detr.doctor.checks import installation_checks
        from lora_detr.doctor.self_test import computing_checks, process_count
        from lora_detr.records.environment import environment

        checks = chain(installation_checks(chosen), computing_checks(chosen, process_count(chosen, nproc)))
        shown = _show_checks(out, checks)
        found |= {"environment": environment(chosen), "machine": [check.to_json() for check in shown]}
        faults += _faults_of_machine(shown)
    if data is not None:
        from lora_detr.data.coco.audit import audit
        from lora_detr.data.coco.report import count_classes
        from lora_detr.data.coco.source import AUTO, ReadAs
        from lora_detr.data.layouts.registry import format_named
        from lora_detr.data.repair import refuse_existing
        from lora_detr.doctor.model_checks import limits_of_model

        if fix is not None:
            refuse_existing(fix)
        how, limits = ReadAs(format_named(data_format or AUTO)), limits_of_model(model, preset)
        options = {"strict": strict, "allow_outside": allow_outside}
        result = audit(data, verify=chosen_verify, on_bad_data=policy, how=how, limits=limits, **options)
        classes = [] if result.problems else count_classes(result.reports)
        about = {**result.to_json(), "classes": [each.to_json() for each in classes]}
        found["data"] = about
        if out is not None:
            _show_audit(out, result, classes, LOOKED[chosen_verify])
        if fix is not None:
            about["repaired"] = _repair(out, data, fix, how, allow_outside)
        if pictures is not None:
            about["pictures"] = _draw(out, result, limits, pictures)
        if report is not None:
            write_file(report, (json_text(found["data"], indent=1) + "\n").encode())
        faults += _faults_of_data(data, result, strict, report)
    if model is not None:
        from lora_detr.doctor.model_checks import model_checks

        shown = _show_checks(out, model_checks(model, chosen))
        found["model"] = [check.to_json() for check in shown]
        faults += [
            CheckpointError(f"{model}: cannot be used: the check of its {check.name} failed", check.remedy)
            for check in shown
            if check.state == "FAILED"
        ][:1]
    if replay is not None:
        from lora_detr.doctor.replay import replay as replay_step

        replayed = replay_step(replay, data=data, device=device)
        found["replay"] = replayed.to_json()
        if out is not None:
            for line in replayed.lines():
                out.print(line, soft_wrap=True)
    if as_json:
        sys.stdout.write(json_text(found) + "\n")
    for fault in faults[:1]:
        raise fault


def _refuse_without_data(data: Path | None, given: Mapping[str, object]) -> None:
    for option in (name for name, value in given.items() if value is not None and data is None):
        raise ConfigError(f"{option} needs --data", "add --data PATH")


def _faults_of_data(data: Path, result: Audit, strict: bool, report: Path | None) -> list[LoraDetrError]:
    if result.problems:
        count = counted(len(result.problems), "problem")
        listing = f"all of them are in {report}" if report is not None else "--report FILE keeps all of them"
        return [DataError(f"{data}: {count}", f"correct them and check again; {listing}")]
    warnings = sum(finding.severity == "warning" for finding in result.findings)
    if not strict or not warnings:
        return []
    return [DataError(f"{data}: {counted(warnings, 'warning')}", "correct the data, or leave --strict out")]


def _repair(out: Console | None, data: Path, output: Path, how: ReadAs, allow_outside: bool) -> dict[str, object]:
    from lora_detr.data.layouts.registry import find_splits
    from lora_detr.data.repair import repair

    done = repair(find_splits(data, how), output, allow_outside=allow_outside)
    if out is not None:
        for finding in done.findings:
            out.print(f"repaired: {finding.text}", soft_wrap=True)
        out.print(f"next: loradetr doctor --data {done.data}", soft_wrap=True)
    return {"data": str(done.data), "findings": [finding.to_json() for finding in done.findings]}


def _draw(out: Console | None, result: Audit, limits: DetectorLimits, folder: Path) -> list[str]:
    from lora_detr.doctor.pictures import draw_data

    paths = draw_data(result.splits, limits, folder)
    if out is not None:
        for path in paths:
            out.print(f"picture: {path}", soft_wrap=True)
    return [str(path) for path in paths]


def _show_checks(out: Console | None, checks: Iterable[Check]) -> list[Check]:
    """Print a line for each check as soon as it ends, and what to do below it."""
    shown = []
    for check in checks:
        shown.append(check)
        if out is None:
            continue
        found = escape_controls(f"{check.name:<15}{check.found}")
        line = Text.assemble((f"{check.state:<9}", STYLES[check.state]), found)
        out.print(line, soft_wrap=True)
        if check.remedy:
            out.print(f"{'':<24}{check.remedy}", soft_wrap=True)
    if out is not None and len(shown) > 1 and all(check.state == "ok" for check in shown):
        out.print(f"all {len(shown)} checks ok")
    return shown


def _faults_of_machine(checks: Sequence[Check]) -> list[LoraDetrError]:
    failed = [check.name for check in checks if check.state == "FAILED"]
    if not failed:
        return []
    return [
        VerificationError(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}", "the remedy of each is above"
        )
    ]


def _show_audit(out: Console, result: Audit, classes: Sequence[ClassCount], looked: str) -> None:
    from lora_detr.data.coco.report import SHOWN_PROBLEMS

    for split in result.reports:
        out.print(split.lines()[0], soft_wrap=True)  # the warnings say the rest
    for finding in result.findings:
        if finding.severity != "error":  # the problems are listed one by one
            head = (f"{finding.severity}[{finding.id}]: ", STYLES[finding.severity])
            out.print(Text.assemble(head, escape_controls(finding.text)), soft_wrap=True)
            for line in (*finding.places[:SHOWN_PLACES], finding.remedy):
                out.print(f"  {line}" if line else "", soft_wrap=True, end="\n" if line else "")
    for problem in result.problems[:SHOWN_PROBLEMS]:
        out.print(Text.assemble((f"error[{problem.code}]: ", STYLES["FAILED"]), problem.text), soft_wrap=True)
    if len(result.problems) > SHOWN_PROBLEMS:
        out.print(f"... and {len(result.problems) - SHOWN_PROBLEMS} more")
    if result.problems:
        return
    warnings = sum(finding.severity == "warning" for finding in result.findings)
    summary = f"no error found, {counted(warnings, 'warning')}" if warnings else "no problem found"
    out.print(f"{summary} ({looked})")
    table = Table("class", "id", box=None)
    for name in ("train", "val"):
        table.add_column(f"objects, {name}", justify="right")
    for each in classes:
        table.add_row(printable(each.name), str(each.id), f"{each.train:,}", f"{each.val:,}")
    out.print(table)
