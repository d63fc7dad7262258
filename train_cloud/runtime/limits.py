"""Where a run stops early: hours, dollars, and the time at which its group is taken to 0 from outside.

All of it is counted on a clock that does not jump; a session's own hours begin with its boot.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from train_cloud.config.run_file import Limits as Configured
from train_cloud.errors import StoreError, TrainCloudError
from train_cloud.platforms.ec2.price import Price
from train_cloud.platforms.protocol import Platform
from train_cloud.run import layout
from train_cloud.run.cost import hours, price, setup_seconds
from train_cloud.run.run_deadline import read_deadline
from train_cloud.run.session import Session, SessionRecord, read_sessions
from train_cloud.runtime.elsewhere import Elsewhere, Ended, ExperimentLimits
from train_cloud.store import FileStore, ObjectStore, open_store

EXPERIMENT_LIMIT = "TRAIN_CLOUD_EXPERIMENT_LIMIT"
"""Names a file, which appears with the reason in it as soon as a limit over all runs of the experiment is reached."""
_ASK_AGAIN_SECONDS = 60.0
log = logging.getLogger(__name__)


def begin_limits(limits: Configured, store: ObjectStore, session: Session, platform: Platform) -> Limits:
    """The limits of a session that has begun. Waits for a price that a dollar limit needs, as long as that may help."""
    name = platform.experiment(store)
    experiment = None if name is None else _of_experiment(store, name)
    needs_price = limits.dollars is not None or (experiment is not None and experiment.limits.dollars is not None)
    records = read_sessions(store) if limits.hours is not None or needs_price else []
    here = None
    if needs_price:
        start = next((record.start for record in records if record.number == session.number), {})
        here = platform.price(start)
    deadline = platform.run_deadline(store)
    return Limits(limits, session, records, price=here, store=store, deadline=deadline, experiment=experiment)


def _of_experiment(store: ObjectStore, name: str) -> ExperimentLimits:
    root = open_store(layout.root_of(store.url))
    assert isinstance(root, FileStore)
    found = ExperimentLimits(root, name)
    try:
        found.read()
    except StoreError as error:  # read again, as long as the session lasts
        log.warning("%s cannot be read: %s", found.name, error)
    return found


class Limits:
    """Of one session. :meth:`reached` is for a thread that must not wait.

    :param records: all sessions of the run, this one included
    :param price: of this machine; None where it is none of AWS's, which costs nothing that we know of
    :param deadline: when the run ends at the latest, whatever it has used; None: never
    :param experiment: limits that it shares with other runs
    """

    def __init__(
        self,
        limits: Configured,
        session: Session,
        records: Sequence[SessionRecord],
        *,
        price: Price | None,
        store: ObjectStore,
        deadline: datetime | None,
        experiment: ExperimentLimits | None = None,
    ) -> None:
        self._limits, self._session, self._store = limits, session, store
        before = [record for record in records if record.number < session.number]
        own = next((record.start for record in records if record.number == session.number), {})
        self._setup_hours = setup_seconds(own) / 3600
        self._hours_before = sum(hours(record) for record in before)
        self._hourly = price.at_most if price is not None else None
        self._dollars_before = 0.0
        self.price = price
        self.refusal: str | None = None
        """Why the dollar limit cannot be kept, so that the session must not begin; None: it can, or there is none."""
        if limits.dollars is not None:
            self._weigh(limits.dollars, price, before)
        self._elsewhere: list[Elsewhere] = [Ended(store, session)]
        if experiment is not None:
            experiment.hourly = self._hourly
            self._elsewhere.append(experiment)
            if experiment.limits.dollars is not None:
                self._price_here(experiment.name, experiment.limits.dollars, price)
        named = os.environ.get(EXPERIMENT_LIMIT)
        self._experiment = Path(named) if named else None
        self._deadline = deadline
        self._until = _monotonic(deadline)
        self._asking: threading.Thread | None = None
        self._stands: datetime | None = None
        """The deadline that was found again when it had passed."""

    def reached(self) -> str | None:
        """Which one is, in words; None: none."""
        if self.refusal is not None:
            return self.refusal
        own = self._setup_hours + self._session.seconds / 3600
        if self._limits.hours is not None and self._hours_before + own >= self._limits.hours:
            return f"limits.hours: {self._limits.hours} instance hours are used"
        if self._limits.dollars is not None and self._hourly is not None:
            spent = self._dollars_before + own * self._hourly
            if spent >= self._limits.dollars:
                return f"limits.dollars: {self._limits.dollars} dollars are spent"
        found = [decision.found() for decision in self._elsewhere]
        return next(filter(None, found), None) or self._of_experiment() or self._overdue()

    def _of_experiment(self) -> str | None:
        """Whether the limit is reached that many runs share."""
        if self._experiment is None:
            return None
        try:
            return self._experiment.read_text() or None
        except OSError:
            return None

    def _weigh(self, dollars: float, price_here: Price | None, before: Sequence[SessionRecord]) -> None:
        """The run's own dollar limit: what was spent before, and whether what is spent here can be known."""
        unpriced = []
        for record in before:
            hourly = _at_most(price(record))
            if hourly is None:
                unpriced.append(str(record.number))
            else:
                self._dollars_before += hourly * hours(record)
        if unpriced:
            log.warning(
                "limits.dollars: the price of session %s is unknown: %s not counted",
                ", ".join(unpriced),
                "it is" if len(unpriced) == 1 else "they are",
            )
        self._price_here("limits.dollars", dollars, price_here)

    def _price_here(self, limit: str, dollars: float, price_here: Price | None) -> None:
        """Whether what is spent here can be known."""
        if price_here is None:
            log.warning("%s: %s does not count here: only a worker on AWS has a price", limit, dollars)
        elif self._hourly is not None and price_here.left_out:
            missing = " and ".join(price_here.left_out)
            log.warning("%s: counts without the %s here: %s", limit, missing, price_here.because)
        elif self._hourly is None:
            instead = "limits.hours in the place of limits.dollars in the experiment file"
            if limit == "limits.dollars":
                instead = "relaunch with --set limits.dollars=null and limits.hours instead"
            self.refusal = (
                f"{limit}: {dollars} dollars cannot be kept to, because this machine's price is unknown "
                f"({price_here.because}): let the role ask (ec2:DescribeSpotPriceHistory, pricing:GetProducts), or "
                f"{instead}"
            )

    def _overdue(self) -> str | None:
        """Whether the deadline has passed, and still stands: it may have been moved since it was read."""
        if time.monotonic() < self._until:
            return None
        if self._stands is not None:
            at = self._stands.isoformat(timespec="minutes")
            return f"max_runtime_hours: the time was up at {at}"
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask, name="train-cloud-deadline", daemon=True)
            self._asking.start()
        return None

    def _ask(self) -> None:
        try:
            found = read_deadline(self._store)
        except TrainCloudError as error:
            log.warning("whether the time is up cannot be read: %s", error)
            time.sleep(_ASK_AGAIN_SECONDS)
            return
        if found is not None and self._deadline is not None and found <= self._deadline:
            self._stands = found
        else:
            log.info("the run may go on until %s", found)
            self._deadline, self._until = found, _monotonic(found)


def _at_most(recorded: Mapping[str, Any]) -> float | None:
    """Of a price as a session recorded it; None where it is none."""
    try:
        return Price.model_validate(recorded).at_most if recorded else None
    except ValidationError:
        return None


def _monotonic(when: datetime | None) -> float:
    """On ``time.monotonic()``."""
    if when is None:
        return float("inf")
    return time.monotonic() + (when - datetime.now(timezone.utc)).total_seconds()
