"""Python processes of ours that begin with their imports done: forked from one that has imported everything.

Importing torch and Stable-Baselines3 takes seconds, which a short training would pay several times: for itself, and for
the processes that evaluate and export beside it. Under :class:`WarmProcess` such a process is forked instead from one
that has imported all of it, and has neither started a thread nor run code of anybody else. It is the caller's own child
all the same: number, exit code, signals, session, variables and working directory are what they would be, and so is
what it does from the first line of its main module on.

A forked process has one of these at its own side, for what it starts itself (:func:`start`).

Only on Linux: elsewhere, or where a process needs variables that an interpreter or torch reads when it starts, a new
interpreter is started as ever.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

from train_cloud import child_process, forking
from train_cloud.forking import Job

log = logging.getLogger(__name__)

#: What training, evaluating and exporting import sooner or later.
MODULES = (
    "torch.utils.tensorboard",
    "tensorboard",
    "gymnasium.envs.classic_control",
    "cloudpickle",
    "train_cloud.cli.train",
    "train_cloud.sb3.callback",
    "train_cloud.sb3.check",
    "train_cloud.sb3.export",
    "train_cloud.sb3.scalars",
    "train_cloud.evaluate.play",
    "train_cloud.store.s3",
    "train_cloud.runtime.train",
    "train_cloud.runtime.kept_models",
)
#: Variables that are read before the first line of a main module, or by torch when it is imported.
_READ_EARLY = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "LD_", "ATEN_", "ONEDNN_", "MALLOC_", "KMP_")
#: Of these, what a forked process can be given too.
_LATER = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "MKL_NUM_THREADS"}


class Child(Protocol):
    """What :class:`subprocess.Popen` has too."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


class _Forked:
    """A child of this process that :class:`subprocess.Popen` has not started."""

    def __init__(self, pid: int, command: Sequence[str]) -> None:
        self.pid, self.args = pid, list(command)
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                try:
                    found, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # somebody else has waited for it: what it said is lost
                    found, status = self.pid, 0
                if found:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while self.poll() is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmProcess:
    """The process that others are forked from, as seen by the one whose children these are.

    :ivar why_not: why nothing can be forked from it; None where it can
    """

    def __init__(self, connection: socket.socket, pid: int, given: Mapping[str, str], ready: Mapping[str, Any]) -> None:
        self._connection, self._pid, self._given = connection, pid, given
        self._lock, self._of = threading.Lock(), os.getpid()
        self._modules = frozenset(ready["modules"])
        self.why_not: str | None = ready["why_not"]

    @classmethod
    def begin(cls, environment: Mapping[str, str]) -> WarmProcess | None:
        """Start one; None on other systems than Linux, or where it could not be started.

        :param environment: variables that it is started with, and what is forked from it can have
        """
        if sys.platform != "linux":
            return None
        ours, theirs = socket.socketpair()
        command = child_process.command("train_cloud.warm_serve", user_code=True)
        with tempfile.TemporaryFile() as printed:
            process = subprocess.Popen(
                command, env=dict(environment), stdin=theirs.fileno(), stdout=printed, stderr=printed
            )
            theirs.close()
            said = forking.receive(ours)
            if said is None:
                ours.close()
                process.wait()
                printed.seek(0)
                lines = printed.read().decode(errors="replace").split("\n")
                last = next((line.strip() for line in reversed(lines) if line.strip()), "no word")
                log.warning("the process that others are to be forked from has ended with: %s", last)
                return None
        process.returncode = 0  # waited for in close()
        return cls(ours, process.pid, environment, json.loads(said[0]))

    def has_loaded(self, names: Sequence[str]) -> str | None:
        """The first of these modules, by their first names, that what is forked from it has already."""
        return next((name for name in names if name in self._modules), None)

    def fork(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: str,
        descriptors: tuple[int, int, int],
        *,
        new_session: bool,
    ) -> Child | None:
        """A process that does what ``command``, of :func:`train_cloud.child_process.command`, would.

        :return: None where it takes a new interpreter, or this one is gone
        """
        if os.getpid() != self._of or self.why_not is not None or not self._fits(environment) or command[1] != "-c":
            return None
        job = Job(list(command), dict(environment), folder, new_session)
        with self._lock:
            pid = forking.fork(self._connection, job, descriptors)
        return _Forked(pid, command) if pid is not None else None

    def close(self) -> None:
        """End it. What was forked from it lives on."""
        self._connection.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _fits(self, environment: Mapping[str, str]) -> bool:
        names = {name for name in (*environment, *self._given) if name.startswith(_READ_EARLY)} - _LATER
        return all(environment.get(name) == self._given.get(name) for name in names)


_beside: WarmProcess | None = None
"""Of a process that was forked itself, for what it starts."""


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | str | None = None,
    stderr: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    new_session: bool = False,
    warm: WarmProcess | None = None,
) -> Child:
    """As :class:`subprocess.Popen`, with nothing to read on its input; forked where that is possible.

    :param command: of :func:`train_cloud.child_process.command`
    :param warm: fork it from this one; by default from the one at this process's side, if it has one
    """
    source = warm or _beside
    if source is not None:
        with Path(os.devnull).open("rb") as nothing:
            numbers = [
                nothing.fileno(),
                *(end.fileno() if end is not None else n for n, end in ((1, stdout), (2, stderr))),
            ]
            found = source.fork(
                command, env, str(cwd or Path.cwd()), (numbers[0], numbers[1], numbers[2]), new_session=new_session
            )
        if found is not None:
            return found
    return subprocess.Popen(
        list(command),
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=new_session,
    )


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have this process get a signal when its parent ends, however that ends; at once where it has ended already.

    Does nothing on other systems than Linux.

    :param parent: its process number
    """
    if sys.platform != "linux":
        return
    forking.prctl(forking.DEATH_SIGNAL, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


# ------------------------------------------------------------------------------------------------- in the warm process


def main() -> NoReturn:
    """The warm process, and each that is forked from it."""
    # Ctrl-C on a terminal is for the process that it was begun for, with which it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    before = dict(os.environ)
    for module in MODULES:
        importlib.import_module(module)
    set_by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}  # cv2 does
    threads = len(list(Path("/proc/self/task").iterdir()))
    why_not = None if threads == 1 else f"importing has started {threads - 1} threads"
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    forking.send(connection, json.dumps({"modules": modules, "why_not": why_not}).encode())
    gc.collect()
    gc.freeze()  # so that the collector leaves these pages shared
    _serve(connection, set_by_imports)


def _serve(connection: socket.socket, more: Mapping[str, str]) -> NoReturn:
    """:param more: variables that what is forked has besides those that it is asked for with"""
    job = forking.wait_for_job(connection)
    if job is None:
        os._exit(0)
    os.environ.update(more)
    _have_one_beside()
    forking.end_as_an_interpreter(lambda: _run(job.command))


def _have_one_beside() -> None:
    """Fork once more, while nothing of a user's is in this process: a warm process for what this one starts."""
    global _beside
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        forking.outlive_signals(detached=True)
        _serve(theirs, {})
    theirs.close()
    _beside = WarmProcess(ours, pid, dict(os.environ), {"modules": [], "why_not": None})


def _run(command: Sequence[str]) -> None:
    sys.orig_argv[:] = list(command)
    sys.argv = ["-c", *command[3:]]
    # run_module puts the module's own names there for as long as it runs, as in an interpreter that began with -c.
    exec(compile(command[2], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
