"""``loradetr ablate``: the paper's tables, and others of their kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as Grid

from lora_detr.cli.choices import device_option, one_of
from lora_detr.cli.console import console
from lora_detr.cli.help_screen import Group
from lora_detr.errors import ConfigError

if TYPE_CHECKING:
    from lora_detr.experiments.tables.results import RowResult
    from lora_detr.experiments.tables.study import Study
    from lora_detr.experiments.tables.table import Scale, TableInfo, TableRow

ROOT = Path("runs/ablations")
WHAT, HOW = "What is run", "How"
ROUNDS = 7


class _TableIsRun(Group):
    """Takes ``ablate TABLE`` for ``ablate run TABLE``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_TableIsRun,
    help="Run the paper's tables and report them beside the published figures.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def list_() -> None:
    """List the tables.

    Example: loradetr ablate list
    """
    from lora_detr.experiments.tables.table import list_tables

    grid = Grid("table", "rows", "what", box=None)
    for info in list_tables():
        grid.add_row(info.name, str(len(info.table.rows)), info.table.title)
    console().print(grid)


@app.command("run")
def run(
    table: Annotated[str, typer.Argument(help="From loradetr ablate list, or a YAML file.", metavar="TABLE")],
    scale: Annotated[
        str, typer.Option(help="The paper's presets, or small ones.", metavar="paper|tiny", rich_help_panel=WHAT)
    ] = "paper",
    data: Annotated[
        Path | None, typer.Option(help="COCO folder or YAML (data/coco).", metavar="PATH", rich_help_panel=WHAT)
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds to run each row with.", metavar="0,1,2", rich_help_panel=WHAT)
    ] = "0",
    rows: Annotated[
        str | None, typer.Option(help="Rows to run (all).", metavar="NAME,...", rich_help_panel=WHAT)
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(help="Stop each run at this step (its epochs).", metavar="N", min=1, rich_help_panel=WHAT),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(help="Evaluate every N epochs (the preset's).", metavar="N", min=1, rich_help_panel=WHAT),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting of all runs; repeatable.", metavar="KEY=VALUE", rich_help_panel=WHAT),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "-o", help="Folder of all runs (runs/ablations/TABLE).", metavar="DIR", rich_help_panel=HOW
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs in parallel (1, or one per GPU).", metavar="N", rich_help_panel=HOW)
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs per run.", metavar="N", min=1, rich_help_panel=HOW)] = 1,
    device: Annotated[str, device_option(rich_help_panel=HOW)] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes that load images (the preset's).", metavar="N", rich_help_panel=HOW)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Timed steps per row (7; table6 only).", metavar="N", min=1, rich_help_panel=HOW)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print parameter counts; needs no data.", rich_help_panel=HOW)
    ] = False,
) -> None:
    """Train and evaluate every row with every seed, then report.

    Finished runs are kept: the same command resumes.
    Example: loradetr ablate run table1 --scale tiny --data my_data --seeds 0,1,2 --max-steps 500
    """
    from lora_detr.experiments.tables.table import find_table

    out = console()
    info = find_table(table)
    size = _scale(scale)
    chosen = tuple(info.table.at(size, _names(rows)))
    if dry_run:
        _show_parameters(out, info, size, chosen)
        return
    folder = output_dir or ROOT / (info.name if scale == "paper" else f"{info.name}-{scale}")
    if info.table.measures == "cost":
        given = {"--data": data, "--max-steps": max_steps, "--eval-every": eval_every, "--set": set_, "--jobs": jobs}
        _refuse_beside_cost({**given, "--seeds": None if seeds == "0" else seeds, "--workers": workers})
        _measure_cost(out, info, size, chosen, device, rounds or ROUNDS, folder)
        return
    if rounds is not None:
        raise ConfigError(f"--rounds: table {info.name} is trained, not timed", "leave it out")
    from lora_detr.experiments.tables.runner import Runner, refuse_failures
    from lora_detr.experiments.tables.study import Settings, Study

    settings = Settings(size, _data(data, scale), max_steps, eval_every, tuple(set_ or ()))
    study = Study(info, settings, chosen, _seeds(seeds), folder)
    study.record()
    for reason in settings.scaled_down():
        out.print(f"not comparable with published figures: {reason}", soft_wrap=True)
    places, extra = _places(jobs, gpus, device, workers)
    out.print(f"{len(study.runs)} runs, {len(places)} at a time, in {folder}", soft_wrap=True)
    outcomes = Runner(study, places, extra, lambda text: out.print(text, soft_wrap=True)).run()
    _report(out, study)
    refuse_failures(outcomes, study)


@app.command("report")
def report(
    where: Annotated[str, typer.Argument(help="Table, or the folder of its runs.", metavar="TABLE|DIR")],
    against: Annotated[
        str | None, typer.Option(help="Row to compare with (the table's); only shown.", metavar="ROW")
    ] = None,
) -> None:
    """Report the results of a table, finished or not.

    Example: loradetr ablate report runs/ablations/table1-tiny
    """
    from lora_detr.experiments.tables.study import read_study

    out = console()
    study = read_study(_folder(where))
    if against is None:
        _report(out, study)
    else:
        _show_results(out, study.compared_with(against))


def _refuse_beside_cost(options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None and value != []]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: this table times steps on made-up images and trains nothing", "leave it out"
        )


