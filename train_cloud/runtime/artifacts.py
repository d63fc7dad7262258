"""The artifacts of a session: made beside the training, sent within ``sync_seconds``, right again after any end.

All of it goes in a thread of its own, which gives way to a commit in a hurry. What it has not sent yet of scalars and
tables goes with each commit, so that no head stands without them. Models of kept checkpoints are exported by a process
of their own, from what is committed: nothing here touches the model that trains.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from train_cloud import child_process
from train_cloud.artifacts import tables, tensorboard
from train_cloud.artifacts.logged import Logged
from train_cloud.artifacts.sync import FOLDER, Sync, run_sync
from train_cloud.artifacts.system import Machine
from train_cloud.artifacts.uploads import read_uploads
from train_cloud.artifacts.wandb import Wandb
from train_cloud.checkpoint import read_manifest
from train_cloud.config import RunFile
from train_cloud.envs.make import FAILURES
from train_cloud.errors import CorruptCheckpoint, Fenced, StoreError, StoreUnavailable
from train_cloud.run import layout
from train_cloud.run.head import Reference, Token
from train_cloud.runtime.evaluations import RESULTS
from train_cloud.runtime.kept_models import FINAL_MODEL, KEPT, keep
from train_cloud.safe_text import masked, masked_values
from train_cloud.snapshot import Part
from train_cloud.store import ObjectStore, open_store
from train_cloud.whole_file import write_local, write_whole

if TYPE_CHECKING:
    from train_cloud.sb3.scalars import Episodes, SessionTensorBoard, Table

EVENTS = "tensorboard"
PROGRESS, MONITOR, CONFIG = "progress.csv", "monitor.csv", "training_config.json"
TABLES = (PROGRESS, MONITOR)

_MARK = "artifacts.json"
_SAMPLE_SECONDS = 15.0
_NEEDED = re.compile(r"tensorboard/.*|wandb/.*|[^/]*\.(csv|json)")
"""What a session on a new disk goes on with. All else lies in the store and stays as it is."""
_VIDEO = re.compile(r"videos/([a-z0-9_-]+)/\1_\d{3}_(success|failure|episode)\.mp4")
_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)
_KEEPING_SECONDS = 600.0
_KEEPING_LOG = "keep.log"
_KEEPING_ATTEMPTS = 2
"""In a session; the next one tries again."""
_REASON_CHARACTERS = 300
_WANDB_SECONDS = 60.0
_EXPORT_SECONDS = 20.0
"""What the export of a few models may take on a slow machine."""

log = logging.getLogger(__name__)


class Artifacts:
    """:param store: of the run
    :param hurry: whether a commit needs the line: somebody has asked to stop
    """

    def __init__(
        self,
        config: RunFile,
        store: ObjectStore,
        state_dir: Path,
        hurry: Callable[[], bool],
        timesteps: Callable[[], int],
    ) -> None:
        self.folder = state_dir / FOLDER
        self.events = self.folder / EVENTS
        self._config, self._store, self._state_dir = config, store, state_dir
        self._hurry, self._timesteps = hurry, timesteps
        self._sync: Sync | None = None
        self._logged: Logged | None = None
        self._log: Tee | None = None
        self._outputs: tuple[SessionTensorBoard, Table] | None = None
        self._episodes: Episodes | None = None
        self._resumed_at = 0
        self._number = 0
        self._newest: Reference | None = None
        self._kept: tuple[Reference | None, set[int]] = (None, set())
        self._keeping: subprocess.Popen[bytes] | None = None
        self._keeps = threading.Lock()
        """Held by the thread that looks after that process, or exports itself."""
        self._keeping_failures = 0
        self.not_exported: dict[str, Any] | None = None
        """``timesteps`` of kept checkpoints without a model, and ``because``; None while nothing is known to fail."""
        self._wandb: Wandb | None = None
        self._sampled: dict[str, list[float]] = {}
        self._pace = (0.0, 0)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------------ a session

    @property
    def begun(self) -> bool:
        return self._sync is not None

    def begin(
        self,
        token: Token,
        newest: Reference | None,
        resumed_at: int,
        versions: Mapping[str, Any],
        logged: Part | None = None,
    ) -> None:
        """Bring this disk to where the head is, and begin to send.

        :param newest: manifest of the checkpoint that the session goes on from
        :param logged: that checkpoint's, as :meth:`logged` returned it
        :raises StoreError: the store does not let it
        """
        self._resumed_at, self._newest = resumed_at, newest
        self._number = token.session * 10_000 + token.restart
        self._clear_unless_ours()
        self.events.mkdir(parents=True, exist_ok=True)
        self._sync = run_sync(
            self._store, self._state_dir, self._config.run_id, (token.session, token.restart), yields=self._hurry
        )
        self._sync.begin()
        self._sync.restore(lambda name: _NEEDED.fullmatch(name) is not None)
        self._mark(token)
        self._logged = Logged(self.folder, self._sync.sent)
        if logged is not None:
            self._logged.add(logged)
        tensorboard.cut(self.events, resumed_at)
        for name in TABLES:
            tables.cut(self.folder / name, resumed_at)
        self._sync.now(self._growing())  # from here on what lies there is what these begin with
        self._log = Tee(self.folder / "logs" / f"session-{token.session:06d}.log")
        self._write_config(versions)
        if self._config.wandb is not None:
            shown = _hyperparameters(self._config)
            scratch = self._state_dir / "wandb"
            self._wandb = Wandb(self._config.wandb, self._config.run_id, self.folder, scratch, shown)
            self._wandb.committed(resumed_at)
        self._thread = threading.Thread(target=self._run, name="train-cloud-artifacts", daemon=True)
        self._thread.start()

    def outputs(self, environment: str, notices: str) -> tuple[SessionTensorBoard, Table]:
        """Where scalars go.

        :param notices: how the sessions before ended, in words
        """
        from train_cloud.sb3.scalars import Episodes, SessionTensorBoard, Table

        board = SessionTensorBoard(self.events, self._number, self._resumed_at)
        board.add_hyperparameters(masked_values(_hyperparameters(self._config)), {"rollout/ep_rew_mean": 0.0})
        if notices:
            board.add_text("system/interruptions", notices, self._resumed_at)
        self._episodes = Episodes(self.folder / MONITOR, environment, time.time())
        self._outputs = (board, Table(self.folder / PROGRESS))
        self._pace = (time.monotonic(), self._timesteps())
        return self._outputs

    def episode(self, timesteps: int, env: int, episode: Mapping[str, Any]) -> None:
        if self._episodes is not None:
            self._episodes.add(timesteps, env, episode)

    def measured(self, name: str, value: float) -> None:
        """Something that the next sample of ``system/…`` shows the mean of, from any thread."""
        self._sampled.setdefault(f"system/{name}", []).append(value)

    def committed(self, timesteps: int, manifest: Reference | None) -> None:
        self._newest = manifest
        if self._wandb is not None:
            self._wandb.committed(timesteps)

    def finish_wandb(self, until: float | None) -> None:
        """Let Weights & Biases have the rest, for as long as there is time.

        :param until: on ``time.monotonic()``; None where nobody waits for this machine
        """
        if self._wandb is not None:
            left = _WANDB_SECONDS if until is None else (until - time.monotonic()) / 2
            self._wandb.finish(min(left, _WANDB_SECONDS))
            self._wandb = None

    def note(self, text: str) -> None:
        """Into the session's log only."""
        if self._log is not None:
            self._log.note(text)

    def close(self) -> None:
        """End what runs beside the training. What was not sent is sent by ``finish``, or by the next session."""
        self._over.set()
        if self._wandb is not None:
            self._wandb.kill()
        if self._keeping is not None and self._keeping.poll() is None:
            self._keeping.kill()
            self._keeping.wait()
        if self._thread is not None:
            self._thread.join(5.0)
        if self._log is not None:
            self._log.close()

    # ------------------------------------------------------------------------------------------------------- sending

    def logged(self) -> Part:
        """Scalars and rows of tables that are not in the store for certain."""
        return self._logged.take(self._growing()) if self._logged is not None else Part()

    def _growing(self) -> list[Path]:
        tables = (self.folder / name for name in TABLES)
        return [*tensorboard.event_files(self.events), *(path for path in tables if path.exists())]

    def everything(
        self,
        *,
        until: Callable[[], float | None] = lambda: None,
        yielding: bool = False,
        alive: Callable[[], None] = lambda: None,
    ) -> bool:
        """Send all that there is.

        :param until: on ``time.monotonic()``, asked again and again: what is not sent by then waits for the next
            session; None waits for a store that does not answer, as a commit does
        :param yielding: end as soon as a commit is in a hurry
        :return: whether all is sent
        :raises StoreError: it refuses
        """
        if self._sync is None:
            return True
        if self._outputs is not None:
            self._outputs[0].writer.flush()
        pauses = iter(_PAUSES)
        while True:
            alive()
            limit = until()
            try:
                if self._sync.everything(urgent=not yielding, until=float("inf") if limit is None else limit):
                    self._forget_videos(self._sync)
                    return not self._sync.check() or self._sync.everything(urgent=not yielding)
                if limit is not None or (yielding and self._hurry()):
                    log.warning("not all artifacts are sent: the next session goes on with that")
                    return False
                if self._sync.failed:
                    log.error("not sent: %s", ", ".join(self._sync.failed))
                    return True  # no later attempt reads them either
            except StoreUnavailable as error:
                pause, limit = next(pauses, _PAUSES[-1]), until()
                late = limit is not None and time.monotonic() + pause > limit
                if late or (yielding and self._hurry()):
                    log.warning("not all artifacts are sent: %s", error)
                    return False
                log.warning("artifacts delayed, next try in %.0f s: %s", pause, error)
                time.sleep(pause)

    def final(self, folder: Path) -> None:
        """Take over the exported final model, a folder as ``export`` writes it."""
        there = self.folder / "final"
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(folder, there)
        if (folder / "model.zip").exists():
            write_whole(self.folder / FINAL_MODEL, (folder / "model.zip").read_bytes())

    def keep_all(self, until: float | None = None) -> bool:
        """Export the kept checkpoints that are not yet, here and now: the training is over.

        :param until: on ``time.monotonic()``: where that is too soon, nothing is begun
        :return: whether all are there
        """
        if self._sync is None:
            return True
        if until is not None and time.monotonic() + _EXPORT_SECONDS > until:
            return False
        with self._keeps, contextlib.suppress(CorruptCheckpoint):  # what is lost was said when it was found
            self._wait_for_keeping()
            try:
                keep(self._store, self._newest, self.folder, self._names())
                self.not_exported = None
            except (StoreError, CorruptCheckpoint, Fenced):
                raise
            except FAILURES as error:  # the run is over all the same, and its checkpoints are there
                self._could_not_export(f"{type(error).__name__}: {error}", traceback.format_exc())
            self._forget_superseded()
        return True

    # ------------------------------------------------------------------------------------------- beside the training

    def _run(self) -> None:
        assert self._sync is not None
        every = self._config.artifacts.sync_seconds
        machine = Machine()
        due = time.monotonic() + every
        while not self._over.wait(min(_SAMPLE_SECONDS, max(0.05, due - time.monotonic()))):
            self._sample(machine)
            if time.monotonic() < due or self._hurry():
                continue
            try:
                with self._keeps:
                    self._keep()
                self._forget_videos(self._sync)
                self._sync.everything()
            except Fenced as error:  # the commit will find out
                log.warning("artifacts are sent no longer: %s", error)
                return
            except (StoreError, CorruptCheckpoint, OSError) as error:
                log.warning("artifacts not sent, the next try is in %g s: %s", every, error)
            due = time.monotonic() + every

    def _sample(self, machine: Machine) -> None:
        if self._outputs is None or self._hurry():
            return
        now, timesteps = time.monotonic(), self._timesteps()
        began, before = self._pace
        if timesteps <= before:
            return  # between two steps nothing new can be told
        found = dict(machine.sample())
        found["system/steps_per_second"] = (timesteps - before) / max(1e-9, now - began)
        self._pace = (now, timesteps)
        for name, values in list(self._sampled.items()):
            if values:
                taken = values[:]
                del values[: len(taken)]
                found[name] = sum(taken) / len(taken)
        self._outputs[0].add_scalars(found, timesteps)

    def _keep(self) -> None:
        """Have the models of kept checkpoints exported that are not yet; delete those that are kept no longer."""
        if self._keeping is not None:
            if self._keeping.poll() is None:
                return
            self._note_keeping(self._keeping.returncode)
        wanted = self._wanted()
        if self._keeping_failures < _KEEPING_ATTEMPTS and self._missing(wanted):
            command = child_process.command("train_cloud.runtime.kept_models", self._store.url, str(self.folder))
            environment = child_process.environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
            with (self._state_dir / _KEEPING_LOG).open("wb") as said:
                self._keeping = subprocess.Popen(
                    [*command, *sorted(self._names())],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                )
        self._forget_superseded()

    def _note_keeping(self, code: int) -> None:
        """What the process that exported has left: nothing, or why it could not."""
        self._keeping = None
        if code == 0:
            self._keeping_failures, self.not_exported = 0, None
            return
        self._keeping_failures += 1
        said = (self._state_dir / _KEEPING_LOG).read_text(errors="replace").strip()
        self._could_not_export(said.rpartition("\n")[2] or f"exit code {code}", said)

    def _could_not_export(self, because: str, details: str) -> None:
        missing = sorted(self._missing(self._wanted()))
        self.not_exported = {"timesteps": missing, "because": because[:_REASON_CHARACTERS]}
        log.error("the models of %s timesteps could not be exported: %s", ", ".join(map(str, missing)), because)
        self.note(details)

    def _missing(self, wanted: set[int]) -> set[int]:
        """Timesteps whose models are not exported yet."""
        return wanted - {int(found[1]) for name in self._names() if (found := KEPT.fullmatch(name))}

    def _forget_videos(self, sync: Sync) -> None:
        """A name says how its episode ended: what an earlier evaluation left may have no successor to replace it."""
        path = self.folder / RESULTS
        if not path.exists():
            return
        try:
            evaluations = json.loads(path.read_text())["evaluations"]
            shown = {episode["video"] for episode in evaluations[-1]["episodes"]} if evaluations else set()
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("%s cannot be read: %s", path, error)
            return
        sync.forget(
            name
            for name in sync.names()
            if _VIDEO.fullmatch(name) and name not in shown and not (self.folder / name).exists()
        )

    def _wait_for_keeping(self) -> None:
        if self._keeping is None:
            return
        limit = time.monotonic() + (_EXPORT_SECONDS / 2 if self._hurry() else _KEEPING_SECONDS)
        while self._keeping.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        if self._keeping.poll() is None:
            self._keeping.kill()
            self._keeping.wait()
        self._keeping = None  # what it could not do is tried here next

    def _wanted(self) -> set[int]:
        """Timesteps of the checkpoints that are preserved."""
        newest = self._newest
        if newest is None:
            return set()
        if self._kept[0] != newest:
            manifest = read_manifest(self._store, newest)
            self._kept = newest, {manifest.timesteps, *(kept.timesteps for kept in manifest.kept)} - {0}
        return self._kept[1]

    def _names(self) -> set[str]:
        """Exported already, here or by a session before."""
        assert self._sync is not None
        here = {path.relative_to(self.folder).as_posix() for path in (self.folder / "checkpoints").glob("*.zip")}
        return here | {name for name in self._sync.names() if KEPT.fullmatch(name)}

    def _forget_superseded(self) -> None:
        assert self._sync is not None
        wanted = self._wanted()
        gone = [name for name in self._names() if (found := KEPT.fullmatch(name)) and int(found[1]) not in wanted]
        for name in gone:
            (self.folder / name).unlink(missing_ok=True)
        self._sync.forget(gone)

    # -------------------------------------------------------------------------------------------------------- the disk

    def _clear_unless_ours(self) -> None:
        """A folder is gone on with only where its own session was the last to send."""
        read = None
        with contextlib.suppress(CorruptCheckpoint):
            read = read_uploads(open_store(f"{self._store.url}/{layout.ARTIFACTS.rstrip('/')}"))
        writer = list(read[0].writer) if read is not None else None
        try:
            mark = json.loads((self._state_dir / _MARK).read_text())
        except (FileNotFoundError, ValueError):
            mark = None
        if mark != {"url": self._store.url, "writer": writer}:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _mark(self, token: Token) -> None:
        write_local(self._state_dir / _MARK, {"url": self._store.url, "writer": list(token)})

    def _write_config(self, versions: Mapping[str, Any]) -> None:
        config = {
            "run_id": self._config.run_id,
            "run_file": self._config.model_dump(mode="json"),
            "identity": self._config.identity(),
            "versions": dict(versions),
        }
        write_whole(self.folder / CONFIG, (json.dumps(masked_values(config), indent=1) + "\n").encode())


