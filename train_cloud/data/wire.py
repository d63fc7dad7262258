"""Objects between a training and its worker processes: pickles, with arrays and bytes beside them, uncopied."""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any, NamedTuple

from train_cloud.data.cache import Body, Slot

_HEAD = struct.Struct("<QI")
_SIZE = struct.Struct("<Q")


class Start(NamedTuple):
    """What a worker is told first."""

    path: list[str]
    """``sys.path``"""
    slots: str | None
    decoder: bytes
    """pickled"""


class Task(NamedTuple):
    """A batch to make."""

    number: int
    epoch: int
    samples: list[int]
    keys: list[str]
    places: list[Slot | Body | None]


class Done(NamedTuple):
    number: int
    made: Any
    """``Made``, where nothing went wrong"""
    missing: list[int]
    """Positions of samples whose slots do not hold what they should."""
    error: BaseException | None


def send(to: socket.socket, what: object) -> None:
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(what, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    to.sendall(b"".join([_HEAD.pack(len(body), len(raw)), *(_SIZE.pack(len(view)) for view in raw), body]))
    for view in raw:
        to.sendall(view)


def receive(of: socket.socket) -> Any:
    """
    :raises EOFError: the other side is gone
    """
    length, count = _HEAD.unpack(_exactly(of, _HEAD.size))
    sizes = _exactly(of, _SIZE.size * count)
    body = _exactly(of, length)
    buffers = [_exactly(of, size) for (size,) in _SIZE.iter_unpack(sizes)]
    return pickle.loads(body, buffers=buffers)


def _exactly(of: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    view = memoryview(found)
    while view:
        try:
            count = of.recv_into(view)
        except ConnectionError as error:
            raise EOFError from error
        if not count:
            raise EOFError
        view = view[count:]
    return found
