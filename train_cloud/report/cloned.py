"""Whether a run that began with a cloned policy has fallen below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Evaluated(NamedTuple):
    """What an evaluation found, in short.

    :ivar timesteps: 0 of the cloned policy, which nothing else is evaluated at
    :ivar interval: 95 %, of the mean return; None of one episode
    """

    timesteps: int
    mean_return: float
    interval: Sequence[float] | None


class Cloned(NamedTuple):
    """The cloned policy's mean return, and timesteps at which evaluations fell below its 95 % interval."""

    mean_return: float
    below: list[int]


def cloned(evaluations: Iterable[Evaluated]) -> Cloned | None:
    """None where the run has evaluated no cloned policy."""
    found = sorted(evaluations)
    if not found or found[0].timesteps != 0:
        return None
    first = found[0]
    floor = first.interval[0] if first.interval is not None else first.mean_return
    return Cloned(first.mean_return, [each.timesteps for each in found[1:] if each.mean_return < floor])
