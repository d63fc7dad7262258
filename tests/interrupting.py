"""Callbacks and environments that the exactness tests name in their run files."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import gymnasium
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3.common.callbacks import BaseCallback

from train_cloud.run.head import Lease, Token
from train_cloud.store import open_store

if os.environ.get("STOP_AT_IMPORT"):
    os.kill(os.getpid(), signal.SIGTERM)


class InterruptAt(BaseCallback):
    """Does at some step, once, what the environment says: ``INTERRUPT=<signal>@<timesteps>`` sends a signal to its own
    process, ``RAISE_AT`` raises, ``SLEEP_AT`` sleeps three seconds, ``FENCE_AT`` lets a newer worker take the run.
    """

    def _on_step(self) -> bool:
        name, _, at = os.environ.get("INTERRUPT", "").partition("@")
        if name and self._due("INTERRUPT", at):
            os.kill(os.getpid(), getattr(signal, name))
        if self._due("RAISE_AT"):
            raise ArithmeticError("on purpose")
        if self._due("SLEEP_AT"):
            time.sleep(3)
        if self._due("FENCE_AT"):
            Lease.take(open_store(os.environ["FENCE_STORE"]), Token(50, 0), "i-newer")
        return True

    def _due(self, variable: str, at: str | None = None) -> bool:
        at = at or os.environ.get(variable)
        if not at or self.num_timesteps < int(at):
            return False
        os.environ[variable] = ""
        return True


class Wind(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Changes the reward by a number that it draws and remembers: state of a wrapper."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.force = 0.0

    def step(self, action: Any) -> Any:
        self.force = 0.9 * self.force + float(self.env.unwrapped.np_random.normal(0, 0.1))
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) + self.force, terminated, truncated, info


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A step takes 20 ms."""

    def step(self, action: Any) -> Any:
        time.sleep(0.02)
        return self.env.step(action)


class Unpicklable(PendulumEnv):
    """Cannot be pickled, so that only a replay can bring its episode back."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


gymnasium.register("Unpicklable-v0", "interrupting:Unpicklable", max_episode_steps=200)
