"""Where the runs of an experiment are trained, as the engine sees it: this machine, or the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from train_cloud.config import Cell
from train_cloud.config.experiment import TotalLimits
from train_cloud.warm_process import Child

if TYPE_CHECKING:
    from train_cloud.experiments.engine import Row


class Plan(Protocol):
    """What is to be trained: an experiment, a pipeline's sessions."""

    @property
    def experiment(self) -> str:
        """Its name."""

    @property
    def cells(self) -> Sequence[Cell]:
        """Its runs, as far as they are known."""

    @property
    def max_attempts(self) -> int:
        """Failures in a row without a commit, after which a run is not tried again."""

    @property
    def threads(self) -> int | None:
        """With which each run computes; None for what ``train`` takes by itself."""

    @property
    def limits(self) -> TotalLimits:
        """Over all runs."""


class Place(Protocol):
    """All that the engine asks of it. No method waits for a training."""

    def check(self, experiment: Plan) -> None:
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
