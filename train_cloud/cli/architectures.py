"""``architectures``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train_cloud import extras
from train_cloud.cli import options
from train_cloud.cli.terminal import echo

if TYPE_CHECKING:
    from train_cloud.sb3.architectures.measure import Measured


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.TRAIN)(architectures)


def architectures(
    run_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN_FILE]",
            help="The run file whose observations they are to see.",
            show_default="the example gridworld",
        ),
    ] = None,
    overrides: options.Overrides = None,
    as_json: options.AsJson = False,
) -> None:
    """List the networks that a run file's `architecture` can name.

    With their parameters, and the milliseconds that one thread takes for one observation, and for learning from 64.

    `train-cloud architectures run.yaml --json`
    """
    extras.need("stable_baselines3", "architectures")
    if run_file is None:
        from train_cloud.shipped import find

        extras.need("minigrid", "the example gridworld")
        run_file = find("examples") / "gridworld" / "run.yaml"
    from dataclasses import asdict

    from train_cloud.config import load_run_file
    from train_cloud.sb3.architectures.measure import measure

    found = measure(load_run_file(run_file, overrides or ()))
    if as_json:
        echo(json.dumps([asdict(each) for each in found], indent=1))
        return
    echo("\n".join(_table(found)))


def _table(found: list[Measured]) -> list[str]:
    widest = max(len(each.name) for each in found)
    lines = [f"{'architecture':<{widest}}  parameters  act, ms  learn, ms  sees"]
    for each in found:
        if each.because is not None:
            lines.append(f"{each.name:<{widest}}  {each.because}")
        else:
            numbers = f"{each.parameters:>10,}  {each.act_ms:>7.2f}  {each.learn_ms:>9.1f}"
            lines.append(f"{each.name:<{widest}}  {numbers}  {each.sees}".rstrip())
    return lines
