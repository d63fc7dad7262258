"""cancel: a run ends here, with what is committed, and nobody trains it on until a person asks for it."""

from __future__ import annotations

import os
import platform

from train_cloud.errors import ConditionFailed, Fenced, InputError
from train_cloud.run import layout
from train_cloud.run.head import CANCELLED, Head, conclude, is_cancelled, read_head
from train_cloud.store import open_store

__all__ = ["cancel", "is_cancelled"]


def cancel(root: str, run_id: str, *, begun: bool = True) -> Head:
    """Set the outcome ``stopped``. The head is all that it takes: a worker that trains the run can commit no more, and
    leaves within a minute or at its next commit; its machine's group goes to capacity 0; an experiment does not train
    the run on.

    :param begun: refuse a run that nobody has begun; else it is ended before it begins
    :return: the head as it stands afterwards; an outcome that was there already is left as it is
    :raises InputError: nothing is stored under this run id
    """
    store = open_store(layout.run_url(root, run_id))
    if begun and next(iter(store.list()), None) is None:
        raise InputError("run", run_id, f"nothing is stored under {store.url}")
    reason = f"{CANCELLED} on {platform.node()}"
    while True:
        read = read_head(store)
        session = read[0].session if read is not None else 0
        try:
            return conclude(store, "stopped", reason, session=session, owner=f"cancel-{platform.node()}-{os.getpid()}")
        except (Fenced, ConditionFailed):  # a newer session has begun between the two
            continue
