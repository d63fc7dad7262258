"""Sessions: one boot's work on a run. Each leaves a start, its notices, its progress and an end in the store.

A boot takes its session number once, by a create-only write, and keeps it on its disk: the trainer's restarts within
the boot are restarts of the same session, so that an old worker which crashes and comes back cannot overtake a newer
one.
"""

from __future__ import annotations

import json
import platform
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from train_cloud.errors import ConditionFailed, ObjectMissing
from train_cloud.run import layout
from train_cloud.run.head import Token
from train_cloud.safe_text import clean_values, masked_values
from train_cloud.store import ObjectStore
from train_cloud.store.foreign import ignore
from train_cloud.whole_file import write_local

_LOCAL = "session.json"
_PARALLEL = 8
_NUMBER, _TEXT = (int, float, type(None)), (str, type(None))
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("timesteps", "first_timestep", "last_timestep", "committed_timesteps"), (int, type(None))),
    **dict.fromkeys(("seconds", "setup_seconds", "steps_per_second", "commit_seconds", "sent_bytes"), _NUMBER),
    **dict.fromkeys(("at_risk", "repeated"), (int, type(None))),
    **dict.fromkeys(
        ("instance_id", "started", "ended", "at", "ended_by", "exact_because", "exact_evidence", "kind"), _TEXT
    ),
    **dict.fromkeys(("instance_type", "availability_zone"), _TEXT),
    **dict.fromkeys(("run_file", "price", "evaluation", "predecessor"), (dict, type(None))),
    "exact": (bool, type(None)),
    "not_kept": (list, type(None)),
}
"""What is computed with, or shown, of a record: others may have written into it."""


class Session(BaseModel):
    """This process's place among the sessions of the run."""

    model_config = ConfigDict(frozen=True)
    number: int
    restart: int
    instance_id: str
    boot_id: str
    began: float = Field(default_factory=time.monotonic)
    """On ``time.monotonic()``, which restarts within one boot share. Wall clocks jump, and hours are money."""
    url: str = ""
    """Of the run."""

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
    """Of the last of its processes that left one."""
    notices: list[dict[str, Any]] = []


def now() -> str:
    """The time in UTC, ISO 8601 with seconds and zone."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def this_process() -> dict[str, Any]:
    """Of this process, for its session's start: whoever looks on the same machine need not wait for its silence."""
    own = psutil.Process()
    return {"pid": own.pid, "created": own.create_time(), "among": _processes()}


def is_gone(record: SessionRecord) -> bool:
    """Whether its process ran where this one does, and is there no longer; False where that cannot be told."""
    process = record.start.get("process")
    if not isinstance(process, dict) or process.get("among") != _processes():
        return False
    try:
        found = psutil.Process(process["pid"])
        return found.status() == psutil.STATUS_ZOMBIE or abs(found.create_time() - process["created"]) > 1
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, KeyError, TypeError, ValueError):  # or somebody else has written into the record
        return False


def _processes() -> list[str]:
    """What a process's number is unique in; random/boot_id in proc_sys_kernel(5), and pid_namespaces(7)."""
    try:
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())]
    except OSError:
        return [platform.node()]


def local_session(state_dir: Path, boot_id: str) -> Session | None:
    """The session that this boot has taken already, or None. Called by ``watch`` and ``finish`` too."""
    session = last_session(state_dir)
    return session if session is not None and session.boot_id == boot_id else None


