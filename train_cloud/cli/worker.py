"""``watch``, ``ended`` and ``finish``: called by systemd on the worker, with their options from ``worker.env``."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError

if TYPE_CHECKING:
    from train_cloud.platforms.notifications import Channel

_RunId = Annotated[
    str,
    typer.Option("--run-id", metavar="RUN_ID", envvar="TRAIN_CLOUD_RUN_ID", help="Of the run.", show_default=False),
]
_StateDir = Annotated[
    Path,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        envvar="TRAIN_CLOUD_STATE_DIR",
        help="Local folder of this machine's session.",
        show_default=False,
    ),
]
_GROUP = "The worker's Auto Scaling group."
_Topic = Annotated[
    str | None,
    typer.Option(
        "--topic",
        metavar="ARN",
        envvar="TRAIN_CLOUD_TOPIC",
        help="SNS topic that is told of ends and interruptions.",
        show_default=False,
    ),
]
_RunFile = Annotated[
    Path | None,
    typer.Option(
        "--run-file",
        metavar="RUN_FILE",
        envvar="TRAIN_CLOUD_RUN_FILE",
        help="The run file, which may name a webhook.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.WORKER)(watch)
    app.command(rich_help_panel=options.WORKER)(ended)
    app.command(rich_help_panel=options.WORKER)(finish)
    app.command(rich_help_panel=options.WORKER)(requirements)


def watch(
    store: options.Store,
    run_id: _RunId,
    state_dir: _StateDir,
    group: Annotated[
        str | None,
        typer.Option(
            "--group", metavar="NAME", envvar="TRAIN_CLOUD_AUTOSCALING_GROUP", help=_GROUP, show_default=False
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", help="From poll to poll, at most 5.")
    ] = 2.0,
    linger: Annotated[
        float,
        typer.Option(
            "--linger",
            metavar="SECONDS",
            help="A machine that lives so long after the announced time was not taken, and trains again.",
        ),
    ] = 300.0,
    topic: _Topic = None,
    run_file: _RunFile = None,
) -> None:
    """Watch for interruption notices; stop the trainer in time and leave word of it.

    Asks the instance metadata service, until SIGTERM.
    """
    from datetime import timedelta

    from train_cloud.platforms.ec2.group import Group
    from train_cloud.platforms.ec2.metadata import Metadata
    from train_cloud.platforms.ec2.watch import watch as watch_machine
    from train_cloud.platforms.unattended import launched_url
    from train_cloud.store import open_store

    watch_machine(
        open_store(launched_url(store, run_id)),
        state_dir,
        Metadata(timeout_s=1.0),
        group=Group(group) if group else None,
        interval_s=interval,
        linger=timedelta(seconds=linger),
        channels=_channels(topic, run_file, retry_timeout_s=0),
    )


def ended(state_dir: _StateDir) -> None:
    """Write down what killed the trainer, for the next one, which takes it into the head.

    systemd tells it in variables, after each attempt.
    """
    import os

    from train_cloud.platforms.ec2.units import boot_id, ended_with
    from train_cloud.run.exit_record import note_kill

    note_kill(state_dir, boot_id(), ended_with(os.environ))


def finish(
    store: options.Store,
    run_id: _RunId,
    state_dir: _StateDir,
    group: Annotated[
        str,
        typer.Option(
            "--group", metavar="NAME", envvar="TRAIN_CLOUD_AUTOSCALING_GROUP", help=_GROUP, show_default=False
        ),
    ],
    boot: Annotated[
        bool, typer.Option("--boot", help="Before anything is started; exit code 73 says that nothing is to be.")
    ] = False,
    topic: _Topic = None,
    run_file: _RunFile = None,
) -> None:
    """Decide what follows the end of a training, and do it until it holds.

    An outcome takes the group's capacity to 0; whatever is not over goes on.
    """
    from train_cloud.errors import Fenced
    from train_cloud.platforms.ec2.finish import finish as finish_run
    from train_cloud.platforms.ec2.group import Group
    from train_cloud.platforms.ec2.metadata import Metadata
    from train_cloud.platforms.unattended import launched_url
    from train_cloud.store import open_store

    decision = finish_run(
        open_store(launched_url(store, run_id)),
        state_dir,
        Metadata(),
        Group(group, retry_timeout_s=None),
        boot=boot,
        # Its retry timeout is shorter than the hook's two minutes: the capacity is at 0 by then.
        channels=_channels(topic, run_file, retry_timeout_s=90),
    )
    if boot and decision.verb != "nothing":
        raise typer.Exit(Fenced.exit_code)


def _channels(topic: str | None, run_file: Path | None, *, retry_timeout_s: float) -> list[Channel]:
    """Where news of the run go. A run file that cannot be read is the trainer's to report, and no reason to stay."""
    from train_cloud.config import load_run_file
    from train_cloud.config.pipeline import is_pipeline, load_pipeline
    from train_cloud.platforms.ec2.notify import Topic, Webhook
    from train_cloud.platforms.ec2.parameters import read_secrets

    found: list[Channel] = [Topic(topic, retry_timeout_s=retry_timeout_s)] if topic else []
    if run_file is not None:
        try:
            configs = (
                [load_run_file(run_file)]
                if not is_pipeline(run_file)
                else [session.config for session in load_pipeline(run_file).sessions]
            )
        except InputError as error:
            logging.getLogger("train_cloud").warning("no webhook: %s", error)
        else:
            config = next((one for one in configs if one.webhook is not None), configs[0])
            if config.webhook is not None:
                secret = {config.webhook: config.secrets[config.webhook]}
                read = functools.partial(read_secrets, secret, retry_timeout_s=retry_timeout_s)
                found.append(Webhook(lambda: next(iter(read().values())), retry_timeout_s=retry_timeout_s))
    return found


def requirements(run_file: options.RunFile) -> None:
    """Print what pip has to install for a run file, besides train-cloud: one argument a line.

    `pip install $(train-cloud requirements run.yaml)`
    """
    from train_cloud.config import load_run_file
    from train_cloud.config.pipeline import is_pipeline, load_pipeline
    from train_cloud.operations.requirements import pip_arguments

    if is_pipeline(run_file):
        configs = [config for session in load_pipeline(run_file).sessions for config in session.attempts]
    else:
        configs = [load_run_file(run_file)]
    each = dict.fromkeys(tuple(pip_arguments(config)) for config in configs)
    for argument in dict.fromkeys(argument for arguments in each for argument in arguments):
        echo(argument)
