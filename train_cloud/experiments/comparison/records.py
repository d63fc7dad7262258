"""What the store has of an experiment's runs that they can be compared by. Reads the store and nothing else."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from train_cloud.checkpoint import read_manifest
from train_cloud.config.comparison import Compare
from train_cloud.config.experiment import Experiment
from train_cloud.errors import CorruptCheckpoint, ObjectMissing
from train_cloud.evaluate.results import Evaluation
from train_cloud.experiments.files import Member, recorded_members
from train_cloud.operations.cancel import is_cancelled
from train_cloud.report.status import RunStatus, run_ids, statuses
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.runtime.evaluations import recorded
from train_cloud.store import FileStore, ObjectStore, open_store

#: States of a run whose last evaluation is its result: a run that a limit has stopped has one, too.
FINISHED = ("completed", "stopped")
STAGE = "curriculum/stage"
UNKNOWN = "run"
"""The factor of runs whose levels nobody has named."""
_PARALLEL = 16
_MOST_SCORES = 200
_SEEDED = re.compile(r"(?P<level>.+)-s(?P<seed>\d+)")


@dataclass(frozen=True)
class Planned:
    """A run that is to be there."""

    run_id: str
    levels: Mapping[str, str]
    """Factor → level."""
    seed: int | None


@dataclass(frozen=True)
class Plan:
    """What is compared: runs, by whom they are grouped, and how."""

    experiment: str
    runs: tuple[Planned, ...]
    settings: Compare
    unnamed: tuple[str, ...] = ()
    """Runs in the store that are called as this experiment's and are none that its file names."""


@dataclass(frozen=True)
class Logged:
    """What a loop of the user's own had logged under the name of its score; it has that in place of an evaluation."""

    timesteps: int
    categories: Mapping[str, float]
    """The score's name → the value."""


@dataclass(frozen=True)
class Run:
    """A run as far as it has come."""

    planned: Planned
    state: str
    """As ``status`` has it; ``missing`` where there is none, ``cancelled`` where a person has ended it."""
    reason: str | None = None
    evaluations: tuple[Evaluation | Logged, ...] = ()
    """By ascending timesteps; what a rollback has taken back is not among them."""
    timesteps: int = 0
    total_timesteps: int | None = None
    hours: float | None = None
    """Of machines, over all sessions."""
    dollars: float | None = None
    """None where the price of any session is unknown: part of a sum is no sum."""
    spent: tuple[tuple[int, int, float, float | None], ...] = ()
    """For each session: first and last timesteps, hours, dollars."""
    steps_per_second: float | None = None
    run_file: Mapping[str, Any] = field(default_factory=dict)
    """Of its newest session."""
    code: str | None = None
    """Digest of the program text in ``code.folder`` that it was trained with."""
    logged: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """Those of the scalars that were asked for: tag → (timesteps, value)."""

    @property
    def finished(self) -> bool:
        """Whether its last evaluation is its result."""
        return self.state in FINISHED and bool(self.evaluations)

    def spent_at(self, timesteps: int, *, dollars: bool) -> float:
        """What the run had cost when it was at ``timesteps`` for the last time, steps that were done again included.

        :param dollars: or machine hours
        """
        before = [0.0, *itertools.accumulate(_amount(each, dollars) for each in self.spent)]
        for (first, last, *_), earlier, whole in reversed(list(zip(self.spent, before, before[1:], strict=False))):
            if first < timesteps or first == self.spent[0][0]:
                share = (timesteps - first) / (last - first) if last > first else 1.0
                return earlier + min(1.0, max(0.0, share)) * (whole - earlier)
        return 0.0


def _amount(session: tuple[int, int, float, float | None], dollars: bool) -> float:
    return (session[3] or 0.0) if dollars else session[2]


def planned(experiment: Experiment, root: str) -> Plan:
    """Of an experiment file."""
    runs = tuple(Planned(cell.run_id, dict(cell.levels), cell.seed) for cell in experiment.cells)
    named = {run.run_id for run in runs}
    alike = re.compile(rf"{re.escape(experiment.experiment)}-(.+-)?s\d+")
    unnamed = tuple(name for name in run_ids(root) if name not in named and alike.fullmatch(name))
    return Plan(experiment.experiment, runs, experiment.compare or Compare(), unnamed)


def grouped(name: str, root: str) -> Plan:
    """Of an experiment whose file is not at hand. Of a run that no experiment file stands for, what stands before
    ``-s<seed>`` is its level.

    :raises InputError: no run of the store has named it
    """
    there = set(run_ids(root))  # a run that was deleted stays in the files
    return Plan(
        name, tuple(_named(member) for member in recorded_members(root, name) if member.run_id in there), Compare()
    )


