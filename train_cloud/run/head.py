"""The head: one small object that says how far a run is, who may write it, and how it ended.

Swapping the head *is* the commit: parts and manifest are written before it under names of their own, and nothing
refers to them until it points there. Every swap carries ``If-Match``, so of two workers one loses; and a random
``commit``, so a worker whose reply was lost (412 after the client's own retry, 409, a reset connection) finds out by
a re-read whether the swap that stands is its own. There are no clocks in it.
"""

from __future__ import annotations

import json
import time
import uuid
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from pydantic_core import to_json

from train_cloud.errors import (
    ConditionFailed,
    CorruptCheckpoint,
    Fenced,
    HeadMissing,
    ObjectMissing,
    StoreUnavailable,
)
from train_cloud.run import layout
from train_cloud.safe_text import clean, clean_values, masked
from train_cloud.store import ObjectStore

Outcome = Literal["completed", "stopped", "failed"]

#: Begins the reason of a run that a person has ended before its time.
CANCELLED = "cancelled"
_CHECKSUM = "crc32"


class Token(NamedTuple):
    """Fencing token: the session's number, and how often its process was restarted within that boot."""

    session: int
    restart: int


class Reference(BaseModel):
    """Names an immutable object and what it must contain."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    size: int
    """bytes"""
    crc64nvme: int
    hmac: str | None = None
    """Of a run with a signing key (checkpoint/signing.py); else it is not even written."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields: dict[str, object] = write(self)
        if fields.get("hmac") is None:
            fields.pop("hmac", None)
        return fields


class Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    session: int
    restart: int
    """The fencing token of the worker that owns the run: (session, restart)."""
    owner: str
    """For people: instance id, or host name and process."""
    commit: str
    """Random per swap."""
    seq: int = 0
    """Counts the swaps."""
    timesteps: int = 0
    manifest: Reference | None = None
    """None until the first checkpoint."""
    outcome: Outcome | None = None
    reason: str | None = None
    """Why it ended; without an outcome, the last failure that was recorded."""
    parent: str | None = None
    """The manifest key before this one, or the run that this one was forked from. Without a manifest: what showed that
    the run had had a head, when this one was written to say that it is gone.
    """
    attempts: int = 0
    """Failures in a row without a new commit."""

    @property
    def token(self) -> Token:
        return Token(self.session, self.restart)


def read_head(store: ObjectStore) -> tuple[Head, str] | None:
    """The head and its e-tag; None only where a LIST shows that there is none.

    :raises CorruptCheckpoint: it exists and cannot be read as a head
    :raises StoreForbidden: it exists, or may exist, and may not be read
    """
    try:
        stored = store.get(layout.HEAD)
    except ObjectMissing:
        return None
    try:
        return parse_head(bytes(stored.body)), stored.etag
    except ValueError as error:
        raise CorruptCheckpoint(
            f"{store.url}/{layout.HEAD} is not a head, or damaged: train-cloud repair writes it anew from the newest "
            "whole checkpoint; nothing was overwritten"
        ) from error


def parse_head(body: bytes) -> Head:
    """What :func:`pack_head` wrote. A head that bootstrap's shell has written has no checksum.

    :raises ValueError: it is no head, or other bytes than were written
    """
    fields = json.loads(body)
    checksum = fields.pop(_CHECKSUM, None) if isinstance(fields, dict) else None
    head = Head.model_validate(clean_values(fields))
    if checksum is not None and checksum != _crc32(fields):
        raise ValueError(f"its CRC-32 is not {checksum}")
    return head


def pack_head(head: Head) -> bytes:
    """JSON with a checksum of its own: no manifest vouches for the head, and a flipped digit is a head like another."""
    fields = head.model_dump(mode="json")
    return to_json({**fields, _CHECKSUM: _crc32(fields)}, indent=1)


