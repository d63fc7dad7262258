"""``launch`` and ``stop``: runs on machines that somebody else looks after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from train_cloud.cli import options
from train_cloud.errors import InputError, suggestion


@dataclass(frozen=True)
class Asked:
    """What a launch was asked for."""

    path: Path
    """Run file, experiment file or pipeline file."""
    store: str
    overrides: tuple[str, ...] = ()
    parallel: int | None = None
    go_on: bool = False
    wait: bool = True
    dry_run: bool = False


def _sagemaker(asked: Asked) -> None:
    from train_cloud.cli.sagemaker import launch

    launch(asked)


def _stop_jobs(run: str, store: str | None) -> None:
    from train_cloud.cli.sagemaker import stop

    stop(run, store)


#: Platform → what launches there.
LAUNCHES: Mapping[str, Callable[[Asked], None]] = {"sagemaker": _sagemaker}
#: Platform → what stops there what was launched, by run file, experiment file, pipeline file or run id, and store.
STOPS: Mapping[str, Callable[[str, str | None], None]] = {"sagemaker": _stop_jobs}

_Platform = Annotated[
    str,
    typer.Option("--platform", metavar="NAME", help=f"Where: {', '.join(LAUNCHES)}.", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.TRAIN)(launch)
    app.command(rich_help_panel=options.TRAIN)(stop)


def launch(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A run file, experiment file or pipeline file.", show_default=False),
    ],
    platform: _Platform,
    store: options.Store,
    overrides: options.Overrides = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel",
            metavar="N",
            min=1,
            help="Of an experiment: runs that are trained at once.",
            show_default="its max_parallel",
        ),
    ] = None,
    go_on: Annotated[
        bool,
        typer.Option("--continue", help="Train on what a callback has ended early, or what was cancelled or failed."),
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait",
            help="Of an experiment: launch what can be launched now, and do not stay for the others.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be launched, and create nothing.")
    ] = False,
) -> None:
    """Train on machines of a service: a run, all runs of an experiment, or a pipeline.

    On SageMaker each run is a training job, as the `sagemaker:` section of its run file says (docs/sagemaker.md). It
    goes on from what the store has; the same command goes on after a stop, and launches nothing that is over.

    `train-cloud launch run.yaml --platform sagemaker --store s3://bucket/train-cloud`
    """
    asked = Asked(file, store, tuple(overrides or ()), parallel, go_on, not no_wait, dry_run)
    _known(platform, LAUNCHES)(asked)


def stop(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run file, an experiment file, a pipeline file or a run id.", show_default=False
        ),
    ],
    platform: _Platform,
    store: options.OptionalStore = None,
) -> None:
    """Stop what was launched, with what it has committed; the same launch goes on later.

    The training gets SIGTERM, commits and leaves. To end a run for good: `train-cloud cancel`.

    `train-cloud stop pendulum-sac --platform sagemaker --store s3://bucket/train-cloud`
    """
    _known(platform, STOPS)(run, store)


def _known(platform: str, table: Mapping[str, Callable[..., None]]) -> Callable[..., None]:
    """:raises InputError: there is no such platform"""
    if platform not in table:
        near = suggestion(platform, tuple(table))
        raise InputError("--platform", platform, near or f"use {', '.join(table)}")
    return table[platform]
