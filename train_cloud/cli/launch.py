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
    train_on: bool = False
    wait: bool = True
    dry_run: bool = False
    address: str | None = None
    state_dir: Path | None = None


def _sagemaker(asked: Asked) -> None:
    for name, value in (("--address", asked.address), ("--state-dir", asked.state_dir)):
        if value is not None:
            raise InputError(name, str(value), "only a Ray cluster takes it: leave it out")
    from train_cloud.cli.sagemaker import launch

    launch(asked)


def _ray(asked: Asked) -> None:
    if not asked.wait:
        raise InputError("--no-wait", True, "a cluster trains for as long as its launch looks on: leave it out")
    from train_cloud.cli.ray import launch_on_ray

    launch_on_ray(
        asked.path,
        asked.store,
        address=asked.address,
        state_dir=asked.state_dir,
        overrides=asked.overrides,
        parallel=asked.parallel,
        train_on=asked.train_on,
        dry_run=asked.dry_run,
    )


def _stop_jobs(run: str, store: str | None, address: str | None) -> None:
    if address is not None:
        raise InputError("--address", address, "only a Ray cluster takes it: leave it out")
    from train_cloud.cli.sagemaker import stop

    stop(run, store)


def _stop_on_ray(run: str, store: str | None, address: str | None) -> None:
    if store is None:
        raise InputError("--store", None, "name the store of the launch, or set TRAIN_CLOUD_STORE")
    from train_cloud.cli.ray import stop_on_ray

    stop_on_ray(run, store, address)


#: Platform → what launches there.
LAUNCHES: Mapping[str, Callable[[Asked], None]] = {"sagemaker": _sagemaker, "ray": _ray}
#: Platform → what stops there what was launched, by run file, experiment file, pipeline file or run id, store, and
#: address of the cluster.
STOPS: Mapping[str, Callable[[str, str | None, str | None], None]] = {"sagemaker": _stop_jobs, "ray": _stop_on_ray}

_Platform = Annotated[
    str,
    typer.Option("--platform", metavar="NAME", help=f"Where: {', '.join(LAUNCHES)}.", show_default=False),
]


_Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="On Ray: the cluster's head.",
        show_default="RAY_ADDRESS, or the cluster that runs here",
    ),
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
    parallel: options.Parallel = None,
    train_on: Annotated[
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
    address: _Address = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            metavar="FOLDER",
            help="On Ray: folder of the sessions' local files, on each node.",
            show_default="~/.train-cloud/ray",
        ),
    ] = None,
) -> None:
    """Train on machines of a service: a run, all runs of an experiment, or a pipeline.

    On SageMaker each run is a training job, as the `sagemaker:` section of its run file says (docs/sagemaker.md). It
    goes on from what the store has; the same command goes on after a stop, and launches nothing that is over.

    On a Ray cluster each run of an experiment is a task with the resources that the `ray:` section of its run file
    names (docs/ray.md). The command looks on, on a node of the cluster; Ctrl-C stops all runs with a commit, and the
    same command goes on.

    `train-cloud launch run.yaml --platform sagemaker --store s3://bucket/train-cloud`
    """
    launch_on(
        platform,
        Asked(file, store, tuple(overrides or ()), parallel, train_on, not no_wait, dry_run, address, state_dir),
    )


def launch_on(platform: str, asked: Asked) -> None:
    """:raises InputError: there is no such platform"""
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
    address: _Address = None,
) -> None:
    """Stop what was launched, with what it has committed; the same launch goes on later.

    The training gets SIGTERM, commits and leaves. To end a run for good: `train-cloud cancel`.

    `train-cloud stop pendulum-sac --platform sagemaker --store s3://bucket/train-cloud`
    """
    _known(platform, STOPS)(run, store, address)


def _known(platform: str, table: Mapping[str, Callable[..., None]]) -> Callable[..., None]:
    """:raises InputError: there is no such platform"""
    if platform not in table:
        near = suggestion(platform, tuple(table))
        raise InputError("--platform", platform, near or f"use {', '.join(table)}")
    return table[platform]
