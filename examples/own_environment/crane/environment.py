from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Crane(gymnasium.Env[Any, Any]):
    """A trolley carries a load on a rope from where it stands to 0, without letting it swing.

    Nothing here is made for train-cloud: what an episode needs lies in attributes, and chance comes from
    ``self.np_random``. That is all it takes to be resumed in mid-episode.

    :param length: of the rope, in metres
    """

    def __init__(self, length: float = 1.0) -> None:
        self.length = length
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = spaces.Box(-10.0, 10.0, (4,), np.float32)
        self.place = self.speed = self.angle = self.turn = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-2.0, 2.0))
        self.speed = self.angle = self.turn = 0.0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = 4.0 * float(np.clip(action[0], -1.0, 1.0))
        seconds = 0.05
        self.turn += seconds * (-9.81 * math.sin(self.angle) - push * math.cos(self.angle)) / self.length
        self.turn += 0.02 * float(self.np_random.normal())
        self.angle += seconds * self.turn
        self.speed += seconds * push
        self.place += seconds * self.speed
        lost = abs(self.place) > 4.0 or abs(self.angle) > 1.2
        reward = 1.0 - 0.4 * abs(self.place) - abs(self.angle) - (20.0 if lost else 0.0)
        return self._observation(), reward, lost, False, {"swing": abs(self.angle)}

    def _observation(self) -> Any:
        return np.array([self.place, self.speed, self.angle, self.turn], dtype=np.float32)
