"""The levels, from easy to hard, by the names that run files use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minigrid.envs import LavaGapEnv, MultiRoomEnv
from minigrid.envs.babyai import GoToLocal, GoToObj, UnlockPickup
from minigrid.minigrid_env import MiniGridEnv

LEVELS: Mapping[str, Callable[..., MiniGridEnv]] = {
    # Go to the one object that there is, in a small room.
    "simple": lambda **arguments: GoToObj(room_size=6, **arguments),
    # Go to the object that the mission names, among others.
    "medium": lambda **arguments: GoToLocal(room_size=8, num_dists=5, **arguments),
    # Take the key, open the door, pick up the box behind it.
    "complex": lambda **arguments: UnlockPickup(**arguments),
    # Through the gap in a wall of lava, which ends the episode.
    "mine-heavy": lambda **arguments: LavaGapEnv(size=7, **arguments),
    # Through rooms with closed doors to the goal in the last.
    "exploration": lambda **arguments: MultiRoomEnv(2, 4, maxRoomSize=5, **arguments),
}


def make(name: str, render_mode: str | None) -> MiniGridEnv:
    """:raises ValueError: there is no such level"""
    if name not in LEVELS:
        raise ValueError(f"no level {name!r}: use {', '.join(LEVELS)}")
    arguments: dict[str, Any] = {"render_mode": render_mode, "tile_size": 16}
    return LEVELS[name](**arguments)
