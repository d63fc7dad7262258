"""``data_parallel``: which runs several processes can train together, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from train_cloud.errors import InputError, NotYet

#: Algorithm → why several ranks cannot train it.
_REFUSED = {
    "trpo": "its update searches along a line for a step that fits this rank's own rollout, outside of any backward",
    "crossq": "each rank's batch normalisation would see batches of its own, and the networks would differ",
    "multiagent": "its agents' networks are updated one by one, after episodes that end at different steps",
}
_FIX = "train it with one process, without data_parallel"


def check(
    data_parallel: object, algorithm: str | None, hyperparameters: Mapping[str, Any], phases: Mapping[str, Any]
) -> None:
    """
    :param phases: field → what it says, of the run's parts that only one process can train
    :raises InputError: ranks cannot train it
    """
    if data_parallel in (None, 1):
        return
    for field, value in phases.items():
        if value is not None:
            raise NotYet(
                "data_parallel", data_parallel, f"not together with {field} in this version: leave one of them out"
            )
    reason = _REFUSED.get(algorithm or "")
    if reason is not None:
        raise InputError("data_parallel", data_parallel, f"{algorithm} cannot: {reason}; {_FIX}")
    frequency = hyperparameters.get("train_freq")
    if isinstance(frequency, list | tuple) and "episode" in frequency:
        fix = "episodes end at different steps on each rank: give train_freq in steps, or leave data_parallel out"
        raise InputError("hyperparameters.train_freq", frequency, fix)
