"""The life of a pipeline on one group's machines: launched, a notice in each session and between two, the last
session's end, capacity 0, everything cleaned up. Beside it the same pipeline without interruptions.

As :mod:`train_cloud.rehearsal.rehearse` does with one run; real and played are the same things.
"""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from train_cloud import child_process
from train_cloud.config.pipeline import PipelineConfig, load_pipeline
from train_cloud.errors import TrainCloudError
from train_cloud.experiments.pipeline.files import pipeline_url
from train_cloud.experiments.pipeline.progress import Derivation, SessionStanding
from train_cloud.operations.expand_pipeline import expand_pipeline
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.instance import Instance, InstanceDriver
from train_cloud.rehearsal.rehearse import (
    BEYOND,
    NOTICE_AT,
    PROJECT,
    Tally,
    ended_as_by_ctrl_c,
    environment,
    fresh_folder,
    head_of,
    interval,
    shown_path,
    snapshot_at,
)
from train_cloud.rehearsal.scenario import LIMIT, Scenario, threads
from train_cloud.rehearsal.terraform import Terraform
from train_cloud.rehearsal.timeline import Timeline
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.run.session import last_session, read_sessions
from train_cloud.store import open_store

#: With so many sessions a notice comes between the first two, too; of two, the step from one to the other is measured.
_BETWEEN = 3


def rehearse_pipeline(path: Path, *, overrides: Sequence[str] = (), output: Path = Path("rehearsal")) -> int:
    """Rehearse a pipeline file, and leave ``<output>/<id>/report.json``.

    :return: 0 if it ended as promised, 1 if a promise was broken; the report says which
    :raises InputError: bad pipeline file, no Terraform, not Linux
    """
    pipeline = load_pipeline(path, overrides)
    for session in pipeline.sessions:
        interval(session.config)
    folder = fresh_folder(output, pipeline.id)
    timeline = Timeline()
    timeline.title(f"Rehearsal of {pipeline.id}: {len(pipeline.sessions)} sessions, a notice in each, no AWS")
    # With what was set, and elsewhere, so that nothing is written beside the user's own.
    own = expand_pipeline(path, overrides, into=folder / "launched")
    expand_pipeline(own)
    with (
        ended_as_by_ctrl_c(folder),
        EmbeddedAws(log=folder / "aws.log") as aws,
        _ControlPipeline(own, folder / "control", timeline) as control,
    ):
        tally = Tally(timeline)
        terraform = Terraform(folder / "stack", aws, on_event=tally)
        variables = {"pipeline_file": own, "project_name": PROJECT}
        outputs = terraform.apply({**variables, "delete_artifacts_on_destroy": True})
        tally.tell("created")
        root = str(outputs["s3_bucket_url"])
        life = _Life(aws, outputs["autoscaling_group_name"], pipeline, root, folder, timeline)
        try:
            with aws.permissions_enforced():
                life.live()
            timeline.title("Comparing with the control pipeline")
            control.wait()
            with environment(aws.environment()):
                report = _report(pipeline, root, control.root, life)
        finally:
            life.scenario.close()
        timeline.title("Cleaning up")
        terraform.destroy()
        tally.tell("destroyed")
        report["resources_left_after_destroy"] = aws.resources_left()
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return _judge(report, timeline, folder)


class _Life:
    """The machines of the group, one after the other."""

    def __init__(
        self, aws: EmbeddedAws, group: str, pipeline: PipelineConfig, root: str, folder: Path, timeline: Timeline
    ) -> None:
        self._aws, self._pipeline, self._root, self._timeline = aws, pipeline, root, timeline
        self.scenario = Scenario(aws, group, pipeline.sessions[0].config, folder, timeline)
        self.notices: list[str] = []
        """What each of them came in."""
        self.reached: dict[str, list[int]] = {}
        """Run id → timesteps that its machines had reached when they were taken away."""

    def live(self) -> None:
        """Until capacity 0."""
        order = self._pipeline.in_order()
        machine = self._boot()
        for number, session in enumerate(order):
            self.scenario.config = session.config
            save = interval(session.config)
            at = int(NOTICE_AT * session.config.total_timesteps) // save * save + int(BEYOND * save)
            run_id = session.run_id
            self.scenario.until(machine, f"session {session.name}", functools.partial(_trains, machine, run_id))
            self.scenario.reach(machine, at)
            machine = self._taken_away(machine, session.name, run_id)
            if number == 0 and len(order) >= _BETWEEN:
                self.scenario.until(machine, f"the end of {session.name}", functools.partial(self._is_over, run_id))
                machine = self._taken_away(machine, f"between {session.name} and {order[1].name}", None)
        self.scenario.complete(machine)

    def _boot(self) -> InstanceDriver:
        self._timeline.title(f"Machine {len(self.notices) + 1}")
        return self.scenario.boot()

    def _taken_away(self, machine: InstanceDriver, during: str, run_id: str | None) -> InstanceDriver:
        self.scenario.announce(machine)
        self.scenario.interrupt(machine)
        self.notices.append(during)
        if run_id is not None:
            self.reached.setdefault(run_id, []).append(self.scenario.reached[machine.instance_id])
        return self._boot()

    def _is_over(self, run_id: str) -> bool:
        with environment(self._aws.environment()):
            read = read_head(open_store(layout.run_url(self._root, run_id)))
        return read is not None and read[0].outcome is not None


