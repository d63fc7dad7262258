"""Arguments and options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFile = Annotated[Path, typer.Argument(metavar="RUN_FILE", help="The run file, YAML.", show_default=False)]
Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run file, a run id, or the URL of a run's folder.", show_default=False),
]
RunOrExperiment = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="A run file, a run id, the URL of a run's folder, or an experiment file.",
        show_default=False,
    ),
]
ExperimentName = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        metavar="NAME",
        help="All runs of this experiment, as the store knows them, where its file is not at hand.",
        show_default=False,
    ),
]
Store = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="DIR_OR_S3_URL",
        envvar="TRAIN_CLOUD_STORE",
        help="Where runs are kept: a folder or s3://bucket/prefix.",
        show_default=False,
    ),
]
OptionalStore = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="DIR_OR_S3_URL",
        envvar="TRAIN_CLOUD_STORE",
        help="Where runs are kept: a folder or s3://bucket/prefix.",
        show_default=False,
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        envvar="TRAIN_CLOUD_STATE_DIR",
        help="Local folder of this machine's session.",
        show_default=".train-cloud/RUN_ID",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a field of the run file, for example environment.n_envs=4. Repeatable.",
        show_default=False,
    ),
]
ScheduleTotal = Annotated[
    int | None,
    typer.Option(
        "--schedule-total",
        metavar="TIMESTEPS",
        help="Over how many timesteps schedules run: short for --set schedule_total=TIMESTEPS.",
        show_default="total_timesteps",
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        "--parallel",
        metavar="N",
        min=1,
        help="Of an experiment: runs that are trained at once.",
        show_default="its max_parallel",
    ),
]
InstanceTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--instance-type",
        metavar="TYPE",
        help="An EC2 type that it must fit into. Repeatable.",
        show_default="Terraform's: g6.xlarge, g5.xlarge, g4dn.xlarge",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def with_schedule_total(overrides: list[str] | None, total: int | None) -> list[str]:
    """``--schedule-total`` as one more ``--set``."""
    return [*(overrides or ()), *([] if total is None else [f"schedule_total={total}"])]


TRAIN = "Train"
LOOK = "Look and take home"
DATA = "Data"
RUNS = "Fork, go back, repair, delete"
ACCOUNT = "Your AWS account"
WORKER = "On the worker (called by systemd)"
