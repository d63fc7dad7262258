"""Whether a run file may be launched, or gone on with, under its run id in a store."""

from __future__ import annotations

from train_cloud.checkpoint import read_manifest
from train_cloud.config import RunFile, identity_changes
from train_cloud.errors import InputError
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.store import open_store


def check_standing(root: str, run_file: RunFile) -> None:
    """Refuse a run id that is completed already, or whose checkpoint was trained with another identity. Writes nothing.

    The identity that counts is the one in the newest checkpoint's manifest: what really trained these weights.

    :raises InputError: naming the field that differs
    :raises CorruptCheckpoint: head or manifest cannot be read
    """
    store = open_store(layout.run_url(root, run_file.run_id))
    read = read_head(store)
    if read is None:
        return
    head, _ = read
    if head.outcome == "completed":
        raise InputError(
            "run_id", run_file.run_id, f"completed already, at {head.timesteps} timesteps: choose another run_id"
        )
    if head.manifest is None:
        return
    changes = identity_changes(read_manifest(store, head.manifest).facts["identity"], run_file.identity())
    if changes:
        field, old, new = changes[0]
        others = f" (also: {', '.join(change[0] for change in changes[1:])})" if changes[1:] else ""
        raise InputError(
            field,
            new,
            f"run {run_file.run_id} was begun with {old!r}: restore that, or choose another run_id{others}",
        )
