"""What is trained: a model that the run file describes, or the user's own script."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from train_cloud.config import RunFile
from train_cloud.config.current import training
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.run.session import read_sessions
from train_cloud.runtime.code_folder import CodeFolder
from train_cloud.runtime.initial_model import begin_with, read_for_loop
from train_cloud.runtime.inputs import Inputs
from train_cloud.runtime.pretraining import pretraining_of
from train_cloud.runtime.ranks import RankProcesses, check_devices
from train_cloud.trainer import Deadline, Host, TrainingStopped

if TYPE_CHECKING:
    from pathlib import Path

    from stable_baselines3.common.callbacks import BaseCallback

    from train_cloud.sb3.build import Built
    from train_cloud.sb3.pretraining import Pretraining

#: In a checkpoint's facts: what its environments' trial has found, and what its run began with.
TRIAL, BEGUN_WITH = "environment_trial", "initial_model"
#: And what was chosen for the machine that it began on (``train_cloud.sb3.hardware``).
HARDWARE = "hardware"
#: And how many ranks train it.
RANKS = "ranks"


class FinishedHost(Host, Protocol):
    """A host that knows whether the training is over."""

    @property
    def finished(self) -> bool:
        """The state after the last update is committed."""

    @property
    def timesteps(self) -> int:
        """How far it is."""


class Program(ABC):
    """:ivar code: the folder that it comes from
    :ivar facts: for its checkpoints
    :ivar ranks: the other processes of a data-parallel run
    """

    def __init__(self, code: CodeFolder, facts: Mapping[str, Any]) -> None:
        self.code, self.facts = code, facts
        self.ranks: RankProcesses | None = None

    @property
    def size(self) -> int:
        """Processes that train it."""
        return 1 if self.ranks is None else self.ranks.size

    @abstractmethod
    def train(self, host: FinishedHost, deadline: Deadline) -> None:
        """Until the end of the training.

        :raises TrainingStopped: stopped at a consistent point
        """

    def close(self) -> None:  # noqa: B027 - a script closes its own
        """Its environments."""


class Model(Program):
    """As the run file describes it."""

    def __init__(
        self,
        code: CodeFolder,
        facts: Mapping[str, Any],
        built: Built,
        callbacks: Sequence[BaseCallback],
        pretraining: Pretraining | None,
        ranks: RankProcesses | None,
        inputs: Inputs,
    ) -> None:
        super().__init__(code, facts)
        self._built, self._callbacks, self._pretraining = built, callbacks, pretraining
        self.ranks, self._inputs = ranks, inputs

    def train(self, host: FinishedHost, deadline: Deadline) -> None:
        from train_cloud.sb3.callback import learn
        from train_cloud.sb3.script import left_early

        built = self._built
        try:
            with contextlib.ExitStack() as stack:
                ranks = None
                if self.ranks is not None:
                    device = built.model.device
                    joined = self.ranks.joined(self._inputs, built.trial, device, train_on=host.train_on)
                    ranks = stack.enter_context(joined)
                learn(
                    built.model,
                    host,
                    self._callbacks,
                    built.choice,
                    self._pretraining,
                    ranks,
                    self._inputs.config,
                )
        except SystemExit as error:
            if deadline.pending:
                raise TrainingStopped from error
            left = left_early(error)
            assert left is not None  # in the middle of a training, leaving is never its end
            raise left from error

    def close(self) -> None:
        if self.ranks is not None:
            self.ranks.close()
        self._built.close()


class Script(Program):
    """The user's own, which makes its model itself."""

    def __init__(
        self, code: CodeFolder, config: RunFile, script: Callable[[], object], begun_with: Any, initial: Any = None
    ) -> None:
        super().__init__(code, {BEGUN_WITH: begun_with} if begun_with is not None else {})
        self._config, self._script, self._initial = config, script, initial

    def train(self, host: FinishedHost, deadline: Deadline) -> None:
        from train_cloud.sb3.callback import hosted_by
        from train_cloud.sb3.script import left_early

        try:
            with hosted_by(host), training(self._config), self._beginning():
                self._script()
        except SystemExit as error:
            if not host.finished and deadline.pending:  # by a signal handler of its own
                raise TrainingStopped from error
            left = left_early(error, trained=host.finished)
            if left is not None:
                raise left from error
        if not host.finished:
            self._refuse_return(host, deadline)

    def _beginning(self) -> contextlib.AbstractContextManager[None]:
        if self._initial is None or self._config.initial_model is None:
            return contextlib.nullcontext()
        from train_cloud.pytorch.initial import beginning_with

        return beginning_with(self._config.initial_model.source, self._initial)

    def _refuse_return(self, host: FinishedHost, deadline: Deadline) -> None:
        """The script has returned before its training was over."""
        if deadline.pending:  # it has caught what ended the training
            raise TrainingStopped
        if host.timesteps:
            raise TrainCloudError(
                f"the script returned at {host.timesteps} of {self._config.total_timesteps}, before its training was "
                "over: it must not catch what learn() or run.steps() raises"
            )
        raise InputError(
            "entry_point",
            self._config.entry_point,
            "it returned without training: pass callback=train_cloud.checkpoints() to learn(), or loop over the steps "
            "of train_cloud.resumable()",
        )


