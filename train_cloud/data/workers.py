"""The worker processes of a data set, seen from the training: started afresh, never forked.

A fork of a process with threads, which a training is, inherits locks that nobody will release, obstore's among them.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from train_cloud import child_process
from train_cloud.data import wire
from train_cloud.data.decoding import Decoder
from train_cloud.data.wire import Done, Start, Task
from train_cloud.errors import InputError

log = logging.getLogger(__name__)

_AT_ONCE = 2
"""Batches that a worker has: the one that it makes, and the next."""
_FAILED_STARTS = 3
"""So many in a row that never became ready, and no more are started: the training makes its batches itself."""
_END_S = 5.0


def pickled(decoder: Decoder) -> bytes:
    """For worker processes; functions of the script itself travel with their code.

    :raises InputError: they cannot
    """
    try:
        import cloudpickle as pickler
    except ModuleNotFoundError:
        pickler = pickle
    try:
        return bytes(pickler.dumps(decoder))
    except Exception as error:
        fix = (
            f"decode or augment cannot be sent to worker processes ({error}): give functions of a module, or workers=0"
        )
        raise InputError("workers", "auto", fix) from error


class Workers:
    """``count`` processes, each of which makes one batch after the other.

    :param free: called when one can take a batch
    :param done: called with what one has made
    :param lost: called with the numbers of the batches that one had when it died, and how it did
    """

    def __init__(
        self,
        count: int,
        start: Start,
        *,
        free: Callable[[], None],
        done: Callable[[Done], None],
        lost: Callable[[list[int], str], None],
    ) -> None:
        self._start = start
        self._free, self._done, self._lost = free, done, lost
        self._lock = threading.Lock()
        self._closed = False
        self._failed_starts = 0
        self._all: list[_Worker] = []
        for _ in range(count):
            self._add()

    def choose(self, number: int) -> _Worker | None:
        """A worker that has room for this batch, which is its own from now on."""
        with self._lock:
            able = [worker for worker in self._all if worker.ready and len(worker.has) < _AT_ONCE]
            if not able or self._closed:
                return None
            worker = min(able, key=lambda worker: len(worker.has))
            worker.has.add(number)
            return worker

    def pids(self) -> list[int]:
        """Of those that have started."""
        with self._lock:
            return [worker.process.pid for worker in self._all if worker.ready]

    def _add(self) -> None:
        with self._lock:
            if self._closed:
                return
            worker = _Worker(self._start)
            self._all.append(worker)
        threading.Thread(target=self._attend, args=(worker,), name="train-cloud data worker", daemon=True).start()

    def _attend(self, worker: _Worker) -> None:
        """Take what a worker sends, until it ends."""
        try:
            wire.send(worker.socket, self._start)
            wire.receive(worker.socket)
            worker.ready = True
            self._failed_starts = 0
            self._free()
            while True:
                done: Done = wire.receive(worker.socket)
                with self._lock:
                    worker.has.discard(done.number)
                self._done(done)
                self._free()
        except (EOFError, OSError):
            pass
        with self._lock:
            self._all.remove(worker)
            numbers, closed = sorted(worker.has), self._closed
            self._failed_starts += not worker.ready
        how = worker.end()
        if closed:
            return
        self._lost(numbers, how)
        if self._failed_starts < _FAILED_STARTS:
            log.warning("a worker process of the data has ended (%s): starting another", how)
            self._add()
        else:
            log.warning("worker processes of the data do not start (%s): the training does without", how)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            workers = list(self._all)
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.socket.shutdown(socket.SHUT_RDWR)
        for worker in workers:
            worker.end()


class _Worker:
    def __init__(self, start: Start) -> None:
        self.socket, theirs = socket.socketpair()
        self.ready = False
        self.has: set[int] = set()
        self._sending = threading.Lock()
        command = child_process.command("train_cloud.data.worker", str(theirs.fileno()), user_code=True)
        variables = child_process.environment(OMP_NUM_THREADS="1")
        with theirs:
            self.process = subprocess.Popen(
                command, env=variables, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )

    def send(self, task: Task) -> None:
        """A worker that is gone is noticed by who receives from it."""
        with self._sending, contextlib.suppress(OSError):
            wire.send(self.socket, task)

    def end(self) -> str:
        """How it ended."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        try:
            code = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.socket.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def can_start() -> bool:
    """Whether this system has what they need."""
    return sys.platform != "win32"