def _hyperparameters(config: RunFile) -> dict[str, Any]:
    environment = config.environment
    found: dict[str, Any] = {"algorithm": config.algorithm or config.entry_point, "seed": config.seed}
    if environment is not None:
        found |= {"environment": environment.id, "n_envs": environment.n_envs, "policy": config.policy}

    def flatten(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                flatten(f"{prefix}{key}.", value)
            else:
                found[f"{prefix}{key}"] = value

    flatten("", config.hyperparameters)
    return found


class Tee:
    """What this process says, into a file too: what goes through ``sys.stdout`` and ``sys.stderr``."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1, errors="replace")
        self._file.write(f"-- {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {platform.node()} process {os.getpid()}\n")
        self._before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (_Both(stream, self._file) for stream in self._before)

    def note(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(f"{masked(text.rstrip())}\n")

    def close(self) -> None:
        """As it was before."""
        for name, stream in zip(("stdout", "stderr"), self._before, strict=True):
            if isinstance(getattr(sys, name), _Both):
                setattr(sys, name, stream)
        self._file.close()


class _Both:
    """A stream that also writes to a file."""

    def __init__(self, stream: IO[str], file: IO[str]) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # a full disk, or closed: the stream itself goes on
            self._file.write(masked(text))
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


__all__ = ["EVENTS", "FOLDER", "Artifacts"]
