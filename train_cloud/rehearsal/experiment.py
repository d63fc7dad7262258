"""The life of an experiment on one machine: its runs launched by one stack, trained side by side, one of them
interrupted, all of them ended, everything cleaned up.

As :mod:`train_cloud.rehearsal.rehearse` does with one run; real and played are the same things.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from train_cloud.config import Cell, Experiment, load_experiment
from train_cloud.config.load import read_mapping
from train_cloud.errors import InputError
from train_cloud.operations.expand import expand_experiment, refuse_search, runs_folder
from train_cloud.rehearsal.aws import EmbeddedAws
from train_cloud.rehearsal.rehearse import (
    BEYOND,
    NOTICE_AT,
    PROJECT,
    ControlRun,
    Tally,
    ended_as_by_ctrl_c,
    environment,
    fresh_folder,
    head_of,
    interval,
    shown_path,
    snapshot_at,
)
from train_cloud.rehearsal.scenario import Scenario
from train_cloud.rehearsal.terraform import Terraform
from train_cloud.rehearsal.timeline import Timeline
from train_cloud.run import layout
from train_cloud.run.cost import cost
from train_cloud.run.session import read_sessions
from train_cloud.store import open_store

MOST_RUNS = 8
"""Each is a training of its own on this machine, all of them at once."""


def rehearse_experiment(path: Path, *, overrides: Sequence[str] = (), output: Path = Path("rehearsal")) -> int:
    """Rehearse an experiment file, and leave ``<output>/<experiment>/report.json``.

    The first of its runs is interrupted by a spot notice, and compared with the same run without an interruption.

    :return: 0 if all runs ended as promised, 1 if a promise was broken; the report says which
    :raises InputError: bad experiment file, too many runs, no Terraform, not Linux
    """
    experiment = load_experiment(path, overrides)
    refuse_search(experiment)
    if len(experiment.cells) > MOST_RUNS:
        fix = f"at most {MOST_RUNS} at once on one machine: leave levels or seeds out, for example --set 'seeds=[1]'"
        raise InputError("vary", f"{len(experiment.cells)} runs", fix)
    first = experiment.cells[0]
    save = interval(first.config)
    notice = int(NOTICE_AT * first.config.total_timesteps) // save * save + int(BEYOND * save)
    folder = fresh_folder(output, experiment.experiment)
    timeline = Timeline()
    timeline.title(f"Rehearsal of {experiment.experiment}: {len(experiment.cells)} runs, one interruption, no AWS")
    launched = _as_launched(path, experiment, overrides, folder)
    own = runs_folder(launched, experiment.experiment) / f"{first.run_id}.yaml"
    with (
        ended_as_by_ctrl_c(folder),
        EmbeddedAws(log=folder / "aws.log") as aws,
        ControlRun(own, folder / "control", timeline) as control,
        contextlib.ExitStack() as machines,
    ):
        tally = Tally(timeline)
        terraform = Terraform(folder / "stack", aws, on_event=tally)
        variables = {"experiment_file": launched, "project_name": PROJECT, "delete_artifacts_on_destroy": True}
        outputs = terraform.apply(variables)
        tally.tell("created")
        lives = {}
        for cell in experiment.cells:
            group, own_timeline = outputs["runs"][cell.run_id]["autoscaling_group_name"], Timeline(cell.run_id)
            lives[cell.run_id] = Scenario(aws, group, cell.config, folder / cell.run_id, own_timeline)
            machines.callback(lives[cell.run_id].close)
        with aws.permissions_enforced(), ThreadPoolExecutor(len(lives)) as threads:
            at = {first.run_id: notice}
            try:
                list(threads.map(lambda run_id: _live(lives[run_id], at.get(run_id)), lives))
            except BaseException:  # whose threads are waited for: Ctrl-C ends the others too
                for life in lives.values():
                    life.close()
                raise
        timeline.title("Comparing with the control run")
        control.wait()
        with environment(aws.environment()):
            root = str(outputs["s3_bucket_url"])
            runs = {cell.run_id: _ended(root, cell, lives[cell.run_id]) for cell in experiment.cells}
            differences = _differences(root, control.root, first)
        machines.close()
        timeline.title("Cleaning up")
        terraform.destroy()
        tally.tell("destroyed")
        report = {
            "experiment": experiment.experiment,
            "runs": runs,
            "interrupted": first.run_id,
            "differences": differences,
            "resources_left_after_destroy": aws.resources_left(),
        }
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return _judge(report, timeline, folder)


def _as_launched(path: Path, experiment: Experiment, overrides: Sequence[str], folder: Path) -> Path:
    """A copy of the file with its run files beside it, so that nothing is written beside the user's own."""
    values = {**read_mapping(path, "experiment file", "experiment"), "base": str(experiment.base)}
    copy = folder / "experiment.yaml"
    with copy.open("w") as file:
        YAML().dump(values, file)
    expand_experiment(copy, overrides)
    return copy


