"""An environment whose step costs about a microsecond, so that what is measured is the training and not the simulation.

Observations are the rows of one fixed random table, in order: as in a real environment, the observation after a step is
the one before the next, except at an episode's end.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

COUNT = "BENCHMARK_STEPS"
"""Environment variable: a file of 16 bytes in which every step is counted, for a reader outside of the process."""
_COUNT = struct.Struct("<Qd")
_EPISODE = 500
_ROWS = 997


@functools.cache
def _table(size: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(_ROWS, size)).astype(np.float32)


@functools.cache
def _counter() -> mmap.mmap | bytearray:
    path = os.environ.get(COUNT)
    if path is None:
        return bytearray(_COUNT.size)
    with Path(path).open("r+b") as file:
        return mmap.mmap(file.fileno(), _COUNT.size)


def read_count(path: Path) -> tuple[int, float]:
    """Steps so far, and when the last of them was, on ``time.perf_counter()``."""
    while True:
        body = path.read_bytes()
        if body == path.read_bytes():  # not in the middle of a write
            return _COUNT.unpack(body)


class Table(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """:param size: floats per observation; actions have two
    :param seconds: to wait in each step
    """

    def __init__(self, size: int, seconds: float = 0.0) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.size, self.seconds = size, seconds
        self.row = self.steps = self.count = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.row, self.steps = int(self.np_random.integers(_ROWS)), 0
        return _table(self.size)[self.row], {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self.seconds:
            time.sleep(self.seconds)
        self.row = (self.row + 1) % _ROWS
        self.steps += 1
        self.count += 1
        _COUNT.pack_into(_counter(), 0, self.count, time.perf_counter())
        return _table(self.size)[self.row], float(action[0]), False, self.steps >= _EPISODE, {}


gymnasium.register("Table-v0", "benchmarks.environment:Table", order_enforce=False, disable_env_checker=True)
