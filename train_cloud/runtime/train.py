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
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import FileLock, Timeout

from train_cloud import child_process, hash_seed
from train_cloud.artifacts import wandb
from train_cloud.artifacts.experiment import enter_config, enter_result
from train_cloud.checkpoint import Committer, read_manifest, restore, signing
from train_cloud.checkpoint.commit import Committed
from train_cloud.checkpoint.survey import cure
from train_cloud.config import RunFile, load_run_file, variables
from train_cloud.config.code import mark_as_cache
from train_cloud.config.current import training
from train_cloud.errors import (
    EXIT_COMPLETED,
    ConditionFailed,
    CorruptCheckpoint,
    Fenced,
    HeadMissing,
    InputError,
    Interrupted,
    StoreError,
    StoreUnavailable,
    TrainCloudError,
)
from train_cloud.platforms.ec2 import units
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.platforms.ec2.parameters import read_secrets
from train_cloud.report.preflight import CODE_FILES, check_standing, schedule_change
from train_cloud.run import exit_record, layout
from train_cloud.run.head import Lease, Outcome, conclude, read_head, reopen
from train_cloud.run.session import (
    Session,
    SessionRecord,
    begin_session,
    end_session,
    local_session,
    now,
    read_progress,
    read_sessions,
    this_process,
    write_progress,
)
from train_cloud.runtime import reproducibility
from train_cloud.runtime.artifacts import EVENTS, FOLDER, Artifacts
from train_cloud.runtime.code_folder import CodeFolder
from train_cloud.runtime.commit_estimate import CommitEstimate
from train_cloud.runtime.deadline import Stop
from train_cloud.runtime.evaluations import DUE, RESULTS, Evaluations, command
from train_cloud.runtime.evidence import Evidence
from train_cloud.runtime.heartbeat import Heartbeat, last_alive
from train_cloud.runtime.initial_model import begin_with
from train_cloud.runtime.limits import Limits, begin_limits, describe_machine
from train_cloud.runtime.masking import hide_variables
from train_cloud.runtime.predecessor import note_reached, reached_before, reached_here, taken_from
from train_cloud.runtime.proof_session import Trial, graphs_beside
from train_cloud.runtime.replay import Replay
from train_cloud.safe_text import masked
from train_cloud.snapshot import ENDED_EARLY, Part, Snapshot
from train_cloud.store import PATIENCE, ObjectStore, open_store
from train_cloud.whole_file import write_local

if TYPE_CHECKING:
    from stable_baselines3.common.logger import KVWriter

    from train_cloud.sb3.build import Built


log = logging.getLogger(__name__)

_GROUP = "TRAIN_CLOUD_AUTOSCALING_GROUP"
_RUN_ID = "TRAIN_CLOUD_RUN_ID"
_STARTS = "starts.json"
_TRIAL = "environment_trial"
_BEGUN_WITH = "initial_model"
_MAX_STARTS = 20
_REPORT_SECONDS = 60.0
_TRACEBACK_CHARACTERS = 4000
_LAST_WAIT_SECONDS = 60.0
_BECAUSE_CHARACTERS = 400


