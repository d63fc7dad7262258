"""An environment that reports all that an evaluation can look at: position, speed, success, collisions, a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 30


class Circle(gymnasium.Env[Any, Any]):
    """A point goes around a circle; faster is better, and too fast is a crash.

    :param level: file with the circle's ``radius``
    :param renders: whether it can be drawn
    :param breaks: raises at this step
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's own name and shape

    def __init__(
        self,
        render_mode: str | None = None,
        level: str | None = None,
        renders: bool = True,
        breaks: int = 0,
        crash_at: float = 0.9,
    ) -> None:
        if render_mode is not None and not renders:
            raise ValueError("there is no display")
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-5.0, 5.0, (3,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.radius = float(json.loads(Path(level).read_text())["radius"]) if level else 1.0
        self.breaks, self.crash_at = breaks, crash_at

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.angle, self.speed, self.steps = float(self.np_random.uniform(0, 2 * np.pi)), 0.0, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == self.breaks:
            raise ArithmeticError("the wheel came off")
        self.speed = 0.9 * self.speed + 0.1 * float(action[0]) + 0.01 * float(self.np_random.normal())
        self.angle += self.speed / self.radius
        crashed = abs(self.speed) > self.crash_at
        info = {
            "position": np.array([np.cos(self.angle), np.sin(self.angle)]) * self.radius,
            "speed": self.speed,
            "crashed": crashed,
        }
        over = self.steps >= LENGTH
        if over or crashed:
            info["is_success"] = not crashed and self.speed > 0
        return self._observe(), self.speed * 3, crashed, over, info

    def render(self) -> Any:
        frame = np.full((121, 161, 3), 255, np.uint8)  # odd sides, as some environments have
        x, y = int(80 + 50 * np.cos(self.angle)), int(60 + 50 * np.sin(self.angle))
        frame[max(0, y - 5) : y + 5, max(0, x - 5) : x + 5] = (200, 30, 30)
        return frame

    def _observe(self) -> Any:
        return np.array([np.cos(self.angle), np.sin(self.angle), self.speed], np.float32)


def centreline(env: gymnasium.Env[Any, Any]) -> Any:
    angles = np.linspace(0, 2 * np.pi, 60)
    circle: Any = env.unwrapped
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * circle.radius


def fast_enough(episode_return: float, length: int, info: dict[str, Any]) -> bool | None:
    return None if length < LENGTH else episode_return > 0


gymnasium.register("Circle-v0", entry_point="evaluated_environment:Circle")
