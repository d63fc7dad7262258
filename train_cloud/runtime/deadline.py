"""What asks a training to stop: notice, scale-in, ``systemctl stop``, Ctrl-C and limits all set one deadline."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from types import FrameType

from train_cloud.config import variables
from train_cloud.trainer import Deadline

#: Before systemd's ``TimeoutStopSec`` of 110 s, after which it kills.
STOP_SECONDS = 100.0
#: Kept free before the time that a notice announces: "best effort", says the EC2 User Guide of it.
_MARGIN_SECONDS = 10.0
#: A limit leaves the machine as it is: there is time for all that belongs to a run's end.
_LIMIT_SECONDS = 3600.0

_STOPPING = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger(__name__)


def _forked() -> None:
    """In a child that the user's code forks, as ``multiprocessing`` does by default on Linux: it can be ended, and
    Ctrl-C, which reaches the whole process group, is the trainer's to answer.
    """
    for number, action in zip(_STOPPING, (signal.SIG_DFL, signal.SIG_IGN), strict=True):
        if isinstance(getattr(signal.getsignal(number), "__self__", None), StopSignals):
            signal.signal(number, action)


class StopSignals:
    """Signal handlers that set ``deadline``; installed here, before anything heavy is imported.

    :param goes_at: when the machine goes, which a notice knows better than the signal does; None where nobody has said
    """

    def __init__(self, deadline: Deadline, goes_at: Callable[[], datetime | None]) -> None:
        self._deadline = deadline
        self._goes_at = goes_at
        self._save = threading.Event()
        for number in _STOPPING:
            signal.signal(number, self._on_signal)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, lambda number, frame: self._save.set())

    def look(self) -> None:
        """Whether the user's code has put handlers of its own in the place of ours; asked from any thread, once a
        second. Only the main thread can take them back, which it does when it next asks for the deadline.
        """
        replaced = any(signal.getsignal(number) != self._on_signal for number in _STOPPING)
        self._deadline.before_answer = self._take_back if replaced else None

    def _take_back(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._deadline.before_answer = None
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

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        deadline = self._deadline
        if deadline.reason is not None and number == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"train-cloud: left at the last commit\n")
            os._exit(75)
        if not deadline.urgent:
            goes_at = self._goes_at()
            seconds = variables.number(variables.STOP_SECONDS, STOP_SECONDS)
            if goes_at is not None:
                left = (goes_at - datetime.now(timezone.utc)).total_seconds() - _MARGIN_SECONDS
                seconds = max(0.0, min(seconds, left))
            deadline.set(seconds, "notice" if goes_at is not None else "signal")


def at_limit(deadline: Deadline, limit: str) -> None:
    """A limit of the run file is reached.

    :param limit: which one, in words
    """
    if deadline.reason is None:
        deadline.set(_LIMIT_SECONDS, "limit", limit)