def train(
    run_file: str | Path,
    *,
    store: str,
    state_dir: Path | None = None,
    overrides: Sequence[str] = (),
    go_on: bool = False,
    several: Callable[[RunFile], int] | None = None,
) -> int:
    """Train ``run_file`` from where the store's head is until it ends or is stopped.

    While it trains, SIGINT and SIGTERM stop it after a commit; so call it from the main thread. What environments
    draw from sets of names is the same in each session only where ``PYTHONHASHSEED`` is set; the command sets it.

    :param store: root of the store, ``s3://bucket/prefix`` or a local folder
    :param state_dir: the session's local files; ``.train-cloud/<run_id>`` below the working directory by default
    :param go_on: train on where a callback had ended the run before its total
    :param several: trains a run file with several seeds; such a file is refused without it, and on a worker
    :return: 0; the outcome is in the head
    :raises InputError: refused before anything was written
    :raises Interrupted: stopped by a signal; all is committed
    :raises Fenced: a newer worker has the run
    """
    run_file = Path(run_file)
    on_worker = _GROUP in os.environ
    boot_id = units.boot_id() if on_worker else f"process-{os.getpid()}"
    try:
        variables.check_all()
        config = load_run_file(run_file, overrides)
    except InputError as error:
        if on_worker and state_dir is not None:
            _fail_unread(open_store(layout.run_url(store, os.environ[_RUN_ID])), state_dir, boot_id, str(error))
        raise
    if config.seeds is not None:
        fix = "several runs: write a run file for each with train-cloud expand, and launch these"
        if not on_worker and several is not None:
            return several(config)
        if on_worker and state_dir is not None:
            _fail_unread(open_store(layout.run_url(store, config.run_id)), state_dir, boot_id, f"seeds: {fix}")
        raise InputError("seeds", list(config.seeds), fix)
    if hash_seed.VARIABLE in config.env:
        hash_seed.fix(config.env[hash_seed.VARIABLE])
    os.environ.update(config.env)
    hide_variables(config, warn=True)
    state_dir = (state_dir or Path(".train-cloud") / config.run_id).absolute()
    _check_writable(state_dir)
    mark_as_cache(state_dir)
    stop = Stop(state_dir, boot_id)
    patience = variables.number(variables.STORE_PATIENCE, PATIENCE)
    run_store = open_store(layout.run_url(store, config.run_id), patience=patience)
    with _alone(state_dir):
        alive = last_alive(state_dir)  # before this session shows signs of life
        out = state_dir / FOLDER
        # The user's code may change the working directory.
        root = store if "://" in store else str(Path(store).absolute())
        playing = command(run_file.absolute(), store=root, out=out, events=out / EVENTS, overrides=overrides)
        evaluations = None
        if config.evaluation is not None and config.evaluation.mode == "process":
            evaluations = Evaluations(playing, out / RESULTS, 60.0 * config.evaluation.max_minutes)
        session = _Session(
            config, run_store, state_dir, stop, run_file.read_text(), boot_id, on_worker, evaluations, go_on
        )
        if on_worker:
            _refuse_endless_starts(state_dir, boot_id, run_store.url)
            read = read_head(run_store)
            if read is not None and read[0].outcome is not None:
                log.info("nothing to do: the run has the outcome %s", read[0].outcome)
                return EXIT_COMPLETED
        try:
            if on_worker:
                session.begin()  # early, so that a boot that fails later has left its start, and may end the run
            os.environ.update(_secrets(config, on_worker))
            hide_variables(config)
            signing.use(config.signing_key)
            if config.wandb is not None:
                wandb.check(config.wandb, os.environ)
            return session.run(check_standing(store, config, alive=alive, go_on=go_on))
        except BaseException as error:
            # No restart mends it, and the reason must outlive the machine. Over a damaged head nobody writes.
            if on_worker and isinstance(error, InputError | HeadMissing):
                conclude(run_store, "failed", str(error), session=session.number, owner=platform.node())
            session.ended_by(error)
            raise
        finally:
            session.close()