def last_session(state_dir: Path) -> Session | None:
    """The last session that was begun with this folder, in whatever boot."""
    try:
        return Session.model_validate_json((state_dir / _LOCAL).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def begin_session(
    store: ObjectStore,
    state_dir: Path,
    *,
    instance_id: str,
    boot_id: str,
    details: Mapping[str, Any],
    persist: bool,
    above: int = 0,
) -> Session:
    """Take the next session number, or on a restart within the same boot go on with the one it has.

    :param details: written to ``start.json``: instance type, zone, versions, run file
    :param persist: keep the session across restarts of the process (a worker); False makes each call a session (a
        laptop)
    :param above: the number is larger than this one: the head's, whose session's records may be gone
    """
    here = local_session(state_dir, boot_id) if persist else None
    if here is not None:
        session = here.model_copy(update={"restart": here.restart + 1})
    else:
        taken = (layout.record_of(info.key) for info in store.list(layout.SESSIONS))
        number = 1 + max((record[0] for record in taken if record is not None), default=0)
        number = max(number, above + 1)
        nonce = uuid.uuid4().hex
        while True:
            own = {"session": number, "instance_id": instance_id, "boot_id": boot_id, "nonce": nonce}
            start = {**masked_values(details), **own}
            body = json.dumps({**start, "started": now()}, indent=1).encode()
            try:
                store.create(layout.start_key(number), body)
                break
            except ConditionFailed:
                # Ours after a lost reply, or somebody else's: the nonce tells.
                standing = _content(store, layout.start_key(number))
                if standing is not None and standing.get("nonce") == nonce:
                    break
                number += 1
        session = Session(number=number, restart=0, instance_id=instance_id, boot_id=boot_id, url=store.url)
    write_local(state_dir / _LOCAL, session.model_dump())
    return session


def end_session(store: ObjectStore, session: Session, **facts: Any) -> None:
    """Write how this process of the session ended, once."""
    own = {"session": session.number, "restart": session.restart, "ended": now(), "seconds": session.seconds}
    body = json.dumps({**own, **masked_values(facts)}, indent=1)
    try:
        store.create(layout.end_key(session.number, session.restart), body.encode())
    except ConditionFailed:
        return


def write_progress(store: ObjectStore, session: Session, **facts: Any) -> None:
    """Overwrite the session's progress: the only one of its records that changes."""
    # Beside the training, which waits while Python writes JSON with indents.
    facts = masked_values(facts)
    body = to_json({"session": session.number, "at": now(), "seconds": session.seconds, **facts}, indent=1)
    store.put(layout.progress_key(session.number), body)


def read_progress(store: ObjectStore, session: Session) -> dict[str, Any] | None:
    """What :func:`write_progress` wrote last; None before the first time, or where it is damaged."""
    return _content(store, layout.progress_key(session.number))


def with_progress(store: ObjectStore, record: SessionRecord) -> SessionRecord:
    """A session's record with its progress as it is now, which takes one request."""
    found = _content(store, layout.progress_key(record.number))
    return record if found is None else record.model_copy(update={"progress": found})


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
    """All sessions in their order. An object that vanishes in between (a run being deleted) is left out, and so is one
    that is no record, with a warning.
    """
    return _records(store, layout.SESSIONS)


def read_session(store: ObjectStore, number: int) -> SessionRecord | None:
    """One of them."""
    return next(iter(_records(store, f"{layout.SESSIONS}{number:06d}/")), None)


def _records(store: ObjectStore, prefix: str) -> list[SessionRecord]:
    keys = [info.key for info in store.list(prefix)]
    ours = [(key, record) for key in keys if (record := layout.record_of(key)) is not None]
    ignore(store.url, set(keys) - {key for key, _ in ours})
    with ThreadPoolExecutor(_PARALLEL) as threads:
        contents = list(threads.map(lambda pair: _content(store, pair[0]), ours))
    found: dict[int, dict[str, dict[int, dict[str, Any]]]] = {}
    for (_, (session, kind, number)), content in zip(ours, contents, strict=True):
        kinds = found.setdefault(session, {})
        if content is not None:
            kinds.setdefault(kind, {})[number] = content
    return [
        SessionRecord(
            number=number,
            start=kinds.get("start", {}).get(0, {}),
            progress=kinds.get("progress", {}).get(0),
            end=kinds["end"][max(kinds["end"])] if "end" in kinds else None,
            notices=[content for _, content in sorted(kinds.get("notice", {}).items())],
        )
        for number, kinds in sorted(found.items())
    ]


def _content(store: ObjectStore, key: str) -> dict[str, Any] | None:
    """Of a record; None where it is missing or, with a warning, damaged. Values of a wrong kind are left out."""
    try:
        content = json.loads(bytes(store.get(key).body), parse_constant=lambda name: None)  # NaN is no number
        content = clean_values(content)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except ObjectMissing:
        return None
    except (ValueError, RecursionError):
        ignore(store.url, [key], "damaged")
        return None
    given = {name: value for name, value in content.items() if value is not None or name not in _KINDS}
    wrong = [name for name, kinds in _KINDS.items() if name in given and not isinstance(given[name], kinds)]
    if wrong:
        ignore(store.url, [f"{key}: {name}" for name in wrong], "damaged")
    return {name: value for name, value in given.items() if name not in wrong}
