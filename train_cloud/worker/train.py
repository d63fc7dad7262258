"""train: one session of a run, from taking it to its last commit.

The order matters: signal handlers and systemd's READY come before the heavy imports, the head is read before anything
is built, the run is taken before anything is trained.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import multiprocessing
import os
import platform
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import FileLock, Timeout

from train_cloud.artifacts import tensorboard
from train_cloud.checkpoint import Committer, Manifest, read_manifest, restore
from train_cloud.checkpoint.commit import Committed
from train_cloud.config import RunFile, load_run_file
from train_cloud.config.current import training
from train_cloud.errors import (
    EXIT_COMPLETED,
    ConditionFailed,
    Fenced,
    InputError,
    Interrupted,
    StoreUnavailable,
    TrainCloudError,
)
from train_cloud.instance.metadata import Metadata
from train_cloud.report.standing import check_standing
from train_cloud.run import layout
from train_cloud.run.head import Lease, Outcome, read_head, reopen
from train_cloud.run.session import Session, begin_session, end_session, now, read_sessions, write_progress
from train_cloud.snapshot import Part, Snapshot
from train_cloud.store import ObjectStore, open_store
from train_cloud.worker import machine, units
from train_cloud.worker.pulse import Pulse
from train_cloud.worker.stop import Stop

if TYPE_CHECKING:
    from stable_baselines3.common.logger import KVWriter


log = logging.getLogger(__name__)

_GROUP = "TRAIN_CLOUD_AUTOSCALING_GROUP"
_OVERRIDES = "TRAIN_CLOUD_OVERRIDES"
_MAX_ATTEMPTS = "TRAIN_CLOUD_MAX_ATTEMPTS"
_TRACEBACK_CHARACTERS = 4000


def train(run_file: Path, *, store: str, state_dir: Path | None = None, overrides: Sequence[str] = ()) -> int:
    """Train ``run_file`` from where the store's head is until it ends or is stopped.

    :param store: root of the store, ``s3://bucket/prefix`` or a local folder
    :param state_dir: the session's local files; ``.train-cloud/<run_id>`` below the working directory by default
    :return: 0; the outcome is in the head
    :raises InputError: refused before anything was written
    :raises Interrupted: stopped by a signal; all is committed
    :raises Fenced: a newer worker has the run
    """
    on_worker = _GROUP in os.environ
    config = load_run_file(run_file, overrides, extra=_launch_overrides())
    os.environ.update(config.env)
    state_dir = (state_dir or Path(".train-cloud") / config.run_id).absolute()
    state_dir.mkdir(parents=True, exist_ok=True)
    boot_id = units.boot_id() if on_worker else f"process-{os.getpid()}"
    stop = Stop(state_dir, boot_id)
    run_store = open_store(layout.run_url(store, config.run_id))

    read = read_head(run_store)
    if read is not None and read[0].outcome is not None and on_worker:
        log.info("nothing to do: the run has the outcome %s", read[0].outcome)
        return EXIT_COMPLETED
    check_standing(store, config)
    if read is not None and read[0].outcome is not None:
        log.info("the run was %s (%s); it goes on", read[0].outcome, read[0].reason)
        reopen(run_store)

    with _alone(state_dir):
        if not on_worker:
            _write_launch(run_store, run_file, config)
        pulse = Pulse(state_dir, config.total_timesteps, every_second=lambda: limits())
        limits: Callable[[], None] = lambda: None  # noqa: E731
        pulse.start()
        try:
            instance_id = _instance_id(on_worker)
            details = {
                "run_file": config.model_dump(mode="json"),
                "host": platform.node(),
                **(_instance_facts() if on_worker else {}),
            }
            session = begin_session(
                run_store, state_dir, instance_id=instance_id, boot_id=boot_id, details=details, persist=on_worker
            )
            lease = Lease.take(
                run_store,
                session.token,
                instance_id,
                max_attempts=int(os.environ.get(_MAX_ATTEMPTS, "5")) if on_worker else None,
            )
            if lease.head.outcome is not None:
                raise TrainCloudError(f"the run has the outcome {lease.head.outcome}: {lease.head.reason}")
            manifest = read_manifest(run_store, lease.head.manifest) if lease.head.manifest else None
            worker = _Session(config, run_store, state_dir, session, lease, manifest, stop, pulse, run_file.read_text())
            limits = worker.check_limits
            return worker.run()
        finally:
            pulse.stop()
            for child in multiprocessing.active_children():
                child.kill()  # environments that ignore SIGTERM; the interpreter would wait for them for ever


class _Session:
    """A session's work. Its public methods and attributes are what the callback asks of its host (``learn.Host``)."""

    def __init__(
        self,
        config: RunFile,
        store: ObjectStore,
        state_dir: Path,
        session: Session,
        lease: Lease,
        manifest: Manifest | None,
        stop: Stop,
        pulse: Pulse,
        run_yaml: str,
    ) -> None:
        self.save_frequency = config.save_frequency
        self.total_timesteps = config.total_timesteps
        self.restored: Snapshot | None = None
        self._config = config
        self._store = store
        self._state_dir = state_dir
        self._session = session
        self._lease = lease
        self._manifest = manifest
        self._stop = stop
        self._pulse = pulse
        self._run_yaml = run_yaml
        self._first_timestep = lease.head.timesteps
        self._hours_before = _hours_before(store, session) if config.limits.hours is not None else 0.0
        self._began = time.monotonic()
        self._events = state_dir / "tensorboard"
        self._sent_events: dict[str, int] = {}
        self._commit_seconds = 5.0
        self._machine: dict[str, Any] = {}
        self._exact: tuple[bool, str] = (True, "")
        self._finished = False
        self._committer = Committer(store, lease, manifest, before_head=self._before_head, on_commit=self._on_commit)

    # ------------------------------------------------------------------------------------------------- the session

    def run(self) -> int:
        """:return: exit code"""
        if self._stop.deadline() is not None:
            self._interrupted()
        try:
            with _import_path(self._config), training(self._config):
                return self._train()
        except Fenced:
            self._end("fenced")
            raise
        except InputError as error:
            self._lease.record_failure(str(error))
            raise
        except Interrupted:
            raise
        except Exception:  # whatever the user's code raises: recorded for status and the attempts, and raised again
            self._lease.record_failure(traceback.format_exc()[-_TRACEBACK_CHARACTERS:])
            raise

    def _train(self) -> int:
        machine.pin_instructions()
        from train_cloud.learn.callback import TrainingStopped

        machine.pin_threads(self._manifest.facts["machine"] if self._manifest else None)
        self._machine = machine.describe()
        self._prepare_events()
        if self._manifest is not None:
            self._pulse.phase("restore")
            self._compare_machines(self._manifest.facts["machine"])
            self.restored = restore(self._store, self._manifest, received=self._received)
            log.info("session %d goes on at %d timesteps", self._session.number, self.restored.timesteps)
        else:
            log.info("session %d begins the run", self._session.number)
        try:
            self._run_script() if self._config.entry_point is not None else self._run_model()
        except TrainingStopped:
            return self._stopped()
        if not self._finished:
            raise InputError(
                "entry_point",
                self._config.entry_point,
                "it returned without training: pass callback=train_cloud.checkpoints() to learn()",
            )
        if self._lease.head.outcome is None:
            self._lease.conclude("completed")
        self._end("completed")
        log.info("completed at %d timesteps", self._lease.head.timesteps)
        return EXIT_COMPLETED

    def _run_model(self) -> None:
        from train_cloud.learn.build import build_callbacks, build_model
        from train_cloud.learn.callback import Checkpoints

        built = build_model(self._config)
        try:
            callbacks = [*build_callbacks(self._config), Checkpoints(self, built.choice)]
            built.model.learn(self._config.total_timesteps, callback=callbacks)
        finally:
            built.close()

    def _run_script(self) -> None:
        from train_cloud.config.current import training
        from train_cloud.learn.build import load_object
        from train_cloud.learn.callback import hosted_by

        assert self._config.entry_point is not None
        main = load_object(self._config.entry_point, "entry_point")
        with hosted_by(self), training(self._config):
            main()

    def _stopped(self) -> int:
        self._push_events()
        if self._stop.reason != "limit":
            self._interrupted()
        self._lease.conclude("stopped", self._stop.limit)
        self._end("limit")
        log.info("stopped at %d timesteps: %s", self._lease.head.timesteps, self._stop.limit)
        return EXIT_COMPLETED

    def _interrupted(self) -> NoReturn:
        self._end(self._stop.reason or "signal")
        raise Interrupted(
            f"interrupted ({self._stop.reason}) with all committed at {self._lease.head.timesteps} timesteps: "
            "the same command goes on from there"
        )

    def _end(self, ended_by: str) -> None:
        end_session(
            self._store,
            self._session,
            ended_by=ended_by,
            first_timestep=self._first_timestep,
            last_timestep=self._pulse.timesteps,
            committed_timesteps=self._lease.head.timesteps,
        )

    def _compare_machines(self, recorded: Mapping[str, Any]) -> None:
        differing = machine.differences(recorded, self._machine)
        if differing:
            self._exact = (False, "; ".join(differing))
            log.warning("not exact from here on: %s", self._exact[1])

    def _received(self, size: int) -> None:
        self._pulse.alive()
        if self._stop.deadline() is not None:
            self._interrupted()  # nothing new to commit: the next session restores as well as this one

    # ------------------------------------------------------------------------------------- what the callback asks for

    def stop_deadline(self) -> float | None:
        return self._stop.deadline()

    def save_requested(self) -> bool:
        return self._stop.save_requested()

    def busy(self) -> bool:
        return self._committer.busy

    def commit_seconds(self) -> float:
        return self._commit_seconds

    def settle(self) -> None:
        """:raises StoreUnavailable: a stop's deadline passed first"""
        while self._committer.busy:
            deadline = self._stop.deadline()
            if deadline is not None:
                self._committer.wait(deadline)
            time.sleep(0.005)
            self._pulse.alive()

    def submit(self, snapshot: Snapshot) -> None:
        self._committer.submit(self._complete(snapshot))

    def finish(self, snapshot: Snapshot) -> None:
        snapshot = self._complete(snapshot)
        self._upload_final(snapshot)
        self._push_events()
        outcome: Outcome | None = "completed" if self._config.entry_point is None else None
        if (
            snapshot.timesteps == self._lease.head.timesteps
            and self._manifest is not None
            and self._lease.head.manifest
        ):
            if outcome is not None:
                self._lease.conclude(outcome)
        else:
            self._committer.submit(snapshot, outcome=outcome)
            self.settle()
        self._finished = True

    def phase(self, name: str) -> None:
        self._pulse.phase(name)

    def step(self, timesteps: int) -> None:
        self._pulse.step(timesteps)

    def outputs(self) -> Sequence[KVWriter]:
        from train_cloud.learn.scalars import SessionTensorBoard

        number = self._session.number * 10_000 + self._session.restart
        return [SessionTensorBoard(self._events, number, self._first_timestep)]

    def exactness(self, exact: bool, because: str) -> None:
        if not exact and self._exact[0]:
            self._exact = (exact, because)
            log.warning("an interruption of this run is not exact: %s", because)
        self._write_progress()

    # --------------------------------------------------------------------------------------------------- what is stored

    def _complete(self, snapshot: Snapshot) -> Snapshot:
        """With what the worker knows: versions, machine, identity."""
        facts = {
            **snapshot.facts,
            "run_id": self._config.run_id,
            "identity": self._identity(),
            "machine": self._manifest.facts["machine"] if self._manifest else self._machine,
        }
        parts = {**snapshot.parts, "lock": Part(blob=self._lock().encode()), "run": Part(blob=self._run_yaml.encode())}
        return replace(snapshot, parts=parts, facts=facts)

    @functools.cache  # noqa: B019 - one session a process
    def _identity(self) -> dict[str, Any]:
        return self._config.identity()

    @functools.cache  # noqa: B019 - one session a process
    def _lock(self) -> str:
        return machine.lock()

    def _before_head(self) -> None:
        if self._stop.deadline() is None:
            self._push_events()  # so that a head never stands without its scalars; at a notice the head goes first

    def _on_commit(self, committed: Committed) -> None:
        self._commit_seconds = max(0.5 * self._commit_seconds, 1.5 * committed.seconds)
        self._write_progress(commit_seconds=committed.seconds, sent_bytes=committed.sent_bytes)

    def _write_progress(self, **facts: Any) -> None:
        exact, because = self._exact
        try:
            write_progress(
                self._store,
                self._session,
                first_timestep=self._first_timestep,
                timesteps=self._pulse.timesteps,
                committed_timesteps=self._lease.head.timesteps,
                steps_per_second=self._pulse.steps_per_second(),
                exact=exact,
                exact_because=because,
                **facts,
            )
        except StoreUnavailable as error:
            log.warning("progress not reported: %s", error)

    def _prepare_events(self) -> None:
        """The scalars of the sessions before, cut at the head: what a killed session logged beyond it is
        logged again.
        """
        shutil.rmtree(self._events, ignore_errors=True)
        self._events.mkdir(parents=True)
        self._sent_events = tensorboard.pull(self._store, self._events)
        tensorboard.cut(self._events, self._first_timestep)

    def _push_events(self) -> None:
        tensorboard.push(self._store, self._events, sent=self._sent_events)

    def _upload_final(self, snapshot: Snapshot) -> None:
        """The final model lies in the store before the outcome says that it does."""
        from train_cloud.learn.export import write_export

        folder = self._state_dir / "final"
        shutil.rmtree(folder, ignore_errors=True)
        environment = self._config.environment
        write_export(
            snapshot,
            folder,
            run_yaml=self._run_yaml,
            lock=self._lock(),
            environment=environment.model_dump(mode="json") if environment else None,
        )
        for path in sorted(folder.iterdir()):
            self._store.put(layout.FINAL + path.name, path.read_bytes())

    # ------------------------------------------------------------------------------------------------------------
    # limits

    def check_limits(self) -> None:
        """Called once a second."""
        hours = self._config.limits.hours
        if hours is None:
            return
        used = self._hours_before + (time.monotonic() - self._began) / 3600
        if used >= hours:
            self._stop.at_limit(f"limits.hours: {hours} instance hours are used")


