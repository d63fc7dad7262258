"""What a second rank gives: steps per second of two processes on one run, against one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import distributed

from benchmarks.experiment import cores
from benchmarks.measure import Figure, interval
from benchmarks.worker import ROOT

if TYPE_CHECKING:
    from benchmarks.figures import Sizes

#: At least so many times the steps per second of one rank.
LIMIT = 1.7
_STEP_SECONDS = 1e-3
_N_STEPS = 256
_TIMES = "RANKS_TIMES"


class Busy(gymnasium.Env[Any, Any]):
    """A step takes a millisecond of a core."""

    observation_space = spaces.Box(-1, 1, (8,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        until = time.perf_counter() + _STEP_SECONDS
        while time.perf_counter() < until:
            pass
        self.steps += 1
        observation = self.np_random.uniform(-1, 1, 8).astype(np.float32)
        return observation, float(action == (observation[0] > 0)), self.steps >= 200, False, {}


gymnasium.register("Busy-v0", entry_point="benchmarks.ranks:Busy")


class Times(BaseCallback):
    """Notes when each rollout begins, in rank 0."""

    def _on_rollout_start(self) -> None:
        if not distributed.is_initialized() or distributed.get_rank() == 0:
            with Path(os.environ[_TIMES]).open("a") as file:
                file.write(f"{self.model.num_timesteps} {time.monotonic()}\n")

    def _on_step(self) -> bool:
        return True


def two_ranks(folder: Path, sizes: Sizes, wanted: set[int]) -> Iterator[Figure]:
    """One rank and two take turns. Of each training the first rollout is left out, which waits for much."""
    rollouts = 3 + 2 * sizes.experiment[0]
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with cores(2):
        for number in range(sizes.experiment[0]):
            for ranks in speeds:
                speeds[ranks].append(_speed(folder / f"{number}-{ranks}", ranks, rollouts))
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    yield Figure(
        14,
        f"PPO, an environment of 1 ms a step, rollouts of {_N_STEPS}",
        interval(ratios),
        LIMIT,
        at_least=True,
        detail={
            "one rank, steps/s": statistics.median(speeds[1]),
            "two ranks, steps/s": statistics.median(speeds[2]),
        },
    )


def _speed(folder: Path, ranks: int, rollouts: int) -> float:
    """:return: steps per second, of all ranks together"""
    folder.mkdir(parents=True)
    run = {
        "run_id": "ranks",
        "algorithm": "ppo",
        "device": "cpu",
        "data_parallel": ranks,
        "total_timesteps": _N_STEPS * ranks * rollouts,
        "save_frequency": _N_STEPS * ranks * rollouts,
        "environment": {"id": "benchmarks.ranks:Busy-v0"},
        "callbacks": ["benchmarks.ranks:Times"],
        "hyperparameters": {"n_steps": _N_STEPS, "policy_kwargs": {"net_arch": [64, 64]}},
        "reproducibility": {"replay": "never"},  # it would take a core that is measured
    }
    (folder / "run.yaml").write_text(json.dumps(run))
    times = folder / "times.txt"
    subprocess.run(
        [sys.executable, "-m", "train_cloud", "train", "run.yaml", "--store", "store", "--state-dir", "state"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), _TIMES: str(times), "TRAIN_CLOUD_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=1800,
    )
    noted = [line.split() for line in times.read_text().splitlines()]
    (first, began), (last, ended) = noted[1], noted[-1]
    return (int(last) - int(first)) / (float(ended) - float(began))
