"""Environments and wrappers whose state is in variables of functions, in classes that functions make, and in defaults:
the reward tells how often a step was taken.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformReward

Env = gymnasium.Env[Any, Any]


class Still(gymnasium.Env[Any, Any]):
    """Nothing happens."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, False, False, {}


class Rewarded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """By functions that it holds in whatever way."""

    def __init__(self, env: Env, held: Any, call: Callable[[Any], float]) -> None:
        super().__init__(env)
        self.held, self.call = held, call

    def step(self, action: Any) -> Any:
        observation, _, *rest = self.env.step(action)
        return (observation, self.call(self.held), *rest)


def counter() -> Callable[..., float]:
    count = 0

    def counted(reward: float = 0.0) -> float:
        nonlocal count
        count += 1
        return reward + count

    return counted


def calls(held: Any) -> float:
    return float(held())


def variable() -> Env:
    return TransformReward(Still(), counter())


def of_the_base() -> Env:
    env = Still()
    count = counter()
    vars(env)["step"] = lambda action: (np.zeros(1, np.float32), count(), False, False, {})
    return env


def in_a_list() -> Env:
    return Rewarded(Still(), [counter(), {"more": counter()}], lambda held: held[0]() + held[1]["more"]())


def shared_by_two() -> Env:
    steps: list[int] = []

    def append() -> None:
        steps.append(1)

    def length() -> int:
        append()
        return len(steps)

    env = Rewarded(Still(), length, calls)
    env.steps = steps  # type: ignore[attr-defined]
    env.call = lambda held: calls(held) + len(env.steps)  # type: ignore[attr-defined]
    return env


def partial() -> Env:
    def added(seen: list[int]) -> float:
        seen.append(1)
        return float(len(seen))

    return Rewarded(Still(), functools.partial(added, []), calls)


def method_of_a_local_class() -> Env:
    class Counter:
        count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

    return Rewarded(Still(), Counter().add, calls)


def default() -> Env:
    def remembered(past: list[int] = [], *, more: dict[str, int] = {}) -> float:  # noqa: B006
        past.append(1)
        more["n"] = more.get("n", 0) + 1
        return float(len(past) + more["n"])

    return Rewarded(Still(), remembered, calls)


def attribute() -> Env:
    def counted() -> float:
        counted.calls += 1  # type: ignore[attr-defined]
        return float(counted.calls)  # type: ignore[attr-defined]

    counted.calls = 0  # type: ignore[attr-defined]
    return Rewarded(Still(), counted, calls)


def with_what_stays() -> Env:
    """A lock, the outermost layer, a module, a variable without a value, and itself."""
    lock, count = threading.Lock(), 0

    def counted() -> float:
        nonlocal count
        with lock:
            count += 1
        assert env.unwrapped is not None and np is not None and counted is not None
        if count < 0:
            print(never)
        return float(count)

    env = Rewarded(Still(), counted, calls)
    if count:
        never = 1
    return env


STAYING: dict[str, Callable[[], Env]] = {
    made.__name__: made
    for made in (variable, of_the_base, in_a_list, shared_by_two, partial, method_of_a_local_class, default,
                 attribute, with_what_stays)
}  # fmt: skip


def connected() -> Env:
    connection, count = socket.socket(), counter()

    def counted() -> float:
        return count() + 0 * connection.fileno()

    return Rewarded(Still(), counted, calls)


# ----------------------------------------------------------------------------------- what instances and layers share


def local_class() -> Env:
    seen = 0

    class Counted(gymnasium.Wrapper[Any, Any, Any, Any]):
        hits = 0

        def step(self, action: Any) -> Any:
            nonlocal seen
            seen += 1
            Counted.hits += 2
            observation, _, *rest = self.env.step(action)
            return (observation, float(seen + Counted.hits), *rest)

    return Counted(Still())


def counting(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    count = 0

    @functools.wraps(step)
    def counted(self: Any, action: Any) -> Any:
        nonlocal count
        count += 1
        observation, _, *rest = step(self, action)
        return (observation, float(count), *rest)

    return counted


class Decorated(Still):
    @counting
    def step(self, action: Any) -> Any:
        return super().step(action)


class Classed(Still):
    steps = 0

    def step(self, action: Any) -> Any:
        Classed.steps += 1
        observation, _, *rest = super().step(action)
        return (observation, float(Classed.steps), *rest)


def remembering(reward: Any, past: list[int] = []) -> float:  # noqa: B006
    past.append(1)
    return float(len(past))


def of_a_module() -> Env:
    return TransformReward(Still(), remembering)


SHARED: dict[str, Callable[[], Env]] = {
    "a local class": local_class, "a decorator": Decorated, "a class": Classed, "a default": of_a_module,
}  # fmt: skip
