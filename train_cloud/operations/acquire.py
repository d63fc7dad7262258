"""A person's operation acquires the run first, as its newest session: whatever worker lives is fenced from then on.

It cannot commit on top of what is changed then.
"""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

from train_cloud.errors import CorruptCheckpoint
from train_cloud.run.head import Lease, read_head
from train_cloud.run.session import Session, begin_session, read_sessions
from train_cloud.store import ObjectStore


def acquire(store: ObjectStore, what: str) -> tuple[Session, Lease]:
    """Own the run as its newest session.

    :raises Fenced: a newer one has begun since
    """
    try:
        read = read_head(store)
    except CorruptCheckpoint:
        read = None
    session, owner = begin(store, what, above=read[0].session if read is not None else 0)
    return session, Lease.take(store, session.token, owner)


def begin(store: ObjectStore, what: str, *, above: int) -> tuple[Session, str]:
    """A session of its own for what a person does.

    :param above: its number is larger
    :return: and who owns it
    """
    owner = f"{what} on {platform.node()}"
    earlier = read_sessions(store)
    budget = earlier[-1].start.get("run_file") or {} if earlier else {}
    with tempfile.TemporaryDirectory() as folder:
        session = begin_session(
            store,
            Path(folder),
            instance_id=owner,
            boot_id=f"process-{os.getpid()}",
            details={"host": platform.node(), "run_file": budget},
            persist=False,
            above=above,
        )
    return session, owner
