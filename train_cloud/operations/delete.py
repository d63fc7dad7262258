"""delete: every object of a run, whatever still writes to it."""

from __future__ import annotations

import platform

from train_cloud.artifacts.experiment import experiment_url
from train_cloud.errors import CorruptCheckpoint, HeadMissing, InputError, StoreError
from train_cloud.operations.acquire import acquire
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.head import conclude
from train_cloud.run.session import read_sessions
from train_cloud.store import FileStore, ObjectStore, open_store

_ROUNDS = 10
_SHOWN = 5


def delete(root: str, run_id: str, *, force: bool = False) -> int:
    """Delete every object of a run; in a versioned bucket, the current versions.

    The head goes last: until then nobody can begin the run anew, and a deletion that was cut short is done again.

    :param force: although a worker seems to be at work, or the head cannot be read
    :return: how many objects were deleted
    :raises InputError: no such run, or a worker seems to be at work
    :raises Fenced: a newer session has begun at the same time
    """
    store = open_store(layout.run_url(root, run_id))
    assert isinstance(store, FileStore)
    standing = [info.key for info in store.list()]
    if not standing:
        deleted, left = store.clear()  # what may be there under no key
        if not deleted and not left:
            raise InputError("run", run_id, f"nothing is stored under {store.url}")
        return _completed(store, deleted, left)
    # Not so what a fenced worker has written into a run that was gone.
    if not force and any(key.startswith((layout.HEAD, layout.SESSIONS, layout.BOOTS)) for key in standing):
        try:
            state = run_status(root, run_id).state
        except InputError:  # of a folder in which nothing is ours
            state = "waiting"
        if state in ("running", "starting"):
            raise InputError("run", run_id, f"a worker seems to be at work, it is {state}: stop it, or add --force")
    try:
        _, lease = acquire(store, "delete")
        lease.conclude("stopped", "it is being deleted")
    except HeadMissing:  # nor may anybody begin the run anew before all is gone
        newest = max((record.number for record in read_sessions(store)), default=0)
        conclude(store, "stopped", "it is being deleted", session=newest, owner=f"delete on {platform.node()}")
    except CorruptCheckpoint:  # nobody can commit over such a head either
        if not force:
            raise
    deleted = 0
    for _ in range(_ROUNDS):  # a fenced worker may be writing still
        keys = [info.key for info in store.list() if info.key != layout.HEAD]
        if not keys:
            break
        store.delete(keys)
        deleted += len(keys)
    store.delete([layout.HEAD])
    foreign, left = store.clear()
    return _completed(store, deleted + 1 + foreign, left)


def delete_experiment_files(root: str, experiment: str) -> int:
    """Delete an experiment's own files, which are made from its runs.

    :return: how many there were
    """
    store = open_store(experiment_url(root, experiment))
    assert isinstance(store, FileStore)
    keys = [info.key for info in store.list()]
    store.delete(keys)
    foreign, left = store.clear()
    return _completed(store, len(keys) + foreign, left)


def _completed(store: ObjectStore, deleted: int, left: list[str]) -> int:
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise StoreError(f"{deleted} objects are deleted; left under {store.url}: {', '.join(left[:_SHOWN])}{more}")
    return deleted
