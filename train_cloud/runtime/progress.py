"""How far a session is, in the store: the only writer of its ``progress.json``, under one lock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from train_cloud.errors import StoreError
from train_cloud.run.session import write_progress
from train_cloud.runtime.acquire import Acquired, Begun
from train_cloud.runtime.beside import Beside
from train_cloud.runtime.inputs import Inputs

_REPORT_SECONDS = 60.0
CURRICULUM = "curriculum"
"""In a checkpoint's facts and in a session's progress record: where it stands."""
log = logging.getLogger(__name__)


class Progress:
    """Of one session. Its methods may be called from any thread."""

    def __init__(self, inputs: Inputs, begun: Begun, acquired: Acquired, beside: Beside) -> None:
        self._store, self._begun, self._acquired, self._beside = inputs.store, begun, acquired, beside
        self._evaluations = inputs.evaluations
        self._lock = threading.Lock()
        self._at_risk = 0
        self._last_commit: dict[str, Any] = _of_the_curriculum(acquired.manifest.facts if acquired.manifest else {})
        self._pretrained: Mapping[str, float] = {}
        self._written = time.monotonic()
        self._reporter: threading.Thread | None = None

    def begin(self) -> None:
        """From here on it is written once a minute, and when a replay is over, whatever else writes it."""
        self._beside.on_replay = self._soon
        self._beside.each_second.append(self._every_second)
        if self._beside.hardware is not None:
            self.write()  # a session that dies before its first commit has chosen for the next one too

    def write(self) -> None:
        """What is known now. A store that refuses it or does not answer ends no training."""
        with self._lock:
            self._written = time.monotonic()
            try:
                write_progress(
                    self._store,
                    self._begun.session,
                    replay=self._beside.replay.said,
                    at_risk=self._at_risk,
                    steps_per_second=self._beside.heartbeat.steps_per_second(),
                    **self.reached(),
                    **self._beside.evidence.progress(),
                    **self._last_commit,
                    **self._known_later(),
                )
            except StoreError as error:
                log.warning("progress not reported: %s", error)

    def write_if_due(self) -> None:
        """What a replay found since the last commit."""
        if self._written < 0:
            self.write()

    def reached(self) -> dict[str, int]:
        """The session's steps; for its end too."""
        return {
            "first_timestep": self._acquired.first_timestep,
            "timesteps": self._beside.heartbeat.timesteps,
            "committed_timesteps": self._acquired.lease.head.timesteps,
            "repeated": self._acquired.repeated,
        }

    def about_to_commit(self) -> None:
        """So many steps would be lost by a kill now."""
        self._at_risk = max(self._at_risk, self._beside.heartbeat.timesteps - self._acquired.lease.head.timesteps)

    def committed(self, seconds: float, sent_bytes: int, facts: Mapping[str, Any]) -> None:
        """Figures of the last commit, for the next report.

        :param facts: of its checkpoint
        """
        self._last_commit = {"commit_seconds": seconds, "sent_bytes": sent_bytes, **_of_the_curriculum(facts)}

    def pretrained(self, epochs: Sequence[Mapping[str, float]]) -> None:
        """Figures of the last epoch, for the next report."""
        self._pretrained = epochs[-1] if epochs else {}

    def evaluated(self) -> dict[str, Any]:
        """The last evaluation, in short; empty before there is one."""
        latest = self._evaluations.latest if self._evaluations is not None else None
        return {"evaluation": latest} if latest is not None else {}

    def _known_later(self) -> dict[str, Any]:
        """The last evaluation, what was chosen for the machine, which kept checkpoints have no model, and so on."""
        found = self.evaluated()
        if self._pretrained:
            found["pretraining"] = dict(self._pretrained)
        if self._beside.hardware is not None:
            found["hardware"] = dict(self._beside.hardware)
        if self._beside.ranks > 1:
            found["ranks"] = self._beside.ranks
        not_exported = self._beside.artifacts.not_exported
        if not_exported is not None:
            found["not_exported"] = not_exported
        price = self._begun.limits.price
        if price is not None:
            found["price"] = price.model_dump()
        return found

    def _soon(self) -> None:
        self._written = float("-inf")  # the next second writes it

    def _every_second(self) -> None:
        reporting = self._reporter is not None and self._reporter.is_alive()
        if not reporting and time.monotonic() - self._written > _REPORT_SECONDS:
            # in a thread of its own: the heartbeat must not wait for a store that does not answer
            self._reporter = threading.Thread(target=self.write, name="train-cloud-report", daemon=True)
            self._reporter.start()


def _of_the_curriculum(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Where a checkpoint stands in it; empty where the run has none."""
    return {CURRICULUM: facts[CURRICULUM]} if CURRICULUM in facts else {}
