"""What a run's machines have written, read from the store: each session's log, and each boot that failed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

from train_cloud.errors import InputError, ObjectMissing
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.store import FileStore

_SESSION = re.compile(re.escape(layout.SESSION_LOGS) + r"session-(\d+)\.log")


def session_logs(store: FileStore) -> list[int]:
    """Numbers of the sessions whose log is there, in order."""
    found = (_SESSION.fullmatch(info.key) for info in store.list(layout.SESSION_LOGS))
    return sorted(int(match[1]) for match in found if match)


def boot_logs(store: FileStore) -> list[str]:
    """Keys of the logs of boots that failed before a session began, oldest first."""
    return [info.key for info in sorted(store.list(layout.BOOT_LOGS), key=lambda info: info.modified)]


def read_log(store: FileStore, session: int | None) -> tuple[int, bytes]:
    """A session's log, as far as it has reached the store, and the session's number.

    :param session: None for the newest
    :raises InputError: there is none, and which there are
    """
    known = session_logs(store)
    number = known[-1] if session is None and known else session
    if number is None or number not in known:
        there = ", ".join(map(str, known)) or "none yet: they come with the first artifacts, a minute after the start"
        raise InputError("--session", session, f"no such log under {store.url}; there are: {there}")
    return number, bytes(store.get(layout.session_log_key(number)).body)


def follow_log(
    store: FileStore, session: int | None, *, every: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[bytes]:
    """Pieces of the log as they arrive, from its beginning on; the next session's follow where none was named.

    Ends when the run has an outcome and nothing more came.

    :param every: seconds between two looks
    :raises InputError: the named session has no log, and the run has ended
    """
    following = session is None
    at = 0
    while True:
        over = _over(store)  # before the look: what is written before the outcome is seen
        if session is None:
            known = session_logs(store)
            session = known[-1] if known else None
        piece = b""
        if session is not None:
            try:
                piece = bytes(store.tail(layout.session_log_key(session), at))
            except ObjectMissing:
                if over and not at:
                    read_log(store, session)  # says which there are
        if piece:
            at += len(piece)
            yield piece
            continue
        later = [number for number in session_logs(store) if session is not None and number > session]
        if following and later:
            session, at = later[0], 0
            yield f"--- session {session}\n".encode()
            continue
        if over:
            return
        sleep(every)


def _over(store: FileStore) -> bool:
    read = read_head(store)
    return read is not None and read[0].outcome is not None
