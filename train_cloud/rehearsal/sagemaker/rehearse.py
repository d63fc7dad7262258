"""A run as training jobs on this machine: created, cut off, stopped, out of time, failed, completed.

What is real: the launch, its requests over HTTP, Terraform and the module that makes the role, S3, that role's own
permissions, the entry point, processes and signals, the trainer. What is played: SageMaker, and the machines: each job
has an ``/opt/ml`` of its own in a mount namespace, or is a container from the real image.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from train_cloud.config import RunFile, load_run_file
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.operations.sagemaker.launch import create, plan_run, stop_jobs
from train_cloud.platforms.sagemaker.jobs import recorded_jobs, states
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.rehearse import (
    ControlRun,
    as_launched,
    ended_as_by_ctrl_c,
    environment,
    fresh_folder,
    head_of,
    interval,
    shown_path,
    snapshot_at,
)
from train_cloud.rehearsal.sagemaker.containers import Container, Process, need
from train_cloud.rehearsal.sagemaker.life import Life
from train_cloud.rehearsal.sagemaker.service import ACCOUNT, Job, SageMaker
from train_cloud.rehearsal.scenario import LIMIT, threads
from train_cloud.rehearsal.timeline import Timeline
from train_cloud.run import layout
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.store import ObjectStore, open_store

_BUCKET = "rehearsal-of-training-jobs"
_IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/train-cloud:rehearsal"
#: Shares of the run at which a machine is taken, the job is stopped, and its time is over; none falls on a checkpoint.
_CUT_AT, _STOP_AT, _LATE_AT, _BEYOND = 0.25, 0.5, 0.7, 0.6
#: Of what the rehearsal's jobs are told to install: it is there already, or the rehearsal says what is missing.
_NOTHING_NEW = {"PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1"}
_PLAYED = {
    *("Starting", "Downloading", "Training", "Interrupted", "Uploading", "Stopping", "Stopped", "Completed"),
    *("MaxRuntimeExceeded", "MaxWaitTimeExceeded", "Failed"),
}
Start = Callable[[Path, dict[str, str], Path], Container]


def rehearse_sagemaker(
    run_file: Path, *, overrides: Sequence[str] = (), output: Path = Path("rehearsal"), image: bool = False
) -> int:
    """Rehearse a run file and leave ``<output>/<run_id>/report.json``.

    :param image: in containers from the real image instead of processes
    :return: 0 if the run ended as promised, 1 if a promise was broken; the report says which
    :raises InputError: bad run file; this computer lacks what it takes
    """
    if not image:
        need()
    given = load_run_file(run_file, overrides)
    if given.seeds is not None:
        raise InputError("seeds", list(given.seeds), "several runs: train-cloud expand writes a run file for each")
    interval(given)
    folder = fresh_folder(output, given.run_id)
    timeline = Timeline()
    timeline.title(f"Rehearsal of {given.run_id} on SageMaker: {given.total_timesteps:,} timesteps, no AWS")
    launched = as_launched(run_file, given, overrides, folder)
    with (
        ended_as_by_ctrl_c(folder),
        EmbeddedAws(log=folder / "aws.log") as aws,
        ControlRun(launched, folder / "control", timeline) as control,
    ):
        with _stack(aws, folder, timeline) as (root, role):
            places = {"sagemaker.role": role, "sagemaker.image": _IMAGE, "sagemaker.spot": True}
            places["sagemaker.keep_alive_seconds"] = 0
            changes = [f"{key}={json.dumps(value)}" for key, value in places.items()]
            config = load_run_file(launched, changes)
            start = _starter(aws, role, folder, config, image, timeline)
            with (
                aws.permissions_enforced(),  # a job may do what its role says, and nothing else
                _Scenario(aws, launched, changes, config, root, role, folder, timeline, start) as scenario,
            ):
                scenario.live()
                timeline.title("Comparing with the control run")
                control.wait()
                report = scenario.report(control.root)
        report["resources_left_after_destroy"] = [*aws.resources_left(), *_left(aws)]
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return _judge(report, timeline, folder)


@contextlib.contextmanager
def _stack(aws: EmbeddedAws, folder: Path, timeline: Timeline) -> Iterator[tuple[str, str]]:
    """The store's root and the ARN of the job's role, as the Terraform module makes them."""
    from train_cloud.rehearsal.terraform import Terraform

    def tell(address: str, done: str) -> None:
        timeline.add("terraform", f"{address} {done}")

    aws.client("s3").create_bucket(Bucket=_BUCKET)
    terraform = Terraform(folder / "stack", aws, module="sagemaker", on_event=tell)
    outputs = terraform.apply({"project_name": "rehearsal", "s3_bucket_name": _BUCKET, "notification_emails": []})
    yield outputs["store"], outputs["role_arn"]
    timeline.title("Cleaning up")
    terraform.destroy()
    s3 = aws.client("s3")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET):
        for found in page.get("Contents", ()):
            s3.delete_object(Bucket=_BUCKET, Key=found["Key"])
    s3.delete_bucket(Bucket=_BUCKET)


def _left(aws: EmbeddedAws) -> list[str]:
    """Of what only this module makes."""
    repositories = aws.client("ecr").describe_repositories()["repositories"]
    rules = aws.client("events").list_rules()["Rules"]
    return [
        *(f"repository {found['repositoryName']}" for found in repositories),
        *(f"event rule {found['Name']}" for found in rules),
    ]


def _starter(aws: EmbeddedAws, role: str, folder: Path, config: RunFile, image: bool, timeline: Timeline) -> Start:
    """What starts a container of a job, with the role's own credentials."""
    make: Callable[[Path, dict[str, str], Path], Container] = Process
    if image:
        from train_cloud.rehearsal.sagemaker.podman import build

        make = build(config, lambda text: timeline.add("image", text))
    own = {} if image else _NOTHING_NEW

    def start(place: Path, variables: dict[str, str], log: Path) -> Container:
        given = aws.assume(role.rsplit("/", 1)[1], "SageMaker")
        keys = {
            "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
            "AWS_SESSION_TOKEN": given["SessionToken"],
        }
        return make(place, {**threads(), **aws.environment(), **keys, **own, **variables}, log)

    return start


