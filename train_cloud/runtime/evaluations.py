"""The evaluations of a session: which are due, and the process that plays them, one at a time, the oldest first.

What is due stands in each checkpoint, and what is done in the store, so nothing is forgotten or played twice, whoever
dies when. The process can be ended at any instant: it is started again, here or by the next session.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from train_cloud import child_process, warm_process
from train_cloud.checkpoint.format import crc64nvme
from train_cloud.checkpoint.manifest import Manifest
from train_cloud.errors import ObjectMissing
from train_cloud.evaluate.results import Evaluation, Results
from train_cloud.report.cloned import Evaluated, cloned
from train_cloud.run import layout
from train_cloud.snapshot import OF_THE_BLOB, Part, Snapshot
from train_cloud.store import ObjectStore

log = logging.getLogger(__name__)

#: In a checkpoint's facts: timesteps of the checkpoints that are to be evaluated, its own among them.
DUE = "evaluations_due"
RESULTS = "eval_results.json"
_ATTEMPTS = 2


def model_checksum(model: Part) -> str:
    """Of the parameters: two checkpoints at the same timesteps are the same model if these are equal. What else lies in
    the part tells times, too.
    """
    parameters = sorted(name for name in model.arrays if not name.startswith(OF_THE_BLOB))
    body = b"".join(model.arrays[name].tobytes() for name in parameters)
    return f"{crc64nvme(memoryview(body)):016x}"


def recorded(store: ObjectStore) -> list[Evaluation]:
    """All evaluations of the run so far, in the order of timesteps. One that cannot be read is played again."""
    found = []
    for info in store.list(layout.EVALUATIONS):
        try:
            found.append(Evaluation.model_validate_json(bytes(store.get(info.key).body)))
        except ValidationError as error:
            log.warning("%s/%s is no evaluation: %s", store.url, info.key, error)
    return sorted(found, key=lambda each: each.timesteps)


class Evaluations:
    """:param command: ``train-cloud evaluate …`` without ``--at``
    :param results: the file that it leaves
    :param limit: seconds that one may take
    """

    def __init__(self, command: Sequence[str], results: Path, limit: float) -> None:
        self._command = list(command)
        self._results = results
        self._limit = limit
        self._folder = Path.cwd()  # the user's code may change it
        self._lock = threading.Lock()
        self._announced: set[int] = set()
        self._committed: set[int] = set()
        self._failures: dict[int, int] = {}
        self._process: warm_process.Child | None = None
        self._playing: int | None = None
        self._began = 0.0
        self._ended = False
        self.latest: dict[str, Any] | None = None
        """The last result, in short, for ``status``; or what went wrong."""

    def resume(self, manifest: Manifest) -> None:
        """What the sessions before have left to do."""
        standing = {manifest.timesteps, *(kept.timesteps for kept in manifest.kept)}
        for timesteps in manifest.facts.get(DUE, ()):
            if timesteps in standing:
                self._announced.add(timesteps)
                self._committed.add(timesteps)

    def due(self, timesteps: int) -> None:
        """The checkpoint at ``timesteps``, which is about to be committed, is to be evaluated."""
        with self._lock:
            self._announced.add(timesteps)

    def pending(self) -> list[int]:
        """Checkpoints that have to stay until they are played."""
        with self._lock:
            return sorted(self._announced)

    def committed(self, timesteps: int) -> None:
        """From now on the checkpoint at ``timesteps`` can be read."""
        with self._lock:
            if timesteps in self._announced:
                self._committed.add(timesteps)
        self.poll()

    def poll(self) -> None:
        """Note what has ended, start what comes next."""
        with self._lock:
            if self._process is not None:
                self._look_after(self._process)
            ready = sorted(self._committed)
            if self._process is None and ready and not self._ended:
                self._playing, self._began = ready[0], time.monotonic()
                # A session of its own: Ctrl-C is not for it, and its own children end with it.
                self._process = warm_process.start(
                    [*self._command, "--at", str(self._playing)],
                    new_session=True,
                    cwd=self._folder,
                    env=child_process.environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"),
                )

    def wait(self, stopping: Callable[[], bool], alive: Callable[[], None]) -> None:
        """Until all are played, or somebody wants to stop.

        :param alive: called again and again
        """
        while self.pending() and not stopping():
            self.poll()
            alive()
            time.sleep(0.05)

    def end(self) -> None:
        """Without regret: what is played now will be played again."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                _kill(self._process)
                self._process = None

    def _look_after(self, process: warm_process.Child) -> None:
        assert self._playing is not None
        code = process.poll()
        if code is None:
            if time.monotonic() - self._began < self._limit:
                return
            _kill(process)
            because = f"it took more than {self._limit:.0f} seconds"
        else:
            because = f"exit code {code}: see the log"
        self._process = None
        timesteps = self._playing
        if code == 0:
            try:
                self._done(timesteps)
                return
            except (OSError, ValueError, StopIteration) as error:
                because = f"its results cannot be read: {error}"
        self._failures[timesteps] = self._failures.get(timesteps, 0) + 1
        self.latest = {"timesteps": timesteps, "failed": because}
        log.error("the evaluation at %d timesteps failed: %s", timesteps, because)
        if self._failures[timesteps] >= _ATTEMPTS:
            self._forget(timesteps)

    def _done(self, timesteps: int) -> None:
        self._forget(timesteps)
        every = Results.model_validate_json(self._results.read_bytes()).evaluations  # the heartbeat waits for no store
        found = next(each for each in every if each.timesteps == timesteps)
        mean, rate = found.overall.returns.mean, found.overall.success_rate
        self.latest = {"timesteps": timesteps, "mean_return": mean, "success_rate": rate}
        if found.warnings:
            self.latest["warnings"] = list(found.warnings)
        spreads = ((each.timesteps, each.overall.returns) for each in every)
        begun = cloned(Evaluated(at, returns.mean, returns.interval) for at, returns in spreads)
        if begun is not None and timesteps in begun.below:
            self.latest["below_cloned"] = begun.mean_return
            log.warning("at %d timesteps it is worse than the cloned policy was: %.2f", timesteps, begun.mean_return)
        log.info(
            "evaluated at %d timesteps: mean return %.2f%s",
            timesteps,
            mean,
            "" if rate is None else f", success rate {rate:.0%}",
        )

    def _forget(self, timesteps: int) -> None:
        self._announced.discard(timesteps)
        self._committed.discard(timesteps)


def is_recorded(store: ObjectStore, snapshot: Snapshot) -> bool:
    """Whether this very model's evaluation is there: steps done again after a kill lead to it a second time."""
    try:
        body = bytes(store.get(layout.evaluation_key(snapshot.timesteps)).body)
    except ObjectMissing:
        return False
    try:
        return Evaluation.model_validate_json(body).model == model_checksum(snapshot.parts["model"])
    except ValidationError:
        return False


def command(run_file: Path, *, store: str, out: Path, events: Path, overrides: Sequence[str]) -> list[str]:
    """How the process is started."""
    return [
        *child_process.command("train_cloud", "evaluate", str(run_file), user_code=True),
        *("--store", store, "--out", str(out), "--events", str(events), "--record"),
        *(part for override in overrides for part in ("--set", override)),
    ]


def _kill(process: warm_process.Child) -> None:
    """With its children: a process for each category, ffmpeg."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10.0)
