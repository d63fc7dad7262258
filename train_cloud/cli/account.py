"""``doctor`` and ``relaunch``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.report import find
from train_cloud.cli.terminal import echo
from train_cloud.errors import CloudError, InputError

if TYPE_CHECKING:
    from train_cloud.platforms.ec2.account import Finding

_MARKS = {"ok": "[green]✓[/green]", "warn": "[yellow]?[/yellow]", "fail": "[red]✗[/red]"}

_Region = Annotated[
    str | None,
    typer.Option("--region", metavar="REGION", help="AWS region.", show_default="as the AWS CLI finds it"),
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.ACCOUNT)(doctor)
    app.command(rich_help_panel=options.ACCOUNT)(relaunch)


def doctor(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[EXPERIMENT]",
            help="An experiment file, whose runs are launched all at once: quotas are compared with what they need.",
            show_default=False,
        ),
    ] = None,
    region: _Region = None,
    instance_type: Annotated[
        list[str] | None,
        typer.Option(
            "--instance-type",
            metavar="TYPE",
            help="An instance type that is wanted. Repeatable.",
            show_default="those of terraform/variables.tf",
        ),
    ] = None,
    key_pair: Annotated[
        str | None,
        typer.Option("--key-pair", metavar="NAME", help="A key pair for SSH, if one is wanted.", show_default=False),
    ] = None,
    subnet_id: Annotated[
        list[str] | None,
        typer.Option(
            "--subnet-id",
            metavar="ID",
            help="A subnet that workers are to stand in. Repeatable.",
            show_default="those of the default VPC",
        ),
    ] = None,
    project_name: Annotated[
        str, typer.Option("--project-name", metavar="NAME", help="First part of the names of what apply creates.")
    ] = "train-cloud",
) -> None:
    """Check that an AWS account can start a worker.

    Credentials, region, types per zone, the account's plan (AWS's Free plan launches few types), spot and on-demand
    quotas (new accounts have 0), subnets and their way to the internet, key pair, image, the permissions that terraform
    apply needs, session-manager-plugin. Changes nothing. Exit code 1 where something must be done first.

    `train-cloud doctor --region us-east-1`
    """
    from rich.console import Console

    from train_cloud.config import is_experiment, load_experiment, load_run_file
    from train_cloud.operations.expand import refuse_search
    from train_cloud.platforms.ec2.account import examine
    from train_cloud.platforms.ec2.fit import DEFAULT_TYPES

    machines = 1
    if file is not None and is_experiment(file):
        experiment = load_experiment(file)
        refuse_search(experiment)
        machines = len(experiment.cells)
    elif file is not None:
        load_run_file(file)
    console = Console(highlight=False, soft_wrap=True)
    failed = False
    for finding in examine(
        region=region,
        types=instance_type or DEFAULT_TYPES,
        key_pair=key_pair,
        subnet_ids=subnet_id or (),
        project=project_name,
        machines=machines,
    ):
        console.print(_line(finding))
        failed = failed or finding.verdict == "fail"
    if failed:
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    from rich.markup import escape

    fix = f"\n    [bold]→ {escape(finding.fix)}[/bold]" if finding.fix else ""
    return f"{_MARKS[finding.verdict]} {finding.subject}: {escape(finding.said)}{fix}"


def relaunch(
    run: options.Run,
    store: options.OptionalStore = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="NAME",
            help="The worker's Auto Scaling group (Terraform's output autoscaling_group_name).",
            show_default="found by the run's tag",
        ),
    ] = None,
    region: _Region = None,
    overrides: options.Overrides = None,
    schedule_total: options.ScheduleTotal = None,
    train_on: Annotated[
        bool, typer.Option("--continue", help="Train on where a callback has ended the run early.")
    ] = False,
) -> None:
    """Start a worker again for a run that was stopped, failed or taken to capacity 0, or with a changed budget.

    Clears the outcome, sets the group's capacity to 1; the worker goes on from the last checkpoint. `--set` changes
    the run's budget for good, in an overrides object beside the run file: a completed run goes on with a larger
    total_timesteps, a stopped one with higher limits. `--continue` trains on where a callback of yours has ended the
    run before its total.

    `train-cloud relaunch s3://bucket/train-cloud/runs/pendulum-sac --set total_timesteps=2e6`
    """
    from train_cloud.checkpoint.survey import refuse
    from train_cloud.operations.relaunch import check_relaunch, write_continued
    from train_cloud.platforms.ec2.group import RUN_TAG, Group, find_groups
    from train_cloud.run.head import read_head, reopen
    from train_cloud.run.layout import overrides_key, run_url
    from train_cloud.run.overrides import write_overrides
    from train_cloud.store import open_store

    root, run_id = find(run, store)
    if run_id is None:
        raise InputError("run", run, "name one run: its file, its id, or its folder's URL")
    run_store = open_store(run_url(root, run_id))
    read = read_head(run_store)
    refuse(run_store, read[0] if read else None)
    if read is None and not any(run_store.list()):
        raise InputError("run", run, f"nothing is stored under {run_store.url}: launch it with terraform apply")
    wanted = options.with_schedule_total(overrides, schedule_total)
    changes = check_relaunch(run_store, read[0] if read else None, wanted, train_on=train_on)
    if group is None:
        found = find_groups(RUN_TAG, run_id, region=region)
        if len(found) != 1:
            fix = f"name one of {', '.join(found)}" if found else "no group carries this run's tag: run terraform apply"
            raise InputError("--group", group, fix)
        group = found[0]
    scaling = Group(group, region=region)
    if scaling.capacity() is None:
        raise InputError("--group", group, "there is no such group in this region: run terraform apply")
    if changes:
        key = overrides_key(write_overrides(run_store, changes))
        echo(f"{key}: {', '.join(f'{name}={value}' for name, value in changes.items())}, from the next session on")
    if read is not None and train_on:
        write_continued(run_store, read[0])
    if read is not None and read[0].outcome is not None:
        reopen(run_store)
        echo(f"{run_id} was {read[0].outcome}" + (f" ({read[0].reason})" if read[0].reason else ""))
    suspended = scaling.suspended()
    if suspended:
        scaling.resume(list(suspended))
        told = ", ".join(f"{process} ({reason})" for process, reason in suspended.items())
        echo(f"resumed what was suspended in {group}: {told}")
    scaling.set_capacity(1)
    echo(f"{run_id} goes on at {read[0].timesteps if read else 0:,} timesteps: {group} has desired capacity 1")
    closing = None
    with contextlib.suppress(CloudError):  # only a hint, and not everybody may ask
        closing = scaling.closing_time()
    if closing is not None:
        echo(
            f"the group's limit was reached at {closing}: it goes to 0 again within the hour, "
            "unless max_runtime_hours is raised and applied"
        )
