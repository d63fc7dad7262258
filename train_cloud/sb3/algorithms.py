"""The algorithm and the policy that a run file names."""

from __future__ import annotations

import importlib.util

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from train_cloud.config import RunFile
from train_cloud.config.run_file import ALGORITHMS, CONTRIB
from train_cloud.envs.make import load_object
from train_cloud.errors import InputError


def load_algorithm(run_file: RunFile) -> type[BaseAlgorithm]:
    assert run_file.algorithm is not None
    if "contrib" in run_file.extras and importlib.util.find_spec(CONTRIB) is None:
        fix = "it is part of sb3-contrib, which is not installed: pip install sb3-contrib"
        raise InputError("algorithm", run_file.algorithm, fix)
    reference = ALGORITHMS.get(run_file.algorithm, run_file.algorithm)
    loaded: type[BaseAlgorithm] = load_object(reference, "algorithm", BaseAlgorithm)
    return loaded


def load_policy(run_file: RunFile) -> str | type[BasePolicy]:
    architecture, name = run_file.architecture, run_file.chosen_policy
    field = "policy" if architecture is None or architecture.policy is None else "architecture.policy"
    if ":" in name:
        loaded: type[BasePolicy] = load_object(name, field, BasePolicy)
        return loaded
    aliases = tuple(load_algorithm(run_file).policy_aliases)
    if name not in aliases:
        raise InputError(field, name, f"use {', '.join(aliases)} or module:Class")
    return name
