"""finish: what follows the end of a training. systemd starts it at every end; the head says what the end was.

:func:`decide` is the whole of the judgement, a pure function of what was seen; :func:`act` carries it out.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from train_cloud import child_process
from train_cloud.artifacts.sync import FOLDER, run_sync
from train_cloud.errors import (
    BucketMissing,
    CloudError,
    CorruptCheckpoint,
    Fenced,
    Interrupted,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
)
from train_cloud.platforms.ec2.api import until_it_holds
from train_cloud.platforms.ec2.group import Group
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.platforms.ec2.notices import Notice, local_notice
from train_cloud.platforms.ec2.units import TRAIN, UnitState, boot_id, unit_state
from train_cloud.platforms.notifications import Channel, announce_end
from train_cloud.run import layout
from train_cloud.run.head import Head, conclude, read_head
from train_cloud.run.session import Session, local_session
from train_cloud.store import ObjectStore, open_store

ARTIFACTS_RETRY_TIMEOUT_S = 120.0
"""For so long the end of a run waits for what is not yet in the store."""
REFUSAL_RETRY_TIMEOUT_S = 120.0
"""IAM tells all of its servers about a new role within seconds, seldom minutes; a refusal that lasts longer is one."""
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Facts:
    """What :func:`decide` goes by."""

    head: Head | None
    """None: the run has none, or it cannot be read."""
    unreadable: str | None
    """Why the head cannot be read, and will not be."""
    session: int | None
    """This boot's; None while it has not begun one."""
    train: UnitState
    notice: Notice | None
    """In force on this machine, since this boot."""
    boot: bool
    """Asked at boot, before the trainer is started."""


@dataclass(frozen=True)
class Decision:
    """What is to be done, and why in words.

    ``nothing``; ``close``: capacity 0 and this machine ends; ``fail``: the outcome ``failed``, then as ``close``;
    ``replace``: this machine ends and the capacity stays.
    """

    verb: Literal["nothing", "close", "fail", "replace"]
    why: str


def decide(facts: Facts) -> Decision:
    """Decision 2 of the design, line by line, the first that fits."""
    head, train = facts.head, facts.train
    if head is not None and head.outcome is not None:
        return Decision("close", f"the run is over: {head.outcome}" + (f" ({head.reason})" if head.reason else ""))
    if not train.over:
        return Decision("nothing", f"the trainer is {train.active} ({train.sub})")
    if facts.boot:
        return Decision("nothing", "the run is not over: the trainer may start")
    if train.exit_status == Fenced.exit_code:
        return Decision("replace", "another worker has the run")
    if facts.notice is not None:
        return Decision("nothing", f"{facts.notice.kind} notice: the machine goes at {facts.notice.time.isoformat()}")
    if train.exit_status == Interrupted.exit_code or (train.result == "success" and train.status != 0):
        return Decision("nothing", "the trainer was stopped from outside, and may be started again")
    if train.exit_status == 0 and facts.session is None:
        return Decision("nothing", "the trainer has not run in this boot")
    if facts.unreadable is not None:
        return Decision("close", f"the trainer {train.in_words()}, and the head cannot be read: {facts.unreadable}")
    if head is not None and facts.session is not None and head.session > facts.session:
        return Decision("replace", f"the run belongs to {head.owner}, session {head.session}")
    reason = head.reason if head is not None and head.reason else f"the trainer {train.in_words()}"
    return Decision("fail", reason)


def act(
    decision: Decision, facts: Facts, *, store: ObjectStore, group: Group, instance_id: Callable[[], str]
) -> Decision:
    """Carry out a decision. What may be mended by waiting is tried until it holds.

    :param instance_id: asked only once the capacity is 0: money does not wait for it
    :return: the decision as it turned out: a trainer that ended the run in the meantime is left its outcome
    :raises CloudError: Auto Scaling refuses for good
    """
    if decision.verb == "fail":
        session = facts.session if facts.session is not None else facts.head.session if facts.head else 0
        owner = platform.node()
        try:
            head = _answered(lambda: conclude(store, "failed", decision.why, session=session, owner=owner))
            decision = Decision("close", f"the run is over: {head.outcome} ({head.reason})")
        except Fenced as error:
            decision = Decision("replace", str(error))
        except (CorruptCheckpoint, StoreForbidden, BucketMissing) as error:
            decision = Decision("close", f"{decision.why}; the head could not be written: {error}")
        _log.info("%s: %s", decision.verb, decision.why)
    if decision.verb == "close":
        if not group.set_capacity(0):
            _log.info("the group %s is gone", group.name)
        # A courtesy, asked once: at capacity 0 the group ends the machine by itself.
        with contextlib.suppress(CloudError):
            Group(group.name).terminate(instance_id(), decrement=False)
    elif decision.verb == "replace":
        group.terminate(until_it_holds(instance_id, retry_timeout_s=None), decrement=False)
    return decision