def _trains(machine: InstanceDriver, run_id: str) -> bool:
    assert isinstance(machine, Instance)
    session = last_session(machine.state_dir)
    return session is not None and layout.run_id_of(session.url) == run_id and machine.timesteps > 0


class _ControlPipeline:
    """The same pipeline, trained without an interruption at the same time, as anybody would on a laptop."""

    def __init__(self, path: Path, folder: Path, timeline: Timeline) -> None:
        self._path, self._folder, self._timeline = path, folder, timeline
        self._process: subprocess.Popen[bytes] | None = None
        self.root = str(folder / "store")

    def __enter__(self) -> _ControlPipeline:
        self._folder.mkdir()
        variables = child_process.environment()
        clean = {name: value for name, value in variables.items() if not name.startswith("TRAIN_CLOUD_")}
        arguments = ["pipeline", "run", str(self._path), "--store", self.root, "--parallel", "1"]
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *child_process.command("train_cloud", *arguments, user_code=True),
                    *("--output-dir", str(self._folder / "state")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**clean, **threads()},
            )
        self._timeline.add("control", "starts: the same pipeline, never interrupted")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def wait(self) -> None:
        """:raises TrainCloudError: it did not complete"""
        assert self._process is not None
        if self._process.wait(LIMIT) != 0:
            log = (self._folder / "log.txt").read_text()[-2000:]
            raise TrainCloudError(f"the control pipeline ended with {self._process.returncode}: {log}")


def _report(pipeline: PipelineConfig, root: str, control: str, life: _Life) -> dict[str, Any]:
    read = read_head(open_store(pipeline_url(root, pipeline.id)))
    found = Derivation(pipeline, root, check=False).derive()
    scenario = life.scenario
    return {
        "pipeline": pipeline.id,
        "outcome": read[0].outcome if read is not None else None,
        "reason": read[0].reason if read is not None else None,
        "sessions": {one.name: _session(root, control, one, life) for one in found},
        "notices": life.notices,
        "machines": len(scenario.ended_by),
        "boot_seconds": [seconds.get("boot_seconds") for seconds in scenario.seconds.values()],
        "transitions": _transitions(root, found),
        "final_desired_capacity": scenario.desired_capacity(),
    }


def _session(root: str, control: str, one: SessionStanding, life: _Life) -> dict[str, Any]:
    from train_cloud.sb3.compare import differences

    stores = [open_store(layout.run_url(base, one.run_id)) for base in (root, control)]
    heads = [head_of(store) for store in stores]
    known = [{**(record.progress or {}), **(record.end or {})} for record in read_sessions(stores[0])]
    snapshots = [snapshot_at(store, head) for store, head in zip(stores, heads, strict=True)]
    assert one.config is not None
    return {
        "run_id": one.run_id,
        "state": one.state,
        "timesteps": heads[0].timesteps,
        "starts": len(known),
        "repeated": sum(
            max(0, reached - after.get("first_timestep", 0))
            for reached, after in zip(life.reached.get(one.run_id, []), known[1:], strict=False)
        ),
        "differences": differences(snapshots[0], snapshots[1], one.config.code.folder),
    }


def _transitions(root: str, found: Sequence[SessionStanding]) -> dict[str, float]:
    """Seconds from the end of a session to the start of the one after it, where one machine trained both."""
    seconds = {}
    for before, after in itertools.pairwise(found):
        records = [read_sessions(open_store(layout.run_url(root, one.run_id))) for one in (before, after)]
        last, first = records[0][-1], records[1][0]
        if last.end is not None and last.start.get("instance_id") == first.start.get("instance_id"):
            ended, began = (datetime.fromisoformat(text) for text in (last.end["ended"], first.start["started"]))
            seconds[after.name] = round((began - ended).total_seconds(), 1)
    return seconds


def _judge(report: dict[str, Any], timeline: Timeline, folder: Path) -> int:
    timeline.title("Result")
    sessions = report["sessions"]
    left = report["resources_left_after_destroy"]
    for name, one in sessions.items():
        for difference in one["differences"][:5]:
            timeline.add("result", f"{name} differs: {difference}")
    over = [name for name, one in sessions.items() if one["state"] == "completed"]
    repeated = sum(one["repeated"] for one in sessions.values())
    kept = {
        f"{len(over)} of {len(sessions)} sessions completed": len(over) == len(sessions),
        f"the pipeline is {report['outcome']}": report["outcome"] == "completed",
        f"{len(report['notices'])} notices, on {report['machines']} machines": True,
        f"{repeated} steps repeated after a notice": repeated == 0,
        "bit for bit where the uninterrupted pipeline ended": not any(one["differences"] for one in sessions.values()),
        f"capacity {report['final_desired_capacity']}": report["final_desired_capacity"] == 0,
        f"{len(left)} resources left after destroy": not left,
    }
    for name, seconds in report["transitions"].items():
        timeline.add("result", f"  {seconds} s from the end of the session before {name} to its start, on one machine")
    for what, true in kept.items():
        timeline.add("result", f"{'✓' if true else '✗'} {what}")
    timeline.add("result", f"report.json in {shown_path(folder)}")
    return 0 if all(kept.values()) else 1
