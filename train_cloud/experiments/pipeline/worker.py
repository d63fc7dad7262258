"""A pipeline on a machine that nobody watches: one session after the other on the same machine, each in an interpreter
of its own, under the same process number.

The process trains the session that is next, as ``train`` does, and then replaces itself: so systemd's watchdog, signals
and counting of attempts are those of a single run, and nothing that a session's code has imported, set or left open is
there in the next one. Which session is next, heads say. When there is none, the outcome goes into the pipeline's own
head, which is what ends the costs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from train_cloud import child_process
from train_cloud.artifacts.sync import FOLDER, run_sync
from train_cloud.config import Cell, variables
from train_cloud.config.pipeline import PipelineConfig, load_pipeline
from train_cloud.errors import (
    EXIT_COMPLETED,
    CorruptCheckpoint,
    Fenced,
    InputError,
    Interrupted,
    StoreError,
    StoreUnavailable,
)
from train_cloud.experiments.pipeline.files import pipeline_url, write
from train_cloud.experiments.pipeline.progress import BAD, Derivation, SessionStanding
from train_cloud.experiments.pipeline.sessions import in_words
from train_cloud.experiments.processes import shortly
from train_cloud.experiments.standing import run_store
from train_cloud.operations.seeds import write_cell
from train_cloud.platforms.here import here
from train_cloud.platforms.protocol import Platform
from train_cloud.platforms.unattended import LATER
from train_cloud.run.exit_record import FILES as EXIT_FILES
from train_cloud.run.head import Outcome, conclude, read_head
from train_cloud.run.session import last_session
from train_cloud.runtime.session import write_launch
from train_cloud.runtime.train import train
from train_cloud.store import ObjectStore, open_store

log = logging.getLogger(__name__)

_STOPPING = (signal.SIGTERM, signal.SIGINT)
#: What a session leaves on the machine's disk that is its own run's; a notice is the machine's.
_OF_A_SESSION = (
    "session.json", "artifacts.json", "timesteps", "digests", "final", "reached.json", "starts.json", "replay",
    "keep.log", "limit.txt", "wandb", *EXIT_FILES,
)  # fmt: skip
_SEND_SECONDS = 120.0


def train_next(path: Path, *, store: str, state_dir: Path, overrides: Sequence[str] = ()) -> int:
    """Train the session that is next, and replace this process by one that trains the one after it.

    :return: 0 once the pipeline is over, however; its head says how
    :raises Interrupted: stopped by a signal or a notice; all is committed
    :raises Fenced: a newer worker has the session
    """
    place, environment = here(), dict(os.environ)
    state_dir = state_dir.absolute()
    with _Stops() as stops:
        try:
            pipeline = load_pipeline(path, overrides)
        except InputError as error:
            _conclude(store, os.environ.get("TRAIN_CLOUD_RUN_ID", ""), "failed", str(error))
            raise
        head = read_head(open_store(pipeline_url(store, pipeline.id)))
        if head is not None and head[0].outcome is not None:
            log.info("nothing to do: the pipeline has the outcome %s", head[0].outcome)
            return EXIT_COMPLETED
        try:
            found = Derivation(pipeline, store).derive()
        except InputError as error:
            _conclude(store, pipeline.id, "failed", str(error))
            raise
        write(store, pipeline, found)
        following = _next(pipeline, found)
        if following is None:
            return _end(store, pipeline, found)
        _make_room(state_dir, run_store(store, following.run_id).url)
        run_file = _launch(store, following.cell, state_dir, path.name)
        os.environ.pop("TRAIN_CLOUD_OVERRIDES", None)  # they have been put into the file
        if pipeline.threads is not None:
            os.environ |= {"OMP_NUM_THREADS": str(pipeline.threads), variables.THREADS: str(pipeline.threads)}
        stops.refuse()
        log.info("session %s of %s: the run %s", following.name, pipeline.id, following.run_id)
        try:
            train(run_file, store=store, state_dir=state_dir)
        except Interrupted:
            raise
        except (InputError, Fenced, StoreError, CorruptCheckpoint) as error:
            # What no restart mends ends the session, and perhaps not the pipeline.
            if isinstance(error, StoreUnavailable) or not _over(store, following, place, error):
                raise
            log.error("session %s: %s", following.name, error)
        stops.refuse()
    return _replace(path, store, state_dir, overrides, environment)


def _next(pipeline: PipelineConfig, found: Sequence[SessionStanding]) -> SessionStanding | None:
    if not pipeline.written.continue_on_error and any(one.state in BAD for one in found):
        return None
    return next((one for one in found if one.state == "open"), None)


def _end(store: str, pipeline: PipelineConfig, found: Sequence[SessionStanding]) -> int:
    bad = [one for one in found if one.state in BAD and one.state != "skipped"]
    outcome: Outcome = "completed"
    reason = None
    if bad:
        outcome = "stopped" if all(one.state in ("stopped", "cancelled") for one in bad) else "failed"
        why = f": {shortly(bad[0].reason)}" if bad[0].reason else ""
        reason = f"session {bad[0].name} {in_words(bad[0])}{why}"
    _conclude(store, pipeline.id, outcome, reason or f"all {len(found)} sessions are completed")
    log.info("the pipeline %s is %s%s", pipeline.id, outcome, f": {reason}" if reason else "")
    return EXIT_COMPLETED


def _conclude(store: str, pipeline_id: str, outcome: Outcome, reason: str) -> None:
    if pipeline_id:
        conclude(open_store(pipeline_url(store, pipeline_id)), outcome, reason, session=0, owner=platform.node())


def _launch(store: str, cell: Cell, state_dir: Path, source: str) -> Path:
    """The run file of a session, here and in the store: nobody but this pipeline has launched it."""
    state_dir.mkdir(parents=True, exist_ok=True)
    path = write_cell(cell, state_dir, source, replace=True)
    write_launch(run_store(store, cell.run_id), cell.config, path.read_text())
    return path


def _over(store: str, one: SessionStanding, place: Platform, error: Exception) -> bool:
    """Whether the session's head says that it is over; where its input was refused before it had one, it does now."""
    runs = run_store(store, one.run_id)
    try:
        read = read_head(runs)
        if isinstance(error, InputError) and (read is None or read[0].outcome is None):
            place.give_up(runs, str(error), read[0].session if read is not None else 0)
            read = read_head(runs)
    except (StoreError, CorruptCheckpoint, Fenced):
        return False
    return read is not None and read[0].outcome is not None