def finish(
    store: ObjectStore,
    state_dir: Path,
    metadata: Metadata,
    group: Group,
    *,
    boot: bool = False,
    channels: Sequence[Channel] = (),
) -> Decision:
    """Look, decide and act. Safe to be run any number of times, in any state.

    :param store: of the run
    :param group: the worker's; its retry timeout is for how long the money may wait
    :param boot: before anything is started, at each boot
    :param channels: are told how the run ended, once the capacity is 0
    """
    this_boot = boot_id()
    head, unreadable = _read(store)
    session = local_session(state_dir, this_boot)
    facts = Facts(
        head=head,
        unreadable=unreadable,
        session=session.number if session else None,
        notice=local_notice(state_dir, this_boot),
        # Last, so that it is still true when we leave: systemd does not start a unit that still runs.
        train=until_it_holds(lambda: unit_state(TRAIN), retry_timeout_s=None),
        boot=boot,
    )
    decision = decide(facts)
    _log.info("%s: %s", decision.verb, decision.why)
    if decision.verb in ("close", "fail") and session is not None and not boot:
        of = store if session.url in ("", store.url) else open_store(session.url)  # a session of a pipeline
        send_artifacts(of, state_dir, session, export=decision.verb == "fail")
    decision = act(decision, facts, store=store, group=group, instance_id=metadata.instance_id)
    for channel in channels if decision.verb == "close" else ():
        try:
            announce_end(store, channel, session=facts.session, why=decision.why)
        except CloudError as error:  # nobody was told; the run is over all the same
            _log.error("nobody was told that %s: %s", decision.why, error)
    return decision


def send_artifacts(store: ObjectStore, state_dir: Path, session: Session, *, export: bool) -> None:
    """What the trainer has not sent, because it failed or was killed. The money does not wait for it for long.

    :param export: also the models of kept checkpoints, and the newest as the final one
    """
    folder = state_dir / FOLDER
    if not folder.is_dir():
        return
    until = time.monotonic() + ARTIFACTS_RETRY_TIMEOUT_S
    try:
        if export:
            command = child_process.command("train_cloud.runtime.kept_models", "--final", store.url, str(folder))
            subprocess.run(
                command,
                check=False,
                timeout=ARTIFACTS_RETRY_TIMEOUT_S / 2,
                stdin=subprocess.DEVNULL,
                env=child_process.environment(),
            )
        name = layout.run_id_of(store.url)
        if not run_sync(store, state_dir, name, (session.number, session.restart)).everything(until=until):
            _log.error("not all artifacts could be sent")
    except (StoreError, CorruptCheckpoint, Fenced, OSError, subprocess.SubprocessError) as error:
        _log.error("not all artifacts could be sent: %s", error)


def _read(store: ObjectStore) -> tuple[Head | None, str | None]:
    """The head, or why it cannot be read whatever we do."""
    try:
        read = _answered(lambda: read_head(store))
    except (CorruptCheckpoint, StoreForbidden, BucketMissing) as error:
        return None, str(error)
    return (read[0] if read else None), None


def _answered(ask: Callable[[], _T]) -> _T:
    """Wait for the store through an outage of any length, and through a refusal for two minutes."""
    return until_it_holds(
        lambda: until_it_holds(ask, retry_timeout_s=None, retry_on=(StoreUnavailable,)),
        retry_timeout_s=REFUSAL_RETRY_TIMEOUT_S,
        retry_on=(StoreForbidden, BucketMissing),
    )
