"""Environments that share something within a process, as emulators and careless code do. Without torch: other processes
import this to try them out."""

from __future__ import annotations

import os
import threading
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

_open = 0
LEVELS = {"level": 0}
seen: list[int] = []


class Walk(gymnasium.Env[Any, Any]):
    """A walk on a line, of 12 steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.place, self.steps = 0.0, 0

    def harder(self) -> float:
        return 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.normal()), 0
        return self._see(), {}

    def step(self, action: Any) -> Any:
        self.place += 0.3 * float(action[0]) + 0.1 * self.harder() * float(self.np_random.normal())
        self.steps += 1
        return self._see(), -abs(self.place), False, self.steps >= 12, {}

    def _see(self) -> Any:
        return np.array([self.place, self.steps])


class OneOnly(Walk):
    """Its process can have one of them, once."""

    def __init__(self) -> None:
        global _open
        if _open:
            raise RuntimeError("Cannot create multiple emulator instances per process")
        _open += 1
        super().__init__()
        self.emulator = threading.Lock()  # what cannot be pickled


class ClassCounter(Walk):
    """Later episodes are harder, by an attribute of the class."""

    episodes = 0
    past: ClassVar[list[int]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        type(self).episodes += 1
        self.past.append(self.episodes)
        return super().reset(seed=seed, options=options)

    def harder(self) -> float:
        return float(self.episodes + len(self.past))


class ModuleCounter(Walk):
    """Later episodes are harder, by what the module counts; the walk itself must be replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        LEVELS["level"] += 1
        seen.append(LEVELS["level"])
        return super().reset(seed=seed, options=options)

    def harder(self) -> float:
        return float(LEVELS["level"] + len(seen))


class Rough(Walk):
    """Closes what it does not have, and hands on what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.viewer: Any = None
        self.client = threading.Lock()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options=options)[0], {"client": self.client, "steps": 0}

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"client": self.client, "steps": self.steps}

    def close(self) -> None:
        self.viewer.close()


class Sets(Walk):
    """Draws from a set of names."""

    def harder(self) -> float:
        return float(len(self.np_random.choice(list({"a", "bc", "def", "ghij", "klmno", "pqrstu"}))))


class Aborts(Walk):
    """As native code does."""

    def step(self, action: Any) -> Any:
        os.abort()


class Leaves(Walk):
    """As a script does whose arguments are wrong."""

    def step(self, action: Any) -> Any:
        print("the step says: no")
        raise SystemExit(5)


for _kind in (OneOnly, ClassCounter, ModuleCounter, Rough, Sets, Aborts, Leaves):
    gymnasium.register(f"{_kind.__name__}-v0", f"one_only:{_kind.__name__}")
