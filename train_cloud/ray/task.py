"""What a launch has on the cluster: a task for each run that is trained, and one actor that they and the driver tell
each other by.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, TypedDict

import ray
from ray.exceptions import RayError

from train_cloud.ray import cluster
from train_cloud.ray.training import Order, Training

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_TELL_SECONDS = 0.5
#: A driver that is gone takes its tasks with it; one that does not answer is waited for.
_ANSWER_SECONDS = 60.0


class Told(TypedDict):
    """What a task says of its run."""

    node: str
    begun: bool
    timesteps: int
    hours: float


class Result(TypedDict):
    """What a task returns."""

    code: int
    said: str | None
    """Last words of the training."""
    left: str | None
    """The notice for which the node was left."""
    node: str


class Desk:
    """The actor. Tasks tell how far they are, and take what they are asked for; the driver does the opposite."""

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}
        self._asked: dict[str, list[int | str]] = {}
        self._stops = 0

    def tell(self, task: str, told: Told) -> list[int | str]:
        """
        :return: signals, and reasons to end with the outcome ``stopped``, that are new
        """
        self._told[task] = told
        return self._asked.pop(task, [])

    def ask(self, task: str, what: int | str) -> None:
        self._asked.setdefault(task, []).append(what)

    def forget(self, task: str) -> None:
        self._told.pop(task, None)
        self._asked.pop(task, None)

    def look(self) -> tuple[dict[str, Told], int]:
        """What all tasks have told, and how often somebody has asked to stop."""
        return self._told, self._stops

    def stop(self) -> None:
        """Have the driver stop, as Ctrl-C does there."""
        self._stops += 1


class _Line:
    """From a task to the desk, in a thread of its own: while a task's main thread waits for an answer of Ray's, Ray
    gives its CPUs to another task.
    """

    def __init__(self, task: str, desk: Any) -> None:
        self._task, self._desk = task, desk
        self._told: Told | None = None
        self._orders: SimpleQueue[int | str] = SimpleQueue()
        self._closing = threading.Event()
        self.gone = False
        """Whether nobody is at the desk any more: the launch's machine is gone, and whoever would start this again."""
        threading.Thread(target=self._talk, name="train-cloud-desk", daemon=True).start()

    def tell(self, told: Told) -> None:
        self._told = told

    def orders(self) -> Iterator[int | str]:
        """Those that are new."""
        while not self._orders.empty():
            yield self._orders.get()

    def close(self) -> None:
        self._closing.set()

    def _talk(self) -> None:
        while not self._closing.wait(_TELL_SECONDS):
            if (told := self._told) is None:
                continue
            try:
                for order in ray.get(self._desk.tell.remote(self._task, told), timeout=_ANSWER_SECONDS):
                    self._orders.put(order)
            except RayError as error:
                log.warning("nobody is at the desk: %s", error)
                self.gone = True
                return


def train(order: Order, archive: bytes | None, task: str, desk: Any) -> Result:
    """The task: train a run on this node until it ends, is stopped, or the node goes.

    :param archive: of the code folder
    :param task: its name at the desk
    """
    node = ray.get_runtime_context().get_node_id()
    here = next((one.resources for one in cluster.nodes() if one.id == node), {})
    training, line = Training(order, node, cluster.share(order.needs, here)), _Line(task, desk)
    asked = False
    try:
        while (code := training.poll(archive)) is None:
            line.tell(Told(node=node, begun=training.begun, timesteps=training.timesteps, hours=training.hours))
            for what in line.orders():
                _do(training, what)
            if line.gone and not asked:
                asked = True
                training.send_signal(signal.SIGTERM)
            time.sleep(_LOOK_SECONDS)
        left = training.notice.kind if training.notice is not None else None
        return Result(code=code, said=training.last_words(), left=left, node=node)
    except KeyboardInterrupt:  # ray.cancel()
        return Result(code=training.leave(), said=None, left=None, node=node)
    except OSError as error:
        return Result(code=1, said=f"on the node: {error}", left=None, node=node)
    finally:
        line.close()
        training.close()


def _do(training: Training, what: int | str) -> None:
    if isinstance(what, str):
        training.end(what)
    else:
        training.send_signal(what)