class _Scenario:
    """What befalls the jobs of one run."""

    def __init__(
        self,
        aws: EmbeddedAws,
        run_file: Path,
        overrides: Sequence[str],
        config: RunFile,
        root: str,
        role: str,
        folder: Path,
        timeline: Timeline,
        start: Start,
    ) -> None:
        self._aws, self._run_file, self._overrides, self._config = aws, run_file, overrides, config
        self._root, self._role, self._folder, self._timeline = root, role, folder, timeline
        self._start = start
        self._store: ObjectStore
        self._lives: list[Life] = []
        self._capacity = True
        self._service = SageMaker(self._play, trusts=self._trusts)
        self._open = contextlib.ExitStack()
        self._kept: dict[str, bool] = {}
        self._cut_seconds: list[float] = []

    def __enter__(self) -> _Scenario:
        self._open.enter_context(self._service)
        variables = {**self._aws.environment(), "AWS_ENDPOINT_URL_SAGEMAKER": self._service.endpoint}
        self._open.enter_context(environment(variables))
        self._store = open_store(layout.run_url(self._root, self._config.run_id))
        return self

    def __exit__(self, *_: object) -> None:
        for life in self._lives:
            life.close()
        self._open.close()

    def live(self) -> None:
        """One job after the other, each with its end."""
        save, total = interval(self._config), self._config.total_timesteps
        cut, stop, late = (
            int(share * total) // save * save + int(_BEYOND * save) for share in (_CUT_AT, _STOP_AT, _LATE_AT)
        )
        self._timeline.title("A job for which no spot machine comes")
        self._capacity = False
        waiting = self._launch()
        waiting.out_of_time()
        self._ends(waiting, "MaxWaitTimeExceeded")
        self._capacity = True
        self._timeline.title("A job whose machine is taken, and which is stopped after that")
        first = self._launch()
        self._reach(first, cut)
        self._cut(first)
        self._reach(first, stop)
        stop_jobs(self._store)
        self._ends(first, "Stopped")
        self._timeline.title("A job whose time is over")
        second = self._launch()
        self._reach(second, late)
        second.out_of_time()
        self._ends(second, "MaxRuntimeExceeded")
        self._timeline.title("A job that completes the run")
        third = self._launch()
        self._ends(third, "Completed")
        self._timeline.title("Jobs that have nothing to train")
        self._ended_run_trains_no_more(third)
        self._nothing_was_launched(third)

    def _launch(self) -> Life:
        before = len(self._lives)
        planned = plan_run(self._run_file, self._root, self._overrides)
        record = create(planned, self._root)
        self._timeline.add("launch", f"created {record.name}")
        return self._life(before)

    def _life(self, before: int) -> Life:
        self._until("the job is there", lambda: len(self._lives) > before, None)
        return self._lives[-1]

    def _play(self, job: Job) -> None:
        number = len(self._lives) + 1
        folder = self._folder / "jobs" / job.name
        folder.mkdir(parents=True)
        at_service = {"AWS_ENDPOINT_URL_SAGEMAKER": self._service.endpoint}
        life = Life(
            job,
            folder,
            lambda place, variables, log: self._start(place, {**variables, **at_service}, log),
            lambda said: self._timeline.add("aws", f"job {number}: {said}"),
            capacity=self._capacity,
        )
        self._lives.append(life)
        with contextlib.suppress(TrainCloudError):  # which Life keeps for whoever waits
            life.play()

    def _trusts(self, role: str) -> bool:
        found = self._aws.client("iam").get_role(RoleName=role.rsplit("/", 1)[1])["Role"]
        return "sagemaker.amazonaws.com" in json.dumps(found["AssumeRolePolicyDocument"])

    # ------------------------------------------------------------------------------------------ what is waited for

    def _reach(self, life: Life, timesteps: int) -> None:
        self._until(f"{timesteps:,} timesteps", lambda: life.timesteps >= timesteps, life)
        self._timeline.add("train", f"at {life.timesteps:,} timesteps")

    def _cut(self, life: Life) -> None:
        """The trainer leaves, the container stays, and the machine goes."""
        session = read_sessions(self._store)[-1].number
        began = time.monotonic()
        life.cut()
        self._timeline.add("aws", "the spot machine is taken: SIGTERM, two minutes left")

        def has_left() -> bool:
            return any(record.number == session and record.end is not None for record in read_sessions(self._store))

        self._until("the trainer to leave", has_left, life)
        self._cut_seconds.append(time.monotonic() - began)
        self._timeline.add("train", f"all is committed {self._cut_seconds[-1]:.1f} s after SIGTERM")
        life.machine_goes()
        self._until("another machine", lambda: life.starts == 2, life)

    def _ends(self, life: Life, secondary: str) -> None:
        self._until(secondary, lambda: life.job.over, None)
        if life.job.seen[-1] != secondary:
            raise TrainCloudError(f"the job ended as {life.job.seen[-1]}, not {secondary}: {life.log()[-2000:]}")

    def _until(self, what: str, condition: Callable[[], bool], life: Life | None) -> None:
        until = time.monotonic() + LIMIT
        while not condition():
            if life is not None and life.job.over:
                raise TrainCloudError(f"the job ended as {life.job.seen[-1]} before {what}: {life.log()[-2000:]}")
            if life is not None and life.error is not None:
                raise life.error
            if time.monotonic() > until:
                raise TrainCloudError(f"waited {LIMIT:.0f} s for: {what}")
            time.sleep(0.1)

    # ------------------------------------------------------------------------------------ what has nothing to train

    def _ended_run_trains_no_more(self, last: Life) -> None:
        """As when the machine was taken between the outcome and the exit code; and when somebody launches it again."""
        sessions = len(read_sessions(self._store))
        again = self._again(last, {})
        self._ends(again, "Completed")
        self._kept["a run that has ended trains no more"] = len(read_sessions(self._store)) == sessions
        try:
            plan_run(self._run_file, self._root, self._overrides)
            refused = False
        except InputError as error:
            self._timeline.add("launch", f"refused: {error}")
            refused = True
        self._kept["and is not launched again"] = refused

    def _nothing_was_launched(self, last: Life) -> None:
        """A job with a digest that nothing in the store has."""
        told = last.job.request["HyperParameters"]
        wrong = {**told, "launch": told["launch"].replace(Path(told["launch"]).stem, "0" * 64)}
        failed = self._again(last, {"HyperParameters": wrong})
        self._ends(failed, "Failed")
        reason = failed.job.failure or ""
        self._timeline.add("aws", f"its reason: {reason}")
        self._kept["a job that finds something else than was launched fails, and says so"] = "launched" in reason

    def _again(self, life: Life, changes: dict[str, Any]) -> Life:
        before = len(self._lives)
        name = f"{life.job.name[:55]}-{len(self._lives)}"
        request = {**life.job.request, "TrainingJobName": name, **changes}
        self._service.answer("CreateTrainingJob", request)
        return self._life(before)

    # -------------------------------------------------------------------------------------------------- the report

    def report(self, control: str) -> dict[str, Any]:
        """Everything that must be read before the bucket goes."""
        from train_cloud.sb3.compare import differences

        head, expected = head_of(self._store), open_store(layout.run_url(control, self._config.run_id))
        found = differences(
            snapshot_at(self._store, head), snapshot_at(expected, head_of(expected)), self._config.code.folder
        )
        sessions = read_sessions(self._store)
        known = [{**(record.progress or {}), **(record.end or {})} for record in sessions]
        repeated = [
            int(before["last_timestep"]) - int(after["first_timestep"]) for before, after in itertools.pairwise(known)
        ]
        return {
            "run_id": self._config.run_id,
            "outcome": head.outcome,
            "timesteps": head.timesteps,
            "jobs": [
                {
                    "name": life.job.name,
                    "secondary_statuses": life.job.seen,
                    "exit_codes": life.exit_codes,
                    "seconds_from_sigterm": [round(seconds, 1) for seconds in life.stop_seconds],
                    "failure": life.job.failure,
                }
                for life in self._lives
            ],
            "states_known_to_launch": [state.in_words() for state in states(recorded_jobs(self._store))],
            "sessions": [_session(record) for record in sessions],
            "timesteps_repeated": repeated,
            "seconds_from_sigterm_to_commit": [round(seconds, 1) for seconds in self._cut_seconds],
            "kept": self._kept,
            "differences": found,
        }


