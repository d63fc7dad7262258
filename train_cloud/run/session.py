"""Sessions: one boot's work on a run. Each leaves a start, its notices, its progress and an end in the store.

A boot takes its session number once, by a create-only write, and keeps it on its disk: the trainer's restarts within
the boot are restarts of the same session, so that an old worker which crashes and comes back cannot overtake a newer
one.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from train_cloud.errors import ConditionFailed, ObjectMissing
from train_cloud.run import layout
from train_cloud.run.head import Token
from train_cloud.store import ObjectStore

_LOCAL = "session.json"
_PARALLEL = 8


class Session(BaseModel):
    """This process's place among the sessions of the run."""

    model_config = ConfigDict(frozen=True)
    number: int
    restart: int
    instance_id: str
    boot_id: str
    began: float = Field(default_factory=time.monotonic)
    """On ``time.monotonic()``, which restarts within one boot share. Wall clocks jump, and hours are money."""

    @property
    def seconds(self) -> float:
        """Since the session began."""
        return time.monotonic() - self.began

    @property
    def token(self) -> Token:
        return Token(self.number, self.restart)


class SessionRecord(BaseModel):
    """What the store holds about one session."""

    model_config = ConfigDict(frozen=True)
    number: int
    start: dict[str, Any]
    progress: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    notices: list[dict[str, Any]] = []


def now() -> str:
    """The time in UTC, ISO 8601 with seconds and zone."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def local_session(state_dir: Path, boot_id: str) -> Session | None:
    """The session that this boot has taken already, or None. Called by ``watch`` and ``finish`` too."""
    try:
        session = Session.model_validate_json((state_dir / _LOCAL).read_text())
    except FileNotFoundError:
        return None
    return session if session.boot_id == boot_id else None


def begin_session(
    store: ObjectStore,
    state_dir: Path,
    *,
    instance_id: str,
    boot_id: str,
    details: Mapping[str, Any],
    persist: bool,
) -> Session:
    """Take the next session number, or on a restart within the same boot go on with the one it has.

    :param details: written to ``start.json``: instance type, zone, versions, run file
    :param persist: keep the session across restarts of the process (a worker); False makes each call a session (a
    laptop)
    """
    standing = local_session(state_dir, boot_id) if persist else None
    if standing is not None:
        session = standing.model_copy(update={"restart": standing.restart + 1})
    else:
        number = 1 + max((_number(info.key) for info in store.list(layout.SESSIONS)), default=0)
        nonce = uuid.uuid4().hex
        while True:
            start = {**details, "session": number, "instance_id": instance_id, "boot_id": boot_id, "nonce": nonce}
            body = json.dumps({**start, "started": now()}, indent=1).encode()
            try:
                store.create(layout.start_key(number), body)
                break
            except ConditionFailed:
                # Ours after a lost reply, or somebody else's: the nonce tells.
                if json.loads(bytes(store.get(layout.start_key(number)).body)).get("nonce") == nonce:
                    break
                number += 1
        session = Session(number=number, restart=0, instance_id=instance_id, boot_id=boot_id)
    write_local(state_dir / _LOCAL, session.model_dump())
    return session


def end_session(store: ObjectStore, session: Session, **facts: Any) -> None:
    """Write how the session ended, once; a restart that ends again changes nothing."""
    own = {"session": session.number, "restart": session.restart, "ended": now(), "seconds": session.seconds}
    body = json.dumps({**own, **facts}, indent=1)
    try:
        store.create(layout.end_key(session.number), body.encode())
    except ConditionFailed:
        return


def write_progress(store: ObjectStore, session: Session, **facts: Any) -> None:
    """Overwrite the session's progress: the only one of its records that changes."""
    # Beside the training, which waits while Python writes JSON with indents.
    body = to_json({"session": session.number, "at": now(), "seconds": session.seconds, **facts}, indent=1)
    store.put(layout.progress_key(session.number), body)


def read_progress(store: ObjectStore, session: Session) -> dict[str, Any] | None:
    """What :func:`write_progress` wrote last; None before the first time."""
    try:
        found: dict[str, Any] = json.loads(bytes(store.get(layout.progress_key(session.number)).body))
    except ObjectMissing:
        return None
    return found


def record_notice(store: ObjectStore, session: Session, notice: Mapping[str, Any]) -> str:
    """Write a notice under the next free number and return its key. A notice that stands there already is not
    doubled.
    """
    number = 1
    while True:
        key = layout.notice_key(session.number, number)
        body = json.dumps(dict(notice), indent=1).encode()
        try:
            store.create(key, body)
            return key
        except ConditionFailed:
            if bytes(store.get(key).body) == body:
                return key
            number += 1


def read_sessions(store: ObjectStore) -> list[SessionRecord]:
    """All sessions in their order. An object that vanishes in between (a run being deleted) is left out."""
    found: dict[int, dict[str, Any]] = {}
    keys = [info.key for info in store.list(layout.SESSIONS)]
    with ThreadPoolExecutor(_PARALLEL) as threads:
        bodies = list(threads.map(lambda key: _body(store, key), keys))
    for key, body in zip(keys, bodies, strict=True):
        if body is None:
            continue
        content = json.loads(body)
        record = found.setdefault(_number(key), {"notices": []})
        name = key.rsplit("/", 1)[1].removesuffix(".json")
        if name.startswith("notice-"):
            record["notices"].append((int(name.removeprefix("notice-")), content))
        else:
            record[name] = content
    return [
        SessionRecord(
            number=number,
            start=record.get("start", {}),
            progress=record.get("progress"),
            end=record.get("end"),
            notices=[content for _, content in sorted(record["notices"], key=lambda pair: pair[0])],
        )
        for number, record in sorted(found.items())
    ]


def _body(store: ObjectStore, key: str) -> bytes | None:
    try:
        return bytes(store.get(key).body)
    except ObjectMissing:
        return None


def write_local(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a small JSON file on the local disk atomically; it survives a power cut right after the call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as file:
        json.dump(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _number(key: str) -> int:
    return int(key.removeprefix(layout.SESSIONS).split("/", 1)[0])