class _Session:
    """A session's work. Its public methods and attributes are what the callback asks of its host (``learn.Host``)."""

    def __init__(
        self,
        config: RunFile,
        store: ObjectStore,
        state_dir: Path,
        stop: Stop,
        run_yaml: str,
        boot_id: str,
        on_worker: bool,
        evaluations: Evaluations | None,
        go_on: bool,
    ) -> None:
        self.save_frequency = config.save_frequency
        self.max_seconds_at_risk = config.max_seconds_at_risk
        self.total_timesteps = config.total_timesteps
        self.schedule_timesteps = config.schedule_timesteps
        self.evaluate_every = config.evaluation.every if config.evaluation is not None else None
        self.restored: Snapshot | None = None
        self.train_on = go_on
        self._config = config
        self._store = store
        self._state_dir = state_dir
        self._stop = stop
        self._run_yaml = run_yaml
        self._boot_id = boot_id
        self._on_worker = on_worker
        self._evaluations = evaluations
        self._before_here = note_reached(state_dir, store.url)  # which the heartbeat begins to count anew
        self._heartbeat = Heartbeat(
            state_dir,
            config.total_timesteps,
            every_second=self._every_second,
            on_silence=lambda words: exit_record.stand_still(state_dir, words),
            bar=config.entry_point is None and not any("ProgressBar" in name for name in config.callbacks),
        )
        # Asked at every step of the environments: not one call more than it takes.
        trial = Trial.from_environment()
        self._proving = trial is not None
        self._graphs = graphs_beside(trial.digests) if trial is not None else None
        self.step: Callable[[int], None] = self._heartbeat.step if trial is None else trial.step(self._heartbeat.step)
        self.stop_deadline = stop.deadline
        self._limits: Limits | None = None
        self._first_timestep = self._resumed_at = 0
        self._artifacts = Artifacts(
            config, store, state_dir, hurry=self._in_a_hurry, timesteps=lambda: self._heartbeat.timesteps
        )
        self.episode, self.stalled = self._artifacts.episode, functools.partial(self._artifacts.measured, "stall_ms")
        self._commit_estimate = CommitEstimate()
        self._head_began = 0.0
        self._received_bytes = 0
        self._code: CodeFolder | None = None
        self._script: Callable[[], object] = lambda: None
        self._machine: dict[str, Any] = {}
        self._evidence = Evidence(trial.digests if trial is not None else None)
        self._committing: Mapping[str, Any] = {}
        self._replay = Replay(config, store.url, state_dir, self._lock, self._on_replay)
        stop.on_request = self._replay.stop
        self._trial: Mapping[str, Any] | None = None
        self._begun_with: Mapping[str, Any] | None = None
        self._finished = False
        self._reporter: threading.Thread | None = None
        self._reported = time.monotonic()
        self._last_commit: dict[str, Any] = {}
        self._session: Session | None = None
        self._taken = self._ended = False
        self._early: str | None = None
        """How a callback ended the training before its total."""
        self._at_risk = self._repeated = 0
        self._heartbeat.start()

    # ------------------------------------------------------------------------------------------------- the session

    @property
    def number(self) -> int:
        """The session's number; 0 before it has one."""
        return self._session.number if self._session is not None else 0

    def close(self) -> None:
        self._replay.close()
        self._heartbeat.stop()
        if self._evaluations is not None:
            self._evaluations.end()
        self._artifacts.close()
        for child in multiprocessing.active_children():
            child.kill()  # environments that ignore SIGTERM; the interpreter would wait for them for ever

    def ended_by(self, error: BaseException) -> None:
        """Leave word in the store of what ended the session, unless that stands there already or nobody answers."""
        if self._session is None or self._ended or isinstance(error, StoreUnavailable | Interrupted):
            return
        why = f"{type(error).__name__}: {error}".split("\n", 1)[0][:_BECAUSE_CHARACTERS]
        with contextlib.suppress(StoreError, CorruptCheckpoint):
            # The end of a session shows that its run has had a head.
            if self._taken or read_head(self._store) is not None:
                self._end("fenced" if isinstance(error, Fenced) else "failure", why)

    def run(self, facts: Mapping[str, Any]) -> int:
        """:param facts: of the newest checkpoint; empty where there is none
        :return: exit code
        """
        self._code = CodeFolder(self._config, facts.get(CODE_FILES))
        self._identity()
        with import_path(self._config), training(self._config, self._artifacts.folder):
            reproducibility.pin_instructions()
            built = self._built(facts)  # before anything is taken: bad input leaves no trace
            try:
                if self._session is None:
                    _write_launch(self._store, self._config, self._run_yaml)
                    self.begin()
                self._take()
                return self._train(built)
            finally:
                if built is not None:
                    built.close()

    def _built(self, facts: Mapping[str, Any]) -> Built | None:
        try:
            return self._build(facts)
        except InputError:
            raise
        except Exception:  # no bad input: it may go better the next time, and counts
            if self._on_worker:
                self._take()
                self._record_failure()
            raise

    def _build(self, facts: Mapping[str, Any]) -> Built | None:
        """Model, environments and callbacks, or None for a script, which makes its own."""
        from train_cloud.sb3.environment import StateTrial

        # Its processes play while this one loads torch.
        begun = StateTrial(self._config, facts.get(_TRIAL)) if self._config.environment is not None else None
        from train_cloud.sb3 import accounting
        from train_cloud.sb3.build import build_callbacks, build_model, check_device
        from train_cloud.sb3.script import prepare

        accounting.record_to(self._graphs)
        if self._config.evaluation is not None:
            from train_cloud.evaluate.play import check

            check(self._config)
        if self._config.entry_point is not None:
            check_device(self._config.device)
            self._script = prepare(self._config)
            return None
        self._callbacks = build_callbacks(self._config)
        built = build_model(self._config, facts.get(_TRIAL), begun)
        self._trial = built.trial
        self._begun_with = facts.get(_BEGUN_WITH)
        if self._config.initial_model is not None and not facts:
            try:
                self._begun_with = begin_with(built.model, self._config.initial_model, self._store.url)
            except BaseException:
                built.close()
                raise
        return built

    def begin(self) -> None:
        """Take a number, or go on with the one that this boot has."""
        details: dict[str, Any] = {"run_file": self._config.model_dump(mode="json"), "host": platform.node()}
        before = reached_here(self._state_dir, self._store.url)
        if before is not None:
            details["predecessor"] = before
        try:
            read = read_head(self._store)
        except CorruptCheckpoint:
            read = None  # which is said when the run is to be taken
        instance_id = f"{socket.gethostname()}-{os.getpid()}"
        if not self._on_worker:  # there the same session may have one process after the other
            details["process"] = this_process()
        else:
            metadata = Metadata()
            instance_id = metadata.instance_id()
            if local_session(self._state_dir, self._boot_id) is None:
                details |= describe_machine(self._store, metadata, instance_id)
        self._session = begin_session(
            self._store,
            self._state_dir,
            instance_id=instance_id,
            boot_id=self._boot_id,
            details=details,
            persist=self._on_worker,
            above=read[0].session if read is not None else 0,
        )
        self._limits = begin_limits(self._config.limits, self._store, self._session, on_worker=self._on_worker)

    def _take(self) -> None:
        """Own the run, from here on, until somebody newer does."""
        assert self._session is not None
        if not self._on_worker:
            reopened = reopen(self._store)
            if reopened is not None and reopened.outcome is not None:
                raise TrainCloudError(f"the run has the outcome {reopened.outcome} since")
        before = exit_record.last_ending(self._state_dir, self._boot_id, self._session.restart)
        self._lease = Lease.take(
            self._store,
            self._session.token,
            self._session.instance_id,
            max_attempts=int(variables.number(variables.MAX_ATTEMPTS, 5)) if self._on_worker else None,
            failed=before.failed,
            failure=before.words,
        )
        self._taken = True
        (self._state_dir / _STARTS).unlink(missing_ok=True)
        head, overtaken = self._lease.head, self._lease.before
        if overtaken is not None and overtaken.session not in (self.number, self._before_here):
            said = taken_from(self._store, overtaken)
            if said is not None:
                log.warning("%s", said)
        if head.outcome is not None:
            raise TrainCloudError(f"the run has the outcome {head.outcome}: {head.reason}")
        self._manifest = read_manifest(self._store, head.manifest) if head.manifest else None
        self._resumed_at = self._first_timestep = head.timesteps
        self._heartbeat.resume(head.timesteps)
        if self._session.restart:  # the session began before this process did
            reported = read_progress(self._store, self._session) or {}
            reached = reached_before(self._state_dir, self._session)
            self._first_timestep = reported.get("first_timestep", head.timesteps)
            self._repeated = reported.get("repeated", 0) + max(0, (reached or 0) - head.timesteps)
        self._committer = Committer(
            self._store,
            self._lease,
            self._manifest,
            policy=self._config.preservation,
            hold=self._held,
            along=self._along,
            facts=self._facts,
            before_head=self._before_head,
            on_commit=self._on_commit,
            hurry=lambda: self._stop.deadline() is not None,
        )

    def _train(self, built: Built | None) -> int:
        from train_cloud.sb3.callback import TrainingStopped

        try:
            self._check_limits()
            if self._stop.deadline() is not None:
                return self._stopped()
            reproducibility.pin_threads(self._manifest.facts["machine"] if self._manifest else None)
            self._machine = reproducibility.describe()
            self._begin_artifacts()
            self._restore()
            self._run_script() if built is None else self._run_model(built)
        except TrainingStopped:
            return self._stopped()
        except (Fenced, Interrupted):
            raise
        except Exception as error:  # whatever the user's code raises: recorded for status, and raised again
            if isinstance(error, StoreUnavailable) and self._stop.reason in ("notice", "signal"):
                raise Interrupted(
                    f"interrupted ({self._stop.reason}) while the store does not answer: left at "
                    f"{self._lease.head.timesteps} timesteps, the last commit: {error}"
                ) from error
            # Ours says all there is; of the user's code's the place counts.
            own = str(error) if isinstance(error, TrainCloudError) else None
            self._record_failure(own, more=self._cure(error))
            raise
        if self._lease.head.outcome is None:
            self._lease.conclude("completed", self._early)
        log.info("completed at %d timesteps%s", self._lease.head.timesteps, f": {self._early}" if self._early else "")
        self._send_all(last=True)
        self._enter("completed")
        self._end("completed" if self._early is None else "callback")
        return EXIT_COMPLETED

    def _restore(self) -> None:
        """Begin to read the checkpoint; its rows are read when the callback asks for them."""
        self._records = read_sessions(self._store)
        known = self._manifest.facts if self._manifest is not None else None
        self.digests = self._evidence.begin(
            self._state_dir, {"run_id": self._config.run_id, **self._identity()}, known, self._records
        )
        if self._manifest is None:
            log.info("session %d begins the run", self.number)
            return
        self._heartbeat.phase("restore")
        differing = reproducibility.differences(self._manifest.facts["machine"], self._machine)
        differing += filter(None, [schedule_change(self._manifest.facts, self._config)])
        if differing:
            self._evidence.object("; ".join(differing))
        if self._evaluations is not None:
            self._evaluations.resume(self._manifest)
        early = self._manifest.facts.get(ENDED_EARLY)
        self.train_on = self.train_on or (early is not None and self.total_timesteps > early["total_timesteps"])
        self.restored = restore(self._store, self._manifest, received=self._received)
        log.info("session %d goes on at %d timesteps", self.number, self.restored.timesteps)

    def _run_model(self, built: Built) -> None:
        from train_cloud.sb3.callback import TrainingStopped, learn
        from train_cloud.sb3.script import left_early

        try:
            learn(built.model, self, self._callbacks, built.choice)
        except SystemExit as error:
            if self._stop.deadline() is not None:
                raise TrainingStopped from error
            left = left_early(error)
            assert left is not None  # in the middle of a training, leaving is never its end
            raise left from error

    def _run_script(self) -> None:
        from train_cloud.config.current import training
        from train_cloud.sb3.callback import TrainingStopped, hosted_by
        from train_cloud.sb3.script import left_early

        try:
            with hosted_by(self), training(self._config):
                self._script()
        except SystemExit as error:
            if not self._finished and self._stop.deadline() is not None:  # by a signal handler of its own
                raise TrainingStopped from error
            left = left_early(error, trained=self._finished)
            if left is not None:
                raise left from error
        if not self._finished:
            self._refuse_return()

    def _refuse_return(self) -> None:
        """The script has returned before its training was over."""
        from train_cloud.sb3.callback import TrainingStopped

        if self._stop.deadline() is not None:  # it has caught what ended the training
            raise TrainingStopped
        at = self._heartbeat.timesteps
        if at:
            raise TrainCloudError(
                f"the script returned at {at} of {self._config.total_timesteps} timesteps, before learn() did: it must "
                "not catch what learn() raises"
            )
        raise InputError(
            "entry_point",
            self._config.entry_point,
            "it returned without training: pass callback=train_cloud.checkpoints() to learn()",
        )

    def _cure(self, error: Exception) -> str:
        """What a person can do about it, as far as that is known here; said, and returned."""
        newest = self._lease.head.manifest
        if not isinstance(error, CorruptCheckpoint) or newest is None:
            return ""
        words = ""
        with contextlib.suppress(StoreError):
            words = cure(self._store, newest)
            log.error("%s", words)
        return words

    def _record_failure(self, words: str | None = None, more: str = "") -> None:
        """Why this attempt ends. The exception that is being handled goes on, whatever the store says to this.

        :param words: by default that exception's traceback
        :param more: what follows them
        """
        words = words or masked(traceback.format_exc())[-_TRACEBACK_CHARACTERS:]
        reason = f"{words.rstrip()}\n{more}" if more else words
        self._heartbeat.phase("store")
        with contextlib.suppress(TrainCloudError, OSError):
            self._committer.wait(time.monotonic() + _LAST_WAIT_SECONDS)  # what is under way is work that was done
        try:
            self._lease.record_failure(reason)
        except (StoreError, Fenced) as error:
            log.warning("the failure is not recorded: %s", error)
        self._artifacts.note(reason)
        with contextlib.suppress(StoreError, Fenced):  # finish sends it too
            limit = time.monotonic() + _LAST_WAIT_SECONDS
            self._artifacts.everything(until=lambda: limit)

    def _stopped(self) -> int:
        if self._stop.reason != "limit":
            self._interrupted()
        self._begin_artifacts()
        if self._lease.head.manifest is not None:
            self._upload_final(restore(self._store, read_manifest(self._store, self._lease.head.manifest)))
            self._artifacts.keep_all()
            self._write_progress()
        self._send_all(last=True)
        self._lease.conclude("stopped", self._stop.limit)
        log.info("stopped at %d timesteps: %s", self._lease.head.timesteps, self._stop.limit)
        self._enter("stopped")
        self._end("limit")
        return EXIT_COMPLETED

    def _interrupted(self) -> NoReturn:
        assert self._session is not None
        try:
            self._end(self._stop.reason or "signal")
            self._send_all(last=True)
        except StoreUnavailable as error:  # the commit is what counts
            log.warning("the session's end is not recorded: %s", error)
        exit_record.leave(self._state_dir, self._boot_id, self._session.restart)
        raise Interrupted(
            f"interrupted ({self._stop.reason}) with all committed at {self._lease.head.timesteps} timesteps: "
            "the same command goes on from there"
        )

    def _end(self, ended_by: str, because: str | None = None) -> None:
        assert self._session is not None
        if self._machine and self._reported < 0:
            self._write_progress()  # what a replay found since the last commit
        facts: dict[str, Any] = {"ended_by": ended_by}
        if because is not None:
            facts["because"] = because
        if self._taken:
            facts |= {
                "first_timestep": self._first_timestep,
                "last_timestep": self._heartbeat.timesteps,
                "committed_timesteps": self._lease.head.timesteps,
                "repeated": self._repeated,
            }
        outputs = self._code.look() if self._code is not None else []
        if outputs:
            facts["outputs"] = outputs
        end_session(self._store, self._session, **facts)
        self._ended = True

    def _received(self, size: int) -> None:
        assert self._manifest is not None
        self._received_bytes += size
        self._heartbeat.restored(self._received_bytes, self._manifest.bytes())
        if self._stop.deadline() is not None:
            self._interrupted()  # nothing new to commit: the next session restores as well as this one

    # ------------------------------------------------------------------------------------- what the callback asks for

    def save_requested(self) -> bool:
        return self._stop.save_requested()

    def busy(self) -> bool:
        return self._committer.busy

    def commit_seconds(self, new_bytes: int) -> float:
        return self._commit_estimate.seconds(new_bytes)

    def settle(self) -> None:
        """:raises StoreUnavailable: a stop's deadline passed first"""
        while self._committer.busy:
            deadline = self._stop.deadline()
            if deadline is not None:
                self._committer.wait(deadline)
            time.sleep(0.005)
            self._heartbeat.alive()

    def submit(self, snapshot: Snapshot) -> None:
        self._commit_estimate.begin()
        self._committer.submit(self._complete(snapshot))
        if self._proving:
            self.settle()  # so that all sessions of a proof commit at the same steps
        if self._inline() and snapshot.facts["evaluate"]:
            self.settle()
            self._evaluate_inline()

    def finish(self, snapshot: Snapshot) -> None:
        if self._config.evaluation is not None:
            snapshot = replace(snapshot, facts={**snapshot.facts, "evaluate": True})
        snapshot = self._complete(snapshot)
        early = snapshot.facts.get(ENDED_EARLY)
        self._early = None
        if early is not None:
            self._early = f"{early['by']} ended it at {snapshot.timesteps} of {early['total_timesteps']} timesteps"
        self._upload_final(snapshot)
        sent = self._send_all(yielding=True)
        # An evaluation belongs to the run: it is not completed before, or a machine that dies now would leave none.
        evaluated = self._config.evaluation is not None
        outcome: Outcome | None = "completed" if self._config.entry_point is None else None
        if (
            snapshot.timesteps != self._lease.head.timesteps
            or self._manifest is None
            or self._lease.head.manifest is None
        ):
            self._committer.submit(snapshot, outcome=None if evaluated or not sent else outcome, reason=self._early)
            self.settle()
        elif self._evaluations is not None:
            self._evaluations.committed(snapshot.timesteps)
        if evaluated:
            self._last_evaluations()
        kept = self._artifacts.keep_all(self._stop.deadline() if self._in_a_hurry() else None)
        if self._artifacts.not_exported is not None:
            self._write_progress()
        if not (kept and self._send_all()) and self._lease.head.outcome is None:
            from train_cloud.sb3.callback import TrainingStopped

            raise TrainingStopped  # the next session restores this state, and sends the rest
        if outcome is not None and self._lease.head.outcome is None:
            self._lease.conclude(outcome, self._early)
        self._finished = True

    def _last_evaluations(self) -> None:
        """What is still to be evaluated, the end's own included. A notice breaks it off; the next session goes on."""
        self._heartbeat.phase("evaluate")
        if self._evaluations is None:
            self._evaluate_inline()
            return
        self._evaluations.wait(lambda: self._stop.deadline() is not None, self._heartbeat.alive)
        if self._evaluations.pending() and self._stop.reason != "limit":
            from train_cloud.sb3.callback import TrainingStopped

            raise TrainingStopped
        self._write_progress()

    def _inline(self) -> bool:
        return self._config.evaluation is not None and self._config.evaluation.mode == "inline"

    def _evaluate_inline(self) -> None:
        from train_cloud.runtime.evaluate import evaluate_checkpoint

        assert self._lease.head.manifest is not None
        manifest = read_manifest(self._store, self._lease.head.manifest)
        out, events = self._artifacts.folder, self._artifacts.events
        evaluate_checkpoint(self._config, self._store, manifest, out=out, events=events, record=True)

    def phase(self, name: str) -> None:
        if name == "steps":
            self._finished = False  # a script may call learn() again
        self._heartbeat.phase(name)

    def outputs(self) -> Sequence[KVWriter]:
        assert self._session is not None
        environment = self._config.environment
        before = [record for record in self._records if record.number < self._session.number]
        return self._artifacts.outputs(environment.id if environment else "", _interruptions(before))

    def exactness(self, exact: bool, because: str) -> None:
        if exact and self._inline():
            exact, because = False, "evaluation.mode is inline"
        if not exact:
            self._evidence.object(because)
        self._write_progress()

    # --------------------------------------------------------------------------------------------------- what is stored

    def _complete(self, snapshot: Snapshot) -> Snapshot:
        """With what the worker knows: versions, machine, identity."""
        facts = {
            **snapshot.facts,
            "run_id": self._config.run_id,
            "identity": self._identity(),
            "code_folder": str(self._config.code.folder) if self._config.code.folder is not None else None,
            "machine": self._manifest.facts["machine"] if self._manifest else self._machine,
        }
        if self._trial is not None:
            facts[_TRIAL] = self._trial
        if self._evaluations is not None:
            if facts["evaluate"]:
                self._evaluations.due(snapshot.timesteps)
            facts[DUE] = self._evaluations.pending()
        if self._begun_with is not None:
            facts[_BEGUN_WITH] = self._begun_with
        if self._manifest and "forked_from" in self._manifest.facts:
            facts["forked_from"] = self._manifest.facts["forked_from"]
        return replace(snapshot, facts=facts)

    def _along(self) -> dict[str, Part]:
        """Parts that are made beside the training. Listing what is installed takes half a second, once."""
        return {
            layout.LOGGED: self._artifacts.logged(),
            "lock": Part(blob=self._lock().encode()),
            "run": Part(blob=self._run_yaml.encode()),
            layout.CODE: self._code.part() if self._code is not None else Part(),
        }

    def _facts(self, snapshot: Snapshot) -> Mapping[str, Any]:
        self._committing = self._evidence.facts(snapshot)
        return self._committing

    @functools.cache  # noqa: B019 - one session a process
    def _identity(self) -> dict[str, Any]:
        return self._config.identity()

    @functools.cache  # noqa: B019 - one session a process
    def _lock(self) -> str:
        return reproducibility.lock()

    def _held(self) -> list[int]:
        """Timesteps of checkpoints that somebody reads."""
        evaluated = self._evaluations.pending() if self._evaluations is not None else []
        return [*self._replay.held(), *evaluated]

    def _on_replay(self, proof: Mapping[str, Any] | None, because: str) -> None:
        """A fresh process came to the same results, or to others; from its thread."""
        if proof is not None:
            self._evidence.prove(proof)
        else:
            self._evidence.object(because)
        self._reported = float("-inf")  # the next second's progress tells it

    def _before_head(self) -> None:
        self._head_began = time.monotonic()
        self._at_risk = max(self._at_risk, self._heartbeat.timesteps - self._lease.head.timesteps)

    def _on_commit(self, committed: Committed) -> None:
        swap = time.monotonic() - self._head_began
        self._commit_estimate.note(committed.sent_bytes, committed.seconds - swap, swap)
        recording = self._evidence.recording()
        self._evidence.committed(self._committing)
        if self._evidence.exact:
            self._replay.committed(committed.head, self._committing, recording)
        self._artifacts.committed(committed.head.timesteps, committed.head.manifest)
        self._artifacts.measured("commit_seconds", committed.seconds)
        self._last_commit = {"commit_seconds": committed.seconds, "sent_bytes": committed.sent_bytes}
        if self._evaluations is not None:
            self._evaluations.committed(committed.head.timesteps)
        self._write_progress()

    def _write_progress(self) -> None:
        self._reported = time.monotonic()
        assert self._session is not None
        try:
            write_progress(
                self._store,
                self._session,
                first_timestep=self._first_timestep,
                timesteps=self._heartbeat.timesteps,
                committed_timesteps=self._lease.head.timesteps,
                steps_per_second=self._heartbeat.steps_per_second(),
                **self._evidence.progress(),
                replay=self._replay.said,
                at_risk=self._at_risk,
                repeated=self._repeated,
                **self._last_commit,
                **self._evaluated(),
                **self._not_exported(),
                **self._priced(),
            )
        except StoreError as error:
            log.warning("progress not reported: %s", error)

    def _enter(self, outcome: Outcome | None) -> None:
        """In the files of the experiment that the run belongs to, if it does.

        :param outcome: None at the beginning
        """
        experiment, run_id = self._config.experiment, self._config.run_id
        if experiment is None:
            return
        root = self._store.url.removesuffix(f"/runs/{run_id}")
        try:
            if outcome is None:
                enter_config(root, experiment, run_id, self._config.model_dump(mode="json", exclude={"secrets"}))
                return
            head = self._lease.head
            manifest = read_manifest(self._store, head.manifest) if head.manifest is not None else None
            result = {
                "outcome": outcome,
                "reason": head.reason,
                "timesteps": head.timesteps,
                "seed": self._config.seed,
                "episode_return": manifest.episode_return if manifest is not None else None,
                **self._evaluated(),
            }
            enter_result(root, experiment, run_id, result)
        except StoreError as error:
            log.warning("the files of the experiment %s are not up to date: %s", experiment, error)

    def _begin_artifacts(self) -> None:
        if self._artifacts.begun:
            return
        self._enter(None)
        head, manifest = self._lease.head, self._manifest
        there = restore(self._store, manifest, parts={layout.LOGGED}).parts if manifest is not None else {}
        self._artifacts.begin(head.token, head.manifest, self._resumed_at, self._machine, there.get(layout.LOGGED))

    def _send_all(self, *, last: bool = False, yielding: bool = False) -> bool:
        """Artifacts, all of them; when somebody waits for this machine, as many as there is time for.

        :param last: nothing is logged any more
        :param yielding: leave the line to a commit as soon as it is in a hurry
        :return: whether all are sent
        """
        self._heartbeat.phase("store")
        if last:
            self._artifacts.finish_wandb(self._stop.deadline() if self._in_a_hurry() else None)
        return self._artifacts.everything(
            until=lambda: self._stop.deadline() if self._in_a_hurry() and not yielding else None,
            yielding=yielding,
            alive=self._heartbeat.alive,
        )

    def _in_a_hurry(self) -> bool:
        """Somebody waits for this machine; a limit of the run's own does not."""
        return self._stop.reason in ("notice", "signal")

    def _upload_final(self, snapshot: Snapshot) -> None:
        """The final model lies in the store before the outcome says that it does."""
        from train_cloud.sb3.export import write_export

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
        self._artifacts.final(folder)

    # ------------------------------------------------------------------------------------------------------------
    # limits

    def _evaluated(self) -> dict[str, Any]:
        latest = self._evaluations.latest if self._evaluations is not None else None
        return {"evaluation": latest} if latest is not None else {}

    def _not_exported(self) -> dict[str, Any]:
        """For the progress: which kept checkpoints have no model, and why."""
        found = self._artifacts.not_exported
        return {"not_exported": found} if found is not None else {}

    def _every_second(self) -> None:
        self._check_limits()
        self._stop.look()
        if self._evaluations is not None:
            if self._stop.deadline() is not None and self._stop.reason != "limit":
                self._evaluations.end()  # the processor is the commit's now
            else:
                self._evaluations.poll()
        reporting = self._reporter is not None and self._reporter.is_alive()
        if self._machine and not reporting and time.monotonic() - self._reported > _REPORT_SECONDS:
            # in a thread of its own: the heartbeat must not wait for a store that does not answer
            self._reporter = threading.Thread(target=self._write_progress, name="train-cloud-report", daemon=True)
            self._reporter.start()

    def _check_limits(self) -> None:
        reached = self._limits.reached() if self._limits is not None else None
        if reached is not None:
            self._stop.at_limit(reached)

    def _priced(self) -> dict[str, Any]:
        """For the progress: a price that could not be read yet when the session began."""
        price = self._limits.price if self._limits is not None else None
        return {"price": price.model_dump()} if price is not None else {}


