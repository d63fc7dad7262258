"""Two agents against one: steps/s of ``sac_multiagent`` over those of SAC, on the same networks and spaces.

``python -m benchmarks.multiagent``: both in one process, in blocks that take turns, torch on one thread. Time is the
process's own (CPU seconds), so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC

from benchmarks.measure import interval
from train_cloud.config import RunFile
from train_cloud.sb3.build import build_model

SIZE, ACTIONS, STEPS = 24, 4, 200
HYPERPARAMETERS: dict[str, Any] = {
    "learning_starts": 100,
    "buffer_size": 100_000,
    "batch_size": 256,
    "policy_kwargs": {"net_arch": [256, 256]},
}
LEAST = 0.45


class Drift:
    """A point that drifts: an environment that costs next to nothing."""

    def __init__(self) -> None:
        self.place = np.zeros(SIZE, np.float32)

    def begin(self) -> Any:
        self.place = np.zeros(SIZE, np.float32)
        return self.place

    def move(self, action: Any) -> tuple[Any, float]:
        self.place = np.clip(0.99 * self.place + 0.01 * float(action[0]), -1, 1).astype(np.float32)
        return self.place, -float(np.abs(action).sum())


class Alone(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (SIZE,), np.float32)
    action_space = spaces.Box(-1, 1, (ACTIONS,), np.float32)

    def __init__(self) -> None:
        self.drift, self.steps = Drift(), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.drift.begin(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        place, reward = self.drift.move(action)
        return place, reward, False, self.steps >= STEPS, {}


class Both:
    """The same for two agents, as a ``ParallelEnv``."""

    def __init__(self) -> None:
        self.possible_agents = ["one", "other"]
        self.agents: list[str] = []
        self.drifts, self.steps = {name: Drift() for name in self.possible_agents}, 0
        self.spaces = {name: (spaces.Box(-1, 1, (SIZE,)), spaces.Box(-1, 1, (ACTIONS,))) for name in self.drifts}

    def observation_space(self, agent: str) -> Any:
        return self.spaces[agent][0]

    def action_space(self, agent: str) -> Any:
        return self.spaces[agent][1]

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.steps = list(self.possible_agents), 0
        return {name: drift.begin() for name, drift in self.drifts.items()}, {name: {} for name in self.agents}

    def step(self, actions: Any) -> Any:
        self.steps += 1
        moved = {name: self.drifts[name].move(action) for name, action in actions.items()}
        late = self.steps >= STEPS
        self.agents = [] if late else self.agents
        no = dict.fromkeys(moved, False)
        observations = {name: place for name, (place, _) in moved.items()}
        rewards = {name: reward for name, (_, reward) in moved.items()}
        return observations, rewards, no, dict.fromkeys(moved, late), {name: {} for name in moved}

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=25, help="of a block")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gymnasium.register("Alone-v0", Alone)
    common: dict[str, Any] = {
        "run_id": "bench",
        "seed": 1,
        "device": "cpu",
        "total_timesteps": 1_000_000,
        "save_frequency": 1_000_000,
        "hyperparameters": HYPERPARAMETERS,
    }
    alone = SAC("MlpPolicy", "Alone-v0", seed=1, device="cpu", **HYPERPARAMETERS)
    together = build_model(
        RunFile(algorithm="sac_multiagent", environment={"id": f"{__name__}:Both"}, **common)  # type: ignore[arg-type]
    ).model
    seconds: dict[str, list[float]] = {"one agent": [], "two agents": []}
    for block in range(options.blocks + 1):
        for name, model in (("one agent", alone), ("two agents", together)):
            began = time.process_time()
            model.learn(options.steps if block else 150, reset_num_timesteps=not block, log_interval=1_000_000)
            if block:
                seconds[name].append((time.process_time() - began) / options.steps)
    for name, each in seconds.items():
        print(f"{name}: {1 / float(np.median(each)):.1f} steps per CPU second")
    ratio = interval(seconds["one agent"], seconds["two agents"], of=lambda one, two: one / two)
    print(
        f"two agents make {ratio.value:.3f} of one agent's steps/s (95 %: {ratio.low:.3f} to {ratio.high:.3f}; "
        f"{ratio.count} blocks of {options.steps} steps each); at least {LEAST} is asked"
    )


if __name__ == "__main__":
    main()
