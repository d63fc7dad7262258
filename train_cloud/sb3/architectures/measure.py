"""How large the architectures are for a run's observations, and what they cost."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from train_cloud.child_process import code_on_path
from train_cloud.config import RunFile
from train_cloud.config.architecture import ARCHITECTURES, Architecture
from train_cloud.envs.make import close, refusing
from train_cloud.errors import InputError, NotInstalled
from train_cloud.sb3.architectures import load, policy_arguments
from train_cloud.sb3.environment import maker_of

BATCH = 64
_SECONDS, _LEAST = 0.3, 5


@dataclass(frozen=True)
class Measured:
    """One architecture.

    :ivar sees: what of the observation; empty for one of the user's
    :ivar parameters: of the features extractor
    :ivar act_ms: milliseconds for one observation
    :ivar learn_ms: milliseconds for :data:`BATCH` observations, forward and backward
    :ivar because: why there is nothing to measure; None where there is
    """

    name: str
    sees: str
    parameters: int | None = None
    act_ms: float | None = None
    learn_ms: float | None = None
    because: str | None = None


def measure(run_file: RunFile) -> list[Measured]:
    """Each architecture that has a name, and the run file's own, on observations of the run's environment.

    On the CPU, by one thread. The observations are those of random actions, as the environment gives them: not
    normalised, not stacked.

    :raises InputError: there is no environment, or its observations are not to be had
    """
    if run_file.environment is None:
        raise InputError("environment", None, "name a run file with an environment: a script makes its own")
    with code_on_path(run_file.code.folder), _one_thread():
        env = BaseAlgorithm._wrap_env(DummyVecEnv([maker_of(run_file)]), verbose=0, monitor_wrapper=False)
        try:
            with refusing("environment.id", run_file.environment.id, "stepping it raises"):
                seen = _observations(env)
        finally:
            close(env)
        named = [Architecture(name=name) for name in ARCHITECTURES]
        own = run_file.architecture
        if own is not None and own.reference is not None and own not in named:
            named.append(own)
        return [_measure(run_file, each, env.observation_space, seen) for each in named]


def _measure(run_file: RunFile, architecture: Architecture, space: spaces.Space[object], seen: Seen) -> Measured:
    known = ARCHITECTURES.get(architecture.name)
    name, sees = architecture.name, known.sees if known is not None else ""
    if architecture.kwargs:
        name = f"{name} {architecture.kwargs}"
    plain = run_file.model_copy(update={"architecture": architecture})
    try:
        policy_arguments(plain, space)
        kind = load(architecture)
        assert kind is not None
    except InputError as error:
        return Measured(name, sees, because=error.fix)
    except NotInstalled as error:
        return Measured(name, sees, because=str(error))
    torch.manual_seed(0)
    extractor = kind(space, **architecture.kwargs)
    one = seen(1)
    with torch.no_grad():
        act = _milliseconds(lambda: extractor(one))
    learn = _milliseconds(lambda: _learn(extractor, seen(BATCH)))
    return Measured(name, sees, sum(part.numel() for part in extractor.parameters()), act, learn)


Seen = Callable[[int], "Tensor | dict[str, Tensor]"]


def _observations(env: VecEnv) -> Seen:
    """So many observations, as a features extractor gets them."""
    env.seed(0)
    env.action_space.seed(0)
    taken = [env.reset()]
    while len(taken) < BATCH:
        taken.append(env.step(np.stack([env.action_space.sample()]))[0])
    together: dict[str, np.ndarray] | np.ndarray
    if isinstance(taken[0], dict):
        together = {key: np.concatenate([each[key] for each in taken]) for key in taken[0]}  # type: ignore[call-overload]
    else:
        together = np.concatenate(taken)  # type: ignore[arg-type]
    tensors = preprocess_obs(obs_as_tensor(together, torch.device("cpu")), env.observation_space)

    def seen(count: int) -> Tensor | dict[str, Tensor]:
        if isinstance(tensors, dict):
            return {key: value[:count] for key, value in tensors.items()}
        return tensors[:count]

    return seen


def _learn(extractor: BaseFeaturesExtractor, batch: Tensor | dict[str, Tensor]) -> None:
    extractor.zero_grad()
    extractor(batch).sum().backward()


def _milliseconds(work: Callable[[], object]) -> float:
    """The median of some, after one that is not counted."""
    work()
    taken: list[float] = []
    while len(taken) < _LEAST or sum(taken) < _SECONDS:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before, generator = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(generator)
