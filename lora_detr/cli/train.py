"""``loradetr train``."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_detr.cli.console import console
from lora_detr.cli.option_table import option, setting, takes
from lora_detr.cli.progress import ConsoleDisplay, show_log
from lora_detr.cli.streams import excuse_lost_output
from lora_detr.errors import ConfigError
from lora_detr.processes.process import may_be_restarted, restarts_share_store
from lora_detr.records.display import figure

# What most runs need stands in the panel that typer prints first, with --help; it is the one without a name of its own.
COMMON, MODEL, DATA, OPTIMISATION, RUN = "", "Model", "Data", "Optimisation", "Run"
run_option = functools.partial(typer.Option, rich_help_panel=RUN)

# Options that decide the configuration: by the name of a field of `Request`, or as a name for a setting.
OPTIONS = (
    option(COMMON, "baseline", str, "SYSTEM", "deformable, deformable-pp, relation, ms-detr, or hf:DIR."),
    option(COMMON, "preset", str, "NAME", "Preset name, or a YAML file."),
    option(COMMON, "aux", int, "N", "Number of auxiliary branches."),
    option(COMMON, "data", Path, "PATH", "Data set: COCO, YOLO, VOC; see docs."),
    setting(COMMON, "epochs", "train.epochs"),
    setting(COMMON, "batch_size", "train.batch_size"),
    setting(COMMON, "lr", "train.optimizer.lr", "RATE"),
    option(COMMON, "weights", Path, "MODEL", "Start from a run, a file or a .pth."),
    option(MODEL, "rank", int, "R", "Rank of all branches."),
    option(MODEL, "branch_kind", str, "lora|ffn|cross-ffn", "Kind of all branches."),
    option(MODEL, "branches", list[str], "SPEC", "Branch, e.g. topk:k=6; repeatable.", "--branch"),
    option(MODEL, "hybrid", int, "K", "H-DETR copies per target; 0: none."),
    option(MODEL, "dac", bool, "", "Add DAC-DETR's second pass."),
    setting(DATA, "data_format", "data.format", "NAME"),
    setting(DATA, "num_classes", "data.num_classes"),
    setting(DATA, "augment", "data.train.augment"),
    setting(DATA, "workers", "data.workers"),
    setting(DATA, "on_bad_data", "data.on_bad_data"),
    setting(DATA, "verify", "data.verify"),
    setting(DATA, "strict", "data.strict"),
    setting(DATA, "allow_outside", "data.allow_outside"),
    setting(OPTIMISATION, "max_steps", "train.max_steps"),
    setting(OPTIMISATION, "accum", "train.accumulate"),
    setting(OPTIMISATION, "scale_lr", "train.optimizer.scale_lr"),
    setting(OPTIMISATION, "ema", "train.ema_decay", "DECAY"),
    setting(OPTIMISATION, "freeze", "train.freeze", "PREFIX"),
    setting(OPTIMISATION, "recompute", "train.recompute", "PART"),
    setting(OPTIMISATION, "precision", "train.precision"),
    setting(OPTIMISATION, "seed", "train.seed"),
    option(RUN, "files", list[Path], "FILE", "YAML on top of the preset; repeatable.", "--config"),
    option(RUN, "overrides", list[str], "KEY=VALUE", "Any setting; repeatable.", "--set"),
    setting(RUN, "save_every", "train.save_every"),
    setting(RUN, "keep_every", "train.keep_every"),
    setting(RUN, "tensorboard", "train.tensorboard"),
    setting(RUN, "diagnostics", "train.diagnostics"),
    setting(RUN, "device", "train.device", "auto|cpu|cuda"),
)
KEYS = {row.parameter.name: row.key for row in OPTIONS if row.key}

# Beside --resume every option that is given is refused, except settings, whose change `resume` judges, and these.
USED_ON_RESUME = {"resume", "data", "overrides", "override", "gpus", "nproc"}


@takes(OPTIONS)
def train(
    context: typer.Context,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Run directory (default: runs/PRESET-n).", metavar="DIR")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", "-r", help="Run directory to resume.", metavar="RUN")
    ] = None,
    overfit: Annotated[
        int | None, typer.Option(help="Train and test on N images only.", metavar="N", min=1, rich_help_panel=DATA)
    ] = None,
    auto_resume: Annotated[
        bool, run_option("--auto-resume", help="Resume from --output-dir if it has a checkpoint, else start.")
    ] = False,
    override: Annotated[list[str] | None, run_option(help="May differ on resume; repeatable.", metavar="KEY")] = None,
    dry_run: Annotated[bool, run_option("--dry-run", help="Print summary and cost, then stop.")] = False,
    gpus: Annotated[int | None, run_option(help="GPUs, one process each (default: all).", metavar="N")] = None,
    nproc: Annotated[int | None, run_option(help="CPU processes (default: 1).", metavar="N")] = None,
    launcher: Annotated[str | None, run_option(help="Print a job script and stop.", metavar="slurm")] = None,
    nodes: Annotated[int | None, run_option(help="Nodes of the job (default: 1).", metavar="N")] = None,
    **chosen: Any,
) -> None:
    """Train a detector with auxiliary branches.

    Options you omit keep the preset's value; see loradetr config show PRESET.
    Example: loradetr train --baseline deformable --aux 3 --data data/coco
    """
    from lora_detr.processes.launch import launch_if_wanted

    if launcher is None and launch_if_wanted(chosen["device"] or "auto", gpus, nproc):
        return
    given = {name: value for name, value in chosen.items() if value is not None}
    named = {KEYS[name]: given.pop(name) for name in KEYS if name in given}
    out = console()
    display = ConsoleDisplay(out)
    show_log(out)
    _check_resume_options(auto_resume, resume, output_dir, override)
    if resume is not None:
        _refuse_beside_resume(context)
        from lora_detr.runs import run
        from lora_detr.runs.request import settings_of

        if "data" in given:
            named["data.path"] = given["data"]
        changes = {**settings_of(given.get("overrides", ())), **named}
        finished = run.resume(resume, changes, display, override or ())
    else:
        from lora_detr.runs import run
        from lora_detr.runs.request import Request, resolve

        resolved = resolve(Request(**given, named=named))
        if launcher is not None:
            _print_job(launcher, output_dir, resolved.run_name, nodes or 1, gpus, nproc)
            return
        finished = run.start(
            resolved,
            output_dir,
            overfit,
            dry_run,
            display,
            auto_resume=auto_resume or may_be_restarted(),
            overrides=override or (),
        )
    if dry_run:
        return
    excuse_lost_output()  # exit.json has it
    if finished.metrics is not None:
        from lora_detr.evaluation.operating_point import usage_lines

        values = finished.metrics.values
        out.print(f"AP {figure(values['AP'])}  AP50 {figure(values['AP50'])}")
        for line in usage_lines(finished.metrics):
            out.print(line, soft_wrap=True)
    directory = finished.directory
    out.print(f"next: loradetr eval {directory}; loradetr strip {directory}", soft_wrap=True)


def _check_resume_options(auto: bool, resume: Path | None, output: Path | None, override: list[str] | None) -> None:
    """Refuse combinations of options that would lose a run or do nothing."""
    if auto and resume is not None:
        raise ConfigError("--auto-resume and --resume exclude each other", "--resume RUN continues an existing run")
    if auto and output is None:
        raise ConfigError("--auto-resume needs --output-dir, the run to resume", "give --output-dir DIR")
    if override and not (auto or resume or may_be_restarted()):
        raise ConfigError("--override applies to a resumed run only", "give --resume RUN with it, or --auto-resume")
    if may_be_restarted() and resume is None and output is None:
        raise ConfigError(
            "this run may be restarted (torchrun --max-restarts) and would then start again in another folder",
            "give --output-dir DIR: a restart resumes from the last checkpoint there",
        )
    if restarts_share_store():
        raise ConfigError(
            "torchrun --max-restarts: restarted processes would connect to the addresses of the previous ones",
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of every torchrun",
        )


def _print_job(launcher: str, output: Path | None, name: str, nodes: int, gpus: int | None, nproc: int | None) -> None:
    from lora_detr.processes.slurm import slurm_script
    from lora_detr.records.run_directory import next_run

    if launcher != "slurm":
        raise ConfigError(f"--launcher {launcher}: unknown", "known: slurm; under torchrun the command joins by itself")
    output = output or next_run(Path("runs"), name)
    sys.stdout.write(slurm_script(sys.argv[1:], output, nodes=nodes, gpus=gpus, nproc=nproc))


def _refuse_beside_resume(context: typer.Context) -> None:
    used = {*KEYS, *USED_ON_RESUME}
    values = [
        (option.opts[0], context.params[option.name or ""])
        for option in context.command.params
        if option.name not in used
    ]
    # Not by truth: --aux 0 is an answer too.
    given = [name for name, value in values if value not in (None, (), []) and value is not False]
    if given:
        raise ConfigError(
            f"--resume continues a run with its own settings; {', '.join(given)} cannot be given beside it",
            "leave it out, or start a new run",
            code="C07",
        )