def _live(scenario: Scenario, notice: int | None) -> None:
    """:param notice: timesteps at which its first machine is interrupted; None: it is not"""
    machine = scenario.boot()
    if notice is not None:
        scenario.reach(machine, notice)
        scenario.announce(machine)
        scenario.interrupt(machine)
        machine = scenario.boot()
    scenario.complete(machine)


def _ended(root: str, cell: Cell, scenario: Scenario) -> dict[str, Any]:
    store = open_store(layout.run_url(root, cell.run_id))
    head, sessions = head_of(store), read_sessions(store)
    known = [{**(session.progress or {}), **(session.end or {})} for session in sessions]
    return {
        "levels": dict(cell.levels),
        "seed": cell.seed,
        "outcome": head.outcome,
        "reason": head.reason,
        "timesteps": head.timesteps,
        "total_timesteps": cell.config.total_timesteps,
        "sessions": len(sessions),
        "repeated": sum(
            max(0, reached - found.get("first_timestep", 0))
            for reached, found in zip(scenario.reached.values(), known[1:], strict=False)
        ),
        "dollars": cost(sessions).dollars,
        "final_desired_capacity": scenario.desired_capacity(),
    }


def _differences(root: str, control: str, cell: Cell) -> list[str]:
    """Of the interrupted run and the one that never was."""
    from train_cloud.sb3.compare import differences

    stores = [open_store(layout.run_url(base, cell.run_id)) for base in (root, control)]
    found, expected = (snapshot_at(store, head_of(store)) for store in stores)
    return differences(found, expected, cell.config.code.folder)


def _judge(report: dict[str, Any], timeline: Timeline, folder: Path) -> int:
    timeline.title("Result")
    runs, interrupted = report["runs"], report["runs"][report["interrupted"]]
    over = [run_id for run_id, run in runs.items() if run["outcome"] == "completed"]
    capacity = sum(run["final_desired_capacity"] for run in runs.values())
    left = report["resources_left_after_destroy"]
    for difference in report["differences"][:10]:
        timeline.add("result", f"differs: {difference}")
    for run_id in runs.keys() - set(over):
        timeline.add("result", f"{run_id} {runs[run_id]['outcome']}: {runs[run_id]['reason']}")
    kept = {
        f"{len(over)} of {len(runs)} runs completed": len(over) == len(runs),
        f"{report['interrupted']} in {interrupted['sessions']} sessions": interrupted["sessions"] == 2,
        f"{interrupted['repeated']} steps repeated after the notice": interrupted["repeated"] == 0,
        "bit for bit where the uninterrupted run ended": not report["differences"],
        f"capacity {capacity} in all groups": capacity == 0,
        f"{len(left)} resources left after destroy": not left,
    }
    for what, true in kept.items():
        timeline.add("result", f"{'✓' if true else '✗'} {what}")
    timeline.add("result", f"report.json in {shown_path(folder)}")
    return 0 if all(kept.values()) else 1
