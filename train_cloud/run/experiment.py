"""What all runs of an experiment may cost together, and what they have cost so far.

Terraform writes the experiment's record, `experiments/<name>/experiment.json`; who trains reads it, and may not write
it. What was spent is nowhere written down: it is summed up from what the runs' sessions have recorded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from train_cloud.errors import CorruptCheckpoint, ObjectMissing
from train_cloud.run import layout
from train_cloud.run.cost import cost
from train_cloud.run.head import Head, read_head
from train_cloud.run.session import SessionRecord, read_sessions, with_progress
from train_cloud.store import FileStore, ObjectStore

_PARALLEL = 8
#: A session that has not acquired its run is in no head: all are listed at the first of so many looks.
_LIST_AGAIN = 12
log = logging.getLogger(__name__)


class TotalLimits(BaseModel):
    """As ``limits`` of the experiment file."""

    model_config = ConfigDict(frozen=True)

    hours: float | None = None
    dollars: float | None = None


class ExperimentRecord(BaseModel):
    """The runs of an experiment and the limits over all of them."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    limits: TotalLimits = TotalLimits()
    runs: dict[str, dict[str, Any]] = Field({})
    """Run id → ``levels`` (factor → level) and ``seed``."""


def read_experiment(root: ObjectStore, name: str) -> ExperimentRecord | None:
    """None where nobody has written it, or something else.

    :param root: the store that the runs lie in
    :raises StoreError: unknown
    """
    key = layout.experiment_key(name)
    try:
        return ExperimentRecord.model_validate(json.loads(bytes(root.get(key).body)))
    except ObjectMissing:
        return None
    except (ValueError, ValidationError) as error:
        log.warning("%s/%s cannot be read: %s", root.url, key, error)
        return None


@dataclass(frozen=True)
class Spent:
    """By all sessions of some runs."""

    hours: float
    dollars: float
    """As a run's own limit counts them: at the price on demand where that of a spot machine is unknown."""
    unknown: tuple[str, ...]
    """Runs with sessions that ``dollars`` leaves out, because no price of theirs is known."""
    open: int
    """Runs that are not over."""


class _Run:
    """What is known of one run, so that a sum asks for no more than what may have changed since the last one."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._head: Head | None = None
        self._looks = 0
        self.records: dict[int, SessionRecord] = {}

    @property
    def over(self) -> bool:
        return self._head is not None and self._head.outcome is not None

    def look(self) -> None:
        """Asks for the head, and where the same session trains on for its progress. Only where another session has the
        run, or it has ended or gone on, are all sessions listed and read.
        """
        try:
            read = read_head(self._store)
        except CorruptCheckpoint:  # which is told where the run is trained
            read = None
        head, before = read[0] if read is not None else None, self._head
        self._head, self._looks = head, self._looks + 1
        if _state(head) != _state(before) or self._looks % _LIST_AGAIN == 1:
            self.records = {record.number: record for record in read_sessions(self._store)}
        elif head is not None and head.outcome is None and head.session in self.records:
            self.records[head.session] = with_progress(self._store, self.records[head.session])


def _state(head: Head | None) -> tuple[object, ...] | None:
    return (head.session, head.restart, head.outcome) if head is not None else None


class Spending:
    """Sums up what the runs of an experiment have cost.

    :param root: the store that they lie in
    """

    def __init__(self, root: FileStore) -> None:
        self._root = root
        self._runs: dict[str, _Run] = {}

    def look(self, run_ids: Sequence[str]) -> Spent:
        """:raises StoreError: unknown"""
        for run_id in run_ids:
            if run_id not in self._runs:
                self._runs[run_id] = _Run(self._root.within(layout.run_folder(run_id)))
        with ThreadPoolExecutor(_PARALLEL) as threads:
            list(threads.map(lambda run_id: self._runs[run_id].look(), run_ids))
        costs = {run_id: cost([*self._runs[run_id].records.values()]).sessions for run_id in run_ids}
        dollars = {
            run_id: [each.on_demand_dollars if each.dollars is None else each.dollars for each in sessions]
            for run_id, sessions in costs.items()
        }
        return Spent(
            hours=sum(each.hours for sessions in costs.values() for each in sessions),
            dollars=sum(each or 0.0 for sessions in dollars.values() for each in sessions),
            unknown=tuple(run_id for run_id, sessions in dollars.items() if None in sessions),
            open=sum(not self._runs[run_id].over for run_id in run_ids),
        )
