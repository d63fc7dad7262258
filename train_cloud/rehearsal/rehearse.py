"""The whole life of a run on one machine: launched, interrupted, killed, resumed, finished, cleaned up.

What is real: Terraform and the module, user-data and units, metadata over HTTP, S3 over HTTP, processes and signals,
the trainer, watch and finish. What is played: AWS (moto), the interruptions, and the instances: by local processes, or
by real machines, on which user-data, cloud-init, pip and systemd are real too.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from train_cloud import child_process
from train_cloud.artifacts import tensorboard
from train_cloud.checkpoint import read_manifest, restore
from train_cloud.config import RunFile, load_run_file
from train_cloud.errors import InputError, Interrupted, TrainCloudError
from train_cloud.operations.requirements import packages
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.instance import Instance, InstanceDriver
from train_cloud.rehearsal.learning_curve import draw
from train_cloud.rehearsal.scenario import LIMIT, Scenario, threads
from train_cloud.rehearsal.terraform import Terraform
from train_cloud.rehearsal.timeline import Timeline
from train_cloud.report.status import exactness_in_words, run_status
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.snapshot import Snapshot
from train_cloud.store import ObjectStore, open_store

#: Shares of the run at which it is interrupted and killed, and the share of a save interval beyond, so that neither
#: falls on a checkpoint.
NOTICE_AT, _KILL_AT, BEYOND = 0.3, 0.65, 0.6
PROJECT = "rehearsal"
_CURVES = ("rollout/ep_rew_mean", "eval/mean_reward", "train/loss", "train/critic_loss")


def rehearse(
    run_file: Path, *, overrides: Sequence[str] = (), output: Path = Path("rehearsal"), machine: bool = False
) -> int:
    """Rehearse ``run_file`` and leave ``<output>/<run_id>/`` with report, learning curve, TensorBoard logs and model.

    :param machine: on machines with an operating system of their own instead of local processes
    :return: 0 if the run completed as promised, 1 if a promise was broken; the report says which
    :raises InputError: bad run file, no Terraform, not Linux; with ``machine``: what this computer lacks for it
    """
    config = load_run_file(run_file, overrides)
    if config.seeds is not None:
        raise InputError("seeds", list(config.seeds), "several runs: train-cloud expand writes a run file for each")
    interval(config)
    timeline = Timeline()
    driver = _machines(config, timeline) if machine else Instance
    folder = fresh_folder(output, config.run_id)
    timeline.title(f"Rehearsal of {config.run_id}: {config.total_timesteps:,} timesteps, two interruptions, no AWS")
    launched = as_launched(run_file, config, overrides, folder)
    with (
        ended_as_by_ctrl_c(folder),
        EmbeddedAws(log=folder / "aws.log") as aws,
        ControlRun(launched, folder / "control", timeline) as control,
    ):
        tally = Tally(timeline)
        terraform = Terraform(folder / "stack", aws, on_event=tally)
        outputs = terraform.apply({"run_file": launched, "project_name": PROJECT, "delete_artifacts_on_destroy": True})
        tally.tell("created")
        scenario = Scenario(aws, outputs["autoscaling_group_name"], config, folder, timeline, driver)
        try:
            with aws.permissions_enforced():  # the worker may do what its role says, and nothing else
                _live(scenario, config, timeline)
            report = _Report(scenario, control, config, folder, timeline)
            report.collect()
        finally:
            scenario.close()
        timeline.title("Cleaning up")
        terraform.destroy()
        tally.tell("destroyed")
        return report.write(aws.resources_left())


def _machines(config: RunFile, timeline: Timeline) -> Callable[..., InstanceDriver]:
    """What makes a real machine for each instance, from an image that is here once this returns."""
    from train_cloud.rehearsal.machine import MachineInstance, prepare

    image = prepare(config.requirements, packages(config), say=lambda text: timeline.add("image", text))
    return functools.partial(MachineInstance, image=image)


def as_launched(run_file: Path, config: RunFile, overrides: Sequence[str], folder: Path) -> Path:
    """The file itself; with ``--set``, one with what was set, since Terraform knows only three of the fields."""
    if not overrides:
        return run_file.absolute()
    from ruamel.yaml import YAML

    path = folder / "run.yaml"
    with path.open("w") as file:
        YAML().dump(config.model_dump(mode="json", exclude_unset=True), file)
    return path


class Tally:
    """Terraform's events, with the code's many objects told as one."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._objects = 0

    def __call__(self, address: str, done: str) -> None:
        if address.startswith("aws_s3_object.code["):
            self._objects += 1
        else:
            self._timeline.add("terraform", f"{address} {done}")

    def tell(self, done: str) -> None:
        self._timeline.add("terraform", f"aws_s3_object.code: {self._objects} objects {done}")
        self._objects = 0


