"""A Python process of its own for one call: nothing that this process has loaded, cached or counted is in it.

It starts at once, so that it has imported what it needs when it is asked, and ends with its answer, or with the process
that started it. Ctrl-C does not reach it. What is printed in it is shown only if it ends without an answer.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NoReturn

from train_cloud import child_process, hash_seed
from train_cloud.envs.make import FAILURES, CodeFailed, in_words
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.generators import follow

_LENGTH = struct.Struct("<Q")
#: That an environment's own threads and processes may take to end, when all is said.
_LEAVE_SECONDS = 5.0


class Crashed(TrainCloudError):
    """A process ended without an answer: a crash of native code, or an exit in the user's."""


class Fresh:
    """Such a process.

    :param path: where it finds modules; by default where this process does
    :param environment: its variables; by default this process's
    :param loads: modules that it needs, and loads while it waits
    :ivar pid: of the process
    """

    def __init__(
        self,
        path: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        loads: Sequence[str] = (),
    ) -> None:
        seed = hash_seed.effective()
        self._variables = dict(os.environ if environment is None else environment)
        self._variables[hash_seed.VARIABLE] = hash_seed.SEED if seed == hash_seed.RANDOM else seed
        self._path = list(sys.path if path is None else path)
        # It is given the user's modules when it has loaded its own.
        before = {**self._variables, "PYTHONPATH": child_process.environment().get("PYTHONPATH", "")}
        self._process, self._printed = _start(child_process.command("train_cloud.envs.serve", *loads), before)
        self.pid = self._process.pid
        self._answered = False

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function(*arguments)`` returns there; once. The process has ended then.

        :param arguments: also functions and classes that no module has
        :raises InputError: as ``function`` did
        :raises CodeFailed: it raised something else
        :raises Crashed: it ended without an answer
        :raises TrainCloudError: the arguments cannot be sent
        """
        import cloudpickle

        try:
            request = cloudpickle.dumps((function, arguments))
        except FAILURES as error:
            self.close()
            raise TrainCloudError(f"it cannot be handed to another process: {in_words(error)}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                _write(self._process.stdin, pickle.dumps((self._path, self._variables)))
                _write(self._process.stdin, request)
            reply = _read(self._process.stdout)
            if reply is None:
                raise Crashed(f"the process that tried it {self._end()}")
            self._answered = True
        finally:
            self.close()
        how, what = pickle.loads(reply)
        if how == "refused":
            raise InputError(*what)
        if how == "raised":
            raise CodeFailed(what)
        return what

    def close(self) -> None:
        """End it and what it has started; gently if it has answered."""
        process = self._process
        if self._printed.closed:
            return
        if self._answered and os.name == "posix":
            _wait(self.pid, _LEAVE_SECONDS)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # it ends by that
        if os.name == "posix":
            _wait(self.pid, _LEAVE_SECONDS)
            # Until it is waited for, nobody else can have its number, which is its group's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_SECONDS)
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._printed.close()

    def _end(self) -> str:
        ended = _wait(self.pid, _LEAVE_SECONDS) if os.name == "posix" else None
        if ended is not None and ended.si_code != os.CLD_EXITED:
            return f"was ended by {signal.Signals(ended.si_status).name}{self._last_words()}"
        code = "" if ended is None else f" with exit code {ended.si_status}"
        return f"ended{code} without an answer{self._last_words()}"

    def _last_words(self) -> str:
        self._printed.seek(0)
        lines = [line.strip() for line in self._printed.read().decode(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1]}" if lines else ""


def _start(command: Sequence[str], variables: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """
    :return: the process, in a session of its own, and the file that it writes its errors to
    """
    printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, stderr=printed, start_new_session=True)
    return process, printed


def _wait(pid: int, seconds: float) -> os.waitid_result | None:
    """Until the process has ended, which stays to be waited for.

    :return: how it did; None where it has not
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is not None:
            return ended
        time.sleep(0.002)
    return None


def serve() -> None:
    """The other end of :class:`Fresh`."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what user code prints
    follow(0, "trial")
    for module in ("train_cloud.envs.trial", *sys.argv[1:]):  # the first is what nearly every request needs
        importlib.import_module(module)
    surroundings, request = _read(sys.stdin.buffer), _read(sys.stdin.buffer)
    if surroundings is None or request is None:
        return
    sys.path[:], variables = pickle.loads(surroundings)
    child_process.restore_variables({name: variables.get(name) for name in {*os.environ, *variables}})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if sys.platform == "linux":
        _end_with_parent_whatever_runs()
    _write(replies, _answer(request))
    replies.close()


def _answer(request: bytes) -> bytes:
    import cloudpickle

    try:
        function, arguments = pickle.loads(request)
        return bytes(cloudpickle.dumps(("returned", function(*arguments))))
    except InputError as error:
        try:
            return bytes(cloudpickle.dumps(("refused", (error.field, error.value, error.fix))))
        except FAILURES:
            return pickle.dumps(("refused", (error.field, str(error.value), error.fix)))
    except FAILURES as error:
        return pickle.dumps(("raised", in_words(error)))


def _end_with_parent() -> NoReturn:
    """Whatever this process is doing: nobody waits for it any more."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            continue
    os._exit(1)


def _end_with_parent_whatever_runs() -> None:
    """A thread gets no turn while native code has the interpreter lock; a signal that the kernel sends when the pipe's
    other end is closed ends the process all the same (fcntl(2), O_ASYNC; signal(7), SIGIO).
    """
    import fcntl

    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


def _write(file: IO[bytes], body: bytes) -> None:
    file.write(_LENGTH.pack(len(body)))
    file.write(body)
    file.flush()


def _read(file: IO[bytes]) -> bytes | None:
    """None where the other end is gone."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = file.read(length)
    return body if len(body) == length else None
