"""What a person does to a run that is there: go back to a checkpoint, or delete everything.

Both take the run first, with a session number of their own: whatever worker lives is fenced from then on, and cannot
commit on top of what is changed here.
"""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

from train_cloud.checkpoint import Manifest, find, read_manifest
from train_cloud.checkpoint.manifest import refer
from train_cloud.checkpoint.survey import committed
from train_cloud.errors import CorruptCheckpoint, HeadMissing, InputError, StoreError
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, Reference, conclude, read_head
from train_cloud.run.session import Session, begin_session, end_session, now, read_sessions
from train_cloud.snapshot import ENDED_EARLY
from train_cloud.store import FileStore, ObjectStore, open_store

_ROUNDS = 10
_SHOWN = 5


def rollback(root: str, run_id: str, to: int) -> Head:
    """Make a preserved checkpoint the run's newest again, and clear its outcome.

    What came after it is garbage from then on, which the next session sweeps.

    :param to: its timesteps
    :return: the head as it stands now
    :raises InputError: no such run, no such checkpoint, or one without its replay buffer
    :raises Fenced: a newer session has begun at the same time
    """
    store = open_store(layout.run_url(root, run_id))
    before, newest = committed(store, run_id)
    _whole(store, newest, to)  # before anything is taken
    session, lease = _take(store, "rollback")
    assert lease.head.manifest is not None
    # Again: from here on nobody else can change which checkpoints there are.
    manifest = _whole(store, lease.head.manifest, to)
    facts = {name: value for name, value in manifest.facts.items() if name != ENDED_EARLY}  # who goes back goes on
    manifest = manifest.model_copy(
        update={"session": session.number, "restart": session.restart, "created": now(), "facts": facts}
    )
    key = layout.checkpoint_prefix(to, session.token, lease.head.seq + 1) + "manifest.json"
    body = memoryview(manifest.model_dump_json().encode())
    store.put(key, body)
    head = lease.commit(refer(store, key, body), to)
    # An evaluation of what was taken back is none of the run's any more.
    evaluated = ((info.key, layout.evaluated_at(info.key)) for info in store.list(layout.EVALUATIONS))
    store.delete([key for key, at in evaluated if at is not None and at > to])
    end_session(
        store, session, ended_by="rollback", first_timestep=before.timesteps, last_timestep=to, committed_timesteps=to
    )
    return head


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
        return _all(store, deleted, left)
    # Not so what a fenced worker has written into a run that was gone.
    if not force and any(key.startswith((layout.HEAD, layout.SESSIONS, layout.BOOTS)) for key in standing):
        try:
            state = run_status(root, run_id).state
        except InputError:  # of a folder in which nothing is ours
            state = "waiting"
        if state in ("running", "starting"):
            raise InputError("run", run_id, f"a worker seems to be at work, it is {state}: stop it, or add --force")
    try:
        _, lease = _take(store, "delete")
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
    return _all(store, deleted + 1 + foreign, left)


def _all(store: ObjectStore, deleted: int, left: list[str]) -> int:
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise StoreError(f"{deleted} objects are deleted; left under {store.url}: {', '.join(left[:_SHOWN])}{more}")
    return deleted


def _whole(store: ObjectStore, newest: Reference, to: int) -> Manifest:
    """The checkpoint at ``to``, with those before it that are preserved now; its own manifest may name more.

    :raises InputError: it is not preserved, or without its rows
    """
    manifest = find(store, newest, to)
    if manifest.lacks_rows():
        fix = "this checkpoint is preserved without its replay buffer: fork it with --without-buffer"
        raise InputError("--to", to, fix)
    older = tuple(kept for kept in read_manifest(store, newest).kept if kept.timesteps < to)
    return manifest.model_copy(update={"kept": older})


def _take(store: ObjectStore, what: str) -> tuple[Session, Lease]:
    """Own the run as its newest session.

    :raises Fenced: a newer one has begun since
    """
    owner = f"{what} on {platform.node()}"
    earlier = read_sessions(store)
    budget = earlier[-1].start.get("run_file") or {} if earlier else {}
    try:
        read = read_head(store)
    except CorruptCheckpoint:
        read = None
    with tempfile.TemporaryDirectory() as folder:
        session = begin_session(
            store,
            Path(folder),
            instance_id=owner,
            boot_id=f"process-{os.getpid()}",
            details={"host": platform.node(), "run_file": budget},
            persist=False,
            above=read[0].session if read is not None else 0,
        )
    return session, Lease.take(store, session.token, owner)