class ControlRun:
    """The same run file, trained without an interruption at the same time, as anybody would on a laptop."""

    def __init__(self, run_file: Path, folder: Path, timeline: Timeline) -> None:
        self._run_file, self._folder, self._timeline = run_file, folder, timeline
        self._process: subprocess.Popen[bytes] | None = None
        self.root = str(folder / "store")

    def __enter__(self) -> ControlRun:
        self._folder.mkdir()
        variables = child_process.environment()
        environment = {name: value for name, value in variables.items() if not name.startswith("TRAIN_CLOUD_")}
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *child_process.command("train_cloud", "train", str(self._run_file), user_code=True),
                    *("--store", self.root, "--state-dir", str(self._folder / "state")),
                    *("--set", "evaluation=null"),  # which must not make a difference
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, **threads()},
            )
        self._timeline.add("control", "starts: the same run file, never interrupted")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> None:
        """:raises TrainCloudError: it did not complete"""
        assert self._process is not None
        if self._process.wait(LIMIT) != 0:
            log = (self._folder / "log.txt").read_text()[-2000:]
            raise TrainCloudError(f"the control run ended with {self._process.returncode}: {log}")


def _live(scenario: Scenario, config: RunFile, timeline: Timeline) -> None:
    """A notice, a kill, and the end."""
    save = interval(config)
    notice, kill = (
        int(share * config.total_timesteps) // save * save + int(BEYOND * save) for share in (NOTICE_AT, _KILL_AT)
    )
    timeline.title("The first machine")
    first = scenario.boot()
    scenario.reach(first, notice)
    scenario.announce(first)
    scenario.interrupt(first)
    timeline.title("The second machine")
    second = scenario.boot()
    scenario.reach(second, kill)
    scenario.kill(second)
    timeline.title("The third machine")
    scenario.complete(scenario.boot())


