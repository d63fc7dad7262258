"""Where your environment goes. What is here works: a point on a line is pushed to its goal and has to stop there."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class MyEnvironment(gymnasium.Env[Any, Any]):
    """An ordinary Gymnasium environment. Two things let it be resumed in mid-episode: all that an episode needs lies in
    attributes, and chance comes from ``self.np_random``. ``train-cloud validate`` says whether that worked.

    :param goal: where the point has to stop, from -1 to 1
    """

    def __init__(self, goal: float = 0.0) -> None:
        self.goal = goal
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.place = self.speed = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.speed = float(self.np_random.uniform(-1.0, 1.0)), 0.0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = float(np.clip(action[0], -1.0, 1.0))
        self.speed = 0.9 * self.speed + 0.05 * push + 0.002 * float(self.np_random.normal())
        self.place += self.speed
        outside = abs(self.place) > 2.0
        reward = -abs(self.place - self.goal) - 0.1 * push**2 - (50.0 if outside else 0.0)
        return self._observation(), reward, outside, False, {}

    def _observation(self) -> Any:
        return np.array([self.place, self.speed], dtype=np.float32)


gymnasium.register("MyEnvironment-v0", entry_point="my_environment:MyEnvironment", max_episode_steps=50)
