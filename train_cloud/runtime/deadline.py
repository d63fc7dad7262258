"""One signal: notice, scale-in, ``systemctl stop``, Ctrl-C and limits all reach the trainer as a request to stop.

Stopping is by deadline, an absolute time, never by a chain of waits.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from train_cloud.config import variables
from train_cloud.platforms.ec2.notices import local_notice

#: Before systemd's ``TimeoutStopSec`` of 110 s, after which it kills.
STOP_SECONDS = 100.0
#: Kept free before the time that a notice announces: "best effort", says the EC2 User Guide of it.
_MARGIN_SECONDS = 10.0

_STOPPING = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger(__name__)


def _forked() -> None:
    """In a child that the user's code forks, as ``multiprocessing`` does by default on Linux: it can be ended, and
    Ctrl-C, which reaches the whole process group, is the trainer's to answer.
    """
    for number, action in zip(_STOPPING, (signal.SIG_DFL, signal.SIG_IGN), strict=True):
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Stop):
            signal.signal(number, action)


class Stop:
    """Whether and by when to stop. Signal handlers are installed here, before anything heavy is imported.

    :param state_dir: where ``watch`` leaves the notice, which knows the machine's end better than the signal does
    :param boot_id: a notice of another boot is not ours
    """

    def __init__(self, state_dir: Path, boot_id: str) -> None:
        self._state_dir = state_dir
        self._boot_id = boot_id
        self._deadline: float | None = None
        self._save = threading.Event()
        self.reason: str | None = None
        """``notice``, ``signal``, ``limit``; None while nobody asked."""
        self.limit: str | None = None
        """Which limit was reached, in words."""
        self.on_request: Callable[[], None] = lambda: None
        """Called at once when somebody asks to stop; also in a signal handler."""
        self._taken_over = False
        for number in _STOPPING:
            signal.signal(number, self._on_signal)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, lambda number, frame: self._save.set())

    def deadline(self) -> float | None:
        """By when all must be committed, on ``time.monotonic()``; None: go on."""
        if self._taken_over:
            self._take_back()
        return self._deadline

    def look(self) -> None:
        """Whether the user's code has put handlers of its own in the place of ours; asked from any thread, once a
        second. Only the main thread can take them back, which it does at its next step.
        """
        self._taken_over = any(signal.getsignal(number) != self._on_signal for number in _STOPPING)

    def _take_back(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._taken_over = False
        for number in _STOPPING:
            if signal.getsignal(number) != self._on_signal:
                signal.signal(number, self._on_signal)
                name = signal.Signals(number).name
                _log.warning("%s is train-cloud's again: it stops the training where it can go on later", name)

    def save_requested(self) -> bool:
        """A rebalance recommendation asked for a checkpoint since the last call."""
        if self._save.is_set():
            self._save.clear()
            return True
        return False

    def at_limit(self, limit: str) -> None:
        """A limit of the run file is reached; the machine stays, so there is no hurry."""
        if self._deadline is None:
            self.reason, self.limit = "limit", limit
            self._deadline = time.monotonic() + 3600.0
            self.on_request()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._deadline is not None and number == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"train-cloud: left at the last commit\n")
            os._exit(75)
        if self._deadline is None or self.reason == "limit":
            notice = local_notice(self._state_dir, self._boot_id)
            seconds = variables.number(variables.STOP_SECONDS, STOP_SECONDS)
            if notice is not None:
                left = (notice.time - datetime.now(timezone.utc)).total_seconds() - _MARGIN_SECONDS
                seconds = max(0.0, min(seconds, left))
            self.reason, self.limit = ("notice" if notice is not None else "signal"), None
            self._deadline = time.monotonic() + seconds
            self.on_request()
