"""Build what a run file describes, step it, train it once and capture it once: a refusal comes here, before anything is
created. Leaves generators, module path and environment variables as they were, and no files."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from train_cloud.config import RunFile
from train_cloud.config.run_file import MULTIAGENT
from train_cloud.envs.demonstrations import Demonstrations
from train_cloud.envs.make import close, refusing
from train_cloud.envs.trial import Choice, sample
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.sb3 import multiagent
from train_cloud.sb3.algorithms import load_algorithm, load_policy
from train_cloud.sb3.build import build_callbacks, explaining
from train_cloud.sb3.capture import Capture, get_generators, set_generators
from train_cloud.sb3.environment import StateTrial
from train_cloud.sb3.hardware import completed
from train_cloud.sb3.hyperparameters import arguments_of
from train_cloud.sb3.initial import Initial, begin_with
from train_cloud.sb3.pretraining import Pretraining
from train_cloud.sb3.resources import buffer_bytes, check_device
from train_cloud.sb3.script import prepare
from train_cloud.sb3.vector_environments import make_vec_env
from train_cloud.sb3.vectorized import choice_of

#: What a training has in memory that this trial has not: CUDA's libraries and context, segments on their way from the
#: store or to it. The tensors of three snapshots are counted besides: one held, one on its way, one packed.
_BESIDE_BYTES = 2 << 30
#: Of an environment's process: the interpreter, Gymnasium, NumPy and what SB3 imports.
_WORKER_BYTES = 300 << 20
_STEPS = 2
_ENVIRONMENTS = 2
_ROWS = 16
_SMALL = {"buffer_size": _ROWS, "learning_starts": 0, "train_freq": 1, "gradient_steps": 1, "batch_size": 16}


@dataclass(frozen=True)
class CheckReport:
    """What the trial found out.

    :ivar choice: how the environments' state is saved, and whether a resume is exact; None for a script of one's own,
        which decides that itself
    :ivar buffer_bytes: memory that the full replay or rollout buffer will take
    :ivar beside_bytes: memory that the training will take besides, on a machine with a GPU
    :ivar parts_bytes: what each checkpoint sends, without replay rows
    :ivar row_bytes: what each timestep adds to a checkpoint
    """

    choice: Choice | None = None
    observation_space: spaces.Space[Any] | None = None
    action_space: spaces.Space[Any] | None = None
    buffer_bytes: int = 0
    beside_bytes: int = 0
    parts_bytes: int = 0
    row_bytes: float = 0.0
    capacity: int = 0
    """Timesteps that the replay buffer holds."""
    not_kept: tuple[str, ...] = ()
    """What checkpoints will not have, each with its path and why: resumes will not be exact."""
    hardware: Mapping[str, Any] | None = None
    """What ``hardware`` of the run file chooses, as ``sb3.hardware.choose`` has it; None where it chooses nothing."""

    def stored_bytes(self, run_file: RunFile) -> int:
        """What lies in the store at most: rows of the newest checkpoints, and everything else of all that stay."""
        policy, total = run_file.preservation, run_file.total_timesteps
        rows = min(total, self.capacity + policy.last * (run_file.save_frequency or 0))
        kept = policy.last + (total // policy.every if policy.every else 0) + policy.best
        return int(rows * self.row_bytes) + kept * self.parts_bytes


def check(
    run_file: RunFile,
    initial: Initial | None = None,
    begun: StateTrial | None = None,
    demonstrations: Demonstrations | None = None,
) -> CheckReport:
    """Try a run file out.

    :param initial: what the run is to begin with; not tried where it is None
    :param begun: the trial of its environment's state, if it was begun already
    :param demonstrations: what it is to be pretrained on; not tried where they are None
    :raises InputError: naming the field that Gymnasium, SB3, torch or the user's own code refuses
    """
    with _undisturbed(run_file):
        if run_file.entry_point is not None:
            prepare(run_file)
            return CheckReport()
        run_file = completed(run_file)
        if run_file.algorithm == MULTIAGENT:
            found = _check_several(run_file, begun)
        else:
            found = _check(run_file, initial, begun, demonstrations)
        return replace(found, hardware=run_file.chosen)


def _check_several(run_file: RunFile, begun: StateTrial | None) -> CheckReport:
    """The same for several agents in one environment."""
    assert run_file.environment is not None
    multiagent.check_shape(run_file)
    callbacks = build_callbacks(run_file)
    choice = (begun or StateTrial(run_file, None)).choice()
    model = multiagent.build(run_file, choice, _SMALL)
    env = model.get_env()
    assert env is not None
    try:
        model.set_logger(Logger(None, []))
        root = CallbackList(callbacks)
        field, value = ("callbacks", ", ".join(run_file.callbacks)) if callbacks else ("algorithm", run_file.algorithm)
        with refusing(field, value, f"training on {run_file.environment.id} raises"):
            model.learn(_STEPS, callback=root, log_interval=1)
        multiagent.check_finite(model, run_file.environment.id)
        capture = _capture(model, root, choice, run_file)
        transitions = int(run_file.hyperparameters.get("buffer_size", 1_000_000))  # SAC's default
        parts, rows = capture.sent_bytes(0), capture.sent_bytes(1)
        return CheckReport(
            choice,
            env.observation_space,
            env.action_space,
            buffer_bytes=buffer_bytes(model, transitions),
            beside_bytes=psutil.Process().memory_info().rss + _BESIDE_BYTES + 3 * parts,
            parts_bytes=parts,
            row_bytes=(rows - parts) * model.rows_per_step,
            capacity=transitions // model.rows_per_step,
            not_kept=tuple(capture.not_kept),
        )
    finally:
        close(env)


def _check(
    run_file: RunFile, initial: Initial | None, begun: StateTrial | None, demonstrations: Demonstrations | None
) -> CheckReport:
    assert run_file.environment is not None
    check_device(run_file.device)
    algorithm, policy = load_algorithm(run_file), load_policy(run_file)
    callbacks = build_callbacks(run_file)
    choice = (begun or StateTrial(run_file, None)).choice()
    few = {"n_envs": min(run_file.environment.n_envs, _ENVIRONMENTS), "vectorization": "dummy"}
    few_of_them = run_file.environment.model_copy(update=few)
    env = make_vec_env(few_of_them, run_file.seed, choice, run_file.curriculum)
    try:
        _step(env, run_file.environment.id)
        if "use_masking" in inspect.signature(algorithm.learn).parameters and not env.has_attr("action_masks"):
            fix = f"{algorithm.__name__} needs an environment with action_masks(): sb3_contrib's ActionMasker adds one"
            raise InputError("environment.id", run_file.environment.id, fix)
        arguments = arguments_of(run_file, algorithm, env.action_space, env.observation_space)
        _check_hindsight(run_file, arguments, env)

        def attempt(policy: Any, arguments: Mapping[str, Any], callbacks: Sequence[BaseCallback] = ()) -> BaseAlgorithm:
            small = copy.deepcopy(_small(algorithm, arguments, env.num_envs))
            model = algorithm(policy=policy, env=env, seed=run_file.seed, device=run_file.device, **small)
            model.set_logger(Logger(None, []))
            root = CallbackList([*callbacks])
            model.learn(_STEPS * env.num_envs, callback=root, log_interval=1)
            if isinstance(model, OffPolicyAlgorithm) and isinstance(model.replay_buffer, HerReplayBuffer):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model.replay_buffer.truncate_last_trajectory()  # it samples from whole episodes
                model.train(gradient_steps=1, batch_size=model.batch_size)
            captured.append(_capture(model, root, choice, run_file))
            return model

        captured: list[Capture] = []
        with explaining(run_file, algorithm, policy, arguments, attempt):
            model = attempt(policy, arguments)
        if initial is not None:
            begin_with(model, initial, buffer=False)
        if demonstrations is not None:
            pretraining = Pretraining(run_file, model, demonstrations)
            with refusing("pretraining", demonstrations.source, "learning a batch raises"):
                pretraining.begin()
                next(pretraining.batches())
        if callbacks:
            names = ", ".join(run_file.callbacks)
            field, value = ("callbacks", names) if names else ("curriculum", run_file.environment.id)
            with refusing(field, value, "training with it raises"):
                attempt(policy, arguments, callbacks)
        capture, known = captured[0], inspect.signature(algorithm.__init__).parameters
        sizes = {name: arguments.get(name, known[name].default) for name in ("buffer_size", "n_steps") if name in known}
        transitions = sizes.get("buffer_size") or sizes.get("n_steps", 0) * run_file.environment.n_envs
        parts = capture.sent_bytes(0)
        workers = run_file.environment.n_envs if run_file.environment.vectorization == "subproc" else 0
        return CheckReport(
            choice,
            env.observation_space,
            env.action_space,
            buffer_bytes=buffer_bytes(model, transitions),
            beside_bytes=psutil.Process().memory_info().rss + _BESIDE_BYTES + 3 * parts + workers * _WORKER_BYTES,
            parts_bytes=parts,
            row_bytes=(capture.sent_bytes(1) - parts) / env.num_envs,
            capacity=transitions if capture.capacity else 0,
            not_kept=tuple(captured[-1].not_kept),
        )
    finally:
        close(env)


def _step(env: VecEnv, name: str) -> None:
    """Two steps as SB3 makes them: shapes that differ from the spaces, NaN and infinity show here."""
    with refusing("environment.id", name, "stepping it raises"):
        env.seed(0)
        seen = [env.reset()]
        space = env.action_space
        for _ in range(_STEPS):
            masks = env.env_method("action_masks") if env.has_attr("action_masks") else [None] * env.num_envs
            observation, rewards, _, _ = env.step(np.stack([sample(space, mask) for mask in masks]))
            seen.append(observation)
            if not np.isfinite(rewards).all():
                raise InputError("environment.id", name, f"it gives the reward {rewards}: rewards must be finite")
    for observation in seen:
        for part in observation.values() if isinstance(observation, dict) else [observation]:
            if np.issubdtype(np.asarray(part).dtype, np.floating) and not np.isfinite(part).all():
                raise InputError("environment.id", name, f"it gives the observation {part}: it must be finite")


def _small(algorithm: type[BaseAlgorithm], arguments: Mapping[str, Any], n_envs: int) -> dict[str, Any]:
    """The same arguments, but little memory, and an update after each step."""
    known = inspect.signature(algorithm.__init__).parameters
    if issubclass(algorithm, OnPolicyAlgorithm):
        small: dict[str, Any] = {"n_steps": _STEPS, "batch_size": _STEPS * n_envs, "n_epochs": 1}
    else:
        batch = min(arguments.get("batch_size", 256), 1024)
        small = {"buffer_size": _ROWS * n_envs, "learning_starts": 0, "train_freq": 1, "gradient_steps": 1}
        small["batch_size"] = batch
        if _is_hindsight(arguments):
            small["learning_starts"] = _STEPS * n_envs
    return {**arguments, **{name: value for name, value in small.items() if name in known}}


def _is_hindsight(arguments: Mapping[str, Any]) -> bool:
    kind = arguments.get("replay_buffer_class")
    return isinstance(kind, type) and issubclass(kind, HerReplayBuffer)


def _check_hindsight(run_file: RunFile, arguments: Mapping[str, Any], env: VecEnv) -> None:
    """:raises InputError: an update may come before there is an episode to learn from, and would end the training"""
    assert run_file.environment is not None
    longest = [spec.max_episode_steps for spec in env.get_attr("spec") if spec is not None and spec.max_episode_steps]
    starts = arguments.get("learning_starts", 100)  # SB3's default
    if _is_hindsight(arguments) and longest and starts < max(longest) * run_file.environment.n_envs:
        fix = f"give at least {max(longest) * run_file.environment.n_envs}: hindsight learns from whole episodes"
        raise InputError("hyperparameters.learning_starts", starts, fix)


def _capture(model: BaseAlgorithm, root: BaseCallback, choice: Choice, run_file: RunFile) -> Capture:
    try:
        capture = Capture(model, root, None, lambda env: choice_of(env).provider if choice.stages else choice.provider)
        rows = getattr(getattr(model, "replay_buffer", None), "pos", _STEPS if hasattr(model, "learners") else 0)
        capture.snapshot(rows)
        capture.rows(0, rows)
        return capture
    except InputError:
        raise
    except TrainCloudError as error:
        field = "callbacks" if run_file.callbacks else "algorithm"
        raise InputError(field, ", ".join(run_file.callbacks) or run_file.algorithm, str(error)) from error


@contextlib.contextmanager
def _undisturbed(run_file: RunFile) -> Iterator[None]:
    """The user's code importable and its variables set, for the duration; all else put back too."""
    generators, path, variables = get_generators(), sys.path.copy(), dict(os.environ)
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    if run_file.code.folder is not None:
        sys.path.insert(0, str(run_file.code.folder))
    os.environ.update(run_file.env)
    try:
        yield
    finally:
        set_generators(generators)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(variables)
