"""What an evaluation draws of the racetrack: where the car is, how fast it goes, and the middle of the road."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

#: highway-env's y points down, as on its pictures; here it points up.
_UPWARDS = np.array([1.0, -1.0])


def position(env: Any, info: Mapping[str, Any]) -> Any:
    """x and y, in metres."""
    return env.unwrapped.vehicle.position * _UPWARDS


def speed(env: Any, info: Mapping[str, Any]) -> float:
    """Metres per second."""
    return float(env.unwrapped.vehicle.speed)


def centreline(env: Any) -> Any:
    """Points between the two lanes, in the order in which they are driven, (n, 2)."""
    env.unwrapped.reset(seed=0)  # which builds the road; the episode's own reset is still to come
    ends = {start: next(iter(lanes.items())) for start, lanes in env.unwrapped.road.network.graph.items()}
    points, at = [], next(iter(ends))
    for _ in ends:
        at, lanes = ends[at]
        points += [lanes[0].position(along, lanes[0].width / 2) for along in np.linspace(0, lanes[0].length, 20)]
    return np.array(points) * _UPWARDS
