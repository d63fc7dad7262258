"""Scripts that call ``learn`` more than once."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import train_cloud

NETWORK = {"net_arch": [8]}
PPO_ARGUMENTS: dict[str, Any] = {"policy_kwargs": NETWORK, "device": "cpu", "batch_size": 16, "n_epochs": 1}
SAC_ARGUMENTS: dict[str, Any] = {"policy_kwargs": NETWORK, "device": "cpu", "batch_size": 8, "learning_starts": 20}


def _pendulums(n_envs: int, seed: int) -> VecEnv:
    return make_vec_env("Pendulum-v1", n_envs, seed=seed, env_kwargs={"max_episode_steps": 30})


class Interrupt(BaseCallback):
    """``INTERRUPT=<signal>@<steps>``, of all steps that this process has trained and those that it was resumed with."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.before = before

    def _on_step(self) -> bool:
        name, _, at = os.environ.get("INTERRUPT", "").partition("@")
        if name and self.before + self.num_timesteps >= int(at):
            os.environ["INTERRUPT"] = ""
            os.kill(os.getpid(), getattr(signal, name))
        return True


class StopAt(BaseCallback):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.seen = at, 0

    def _on_step(self) -> bool:
        self.seen += 1
        return self.num_timesteps < self.at


def _learn(model: Any, steps: int, before: int, *more: BaseCallback, reset: bool) -> None:
    callbacks = [*more, Interrupt(before), train_cloud.checkpoints()]
    model.learn(steps, callback=callbacks, reset_num_timesteps=reset, log_interval=1)


def counted() -> None:
    """The timesteps go on, and the environment changes between the phases."""
    run = train_cloud.run_file()
    env = _pendulums(2, run.seed)
    model = PPO("MlpPolicy", env, n_steps=16, seed=run.seed, **PPO_ARGUMENTS)
    for part in range(3):
        env.set_attr("m", 1.0 + 0.2 * part)
        _learn(model, run.total_timesteps // 3, 0, reset=part == 0)


def restarted() -> None:
    """The model's timesteps begin at 0 again, its replay buffer goes on, and each phase has callbacks of its own."""
    run = train_cloud.run_file()
    model = SAC("MlpPolicy", _pendulums(1, run.seed), seed=run.seed, buffer_size=150, **SAC_ARGUMENTS)
    _learn(model, 100, 0, reset=True)
    assert model.ent_coef_optimizer is not None
    model.ent_coef_optimizer.param_groups[0]["lr"] = 1e-2
    _learn(model, 120, 100, StopAt(1000), reset=True)
    _learn(model, 80, 220, reset=True)


def ended_early() -> None:
    """A callback ends the first phase; the next one is trained all the same."""
    run = train_cloud.run_file()
    model = SAC("MlpPolicy", _pendulums(1, run.seed), seed=run.seed, buffer_size=500, **SAC_ARGUMENTS)
    _learn(model, 150, 0, StopAt(90), reset=True)
    _learn(model, 110, 0, reset=False)


def two_models() -> None:
    """The second model begins with the first one's parameters, which the script looks at in between."""
    run = train_cloud.run_file()
    first = PPO("MlpPolicy", _pendulums(1, 1), n_steps=32, seed=run.seed, **PPO_ARGUMENTS)
    _learn(first, 96, 0, reset=True)
    assert np.isfinite(first.predict(np.zeros(3, np.float32), deterministic=True)[0]).all()
    second = PPO("MlpPolicy", _pendulums(2, 2), n_steps=16, seed=5, **PPO_ARGUMENTS)
    second.set_parameters(first.get_parameters())  # type: ignore[arg-type]  # what SB3 gives it takes
    _learn(second, 96, 96, reset=True)


def another_buffer() -> None:
    for seed in (1, 2):
        model = SAC("MlpPolicy", _pendulums(1, seed), seed=seed, buffer_size=500, **SAC_ARGUMENTS)
        _learn(model, 50, 0, reset=True)


def too_many() -> None:
    model = PPO("MlpPolicy", _pendulums(1, 1), n_steps=32, **PPO_ARGUMENTS)
    for _ in range(2):
        _learn(model, train_cloud.run_file().total_timesteps, 0, reset=False)
