"""What is installed on a worker besides the package, so that the run's environment can be made and drawn there."""

from __future__ import annotations

from typing import Any

import pytest

from train_cloud.config import parse_run_file
from train_cloud.operations.requirements import packages, pip_arguments

RUN: dict[str, Any] = {"run_id": "r", "algorithm": "sac", "total_timesteps": 10, "save_frequency": 5}


@pytest.mark.parametrize(
    ("environment", "evaluation", "wanted"),
    [
        ("Pendulum-v1", None, []),
        ("Pendulum-v1", {"episodes": 2}, []),
        ("Pendulum-v1", {"video": {}}, ["gymnasium[classic-control]"]),
        ("FrozenLake-v1", {"video": {}}, ["gymnasium[toy-text]"]),
        ("HalfCheetah-v5", None, ["gymnasium[mujoco]"]),
        ("LunarLander-v3", None, ["gymnasium[box2d]"]),
        ("LunarLander-v3", {"video": {}}, ["gymnasium[box2d]"]),
        ("phys2d/CartPole-v1", None, ["gymnasium[jax]"]),
        ("Pendulum-v1", {"environment": {"id": "HalfCheetah-v5"}}, ["gymnasium[mujoco]"]),
        ("somebody/Elses-v0", {"video": {}}, []),  # its package says what it needs
    ],
)
def test_gymnasiums_own_environments_bring_what_they_need(
    environment: str, evaluation: dict[str, Any] | None, wanted: list[str]
) -> None:
    run_file = parse_run_file({**RUN, "environment": {"id": environment}, "evaluation": evaluation})
    assert pip_arguments(run_file) == packages(run_file) == wanted


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"architecture": "full_hgt"}, ["torch_geometric"]),
        ({"architecture": "gat"}, []),
        ({"architecture": {"name": "own", "policy": "sb3_contrib.common.recurrent.policies:Own"}}, ["sb3-contrib"]),
    ],
)
def test_an_architecture_brings_what_it_needs(changed: dict[str, Any], wanted: list[str]) -> None:
    found = packages(parse_run_file({**RUN, "environment": {"id": "Pendulum-v1"}, **changed}))
    assert [name.split("<")[0] for name in found] == wanted
