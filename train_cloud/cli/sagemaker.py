"""What ``launch``, ``stop``, ``status`` and ``logs`` do with training jobs of SageMaker, and a job's entry point."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from train_cloud.cli import options
from train_cloud.cli.terminal import echo
from train_cloud.errors import CloudError, InputError, StoreError

if TYPE_CHECKING:
    from train_cloud.cli.launch import Asked
    from train_cloud.operations.sagemaker.launch import Launch
    from train_cloud.platforms.sagemaker.jobs import JobState


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=options.WORKER)(sagemaker)


def sagemaker(
    argument: Annotated[
        str | None,
        typer.Argument(metavar="[train]", help="SageMaker's own; it says nothing.", show_default=False),
    ] = None,
) -> None:
    """Train what a SageMaker job was created for: the entry point of the image.

    Reads `/opt/ml/input/config`, fetches what was launched from the store by its digest, trains, and ends with the exit
    code and `/opt/ml/output/failure` that SageMaker looks for. SIGTERM makes it commit and leave.
    """
    if argument not in (None, "train"):
        raise InputError("train", argument, "SageMaker gives it `train`, or nothing; for all else: train-cloud --help")
    from train_cloud.operations.sagemaker.container import Container

    raise typer.Exit(Container().run())


def launch(asked: Asked) -> None:
    """``launch --platform sagemaker``."""
    from train_cloud.config import is_experiment
    from train_cloud.config.pipeline import is_pipeline

    if is_experiment(asked.path):
        _launch_experiment(asked)
        return
    if is_pipeline(asked.path):
        _launch_pipeline(asked)
        return
    if asked.parallel is not None:
        raise InputError("--parallel", asked.parallel, f"only an experiment takes it, and {asked.path} is none")
    from train_cloud.operations.sagemaker.launch import create, plan_run

    planned = plan_run(asked.path, asked.store, asked.overrides, train_on=asked.train_on)
    if asked.dry_run:
        _show(planned, asked.store)
        return
    record = create(planned, asked.store)
    run_id = planned.config.run_id
    echo(f"{run_id}: the job {record.name} is created in {record.region}")
    echo(f"  train-cloud status {run_id} --store {asked.store}")
    echo(f"  train-cloud stop {run_id} --platform sagemaker --store {asked.store}")


def _launch_experiment(asked: Asked) -> None:
    from train_cloud.config import load_experiment
    from train_cloud.experiments.launch import Queue

    experiment = load_experiment(asked.path, asked.overrides)
    queue = Queue(experiment, asked.store, asked.parallel, train_on=asked.train_on)
    for one in queue.over:
        echo(f"{one.cell.run_id}: {one.state} at {one.timesteps:,} timesteps")
    if asked.dry_run:
        for planned in queue.waiting:
            _show(planned.launch, asked.store)
        echo(f"{len(queue.waiting)} jobs, {min(queue.parallel, len(queue.waiting))} at once")
        return
    if asked.wait and len(queue.waiting) > queue.parallel:
        echo(f"{queue.parallel} jobs at once: this command stays until the last of {len(queue.waiting)} is launched.")
        echo("Jobs that are at work need it no more: end it with Ctrl-C, and the same command launches the others.")
    left = queue.launch_all(wait=asked.wait, each=lambda run_id, said: echo(f"{run_id}: {said}"))
    if left:
        echo(f"not launched: {len(left)} runs: {', '.join(one.cell.run_id for one in left)}")


def _launch_pipeline(asked: Asked) -> None:
    from train_cloud.experiments.pipeline_jobs import PipelineJobs

    jobs = PipelineJobs(asked.path, asked.store, asked.overrides, asked.parallel, train_on=asked.train_on)
    for line in jobs.warnings():
        echo(f"warning: {line}", err=True)
    if asked.dry_run:
        for part in jobs.parts:
            _show(part.launch, asked.store)
        return
    if asked.wait and len(jobs.parts) > 1:
        echo(f"{len(jobs.parts)} jobs, one after the other: this command stays until the last of them is launched.")
        echo("A job that is at work needs it no more: end it with Ctrl-C, and the same command goes on.")
    jobs.launch(wait=asked.wait, each=lambda said: echo(f"{jobs.config.id}: {said}"))


def _show(planned: Launch, root: str) -> None:
    """The request, as AWS would get it."""
    from train_cloud.operations.sagemaker.launch import request
    from train_cloud.run.layout import launch_key

    echo(json.dumps(request(planned, root, f"{planned.folder}/{launch_key('…')}"), indent=1, ensure_ascii=False))


def stop(run: str, store: str | None) -> None:
    """``stop --platform sagemaker``."""
    from train_cloud.cli.experiment import found_members
    from train_cloud.cli.report import find
    from train_cloud.config.pipeline import is_pipeline
    from train_cloud.operations.sagemaker.launch import stop_jobs
    from train_cloud.run.layout import run_url
    from train_cloud.store import open_store

    if is_pipeline(run):
        from train_cloud.config.pipeline import load_pipeline
        from train_cloud.experiments.pipeline_jobs import pipeline_folder

        if store is None:
            raise InputError("--store", None, "name s3://bucket/prefix, or set TRAIN_CLOUD_STORE")
        folder = f"{store.rstrip('/')}/{pipeline_folder(load_pipeline(run).id)}"
        _told(run, [(run, state) for state in stop_jobs(open_store(folder))])
        return
    group = found_members(run, None, store)
    if group is not None:
        root, run_ids = group.root, [member.run_id for member in group.members]
    else:
        root, run_id = find(run, store)
        if run_id is None:
            raise InputError("run", run, "name one run: its file, its id, or its folder's URL")
        run_ids = [run_id]
    stopped = [(run_id, state) for run_id in run_ids for state in stop_jobs(open_store(run_url(root, run_id)))]
    _told(run, stopped)


def _told(run: str, stopped: Sequence[tuple[str, JobState]]) -> None:
    for run_id, state in stopped:
        echo(f"{run_id}: the job {state.name} is asked to stop; it commits first, within two minutes")
    if not stopped:
        echo(f"no job of {run} is at work")


def job_lines(url: str) -> Iterator[str]:
    """For ``status``: the jobs of a run, or of a pipeline, the newest last. Only a hint: not everybody may ask.

    :param url: of its folder
    """
    from train_cloud.platforms.sagemaker.jobs import recorded_jobs, states
    from train_cloud.store import open_store

    try:
        records = recorded_jobs(open_store(url))
        found = {state.name: state for state in states(records)} if records else {}
    except (CloudError, StoreError) as error:
        yield f"jobs: not known: {error}"
        return
    for record in records:
        state = found.get(record.name)
        yield f"job {record.name}: {state.in_words() if state is not None else 'AWS knows no such job'}"


def job_log(root: str, run_id: str) -> Iterator[str]:
    """For ``logs --job``: what the newest job has said, by CloudWatch.

    :raises InputError: the run has no job
    """
    from train_cloud.platforms.sagemaker.jobs import Jobs, recorded_jobs
    from train_cloud.run.layout import run_url
    from train_cloud.store import open_store

    records = recorded_jobs(open_store(run_url(root, run_id)))
    if not records:
        raise InputError("--job", run_id, "no job of this run was ever launched: leave it out")
    yield from Jobs(records[-1].region).log(records[-1].name)
