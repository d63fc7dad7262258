"""How each run of an experiment stands, derived from the runs' heads and sessions; nothing is kept beside them.

So nothing can disagree after a kill, whatever is over is not begun again, and the same command always continues.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from train_cloud.checkpoint import read_manifest
from train_cloud.config import Cell, RunFile, identity_changes
from train_cloud.errors import CorruptCheckpoint, InputError
from train_cloud.report.preflight import check_before_training, is_over
from train_cloud.run import layout
from train_cloud.run.cost import cost
from train_cloud.run.head import Head, Outcome, is_cancelled, read_head
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.store import ObjectStore, open_store

State = Literal["new", "open", "completed", "stopped", "cancelled", "failed"]
#: How the reason begins for which a search has ended a run; it is not trained on.
PRUNED = "pruned"
_PARALLEL = 16


@dataclass(frozen=True)
class Standing:
    """Of one run."""

    cell: Cell
    state: State
    """``new``: nobody has begun it. ``open``: it is to be trained on. ``stopped``: at a limit of its own that stands,
    or by a search.
    ``failed``: it is not tried again."""
    timesteps: int = 0
    """Committed."""
    reason: str | None = None
    """Why it ended, or what the last attempt ended with."""
    failures: int = 0
    """In a row without a new commit."""
    hours: float = 0.0
    """Of all its sessions."""
    dollars: float | None = None
    """Of the sessions whose price is known."""
    outcome: Outcome | None = None
    """As it stands in the head. A run that was stopped at a limit which is higher now is open all the same."""


def run_store(root: str, run_id: str) -> ObjectStore:
    return open_store(layout.run_url(root, run_id))


def standings(
    root: str, cells: Sequence[Cell], max_attempts: int, *, train_on: bool = False, keep_completed: bool = False
) -> list[Standing]:
    """Of all runs, which are asked for at once.

    :param max_attempts: a run that has failed so often in a row is not tried again
    :param train_on: runs that a person has cancelled, that have failed for good, or that a callback has ended, are open
    :param keep_completed: but for those that a callback has ended
    :raises InputError: a run was begun with something else than its run file says now; it names the run
    """
    with ThreadPoolExecutor(_PARALLEL) as threads:
        ask = functools.partial(
            standing, root, max_attempts=max_attempts, train_on=train_on, keep_completed=keep_completed
        )
        return list(threads.map(ask, cells))


def standing(
    root: str,
    cell: Cell,
    max_attempts: int,
    *,
    train_on: bool = False,
    check: bool = True,
    keep_completed: bool = False,
) -> Standing:
    """Of one run; one that is damaged has failed.

    :param check: whether its run file is still its own
    :param keep_completed: one that a callback has ended before its total is completed whatever ``train_on`` says
    """
    try:
        return _standing(root, cell, max_attempts, train_on, check, keep_completed)
    except CorruptCheckpoint as error:  # the others can be trained all the same
        return Standing(cell, "failed", reason=str(error))


def _standing(root: str, cell: Cell, max_attempts: int, train_on: bool, check: bool, keep_completed: bool) -> Standing:
    store = run_store(root, cell.run_id)
    read = read_head(store)
    if read is None:
        if check:
            _checked(cell, lambda: check_before_training(root, cell.config))
        return Standing(cell, "new")
    head = read[0]
    records = read_sessions(store)
    failures = failures_in_a_row(records)
    asked = train_on and not (keep_completed and head.outcome == "completed")
    state = _state(store, head, cell.config, failures >= max_attempts, records, asked)
    if check:
        _checked(cell, lambda: _check_identity(store, head, cell.config))
        if state == "open":
            _checked(cell, lambda: check_before_training(root, cell.config, train_on=train_on))
    spent = cost(records)
    return Standing(cell, state, head.timesteps, head.reason, failures, spent.hours, spent.dollars, head.outcome)


def failures_in_a_row(records: Sequence[SessionRecord]) -> int:
    """Sessions at the end of these that failed without a new commit. One that died without a word does not count."""
    count = 0
    for record in reversed(records):
        end = record.end or {}
        if end.get("ended_by") != "failure":
            if end.get("ended_by") is not None or _committed(end or record.progress or {}):
                break
            continue
        count += 1
        if _committed(end):
            break
    return count


def _committed(told: dict[str, Any]) -> bool:
    return (told.get("committed_timesteps") or 0) > (told.get("first_timestep") or 0)


def _state(
    store: ObjectStore,
    head: Head,
    config: RunFile,
    given_up: bool,
    records: Sequence[SessionRecord],
    train_on: bool,
) -> State:
    if head.outcome == "completed":
        asked = train_on and head.timesteps < config.total_timesteps
        return "completed" if is_over(store, head, config) and not asked else "open"
    if head.outcome == "failed" or (head.outcome is None and given_up):
        return "open" if train_on else "failed"
    if head.outcome == "stopped":
        if is_cancelled(head):
            return "open" if train_on else "cancelled"
        pruned = (head.reason or "").startswith(PRUNED)
        return "stopped" if pruned or _at_own_limit(config, records) else "open"
    return "open"


def _at_own_limit(config: RunFile, records: Sequence[SessionRecord]) -> bool:
    """Whether the run would stop again at once."""
    spent = cost(records)
    limits = config.limits
    return (limits.hours is not None and spent.hours >= limits.hours) or (
        limits.dollars is not None and (spent.dollars or 0.0) >= limits.dollars
    )


def _check_identity(store: ObjectStore, head: Head, config: RunFile) -> None:
    """Of a run that is over too: its results would stand for something that it was not trained with."""
    if head.manifest is None:
        return
    changes = identity_changes(read_manifest(store, head.manifest).facts["identity"], config.identity())
    for field, old, new in changes:
        if field != "code.digest":  # compared file by file where the run goes on
            fix = f"it was begun with {old!r}: restore that, call the experiment otherwise, or delete the run"
            raise InputError(field, new, fix)


def _checked(cell: Cell, check: Any) -> None:
    try:
        check()
    except InputError as error:
        raise type(error)(f"{cell.run_id}: {error.field}", error.value, error.fix) from error


def total(found: Iterable[Standing]) -> tuple[float, float | None]:
    """Hours of all sessions of these runs, and dollars of those whose price is known."""
    every = list(found)
    known = [one.dollars for one in every if one.dollars is not None]
    return sum(one.hours for one in every), sum(known) if known else None
