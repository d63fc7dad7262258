"""The environments of a run file as Stable-Baselines3 wants them."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from train_cloud import child_process
from train_cloud.config import Environment
from train_cloud.config.curriculum import Curriculum
from train_cloud.envs.curriculum import Levels, Staged
from train_cloud.envs.make import Env, One, close, refusing
from train_cloud.envs.trial import Choice, stateful
from train_cloud.errors import InputError
from train_cloud.generators import follow
from train_cloud.safe_text import adopt, guard
from train_cloud.sb3.environment import stages_of
from train_cloud.sb3.hyperparameters import NORMALIZE_RULES


@dataclass(frozen=True)
class MakeEnv:
    """Makes one environment, here or in a worker process.

    :ivar choice: how its state is saved; None leaves :class:`StatefulEnv` out
    :ivar worker_seed: for the global generators of a worker process of its own; None stays in this process
    :ivar pythonpath: variable for what the environment starts in its turn, in such a process
    :ivar curriculum: its stages; with a choice that has one for each of them
    :ivar seed: of the run, for the curriculum
    :ivar index: of the environment in its vector, for the curriculum
    """

    environment: Environment
    choice: Choice | None = None
    worker_seed: int | None = None
    pythonpath: str | None = None
    curriculum: Curriculum | None = None
    seed: int = 0
    index: int = 0

    def __call__(self) -> Env:
        if self.worker_seed is not None:
            _enter_worker(self.worker_seed)
            child_process.restore_variables({"PYTHONPATH": self.pythonpath})
        if self.curriculum is not None and self.choice is not None:
            return self._staged(self.curriculum, self.choice)
        # Outermost, so that it reports what the agent is trained on, and notes ends that wrappers make.
        config = self.environment
        monitored: Env = Monitor(One(config.id, config.module, config.kwargs, config.wrappers)())
        if self.choice is None:
            return monitored
        return stateful(monitored, self.choice)

    def _staged(self, curriculum: Curriculum, choice: Choice) -> Env:
        makers, mix = stages_of(self.environment, curriculum), curriculum.mix
        if curriculum.calls:
            makers = makers[curriculum.start : curriculum.start + 1]
        levels = Levels(self.seed, len(curriculum.stages), *((mix.share, mix.all_stages) if mix is not None else ()))
        chosen = zip(makers, choice.stages, strict=False)  # of a method's stages there is one for all
        envs = [stateful(Monitor(maker()), stage) for maker, stage in chosen]
        return Staged(envs, levels, self.index, curriculum.start)


def _enter_worker(seed: int) -> None:
    """Ctrl-C reaches the whole process group; the trainer alone decides when its environments end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    adopt()
    guard()
    set_random_seed(seed)  # SB3 seeds this process's global generators nowhere
    follow(seed, "worker")


def make_vec_env(environment: Environment, seed: int, choice: Choice, curriculum: Curriculum | None = None) -> VecEnv:
    """The environments as SB3 wants them: stacked, then normalised, if the run file says so.

    :param choice: how their state is saved
    """
    env: VecEnv
    each: list[MakeEnv] = [MakeEnv(environment, choice)] * environment.n_envs
    if curriculum is not None:
        several = range(environment.n_envs)
        each = [MakeEnv(environment, choice, curriculum=curriculum, seed=seed, index=index) for index in several]
    if environment.vectorization == "subproc":
        seeds = [(seed + rank) % 2**32 for rank in range(environment.n_envs)]
        with refusing("environment.vectorization", "subproc", "a worker did not start, see its messages above;"):
            makers: list[Callable[[], Env]] = [
                replace(maker, worker_seed=seed, pythonpath=os.environ.get("PYTHONPATH"))
                for maker, seed in zip(each, seeds, strict=True)
            ]
            with child_process.starting_workers():
                workers = SubprocVecEnv(makers, start_method=child_process.WORKERS)
        atexit.register(_end_workers, workers.processes)
        env = workers
    else:
        with refusing("environment.id", environment.id, "SB3 cannot take it:"):
            env = DummyVecEnv([*each])
    try:
        for name, value in (environment.normalize or {}).items():
            if name in NORMALIZE_RULES and not NORMALIZE_RULES[name][0](value):
                raise InputError(f"environment.normalize.{name}", value, NORMALIZE_RULES[name][1])
        if environment.frame_stack is not None:
            with refusing("environment.frame_stack", environment.frame_stack, "VecFrameStack raises"):
                env = VecFrameStack(env, environment.frame_stack)
        # Outermost: off-policy, SB3 stores the observations that VecNormalize has not normalised yet.
        if environment.normalize is not None:
            with refusing("environment.normalize", environment.normalize, "VecNormalize raises"):
                env = VecNormalize(env, **environment.normalize)
    except InputError:
        close(env)
        raise
    return env


def _end_workers(processes: list[Any]) -> None:
    """Before multiprocessing's own exit, which would send the SIGTERM that they ignore and wait for ever."""
    for process in processes:
        if process.is_alive():
            process.kill()


def sources_of(environment: Environment) -> list[str]:
    """Modules that the environment comes from."""
    entry: Any = None
    with contextlib.suppress(gymnasium.error.Error):  # registered in its own processes alone
        entry = gymnasium.spec(environment.id).entry_point
    made = entry.split(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", None)
    before = environment.id.partition(":")[0] if ":" in environment.id else None
    named = [environment.module, made, before, *(wrapper.split(":")[0] for wrapper in environment.wrappers)]
    return [name for name in named if name is not None]
