"""How a session ends once the run is its own: completed, stopped at a limit, interrupted, failed."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from typing import Any, NoReturn

from train_cloud.checkpoint import read_manifest, restore
from train_cloud.checkpoint.survey import cure
from train_cloud.errors import (
    EXIT_COMPLETED,
    CorruptCheckpoint,
    Fenced,
    Interrupted,
    StoreError,
    StoreUnavailable,
    TrainCloudError,
)
from train_cloud.run import exit_record
from train_cloud.runtime.acquire import Acquired, Begun
from train_cloud.runtime.beside import Beside
from train_cloud.runtime.code_folder import CodeFolder
from train_cloud.runtime.delivery import Delivery
from train_cloud.runtime.experiment_files import enter_end
from train_cloud.runtime.inputs import Inputs
from train_cloud.runtime.progress import Progress
from train_cloud.runtime.saving import Saving
from train_cloud.safe_text import masked

_TRACEBACK_CHARACTERS = 4000
_LAST_WAIT_SECONDS = 60.0
log = logging.getLogger(__name__)


class Exits:
    """See the module."""

    def __init__(
        self,
        inputs: Inputs,
        begun: Begun,
        acquired: Acquired,
        beside: Beside,
        progress: Progress,
        delivery: Delivery,
        code: CodeFolder,
    ) -> None:
        self._inputs, self._begun, self._lease = inputs, begun, acquired.lease
        self._beside, self._progress, self._delivery, self._code = beside, progress, delivery, code

    def completed(self, early: str | None) -> int:
        """:param early: how a callback ended the training before its total
        :return: exit code
        """
        lease = self._lease
        if lease.head.outcome is None:
            lease.conclude("completed", early)
        log.info("completed at %d timesteps%s", lease.head.timesteps, f": {early}" if early else "")
        self._delivery.send_all(last=True)
        enter_end(self._inputs, lease.head, "completed", self._progress.evaluated())
        self.end("completed" if early is None else "callback")
        return EXIT_COMPLETED

    def stopped(self) -> int:
        """At a limit: the run is over, with all that belongs to its end.

        :return: exit code
        :raises Interrupted: it was no limit
        """
        if self._inputs.deadline.reason != "limit":
            self.interrupted()
        lease, limit = self._lease, self._inputs.deadline.limit
        self._delivery.begin({})
        if lease.head.manifest is not None:
            self._delivery.upload_final(
                restore(self._inputs.store, read_manifest(self._inputs.store, lease.head.manifest))
            )
            self._beside.artifacts.keep_all()
            self._progress.write()
        self._delivery.send_all(last=True)
        lease.conclude("stopped", limit)
        log.info("stopped at %d timesteps: %s", lease.head.timesteps, limit)
        enter_end(self._inputs, lease.head, "stopped", self._progress.evaluated())
        self.end("limit")
        return EXIT_COMPLETED

    def interrupted(self) -> NoReturn:
        """All is committed; another process goes on.

        :raises Interrupted: always
        """
        reason = self._inputs.deadline.reason
        try:
            self.end(reason or "signal")
            self._delivery.send_all(last=True)
        except StoreUnavailable as error:  # the commit is what counts
            log.warning("the session's end is not recorded: %s", error)
        exit_record.leave(self._inputs.state_dir, self._inputs.platform.boot_id, self._begun.session.restart)
        raise Interrupted(
            f"interrupted ({reason}) with all committed at {self._lease.head.timesteps} timesteps: "
            "the same command goes on from there"
        )

    def failed(self, error: Exception, saving: Saving | None) -> None:
        """Whatever the user's code raises is recorded for ``status``; it goes on.

        :raises Interrupted: it was the store, when somebody waits for this machine
        """
        deadline = self._inputs.deadline
        if isinstance(error, StoreUnavailable) and deadline.urgent:
            raise Interrupted(
                f"interrupted ({deadline.reason}) while the store does not answer: left at "
                f"{self._lease.head.timesteps} timesteps, the last commit: {error}"
            ) from error
        # Ours says all there is; of the user's code's the place counts.
        own = str(error) if isinstance(error, TrainCloudError) else None
        self.record_failure(own, more=self._cure(error), saving=saving)

    def record_failure(self, words: str | None = None, *, more: str = "", saving: Saving | None = None) -> None:
        """Why this attempt ends. The exception that is being handled goes on, whatever the store says to this.

        :param words: by default that exception's traceback
        :param more: what follows them
        """
        words = words or masked(traceback.format_exc())[-_TRACEBACK_CHARACTERS:]
        reason = f"{words.rstrip()}\n{more}" if more else words
        self._beside.heartbeat.phase("store")
        if saving is not None:
            with contextlib.suppress(TrainCloudError, OSError):
                saving.wait(_LAST_WAIT_SECONDS)  # what is under way is work that was done
        try:
            self._lease.record_failure(reason)
        except (StoreError, Fenced) as error:
            log.warning("the failure is not recorded: %s", error)
        self._beside.artifacts.note(reason)
        with contextlib.suppress(StoreError, Fenced):  # finish sends it too
            limit = time.monotonic() + _LAST_WAIT_SECONDS
            self._beside.artifacts.everything(until=lambda: limit)

    def end(self, ended_by: str) -> None:
        """Record the session's end."""
        record_end(self._begun, self._progress, self._code, ended_by)

    def _cure(self, error: Exception) -> str:
        """What a person can do about it, as far as that is known here; said, and returned."""
        newest = self._lease.head.manifest
        if not isinstance(error, CorruptCheckpoint) or newest is None:
            return ""
        words = ""
        with contextlib.suppress(StoreError):
            words = cure(self._inputs.store, newest)
            log.error("%s", words)
        return words


def record_end(
    begun: Begun, progress: Progress | None, code: CodeFolder | None, ended_by: str, because: str | None = None
) -> None:
    """Write how a session ended.

    :param progress: None where it has not acquired its run
    """
    facts: dict[str, Any] = {"because": because} if because is not None else {}
    if progress is not None:
        progress.write_if_due()
        reached = progress.reached()
        facts |= {"last_timestep": reached.pop("timesteps"), **reached}
    elif begun.lease is not None:
        at = begun.lease.head.timesteps
        facts |= {"first_timestep": 0, "last_timestep": 0, "committed_timesteps": at, "repeated": 0}
    outputs = code.look() if code is not None else []
    if outputs:
        facts["outputs"] = outputs
    begun.end(ended_by, **facts)
