"""A Python process of its own for one call: nothing that this process has loaded, cached or counted is in it.

It starts at once, so that it has imported what it needs when it is asked, and ends with its answer, or with the process
that started it. Ctrl-C does not reach it. What is printed in it is shown only if it ends without an answer.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NoReturn

from train_cloud import hash_seed
from train_cloud.envs.make import FAILURES, CodeFailed, told
from train_cloud.errors import InputError, TrainCloudError

_LENGTH = struct.Struct("<Q")
#: That an environment's own threads and processes may take to end, when all is said.
_LEAVE_SECONDS = 5.0
#: It finds the modules that this process finds, wherever it runs.
_CODE = "import sys; sys.path[:] = {path!r}; from train_cloud.envs.fresh import serve; serve()"


class Crashed(TrainCloudError):
    """A process ended without an answer: a crash of native code, or an exit in the user's."""


class Fresh:
    """Such a process.

    :param path: where it finds modules; by default where this process does
    :param environment: its variables; by default this process's
    :ivar pid: of the process
    """

    def __init__(self, path: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> None:
        seed = hash_seed.effective()
        variables = dict(os.environ if environment is None else environment)
        variables[hash_seed.VARIABLE] = hash_seed.SEED if seed == hash_seed.RANDOM else seed
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=list(sys.path if path is None else path))],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            start_new_session=True,
        )
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
            raise TrainCloudError(f"it cannot be handed to another process: {told(error)}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
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
        if self._answered:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_SECONDS)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # it ends by that
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._printed.close()

    def _end(self) -> str:
        code = self._process.wait()
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}{self._last_words()}"
        return f"ended with exit code {code}{self._last_words()}"

    def _last_words(self) -> str:
        self._printed.seek(0)
        lines = [line.strip() for line in self._printed.read().decode(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1]}" if lines else ""


def serve() -> None:
    """The other end of :class:`Fresh`."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what user code prints
    from train_cloud.envs import trial  # noqa: F401 - what nearly every request needs

    request = _read(sys.stdin.buffer)
    if request is None:
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
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
        return pickle.dumps(("raised", told(error)))


def _end_with_parent() -> NoReturn:
    """Whatever this process is doing: nobody waits for it any more."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            continue
    os._exit(1)


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