def _interruptions(before: Sequence[SessionRecord]) -> str:
    """How the sessions before ended, for TensorBoard's text page; empty where there were none."""
    lines = []
    for record in before:
        end = record.end or {}
        reached = end.get("last_timestep", (record.progress or {}).get("timesteps", "?"))
        lines.append(f"- session {record.number}: {end.get('ended_by', 'lost without a word')} at {reached} timesteps")
    return "\n".join(lines)


def _secrets(config: RunFile, on_worker: bool) -> dict[str, str]:
    """On a worker from the parameter store; elsewhere they are variables already.

    :raises InputError: one is not there
    """
    if on_worker:
        return read_secrets(config.secrets)
    for name, parameter in config.secrets.items():
        if name not in os.environ:
            fix = f"set the environment variable {name}: only a worker reads the parameter"
            raise InputError(f"secrets.{name}", parameter, fix)
    return {}


def _fail_unread(store: ObjectStore, state_dir: Path, boot_id: str, reason: str) -> None:
    """On a worker, a run file that cannot be read ends the run: no restart mends it."""
    state_dir.mkdir(parents=True, exist_ok=True)
    owner = platform.node()
    session = begin_session(store, state_dir, instance_id=owner, boot_id=boot_id, details={}, persist=True)
    conclude(store, "failed", reason, session=session.number, owner=owner)


