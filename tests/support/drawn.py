"""Environments with pictures that depend on the driver, for tests/test_rendering.py and tests/test_evaluate.py."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 12


class Walk(gymnasium.Env[Any, Any]):
    """A point on a line, whose state is one array that moves in place, and whose info is one dict.

    :param black: ``NAME=value`` of environment variables with which its frames are all black; more by commas
    :param raises: the same, with which drawing raises
    :param still: its picture is always the same
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's own name and shape

    def __init__(
        self, render_mode: str | None = None, black: str = "", raises: str = "", still: bool = False, kind: str = "u1"
    ) -> None:
        self.render_mode, self.black, self.raises, self.still, self.kind = render_mode, black, raises, still, kind
        self.observation_space = spaces.Box(-50.0, 50.0, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.position, self.info = np.zeros(2), dict[str, Any]()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position[:] = 0.0
        self.steps = 0
        self.info.clear()
        return self.position, self.info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.position += (1.0, 0.5)
        action *= 0.0  # an environment may do with the action what it likes
        self.info.update(position=self.position, laps=self.steps // 6)
        return self.position, 1.0, False, self.steps == LENGTH, self.info

    def render(self) -> Any:
        if _is_set(self.raises):
            raise RuntimeError("no such driver")
        frame = np.zeros((64, 80, 3), np.uint8)
        if not _is_set(self.black):
            at = 5 if self.still else 5 + 4 * self.steps
            frame[:] = 90
            frame[20:40, at : at + 6] = (220, 40, 40)
        return frame / np.float32(255) if self.kind == "f4" else frame


def _is_set(conditions: str) -> bool:
    pairs = [each.partition("=") for each in conditions.split(",") if each]
    return any(os.environ.get(name, "") == value for name, _, value in pairs)


class Triangle(gymnasium.Env[Any, Any]):
    """Draws with OpenGL into an SDL window, as games do."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's own name and shape

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.window: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.turned = 0.0
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.turned += 15.0
        return np.zeros(1), 0.0, False, False, {}

    def render(self) -> Any:
        import pygame
        from OpenGL import GL  # type: ignore[import-untyped]

        if self.window is None:
            pygame.display.init()
            self.window = pygame.display.set_mode((120, 80), pygame.OPENGL | pygame.DOUBLEBUF)
        GL.glViewport(0, 0, 120, 80)
        GL.glClearColor(0.1, 0.2, 0.4, 1.0)
        GL.glClear(GL.GL_COLOR_BUFFER_BIT)
        GL.glLoadIdentity()
        GL.glRotatef(self.turned, 0.0, 0.0, 1.0)
        GL.glBegin(GL.GL_TRIANGLES)
        for colour, corner in (((1, 0, 0), (-0.8, -0.8)), ((0, 1, 0), (0.8, -0.8)), ((1, 1, 0), (0.0, 0.8))):
            GL.glColor3f(*colour)
            GL.glVertex2f(*corner)
        GL.glEnd()
        pixels = GL.glReadPixels(0, 0, 120, 80, GL.GL_RGB, GL.GL_UNSIGNED_BYTE)
        return np.frombuffer(pixels, np.uint8).reshape(80, 120, 3)[::-1]


gymnasium.register("Walk-v0", entry_point="drawn:Walk")
gymnasium.register("Triangle-v0", entry_point="drawn:Triangle")