def _make_room(state_dir: Path, url: str) -> None:
    """Send what the session before has left to send, and take its files away; those of this one stay."""
    before = last_session(state_dir)
    if before is None or before.url == url:
        return
    folder = state_dir / FOLDER
    if folder.is_dir() and before.url:
        store = open_store(before.url)
        try:
            sync = run_sync(store, state_dir, _name(store), (before.number, before.restart))
            if not sync.everything(until=time.monotonic() + _SEND_SECONDS):
                log.error("not all artifacts of %s could be sent", before.url)
        except (StoreError, CorruptCheckpoint, Fenced, OSError) as error:
            log.error("not all artifacts of %s could be sent: %s", before.url, error)
    for name in _OF_A_SESSION:
        path = state_dir / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    (state_dir / LATER).touch()
    # The folders stay: TensorBoard looks at them.
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_dir():
            path.unlink(missing_ok=True)


def _name(store: ObjectStore) -> str:
    return store.url.rstrip("/").rsplit("/", 1)[-1]


class _Stops:
    """Notices that somebody asks to stop, also while a session's own handlers are in force, and between two of them."""

    def __enter__(self) -> _Stops:
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        for number in _STOPPING:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def refuse(self) -> None:
        """:raises Interrupted: somebody has asked"""
        with contextlib.suppress(BlockingIOError):
            if set(os.read(self._read, 4096)) & {int(number) for number in _STOPPING}:
                raise Interrupted("interrupted between two sessions, with all committed: the next start goes on")


def _replace(path: Path, store: str, state_dir: Path, overrides: Sequence[str], environment: dict[str, str]) -> int:
    """Does not return."""
    arguments = ["train", str(path), "--store", store, "--state-dir", str(state_dir)]
    arguments += [word for override in overrides for word in ("--set", override)]
    command = child_process.command("train_cloud", *arguments, user_code=True)
    with _held():
        os.execve(command[0], command, environment)


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """A signal waits for the process that takes this one's place."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    yield
