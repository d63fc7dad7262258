"""A user's callback, wrapper and environment that hold state in every way that Python has: for test_accounting.py."""

from __future__ import annotations

import array
import collections
import dataclasses
import functools
import itertools
import queue
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd

COUNTS: dict[str, list[int]] = {"steps": [0]}
EPSILON = 0.1


@dataclasses.dataclass
class Best:
    reward: float = -np.inf
    when: list[int] = dataclasses.field(default_factory=list)


class Point:
    __slots__ = ("__weakref__", "_x", "beside")

    def __init__(self) -> None:
        self._x, self.beside = 0.0, [0]


class Base:
    """State of the class, and of its parent."""

    made = 0


class Tracker(Base):
    def __init__(self, size: int) -> None:
        self.recent: collections.deque[float] = collections.deque(maxlen=size)
        self.best, self.point = Best(), Point()
        self.inner: Tracker | None = Tracker(size - 1) if size > 3 else None
        Base.made += 1


def averaging(rate: float) -> Callable[[float], float]:
    """A closure."""
    average = 0.0

    def update(value: float) -> float:
        nonlocal average
        average += rate * (value - average)
        return average

    return update


class Everything(BaseCallback):
    """Holds all of it, changes it at each step, and draws what is learned next from it."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = Tracker(5)
        self.rng = np.random.default_rng(11)
        self.statistics = RunningMeanStd(shape=(1,))
        self.average = averaging(0.1)
        self.tensors = [torch.zeros(2), torch.ones(1, dtype=torch.float64)]
        self.again = {"tracker": self.tracker, "first": self.tensors[0][:1]}
        self.numbers, self.items = itertools.count(3), iter(["a"] * 1000)
        self.space = types.SimpleNamespace(value=0.0, packed=array.array("d", [0.0]))
        self.waiting: queue.Queue[int] = queue.Queue()
        self.by_point: Any = weakref.WeakKeyDictionary({self.tracker.point: 0})
        self.on_best = [functools.partial(self.note, "best")]
        self.masked = np.ma.masked_array([1.0, 2.0], mask=[False, True])
        self.table = np.zeros(3, [("a", "f8"), ("b", "i4")])

    def note(self, what: str, reward: float) -> None:
        self.tracker.best.reward = reward
        self.tracker.best.when.append(self.num_timesteps)

    def _on_step(self) -> bool:
        global EPSILON
        rewards, step = self.locals["rewards"], self.num_timesteps
        reward = float(sum(rewards.values()) if isinstance(rewards, dict) else rewards.sum())
        tracker = self.tracker
        tracker.recent.append(reward)
        while tracker.inner is not None:
            tracker = tracker.inner
        tracker.best.when.append(step)
        tracker.point._x += self.rng.normal()
        tracker.point.beside[0] += next(self.numbers)
        next(self.items)
        if reward > self.tracker.best.reward:
            for call in self.on_best:
                call(reward)
        self.statistics.update(np.array([[reward]]))
        self.average(reward)
        self.tensors[0] += reward
        self.space.value += reward
        self.space.packed.append(reward)
        self.waiting.put(step)
        self.by_point[self.tracker.point] += 1
        self.masked[0] += 1
        self.table["a"][step % 3] += reward
        COUNTS["steps"][0] += 1
        EPSILON *= 0.999
        Base.made += 1
        if step == 40:
            self.late: Any = {"rng": self.rng.spawn(1)[0], "seen": {step}, "owner": self.tracker}
            self.tensors.append(torch.full((3,), reward))
            model: Any = self.model
            for learner in getattr(model, "learners", {"": model}).values():
                learner.lr_schedule = lambda left: 1e-3 * left * (1 + 1e-3 * self.space.value)
        if step > 40:
            self.late["value"] = self.late["rng"].random()
            self.late["seen"].add(step % 7)
        return True


class Drifts(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper with a generator and a record of its own."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.rng = np.random.RandomState(2)
        self.best: dict[str, Best] = {"all": Best()}
        self.memory = np.zeros((2, 3))
        self.row = self.memory[1]

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        reward = float(reward) + 0.01 * self.rng.normal()
        self.row[0] += 0.01 * reward
        self.best["all"].reward = max(self.best["all"].reward, reward)
        return (observation, reward + 0.01 * float(self.memory[1, 0]), *rest)


class Rooms(gymnasium.Env[Any, Any]):
    """An environment that holds nested objects, and a set."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-10, 10, (2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.tracker, self.visited, self.steps = Tracker(3), set[int](), 0
        self.place = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-1, 1, 2), 0
        return self.place.astype(np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.place = np.clip(self.place + 0.3 * np.asarray(action)[0] + self.np_random.normal(0, 0.1, 2), -9, 9)
        self.visited.add(int(self.place[0]))
        self.tracker.recent.append(float(self.place[1]))
        reward = -float(np.abs(self.place).sum()) + 0.01 * len(self.visited)
        return self.place.astype(np.float32), reward, self.steps >= 25, False, {"rooms": len(self.visited)}


class Hides(Everything):
    """And what no checkpoint can keep: a Python generator at work."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = self.count()

    def count(self) -> Iterator[int]:
        yield from range(10**6)

    def _on_step(self) -> bool:
        next(self.hidden)
        return super()._on_step()
