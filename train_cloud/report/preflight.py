"""Whether a run file may be launched, or gone on with, under its run id in a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from train_cloud.checkpoint import read_manifest
from train_cloud.checkpoint.survey import refuse
from train_cloud.config import RunFile, identity_changes
from train_cloud.errors import InputError
from train_cloud.report.code import check_code
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head
from train_cloud.snapshot import ENDED_EARLY
from train_cloud.store import ObjectStore, open_store

#: Beside a checkpoint's facts: digests of the code folder's files, by path, that its successors compare with.
CODE_FILES = "code_files"


def check_before_training(
    root: str, run_file: RunFile, *, alive: datetime | None = None, train_on: bool = False
) -> Mapping[str, Any]:
    """Refuse what would not be the same run any more. Writes nothing.

    The identity that counts is the one in the newest checkpoint's manifest: what really trained these weights.

    :param alive: when this machine's last session was seen alive, if anybody knows
    :param train_on: somebody asked to train on where a callback had ended the run before its total
    :return: facts of the newest checkpoint, with :data:`CODE_FILES`; empty where there is none
    :raises InputError: naming the field that differs, or the total that is reached already
    :raises CorruptCheckpoint: head or manifest cannot be read
    """
    store = open_store(layout.run_url(root, run_file.run_id))
    read = read_head(store)
    refuse(store, read[0] if read else None)
    if read is None:
        return {}
    head, _ = read
    facts = check_budget(store, head, run_file, train_on=train_on)
    if not facts:
        return {}
    assert head.manifest is not None
    changes = identity_changes(facts["identity"], run_file.identity())
    # A field by its name first: the file that it names may lie in the code folder, whose refusal would not say which.
    _refuse_changes(run_file, sorted(changes, key=_is_code), but_code=True)
    known = check_code(store, read_manifest(store, head.manifest), run_file, alive=alive)
    if not known:  # else the digest of all was compared file by file, by another rule
        _refuse_changes(run_file, changes)
    return {**facts, CODE_FILES: known}


def _is_code(change: tuple[str, Any, Any]) -> bool:
    return change[0] == "code.digest"


def _refuse_changes(run_file: RunFile, changes: Sequence[tuple[str, Any, Any]], *, but_code: bool = False) -> None:
    """:raises InputError: the first of them; the others are named"""
    if not changes or (but_code and _is_code(changes[0])):
        return
    field, old, new = changes[0]
    others = f" (also: {', '.join(change[0] for change in changes[1:])})" if changes[1:] else ""
    raise InputError(
        field,
        new,
        f"run {run_file.run_id} was begun with {old!r}: restore that, fork the run (train-cloud fork), or choose "
        f"another run_id{others}",
    )


def is_over(store: ObjectStore, head: Head, run_file: RunFile) -> bool:
    """Whether the run is completed, and its run file asks for no more than that."""
    if head.outcome != "completed":
        return False
    early = read_manifest(store, head.manifest).facts.get(ENDED_EARLY) if head.manifest is not None else None
    return run_file.total_timesteps <= (head.timesteps if early is None else early["total_timesteps"])


def check_budget(store: ObjectStore, head: Head, run_file: RunFile, *, train_on: bool = False) -> Mapping[str, Any]:
    """Refuse a budget that leaves nothing to do, or under which schedules would jump without anybody having said so.

    :return: facts of the newest checkpoint; empty where there is none
    :raises InputError: naming the field
    """
    if head.outcome == "completed" and run_file.total_timesteps <= head.timesteps:
        raise InputError(
            "run_id",
            run_file.run_id,
            f"completed already, at {head.timesteps} timesteps: give a larger total_timesteps than that to go on, or "
            "choose another run_id",
        )
    if head.manifest is None:
        return {}
    facts = read_manifest(store, head.manifest).facts
    if head.outcome == "completed" and not train_on and is_over(store, head, run_file):
        early = facts[ENDED_EARLY]
        raise InputError(
            "run_id",
            run_file.run_id,
            f"completed already, {early['by']} ended it at {head.timesteps} timesteps: --continue trains on, "
            f"and so does a larger total_timesteps than {early['total_timesteps']}; or choose another run_id",
        )
    if run_file.schedule_total is None and (change := schedule_change(facts, run_file)):
        before = facts["schedules"]["timesteps"]
        raise InputError(
            "total_timesteps",
            run_file.total_timesteps,
            f"{change}: set schedule_total (--schedule-total) to {before} to leave the schedules as they are, "
            f"or to {run_file.total_timesteps} to let them jump",
        )
    return facts


def schedule_change(facts: Mapping[str, Any], run_file: RunFile) -> str | None:
    """In words, that a run's schedules would not go on as they began; None where they do, or where there are none.

    :param facts: of the newest checkpoint
    """
    schedules = facts.get("schedules", {"names": []})
    if not schedules["names"] or schedules["timesteps"] == run_file.schedule_timesteps:
        return None
    return (
        f"{', '.join(schedules['names'])} would run over {run_file.schedule_timesteps} timesteps from here on, after "
        f"{schedules['timesteps']}"
    )
