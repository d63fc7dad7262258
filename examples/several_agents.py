"""Several agents, with the package as a library: an environment of one's own, trained and played.

    python examples/several_agents.py

Any PettingZoo ParallelEnv will do; this one needs nothing but Gymnasium's spaces. Two carts on a line keep their
distance from each other; each learns by a SAC of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from ruamel.yaml import YAML
from stable_baselines3 import SAC

from train_cloud.errors import InputError, Interrupted
from train_cloud.operations.export import export
from train_cloud.operations.train import train

STORE = "./store"
CARTS = ("left", "right")


class Carts:
    """Each sees both places and is rewarded for a gap of 1. Its state is in its attributes: nothing else is needed
    to resume it in mid-episode.
    """

    def __init__(self) -> None:
        self.possible_agents, self.agents = list(CARTS), list[str]()
        self.np_random = np.random.default_rng()
        self.places, self.steps = np.zeros(2), 0

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-5, 5, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self.agents, self.steps = list(CARTS), 0
        self.places = self.np_random.uniform(-2, 2, 2)
        return self._seen(), {name: {} for name in CARTS}

    def step(self, actions: dict[str, Any]) -> Any:
        self.steps += 1
        moves = np.array([float(actions[name][0]) for name in CARTS])
        self.places = np.clip(self.places + 0.2 * moves, -5, 5)
        reward = -abs(abs(self.places[0] - self.places[1]) - 1.0)
        late = self.steps >= 50
        living, self.agents = self.agents, [] if late else self.agents
        no = dict.fromkeys(living, False)
        return (
            self._seen(),
            dict.fromkeys(living, reward),
            no,
            dict.fromkeys(living, late),
            {name: {} for name in living},
        )

    def _seen(self) -> dict[str, Any]:
        seen = self.places.astype(np.float32)
        return {"left": seen, "right": seen[::-1].copy()}

    def close(self) -> None:
        pass


def main(timesteps: int = 1500) -> None:
    run = {
        "run_id": "carts",
        "algorithm": "sac_multiagent",
        "seed": 1,
        "device": "cpu",
        "total_timesteps": timesteps,
        "save_frequency": 500,
        "environment": {"id": f"{Path(__file__).stem}:Carts"},  # this very file, as a module
        "code": {"folder": str(Path(__file__).parent), "exclude": ["**/*.yaml"]},
        "hyperparameters": {"learning_starts": 200, "buffer_size": 2000, "policy_kwargs": {"net_arch": [32, 32]}},
    }
    YAML().dump(run, Path("carts.yaml"))
    try:
        train(Path("carts.yaml"), store=STORE)
    except Interrupted as stop:
        print(stop)  # by Ctrl-C, with everything committed: the next call goes on
        return
    except InputError as error:
        print(error)  # the run is completed: its models are only played

    out = Path(f"carts-{timesteps}")
    folder = out if out.exists() else export(STORE, "carts", out=out)
    models = {name: SAC.load(folder / name / "model.zip", device="cpu") for name in CARTS}  # one for each agent
    env = Carts()
    observations, _ = env.reset(seed=0)
    total = 0.0
    while env.agents:
        actions = {name: models[name].predict(observations[name], deterministic=True)[0] for name in env.agents}
        observations, rewards, _, _, _ = env.step(actions)
        total += sum(rewards.values()) / len(rewards)
    print(f"return of one episode, mean of both: {total:.1f}")


if __name__ == "__main__":
    main()
