"""How long models take for one action.

One observation at a time, on one thread of the CPU, through ``predict`` as everybody calls it. The models take turns,
so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from train_cloud import child_process
from train_cloud.envs.make import FAILURES, load_object

_WARM_UP = 20
_BLOCK = 25
_ROUNDS = 20
#: Of all models together. A slow one is called less often, and at least in three rounds.
_SECONDS = 60.0
_LEAST_ROUNDS = 3


def measure(wanted: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """
    :param wanted: for each model ``name``, ``path`` (of a ``model.zip``), ``algorithm`` (``module:Class``) and
        ``code_folder``
    :return: name → ``blocks``, a list of lists of milliseconds; or ``because``
    """
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    models: dict[str, tuple[BaseAlgorithm, Any]] = {}
    for each in wanted:
        folder = Path(each["code_folder"]) if each["code_folder"] else None
        try:
            with child_process.code_on_path(folder if folder is not None and folder.is_dir() else None):
                kind = load_object(each["algorithm"], "algorithm", BaseAlgorithm)
                model = kind.load(each["path"], device="cpu")
            space = model.observation_space
            space.seed(0)
            observation = space.sample()
            _milliseconds(model, observation, _WARM_UP)
        except FAILURES as error:  # one model's trouble is not the others'
            found[each["name"]] = {"because": f"{type(error).__name__}: {error}"}
            continue
        models[each["name"]] = (model, observation)
        found[each["name"]] = {"blocks": []}
    began = time.monotonic()
    for done in range(_ROUNDS):
        if done >= _LEAST_ROUNDS and time.monotonic() - began > _SECONDS:
            break
        for name, (model, observation) in models.items():
            found[name]["blocks"].append(_milliseconds(model, observation, _BLOCK))
    return found


def _milliseconds(model: BaseAlgorithm, observation: Any, calls: int) -> list[float]:
    taken, state, started = [], None, np.ones(1, dtype=bool)
    for _ in range(calls):
        began = time.perf_counter()
        _, state = model.predict(observation, state=state, episode_start=started, deterministic=True)
        taken.append(1000 * (time.perf_counter() - began))
        started = np.zeros(1, dtype=bool)
    return taken