def _hours_before(store: ObjectStore, session: Session) -> float:
    """Hours of the sessions before this one, from their start to the last sign of them."""
    total = 0.0
    for record in read_sessions(store):
        if record.number >= session.number or "started" not in record.start:
            continue
        last = (record.end or {}).get("ended") or (record.progress or {}).get("at") or record.start["started"]
        total += (datetime.fromisoformat(last) - datetime.fromisoformat(record.start["started"])).total_seconds()
    return total / 3600


def _launch_overrides() -> dict[str, Any]:
    """What the launch sets on top of the run file: Terraform's variables."""
    path = os.environ.get(_OVERRIDES)
    if not path or not Path(path).exists():
        return {}
    content = json.loads(Path(path).read_text())
    if not isinstance(content, dict):
        raise InputError(_OVERRIDES, path, "the file must hold one JSON object")
    return content


def _write_launch(store: ObjectStore, run_file: Path, config: RunFile) -> None:
    """On a laptop the trainer itself leaves the run file as launched; on AWS Terraform does, and the worker may not."""
    for key, body in (
        (layout.RUN_YAML, run_file.read_bytes()),
        (layout.RUN_JSON, json.dumps({"run_id": config.run_id, "launched_by": "train", "launched": now()}).encode()),
    ):
        with contextlib.suppress(ConditionFailed):  # it stands as it was launched first
            store.create(key, body)


def _instance_id(on_worker: bool) -> str:
    return Metadata().instance_id() if on_worker else f"{socket.gethostname()}-{os.getpid()}"


def _instance_facts() -> dict[str, str]:
    metadata = Metadata()
    return {"instance_type": metadata.instance_type(), "availability_zone": metadata.availability_zone()}


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    try:
        with FileLock(state_dir / "train.lock", timeout=0):
            yield
    except Timeout:
        raise InputError(
            "state-dir", str(state_dir), "another train-cloud trains here: stop it, or give another --state-dir"
        ) from None


@contextlib.contextmanager
def _import_path(config: RunFile) -> Iterator[None]:
    """The user's code folder first on the module path, also in environments' processes."""
    if config.code.folder is None:
        yield
        return
    folder = str(config.code.folder)
    before = os.environ.get("PYTHONPATH")
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *([before] if before else [])])
    try:
        yield
    finally:
        sys.path.remove(folder)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
