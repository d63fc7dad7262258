"""What a session goes on from: the checkpoint, what is known of the run so far, and whether it still fits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from train_cloud.checkpoint import restore
from train_cloud.report.preflight import schedule_change
from train_cloud.run import layout
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.runtime import reproducibility
from train_cloud.runtime.acquire import Acquired, Begun
from train_cloud.runtime.beside import Beside
from train_cloud.runtime.exits import Exits
from train_cloud.runtime.inputs import Inputs
from train_cloud.snapshot import ENDED_EARLY, Snapshot

if TYPE_CHECKING:
    from train_cloud.sb3.digest import Digests

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """What the trainer goes on from."""

    snapshot: Snapshot | None
    """Its rows are read when the trainer asks for them; None for a new run."""
    digests: Digests
    """Checksums, which know what earlier sessions have computed."""
    before: Sequence[SessionRecord]
    """Records of the sessions before this one."""
    train_on: bool
    """Whether to train on where a callback had ended the run before its total."""


def begin_restore(
    inputs: Inputs, begun: Begun, acquired: Acquired, beside: Beside, exits: Exits, machine: Mapping[str, Any]
) -> Restored:
    """Begin to read the checkpoint.

    :param machine: what this session's results depend on besides the code
    """
    manifest, number = acquired.manifest, begun.session.number
    records = read_sessions(inputs.store)
    before = [record for record in records if record.number < number]
    known = manifest.facts if manifest is not None else None
    digests = beside.evidence.begin(
        inputs.state_dir, {"run_id": inputs.config.run_id, **inputs.identity}, known, records
    )
    if manifest is None:
        log.info("session %d begins the run", number)
        return Restored(None, digests, before, inputs.train_on)
    beside.heartbeat.phase("restore")
    differing = reproducibility.differences(manifest.facts["machine"], machine)
    differing += filter(None, [schedule_change(manifest.facts, inputs.config)])
    if differing:
        beside.evidence.object("; ".join(differing))
    if inputs.evaluations is not None:
        inputs.evaluations.resume(manifest)
    early = manifest.facts.get(ENDED_EARLY)
    train_on = inputs.train_on
    if early is not None and not train_on:
        asked = inputs.config.total_timesteps > early["total_timesteps"]
        train_on = asked or any(inputs.store.list(layout.continued_key(manifest.timesteps)))
    total, arrived = manifest.bytes(), [0]

    def received(size: int) -> None:
        arrived[0] += size
        beside.heartbeat.restored(arrived[0], total)
        if inputs.deadline.pending:
            exits.interrupted()  # nothing new to commit: the next session restores as well as this one

    snapshot = restore(inputs.store, manifest, received=received)
    log.info("session %d goes on at %d timesteps", number, snapshot.timesteps)
    return Restored(snapshot, digests, before, train_on)
