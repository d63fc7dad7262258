"""The decision matrix: several criteria, each with a weight, and what hangs on the weights. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from train_cloud.config.comparison import Direction
from train_cloud.experiments.comparison.statistics import percentiles

_REPETITIONS = 2000
_CHANGES = (0.5, 1.5)


@dataclass(frozen=True)
class Samples:
    """A criterion's value for a level, and how it might as well have come out."""

    value: float
    drawn: NDArray[np.float64] | None = None
    """Of the bootstrap; None for a value that does not vary, or whose spread is known otherwise."""
    interval: tuple[float, float] | None = None
    """Where it is known otherwise."""

    def ends(self, confidence: float) -> tuple[float, float]:
        if self.interval is not None:
            return self.interval
        if self.drawn is None:
            return self.value, self.value
        low, high = percentiles(self.drawn, confidence)
        return float(low), float(high)

    def samples(self, repetitions: int, generator: np.random.Generator) -> NDArray[np.float64]:
        if self.drawn is not None:
            return generator.permutation(np.resize(self.drawn, repetitions))
        if self.interval is not None:
            return generator.uniform(*self.interval, size=repetitions)
        return np.full(repetitions, self.value)


class Entry(BaseModel):
    """A criterion for a level."""

    model_config = ConfigDict(frozen=True)

    value: float
    interval: tuple[float, float]
    utility: float
    """From 0, the worst level's, to 1, the best one's; 1 for all where they are equal."""
    separable: bool
    """Whether its interval parts from the best level's; True for the best one if it parts from all others."""


class Total(BaseModel):
    """A level's weighted mean of utilities."""

    model_config = ConfigDict(frozen=True)

    level: str
    value: float
    interval: tuple[float, float]
    separable: bool
    """Whether its interval parts from the first one's; True for the first if it parts from all others."""


class Change(BaseModel):
    """What another weight of one criterion leads to."""

    model_config = ConfigDict(frozen=True)

    criterion: str
    factor: float
    """The weight's: 0.5 or 1.5."""
    first: str
    order: tuple[str, ...]
    differs: bool
    """Whether another level is first."""


class Matrix(BaseModel):
    """Levels by criteria."""

    model_config = ConfigDict(frozen=True)

    weights: dict[str, float]
    """They add up to 1."""
    directions: dict[str, Direction]
    entries: dict[str, dict[str, Entry]]
    """Criterion → level."""
    totals: tuple[Total, ...]
    """The best one first."""
    changes: tuple[Change, ...]


def decide(
    samples: Mapping[str, Mapping[str, Samples]],
    *,
    weights: Mapping[str, float],
    directions: Mapping[str, Direction],
    confidence: float,
) -> Matrix:
    """
    :param samples: criterion → level → what is known; every criterion of the same levels
    """
    criteria = list(samples)
    levels = list(samples[criteria[0]])
    whole = sum(weights[name] for name in criteria)
    shares = {name: weights[name] / whole for name in criteria}
    values = np.array([[samples[name][level].value for level in levels] for name in criteria])
    signs = np.array([1.0 if directions[name] == "larger" else -1.0 for name in criteria])
    generator = np.random.default_rng(0)
    drawn = np.array([[samples[name][level].samples(_REPETITIONS, generator) for level in levels] for name in criteria])
    weight = np.array([shares[name] for name in criteria])
    utilities = _utilities(signs[:, None] * values)
    totals = weight @ utilities
    low, high = percentiles(np.einsum("c,clr->rl", weight, _utilities(signs[:, None, None] * drawn)), confidence)
    intervals = {level: (float(low[place]), float(high[place])) for place, level in enumerate(levels)}
    order = [levels[place] for place in np.argsort(-totals, kind="stable")]
    parted = _parted(intervals, order[0])
    return Matrix(
        weights=shares,
        directions=dict(directions),
        entries={
            name: _entries(samples[name], dict(zip(levels, utilities[place], strict=True)), confidence)
            for place, name in enumerate(criteria)
        },
        totals=tuple(
            Total(
                level=level,
                value=float(totals[levels.index(level)]),
                interval=intervals[level],
                separable=parted[level],
            )
            for level in order
        ),
        changes=tuple(
            _change(name, factor, place, weight, utilities, levels, order[0])
            for place, name in enumerate(criteria)
            for factor in _CHANGES
            if len(criteria) > 1
        ),
    )


def _utilities(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the second axis, the levels: larger is better."""
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    span = np.where(high > low, high - low, 1.0)
    return np.where(high > low, (values - low) / span, 1.0)


def _entries(found: Mapping[str, Samples], utilities: Mapping[str, float], confidence: float) -> dict[str, Entry]:
    intervals = {level: each.ends(confidence) for level, each in found.items()}
    parted = _parted(intervals, max(utilities, key=lambda level: utilities[level]))
    return {
        level: Entry(
            value=each.value, interval=intervals[level], utility=float(utilities[level]), separable=parted[level]
        )
        for level, each in found.items()
    }


def _parted(intervals: Mapping[str, tuple[float, float]], best: str) -> dict[str, bool]:
    """Whether each interval parts from that of the best; of the best itself, whether it parts from all."""

    def apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[1] < other[0] or other[1] < one[0]

    found = {level: apart(ends, intervals[best]) for level, ends in intervals.items()}
    found[best] = all(parted for level, parted in found.items() if level != best)
    return found


def _change(
    criterion: str,
    factor: float,
    place: int,
    weight: NDArray[np.float64],
    utilities: NDArray[np.float64],
    levels: list[str],
    first: str,
) -> Change:
    changed = weight.copy()
    changed[place] *= factor
    totals = changed @ utilities
    order = tuple(levels[at] for at in np.argsort(-totals, kind="stable"))
    return Change(criterion=criterion, factor=factor, first=order[0], order=order, differs=order[0] != first)
