"""Whether an episode has succeeded, as the run file says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from train_cloud.config.evaluation import compare
from train_cloud.envs.make import load_object


def succeeded(condition: str, field: str, episode_return: float, length: int, info: Mapping[str, Any]) -> bool | None:
    """
    :param condition: ``info.<key>``, a comparison, or ``module:function``
    :param field: the run file's, for errors
    :param info: of the episode's last step
    :return: None where nothing tells
    :raises InputError: there is no such function
    """
    if ":" in condition:
        told = load_object(condition, field)(episode_return, length, dict(info))
        return None if told is None else bool(told)
    return compare(condition, episode_return, length, info)
