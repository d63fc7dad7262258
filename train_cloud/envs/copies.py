"""Copies of what an environment hands out. It may change those very arrays and dicts at its next step or reset, so
whoever looks at them later takes a copy at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from train_cloud.envs.make import FAILURES


def copied(value: Any) -> Any:
    """Arrays, and whatever lists, tuples and dicts hold, copied; any other object is returned as it is.

    Cheap enough for every step: objects, such as a whole simulator in an ``info``, are not followed.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, tuple):
        # A named tuple's constructor takes its fields one by one.
        items = [copied(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def copied_whole(info: Mapping[str, Any]) -> dict[str, Any]:
    """An ``info`` with its objects copied too, each that can be: for the last step of an episode, after which a reset
    makes the environment's own objects those of another one.
    """
    found = {}
    for key, value in info.items():
        try:
            found[key] = copy.deepcopy(value)
        except FAILURES:  # objects of users' own: a reference is what is left
            found[key] = copied(value)
    return found
