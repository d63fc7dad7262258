"""The pictures of a search: history, what mattered, parallel coordinates. They are read without colour, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from train_cloud.config import Dimension
from train_cloud.experiments.comparison.pictures import FONT, WIDTH, Picture, blank_figure, number, png
from train_cloud.experiments.search.results import SearchResults, TrialRow, searched, short_names, told_value

#: Of Okabe and Ito's, which colour-blind people tell apart, by brightness.
COLOURS = ("#000000", "#0072B2", "#D55E00")
#: Lines of their own in the parallel coordinates.
_BEST = 3
_LINES: tuple[Any, ...] = ("-", "--", (0, (1, 1.2)))
_MARKERS = ("o", "s", "^")
_BEHIND = {"facecolor": "#ffffff", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}


def draw(found: SearchResults, space: Mapping[str, Dimension]) -> list[Picture]:
    """All pictures that there is something for."""
    pictures = []
    if found.complete:
        pictures.append(_history(found))
    if found.importances:
        pictures.append(_importance_bars(found))
    if len(found.complete) > 1:
        pictures.append(_parallel(found, space))
    return pictures


def _history(found: SearchResults) -> Picture:
    metric = found.metric.replace("_", " ")
    figure, axes = blank_figure(3.6)
    complete, better = found.complete, np.maximum if found.maximize else np.minimum
    numbers, values = [trial.number for trial in complete], [trial.value or 0.0 for trial in complete]
    axes.plot(numbers, values, "o", color=COLOURS[0], markersize=5, label="complete")
    pruned = [trial for trial in found.trials if trial.state == "pruned" and trial.value is not None]
    if pruned:
        axes.plot(
            [trial.number for trial in pruned],
            [trial.value or 0.0 for trial in pruned],
            "x",
            color="#777777",
            markersize=6,
            label="pruned (value then)",
        )
    ends = [*numbers, found.trials[-1].number]
    best = [*better.accumulate(values), better.reduce(values)]
    axes.plot(ends, best, "-", drawstyle="steps-post", color=COLOURS[1], linewidth=2, label="best so far")
    axes.set_xlabel("trial", fontsize=FONT)
    axes.set_ylabel(metric, fontsize=FONT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=FONT - 2.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3)
    alt = f"{metric} of each trial; the best of {len(complete)} complete ones reaches {number(best[-1])}"
    return png(figure, "history", f"{metric} by trial", alt)


def _importance_bars(found: SearchResults) -> Picture:
    assert found.importances is not None
    names = short_names(list(found.importances))
    figure, axes = blank_figure(1.2 + 0.45 * len(names))
    values = list(found.importances.values())
    axes.barh(range(len(names)), values, color="#ffffff", edgecolor=COLOURS[0], hatch="////", height=0.6)
    for row, value in enumerate(values):
        axes.text(value, row, f" {value:.0%}", va="center", fontsize=FONT - 1.5)
    axes.set_yticks(range(len(names)), list(names.values()), fontsize=FONT - 1.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(values))
    axes.set_xlabel("share of what tells the best from all", fontsize=FONT)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    told = ", ".join(f"{name} {value:.0%}" for name, value in zip(names.values(), values, strict=True))
    return png(figure, "importances", "what mattered", told)


def _parallel(found: SearchResults, space: Mapping[str, Dimension]) -> Picture:
    """A line for each complete trial through all its values: the best ones told apart, the others grey."""
    metric, keys = found.metric.replace("_", " "), [key for key in space if key in searched(found)]
    names = short_names(keys)
    sign = 1.0 if found.maximize else -1.0
    ranked = sorted(found.complete, key=lambda trial: (-sign * (trial.value or 0.0), trial.number))
    scales = [_Scale.of_key(space[key], [trial.values[key] for trial in ranked]) for key in keys]
    results = _Scale.of_numbers([trial.value or 0.0 for trial in ranked])
    figure, axes = blank_figure(4.4, width=max(WIDTH, 1.15 * (len(keys) + 1)))
    axes.grid(False)
    places = list(range(len(keys) + 1))

    def line(trial: TrialRow, **how: Any) -> None:
        heights = [scale.height(trial.values[key]) for key, scale in zip(keys, scales, strict=True)]
        axes.plot(places, [*heights, results.height(trial.value)], **how)

    for trial in reversed(ranked[_BEST:]):
        line(trial, color="#bbbbbb", linewidth=0.9)
    for place, trial in reversed(list(enumerate(ranked[:_BEST]))):
        how = {"linestyle": _LINES[place], "marker": _MARKERS[place], "markersize": 6, "linewidth": 2.2}
        line(trial, color=COLOURS[place], label=f"t{trial.number}: {number(trial.value or 0.0)}", **how)
    for place, scale in enumerate([*scales, results]):
        axes.axvline(place, color="#444444", linewidth=0.8, zorder=0)
        for height, text in scale.ticks:
            axes.text(place + 0.03, height, text, fontsize=FONT - 3.5, va="center", bbox=_BEHIND)
    axes.set_xticks(places, [*(_broken(name) for name in names.values()), metric], fontsize=FONT - 2.5)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(keys) + 0.45)
    axes.set_ylim(-0.06, 1.06)
    axes.spines["left"].set_visible(False)
    axes.legend(
        fontsize=FONT - 2.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=_BEST, reverse=True
    )
    alt = f"the values of {len(ranked)} complete trials; the best is t{ranked[0].number}"
    return png(figure, "parallel-coordinates", "all values of each trial", alt)


class _Scale:
    """Of one vertical line: from a value to a height between 0 and 1."""

    def __init__(self, positions: Mapping[str, float] | None, low: float, high: float, log: bool) -> None:
        self._positions, self._low, self._high, self._log = positions, low, high, log

    @classmethod
    def of_key(cls, dimension: Dimension, values: Sequence[Any]) -> _Scale:
        if dimension.choices is not None:
            last = max(1, len(dimension.choices) - 1)
            return cls({told_value(choice): at / last for at, choice in enumerate(dimension.choices)}, 0, 1, False)
        assert dimension.low is not None and dimension.high is not None
        return cls(None, dimension.low, dimension.high, dimension.log)

    @classmethod
    def of_numbers(cls, values: Sequence[float]) -> _Scale:
        low, high = min(values), max(values)
        return cls(None, low, high if high > low else low + 1.0, False)

    def height(self, value: Any) -> float:
        if self._positions is not None:
            return self._positions[told_value(value)]
        low, high, at = np.log([self._low, self._high, value]) if self._log else (self._low, self._high, value)
        return float((at - low) / (high - low))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        if self._positions is not None:
            return [(height, text) for text, height in self._positions.items()]
        middle = float(np.sqrt(self._low * self._high)) if self._log else (self._low + self._high) / 2
        return [(self.height(value), f"{value:.3g}") for value in (self._low, middle, self._high)]


def _broken(name: str) -> str:
    return name.replace("_", "_\n") if len(name) > 12 else name