def _crc32(fields: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def trace(store: ObjectStore) -> str | None:
    """The key of something that no run leaves before it has a head: of the newest manifest, else of a segment, else of
    a session's end. None where nothing of the kind is there.
    """
    manifests, others = [], []
    for info in store.list():
        manifest, record = layout.manifest_of(info.key), layout.record_of(info.key)
        if manifest is not None:
            manifests.append((manifest[1:], info.key))
        elif layout.segment_of(info.key) is not None or (record is not None and record[1] == "end"):
            others.append(info.key)
    return max(manifests)[1] if manifests else min(others, default=None)


def refuse_lost(store: ObjectStore, head: Head | None) -> None:
    """Refuse a run whose head is gone, or stands only to say so, although it has left something.

    :param head: as it was read
    :raises HeadMissing:
    """
    if head is not None and (head.manifest is not None or (head.session > 0 and head.parent is None)):
        return
    # Session 0 is nobody's: bootstrap/ending.sh ends a run so that has no head.
    left = trace(store) if head is None or head.parent is None else head.parent
    if left is None or (head is None and read_head(store) is not None):  # somebody has begun the run meanwhile
        return
    at = layout.manifest_of(left)
    raise HeadMissing(lost(store, f"a checkpoint at {at[0]} timesteps" if at is not None else left))


def lost(store: ObjectStore, left: str) -> str:
    """What to say of a run whose head is gone.

    :param left: what there is of it, in words
    """
    run_id = layout.run_id_of(store.url)
    return (
        f"{store.url}/{layout.HEAD} is missing, though the run has left {left}: nothing is begun anew on top of it; "
        f"train-cloud repair {run_id} writes it again from the newest whole checkpoint, train-cloud delete {run_id} "
        "deletes what there is"
    )


def found(store: ObjectStore, manifest: Reference, timesteps: int, *, owner: str, parent: str) -> Head:
    """Write the first head of a run that begins from another run's checkpoint; any session may take it.

    :raises ConditionFailed: there is a head already
    """
    head = Head(
        session=0, restart=0, owner=owner, commit=_random(), timesteps=timesteps, manifest=manifest, parent=parent
    )
    _swap(store, head, None)
    return head


def rebuild(
    store: ObjectStore, token: Token, owner: str, manifest: Reference, timesteps: int, *, seq: int, over: str | None
) -> Head:
    """Write a head in the place of one that is gone, or cannot be read. Lower tokens are fenced from then on.

    :param seq: above those of all checkpoints that are there
    :param over: e-tag of what stands there; None where nothing does
    :raises ConditionFailed: something else stands there since
    """
    head = Head(
        session=token.session,
        restart=token.restart,
        owner=owner,
        commit=_random(),
        seq=seq,
        timesteps=timesteps,
        manifest=manifest,
    )
    _swap(store, head, over)
    return head


def _swap(store: ObjectStore, head: Head, etag: str | None) -> str:
    """Writes ``head`` over the version ``etag`` (None: as the first). Lost and ambiguous replies are resolved by
    re-reading.

    :raises ConditionFailed: what stands there is neither the version that was read nor ours
    :raises StoreUnavailable: unknown whether it was written; calling again with the same ``head`` is safe
    """
    body = pack_head(head)
    try:
        return store.create(layout.HEAD, body) if etag is None else store.swap(layout.HEAD, body, etag)
    except ConditionFailed:
        standing = read_head(store)
        if standing is not None and standing[0].commit == head.commit:
            return standing[1]
        raise


class Lease:
    """The right of one worker to write the head, until a newer one takes it. Not thread-safe: one committing thread."""

    def __init__(self, store: ObjectStore, head: Head, etag: str, before: Head | None) -> None:
        self._store = store
        self.head = head
        self._etag = etag
        self.before = before
        """The head that it was taken over; None where there was none."""

    @classmethod
    def take(
        cls,
        store: ObjectStore,
        token: Token,
        owner: str,
        *,
        max_attempts: int | None = None,
        failed: bool = True,
        failure: str | None = None,
    ) -> Lease:
        """Take the run before training: from here on, workers with a lower token cannot commit.

        A restart within one boot means that the process died without the machine going: unless a commit was made since,
        it counts as a failed attempt. A machine that vanished does not count.

        :param max_attempts: with more failed attempts in a row than this, the outcome ``failed`` is swapped in instead
        :param failed: of a restart, whether the process before it died; False where it had left by itself
        :param failure: what it died of, where it could not say so itself: the head's reason until the next commit
        :raises Fenced: a newer session, or a newer restart of this one, has it
        :raises HeadMissing: there is none, and the run has left something that shows that there was one
        """
        sent, before = False, None
        while True:
            read = read_head(store)
            refuse_lost(store, read[0] if read else None)
            if read is None:
                head, etag = Head(session=token.session, restart=token.restart, owner=owner, commit=_random()), None
            else:
                current, etag = read
                if sent and current.token == token:
                    # Our swap's reply was lost, and somebody has set or cleared an outcome since.
                    return cls(store, current, etag, before)
                if current.token >= token:
                    raise Fenced(_fenced(current, token))
                before = current
                again = failed and current.session == token.session
                died = clean(masked(failure)) if again and failure and current.outcome is None else None
                head = current.model_copy(
                    update={
                        "session": token.session,
                        "restart": token.restart,
                        "owner": owner,
                        "commit": _random(),
                        "seq": current.seq + 1,
                        "attempts": current.attempts + again,
                        "reason": died or current.reason,
                    }
                )
                if max_attempts is not None and head.attempts >= max_attempts and head.outcome is None:
                    why = f"; the last: {head.reason}" if head.reason else ""
                    reason = f"{head.attempts} attempts without a new commit{why}"
                    head = head.model_copy(update={"outcome": "failed", "reason": reason})
            try:
                return cls(store, head, _swap(store, head, etag), before)
            except ConditionFailed:
                sent = True
                continue  # somebody swapped in between; every turn of this loop is somebody else's progress

    def commit(
        self, manifest: Reference, timesteps: int, *, outcome: Outcome | None = None, reason: str | None = None
    ) -> Head:
        """Make ``manifest`` the run's checkpoint, in one swap with the outcome if there is one.

        :raises Fenced: the head is somebody else's now
        :raises StoreUnavailable: may be called again with the same arguments
        """
        parent = self.head.manifest.key if self.head.manifest else self.head.parent
        return self._write(
            manifest=manifest, timesteps=timesteps, outcome=outcome, reason=reason, parent=parent, attempts=0
        )

    def conclude(self, outcome: Outcome, reason: str | None = None) -> Head:
        """Set the outcome; the checkpoint stays as it is."""
        return self._write(outcome=outcome, reason=reason)

    def record_failure(self, reason: str) -> Head:
        """Leave word of why this attempt ended. Counting it is the next ``take``'s business."""
        return self._write(reason=reason)

    def _write(self, **changes: object) -> Head:
        if isinstance(changes.get("reason"), str):
            changes["reason"] = clean(masked(str(changes["reason"])))
        head = self.head.model_copy(update={**changes, "commit": _random(), "seq": self.head.seq + 1})
        try:
            self._etag = _swap(self._store, head, self._etag)
        except StoreUnavailable:
            # The write may have happened. If it has, later swaps must start from it.
            standing = read_head(self._store)
            if standing is None or standing[0].commit != head.commit:
                raise
            self._etag = standing[1]
        except ConditionFailed as error:
            standing = read_head(self._store)
            if standing is None or standing[0].token != self.head.token:
                raise Fenced(_fenced(standing[0] if standing else None, self.head.token)) from error
            # Ours: an earlier swap of this lease whose reply was lost, or which came late.
            if all(getattr(standing[0], name) == value for name, value in changes.items()):
                self.head, self._etag = standing
                return self.head
            if standing[0].outcome is not None:
                raise Fenced(_fenced(standing[0], self.head.token)) from error
            # Its caller gave it up. What it changed stays: a failure that is recorded now must not take back the
            # checkpoint before it.
            self.head, self._etag = standing
            return self._write(**changes)
        self.head = head
        return head


def conclude(store: ObjectStore, outcome: Outcome, reason: str, *, session: int, owner: str) -> Head:
    """Set an outcome from outside the training process, once it has ended for good.

    :return: the head as it stands afterwards; an outcome that was there already is left as it is
    :raises Fenced: the head belongs to a newer session
    """
    reason = clean(masked(reason))

    def change(head: Head | None) -> Head | None:
        if head is None:
            return Head(
                session=session,
                restart=0,
                owner=owner,
                commit=_random(),
                outcome=outcome,
                reason=reason,
                parent=trace(store),
            )
        if head.session > session:
            raise Fenced(_fenced(head, Token(session, 0)))
        if head.outcome is not None:
            return None
        return head.model_copy(update={"outcome": outcome, "reason": reason})

    head = _change(store, change)
    assert head is not None
    return head


def is_cancelled(head: Head) -> bool:
    """Whether a person has ended the run before its time."""
    return head.outcome == "stopped" and (head.reason or "").startswith((CANCELLED, "it is being deleted"))


def reopen(store: ObjectStore, *, but_cancelled: bool = False) -> Head | None:
    """Clear the outcome and the attempts, so that the next session trains on. Called by people.

    :param but_cancelled: leave a run as it is that a person has ended
    :return: the head as it stands afterwards; None where the run has none yet
    """

    def change(head: Head | None) -> Head | None:
        if head is None or (head.outcome is None and head.attempts == 0) or (but_cancelled and is_cancelled(head)):
            return None
        return head.model_copy(update={"outcome": None, "reason": None, "attempts": 0})

    return _change(store, change)


def _change(store: ObjectStore, change: Callable[[Head | None], Head | None]) -> Head | None:
    while True:
        read = read_head(store)
        current, etag = read if read else (None, None)
        head = change(current)
        if head is None:
            return current
        head = head.model_copy(update={"commit": _random(), "seq": current.seq + 1 if current else 0})
        try:
            _swap(store, head, etag)
        except ConditionFailed:
            time.sleep(0.05)
            continue
        return head


def _random() -> str:
    return uuid.uuid4().hex


def _fenced(head: Head | None, token: Token) -> str:
    mine = f"session {token.session} (restart {token.restart})"
    if head is None:
        return f"the head is gone; {mine} may not write it anew"
    if head.token == token:
        return f"the run has the outcome {head.outcome!r} since; {mine} may not go on"
    return f"the run belongs to {head.owner}, session {head.session} (restart {head.restart}); {mine} may not write"
