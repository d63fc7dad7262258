"""Environments of several agents that the tests name in their run files."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


class Walkers:
    """Walkers on lines, each to a point of its own: who is there has ended, the others go on until time is up.

    A ``ParallelEnv`` without PettingZoo.

    :param count: of walkers
    :param shown: ``box``, ``image`` or ``dict``
    :param discrete: names of walkers with discrete actions
    :param differing: each walker sees one number more than the one before
    :param reused: the arrays that it gives are the same ones at every step
    """

    def __init__(
        self,
        count: int = 2,
        shown: str = "box",
        discrete: tuple[str, ...] = (),
        differing: bool = False,
        reused: bool = False,
    ) -> None:
        self.possible_agents = [f"walker_{number}" for number in range(count)]
        self.agents: list[str] = []
        self.shown, self.discrete = shown, discrete
        self.lines: dict[str, Any] | None = {} if reused else None
        self.sizes = {name: 2 + (number if differing else 0) for number, name in enumerate(self.possible_agents)}
        self.np_random = np.random.default_rng()
        self.places: dict[str, float] = {}
        self.goals: dict[str, float] = {}
        self.steps = 0

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        if self.shown == "image":
            return spaces.Box(0, 255, (36, 36, 1), np.uint8)
        line = spaces.Box(-10, 10, (self.sizes[agent],), np.float32)
        return spaces.Dict({"line": line, "far": spaces.Discrete(2)}) if self.shown == "dict" else line

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(3) if agent in self.discrete else spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.places = {name: float(self.np_random.uniform(-3, 3)) for name in self.agents}
        self.goals = {name: float(self.np_random.uniform(-3, 3)) for name in self.agents}
        self.steps = 0
        return {name: self.see(name) for name in self.agents}, {name: {} for name in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        assert sorted(actions) == sorted(self.agents), "only who lives acts"
        self.steps += 1
        living = self.agents
        for name in living:
            push = float(np.asarray(actions[name]).reshape(-1)[0]) * self.np_random.uniform(0, 1)
            self.places[name] = float(np.clip(self.places[name] + push, -9, 9))
        distances = {name: abs(self.places[name] - self.goals[name]) for name in living}
        terminations = {name: distances[name] < 0.3 for name in living}
        truncations = dict.fromkeys(living, self.steps >= 15)
        self.agents = [name for name in living if not (terminations[name] or truncations[name])]
        observations = {name: self.see(name) for name in living}
        rewards = {name: -distances[name] for name in living}
        return observations, rewards, terminations, truncations, {name: {} for name in living}

    def see(self, name: str) -> Any:
        gap = self.places[name] - self.goals[name]
        if self.shown == "image":
            return np.full((36, 36, 1), np.clip(20 * abs(gap), 0, 255), np.uint8)
        line = np.zeros(self.sizes[name], np.float32)
        if self.lines is not None:
            line = self.lines.setdefault(name, line)
        line[:2] = gap, self.places[name]
        return {"line": line, "far": int(gap > 0)} if self.shown == "dict" else line

    def close(self) -> None:
        pass


def walkers(**kwargs: Any) -> Walkers:
    return Walkers(**kwargs)


class Gust:
    """A wrapper with a state: wind that pushes each walker's action."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.possible_agents = env.possible_agents
        self.force = 0.0

    @property
    def agents(self) -> list[str]:
        agents: list[str] = self.env.agents
        return agents

    def observation_space(self, agent: str) -> Any:
        return self.env.observation_space(agent)

    def action_space(self, agent: str) -> Any:
        return self.env.action_space(agent)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: dict[str, Any]) -> Any:
        self.force = 0.8 * self.force + float(self.env.np_random.normal(0, 0.1))
        return self.env.step({name: np.asarray(action) + self.force for name, action in actions.items()})

    def close(self) -> None:
        self.env.close()
