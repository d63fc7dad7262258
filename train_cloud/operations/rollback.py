"""rollback: a preserved checkpoint becomes the run's newest again."""

from __future__ import annotations

from train_cloud.checkpoint import Manifest, find, read_manifest
from train_cloud.checkpoint.manifest import refer
from train_cloud.checkpoint.survey import committed
from train_cloud.errors import InputError
from train_cloud.operations.acquire import acquire
from train_cloud.run import layout
from train_cloud.run.head import Head, Reference
from train_cloud.run.session import end_session, now
from train_cloud.snapshot import ENDED_EARLY
from train_cloud.store import ObjectStore, open_store


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
    session, lease = acquire(store, "rollback")
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
