"""An environment that takes a generator without a seed for each episode, as ``gymnasium.utils.seeding.np_random(None)``
gives one, and holds what cannot be pickled.
"""

from __future__ import annotations

import threading
from typing import Any

import gymnasium
import numpy as np


class Unseeded(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(-100.0, 100.0, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, each_step: bool = False) -> None:
        self.lock = threading.Lock()
        self.each_step = each_step

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.draws, _ = gymnasium.utils.seeding.np_random(None)
        self.at, self.count = self.draws.normal(size=2), 0
        return self.at.copy(), {}

    def step(self, action: Any) -> Any:
        draws = np.random.default_rng() if self.each_step else self.draws
        self.at = self.at + draws.normal(size=2) + float(action[0])
        self.count += 1
        return self.at.copy(), 0.0, self.count >= 30, False, {}


gymnasium.register("Unseeded-v0", "unseeded:Unseeded")