def _chosen(inputs: Inputs) -> Mapping[str, Any] | None:
    """What a session chose for its machine that died before the first checkpoint; None where none did."""
    if inputs.config.hardware is None:
        return None
    told = (record.progress or {} for record in read_sessions(inputs.store))
    return next((progress[HARDWARE] for progress in told if HARDWARE in progress), None)


def build(inputs: Inputs, code: CodeFolder, facts: Mapping[str, Any], graphs: Path | None) -> Program:
    """:param facts: of the newest checkpoint; empty where there is none
    :param graphs: for a proof: where to write what can be reached in the training
    :raises InputError: the run file asks for what cannot be built
    """
    config = inputs.config
    from train_cloud.envs.known import share, shared
    from train_cloud.sb3.environment import StateTrial, asked

    trial = facts.get(TRIAL) or (shared(asked(config)) if config.environment is not None else None)
    # Its processes play while this one loads torch.
    begun = StateTrial(config, trial) if config.environment is not None else None
    from train_cloud.sb3 import accounting, precision
    from train_cloud.sb3.build import build_callbacks, build_model
    from train_cloud.sb3.hardware import completed
    from train_cloud.sb3.resources import check_device
    from train_cloud.sb3.script import prepare

    accounting.record_to(graphs)
    precision.begin(config)
    config = completed(config, facts.get(HARDWARE) or _chosen(inputs))
    if config.evaluation is not None:
        from train_cloud.evaluate.play import check

        check(config)
    if config.entry_point is not None:
        check_device(config.device)
        begun_with, initial = facts.get(BEGUN_WITH), None
        if config.initial_model is not None and not facts:
            initial, begun_with = read_for_loop(config.initial_model, inputs.store.url)
        return Script(code, config, prepare(config), begun_with, initial)
    size = ranks_of(config, facts)
    with contextlib.ExitStack() as on_failure:
        ranks = RankProcesses(size, inputs.state_dir) if size > 1 else None  # they import while this one builds
        if ranks is not None:
            on_failure.callback(ranks.close)
        callbacks = build_callbacks(config)
        built = build_model(config, trial, begun)
        on_failure.callback(built.close)
        share(built.trial)
        begun_with = facts.get(BEGUN_WITH)
        if config.initial_model is not None and not facts:
            begun_with = begin_with(built.model, config.initial_model, inputs.store.url)
        pretraining = pretraining_of(config, built.model, facts)
        on_failure.pop_all()
    known = {TRIAL: built.trial, BEGUN_WITH: begun_with, HARDWARE: config.chosen, RANKS: size if size > 1 else None}
    kept = {name: value for name, value in known.items() if value is not None}
    return Model(code, kept, built, callbacks, pretraining, ranks, inputs)


def ranks_of(config: RunFile, facts: Mapping[str, Any]) -> int:
    """How many processes train the run: as many as when it began.

    :raises InputError: the machine has not enough GPUs for them
    """
    if config.data_parallel is None:
        return 1
    import torch

    size = config.data_parallel
    if size == "auto":
        size = facts.get(RANKS) or (max(1, torch.cuda.device_count()) if config.device != "cpu" else 1)
    check_devices(config, size)
    return int(size)