def _named(member: Member) -> Planned:
    match = _SEEDED.fullmatch(member.run_id)
    seed = member.seed if member.seed is not None or match is None else int(match["seed"])
    return Planned(member.run_id, member.levels or {UNKNOWN: match["level"] if match else member.run_id}, seed)


def read(plan: Plan, root: str, tags: Sequence[str] = ()) -> list[Run]:
    """Every run of the plan, in its order; those that are not there as well.

    :param tags: scalars to read besides those of a curriculum
    """
    there = set(run_ids(root))
    wanted = [run.run_id for run in plan.runs if run.run_id in there]
    found = {status.run_id: status for status in statuses(root, wanted)}
    store = open_store(root)
    assert isinstance(store, FileStore)

    def one(run: Planned) -> Run:
        status = found.get(run.run_id)
        if status is None:
            return Run(run, "missing", "there is nothing of it in the store")
        return _read(store.within(f"runs/{run.run_id}"), run, status, tags)

    with ThreadPoolExecutor(_PARALLEL) as threads:
        return list(threads.map(one, plan.runs))


def _read(store: ObjectStore, run: Planned, status: RunStatus, tags: Sequence[str]) -> Run:
    if status.state == "damaged":
        return Run(run, "damaged", status.damaged or status.reason)
    records = read_sessions(store)
    run_file = (records[-1].start.get("run_file") or {}) if records else {}
    wanted = [*tags, *([STAGE] if run_file.get("curriculum") else [])]
    state: str = status.state
    head = read_head(store)
    if state == "stopped" and head is not None and is_cancelled(head[0]):
        state = "cancelled"
    score = str((run_file.get("score") or {}).get("name") or "")
    wanted += [score] if score and score not in wanted else []
    logged = _logged(store, wanted, status.committed_timesteps) if wanted else {}
    evaluations: tuple[Evaluation | Logged, ...] = tuple(
        each for each in recorded(store) if each.timesteps <= status.committed_timesteps
    )
    return Run(
        run,
        state,
        status.reason,
        evaluations or _scores(score, logged.get(score, ())),
        timesteps=status.timesteps,
        total_timesteps=status.total_timesteps,
        hours=status.cost.hours,
        dollars=None if status.cost.unknown else status.cost.dollars,
        spent=_spent(status),
        steps_per_second=_speed(records),
        run_file=run_file,
        code=_code(store, head[0]) if head is not None else None,
        logged=logged,
    )


def _scores(name: str, points: Sequence[tuple[int, float]]) -> tuple[Logged, ...]:
    """Of a score that each step logs, some that are spread over the run, and the last one."""
    count = len(points)
    most = min(count, _MOST_SCORES)
    chosen = sorted({(place + 1) * count // most - 1 for place in range(most)})
    return tuple(Logged(points[place][0], {name: points[place][1]}) for place in chosen)


def _code(store: ObjectStore, head: Head) -> str | None:
    try:
        facts = read_manifest(store, head.manifest).facts if head.manifest is not None else {}
    except CorruptCheckpoint:
        return None
    code: str | None = facts.get("identity", {}).get("code", {}).get("digest")
    return code


def _spent(status: RunStatus) -> tuple[tuple[int, int, float, float | None], ...]:
    """A session that never came to train has its cost where the one before it had ended."""
    found: list[tuple[int, int, float, float | None]] = []
    for session, cost in zip(status.sessions, status.cost.sessions, strict=True):
        first = session.first_timestep if session.first_timestep is not None else found[-1][1] if found else 0
        last = session.last_timestep if session.last_timestep is not None else first
        found.append((first, last, cost.hours, cost.dollars))
    return tuple(found)


def _speed(records: Iterable[SessionRecord]) -> float | None:
    """Steps a second while it trained, over all sessions that have reported any."""
    steps = seconds = 0.0
    for record in records:
        told = {**(record.progress or {}), **(record.end or {})}
        speed = told.get("steps_per_second")
        done = (told.get("last_timestep") or told.get("timesteps") or 0) - (told.get("first_timestep") or 0)
        if speed and done > 0:
            steps, seconds = steps + done, seconds + done / speed
    return steps / seconds if seconds else None


def _logged(store: ObjectStore, tags: Sequence[str], committed: int) -> dict[str, tuple[tuple[int, float], ...]]:
    """From ``progress.csv``, which has what TensorBoard has, a row for each time that something was logged."""
    try:
        text = bytes(store.get(f"{layout.ARTIFACTS}progress.csv").body).decode(errors="replace")
    except ObjectMissing:
        return {}
    found: dict[str, list[tuple[int, float]]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        for tag in tags:
            try:
                at, value = int(row["timesteps"]), float(row[tag])
            except (KeyError, TypeError, ValueError):
                continue
            if at <= committed and math.isfinite(value):
                found.setdefault(tag, []).append((at, value))
    return {tag: tuple(points) for tag, points in found.items()}
