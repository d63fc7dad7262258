"""Demonstrations, and what RL has seen lately, as a model's policy is shown them: stacked, normalised, transposed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from train_cloud.envs.demonstrations import Array, Demonstrations, Observations
from train_cloud.errors import InputError
from train_cloud.sb3.cloning import Cloner

SHOWING = (VecFrameStack, VecNormalize, VecTransposeImage, VecMonitor)


class Data:
    """Demonstrations as the policy sees them.

    :param fit: make the normaliser's statistics from them first; else they are restored
    :ivar mean_return: of the discounted returns
    :ivar spread: their variance, in units of which values are learned
    """

    def __init__(self, model: BaseAlgorithm, demonstrations: Demonstrations, cloner: Cloner, *, fit: bool) -> None:
        self._device = model.device
        seen = _typed(demonstrations.observations, innermost(model).observation_space)
        rewards = demonstrations.rewards.astype(np.float64)
        for wrapper in reversed(wrappers(model)):
            if isinstance(wrapper, VecFrameStack):
                seen = _stacked(seen, demonstrations, wrapper)
            elif isinstance(wrapper, VecTransposeImage):
                seen = wrapper.transpose_observations(seen)
            elif isinstance(wrapper, VecNormalize):
                if fit:
                    _fit(wrapper, seen, demonstrations)
                seen = wrapper.normalize_obs(seen)
                rewards = np.asarray(wrapper.normalize_reward(rewards), np.float64)
        if fit:
            _show_again(model)
        returns = demonstrations.returns(rewards, float(getattr(model, "gamma", 1.0)))
        self.mean_return, self.spread = float(returns.mean()), float(returns.var()) or 1.0
        self._observations: Observations = seen
        self._targets = cloner.targets(demonstrations.actions)
        self._returns = returns.astype(np.float32)

    def batch(self, rows: Array) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Observations, what was done, and returns."""
        chosen = _at(self._observations, rows)
        targets, returns = (
            torch.as_tensor(array[rows], device=self._device) for array in (self._targets, self._returns)
        )
        return obs_as_tensor(chosen, self._device), targets, returns


def check_wrappers(model: BaseAlgorithm, source: str) -> None:
    """:raises InputError: nobody knows how one of them would show the demonstrations"""
    unknown = [wrapper for wrapper in wrappers(model) if not isinstance(wrapper, SHOWING)]
    if unknown:
        fix = f"nobody knows how {type(unknown[0]).__name__} would show the demonstrations to the policy: leave it out"
        raise InputError("pretraining", source, fix)


def wrappers(model: BaseAlgorithm) -> list[VecEnvWrapper]:
    """Outermost first."""
    found, env = [], model.get_env()
    while isinstance(env, VecEnvWrapper):
        found.append(env)
        env = env.venv
    return found


def innermost(model: BaseAlgorithm) -> VecEnv:
    env = model.get_env()
    assert env is not None
    return env.unwrapped


def _typed(observations: Observations, space: spaces.Space[Any]) -> Observations:
    if isinstance(observations, dict):
        assert isinstance(space, spaces.Dict)
        return {key: observations[key].astype(one.dtype) for key, one in space.spaces.items()}
    return observations.astype(space.dtype)


def _at(observations: Observations, rows: Any) -> Any:
    if isinstance(observations, dict):
        return {key: array[rows] for key, array in observations.items()}
    return observations[rows]


def _stacked(seen: Observations, demonstrations: Demonstrations, wrapper: VecFrameStack) -> Observations:
    """As the wrapper stacks them, episode by episode."""
    stack: Any = StackedObservations(1, wrapper.stacked_obs.n_stack, wrapper.venv.observation_space)  # type: ignore[arg-type]
    found: list[Any] = []
    nothing = np.zeros(1, bool)
    for episode in demonstrations.episodes:
        for step in range(episode.start, episode.stop):
            one = _at(seen, slice(step, step + 1))
            found.append(
                copy.deepcopy(stack.reset(one) if step == episode.start else stack.update(one, nothing, [{}])[0])
            )
    if isinstance(seen, dict):
        return {key: np.concatenate([each[key] for each in found]) for key in seen}
    return np.concatenate(found)


def _fit(normalizer: VecNormalize, seen: Observations, demonstrations: Demonstrations) -> None:
    """Its statistics are those of the demonstrations, as if it had seen nothing else."""
    if normalizer.norm_obs:
        keys = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}
        for key, statistics in keys.items():
            array = (seen[key] if isinstance(seen, dict) else seen).astype(np.float64)
            statistics.mean, statistics.var, statistics.count = array.mean(axis=0), array.var(axis=0), len(array)
    running, total = np.zeros(len(demonstrations)), 0.0
    starts = set(demonstrations.starts.tolist())
    for step, reward in enumerate(demonstrations.rewards.tolist()):
        total = reward + (0.0 if step in starts else normalizer.gamma * total)
        running[step] = total
    normalizer.ret_rms.mean, normalizer.ret_rms.var = running.mean(), running.var()
    normalizer.ret_rms.count = len(running)


def _show_again(model: Any) -> None:
    """The observation that the training begins with was normalised by other statistics."""
    shown: Any = None
    for wrapper in reversed(wrappers(model)):
        if isinstance(wrapper, VecNormalize):
            shown = wrapper.normalize_obs(wrapper.old_obs)
        elif isinstance(wrapper, VecTransposeImage) and shown is not None:
            shown = wrapper.transpose_observations(shown)
    if shown is not None:
        model._last_obs = shown


def seen_lately(model: Any, generator: np.random.Generator) -> Any:
    """A batch of observations from the rollout or the replay buffer, as the policy sees them."""
    rollout = getattr(model, "rollout_buffer", None)
    if rollout is not None:  # which train() has flattened
        count = len(rollout.returns)
        rows = generator.integers(0, count, min(count, getattr(model, "batch_size", count)))
        return obs_as_tensor(_at(rollout.observations, rows), model.device)
    buffer = model.replay_buffer
    rows = generator.integers(0, buffer.size(), model.batch_size)
    at = (rows, generator.integers(0, buffer.n_envs, model.batch_size))
    return obs_as_tensor(
        buffer._normalize_obs(_at(buffer.observations, at), model.get_vec_normalize_env()), model.device
    )
