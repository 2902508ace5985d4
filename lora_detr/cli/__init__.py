"""The command line. This module and all it imports at the top import no torch, so that ``--help`` is quick."""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer

from lora_detr import __version__
from lora_detr.cli.ablate import app as ablate_app
from lora_detr.cli.analyze_loss import analyze_loss
from lora_detr.cli.choices import fill_in_values, refuse_empty
from lora_detr.cli.config import app as config_app
from lora_detr.cli.console import run_guarded
from lora_detr.cli.convert import convert
from lora_detr.cli.data import app as data_app
from lora_detr.cli.demo import demo
from lora_detr.cli.doctor import doctor
from lora_detr.cli.eval import evaluate
from lora_detr.cli.export import export
from lora_detr.cli.help_screen import Command, Group
from lora_detr.cli.predict import predict
from lora_detr.cli.report import report
from lora_detr.cli.strip import strip
from lora_detr.cli.train import train
from lora_detr.processes.threads import watch_contention

app = typer.Typer(
    name="loradetr",
    cls=Group,
    help="Train detection transformers with diverse one-to-many branches that cost nothing at inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("report")(report)
app.command("strip")(strip)
app.command("export")(export)
app.command("predict")(predict)
app.command("convert")(convert)
app.add_typer(config_app, name="config")
app.add_typer(ablate_app, name="ablate")
app.add_typer(data_app, name="data")
app.command("analyze-loss")(analyze_loss)
app.command("demo")(demo)
app.command("doctor")(doctor)
for each in (app, config_app, ablate_app, data_app):
    for registered in each.registered_commands:
        registered.cls = Command


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"loradetr {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors (before the command).")] = False,
) -> None:
    """Options of all commands."""


def main() -> None:
    """Run the command line and exit with the code of the contract (see ``errors``)."""
    watch_contention()
    arguments = fill_in_values(sys.argv[1:])

    def command() -> None:
        refuse_empty(arguments)
        app(arguments)

    code = run_guarded(command, debug="--debug" in arguments[:1])
    # What is left dies with the process; going through it once more would take a second.
    gc.freeze()
    sys.exit(code)
