"""The run file's environment: how one is made, and how its state is saved. Without torch, so that its trial can begin
while torch is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from train_cloud.config import Environment, RunFile
from train_cloud.config.curriculum import Curriculum
from train_cloud.config.run_file import MULTIAGENT
from train_cloud.envs.curriculum import AtStage, choose_all
from train_cloud.envs.known import recall
from train_cloud.envs.make import One, Several, refusing
from train_cloud.envs.trial import Choice, Trial
from train_cloud.errors import InputError

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def maker_of(run_file: RunFile) -> One | Several:
    """What makes the environment that the run file describes, with its wrappers and nothing of ours.

    :raises InputError: the id is none of this kind
    """
    section = run_file.environment
    assert section is not None
    if run_file.algorithm != MULTIAGENT:
        return One(section.id, section.module, section.kwargs, section.wrappers)
    if not _REFERENCE.fullmatch(section.id):
        fix = "name what makes a PettingZoo ParallelEnv as module:function, e.g. mpe2.simple_spread_v3:parallel_env"
        raise InputError("environment.id", section.id, fix)
    return Several(section.id, section.module, section.kwargs, section.wrappers)


def stages_of(environment: Environment, curriculum: Curriculum) -> list[AtStage]:
    """What makes the environment of each stage, with its wrappers and nothing of ours that an agent could see."""
    one = One(environment.id, environment.module, environment.kwargs, environment.wrappers)
    return [AtStage(one, index, stage.kwargs, curriculum.calls) for index, stage in enumerate(curriculum.stages)]


def at_start(environment: Environment, curriculum: Curriculum | None) -> Environment:
    """The section as the first stage that is trained on has it, for whoever needs one environment of the run's."""
    return environment if curriculum is None else at_stage(environment, curriculum, curriculum.start)


def at_stage(environment: Environment, curriculum: Curriculum, stage: int) -> Environment:
    """The section with the arguments of a stage."""
    kwargs = {**environment.kwargs, **curriculum.stages[stage].kwargs}
    return environment.model_copy(update={"kwargs": kwargs})


def asked(run_file: RunFile) -> dict[str, Any]:
    """All that decides how the environment is made, as JSON values."""
    decides = ("environment", "code", "env", *(["curriculum"] if run_file.curriculum is not None else []))
    return {name: value for name, value in run_file.identity().items() if name in decides}


def choose_state(run_file: RunFile) -> Choice:
    """Try the environment on instances of its own, and find how its state is saved."""
    return StateTrial(run_file, None).choice()


class StateTrial:
    """The trial of the environment's state, begun beside what this process does.

    :param recorded: what was found in the session before (``train_cloud.envs.known``): where that holds, nothing is
        tried
    :ivar recalled: what holds
    """

    def __init__(self, run_file: RunFile, recorded: Mapping[str, Any] | None) -> None:
        assert run_file.environment is not None
        self._id, self._requested = run_file.environment.id, run_file.environment.state
        self.recalled = recall(recorded, asked(run_file)) if recorded is not None else None
        self._trial: Trial | None = None
        if self.recalled is None:
            folder = str(run_file.code.folder) if run_file.code.folder is not None else None
            if run_file.curriculum is None:
                self._trial = Trial(maker_of(run_file), self._requested, folder=folder)
            else:
                makers = stages_of(run_file.environment, run_file.curriculum)
                self._trial = Trial(makers, self._requested, folder=folder, by=choose_all)

    def choice(self) -> Choice:
        """Wait for it.

        :raises InputError: of the environment's section
        """
        if self.recalled is not None:
            return self.recalled
        assert self._trial is not None
        with refusing("environment.id", self._id, "its reset() or step() raises"):
            return self._trial.choice()
