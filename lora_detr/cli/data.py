"""``loradetr data``: convert data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from lora_detr.cli.choices import VOC_DIFFICULT, VOC_OFFSETS, bad_data, data_format_option, data_set, one_of
from lora_detr.cli.console import console
from lora_detr.cli.help_screen import Group
from lora_detr.cli.progress import show_log
from lora_detr.errors import ConfigError, counted

app = typer.Typer(cls=Group, help="Convert data sets of other formats.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Make a group of a single command."""


@app.command("convert")
def convert(
    path: Annotated[Path, typer.Argument(help="Data set of any format.", metavar="PATH")],
    output: Annotated[Path, typer.Argument(help="Folder to make.", metavar="OUT")],
    split: Annotated[
        str | None, typer.Option(help="Take this share for a missing split (none).", metavar="val=SHARE")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of --split.", min=0, metavar="N")] = 0,
    copy: Annotated[bool, typer.Option("--copy", help="Copy images instead of linking them.")] = False,
    data_format: Annotated[str, data_format_option()] = "auto",
    voc_offset: Annotated[
        str, typer.Option(help="First pixel in Pascal VOC files.", metavar="|".join(VOC_OFFSETS))
    ] = "auto",
    voc_difficult: Annotated[
        str, typer.Option(help="Difficult objects in Pascal VOC files.", metavar="|".join(VOC_DIFFICULT))
    ] = "ignore",
    on_bad_data: Annotated[str, typer.Option(help="Stop at bad data, or skip it.", metavar="error|skip")] = "error",
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Allow images outside their folder.")] = False,
) -> None:
    """Write a data set as a COCO folder, which any tool can read.

    --split keeps images that show almost the same, such as frames of a video, in one split.
    Example: loradetr data convert exports/cells data/cells --split val=0.2
    """
    from lora_detr.data.coco.audit import Policy
    from lora_detr.data.coco.source import ReadAs, VocDifficult, VocOffset
    from lora_detr.data.conversion import convert as convert_data
    from lora_detr.data.layouts.registry import format_named

    offset = one_of("--voc-offset", voc_offset, VOC_OFFSETS, "the challenge counts from 1, most tools from 0")
    difficult = one_of("--voc-difficult", voc_difficult, VOC_DIFFICULT, "ignore makes them crowd regions")
    how = ReadAs(
        format_named(data_format),
        cast("VocOffset", offset if offset == "auto" else int(offset)),
        cast("VocDifficult", difficult),
    )
    share = None if split is None else _share(split)
    show_log(console(stderr=True))
    source = data_set(path)
    assert source is not None
    policy = Policy(on_bad_data=bad_data(on_bad_data), allow_outside=allow_outside)
    done = convert_data(source, output, how=how, policy=policy, share=share, seed=seed, copy=copy)
    out = console()
    for remark in done.remarks:
        out.print(remark, soft_wrap=True)
    for name, (images, objects) in done.counts.items():
        out.print(f"{name:<6}{counted(images, 'image')}, {counted(objects, 'object')}")
    if done.linked:
        out.print(f"{counted(done.linked, 'image file')} linked (hard links take no space; --copy copies them)")
    if done.copied:
        out.print(f"{counted(done.copied, 'image file')} copied")
    if done.missing:
        out.print(f"no validation split: {done.missing} not found; --split val=0.2 makes one", soft_wrap=True)
    out.print(f"next: loradetr train --data {output}", soft_wrap=True)


def _share(text: str) -> float:
    name, _, value = text.partition("=")
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if name != "val" or not 0 < share < 1:
        raise ConfigError(f"--split {text}: expected val= and a share between 0 and 1", "for example val=0.2")
    return share
