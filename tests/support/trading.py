"""An environment that trades along a table of prices, as gym-anytrading does: the table is in its state."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pandas as pd
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

ROWS = 400_000
#: Of the table, its column of prices, and the signals.
TABLE_BYTES = 8 * ROWS * (4 + 1 + 2)


def prices(rows: int = ROWS) -> pd.DataFrame:
    """Made, not read: 12.8 MB."""
    generator = np.random.default_rng(5)
    close = 100 + np.cumsum(generator.normal(0, 1, rows))
    spread = generator.random((rows, 2))
    return pd.DataFrame({"open": np.roll(close, 1), "high": close + spread[:, 0], "low": close - spread[:, 1],
                         "close": close})  # fmt: skip


class Trading(gymnasium.Env[Any, Any]):
    """Long or short for a window of prices.

    :param revises: the environment corrects a price in place, at step 40 of each episode
    """

    def __init__(self, revises: bool = False) -> None:
        self.table = prices()
        self.prices = self.table["close"].to_numpy(copy=True)
        self.signals = np.asfortranarray(np.stack([self.prices, np.gradient(self.prices)], axis=1))
        self.same_signals = self.signals
        self.revises = revises
        self.at = self.steps = 0
        self.position = 1.0
        self.action_space = spaces.Discrete(2)
        self.observation_space = spaces.Box(-np.inf, np.inf, (8,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.steps = int(self.np_random.integers(4, ROWS - 100)), 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = 1.0 if action else -1.0
        self.at, self.steps = self.at + 1, self.steps + 1
        if self.revises and self.steps == 40:
            self.revise(self.at + 2)
        gained = float(self.prices[self.at] - self.prices[self.at - 1])
        return self._look(), self.position * gained, False, self.steps >= 60, {}

    def revise(self, row: int) -> None:
        """In place."""
        self.same_signals[row, 0] += 1.0
        self.prices[row] += 1.0

    def together(self) -> bool:
        """Whether one array has two names still."""
        return self.signals is self.same_signals

    def _look(self) -> Any:
        return self.signals[self.at - 3 : self.at + 1].ravel() - self.prices[self.at]


class Table(BaseCallback):
    """Holds a table, and counts in it."""

    def __init__(self) -> None:
        super().__init__()
        self.known = np.arange(100_000.0)
        self.visited = np.zeros(50_000)

    def _on_step(self) -> bool:
        self.visited[self.n_calls] = self.known[self.n_calls]
        return True


gymnasium.register("Trading-v0", "trading:Trading")
