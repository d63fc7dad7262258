"""What a launch has on the cluster: a task for each run that is trained, and one actor that they and the driver tell
each other by.
"""

from __future__ import annotations

import logging
import signal
import time
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


def train(order: Order, archive: bytes | None, task: str, desk: Any) -> Result:
    """The task: train a run on this node until it ends, is stopped, or the node goes.

    :param archive: of the code folder
    :param task: its name at the desk
    """
    node = ray.get_runtime_context().get_node_id()
    here = next((one.resources for one in cluster.nodes() if one.id == node), {})
    training = Training(order, node, cluster.share(order.needs, here))
    told_at = 0.0
    try:
        while (code := training.poll(archive)) is None:
            if time.monotonic() - told_at >= _TELL_SECONDS:
                told_at = time.monotonic()
                _tell(training, task, desk, node)
            time.sleep(_LOOK_SECONDS)
        left = training.notice.kind if training.notice is not None else None
        return Result(code=code, said=training.last_words(), left=left, node=node)
    except KeyboardInterrupt:  # ray.cancel()
        return Result(code=training.leave(), said=None, left=None, node=node)
    except OSError as error:
        return Result(code=1, said=f"on the node: {error}", left=None, node=node)
    finally:
        training.close()


def _tell(training: Training, task: str, desk: Any, node: str) -> None:
    told = Told(node=node, begun=training.begun, timesteps=training.timesteps, hours=training.hours)
    try:
        orders = ray.get(desk.tell.remote(task, told), timeout=_ANSWER_SECONDS)
    except RayError as error:  # the driver's machine is gone, and with it whoever would start this run again
        log.warning("nobody at the desk: %s", error)
        training.send_signal(signal.SIGTERM)
        return
    for order in orders:
        if isinstance(order, str):
            training.end(order)
        else:
            training.send_signal(order)
