"""``init``: a folder to begin in."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.terminal import echo


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.TRAIN)(init)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made where it is not there.", show_default=False)],
) -> None:
    """Write a folder to begin in.

    A run file, code with an environment's skeleton, and `terraform/` with its variables, ready for `terraform init`.
    What is there already is never overwritten.

    `train-cloud init my-run && cd my-run && train-cloud validate run.yaml`
    """
    from train_cloud.starter import begin

    for path in begin(folder):
        echo(str(path))
    there = "" if folder.absolute() == Path.cwd() else f"  cd {shlex.quote(str(folder))}\n"
    echo(f"\nNext:\n{there}  train-cloud validate run.yaml\n  train-cloud train run.yaml --store ./store")
