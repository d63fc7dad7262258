"""Whether a run file may be launched, or gone on with, under its run id in a store."""

from __future__ import annotations

import json

from train_cloud.config import RunFile, identity_changes
from train_cloud.errors import CorruptCheckpoint, InputError, ObjectMissing
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.store import ObjectStore, open_store


def check_standing(root: str, run_file: RunFile) -> None:
    """Refuse a run id that is completed already, or that was launched with another identity. Writes nothing.

    :raises InputError: naming the field that differs
    """
    store = open_store(layout.run_url(root, run_file.run_id))
    read = read_head(store)
    if read is not None and read[0].outcome == "completed":
        raise InputError(
            "run_id", run_file.run_id, f"completed already, at {read[0].timesteps} timesteps: choose another run_id"
        )
    check_identity(store, run_file)


def check_identity(store: ObjectStore, run_file: RunFile) -> None:
    """Compare a run file with the ``run.json`` of its run, where there is one.

    :raises InputError: naming the first field that differs
    :raises CorruptCheckpoint: ``run.json`` cannot be read
    """
    try:
        launched = json.loads(bytes(store.get(layout.RUN_JSON).body))
        identity = launched["identity"]
    except ObjectMissing:
        return
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptCheckpoint(f"{store.url}/{layout.RUN_JSON} is not what a launch writes: {error}") from error
    changes = identity_changes(identity, run_file.identity())
    if changes:
        field, old, new = changes[0]
        others = f" (also: {', '.join(change[0] for change in changes[1:])})" if changes[1:] else ""
        raise InputError(
            field,
            new,
            f"run {run_file.run_id} was launched with {old!r}: restore that, or choose another run_id{others}",
        )
