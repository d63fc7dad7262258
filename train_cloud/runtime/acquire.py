"""To begin a session and to acquire the run: from then on it is this process's, until somebody newer has it."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from typing import Any

from train_cloud.checkpoint import Manifest, read_manifest
from train_cloud.errors import CorruptCheckpoint, TrainCloudError
from train_cloud.run import exit_record
from train_cloud.run.head import Lease, read_head
from train_cloud.run.session import Session, end_session, read_progress
from train_cloud.runtime.heartbeat import Heartbeat
from train_cloud.runtime.inputs import Inputs
from train_cloud.runtime.limits import Limits, begin_limits
from train_cloud.runtime.predecessor import reached_before, reached_here, taken_from
from train_cloud.store import ObjectStore

log = logging.getLogger(__name__)


class Begun:
    """A session that has its number.

    :ivar lease: the right to swap the head, once the run is acquired
    :ivar ended: whether its end is recorded
    """

    def __init__(self, store: ObjectStore, session: Session, limits: Limits) -> None:
        self._store = store
        self.session = session
        self.limits = limits
        self.lease: Lease | None = None
        self.ended = False

    def end(self, ended_by: str, **facts: Any) -> None:
        """Record how it ended, once."""
        end_session(self._store, self.session, ended_by=ended_by, **facts)
        self.ended = True


@dataclass(frozen=True)
class Acquired:
    """The run, as it was acquired."""

    lease: Lease
    manifest: Manifest | None
    """Of the checkpoint that the session goes on from; None where it begins the run."""
    resumed_at: int
    """Timesteps of that checkpoint."""
    first_timestep: int
    """Where the session began; its process may have been started again since."""
    repeated: int
    """Steps that the session computed before its process was started again, and computes again."""


def begin(inputs: Inputs) -> Begun:
    """Take a session number, or go on with the one that this boot has."""
    details: dict[str, Any] = {"run_file": inputs.config.model_dump(mode="json"), "host": platform.node()}
    before = reached_here(inputs.state_dir, inputs.store.url)
    if before is not None:
        details["predecessor"] = before
    try:
        read = read_head(inputs.store)
    except CorruptCheckpoint:
        read = None  # which is said when the run is to be acquired
    above = read[0].session if read is not None else 0
    session = inputs.platform.begin(inputs.store, inputs.state_dir, details, above)
    limits = begin_limits(inputs.config.limits, inputs.store, session, inputs.platform)
    return Begun(inputs.store, session, limits)


def acquire(inputs: Inputs, begun: Begun, heartbeat: Heartbeat, before_here: int | None) -> Acquired:
    """Own the run from here on.

    :param before_here: number of the session that trained in this state folder before
    :raises Fenced: a newer session has it
    :raises TrainCloudError: it has an outcome
    """
    store, session = inputs.store, begun.session
    reopened = inputs.platform.reopen(store)
    if reopened is not None and reopened.outcome is not None:
        raise TrainCloudError(f"the run has the outcome {reopened.outcome} since")
    before = exit_record.last_ending(inputs.state_dir, inputs.platform.boot_id, session.restart)
    lease = Lease.take(
        store,
        session.token,
        session.instance_id,
        max_attempts=inputs.platform.max_attempts,
        failed=before.failed,
        failure=before.words,
    )
    begun.lease = lease
    inputs.platform.acquired(inputs.state_dir)
    head, overtaken = lease.head, lease.before
    if overtaken is not None and overtaken.session not in (session.number, before_here):
        said = taken_from(store, overtaken)
        if said is not None:
            log.warning("%s", said)
    if head.outcome is not None:
        raise TrainCloudError(f"the run has the outcome {head.outcome}: {head.reason}")
    manifest = read_manifest(store, head.manifest) if head.manifest else None
    heartbeat.resume(head.timesteps)
    first_timestep, repeated = head.timesteps, 0
    if session.restart:  # the session began before this process did
        reported = read_progress(store, session) or {}
        reached = reached_before(inputs.state_dir, session)
        first_timestep = reported.get("first_timestep", head.timesteps)
        repeated = reported.get("repeated", 0) + max(0, (reached or 0) - head.timesteps)
    return Acquired(lease, manifest, head.timesteps, first_timestep, repeated)
