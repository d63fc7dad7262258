"""A module that run files of tests name: kills its own process at a verb of the store, and lets segments merge early.

``AIM=<when> <number> <kind>``: at the number-th verb of that kind, ``before``, ``amid`` or ``after`` it. The kind is a
regular expression for ``get model``, ``put segment``, ``put manifest``, ``swap head``, ``list replay``, ``delete``, ….
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
from typing import Any

from train_cloud.checkpoint import compaction
from train_cloud.run import layout
from train_cloud.store import open_store

compaction.MANY, compaction.FAN_IN = 6, 3
os.fsync = lambda fd: None  # a killed process, unlike a power cut, loses nothing that it has written

if ":" in multiprocessing.current_process().name:
    sys.stderr = io.StringIO()  # a process of an environment: it need not tell that its trainer is gone


def _kind(verb: str, arguments: tuple[Any, ...]) -> str:
    if verb == "delete":
        return verb
    key = arguments[0] if arguments else ""
    if verb == "list":
        return f"list {key.rstrip('/')}"
    name = "segment" if key.startswith(layout.REPLAY) else key.rsplit("/", 1)[-1].removesuffix(".json")
    return f"{verb} {name}"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _aim(store: type, when: str, number: int, kind: str) -> None:
    pattern, count, lock = re.compile(kind), 0, threading.Lock()

    def interpose(verb: str) -> None:
        real = getattr(store, verb)

        @functools.wraps(real)
        def interposed(self: Any, *arguments: Any) -> Any:
            nonlocal count
            with lock:
                count += bool(pattern.fullmatch(_kind(verb, arguments)))
                due = count == number
                count += due
            if due and when == "before":
                _die()
            if due and when == "amid":
                threading.Timer(random.uniform(0, 0.005), _die).start()
            found = real(self, *arguments)
            if due:  # also where it is over before the moment has come
                _die()
            return found

        setattr(store, verb, interposed)

    for verb in ("get", "put", "create", "swap", "list", "delete"):
        interpose(verb)


if aim := os.environ.get("AIM"):
    when, number, kind = aim.split(" ", 2)
    _aim(type(open_store(os.environ["AIM_STORE"])), when, int(number), kind)
