"""Where the runs of an experiment are trained, as the engine sees it: this machine, or the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from train_cloud.config import Experiment
from train_cloud.warm_process import Child

if TYPE_CHECKING:
    from train_cloud.experiments.engine import Row


class Place(Protocol):
    """All that the engine asks of it. No method waits for a training."""

    def check(self, experiment: Experiment) -> None:
        """:raises InputError: no run of it could be trained here; nothing was created"""

    def alone(self, experiment: str) -> AbstractContextManager[None]:
        """While no other engine trains this experiment here.

        :raises InputError: another one does
        """

    def is_taken(self, row: Row) -> bool:
        """Whether a training of this run is under way here that is not the engine's."""

    def start(self, row: Row, rows: Sequence[Row]) -> Child:
        """Begin to train a run.

        :param rows: all of the engine's
        """

    def look(self, row: Row) -> None:
        """Write into the row how far its training is."""

    def hours(self, row: Row) -> float:
        """Of the session that is trained now, counted as it will be recorded; 0 before it has begun."""

    def end(self, row: Row, reason: str) -> None:
        """Have its training stop with a commit and the outcome ``stopped``."""

    def ended(self, row: Row, code: int) -> tuple[bool, str | None]:
        """Of a run whose training has ended, and that is not over.

        :return: whether it goes on at once; and what its process has said last
        """

    def close(self) -> None:
        """All trainings have ended."""
