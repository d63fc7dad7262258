"""Medians with intervals, and what may be said of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

_RESAMPLES = 10_000
_CONFIDENCE = 0.95

Verdict = Literal["reached", "missed", "not resolvable", "reported"]


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float
    count: int
    """Independent measurements."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    number: int
    """Which of the nine."""
    setting: str
    measured: Interval
    limit: float | None
    at_least: bool = False
    """The limit is a lower one."""
    detail: dict[str, float] = field(default_factory=dict)
    """Where the figure comes from: name with unit → value."""

    @property
    def verdict(self) -> Verdict:
        """The limit is applied to the interval's unfavourable end. Where it lies within the interval, the noise is
        larger than the distance to it, and nothing can be said.
        """
        if self.limit is None:
            return "reported"
        low, high = self.measured.low, self.measured.high
        if self.at_least:
            low, high = -high, -low
        limit = -self.limit if self.at_least else self.limit
        return "reached" if high <= limit else "missed" if low > limit else "not resolvable"


class Waited:
    """How long a thread has waited for a core that others had: seconds, by the kernel's ``schedstat`` (Linux,
    Documentation/scheduler/sched-stats). Elsewhere 0.

    :param of: a process's first thread; None is the calling thread
    """

    def __init__(self, of: int | None = None) -> None:
        path = Path("/proc/thread-self/schedstat" if of is None else f"/proc/{of}/schedstat")
        self._file = os.open(path, os.O_RDONLY) if path.exists() else None

    def __call__(self) -> float:
        return 0.0 if self._file is None else int(os.pread(self._file, 100, 0).split()[1]) / 1e9

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)


def interval(
    *samples: Sequence[float],
    of: Callable[..., float] = lambda value: value,
    middle: Callable[..., npt.NDArray[np.float64]] = np.median,
) -> Interval:
    """A statistic of one or more independent samples with its 95 % interval, by the bootstrap's percentiles (Efron,
    Tibshirani: "An Introduction to the Bootstrap", chapter 13).

    :param of: gets the middle of each sample
    :param middle: of a sample: the median, or ``np.mean`` for what counts by its sum
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    drawn = [_drawn(array, middle, seed) for seed, array in enumerate(arrays)]
    values = np.array([of(*middles) for middles in zip(*drawn, strict=True)])
    low, high = np.quantile(values, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    value = of(*(float(middle(array)) for array in arrays))
    return Interval(value, float(low), float(high), min(len(array) for array in arrays))


def _drawn(
    array: npt.NDArray[np.float64], middle: Callable[..., npt.NDArray[np.float64]], seed: int
) -> npt.NDArray[np.float64]:
    picked = np.random.default_rng(seed).integers(len(array), size=(_RESAMPLES, len(array)))
    return middle(array[picked], axis=1)
