"""``hardware: auto``: what a run takes from the machine that it begins on, chosen once.

The choice stands in each checkpoint's facts under ``hardware``, and a resumed session, a replay and a fork take it
from there, whatever machine they run on: another number of environments would be another training.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import get_device

from train_cloud.config import RunFile
from train_cloud.config.run_file import MULTIAGENT
from train_cloud.sb3.algorithms import load_algorithm

#: Environments of one process: more of them make the network's calls fewer, and rollouts longer.
_TOGETHER = 8
_MOST_PROCESSES = 32
_ON_GPU, _MOST_BATCH = 512, 4096
#: Tried with SB3 2.9 and torch 2.13, each algorithm in ``torch.autocast``: PPO and SAC raise a TypeError with bfloat16.
AMP = (
    "off: SB3 takes values and actions out of torch by NumPy, which has no bfloat16, and does not scale its losses, "
    "without which the small gradients of float16 are lost"
)


@dataclass(frozen=True)
class Machine:
    """What the choice depends on: nothing that changes while a machine is at work.

    :ivar cores: that this process may use
    :ivar gpu: its name; None where the run has none
    """

    cores: int
    gpu: str | None

    @classmethod
    def here(cls, device: str) -> Machine:
        """:param device: the run file's"""
        used = get_device(device)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(cores, torch.cuda.get_device_name(used) if used.type == "cuda" else None)


def completed(run_file: RunFile, known: Mapping[str, Any] | None = None) -> RunFile:
    """The run file with what ``hardware`` leaves to the machine; itself, where that is nothing or is done.

    :param known: what was chosen when the run began; else it is chosen now, for this machine
    """
    if run_file.hardware is None or run_file.chosen is not None:
        return run_file
    return run_file.with_hardware(known or choose(run_file, Machine.here(run_file.device)))


def choose(run_file: RunFile, machine: Machine) -> dict[str, Any]:
    """What a run file leaves open, as JSON values: ``n_envs``, ``batch_size``, ``amp``, and ``because`` of each.

    :return: ``batch_size`` is None where the algorithm has none
    """
    assert run_file.environment is not None
    algorithm = load_algorithm(run_file)
    known = inspect.signature(algorithm.__init__).parameters
    given = {name: parameter.default for name, parameter in known.items()} | dict(run_file.hyperparameters)
    on_policy = issubclass(algorithm, OnPolicyAlgorithm)
    n_envs, why_envs = _n_envs(run_file, machine, given, on_policy)
    batch: int | None = None
    why_batch = "the algorithm has none"
    if "batch_size" in run_file.hyperparameters:
        batch, why_batch = run_file.hyperparameters["batch_size"], "as written"
    elif "batch_size" in known and isinstance(given["batch_size"], int):
        rollout = int(given.get("n_steps") or 0) * n_envs if on_policy else 0
        batch, why_batch = _batch_size(given["batch_size"], n_envs, rollout, machine)
    return {
        "n_envs": n_envs,
        "batch_size": batch,
        "amp": False,
        "cores": machine.cores,
        "gpu": machine.gpu,
        "because": {"n_envs": why_envs, "batch_size": why_batch, "amp": AMP},
    }


def _n_envs(run_file: RunFile, machine: Machine, given: Mapping[str, Any], on_policy: bool) -> tuple[int, str]:
    environment = run_file.environment
    assert environment is not None
    if environment.n_envs != 1:
        return environment.n_envs, "as written"
    if run_file.algorithm == MULTIAGENT:
        return 1, "all agents are in one environment"
    if not on_policy and given.get("gradient_steps") != -1:
        return 1, "with more, each step would be learned from less often; gradient_steps: -1 lets it choose"
    frequency = given.get("train_freq")
    if isinstance(frequency, list | tuple) and "episode" in frequency:
        return 1, "whole episodes are trained on one environment"
    if environment.vectorization == "subproc":
        return min(_MOST_PROCESSES, machine.cores), f"a process for each of {machine.cores} cores, at most 32"
    return _TOGETHER, "they share one process, and the network is asked once for all"


def _batch_size(usual: int, n_envs: int, rollout: int, machine: Machine) -> tuple[int, str]:
    """:param usual: the algorithm's default
    :param rollout: timesteps between two updates of an on-policy algorithm; 0 of the others
    """
    if not rollout:
        if machine.gpu is None or usual >= _ON_GPU:
            return usual, "the algorithm's default"
        return _ON_GPU, "more at once, on a GPU"
    wanted, why = usual * n_envs, f"{usual} for each of {n_envs} environments: as many updates as with one"
    if machine.gpu is not None and wanted < _ON_GPU:
        wanted, why = _ON_GPU, "more at once, on a GPU"
    wanted = min(wanted, _MOST_BATCH, rollout)
    fitting = next(size for size in range(wanted, 0, -1) if rollout % size == 0)  # a last batch of a few is noise
    return fitting, why
