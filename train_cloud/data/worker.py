"""A process that makes batches: ``python -m train_cloud.data.worker DESCRIPTOR``, of a socket to the training.

It opens nothing but the file of slots: objects are fetched by the training's process. It ends when the socket does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback

from train_cloud.data import wire
from train_cloud.data.cache import Body, Slot, read_slot
from train_cloud.data.decoding import Decoder
from train_cloud.data.wire import Done, Start, Task


def main(descriptor: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the training decides when it ends
    training = socket.socket(fileno=descriptor)
    with contextlib.suppress(EOFError, OSError):  # the training has ended
        _work(training)


def _work(training: socket.socket) -> None:
    start: Start = wire.receive(training)
    sys.path[:] = start.path
    decoder: Decoder = pickle.loads(start.decoder)
    slots = os.open(start.slots, os.O_RDONLY) if start.slots is not None else -1
    if decoder.decode in ("rgb", "gray"):
        import PIL.Image  # noqa: F401 - now, not at the first batch
    wire.send(training, None)
    tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(training, tasks), daemon=True).start()
    while (task := tasks.get()) is not None:
        wire.send(training, made(task, decoder, slots))


def _receive(training: socket.socket, tasks: queue.SimpleQueue[Task | None]) -> None:
    """Ahead of the work, so that the training never waits until a worker takes what it sends."""
    try:
        while True:
            tasks.put(wire.receive(training))
    except (EOFError, OSError):
        tasks.put(None)


def made(task: Task, decoder: Decoder, slots: int) -> Done:
    bodies: list[Body] = []
    missing = []
    for position, place in enumerate(task.places):
        body = read_slot(slots, place) if isinstance(place, Slot) else place
        if body is None:  # the slot is not what it should be, or was emptied
            missing.append(position)
        else:
            bodies.append(body)
    if missing:
        return Done(task.number, None, missing, None)
    try:
        return Done(task.number, decoder.batch(task.epoch, task.samples, task.keys, bodies), [], None)
    except Exception as error:  # noqa: BLE001 - raised again in the training
        return Done(task.number, None, [], _travelling(error))


def _travelling(error: Exception) -> Exception:
    """The error itself with where it was raised, or a description of one that cannot travel."""
    where = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever a foreign exception's own pickling raises
        return RuntimeError(f"in a worker process of the data:\n{where}")
    if hasattr(copy, "add_note") and not hasattr(error, "exit_code"):
        copy.add_note(f"In a worker process of the data:\n{where}")
    return copy if isinstance(copy, Exception) else RuntimeError(where)


if __name__ == "__main__":
    main(int(sys.argv[1]))
