"""The session before this one: where it stood when it ended, and whether it may still be at work."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from train_cloud.run.head import Head
from train_cloud.run.session import Session, SessionRecord, last_session, read_session
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.store import ObjectStore
from train_cloud.whole_file import write_local

_REACHED = "reached.json"


def note_reached(state_dir: Path, url: str) -> int | None:
    """Before a new process counts its steps in this folder: keep how far the last session got, to the step.

    :param url: of the run
    :return: that session's number, which is over, since this folder is ours; None where it was another run's
    """
    session = last_session(state_dir)
    if session is None or session.url != url:
        return None
    try:
        reached = read_timesteps(state_dir)
    except FileNotFoundError:
        return session.number
    if reached:
        content = {"url": session.url, "session": session.number, "restart": session.restart, "timesteps": reached}
        write_local(state_dir / _REACHED, content)
    return session.number


def reached_here(state_dir: Path, url: str) -> dict[str, Any] | None:
    """What :func:`note_reached` kept of a session of this run: ``session``, ``restart`` and ``timesteps``."""
    try:
        found = json.loads((state_dir / _REACHED).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(found, dict) or found.pop("url", None) != url:
        return None
    return found


def reached_before(state_dir: Path, session: Session) -> int | None:
    """Where the process before this one stood, of a session whose process was restarted; None where nobody knows."""
    found = reached_here(state_dir, session.url)
    if found is None or (found["session"], found["restart"]) != (session.number, session.restart - 1):
        return None
    return int(found["timesteps"])


def taken_from(store: ObjectStore, before: Head) -> str | None:
    """Whom the run was taken from, in words, where that session has not said that it ended.

    :param before: the head as it stood
    """
    if before.outcome is not None or before.session == 0:
        return None
    record = read_session(store, before.session)
    if record is None or record.end is not None:
        return None
    heard = _heard(record)
    said = "" if heard is None else f", last heard of {_ago(heard)} at {_timesteps(record, before)} timesteps"
    return (
        f"the run is taken over from session {before.session} ({before.owner}){said}; if it is still at work, it can "
        "commit nothing more and ends with exit code 73"
    )


def _heard(record: SessionRecord) -> datetime | None:
    for text in ((record.progress or {}).get("at"), record.start.get("started")):
        if text is not None:
            try:
                return datetime.fromisoformat(text)
            except ValueError:
                continue
    return None


def _ago(heard: datetime) -> str:
    seconds = max(0, round((datetime.now(timezone.utc) - heard).total_seconds()))
    if seconds < 120:
        return f"{seconds} s ago"
    return f"{seconds // 60} minutes ago" if seconds < 7200 else f"{seconds // 3600} hours ago"


def _timesteps(record: SessionRecord, before: Head) -> int:
    return max(int((record.progress or {}).get("timesteps") or 0), before.timesteps)
