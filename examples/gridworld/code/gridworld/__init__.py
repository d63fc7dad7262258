"""Minigrid's worlds with observations of several kinds. Importing this package registers ``Gridworld-v0``."""

from __future__ import annotations

import gymnasium

gymnasium.register("Gridworld-v0", entry_point="gridworld.environment:Gridworld")
