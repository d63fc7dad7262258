from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Wind(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gusts push the trolley. They come and go across episodes: a state that is saved like any other."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.generator = np.random.default_rng(7)
        self.gust = 0.0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.gust = 0.95 * self.gust + 0.03 * float(self.generator.normal())
        return self.env.step(np.clip(action + self.gust, -1.0, 1.0))
