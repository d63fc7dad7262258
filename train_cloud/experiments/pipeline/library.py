"""A pipeline in a program of one's own: its sessions, and one of them trained at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train_cloud.config import Cell, RunFile
from train_cloud.config.experiment import TotalLimits
from train_cloud.config.pipeline import PipelineConfig, PipelineSession, load_pipeline
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.evaluate.results import Evaluation
from train_cloud.experiments.engine import Engine, read_signed
from train_cloud.experiments.pipeline.criteria import judge
from train_cloud.experiments.pipeline.files import final_model
from train_cloud.experiments.pipeline.handover import pin
from train_cloud.experiments.pipeline.progress import Derivation
from train_cloud.experiments.standing import run_store
from train_cloud.platforms.here import here

_DIGEST = 8


@dataclass(frozen=True)
class SessionResult:
    """How a session of a pipeline has ended."""

    session: str
    """Its name."""
    run_id: str
    """Of the run that was trained."""
    status: str
    """``completed``, ``stopped`` at a limit of its own, or ``cancelled``."""
    timesteps: int
    checkpoint: str | None
    """URL of its final model, a zip of Stable-Baselines3 or safetensors; None where it has left none."""
    evaluation: Evaluation | None
    """Of its final model; None where the run file asks for none."""
    meets_success_criteria: bool | None
    """Whether it is completed and meets the pipeline file's criteria; None where that cannot be told."""
    reason: str | None
    """Why it does not."""


@dataclass(frozen=True)
class _One:
    """A single run, as the engine takes it."""

    experiment: str
    cells: Sequence[Cell]
    max_attempts: int
    threads: int | None
    limits: TotalLimits = field(default_factory=TotalLimits)


class Pipeline:
    """A pipeline file, for orchestration of one's own.

    Each session is trained as ``train-cloud pipeline run`` would train it, in a process of its own; what is completed
    already is not trained again::

        pipeline = train_cloud.Pipeline("pipeline.yaml", store="./store")
        for session in pipeline.sessions:
            result = pipeline.run_session(session)
            if not result.meets_success_criteria:
                result = pipeline.run_session(session, overrides={"hyperparameters.learning_rate": 1e-4})

    :param path: the pipeline file
    :param store: root of the store, ``s3://bucket/prefix`` or a local folder; the pipeline file's bucket by default
    :param output_dir: folder of the sessions' local files
    :raises InputError: all that is wrong with the file
    """

    def __init__(self, path: str | Path, *, store: str | None = None, output_dir: str | Path = ".train-cloud") -> None:
        self._config: PipelineConfig = load_pipeline(path)
        root = store or self._config.s3_store
        if root is None:
            raise InputError("store", None, "name a folder or s3://bucket/prefix: the pipeline file has no bucket")
        self._root, self._folder = root, Path(output_dir)
        self._results: dict[str, tuple[SessionResult, RunFile]] = {}

    @property
    def sessions(self) -> tuple[PipelineSession, ...]:
        """Each with ``name``, ``run_id``, ``description``, ``config`` (its run file), ``after``, ``begins_with``."""
        return tuple(self._config.in_order())

    def run_session(
        self, session: PipelineSession | str, *, overrides: Mapping[str, Any] | None = None
    ) -> SessionResult:
        """Train a session, or go on where it was interrupted; return at once what it has come to if it is completed.

        It begins with the model of the session before it where the pipeline file says so: with what this object's last
        call for that one has returned, or else with what the store has of it. Call it from the main thread: SIGINT and
        SIGTERM stop the training after a commit.

        :param session: one of :attr:`sessions`, or its name
        :param overrides: more changes of its run file; keys may be dotted. With others it is a run of its own, whose id
            ends in a digest of them, so that the same call goes on with it.
        :raises InputError: an override that is wrong; what it begins with is not completed
        :raises Interrupted: stopped by a signal; all is committed
        :raises TrainCloudError: it has failed
        """
        name = session if isinstance(session, str) else session.name
        wanted = self._config.session(name)
        run_id = wanted.run_id
        if overrides:
            text = json.dumps(overrides, sort_keys=True, default=str)
            run_id = f"{run_id}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]}"
        initial = None
        if wanted.begins_with is not None:
            initial = pin(self._root, self._source(wanted.begins_with), wanted.choice)
        config = wanted.run_file(initial=initial, run_id=run_id, overrides=overrides)
        result = self._train(wanted, config)
        self._results[name] = result, config
        return result

    def _source(self, name: str) -> RunFile:
        """Run file of the run whose model is handed over."""
        if name in self._results:
            return self._results[name][1]
        found = {one.name: one for one in Derivation(self._config, self._root, check=False).derive()}
        one = found[name]
        if one.state not in ("completed", "unmet") or one.config is None:
            raise InputError("session", name, f"it is {one.state}: run_session({name!r}) comes first")
        return one.config

    def _train(self, session: PipelineSession, config: RunFile) -> SessionResult:
        here().secrets(config)
        read_signed(config)
        cell = Cell(config.run_id, {"session": session.name}, config.seed, config)
        plan = _One(config.run_id, [cell], self._config.written.max_attempts, self._config.threads)
        engine = Engine(
            plan,
            source=self._config.path.name,
            root=self._root,
            folder=self._folder,
            parallel=1,
            kind="session",
            keep_completed=True,
        )
        engine.run()
        row = engine.rows[0]
        if row.doing not in ("completed", "stopped", "cancelled"):
            raise TrainCloudError(f"{config.run_id} {row.doing}: {row.reason or 'see its log'}")
        judged = judge(run_store(self._root, config.run_id), session.criteria, row.standing.timesteps)
        return SessionResult(
            session=session.name,
            run_id=config.run_id,
            status=row.doing,
            timesteps=row.standing.timesteps,
            checkpoint=final_model(run_store(self._root, config.run_id)),
            evaluation=judged.evaluation,
            meets_success_criteria=judged.met if row.doing == "completed" else False,
            reason=judged.reason if row.doing == "completed" else row.reason,
        )
