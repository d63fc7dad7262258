"""A crane whose load must not swing. Importing this package registers ``Crane-v0``."""

from __future__ import annotations

import gymnasium

gymnasium.register("Crane-v0", entry_point="crane.environment:Crane", max_episode_steps=120)
