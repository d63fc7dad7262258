"""What an experiment will take, by what earlier sessions have recorded; what nobody has measured stays unknown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from train_cloud.config import RunFile
from train_cloud.errors import StoreError
from train_cloud.experiments.standing import Standing, run_store
from train_cloud.report.status import run_ids
from train_cloud.run.cost import cost
from train_cloud.run.session import SessionRecord, read_sessions

_PARALLEL = 16
#: Of a store with more, the last ones by name are looked at.
_MOST_RUNS = 1000

Kind = tuple[str, str, str]
"""Machine, environment, algorithm."""


@dataclass(frozen=True)
class Pace:
    """Of all sessions of one kind."""

    steps_per_second: float
    """Median."""
    dollars_an_hour: float | None
    """Median, with volume and address, where they are known; None where no session knew its price."""
    sessions: int


@dataclass(frozen=True)
class Estimate:
    """What is left of one run; None where it is unknown."""

    standing: Standing
    hours: float | None
    dollars: float | None


def here() -> str:
    """This machine, as its sessions name it."""
    return platform.node()


def paces(root: str) -> dict[Kind, Pace]:
    """Of the sessions of all runs of a store, by kind. A machine on AWS is named by its type, any other by its name.

    :raises StoreError: the store cannot be listed
    """

    def records(run_id: str) -> list[SessionRecord]:
        try:
            return read_sessions(run_store(root, run_id))
        except StoreError:  # one that may not be read says nothing
            return []

    with ThreadPoolExecutor(_PARALLEL) as threads:
        found = list(threads.map(records, run_ids(root)[-_MOST_RUNS:]))
    return measured(found)


def measured(runs: Iterable[Sequence[SessionRecord]]) -> dict[Kind, Pace]:
    """:param runs: the sessions of each"""
    speeds: dict[Kind, list[float]] = {}
    prices: dict[Kind, list[float]] = {}
    for records in runs:
        for record, spent in zip(records, cost(records).sessions, strict=True):
            kind, speed = _kind(record), (record.progress or {}).get("steps_per_second")
            if kind is None or not speed:
                continue
            speeds.setdefault(kind, []).append(float(speed))
            if spent.dollars is not None and spent.hours > 0:
                prices.setdefault(kind, []).append(spent.dollars / spent.hours)
    return {
        kind: Pace(statistics.median(found), statistics.median(prices[kind]) if kind in prices else None, len(found))
        for kind, found in speeds.items()
    }


def estimates(found: Sequence[Standing], known: dict[Kind, Pace], machine: str) -> list[Estimate]:
    """:param machine: that the runs are to be trained on: an instance type, or :func:`here`"""
    result = []
    for one in found:
        left = 0 if one.state in ("completed", "cancelled") else one.cell.config.total_timesteps - one.timesteps
        pace = known.get((machine, *_of(one.cell.config)))
        hours = max(0, left) / pace.steps_per_second / 3600 if pace is not None else None
        hourly = pace.dollars_an_hour if pace is not None else None
        result.append(Estimate(one, hours, None if hours is None or hourly is None else hours * hourly))
    return result


def _of(config: RunFile) -> tuple[str, str]:
    environment = config.environment.id if config.environment is not None else ""
    return environment, config.algorithm or config.entry_point or ""


def _kind(record: SessionRecord) -> Kind | None:
    run_file: dict[str, Any] = record.start.get("run_file") or {}
    machine = record.start.get("instance_type") or record.start.get("host")
    environment = run_file.get("environment")
    name = environment.get("id") if isinstance(environment, dict) else None
    doing = run_file.get("algorithm") or run_file.get("entry_point")
    if not all(isinstance(part, str) for part in (machine, doing)):
        return None
    return str(machine), str(name or ""), str(doing)
