"""What a run file describes, as a script of SB3 alone would train it: ``python -m benchmarks.plain FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium
import stable_baselines3
import torch

import benchmarks.environment  # noqa: F401 - registers the environment


def main(path: str) -> None:
    """:param path: a run file in JSON, which is YAML, too"""
    run = json.loads(Path(path).read_text())
    torch.set_num_threads(1)
    environment = gymnasium.make(run["environment"]["id"], **run["environment"]["kwargs"])
    algorithm = getattr(stable_baselines3, run["algorithm"].upper())
    model = algorithm(run["policy"], environment, seed=run["seed"], device=run["device"], **run["hyperparameters"])
    model.learn(run["total_timesteps"])


if __name__ == "__main__":
    main(sys.argv[1])
