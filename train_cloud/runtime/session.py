"""One session of a run, in its order: begin, acquire, restore, train, end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from train_cloud.artifacts import wandb
from train_cloud.checkpoint import signing
from train_cloud.child_process import code_on_path
from train_cloud.config import RunFile
from train_cloud.config.current import training
from train_cloud.errors import (
    ConditionFailed,
    CorruptCheckpoint,
    Fenced,
    InputError,
    Interrupted,
    StoreError,
    StoreUnavailable,
)
from train_cloud.report.preflight import CODE_FILES, check_before_training
from train_cloud.run import layout
from train_cloud.run.head import read_head
from train_cloud.run.session import now
from train_cloud.runtime import reproducibility
from train_cloud.runtime.acquire import Acquired, Begun, acquire, begin
from train_cloud.runtime.beside import Beside
from train_cloud.runtime.code_folder import CodeFolder
from train_cloud.runtime.deadline import at_limit
from train_cloud.runtime.delivery import Delivery
from train_cloud.runtime.exits import Exits, record_end
from train_cloud.runtime.host import SessionHost
from train_cloud.runtime.inputs import Inputs
from train_cloud.runtime.masking import hide_variables
from train_cloud.runtime.predecessor import note_reached
from train_cloud.runtime.program import HARDWARE, Program, build
from train_cloud.runtime.progress import Progress
from train_cloud.runtime.restoring import begin_restore
from train_cloud.runtime.saving import Saving
from train_cloud.store import ObjectStore
from train_cloud.trainer import TrainingStopped

_BECAUSE_CHARACTERS = 400


class TrainingSession:
    """:ivar begun: the session, once it has its number
    :ivar code: the run's code folder, once the newest checkpoint is known
    :ivar progress: once the run is acquired
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._before_here = note_reached(inputs.state_dir, inputs.store.url)  # which the heartbeat counts anew
        self._beside = Beside(inputs)
        self.begun: Begun | None = None
        self.code: CodeFolder | None = None
        self.progress: Progress | None = None

    @property
    def number(self) -> int:
        """The session's; 0 before it has one."""
        return self.begun.session.number if self.begun is not None else 0

    def run(self, alive: datetime | None) -> int:
        """:param alive: when a training process lived here last
        :return: exit code; the outcome is in the head
        """
        inputs = self._inputs
        if inputs.platform.begins_early:
            self._begin()
        self._set_variables()
        facts = check_before_training(inputs.store_root, inputs.config, alive=alive, train_on=inputs.train_on)
        self.code = CodeFolder(inputs.config, facts.get(CODE_FILES))
        _ = inputs.identity  # of the code as it is now
        with code_on_path(inputs.config.code.folder), training(inputs.config, self._beside.artifacts.folder):
            program = self._build(self.code, facts)  # before the run is acquired: bad input leaves no trace
            self._beside.use(program.facts.get(HARDWARE))
            self._beside.ranks = program.size
            with contextlib.closing(program):
                begun = self.begun or self._begin()
                return self._train(program, begun, self._acquire(begun))

    def _train(self, program: Program, begun: Begun, acquired: Acquired) -> int:
        inputs, beside = self._inputs, self._beside
        self.progress = progress = Progress(inputs, begun, acquired, beside)
        delivery = Delivery(inputs, acquired, beside)
        exits = Exits(inputs, begun, acquired, beside, progress, delivery, program.code)
        saving = None
        try:
            self._check_limits(begun)
            if inputs.deadline.pending:
                return exits.stopped()
            reproducibility.pin_threads(acquired.manifest.facts["machine"] if acquired.manifest else None, program.size)
            machine = reproducibility.describe()
            progress.begin()
            delivery.begin(machine)
            saving = Saving(inputs, acquired, beside, program, progress, machine)
            restored = begin_restore(inputs, begun, acquired, beside, exits, machine)
            host = SessionHost(inputs, acquired, beside, progress, delivery, saving, restored)
            program.train(host, inputs.deadline)
        except TrainingStopped:
            return exits.stopped()
        except (Fenced, Interrupted):
            raise
        except Exception as error:  # whatever the user's code raises
            exits.failed(error, saving)
            raise
        return exits.completed(host.early)

    def ended_by(self, error: BaseException) -> None:
        """Leave word in the store of what ended the session, unless that stands there already or nobody answers."""
        begun = self.begun
        if begun is None or begun.ended or isinstance(error, StoreUnavailable | Interrupted):
            return
        why = f"{type(error).__name__}: {error}".split("\n", 1)[0][:_BECAUSE_CHARACTERS]
        with contextlib.suppress(StoreError, CorruptCheckpoint):
            # The end of a session shows that its run has had a head.
            if begun.lease is not None or read_head(self._inputs.store) is not None:
                record_end(begun, self.progress, self.code, "fenced" if isinstance(error, Fenced) else "failure", why)

    def close(self) -> None:
        """End what lives beside the training."""
        self._beside.close()

    def _set_variables(self) -> None:
        """Of secrets and of Weights & Biases."""
        config = self._inputs.config
        os.environ.update(self._inputs.platform.secrets(config))
        hide_variables(config)
        signing.use(config.signing_key)
        if config.wandb is not None:
            wandb.check(config.wandb, os.environ)

    def _begin(self) -> Begun:
        inputs = self._inputs
        if not inputs.platform.begins_early:
            write_launch(inputs.store, inputs.config, inputs.run_yaml)
        begun = self.begun = begin(inputs)
        self._beside.each_second.insert(0, lambda: self._check_limits(begun))
        return begun

    def _acquire(self, begun: Begun) -> Acquired:
        return acquire(self._inputs, begun, self._beside.heartbeat, self._before_here)

    def _build(self, code: CodeFolder, facts: Mapping[str, Any]) -> Program:
        reproducibility.pin_instructions()
        inputs, beside = self._inputs, self._beside
        try:
            return build(inputs, code, facts, beside.graphs)
        except InputError:
            raise
        except Exception:  # no bad input: it may go better the next time, and counts
            if self.begun is not None:
                acquired = self._acquire(self.begun)
                self.progress = progress = Progress(inputs, self.begun, acquired, beside)
                delivery = Delivery(inputs, acquired, beside)
                Exits(inputs, self.begun, acquired, beside, progress, delivery, code).record_failure()
            raise

    def _check_limits(self, begun: Begun) -> None:
        if begun.lease is not None and begun.lease.head.outcome is not None:
            return  # this session itself has ended the run
        reached = begun.limits.reached()
        if reached is not None:
            at_limit(self._inputs.deadline, reached)


def write_launch(store: ObjectStore, config: RunFile, run_yaml: str) -> None:
    """On a laptop the trainer itself leaves the run file as launched; on AWS Terraform does, and the worker may not."""
    launch = {"run_id": config.run_id, "launched_by": "train", "launched": now()}
    for key, body in ((layout.RUN_YAML, run_yaml), (layout.RUN_JSON, json.dumps(launch))):
        with contextlib.suppress(ConditionFailed):  # it stands as it was launched first
            store.create(key, body.encode())