def _session(record: SessionRecord) -> dict[str, Any]:
    known = {**(record.progress or {}), **(record.end or {})}
    return {
        "session": record.number,
        "job": record.start.get("instance_id"),
        "instance_type": record.start.get("instance_type"),
        **{name: known.get(name) for name in ("first_timestep", "last_timestep", "ended_by")},
    }


def _judge(report: dict[str, Any], timeline: Timeline, folder: Path) -> int:
    timeline.title("Result")
    for difference in report["differences"][:10]:
        timeline.add("result", f"differs: {difference}")
    seen = {status for job in report["jobs"] for status in job["secondary_statuses"]}
    stops = [seconds for job in report["jobs"] for seconds in job["seconds_from_sigterm"]]
    left = report["resources_left_after_destroy"]
    kept = {
        "outcome completed": report["outcome"] == "completed",
        f"{len(report['sessions'])} sessions in {len(report['jobs'])} jobs": len(report["sessions"]) == 4,
        f"{len(seen)} secondary statuses were seen": seen == _PLAYED,
        f"{sum(report['timesteps_repeated'])} steps repeated after {len(report['timesteps_repeated'])} interruptions": (
            not any(report["timesteps_repeated"])
        ),
        f"at most {max(stops):.1f} of the 120 s that SIGTERM leaves": max(stops) < 120,
        **report["kept"],
        "bit for bit where the uninterrupted run ended": not report["differences"],
        f"{len(left)} resources left after destroy": not left,
    }
    for what, true in kept.items():
        timeline.add("result", f"{'✓' if true else '✗'} {what}")
    timeline.add("result", f"report.json and the jobs' logs in {shown_path(folder)}")
    return 0 if all(kept.values()) else 1
