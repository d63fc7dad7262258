"""A corridor to walk to the end of: the longer, the harder. Made with a length, or told one by its method."""

from __future__ import annotations

import threading
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Corridor(gymnasium.Env[Any, Any]):
    """
    :param length: steps from the middle of the start to the end
    :param discrete: whether an action is one of three, or a push between -1 and 1
    :param seen: how many numbers are seen
    """

    def __init__(self, length: int = 2, discrete: bool = True, seen: int = 2, tells: bool = True) -> None:
        if length > 50:
            raise ValueError("no corridor is longer than 50")
        self.length, self.tells = length, tells
        self.place = 0.0
        self.walked = 0
        self.action_space: Any = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = spaces.Box(-100, 100, (seen,), np.float32)

    def set_length(self, length: int) -> None:
        if length < 1:
            raise ValueError("a corridor has a length")
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-1, 1))
        return self.see(), {}

    def step(self, action: Any) -> Any:
        push = action - 1 if isinstance(self.action_space, spaces.Discrete) else float(action[0])
        self.place += push * float(self.np_random.uniform(0.5, 1.5))
        self.walked += 1  # over all episodes: what lasts
        there = self.place >= self.length
        return self.see(), float(there) - 0.1, there, False, {"is_success": there} if self.tells else {}

    def see(self) -> Any:
        return np.resize(
            np.array([self.place, self.length + self.walked % 3], np.float32), self.observation_space.shape
        )


class KeptCorridor(Corridor):
    """Gives and takes its state itself."""

    def get_state(self) -> Any:
        return self.place, self.walked, self.length

    def set_state(self, state: Any) -> None:
        self.place, self.walked, self.length = state


class LockedCorridor(Corridor):
    """Cannot be pickled where it is long, so that only a replay brings an episode back."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.length > 2:
            self.lock = threading.Lock()

    def set_length(self, length: int) -> None:
        super().set_length(length)
        self.lock = threading.Lock()


def finished(episode_return: float, length: int, info: dict[str, Any]) -> bool:
    """A condition of one's own."""
    return length < 8


for _kind in (Corridor, KeptCorridor, LockedCorridor):
    gymnasium.register(f"{_kind.__name__}-v0", f"corridor:{_kind.__name__}", max_episode_steps=12)
