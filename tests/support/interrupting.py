"""Callbacks and environments that the exactness tests name in their run files."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3.common.callbacks import BaseCallback
from torch import distributed

import train_cloud
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


class InterruptRank(InterruptAt):
    """The same, in the rank that ``INTERRUPT_RANK`` names, of several that train one run. And draws of its own."""

    def _on_step(self) -> bool:
        self.drawn = float(np.random.random())
        return distributed.get_rank() != int(os.environ.get("INTERRUPT_RANK", "0")) or super()._on_step()


class EndInRank1(BaseCallback):
    """Ends the training after 200 timesteps, and is asked in rank 1 alone."""

    def _on_step(self) -> bool:
        ends = distributed.get_rank() == 1 and "END_NOWHERE" not in os.environ
        return not ends or self.num_timesteps < 200


class Rollouts(BaseCallback):
    """Counts rollouts and draws at each start of one: state that a callback changes before any step."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts = 0
        self.drawn = 0.0

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        self.drawn += float(np.random.random())

    def _on_step(self) -> bool:
        return True


class Saves(BaseCallback):
    """Saves the model once, as SB3's own callbacks do."""

    def _on_step(self) -> bool:
        path = os.environ.get("SAVE_TO")
        if path and self.num_timesteps >= 128:
            os.environ["SAVE_TO"] = ""
            self.model.save(path)
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


class Walk(gymnasium.Env[Any, Any]):
    """A walk on a line to a point, shown in the form that is asked for.

    :param reach: how far away the point is at most
    """

    reach: float = 3  # old checkpoints have none

    def __init__(self, shown: str = "float64", discrete: bool = False, reach: float = 3) -> None:
        self.shown, self.reach = shown, reach
        self.place = self.goal = np.zeros(2)
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,), np.float32)
        line = spaces.Box(-10, 10, (2,), np.float64)
        self.observation_space = {
            "goal": spaces.Dict({"observation": line, "achieved_goal": line, "desired_goal": line}),
            "dict": spaces.Dict({"line": spaces.Box(-10, 10, (2,), np.float16), "far": spaces.Discrete(2)}),
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "float64": line,
        }[shown]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-3, 3, 2), self.np_random.uniform(-self.reach, self.reach, 2)
        return self.see(), {}

    def set_reach(self, reach: float) -> None:
        self.reach = reach

    def step(self, action: Any) -> Any:
        push = action - 1 if isinstance(self.action_space, spaces.Discrete) else action[0]
        self.place = np.clip(self.place + push * self.np_random.uniform(0, 1, 2), -9, 9)
        there = bool(np.abs(self.place - self.goal).max() < 1)
        return self.see(), float(self.compute_reward(self.place, self.goal, {})), there, False, {}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return -np.abs(achieved - desired).max(axis=-1)

    def see(self) -> Any:
        if self.shown == "goal":
            return {"observation": self.place, "achieved_goal": self.place, "desired_goal": self.goal}
        if self.shown == "dict":
            return {"line": (self.place - self.goal).astype(np.float16), "far": int(self.place[0] > self.goal[0])}
        if self.shown == "image":
            return np.full((36, 36, 1), 20 * abs(self.place - self.goal).max(), np.uint8)
        return self.place - self.goal


gymnasium.register("Walk-v0", "interrupting:Walk", max_episode_steps=30)
gymnasium.register("Unpicklable-v0", "interrupting:Unpicklable", max_episode_steps=200)


class KeptWalk(Walk):
    """Gives and takes its state itself."""

    def get_state(self) -> Any:
        return self.place.copy(), self.goal.copy()

    def set_state(self, state: Any) -> None:
        self.place, self.goal = (part.copy() for part in state)


class LockedWalk(Walk):
    """Cannot be pickled: only a replay brings its episode back."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lock = threading.Lock()


class _Masks(Walk):
    """Forbids to push on where it would leave the line; doing so all the same is an error."""

    def action_masks(self) -> Any:
        return np.array([self.place.min() > -2, True, self.place.max() < 2])

    def step(self, action: Any) -> Any:
        assert self.action_masks()[action], "a forbidden action"
        return super().step(action)


class MaskedWalk(_Masks):
    pass


class MaskedKeptWalk(_Masks, KeptWalk):
    pass


class MaskedLockedWalk(_Masks, LockedWalk):
    pass


for _kind in (KeptWalk, LockedWalk, MaskedWalk, MaskedKeptWalk, MaskedLockedWalk):
    gymnasium.register(f"{_kind.__name__}-v0", f"interrupting:{_kind.__name__}", max_episode_steps=30)


def short(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Many episodes in few steps."""
    return gymnasium.wrappers.TimeLimit(env, 6)


class SlowBy2(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A step takes 2 ms, so that something can happen beside it."""

    def step(self, action: Any) -> Any:
        time.sleep(0.002)
        return self.env.step(action)


class WritesFiles(BaseCallback):
    """Leaves a file in the artifact folder, early and late."""

    def _on_step(self) -> bool:
        for name, at in (("early", 100), ("late", 500)):
            if self.num_timesteps == at:
                path = train_cloud.artifact_folder() / "plots" / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(f"at {at}".encode())
        return True
