"""The models of kept checkpoints among a session's artifacts.

A process of its own exports them while the run trains; what is left once the training is over is exported here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_cloud import child_process, warm_process
from train_cloud.artifacts.sync import Sync
from train_cloud.checkpoint import read_manifest
from train_cloud.envs.make import FAILURES
from train_cloud.errors import CorruptCheckpoint, Fenced, StoreError
from train_cloud.run.head import Reference
from train_cloud.runtime.kept_models import KEPT, keep
from train_cloud.store import ObjectStore

_EXPORT_SECONDS = 20.0
"""What the export of a few models may take on a slow machine."""
_PROCESS_SECONDS = 600.0
_LOG = "keep.log"
_ATTEMPTS = 2
"""In a session; the next one tries again."""
_REASON_CHARACTERS = 300

log = logging.getLogger(__name__)


class ModelExports:
    """:param folder: artifact folder
    :param urgent: whether somebody waits for this machine
    :param note: writes into the session's log only
    :ivar newest: manifest of the newest checkpoint, which names those before it
    :ivar not_exported: ``timesteps`` of kept checkpoints without a model, and ``because``; None while nothing is known
        to fail
    """

    def __init__(
        self,
        store: ObjectStore,
        state_dir: Path,
        folder: Path,
        urgent: Callable[[], bool],
        note: Callable[[str], None],
    ) -> None:
        self._store, self._state_dir, self._folder = store, state_dir, folder
        self._urgent, self._note = urgent, note
        self._lock = threading.Lock()
        """Held by the thread that looks after the process, or exports itself."""
        self._process: warm_process.Child | None = None
        self._failures = 0
        self._wanted_by: tuple[Reference | None, set[int]] = (None, set())
        self.newest: Reference | None = None
        self.not_exported: dict[str, Any] | None = None

    def look_after(self, sync: Sync) -> None:
        """Have what is not exported yet exported; delete what is kept no longer. Does not wait.

        :raises StoreError, CorruptCheckpoint: the newest manifest cannot be read
        """
        with self._lock:
            if self._process is not None:
                if self._process.poll() is None:
                    return
                self._note_end(sync, self._process.wait())
            if self._failures < _ATTEMPTS and self._missing(sync):
                self._process = self._start(sync)
            self._forget_superseded(sync)

    def all(self, sync: Sync, until: float | None) -> bool:
        """Export what is not yet, here and now: the training is over.

        :param until: on ``time.monotonic()``: where that is too soon, nothing is begun
        :return: whether all are there
        """
        if until is not None and time.monotonic() + _EXPORT_SECONDS > until:
            return False
        with self._lock, contextlib.suppress(CorruptCheckpoint):  # what is lost was said when it was found
            self._wait()
            try:
                keep(self._store, self.newest, self._folder, self._names(sync))
                self.not_exported = None
            except (StoreError, CorruptCheckpoint, Fenced):
                raise
            except FAILURES as error:  # the run is over all the same, and its checkpoints are there
                self._could_not(sync, f"{type(error).__name__}: {error}", traceback.format_exc())
            self._forget_superseded(sync)
        return True

    def close(self) -> None:
        """End the process. Takes no lock: whoever holds it waits for that process."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    def _start(self, sync: Sync) -> warm_process.Child:
        command = child_process.command("train_cloud.runtime.kept_models", self._store.url, str(self._folder))
        with (self._state_dir / _LOG).open("wb") as said:
            return warm_process.start(
                [*command, *sorted(self._names(sync))],
                env=child_process.environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"),
                stderr=said,
                new_session=True,
            )

    def _note_end(self, sync: Sync, code: int) -> None:
        """What the process has left: nothing, or why it could not."""
        self._process = None
        if code == 0:
            self._failures, self.not_exported = 0, None
            return
        self._failures += 1
        said = (self._state_dir / _LOG).read_text(errors="replace").strip()
        self._could_not(sync, said.rpartition("\n")[2] or f"exit code {code}", said)

    def _could_not(self, sync: Sync, because: str, details: str) -> None:
        missing = sorted(self._missing(sync))
        self.not_exported = {"timesteps": missing, "because": because[:_REASON_CHARACTERS]}
        log.error("the models of %s timesteps could not be exported: %s", ", ".join(map(str, missing)), because)
        self._note(details)

    def _wait(self) -> None:
        if self._process is None:
            return
        limit = time.monotonic() + (_EXPORT_SECONDS / 2 if self._urgent() else _PROCESS_SECONDS)
        while self._process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        self.close()
        self._process = None  # what it could not do is tried here next

    def _missing(self, sync: Sync) -> set[int]:
        """Timesteps whose models are not exported yet."""
        return self._wanted() - {int(found[1]) for name in self._names(sync) if (found := KEPT.fullmatch(name))}

    def _wanted(self) -> set[int]:
        """Timesteps of the checkpoints that are preserved."""
        newest = self.newest
        if newest is None:
            return set()
        if self._wanted_by[0] != newest:
            manifest = read_manifest(self._store, newest)
            self._wanted_by = newest, {manifest.timesteps, *(kept.timesteps for kept in manifest.kept)} - {0}
        return self._wanted_by[1]

    def _names(self, sync: Sync) -> set[str]:
        """Exported already, here or by a session before."""
        here = {path.relative_to(self._folder).as_posix() for path in (self._folder / "checkpoints").glob("*")}
        return {name for name in {*here, *sync.names()} if KEPT.fullmatch(name)}

    def _forget_superseded(self, sync: Sync) -> None:
        wanted = self._wanted()
        gone = [name for name in self._names(sync) if (found := KEPT.fullmatch(name)) and int(found[1]) not in wanted]
        for name in gone:
            (self._folder / name).unlink(missing_ok=True)
        sync.forget(gone)
