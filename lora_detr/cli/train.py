"""``loradetr train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lora_detr.cli.console import console
from lora_detr.cli.progress import ConsoleDisplay, show_log
from lora_detr.errors import ConfigError
from lora_detr.processes.process import may_be_restarted, restarts_share_store
from lora_detr.records.display import figure

MODEL, DATA, OPTIMISATION, RUN = "Model", "Data", "Optimisation", "Run"


def train(
    baseline: Annotated[
        str | None,
        typer.Option(help="deformable, deformable-pp, relation or ms-detr.", metavar="SYSTEM", rich_help_panel=MODEL),
    ] = None,
    aux: Annotated[
        int | None, typer.Option(help="Number of auxiliary branches.", metavar="N", rich_help_panel=MODEL)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="From loradetr config list, or a YAML file.", metavar="NAME", rich_help_panel=MODEL),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of all branches.", metavar="R", rich_help_panel=MODEL)] = None,
    branch_kind: Annotated[
        str | None, typer.Option(help="Kind of all branches.", metavar="lora|ffn|cross-ffn", rich_help_panel=MODEL)
    ] = None,
    branch: Annotated[
        list[str] | None,
        typer.Option(help="One branch: topk:k=6,tau=0.4; repeatable.", metavar="SPEC", rich_help_panel=MODEL),
    ] = None,
    hybrid: Annotated[
        int | None,
        typer.Option(help="H-DETR's queries: copies of a target; 0: none.", metavar="K", rich_help_panel=MODEL),
    ] = None,
    dac: Annotated[bool, typer.Option("--dac", help="DAC-DETR's second pass.", rich_help_panel=MODEL)] = False,
    data: Annotated[
        Path | None, typer.Option(help="COCO folder, or a YAML of paths.", metavar="PATH", rich_help_panel=DATA)
    ] = None,
    num_classes: Annotated[
        str | None,
        typer.Option(help="Classes of the data, or COCO's.", metavar="auto|coco91", rich_help_panel=DATA),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read images.", metavar="N", rich_help_panel=DATA)
    ] = None,
    on_bad_data: Annotated[
        str | None, typer.Option(help="Malformed boxes, broken images.", metavar="error|skip", rich_help_panel=DATA)
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(help="Look at all images first.", metavar="none|decode|hash", rich_help_panel=DATA),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at empty boxes, shared images.", rich_help_panel=DATA)
    ] = False,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Images may lie anywhere.", rich_help_panel=DATA)
    ] = False,
    overfit: Annotated[
        int | None,
        typer.Option(help="Learn and test the first N images.", metavar="N", min=1, rich_help_panel=DATA),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", metavar="N", rich_help_panel=OPTIMISATION)
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps.", metavar="N", rich_help_panel=OPTIMISATION)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images of one process and pass.", metavar="N", rich_help_panel=OPTIMISATION)
    ] = None,
    accum: Annotated[
        int | None, typer.Option(help="Passes added up to one step.", metavar="N", rich_help_panel=OPTIMISATION)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate, at the reference batch.", metavar="RATE", rich_help_panel=OPTIMISATION),
    ] = None,
    scale_lr: Annotated[
        str | None,
        typer.Option(help="Let the rate follow the global batch.", metavar="linear|sqrt", rich_help_panel=OPTIMISATION),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Average the weights: 0.9997, say.", metavar="DECAY", rich_help_panel=OPTIMISATION),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Not to train: detector.backbone, say.", metavar="PREFIX", rich_help_panel=OPTIMISATION),
    ] = None,
    recompute: Annotated[
        list[str] | None,
        typer.Option(help="Save memory in backbone, encoder, decoder.", metavar="PART", rich_help_panel=OPTIMISATION),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the forward pass.", metavar="fp32|bf16", rich_help_panel=OPTIMISATION)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random (42).", metavar="N", rich_help_panel=OPTIMISATION)
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Run directory (runs/PRESET-n).", metavar="DIR", rich_help_panel=RUN)
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Start from a run, a file or a .pth.", metavar="MODEL", rich_help_panel=RUN),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue a run directory.", metavar="RUN", rich_help_panel=RUN)
    ] = None,
    auto_resume: Annotated[
        bool,
        typer.Option("--auto-resume", help="Start, or go on in --output-dir.", rich_help_panel=RUN),
    ] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(help="What may differ on resume; repeatable.", metavar="KEY", rich_help_panel=RUN),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print summary and cost, then stop.", rich_help_panel=RUN)
    ] = False,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints in an epoch.", metavar="N", rich_help_panel=RUN)
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option(help="Epochs between checkpoints kept.", metavar="N", rich_help_panel=RUN),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log for TensorBoard too.", rich_help_panel=RUN)
    ] = False,
    diagnostics: Annotated[
        int | None,
        typer.Option(help="Steps between looks at the branches.", metavar="N", rich_help_panel=RUN),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to compute (auto).", metavar="auto|cpu|cuda", rich_help_panel=RUN)
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Processes, one a GPU (all).", metavar="N", rich_help_panel=RUN)
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Processes with --device cpu (1).", metavar="N", rich_help_panel=RUN)
    ] = None,
    launcher: Annotated[
        str | None, typer.Option(help="Print a job script and stop.", metavar="slurm", rich_help_panel=RUN)
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Machines of the job (1).", metavar="N", rich_help_panel=RUN)
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(help="YAML on top of the preset; repeatable.", metavar="FILE", rich_help_panel=RUN),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting; repeatable.", metavar="KEY=VALUE", rich_help_panel=RUN),
    ] = None,
) -> None:
    """Train a detector with auxiliary branches.

    What is left out keeps the preset's value; see loradetr config show PRESET.
    Example: loradetr train --baseline deformable --aux 3 --data data/coco
    """
    from lora_detr.processes.launch import launch_if_wanted

    if launcher is None and launch_if_wanted(device or "auto", gpus, nproc):
        return
    named: dict[str, object] = {
        "data.num_classes": num_classes,
        "data.workers": workers,
        "data.on_bad_data": on_bad_data,
        "data.verify": verify,
        "data.strict": strict or None,
        "data.allow_outside": allow_outside or None,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.batch_size": batch_size,
        "train.accumulate": accum,
        "train.optimizer.lr": lr,
        "train.optimizer.scale_lr": scale_lr,
        "train.ema_decay": ema,
        "train.freeze": freeze or None,
        "train.recompute": recompute or None,
        "train.precision": precision,
        "train.seed": seed,
        "train.device": device,
        "train.save_every": save_every,
        "train.keep_every": keep_every,
        "train.tensorboard": tensorboard or None,
        "train.diagnostics": diagnostics,
    }
    out = console()
    display = ConsoleDisplay(out)
    show_log(out)
    _check_resume_options(auto_resume, resume, output_dir, override)
    if resume is not None:
        choosing = {"--baseline": baseline, "--aux": aux, "--preset": preset, "--rank": rank, "--branch": branch}
        choosing |= {"--branch-kind": branch_kind, "--hybrid": hybrid, "--dac": dac or None}
        starting: dict[str, object] = {"--overfit": overfit, "--weights": weights, "--output-dir": output_dir}
        starting |= {"--config": config, "--launcher": launcher}
        _refuse_beside_resume({**choosing, **starting, "--dry-run": dry_run or None})
        from lora_detr.runs import run
        from lora_detr.runs.request import settings_of

        given = {key: value for key, value in {**named, "data.path": data}.items() if value is not None}
        finished = run.resume(resume, {**settings_of(set_ or ()), **given}, display, override or ())
    else:
        from lora_detr.runs import run
        from lora_detr.runs.request import Request, resolve

        request = Request(
            preset=preset,
            baseline=baseline,
            aux=aux,
            rank=rank,
            branches=branch or (),
            data=data,
            files=config or (),
            overrides=set_ or (),
            named=named,
            weights=weights,
            branch_kind=branch_kind,
            hybrid=hybrid,
            dac=dac,
        )
        resolved = resolve(request)
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
    if finished.metrics is not None:
        values = finished.metrics.values
        out.print(f"AP {figure(values['AP'])}  AP50 {figure(values['AP50'])}")
    directory = finished.directory
    out.print(f"next: loradetr eval {directory}; loradetr strip {directory}", soft_wrap=True)


def _check_resume_options(auto: bool, resume: Path | None, output: Path | None, override: list[str] | None) -> None:
    """Refuse combinations of options that would lose a run or do nothing."""
    if auto and resume is not None:
        raise ConfigError("--auto-resume and --resume exclude each other", "--resume RUN goes on with a run there is")
    if auto and output is None:
        raise ConfigError("--auto-resume needs --output-dir: where is the run to go on with?", "give --output-dir DIR")
    if override and not (auto or resume or may_be_restarted()):
        raise ConfigError("--override is for a run that goes on", "give --resume RUN with it, or --auto-resume")
    if may_be_restarted() and resume is None and output is None:
        raise ConfigError(
            "this run may be restarted (torchrun --max-restarts) and would then start again in another folder",
            "give --output-dir DIR: a restart goes on from the last checkpoint there",
        )
    if restarts_share_store():
        raise ConfigError(
            "torchrun --max-restarts: processes started again would call at the addresses of those before them",
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of every torchrun",
        )


def _print_job(launcher: str, output: Path | None, name: str, nodes: int, gpus: int | None, nproc: int | None) -> None:
    from lora_detr.processes.slurm import slurm_script
    from lora_detr.records.run_directory import next_run

    if launcher != "slurm":
        raise ConfigError(f"--launcher {launcher}: unknown", "known: slurm; under torchrun the command joins by itself")
    output = output or next_run(Path("runs"), name)
    sys.stdout.write(slurm_script(sys.argv[1:], output, nodes=nodes, gpus=gpus, nproc=nproc))


def _refuse_beside_resume(options: dict[str, object]) -> None:
    # Not by truth: --aux 0 is an answer too.
    given = [name for name, value in options.items() if value is not None and value != []]
    if given:
        raise ConfigError(
            f"--resume continues a run with its own settings; {', '.join(given)} cannot be given beside it",
            "leave it out, or start a new run",
            code="C07",
        )
