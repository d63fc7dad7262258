"""Who trains the trials of a search, and whether that process is still there.

Each process that works on a search has an object below ``experiments/<name>/search/workers/``, which it writes again
and again. Whether another one is gone is told by that object alone: it was removed, it names a process of this very
machine that is no more, or it has not changed for some time by this process's own clock. If that is wrong, because a
process was suspended, its runs are fenced by their heads as any run's old worker is.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from train_cloud.errors import ObjectMissing, StoreError
from train_cloud.store import ObjectStore
from train_cloud.whole_file import write_whole

FOLDER = "search/workers/"
BEAT_SECONDS = 15.0
GONE_SECONDS = 120.0
_NAME = "worker"


class Worker:
    """This process.

    :param store: of the experiment
    :param folder: that no other process works with at the same time; who works with it again is the same worker
    """

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store = store
        self.name = _name(folder / _NAME)
        self._written = -float("inf")
        self._beats = 0
        self._seen: dict[str, tuple[str, float]] = {}
        """Other worker → its object's version, and since when it is that."""

    def beat(self) -> None:
        """Say that this process is there, where that is due."""
        if time.monotonic() - self._written < BEAT_SECONDS:
            return
        self._beats += 1
        self._store.put(_key(self.name), json.dumps({**_process(), "beat": self._beats}).encode())
        self._written = time.monotonic()

    def leave(self) -> None:
        """Whatever this process has begun may be taken up by others. A store that does not answer changes nothing."""
        try:
            self._store.delete([_key(self.name)])
        except StoreError:
            return

    def is_gone(self, other: str) -> bool:
        """Whether another worker is no more."""
        try:
            stored = self._store.get(_key(other))
        except ObjectMissing:
            return True
        if (here := _is_here(bytes(stored.body))) is not None:
            return not here
        etag, since = self._seen.get(other, ("", 0.0))
        if etag != stored.etag:
            since = time.monotonic()
            self._seen[other] = (stored.etag, since)
        return time.monotonic() - since > GONE_SECONDS


def _name(path: Path) -> str:
    try:
        name = path.read_text().strip()
    except FileNotFoundError:
        name = ""
    if not name.isalnum():
        name = uuid.uuid4().hex
        write_whole(path, name.encode())
    return name


def _key(name: str) -> str:
    return f"{FOLDER}{name}.json"


def _process() -> dict[str, Any]:
    return {"machine": _machine(), "process": os.getpid(), "began": _began(os.getpid())}


def _began(process: int) -> str | None:
    """When a process of this machine began, by a clock that nobody sets; None of one that is no more."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19] if fields[0] not in ("Z", "X") else None  # proc(5): state, starttime


def _machine() -> str | None:
    """Names this boot of this machine, and the numbers that processes have as seen from here; None where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _is_here(body: bytes) -> bool | None:
    """Whether a process of this machine still runs; None for one of another machine, or what cannot be read."""
    try:
        told = json.loads(body)
        if told["machine"] is None or told["machine"] != _machine():
            return None
        return told["began"] is not None and _began(int(told["process"])) == told["began"]
    except (ValueError, LookupError, TypeError):
        return None