def _measure_cost(
    out: Console, info: TableInfo, scale: Scale, rows: tuple[TableRow, ...], device: str, rounds: int, folder: Path
) -> None:
    import shlex
    import sys

    from lora_detr.experiments.cost.cost import CostStudy, cost_table, measure, usual_inputs, write_cost
    from lora_detr.processes.world import visible_gpus

    chosen = ("cuda" if visible_gpus() else "cpu") if device == "auto" else device
    study = CostStudy(info, scale, rows, usual_inputs(scale, chosen), rounds)
    costs = measure(study, lambda text: out.print(text, soft_wrap=True))
    _show_cells(out, info.table.title, *cost_table(study, costs))
    for path in write_cost(study, costs, folder, shlex.join(["loradetr", *sys.argv[1:]])):
        out.print(f"wrote {path}", soft_wrap=True)


def _show_parameters(out: Console, info: TableInfo, scale: Scale, rows: tuple[TableRow, ...]) -> None:
    from lora_detr.experiments.tables.results import COCO_CLASSES, parameters

    grid = Grid("row", "what", box=None)
    for head in ("trained parameters", "published"):
        grid.add_column(head, justify="right")
    for row in rows:
        said = row.published.get("parameters")
        counted = parameters(row, scale)
        grid.add_row(row.name, row.label, f"{counted:.2f} M", "-" if said is None else f"{said:.1f} M")
    out.print(info.table.title)
    out.print(grid)
    small = "" if scale == "paper" else "; small presets, so not comparable with the published"
    out.print(f"with {COCO_CLASSES} classes as for COCO{small}")


def _report(out: Console, study: Study) -> None:
    """Show what is done of a study, and write its report."""
    from lora_detr.experiments.tables.report import write_report

    for path in write_report(study, _show_results(out, study)):
        out.print(f"wrote {path}", soft_wrap=True)


def _show_results(out: Console, study: Study) -> list[RowResult]:
    from lora_detr.experiments.tables.report import accuracy_table
    from lora_detr.experiments.tables.results import read_results

    results = read_results(study)
    _show_cells(out, study.info.table.title, *accuracy_table(study, results, brief=True))
    return results


def _show_cells(out: Console, title: str, head: list[str], cells: list[list[str]]) -> None:
    grid = Grid(box=None)
    for index, name in enumerate(head):
        grid.add_column(name.replace("*", ""), justify="left" if index == 0 else "right")
    for row in cells:
        grid.add_row(*row)
    out.print(title)
    out.print(grid)


def _scale(text: str) -> Scale:
    from lora_detr.experiments.tables.table import SCALES

    return one_of("--scale", text, SCALES, "tiny takes presets that fit a CPU")


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds {text}: expected whole numbers with commas between", "for example 0,1,2") from None
    if min(seeds) < 0:
        raise ConfigError(f"--seeds {text}: expected 0 or more", "for example 0,1,2")
    return seeds


def _data(path: Path | None, scale: str) -> Path:
    """Return where the data is: as told, COCO where it usually is, or for small presets the generated set."""
    from lora_detr.data.coco.layout import COCO_FOLDER
    from lora_detr.data.synthetic.sets import resolve_generated

    if path is None:
        if COCO_FOLDER.is_dir():
            path = COCO_FOLDER
        elif scale == "tiny":
            path = Path("shapes")
        else:
            raise ConfigError(
                f"no --data and no {COCO_FOLDER}", "give --data DIR; --dry-run needs none, --scale tiny draws its own"
            )
    path = resolve_generated(path)
    if not path.exists():
        raise ConfigError(f"--data {path}: does not exist", "give a COCO folder, or a YAML file of paths")
    return path.resolve()


def _places(jobs: int | None, gpus: int, device: str, workers: int | None) -> tuple[list[Any], list[str]]:
    """Return the environment of each training at a time, and what its command line gets besides."""
    import os

    from lora_detr.experiments.tables.runner import slots
    from lora_detr.processes.world import visible_gpus

    visible = 0 if device == "cpu" else visible_gpus()
    extra = ["--device", device] if device != "auto" else []
    extra += ["--gpus", str(gpus)] if visible else []
    extra += [] if workers is None else ["--workers", str(workers)]
    return slots(jobs, gpus, visible, os.cpu_count() or 1), extra


def _folder(where: str) -> Path:
    """Return the folder that a table's name, or a path, means."""
    found = [path for path in (Path(where), ROOT / where, ROOT / f"{where}-tiny") if path.is_dir()]
    if len(found) == 1 or (found and found[0] == Path(where)):
        return found[0]
    if not found:
        raise ConfigError(f"ablate report {where}: no such folder, and none in {ROOT}", "run the table first")
    raise ConfigError(f"ablate report {where}: {', '.join(map(str, found))}", "give one of these folders")
