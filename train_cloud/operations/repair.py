"""repair: a head that is gone, or names what is damaged, is written anew from the newest checkpoint that is whole."""

from __future__ import annotations

from dataclasses import dataclass

from train_cloud.checkpoint.manifest import refer
from train_cloud.checkpoint.survey import Standing, Survey, damage, survey
from train_cloud.errors import ConditionFailed, CorruptCheckpoint, Fenced, HeadMissing, InputError, ObjectMissing
from train_cloud.operations.acquire import begin
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head, rebuild, refuse_lost
from train_cloud.run.session import end_session, now
from train_cloud.store import ObjectStore, open_store


@dataclass(frozen=True)
class Repair:
    """What :func:`plan` has found, and :func:`repair` would do about it."""

    store: ObjectStore
    fault: str
    """What is wrong with the head, in words."""
    found: Survey
    chosen: Standing
    damaged: dict[int, str]
    """Timesteps of checkpoints that came after it → what is wrong with them."""
    over: str | None
    """E-tag of the head that stands there."""
    session: int
    """Of that head; 0 where there is none."""
    seq: int


def plan(root: str, run_id: str, to: int | None = None) -> Repair:
    """Look what is there, and verify every byte of the checkpoint that is chosen. Writes nothing.

    :param to: timesteps of the checkpoint to go back to; None for the newest that is whole
    :raises InputError: no such run, nothing to repair, or no whole checkpoint, there or at ``to``
    """
    store = open_store(layout.run_url(root, run_id))
    head, over, fault = _head(store)
    found = survey(store)
    if fault is None and head is not None and head.manifest is not None:
        named = next((each for each in found.checkpoints if each.reference == head.manifest), None)
        fault = "its manifest is missing or damaged" if named is None else damage(store, named)
        if fault is None:
            fix = "nothing to repair: its head is there, and the checkpoint that it names is whole"
            raise InputError("run", run_id, f"{fix} (at {head.timesteps} timesteps); train-cloud rollback goes back")
    if fault is None and not found.checkpoints:
        if head is None and not any(store.list()):
            raise InputError("run", run_id, f"nothing is stored under {store.url}")
        raise InputError("run", run_id, "nothing to repair: it has no checkpoint yet")
    damaged: dict[int, str] = {}
    for each in found.checkpoints:
        if to is not None and each.timesteps != to:
            continue
        why = damage(store, each)
        if why is None:
            session, seq = (head.session, head.seq) if head is not None else (0, 0)
            fault = fault or "its head names no checkpoint"
            return Repair(store, fault, found, each, damaged, over, session, max(found.seq, seq) + 1)
        damaged.setdefault(each.timesteps, why)
    there = ", ".join(str(each.timesteps) for each in found.whole()) or "none"
    if to is not None and to not in damaged:
        raise InputError("--to", to, f"no checkpoint at these timesteps is there; whole ones: {there}")
    first = next(iter(damaged.values()), "no manifest of one can be read")
    raise InputError("--to" if to is not None else "run", to or run_id, f"no whole checkpoint is there: {first}")


def repair(planned: Repair) -> Head:
    """Write the head that was planned, under a token above all that there are; whatever worker lives is fenced.

    :return: the head as it stands now
    :raises Fenced: somebody else has written a head meanwhile
    """
    store, chosen = planned.store, planned.chosen
    session, owner = begin(store, "repair", above=max(planned.found.highest.session, planned.session))
    manifest = chosen.manifest.model_copy(
        update={
            "session": session.number,
            "restart": session.restart,
            "created": now(),
            "kept": planned.found.kept_before(chosen),
        }
    )
    key = layout.checkpoint_prefix(chosen.timesteps, session.token, planned.seq) + "manifest.json"
    body = memoryview(manifest.model_dump_json().encode())
    store.put(key, body)
    reference = refer(store, key, body)
    try:
        head = rebuild(store, session.token, owner, reference, chosen.timesteps, seq=planned.seq, over=planned.over)
    except ConditionFailed as error:
        raise Fenced(f"somebody else has written {store.url}/{layout.HEAD} meanwhile: look again") from error
    end_session(
        store,
        session,
        ended_by="repair",
        first_timestep=chosen.timesteps,
        last_timestep=chosen.timesteps,
        committed_timesteps=chosen.timesteps,
    )
    return head


def _head(store: ObjectStore) -> tuple[Head | None, str | None, str | None]:
    """The head as far as it can be read, the e-tag of what stands there, and what is wrong with it."""
    head = None
    try:
        etag = store.get(layout.HEAD).etag
    except ObjectMissing:
        etag = None
    try:
        read = read_head(store)
        head = read[0] if read is not None else None
        refuse_lost(store, head)
    except HeadMissing:
        return head, etag, f"{layout.HEAD} is missing"
    except CorruptCheckpoint:
        return None, etag, f"{layout.HEAD} is not a head, or damaged"
    return head, etag, None