def _write_launch(store: ObjectStore, config: RunFile, run_yaml: str) -> None:
    """On a laptop the trainer itself leaves the run file as launched; on AWS Terraform does, and the worker may not."""
    launch = {"run_id": config.run_id, "launched_by": "train", "launched": now()}
    for key, body in ((layout.RUN_YAML, run_yaml), (layout.RUN_JSON, json.dumps(launch))):
        with contextlib.suppress(ConditionFailed):  # it stands as it was launched first
            store.create(key, body.encode())


def _refuse_endless_starts(state_dir: Path, boot_id: str, url: str) -> None:
    """Before the run is taken no attempt can be counted in its head: a store that never answers must not cost for ever.

    :raises InputError: an exit code that systemd does not restart after, so that ``finish`` is asked
    """
    path = state_dir / _STARTS
    starts = 1
    if path.exists():
        before = json.loads(path.read_text())
        starts += before["starts"] if before["boot_id"] == boot_id else 0
    write_local(path, {"boot_id": boot_id, "starts": starts})
    if starts > _MAX_STARTS:
        raise InputError("TRAIN_CLOUD_STORE", url, f"{_MAX_STARTS} starts could not take the run: see the journal")


def _check_writable(state_dir: Path) -> None:
    """Make the folder of the session's local files.

    :raises InputError: it cannot be made, or nothing can be written there
    """
    probe = state_dir / f".writable-{os.getpid()}"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        why = f"nothing can be written there ({error.strerror})"
        raise InputError("state-dir", str(state_dir), f"{why}: mend that, or give another --state-dir") from error


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    try:
        with FileLock(state_dir / "train.lock", timeout=0):
            yield
    except Timeout:
        raise InputError(
            "state-dir", str(state_dir), "another train-cloud trains here: stop it, or give another --state-dir"
        ) from None


def import_path(config: RunFile) -> contextlib.AbstractContextManager[None]:
    """The user's code folder first on the module path, also in environments' processes."""
    return child_process.code_on_path(config.code.folder)
