"""Several agents in one environment: PettingZoo's ``ParallelEnv`` as one Gymnasium environment.

PettingZoo itself is not imported here: whatever has its ``ParallelEnv``'s methods will do (PettingZoo documentation,
"Parallel API").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium import spaces

#: What a ``ParallelEnv`` must have.
NEEDED = ("possible_agents", "reset", "step", "observation_space", "action_space")


class Together(gymnasium.Env[dict[str, Any], dict[str, Any]]):
    """All agents' observations as one observation, all actions as one action: dicts by agent.

    ``step`` takes actions of agents that do not live any more, and leaves them out; its reward is the sum, and it is
    over when no agent is left. What each agent got lies in the info: ``rewards``, ``terminations``, ``truncations``
    and ``infos``, by agent, of those that lived before the step.

    :param parallel: a ``ParallelEnv``
    """

    def __init__(self, parallel: Any) -> None:
        self.parallel = parallel
        self.metadata = dict(getattr(parallel, "metadata", None) or {})
        self.render_mode = getattr(parallel, "render_mode", None)
        self.possible_agents: tuple[str, ...] = tuple(parallel.possible_agents)
        self.observation_space: spaces.Dict = spaces.Dict(
            {name: parallel.observation_space(name) for name in self.possible_agents}
        )
        self.action_space: spaces.Dict = spaces.Dict(
            {name: parallel.action_space(name) for name in self.possible_agents}
        )

    @property
    def living(self) -> list[str]:
        """Agents that act next, in the order of ``possible_agents``."""
        agents = set(self.parallel.agents)
        return [name for name in self.possible_agents if name in agents]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        observations, infos = self.parallel.reset(seed=seed, options=options)
        return dict(observations), dict(infos)

    def step(self, action: Mapping[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        living = self.living
        observations, rewards, terminations, truncations, infos = self.parallel.step(
            {name: action[name] for name in living}
        )
        gained = {name: float(rewards[name]) for name in living}
        each = {
            "rewards": gained,
            "terminations": {name: bool(terminations[name]) for name in living},
            "truncations": {name: bool(truncations[name]) for name in living},
            "infos": {name: infos.get(name, {}) for name in living},
        }
        return dict(observations), sum(gained.values()), not self.parallel.agents, False, each

    def render(self) -> Any:
        return self.parallel.render()

    def close(self) -> None:
        self.parallel.close()


def inside(env: Any) -> Any:
    """What a layer of several agents' environment stands around, or None: PettingZoo's wrappers hold it as ``env``, its
    conversions as ``aec_env``.
    """
    if isinstance(env, Together):
        return env.parallel
    for name in ("env", "aec_env"):
        inner = vars(env).get(name)
        if hasattr(inner, "reset") and hasattr(inner, "step"):
            return inner
    return None
