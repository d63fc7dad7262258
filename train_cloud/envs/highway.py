"""highway-env with several controlled vehicles as a ``ParallelEnv`` (PettingZoo's form; PettingZoo is not needed).

highway-env gives tuples of observations and takes tuples of actions (its documentation, "The Multi-Agent setting"), but
one reward and one end for all. Here each vehicle has its own: they are what the environment would say if that vehicle
were the only one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
from gymnasium import spaces

from train_cloud.errors import InputError


class Highway:
    """A ``ParallelEnv`` of ``vehicle_0``, ``vehicle_1``, …

    A vehicle that has crashed, or left the road, is out; the others drive on around it. At the end of ``duration`` all
    are truncated.

    :param id: of highway-env, for example ``racetrack-v0``
    :param vehicles: that are controlled; at least 2
    :param config: of the environment, over its own defaults; ``action`` and ``observation`` are one vehicle's
    """

    def __init__(self, id: str = "racetrack-v0", vehicles: int = 2, config: Mapping[str, Any] | None = None) -> None:
        try:
            import highway_env
        except ModuleNotFoundError as error:
            raise InputError("environment.id", id, "install highway-env, which it needs") from error
        if not isinstance(vehicles, int) or vehicles < 2:
            fix = "give at least 2; one vehicle is trained with sac on the environment itself"
            raise InputError("environment.kwargs.vehicles", vehicles, fix)
        gymnasium.register_envs(highway_env)
        spec = gymnasium.spec(id)
        alone = gymnasium.make(id).unwrapped.default_config()  # type: ignore[attr-defined]
        wanted = {**alone, **(config or {})}
        wanted["controlled_vehicles"] = vehicles
        wanted["action"] = {"type": "MultiAgentAction", "action_config": wanted["action"]}
        wanted["observation"] = {"type": "MultiAgentObservation", "observation_config": wanted["observation"]}
        # Without Gymnasium's checker, which warns of observations that are tuples.
        made: Any = gymnasium.make(spec, config=wanted, disable_env_checker=True).unwrapped
        made.reset(seed=0)
        self.env: Any = made
        self.possible_agents = [f"vehicle_{number}" for number in range(vehicles)]
        there = len(made.controlled_vehicles)
        if there != vehicles:
            fix = f"{id} has {there} controlled vehicles whatever controlled_vehicles says: use another environment"
            raise InputError("environment.kwargs.vehicles", vehicles, fix)
        self._observations = dict(zip(self.possible_agents, made.observation_space.spaces, strict=True))
        self._actions = dict(zip(self.possible_agents, made.action_space.spaces, strict=True))
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        space: spaces.Space[Any] = self._observations[agent]
        return space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        space: spaces.Space[Any] = self._actions[agent]
        return space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        observations, _ = self.env.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        return dict(zip(self.possible_agents, observations, strict=True)), {name: {} for name in self.agents}

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        living, vehicles = self.agents, dict(zip(self.possible_agents, self.env.controlled_vehicles, strict=True))
        # Who is out steers straight on; a crashed vehicle stops by itself.
        still = {name: 0.0 * self._actions[name].low for name in self.possible_agents}
        every = tuple({**still, **actions}[name] for name in self.possible_agents)
        seen = dict(zip(self.possible_agents, self.env.step(every)[0], strict=True))
        rewards, terminations = {}, {}
        for name in living:
            with self._alone(vehicles[name]):
                rewards[name] = float(self.env._reward(actions[name]))
                terminations[name] = bool(self.env._is_terminated())
        truncations = dict.fromkeys(living, bool(self.env._is_truncated()))
        self.agents = [name for name in living if not (terminations[name] or truncations[name])]
        infos = {
            name: {"speed": float(one.speed), "crashed": bool(one.crashed)}
            for name, one in vehicles.items()
            if name in living
        }
        return {name: seen[name] for name in living}, rewards, terminations, truncations, infos

    @contextlib.contextmanager
    def _alone(self, vehicle: Any) -> Iterator[None]:
        """While this lasts, the environment's own vehicle is ``vehicle``."""
        every, self.env.controlled_vehicles = self.env.controlled_vehicles, [vehicle]
        try:
            yield
        finally:
            self.env.controlled_vehicles = every

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def parallel_env(id: str = "racetrack-v0", vehicles: int = 2, config: Mapping[str, Any] | None = None) -> Highway:
    """For ``environment.id: train_cloud.envs.highway:parallel_env``."""
    return Highway(id, vehicles, config)
