"""``pipeline``: run files that are trained one after the other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train_cloud import extras
from train_cloud.cli import options
from train_cloud.cli.launch import Asked, launch_on
from train_cloud.cli.terminal import echo
from train_cloud.errors import InputError

if TYPE_CHECKING:
    from train_cloud.config.pipeline import PipelineConfig

_TRAINER = "stable_baselines3"

_Pipeline = Annotated[Path, typer.Argument(metavar="PIPELINE", help="The pipeline file, YAML.", show_default=False)]
_OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        metavar="DIR",
        help="Folder of the sessions' local files, state and report; without another store also of that.",
        show_default=".train-cloud",
    ),
]
_UseS3 = Annotated[bool, typer.Option("--use-s3", help="Keep the runs in --s3-bucket, or in the file's s3_bucket.")]
_Bucket = Annotated[
    str | None,
    typer.Option("--s3-bucket", metavar="NAME", help="Bucket, or bucket/prefix, for --use-s3.", show_default=False),
]

commands = typer.Typer(
    name="pipeline",
    help="Train run files one after the other, each beginning with what the one before has learned.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(app: typer.Typer) -> None:
    app.add_typer(commands, rich_help_panel=options.TRAIN)


@commands.command()
def run(
    pipeline: _Pipeline,
    store: options.OptionalStore = None,
    output_dir: _OutputDir = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--start-from",
            metavar="SESSION",
            help="Begin with this session: those before it have to be completed, and it inherits from them.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on also with sessions that were cancelled or have failed for good."),
    ] = False,
    rerun: Annotated[
        bool,
        typer.Option(
            "--rerun",
            help="Delete and train anew each session that was changed since it was completed, with all that began with "
            "it; with --start-from that one.",
        ),
    ] = False,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel", metavar="N", min=1, help="Sessions that are trained at once.", show_default="its max_parallel"
        ),
    ] = None,
    platform: Annotated[
        str,
        typer.Option("--platform", metavar="NAME", help="Where: local, or one that `train-cloud launch` knows."),
    ] = "local",
    role_arn: Annotated[
        str | None,
        typer.Option("--role-arn", metavar="ARN", help="Role of SageMaker's jobs.", show_default=False),
    ] = None,
    use_s3: _UseS3 = False,
    bucket: _Bucket = None,
    overrides: options.Overrides = None,
) -> None:
    """Train the sessions of a pipeline, or go on where it was interrupted.

    The same command always continues: how far each session is, its run's head says, and one that is completed is never
    trained again. Ctrl-C or SIGTERM stops it after a commit (exit code 75). `--set sessions.NAME.key=value` changes the
    run file of one session, `--set key=value` that of all.

    `train-cloud pipeline run pipeline.yaml --store ./store`
    """
    from train_cloud.config.pipeline import load_pipeline

    config = load_pipeline(pipeline, overrides or ())
    root = _root(config, store, output_dir, use_s3=use_s3, bucket=bucket)
    if platform != "local":
        for option, value in (("--start-from", start_from), ("--rerun", rerun)):
            if value:
                raise InputError(option, value, "only on this machine (--platform local): leave it out")
        role = [] if role_arn is None else [f"sagemaker.role={role_arn}"]
        launch_on(platform, Asked(pipeline, root, (*(overrides or ()), *role), parallel, resume))
        return
    if role_arn is not None:
        raise InputError("--role-arn", role_arn, "only --platform sagemaker takes it: leave it out")
    extras.need(_TRAINER, "pipeline run")
    for session in config.sessions:
        extras.need_all(session.config.extras, session.run_id)
    from train_cloud.cli.experiment_view import showing, summary
    from train_cloud.experiments.engine import Engine
    from train_cloud.experiments.pipeline.sessions import Sessions
    from train_cloud.experiments.processes import usable_cores

    sessions = Sessions(config, root, start_from=start_from, rerun=rerun, resume=resume, beside=output_dir)
    at_once = parallel or config.written.max_parallel or max(1, usable_cores() // (config.threads or 1))
    with showing() as changed:
        engine = Engine(
            sessions,
            source=pipeline.name,
            root=root,
            folder=output_dir or Path(".train-cloud"),
            parallel=min(at_once, len(config.sessions)),
            train_on=resume,
            trials=sessions,
            changed=changed,
            kind="pipeline",
            keep_completed=True,
        )
        engine.run()
    echo(f"pipeline {config.id}: {summary(engine.rows)}")


@commands.command()
def status(
    pipeline: _Pipeline,
    store: options.OptionalStore = None,
    output_dir: _OutputDir = None,
    as_json: options.AsJson = False,
    use_s3: _UseS3 = False,
    bucket: _Bucket = None,
    overrides: options.Overrides = None,
) -> None:
    """Show how far each session is, from the runs' heads.

    With `--json` what `pipeline_state.json` says, as it is now.

    `train-cloud pipeline status pipeline.yaml --store ./store`
    """
    state, report = _summary(pipeline, store, output_dir, use_s3, bucket, overrides)
    if as_json:
        echo(json.dumps(state, indent=2))
        return
    from train_cloud.cli.pipeline_view import progress

    progress(state, report)


@commands.command()
def report(
    pipeline: _Pipeline,
    store: options.OptionalStore = None,
    output_dir: _OutputDir = None,
    as_json: options.AsJson = False,
    use_s3: _UseS3 = False,
    bucket: _Bucket = None,
    overrides: options.Overrides = None,
) -> None:
    """Show what each session took, what it began with, and what its last evaluation found.

    With `--json` what `pipeline_report.json` says, as it is now.

    `train-cloud pipeline report pipeline.yaml --store ./store`
    """
    _, found = _summary(pipeline, store, output_dir, use_s3, bucket, overrides)
    if as_json:
        echo(json.dumps(found, indent=2))
        return
    from train_cloud.cli.pipeline_view import results

    results(found)


@commands.command()
def validate(
    pipeline: _Pipeline,
    store: options.OptionalStore = None,
    instance_types: options.InstanceTypes = None,
    overrides: options.Overrides = None,
) -> None:
    """Check a pipeline file, and build the model of every session.

    All that is wrong with the file is told at once. A session that begins with another one's model is built with that
    one's, untrained: what does not fit shows before anything is trained. With `--store` also whether the sessions are
    still what their runs were begun with.

    `train-cloud pipeline validate pipeline.yaml`
    """
    from train_cloud.config.pipeline import load_pipeline

    config = load_pipeline(pipeline, overrides or ())
    if store is not None:
        from train_cloud.experiments.pipeline.progress import Derivation

        Derivation(config, store).derive()
    if not extras.is_here(_TRAINER):
        echo(f"{config.id}: the pipeline file and its run files are right in themselves")
        echo("  not tried     whether they can be trained: that takes pip install 'train-cloud[sb3]'")
        return
    from train_cloud.cli.pipeline_view import plan
    from train_cloud.experiments.pipeline.check import check

    plan(config)
    check(config, instance_types or (), lambda name, said: echo(f"  {name}: {said}"))
    echo(f"{config.id}: all {len(config.sessions)} sessions can be trained")


def _summary(
    pipeline: Path,
    store: str | None,
    output_dir: Path | None,
    use_s3: bool,
    bucket: str | None,
    overrides: list[str] | None,
) -> tuple[dict[str, object], dict[str, object]]:
    from train_cloud.config.pipeline import load_pipeline
    from train_cloud.experiments.pipeline.files import summary
    from train_cloud.experiments.pipeline.progress import Derivation
    from train_cloud.store import check_exists

    config = load_pipeline(pipeline, overrides or ())
    root = _root(config, store, output_dir, use_s3=use_s3, bucket=bucket)
    check_exists(root, "--store")
    return summary(root, config, Derivation(config, root, check=False).derive())


def _root(
    config: PipelineConfig, store: str | None, output_dir: Path | None, *, use_s3: bool, bucket: str | None
) -> str:
    """The store, by what is named most closely: an option, the variable, the file, the folder of local files."""
    aws = config.written.aws
    if aws is not None and aws.region is not None:
        os.environ.setdefault("AWS_DEFAULT_REGION", aws.region)
    if bucket is not None and not use_s3:
        raise InputError("--s3-bucket", bucket, "add --use-s3, or name the whole store with --store")
    if use_s3:
        name = bucket or (aws.s3_bucket if aws is not None else None)
        if name is None:
            raise InputError("--use-s3", True, "name the bucket with --s3-bucket")
        if store is not None and "TRAIN_CLOUD_STORE" not in os.environ:
            raise InputError("--use-s3", True, f"the store is {store} already: leave one out")
        return f"s3://{name.removeprefix('s3://')}"
    found = store or config.s3_store or (str(output_dir / "store") if output_dir is not None else None)
    if found is None:
        fix = "name a folder or s3://bucket/prefix, set TRAIN_CLOUD_STORE, or give --output-dir"
        raise InputError("--store", None, fix)
    return found
