"""The artifacts of a session: made beside the training, sent within ``sync_seconds``, right again after any end.

All of it goes in a thread of its own, which gives way to an urgent commit. What it has not sent yet of scalars and
tables goes with each commit, so that no head stands without them. Models of kept checkpoints are exported by a process
of their own, from what is committed: nothing here touches the model that trains.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_cloud.artifacts import tables, tensorboard
from train_cloud.artifacts.logged import Logged
from train_cloud.artifacts.sync import FOLDER, Sync, run_sync
from train_cloud.artifacts.system import Machine
from train_cloud.artifacts.uploads import read_uploads
from train_cloud.artifacts.wandb import Wandb
from train_cloud.config import RunFile
from train_cloud.errors import CorruptCheckpoint, Fenced, StoreError, StoreUnavailable
from train_cloud.retry import Retry
from train_cloud.run import layout
from train_cloud.run.head import Reference, Token
from train_cloud.runtime.evaluations import RESULTS
from train_cloud.runtime.kept_models import FINAL_MODEL
from train_cloud.runtime.model_exports import ModelExports
from train_cloud.runtime.session_log import Tee
from train_cloud.safe_text import masked_values
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
_WANDB_SECONDS = 60.0

log = logging.getLogger(__name__)


class Artifacts:
    """:ivar config: the run file, with what was left to the machine once that is known
    :param store: of the run
    :param urgent: whether a commit needs the line: somebody has asked to stop
    """

    def __init__(
        self,
        config: RunFile,
        store: ObjectStore,
        state_dir: Path,
        urgent: Callable[[], bool],
        timesteps: Callable[[], int],
    ) -> None:
        self.folder = state_dir / FOLDER
        self.events = self.folder / EVENTS
        self.config, self._store, self._state_dir = config, store, state_dir
        self._urgent, self._timesteps = urgent, timesteps
        self._sync: Sync | None = None
        self._logged: Logged | None = None
        self._log: Tee | None = None
        self._outputs: tuple[SessionTensorBoard, Table] | None = None
        self._episodes: Episodes | None = None
        self._resumed_at = 0
        self._number = 0
        self._exports = ModelExports(store, state_dir, self.folder, urgent, self.note)
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
        self._resumed_at, self._exports.newest = resumed_at, newest
        self._number = token.session * 10_000 + token.restart
        _clear_unless_ours(self.folder, self._state_dir, self._store)
        self.events.mkdir(parents=True, exist_ok=True)
        self._sync = run_sync(
            self._store, self._state_dir, self.config.run_id, (token.session, token.restart), yields=self._urgent
        )
        self._sync.begin()
        self._sync.restore(lambda name: _NEEDED.fullmatch(name) is not None)
        write_local(self._state_dir / _MARK, {"url": self._store.url, "writer": list(token)})
        self._logged = Logged(self.folder, self._sync.sent)
        if logged is not None:
            self._logged.add(logged)
        tensorboard.cut(self.events, resumed_at)
        for name in TABLES:
            tables.cut(self.folder / name, resumed_at)
        self._sync.now(self._growing())  # from here on what lies there is what these begin with
        self._log = Tee(self.folder / "logs" / f"session-{token.session:06d}.log")
        _write_config(self.folder, self.config, versions)
        if self.config.wandb is not None:
            shown = _hyperparameters(self.config)
            scratch = self._state_dir / "wandb"
            self._wandb = Wandb(self.config.wandb, self.config.run_id, self.folder, scratch, shown)
            self._wandb.committed(resumed_at)
        self._thread = threading.Thread(target=self._run, name="train-cloud-artifacts", daemon=True)
        self._thread.start()

    def outputs(self, environment: str, notices: str) -> tuple[SessionTensorBoard, Table]:
        """Where scalars go.

        :param notices: how the sessions before ended, in words
        """
        from train_cloud.sb3.scalars import Episodes, SessionTensorBoard, Table

        board = SessionTensorBoard(self.events, self._number, self._resumed_at)
        board.add_hyperparameters(masked_values(_hyperparameters(self.config)), {"rollout/ep_rew_mean": 0.0})
        if notices:
            board.add_text("system/interruptions", notices, self._resumed_at)
        staged = self.config.curriculum is not None
        self._episodes = Episodes(self.folder / MONITOR, environment, time.time(), staged=staged)
        self._outputs = (board, Table(self.folder / PROGRESS))
        self._pace = (time.monotonic(), self._timesteps())
        return self._outputs

    @property
    def not_exported(self) -> dict[str, Any] | None:
        """``timesteps`` of kept checkpoints without a model, and ``because``; None while nothing is known to fail."""
        return self._exports.not_exported

    def episode(self, timesteps: int, env: int, episode: Mapping[str, Any]) -> None:
        if self._episodes is not None:
            self._episodes.add(timesteps, env, episode)

    def measured(self, name: str, value: float) -> None:
        """Something that the next sample of ``system/…`` shows the mean of, from any thread."""
        self._sampled.setdefault(f"system/{name}", []).append(value)

    def committed(self, timesteps: int, manifest: Reference | None) -> None:
        self._exports.newest = manifest
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
        self._exports.close()
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
        delayed: Callable[[str | None], None] = lambda because: None,
    ) -> bool:
        """Send all that there is.

        :param until: on ``time.monotonic()``, asked again and again: what is not sent by then waits for the next
            session; None waits for a store that does not answer, as a commit does
        :param yielding: end as soon as a commit is urgent
        :param delayed: called with the reason where the store does not answer, and with None once it does
        :return: whether all is sent
        :raises StoreError: it refuses
        """
        if self._sync is None:
            return True
        if self._outputs is not None:
            self._outputs[0].writer.flush()
        retry = Retry()
        while True:
            alive()
            limit = until()
            try:
                sent = self._sync.everything(urgent=not yielding, until=float("inf") if limit is None else limit)
                delayed(None)
                if sent:
                    _forget_videos(self.folder, self._sync)
                    return not self._sync.check() or self._sync.everything(urgent=not yielding)
                if limit is not None or (yielding and self._urgent()):
                    log.warning("not all artifacts are sent: the next session goes on with that")
                    return False
                if self._sync.failed:
                    log.error("not sent: %s", ", ".join(self._sync.failed))
                    return True  # no later attempt reads them either
            except StoreUnavailable as error:
                limit = until()
                late = limit is not None and not retry.has_time(limit)
                if late or (yielding and self._urgent()):
                    log.warning("not all artifacts are sent: %s", error)
                    return False
                log.warning("artifacts delayed, next try in %.0f s: %s", retry.pause_s, error)
                delayed(str(error))
                retry.pause()

    def final(self, folder: Path) -> None:
        """Take over the exported final model, a folder as ``export`` writes it."""
        there = self.folder / "final"
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(folder, there)
        for suffix in (".zip", ".safetensors"):
            if (folder / f"model{suffix}").exists():
                write_whole(self.folder / f"{FINAL_MODEL}{suffix}", (folder / f"model{suffix}").read_bytes())

    def keep_all(self, until: float | None = None) -> bool:
        """Export the kept checkpoints that are not yet, here and now: the training is over.

        :param until: on ``time.monotonic()``: where that is too soon, nothing is begun
        :return: whether all are there
        """
        return self._sync is None or self._exports.all(self._sync, until)

    # ------------------------------------------------------------------------------------------- beside the training

    def _run(self) -> None:
        assert self._sync is not None
        every = self.config.artifacts.sync_seconds
        machine = Machine()
        due = time.monotonic() + every
        while not self._over.wait(min(_SAMPLE_SECONDS, max(0.05, due - time.monotonic()))):
            self._sample(machine)
            if time.monotonic() < due or self._urgent():
                continue
            try:
                self._exports.look_after(self._sync)
                _forget_videos(self.folder, self._sync)
                self._sync.everything()
            except Fenced as error:  # the commit will find out
                log.warning("artifacts are sent no longer: %s", error)
                return
            except (StoreError, CorruptCheckpoint, OSError) as error:
                log.warning("artifacts not sent, the next try is in %g s: %s", every, error)
            due = time.monotonic() + every

    def _sample(self, machine: Machine) -> None:
        if self._outputs is None or self._urgent():
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
                found[name] = _taken(values)
        self._outputs[0].add_scalars(found, timesteps)


def _taken(values: list[float]) -> float:
    """The mean of what is there, which is taken out; another thread may add to it meanwhile."""
    taken = values[:]
    del values[: len(taken)]
    return sum(taken) / len(taken)


def _clear_unless_ours(folder: Path, state_dir: Path, store: ObjectStore) -> None:
    """A folder is gone on with only where its own session was the last to send."""
    read = None
    with contextlib.suppress(CorruptCheckpoint):
        read = read_uploads(open_store(f"{store.url}/{layout.ARTIFACTS.rstrip('/')}"))
    writer = list(read[0].writer) if read is not None else None
    try:
        mark = json.loads((state_dir / _MARK).read_text())
    except (FileNotFoundError, ValueError):
        mark = None
    if mark != {"url": store.url, "writer": writer}:
        shutil.rmtree(folder, ignore_errors=True)


def _write_config(folder: Path, run_file: RunFile, versions: Mapping[str, Any]) -> None:
    config = {
        "run_id": run_file.run_id,
        "run_file": run_file.model_dump(mode="json"),
        "identity": run_file.identity(),
        "versions": dict(versions),
    }
    write_whole(folder / CONFIG, (json.dumps(masked_values(config), indent=1) + "\n").encode())


def _forget_videos(folder: Path, sync: Sync) -> None:
    """A name says how its episode ended: what an earlier evaluation left may have no successor to replace it."""
    path = folder / RESULTS
    if not path.exists():
        return
    try:
        evaluations = json.loads(path.read_text())["evaluations"]
        shown = {episode["video"] for episode in evaluations[-1]["episodes"]} if evaluations else set()
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return
    sync.forget(
        name for name in sync.names() if _VIDEO.fullmatch(name) and name not in shown and not (folder / name).exists()
    )


def _hyperparameters(config: RunFile) -> dict[str, Any]:
    environment = config.environment
    found: dict[str, Any] = {"algorithm": config.algorithm or config.entry_point, "seed": config.seed}
    if environment is not None:
        found |= {"environment": environment.id, "n_envs": environment.n_envs, "policy": config.chosen_policy}
    if config.architecture is not None:
        found["architecture"] = config.architecture.name

    def flatten(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                flatten(f"{prefix}{key}.", value)
            else:
                found[f"{prefix}{key}"] = value

    flatten("", config.hyperparameters)
    return found


__all__ = ["EVENTS", "FOLDER", "Artifacts"]