class _Report:
    """Compares what came of the run with the control run, and writes it down."""

    def __init__(
        self, scenario: Scenario, control: ControlRun, config: RunFile, folder: Path, timeline: Timeline
    ) -> None:
        self._scenario, self._control, self._config = scenario, control, config
        self._folder, self._timeline = folder, timeline
        self._content: dict[str, Any] = {}

    def collect(self) -> None:
        """Everything that must be read before the bucket goes."""
        from train_cloud.operations.export import export
        from train_cloud.operations.html_report import write_page
        from train_cloud.sb3.compare import differences

        self._timeline.title("Comparing with the control run")
        self._control.wait()
        run_id = self._config.run_id
        bucket = next(b["Name"] for b in self._scenario.aws.client("s3").list_buckets()["Buckets"])
        with environment(self._scenario.aws.environment()):
            root = f"s3://{bucket}"
            store, control = (open_store(layout.run_url(base, run_id)) for base in (root, self._control.root))
            head = head_of(store)
            scalars = self._scalars(store, "tensorboard"), self._scalars(control, "control/tensorboard")
            found = differences(
                snapshot_at(store, head), snapshot_at(control, head_of(control)), self._config.code.folder
            )
            own = ("time/", "system/", *(["eval/"] if self._config.evaluation is not None else []))
            found += [
                f"scalar {tag}"
                for tag in sorted({*scalars[0], *scalars[1]})
                if not tag.startswith(own) and scalars[0].get(tag) != scalars[1].get(tag)
            ]
            export(root, run_id, out=self._folder / "model")
            self._keep_pictures(store)
            sessions = self._sessions(store)
            status = run_status(root, run_id)
            self._exact = exactness_in_words(status)
            reached = {session["session"]: session["last_timestep"] for session in sessions}
            write_page(root, run_id, self._folder / "report.html", reached=reached)
        for difference in found[:10]:
            self._timeline.add("result", f"differs: {difference}")
        self._content = {
            "run_id": run_id,
            "outcome": head.outcome,
            "timesteps": head.timesteps,
            "sessions": sessions,
            "timesteps_repeated_after_notice": self._repeated(sessions, "notice"),
            "timesteps_repeated_after_kill": self._repeated(sessions, "kill"),
            "bound": self._bound(store),
            "bit_identical_to_uninterrupted": not found,
            "differences": found,
            "exact": status.exact,
            "exact_evidence": status.exact_evidence,
            "exact_because": status.because,
            "final_desired_capacity": self._scenario.desired_capacity(),
            "shown_by_tensorboard": self._scenario.shown_scalars,
        }
        self._tags = set(scalars[0])
        tag = next((tag for tag in _CURVES if tag in scalars[0]), None)
        if tag is not None:
            title = f"{run_id}: interrupted {len(sessions) - 1} times"
            title += ", bit for bit the same" if not found else ", NOT the same"
            path = self._folder / "learning_curve.png"
            draw(path, title, scalars[0][tag], scalars[1].get(tag, []), sessions, tag)

    def write(self, left: list[str]) -> int:
        content = self._content
        content["resources_left_after_destroy"] = left
        content["timeline"] = [
            {"seconds": round(seconds, 1), "who": who, "what": what}
            for seconds, who, what in sorted(self._timeline.events, key=lambda event: event[0])
        ]
        (self._folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
        say = self._timeline.add
        self._timeline.title("Result")
        kept = {
            "outcome completed": content["outcome"] == "completed",
            f"{len(content['sessions'])} sessions": len(content["sessions"]) == 3,
            f"{content['timesteps_repeated_after_notice']} steps repeated after the notice": (
                content["timesteps_repeated_after_notice"] == 0
            ),
            f"{content['timesteps_repeated_after_kill']} steps repeated after the kill, bound {content['bound']}": (
                content["timesteps_repeated_after_kill"] <= content["bound"]
            ),
            "bit for bit where the uninterrupted run ended": content["bit_identical_to_uninterrupted"],
            f"status says exact: {self._exact}": not content["exact"] or content["bit_identical_to_uninterrupted"],
            f"capacity {content['final_desired_capacity']}": content["final_desired_capacity"] == 0,
            f"{len(left)} resources left after destroy": not left,
        }
        if content["shown_by_tensorboard"] is not None:
            shown = set(content["shown_by_tensorboard"])
            kept[f"{len(shown)} curves on the machine's TensorBoard"] = shown >= self._tags
        for what, true in kept.items():
            say("result", f"{'✓' if true else '✗'} {what}")
        say("result", f"report.html, videos, learning curve, TensorBoard logs and model in {shown_path(self._folder)}")
        return 0 if all(kept.values()) else 1

    def _scalars(self, store: ObjectStore, name: str) -> dict[str, list[tuple[int, float]]]:
        folder = self._folder / name
        folder.mkdir(parents=True)
        tensorboard.pull(store, folder)
        return tensorboard.read_scalars(folder)

    def _keep_pictures(self, store: ObjectStore) -> None:
        """Videos and routes, as they reached the bucket."""
        for folder in ("videos/", "route_visualizations/"):
            for info in store.list(layout.ARTIFACTS + folder):
                path = self._folder / info.key.removeprefix(layout.ARTIFACTS)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(store.get(info.key).body)

    def _sessions(self, store: ObjectStore) -> list[dict[str, Any]]:
        sessions = []
        for record in read_sessions(store):
            known = {**(record.progress or {}), **(record.end or {})}
            instance = record.start["instance_id"]
            sessions.append(
                {
                    "session": record.number,
                    "instance_id": instance,
                    "instance_type": record.start.get("instance_type"),
                    "first_timestep": known["first_timestep"],
                    "last_timestep": self._scenario.reached[instance],
                    "committed_timesteps": known["committed_timesteps"],
                    "ended_by": self._scenario.ended_by[instance],
                    "notices": record.notices,
                    **self._scenario.seconds[instance],
                    "notice_to_commit_seconds": self._notice_to_commit(record),
                }
            )
        return sessions

    def _notice_to_commit(self, record: SessionRecord) -> float | None:
        """From the announcement to the session's last word, which comes after its last commit."""
        noticed = self._scenario.noticed.get(record.start["instance_id"])
        if noticed is None or record.end is None:
            return None
        return round((datetime.fromisoformat(record.end["ended"]) - noticed).total_seconds(), 1)

    def _repeated(self, sessions: list[dict[str, Any]], ended_by: str) -> int:
        return sum(
            before["last_timestep"] - after["first_timestep"]
            for before, after in itertools.pairwise(sessions)
            if before["ended_by"] == ended_by
        )

    def _bound(self, store: ObjectStore) -> int:
        """One save interval, and the steps taken during one commit, at the rates that were measured."""
        during = 0.0
        for record in read_sessions(store):
            progress = record.progress or {}
            during = max(during, (progress.get("steps_per_second") or 0.0) * progress.get("commit_seconds", 0.0))
        return interval(self._config) + math.ceil(during)


def fresh_folder(output: Path, name: str) -> Path:
    """The folder of a rehearsal, without what an earlier one has left there."""
    folder = (output / name).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def interval(config: RunFile) -> int:
    """Timesteps between two commits: the rehearsal's promises are counted in them."""
    if config.save_frequency is None:
        fix = "the rehearsal's promises are counted in steps: add --set save_frequency=500"
        raise InputError("max_seconds_at_risk", config.max_seconds_at_risk, fix)
    return config.save_frequency


@contextlib.contextmanager
def ended_as_by_ctrl_c(folder: Path) -> Iterator[None]:
    """Ctrl-C ends a rehearsal with everything that it started, and so does SIGTERM.

    :param folder: that it writes
    :raises Interrupted: afterwards
    """
    if threading.current_thread() is not threading.main_thread():  # no other may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        ended = "ended, with all that it had started: machines, AWS and Terraform"
        raise Interrupted(f"the rehearsal is {ended}; its files so far are in {shown_path(folder)}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


class environment:
    """Sets variables within a block, and puts back what was there."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._variables = variables

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def head_of(store: ObjectStore) -> Head:
    read = read_head(store)
    if read is None or read[0].manifest is None:
        raise TrainCloudError(f"{store.url} has no checkpoint")
    return read[0]


def snapshot_at(store: ObjectStore, head: Head) -> Snapshot:
    assert head.manifest is not None
    return restore(store, read_manifest(store, head.manifest))


def shown_path(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)
