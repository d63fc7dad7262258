"""A process that has its imports done, and others that are forked from it: what both sides say and do.

One side asks, over a socket, for a :class:`Job` (:func:`fork`), and gets a child of its own. The other side waits for
jobs (:func:`wait_for_job`), and is in each forked process what the kernel and the interpreter are for a new one. Linux
only.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import io
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

#: prctl(2)
DEATH_SIGNAL = 1
_SUBREAPER = 36
_LENGTH = struct.Struct("<Q")
_STOPPING = {signal.SIGINT, signal.SIGTERM}


class Job(NamedTuple):
    """One process that is wanted."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    new_session: bool


def prctl(option: int, value: int, *more: int) -> bool:
    """:return: whether the kernel did it"""
    words = [ctypes.c_ulong(word) for word in (value, *more, 0, 0, 0)[:4]]
    return int(ctypes.CDLL(None).prctl(option, *words)) == 0


# ------------------------------------------------------------------------------------------------------ the asking side


def fork(connection: socket.socket, job: Job, descriptors: Sequence[int]) -> int | None:
    """
    :param descriptors: its standard input, output and error
    :return: number of the process, a child of this one; None if the other side is gone
    """
    # An orphan goes to the nearest ancestor that asks for orphans: to this process, until it has this one.
    prctl(_SUBREAPER, 1)
    try:
        send(connection, json.dumps(job).encode(), descriptors)
        reply = receive(connection)
    except OSError:
        return None
    finally:
        prctl(_SUBREAPER, 0)
    return int(reply[0]) if reply is not None else None


# ----------------------------------------------------------------------------------------------------- the forking side


def wait_for_job(connection: socket.socket) -> Job | None:
    """
    :return: in a process that is forked, what it is for; None in this one when nobody needs it any more
    """
    while True:
        try:
            got = receive(connection)
        except OSError:
            return None
        if got is None:
            return None
        job, descriptors = Job(*json.loads(got[0])), got[1]
        told, tell = os.pipe()
        go, give = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # until what is forked can be ended by them
        between = os.fork()
        if not between:
            if os.fork():
                os._exit(0)
            if job.new_session:
                os.setsid()
            os.write(tell, str(os.getpid()).encode())
            for end in (told, tell, give):
                os.close(end)
            connection.close()
            os.read(go, 1)  # by then it is the caller's child
            os.close(go)
            _become(job, descriptors)
            return job
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        os.waitpid(between, 0)
        pid = os.read(told, 32)
        for end in (give, told, tell, go, *descriptors):
            os.close(end)
        try:
            send(connection, pid)
        except OSError:
            return None


def _become(job: Job, descriptors: Sequence[int]) -> None:
    """What the kernel and the interpreter do for a new process."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        if descriptor > 2:
            os.close(descriptor)
    os.environ.clear()
    os.environ.update(job.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    os.chdir(job.folder)
    time.tzset()
    tempfile.tempdir = None
    # Generators that an interpreter begins anew; Python's own does so by itself.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules and (threads := os.environ.get("OMP_NUM_THREADS")):
        sys.modules["torch"].set_num_threads(int(threads))
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = _output(1), _output(2)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def _output(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(number, "wb", closefd=False)),
        encoding="utf-8",
        errors="strict" if number == 1 else "backslashreplace",
        line_buffering=number == 2 or os.isatty(number),
        write_through=bool(os.environ.get("PYTHONUNBUFFERED")),
    )


def outlive_signals(detached: bool) -> None:
    """A process that is there to be forked ends with the one that it was begun for; signals to their group are for
    that one.

    :param detached: it says nothing on that one's input and output either
    """
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if detached:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.close(null)


def end_as_an_interpreter(run: Callable[[], object]) -> NoReturn:
    """Do what a process is for, and end with the exit code that an interpreter would have ended with."""
    code: Any = 1
    try:
        run()
        code = 0
    except SystemExit as leaving:
        code = leaving.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        _finish()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
    _finish()
    os._exit(code or 0)


def _finish() -> None:
    """What the interpreter does at its end, but for taking the modules apart: with torch that takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


# ------------------------------------------------------------------------------------------------------------- messages


def send(connection: socket.socket, body: bytes, descriptors: Sequence[int] = ()) -> None:
    """:raises OSError: the other side is gone"""
    more = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([_LENGTH.pack(len(body))], more)
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[bytes, list[int]] | None:
    """
    :return: a message, and the descriptors that came with it; None where the other side is gone
    :raises OSError: it went in the middle of a message
    """
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    return b"".join(_pieces(connection, length)), list(descriptors)


def _pieces(connection: socket.socket, length: int) -> Iterator[bytes]:
    while length:
        piece = connection.recv(length)
        if not piece:
            raise ConnectionError("the other side is gone")
        length -= len(piece)
        yield piece
