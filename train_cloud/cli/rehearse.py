"""``rehearse``: the whole life of a run on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from train_cloud import extras
from train_cloud.cli import options
from train_cloud.errors import InputError


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.TRAIN)(rehearse)


def rehearse(
    run_file: options.RunFile,
    overrides: options.Overrides = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for RUN_ID with the report and the rest.")
    ] = Path("rehearsal"),
    machine: Annotated[
        bool,
        typer.Option(
            "--machine",
            help="On real machines: containers with systemd and cloud-init; on SageMaker, from the real image, with "
            "podman. Needs Linux and root.",
        ),
    ] = False,
    platform: Annotated[str, typer.Option("--platform", metavar="NAME", help="Where: ec2 or sagemaker.")] = "ec2",
) -> None:
    """Live the whole life of a run on this machine, without an AWS account.

    Real Terraform on a local AWS, a spot notice in mid-run, a sudden death, the end, destroy; beside it a control run
    without interruptions to compare with. Needs Linux and Terraform. Leaves a report, a learning curve, TensorBoard
    logs and the final model in `rehearsal/RUN_ID`.

    With `--machine` each instance is a real Linux: docs/machine.md.

    With `--platform sagemaker` the run is trained by training jobs, which are cut off, stopped and out of time
    (docs/sagemaker.md).

    Of an experiment file up to eight runs are trained side by side, of which the first is interrupted.

    Of a pipeline file a notice comes in each session, and from three sessions on also between the first two.

    `train-cloud rehearse examples/pendulum_sac.yaml`
    """
    extras.need("stable_baselines3", "rehearse")
    extras.need("moto", "rehearse")
    from train_cloud.config import is_experiment
    from train_cloud.config.pipeline import is_pipeline

    if platform not in ("ec2", "sagemaker"):
        raise InputError("--platform", platform, "use ec2 or sagemaker")
    if platform == "sagemaker":
        if is_experiment(run_file):
            raise InputError("--platform", platform, "one run at a time: rehearse one of the experiment's runs")
        from train_cloud.rehearsal.sagemaker.rehearse import rehearse_sagemaker

        raise typer.Exit(rehearse_sagemaker(run_file, overrides=overrides or (), output=out, image=machine))
    if is_experiment(run_file):
        if machine:
            raise InputError("--machine", str(run_file), "one run at a time: rehearse one of its runs, or leave it out")
        from train_cloud.rehearsal.experiment import rehearse_experiment

        raise typer.Exit(rehearse_experiment(run_file, overrides=overrides or (), output=out))
    if is_pipeline(run_file):
        if machine:
            fix = "not of a pipeline: rehearse one of its run files so, or leave it out"
            raise InputError("--machine", str(run_file), fix)
        from train_cloud.rehearsal.pipeline import rehearse_pipeline

        raise typer.Exit(rehearse_pipeline(run_file, overrides=overrides or (), output=out))
    from train_cloud.rehearsal.rehearse import rehearse as rehearse_run

    raise typer.Exit(rehearse_run(run_file, overrides=overrides or (), output=out, machine=machine))
