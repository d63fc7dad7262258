"""The trainer's heartbeat: a thread that once a second shows progress, feeds systemd's watchdog and looks at the clock.

It feeds the watchdog only while the training shows signs of life; how long a silence is life depends on what it does: a
restore of gigabytes or a long update is no hang.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from train_cloud.errors import InputError

log = logging.getLogger(__name__)

#: Seconds of silence per phase, after which the watchdog is no longer fed.
LONGEST_SILENCE = {
    "start": 900.0,
    "restore": 600.0,
    "steps": 600.0,
    "update": 3600.0,
    "store": 3600.0,
    "evaluate": 600.0,
    "pretrain": 3600.0,
}
_DOING = {
    "start": "starting",
    "restore": "restoring",
    "steps": "training",
    "update": "training",
    "store": "saving",
    "evaluate": "evaluating",
    "pretrain": "pretraining",
}
_LINE_SECONDS = 30.0
_BEAT_SECONDS = 1.0
_FRAMES = 12
_STEPS_FILE = "timesteps"
_COUNT = struct.Struct("<Q")
_WORDS = slice(_COUNT.size, 512)


def read_timesteps(state_dir: Path) -> int:
    """How far the training process got, to the step, even if it was killed: written to memory that the kernel keeps."""
    body = (state_dir / _STEPS_FILE).read_bytes()
    return int.from_bytes(body[: _COUNT.size], "little")


def forget_timesteps(state_dir: Path) -> None:
    """Of a run that was deleted."""
    (state_dir / _STEPS_FILE).unlink(missing_ok=True)


def read_delay(state_dir: Path) -> str | None:
    """Why the training process waits for the store; None where it does not."""
    try:
        body = (state_dir / _STEPS_FILE).read_bytes()[_WORDS]
    except OSError:
        return None
    return body.rstrip(b"\0").decode(errors="ignore") or None


def last_alive(state_dir: Path) -> datetime | None:
    """When a training process lived last, to the second, even if it was killed; None where none has lived here."""
    try:
        seen = (state_dir / _STEPS_FILE).stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(seen, timezone.utc)


def longest_silence() -> dict[str, float]:
    """:data:`LONGEST_SILENCE`, with what ``TRAIN_CLOUD_PATIENCE`` ("steps=30 update=60", seconds) says otherwise."""
    name, said = "TRAIN_CLOUD_PATIENCE", dict(LONGEST_SILENCE)
    for pair in os.environ.get(name, "").split():
        phase, _, seconds = pair.partition("=")
        try:
            said[phase] = float(seconds)
        except ValueError:
            said.pop(phase, None)
    if said.keys() != LONGEST_SILENCE.keys():
        raise InputError(
            name, os.environ[name], f"write phase=seconds, of {', '.join(LONGEST_SILENCE)}: steps=30 update=60"
        )
    return said


class Heartbeat:
    """:param total: timesteps of the whole run
    :param every_second: called from the thread: limits
    :param on_silence: called from the thread, once for each silence that systemd will take for a hang, with what stands
        where
    :param bar: show one on a terminal. Two of them, ours and one of the user's code, wait for each other for ever.
    """

    def __init__(
        self,
        state_dir: Path,
        total: int,
        every_second: Callable[[], None],
        on_silence: Callable[[str], None] = lambda words: None,
        bar: bool = True,
    ) -> None:
        self._total = total
        self._every_second = every_second
        self._on_silence = on_silence
        self._silent_since: float | None = None
        self._owner = threading.get_ident()
        self._longest_silence = longest_silence()
        self._phase = "start"
        self._alive = time.monotonic()
        self.timesteps = 0
        self._began: tuple[float, int] | None = None
        self._restored: tuple[int, int] | None = None
        self._end = threading.Event()
        self._steps_file = state_dir / _STEPS_FILE
        with self._steps_file.open("wb") as file:
            file.write(bytes(_WORDS.stop))
        with self._steps_file.open("r+b") as file:
            self._count = mmap.mmap(file.fileno(), _WORDS.stop)
        self._delay: str | None = None
        self._bar = _bar() if bar and sys.stderr.isatty() else None
        self._thread = threading.Thread(target=self._beat, name="train-cloud-heartbeat", daemon=True)
        self._notify = _notifier()

    def start(self) -> None:
        """Tell systemd that the service is up, before torch is imported, and begin to beat."""
        self._notify("READY=1")
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(5.0)
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str) -> None:
        self._phase = name
        self._alive = time.monotonic()

    def alive(self) -> None:
        """A sign of life within the phase."""
        self._alive = time.monotonic()

    def restored(self, done: int, total: int) -> None:
        """Bytes of the checkpoint that have arrived, of all."""
        self._restored = (done, total)
        self._alive = time.monotonic()

    def resume(self, timesteps: int) -> None:
        """The training goes on from here; nothing of it is this process's work."""
        self.timesteps = timesteps

    def step(self, timesteps: int) -> None:
        """Called at each step of the environments: microseconds count."""
        self.timesteps = timesteps
        _COUNT.pack_into(self._count, 0, timesteps)
        self._alive = now = time.monotonic()
        if self._began is None:
            self._began = (now, timesteps)

    def delayed(self, because: str | None) -> None:
        """The store does not take what is to be saved, or does again (None). Written to memory, as the steps are: the
        store and the state folder may lie on one disk, and that is full.
        """
        self._delay = because
        words = (because or "").encode()[: _WORDS.stop - _WORDS.start]
        self._count[_WORDS] = words.ljust(_WORDS.stop - _WORDS.start, b"\0")

    def steps_per_second(self) -> float | None:
        """Over this session; None before there is anything to divide."""
        if self._began is None or self.timesteps == self._began[1]:
            return None
        return (self.timesteps - self._began[1]) / max(1e-9, self._alive - self._began[0])

    def _beat(self) -> None:
        shown = time.monotonic()
        bar = self._bar.add_task("", total=self._total, pace="") if self._bar is not None else None
        if self._bar is not None:
            self._bar.start()
        while not self._end.wait(_BEAT_SECONDS):
            now = time.monotonic()
            with contextlib.suppress(OSError):  # somebody has removed it
                os.utime(self._steps_file)
            self._every_second()
            if now - self._alive < self._longest_silence[self._phase]:
                self._notify("WATCHDOG=1")
            elif self._silent_since != self._alive:
                self._silent_since = self._alive
                self._fall_silent(now - self._alive)
            if self._bar is not None and bar is not None:
                done, total = self._restoring() or (self.timesteps, self._total)
                pace = "" if self._restoring() is None else _megabytes(done, total)
                doing = _DOING[self._phase] if self._delay is None else "saving is delayed"
                self._bar.update(bar, completed=done, total=total, description=doing, pace=pace or self._pace())
            elif now - shown >= _LINE_SECONDS:
                shown = now
                log.info("%s", self.line())

    def _fall_silent(self, seconds: float) -> None:
        """No sign of life for longer than the phase may take: say where the training stands, while it can be seen."""
        frame = sys._current_frames().get(self._owner)
        where = "".join(traceback.format_stack(frame)[-_FRAMES:]) if frame is not None else ""
        words = f"no sign of life for {seconds:.0f} s while {_DOING[self._phase]}, at:\n{where}"
        log.error("%s", words.rstrip())
        self._on_silence(words)

    def line(self) -> str:
        """How far it is, for the log."""
        restoring = self._restoring()
        if restoring is not None:
            return f"restored {_megabytes(*restoring)}"
        delay = f"; saving is delayed: {self._delay}" if self._delay is not None else ""
        return f"{self.timesteps} of {self._total} timesteps, {self._pace() or self._phase}{delay}"

    def _restoring(self) -> tuple[int, int] | None:
        return self._restored if self._phase == "restore" else None

    def _pace(self) -> str:
        rate = self.steps_per_second()
        if not rate:
            return ""
        left = max(0, int((self._total - self.timesteps) / rate))  # a rollout may end beyond the total
        return f"{rate:,.0f} steps/s, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"


def _megabytes(done: int, total: int) -> str:
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[pace]}"))
    from rich.console import Console

    return Progress(*columns, console=Console(stderr=True), transient=True)


def _notifier() -> Callable[[str], None]:
    if "NOTIFY_SOCKET" not in os.environ:
        return lambda state: None
    import sdnotify

    notify: Callable[[str], None] = sdnotify.SystemdNotifier().notify
    return notify
