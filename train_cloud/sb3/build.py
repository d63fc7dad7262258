"""From a run file to a Stable-Baselines3 model with its environments; every refusal names the field it comes from."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from train_cloud.config import RunFile
from train_cloud.config.run_file import MULTIAGENT
from train_cloud.envs.known import record
from train_cloud.envs.make import FAILURES, close, in_words, load_object, refusing
from train_cloud.envs.trial import Choice
from train_cloud.errors import InputError
from train_cloud.sb3.algorithms import load_algorithm, load_policy
from train_cloud.sb3.curriculum import StageChanges
from train_cloud.sb3.environment import StateTrial, asked
from train_cloud.sb3.hardware import completed
from train_cloud.sb3.hyperparameters import arguments_of
from train_cloud.sb3.resources import buffer_bytes, check_device, check_memory
from train_cloud.sb3.vector_environments import MakeEnv, make_vec_env, sources_of

log = logging.getLogger(__name__)

#: Pickles of earlier versions look for it here.
__all__ = ["Built", "MakeEnv", "build_callbacks", "build_model", "construct", "explaining"]


@dataclass(frozen=True)
class Built:
    """A model ready for ``learn``, and how its environments' state is saved."""

    model: BaseAlgorithm
    choice: Choice
    trial: Mapping[str, Any]
    """What there is to know of it in the next session; see ``train_cloud.envs.known``."""

    def close(self) -> None:
        """Close the environments; a worker that has died already is no error."""
        env = self.model.get_env()
        if env is not None and (failure := close(env)) is not None:
            log.warning("the environment: %s", failure)


def build_model(run_file: RunFile, trial: Mapping[str, Any] | None = None, begun: StateTrial | None = None) -> Built:
    """Seed the global generators and make environments and model.

    :param trial: of the environments' state, as :class:`Built` had it in the session before
    :param begun: a new one, if it was begun already
    :raises InputError: a field that Gymnasium, SB3 or the user's own code refuses
    """
    run_file = completed(run_file)
    assert run_file.environment is not None and run_file.algorithm is not None
    check_device(run_file.device)
    algorithm, policy = load_algorithm(run_file), load_policy(run_file)
    begun = begun or StateTrial(run_file, trial)
    choice = begun.choice()
    if run_file.algorithm == MULTIAGENT:
        from train_cloud.sb3 import multiagent  # which builds its learners as they are built here

        model: BaseAlgorithm = multiagent.build(run_file, choice)
        env = model.get_env()
        assert env is not None
    else:
        set_random_seed(run_file.seed)
        env = make_vec_env(run_file.environment, run_file.seed, choice, run_file.curriculum)
    try:
        if run_file.algorithm != MULTIAGENT:
            arguments = arguments_of(run_file, algorithm, env.action_space, env.observation_space)
            model = construct(run_file, algorithm, policy, env, arguments)
        there, taken = psutil.virtual_memory().total, psutil.Process().memory_info().rss
        ranks = run_file.data_parallel if isinstance(run_file.data_parallel, int) else 1
        check_memory(run_file, ranks * buffer_bytes(model), there, "this machine", beside=taken)
        if trial is None or begun.recalled is None:
            trial = record(choice, asked(run_file), sources_of(run_file.environment))
    except InputError:
        close(env)
        raise
    return Built(model, choice, trial)


def build_callbacks(run_file: RunFile) -> list[BaseCallback]:
    """The curriculum's, where the run has one, and the run file's callbacks, made without arguments."""
    made: list[BaseCallback] = []
    if run_file.curriculum is not None:
        if ":" in run_file.curriculum.success:
            load_object(run_file.curriculum.success, "curriculum.success")
        made.append(StageChanges(run_file.curriculum))
    for reference in run_file.callbacks:
        kind = load_object(reference, "callbacks", BaseCallback)
        with refusing("callbacks", reference, "make it so that it needs no arguments; it raises"):
            made.append(kind())
    return made


def construct(
    run_file: RunFile,
    algorithm: type[BaseAlgorithm],
    policy: str | type[BasePolicy],
    env: VecEnv,
    arguments: Mapping[str, Any],
) -> BaseAlgorithm:
    """:raises InputError: naming the argument without which SB3 would have taken the rest"""

    def attempt(policy: str | type[BasePolicy], arguments: Mapping[str, Any]) -> BaseAlgorithm:
        # SB3 writes into policy_kwargs
        return algorithm(policy=policy, env=env, seed=run_file.seed, device=run_file.device, **copy.deepcopy(arguments))

    with explaining(run_file, algorithm, policy, arguments, lambda *changed: attempt(*changed)):
        return attempt(policy, arguments)


@contextlib.contextmanager
def explaining(
    run_file: RunFile,
    algorithm: type[BaseAlgorithm],
    policy: str | type[BasePolicy],
    arguments: Mapping[str, Any],
    attempt: Callable[[str | type[BasePolicy], Mapping[str, Any]], object],
) -> Iterator[None]:
    """What SB3 raises inside becomes an InputError of the field that makes the difference.

    SB3's exceptions name no argument. So each is left out in turn: the first without which ``attempt`` goes well is it.
    """
    try:
        yield
    except InputError:
        raise
    except FAILURES as error:

        def goes_well(policy: str | type[BasePolicy], arguments: Mapping[str, Any]) -> bool:
            try:
                attempt(policy, {"buffer_size": 64, **arguments} if "buffer_size" in known else arguments)
            except FAILURES:
                return False
            return True

        known = inspect.signature(algorithm.__init__).parameters
        for field, value, changed in _left_out(run_file, arguments):
            if goes_well(policy, changed):
                raise InputError(field, value, f"{algorithm.__name__} refuses it: {in_words(error)}") from error
        for other in algorithm.policy_aliases:
            if other != policy and goes_well(other, arguments):
                raise InputError("policy", run_file.chosen_policy, f"{in_words(error)}: use {other}") from error
        what = run_file.environment.id if run_file.environment else "the environment"
        raise InputError("algorithm", run_file.algorithm, f"it refuses {what}: {in_words(error)}") from error


def _left_out(run_file: RunFile, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """``(field, value as written, the other arguments)`` for each argument, and for each within policy_kwargs."""
    written, inner = run_file.hyperparameters, arguments.get("policy_kwargs") or {}
    own = written.get("policy_kwargs") or {}
    for name in own:
        fewer = {key: value for key, value in inner.items() if key != name}
        yield f"hyperparameters.policy_kwargs.{name}", own[name], {**arguments, "policy_kwargs": fewer}
    if run_file.architecture is not None:
        fewer = {key: value for key, value in inner.items() if key in own}
        yield "architecture", run_file.architecture.name, {**arguments, "policy_kwargs": fewer}
    for name in written:
        yield f"hyperparameters.{name}", written[name], {k: value for k, value in arguments.items() if k != name}
