"""To launch a run as a training job: everything is checked first, then the job is written down, then it is created."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from train_cloud.config import RunFile, load_run_file, parse_overrides
from train_cloud.config.sagemaker import SageMaker
from train_cloud.errors import CloudError, ConditionFailed, InputError
from train_cloud.platforms.ec2.price import Price
from train_cloud.platforms.sagemaker.jobs import (
    JobRecord,
    Jobs,
    JobState,
    hourly_price,
    record_job,
    recorded_jobs,
    states,
)
from train_cloud.platforms.sagemaker.launched import Launched, put_code, put_launch
from train_cloud.platforms.sagemaker.request import RUN_TAG, job_name, refuse_pool_and_spot, training_job
from train_cloud.report.preflight import check_before_training
from train_cloud.run import layout
from train_cloud.run.head import reopen
from train_cloud.run.session import now
from train_cloud.store import ObjectStore, open_store

log = logging.getLogger(__name__)
_DRAFT = "0" * 64
"""In the place of a digest that is not known before the launch is written."""


@dataclass(frozen=True)
class Launch:
    """What one job is to do, checked: nothing of it is created yet."""

    config: RunFile
    """Of the run, or of the first of several; it has the section ``sagemaker``."""
    launched: Launched
    name: str
    """The job's."""
    folder: str
    """Where it is written down, relative to the store's root: the run's folder."""

    @property
    def section(self) -> SageMaker:
        return section_of(self.config)


def section_of(config: RunFile) -> SageMaker:
    """:raises InputError: the run file has none"""
    if config.sagemaker is None:
        fix = "add the section to the run file, with at least role and image (docs/sagemaker.md)"
        raise InputError("sagemaker", None, fix)
    return config.sagemaker


def check_store(root: str) -> None:
    """:raises InputError: a job could not reach it"""
    if not root.startswith("s3://"):
        raise InputError("--store", root, "a job reaches no folder of this machine: give s3://bucket/prefix")


def plan_run(path: Path, root: str, overrides: Sequence[str] = (), *, train_on: bool = False) -> Launch:
    """Check a run file for a launch; writes nothing.

    :param overrides: as given with ``--set``
    :param train_on: train on where a callback has ended the run early
    :raises InputError: what this version, the store or AWS would refuse
    """
    config = load_run_file(path, overrides)
    return plan(config, path.read_text(), root, parse_overrides(overrides), train_on=train_on)


def plan(config: RunFile, text: str, root: str, overrides: Mapping[str, Any], *, train_on: bool = False) -> Launch:
    """As :func:`plan_run`.

    :param config: what ``text`` and ``overrides`` say
    :param text: the run file's
    """
    check_store(root)
    section = section_of(config)
    if config.seeds is not None:
        fix = "several runs: write a run file for each with train-cloud expand, or launch an experiment file"
        raise InputError("seeds", list(config.seeds), fix)
    check_before_training(root, config, train_on=train_on)
    launched = Launched(
        command=("train",),
        main="run.yaml",
        files={"run.yaml": text},
        run_ids=(config.run_id,),
        overrides=overrides,
        options=("--continue",) if train_on else (),
        machine=describe_machine(section),
    )
    return make(config, launched, root, layout.run_folder(config.run_id))


def make(config: RunFile, launched: Launched, root: str, folder: str) -> Launch:
    """:raises InputError: AWS would refuse it, or a limit could not be kept"""
    section = section_of(config)
    hourly = launched.machine["price"]["on_demand"]
    refuse_pool_and_spot(section, hourly)
    if config.limits.dollars is not None and hourly is None:
        why = launched.machine["price"]["because"]
        raise InputError("limits.dollars", config.limits.dollars, f"it cannot be kept without a price: {why}")
    chance = secrets.token_hex(2)
    name = job_name(section.job_name or layout.run_id_of(folder), datetime.now(timezone.utc), chance)
    found = Launch(config, launched, name, folder)
    request(found, root, f"{folder}/{layout.launch_key(_DRAFT)}")
    return found


def request(launch: Launch, root: str, key: str) -> dict[str, Any]:
    """What AWS is asked for.

    :param key: of what is launched
    """
    return training_job(
        launch.section,
        launch.name,
        store=root.rstrip("/"),
        launch=key,
        tags={RUN_TAG: layout.run_id_of(launch.folder)},
    )


def create(launch: Launch, root: str) -> JobRecord:
    """Write down what is launched, clear an outcome, and create the job.

    :raises InputError: another job of the run is at work
    :raises CloudError: AWS refuses
    """
    base = open_store(root)
    stores = [open_store(layout.run_url(root, run_id)) for run_id in launch.launched.run_ids]
    own = open_store(f"{root.rstrip('/')}/{launch.folder}")
    jobs = Jobs(launch.section.chosen_region)
    refuse_second(own)
    launched = launch.launched.model_copy(update={"code": put_code(base, launch.config)})
    key = put_launch(base, launch.folder, launched)
    asked = request(launch, root, key)
    for run_id, store in zip(launched.run_ids, stores, strict=True):
        if len(launched.run_ids) == 1:
            write_run(store, run_id, launched.files[launched.main])
            reopen(store)
    record = JobRecord(name=launch.name, region=jobs.region, launched=now(), launch=key)
    record_job(own, record)
    jobs.create(asked)
    return record


def write_run(store: ObjectStore, run_id: str, text: str, experiment: str | None = None) -> None:
    """For those who look at the run: its file as it was first launched, and who has launched it.

    :param experiment: whose limits over all runs it shares
    """
    launch = {"run_id": run_id, "launched_by": "sagemaker", "launched": now()}
    if experiment is not None:
        launch["experiment"] = experiment
    for key, body in ((layout.RUN_YAML, text), (layout.RUN_JSON, json.dumps(launch))):
        with suppress(ConditionFailed):  # it stands as it was launched first
            store.create(key, body.encode())


def refuse_second(store: ObjectStore) -> None:
    """:raises InputError: a job of this run is at work, or waits for a machine"""
    for state in jobs_at_work(store):
        fix = f"{state.in_words()}: train-cloud stop ends it, and a launch after that goes on"
        raise InputError("run", layout.run_id_of(store.url), f"the job {state.name} is at work already, {fix}")


def jobs_at_work(store: ObjectStore) -> list[JobState]:
    """Of one run."""
    return [state for state in states(recorded_jobs(store)) if not state.over]


def stop_jobs(store: ObjectStore) -> list[JobState]:
    """Ask for the end of a run's jobs; those that were at work."""
    found = jobs_at_work(store)
    regions = {record.name: record.region for record in recorded_jobs(store)}
    for state in found:
        if state.status != "Stopping":
            Jobs(regions[state.name]).stop(state.name)
    return found


def describe_machine(section: SageMaker) -> dict[str, Any]:
    """What a session's start says of its machine; asked here, so that the job needs no right to ask."""
    hourly, because = None, None
    try:
        hourly = hourly_price(section.instance_type, section.chosen_region)
    except CloudError as error:
        because = str(error)
        log.info("unknown price: %s", because)
    if section.spot:
        because = "; ".join(filter(None, [because, "SageMaker tells no spot price before the bill"]))
    # A machine of SageMaker's has no volume or address that is billed apart from what its own price list says.
    price = Price(on_demand=hourly, life_cycle="spot" if section.spot else "on-demand", because=because)
    return {"instance_type": section.instance_type, "price": price.model_dump()}
