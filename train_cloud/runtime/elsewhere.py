"""What is decided elsewhere while a run is trained: somebody ends it, or all runs of its experiment have spent enough.

Each is asked for in a thread of its own, because who needs the answer must not wait. A store that does not answer
decides nothing: the training goes on at its own limits, and is asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod

from train_cloud.errors import TrainCloudError
from train_cloud.run.experiment import ExperimentRecord, Spending, Spent, TotalLimits, read_experiment
from train_cloud.run.head import read_head
from train_cloud.run.session import Session
from train_cloud.store import FileStore, ObjectStore

#: Seconds between two looks at the head: a request a minute.
_HEAD_SECONDS = 60.0
#: Between two sums: far from the limit, and close to it.
SUM_SECONDS, LEAST_SUM_SECONDS = 300.0, 20.0
_AFTER_FAILURE_SECONDS = 60.0
log = logging.getLogger(__name__)


class Elsewhere(ABC):
    """One such decision.

    :param first_s: seconds until it is asked for the first time
    """

    what: str
    """In words, for a warning."""

    def __init__(self, first_s: float = 0.0) -> None:
        self._due = time.monotonic() + first_s
        self._asking: threading.Thread | None = None
        self._found: str | None = None

    def found(self) -> str | None:
        """Why the run is to stop; None as far as is known. Does not wait."""
        asking = self._asking is not None and self._asking.is_alive()
        if self._found is None and not asking and time.monotonic() >= self._due:
            self._asking = threading.Thread(target=self._look, name="train-cloud-elsewhere", daemon=True)
            self._asking.start()
        return self._found

    @abstractmethod
    def ask(self) -> tuple[str | None, float]:
        """
        :return: why the run is to stop, and the seconds until this is asked again
        :raises StoreError: unknown
        """

    def _look(self) -> None:
        self._due = time.monotonic() + _AFTER_FAILURE_SECONDS
        try:
            self._found, pause = self.ask()
            self._due = time.monotonic() + pause
        except TrainCloudError as error:
            log.warning("%s cannot be read, and is asked for again: %s", self.what, error)
            self._due = time.monotonic() + _AFTER_FAILURE_SECONDS


class Ended(Elsewhere):
    """Whether the run was given an outcome while this session has it, as ``train-cloud cancel`` does. The next commit
    would find out; it may be hours away.
    """

    what = "whether somebody has ended the run"

    def __init__(self, store: ObjectStore, session: Session) -> None:
        super().__init__(_HEAD_SECONDS)
        self._store, self._session = store, session

    def ask(self) -> tuple[str | None, float]:
        read = read_head(self._store)
        head = read[0] if read is not None else None
        if head is None or head.outcome is None or head.token != self._session.token:
            return None, _HEAD_SECONDS
        return f"the run was ended as {head.outcome}: {head.reason}", _HEAD_SECONDS


class ExperimentLimits(Elsewhere):
    """The limits over all runs of an experiment.

    :param root: the store that the runs lie in
    :param name: of the experiment
    :ivar hourly: dollars an hour of a machine of this kind; None while it is unknown
    """

    what = "what all runs of the experiment have spent"

    def __init__(self, root: FileStore, name: str) -> None:
        super().__init__()
        self._root, self._name = root, name
        self._spending = Spending(root)
        self._warned = False
        self._record: ExperimentRecord | None = None
        self.hourly: float | None = None

    @property
    def name(self) -> str:
        """What a limit of it is called in messages."""
        return f"limits of the experiment {self._name}"

    @property
    def limits(self) -> TotalLimits:
        """As they were read last."""
        return self._record.limits if self._record is not None else TotalLimits()

    def read(self) -> None:
        """What the experiment's record says now; where it is gone, what it said last counts.

        :raises StoreError: unknown
        """
        self._record = read_experiment(self._root, self._name) or self._record

    def ask(self) -> tuple[str | None, float]:
        self.read()
        limits, runs = self.limits, list(self._record.runs) if self._record is not None else []
        if limits.hours is None and limits.dollars is None:
            return None, SUM_SECONDS
        spent = self._spending.look(runs)
        if limits.hours is not None and spent.hours >= limits.hours:
            return f"{self.name}: {limits.hours:g} hours are used", SUM_SECONDS
        if limits.dollars is not None and spent.dollars >= limits.dollars:
            return f"{self.name}: {limits.dollars:g} dollars are spent", SUM_SECONDS
        if limits.dollars is not None and spent.unknown and not self._warned:
            self._warned = True
            log.warning("%s: sessions of %s have no price: not counted", self.name, ", ".join(spent.unknown))
        return None, max(LEAST_SUM_SECONDS, min(SUM_SECONDS, self._seconds_left(spent) / 2))

    def _seconds_left(self, spent: Spent) -> float:
        """Until a limit, as if all runs were trained now, each on a machine like this one."""
        per_second = max(1, spent.open) / 3600
        left = [float("inf")]
        if self.limits.hours is not None:
            left.append((self.limits.hours - spent.hours) / per_second)
        if self.limits.dollars is not None and self.hourly:
            left.append((self.limits.dollars - spent.dollars) / (per_second * self.hourly))
        return min(left)
