from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium import spaces
from minigrid.minigrid_env import MiniGridEnv

from gridworld import levels, observations


class Gridworld(gymnasium.Env[Any, Any]):
    """One of minigrid's worlds at a time, seen as local view, map, graph and state.

    All chance comes from ``self.np_random``: it draws the level, and the seed of the level's own generator.

    :param level: a name of :data:`gridworld.levels.LEVELS`, or several, of which each episode draws one
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - Gymnasium's own shape

    def __init__(self, level: str | Sequence[str] = "simple", render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.worlds: dict[str, MiniGridEnv] = {}
        self.set_level(level)
        self.level = self.names[0]
        self.action_space = spaces.Discrete(len(self.world.actions))
        self.observation_space = observations.space()
        self.last_action: int | None = None
        """Of this episode."""
        self.expert: Any = None
        """Whoever plays this episode as :func:`gridworld.expert.bot` does, with its plan."""

    @property
    def world(self) -> MiniGridEnv:
        """Minigrid's environment of this episode."""
        return self.worlds[self.level]

    def set_level(self, level: str | Sequence[str]) -> None:
        """From the next episode on.

        :raises ValueError: there is no such level
        """
        names = (level,) if isinstance(level, str) else tuple(level)
        if not names:
            raise ValueError("name at least one level")
        for name in names:
            if name not in self.worlds:
                self.worlds[name] = levels.make(name, self.render_mode)
        self.names = names

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.level = self.names[int(self.np_random.integers(len(self.names)))]
        self.last_action = self.expert = None
        seen, _ = self.world.reset(seed=int(self.np_random.integers(2**31)))
        return observations.observe(self.world, seen["image"]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.last_action = int(action)
        seen, reward, terminated, truncated, _ = self.world.step(self.last_action)
        x, y = self.world.agent_pos
        succeeded = bool(terminated and reward > 0)
        info = {"position": (float(x), float(y)), "level": self.level, "is_success": succeeded}
        return observations.observe(self.world, seen["image"]), float(reward), terminated, truncated, info

    def render(self) -> Any:
        return self.world.render()

    def close(self) -> None:
        for world in self.worlds.values():
            world.close()
