"""The pictures of a comparison. Every line, bar and point can be told apart without colour, and read on a phone."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from train_cloud.experiments.comparison.result import Comparison, Curve, Estimate, Level

#: Okabe and Ito's, which colour-blind people tell apart, without the yellow, in the order of their brightness.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "++++", "oooo", "----")
_AT_ONCE = len(_LINES)
"""Levels in one picture of lines: no more are told apart. Others have pictures of their own."""
WIDTH = 5.4
_DPI = 160
FONT = 12.5
_LABEL = 24
"""Characters in a line of a level's name."""


@dataclass(frozen=True)
class Picture:
    """A PNG file.

    :ivar alt: says in words what it shows
    """

    name: str
    title: str
    alt: str
    body: bytes


def draw(found: Comparison) -> list[Picture]:
    """All pictures that there is something for."""
    known = [level for level in found.levels if level.metric]
    if not known:
        return []
    metric = found.metric.replace("_", " ")
    pictures = [_aggregates(found, known, metric)]
    if len(known) > 1:
        pictures.append(_improvement(found))
        if differences := _differences(found):
            pictures.append(differences)
    others = _not_counted(found)
    pictures += _curves(
        known, "over_timesteps", f"{metric} over timesteps", "learning-curves", "timesteps", metric, others=others
    )
    unit = "US dollars" if found.cost == "dollars" else "machine hours"
    pictures += _curves(known, "over_cost", f"{metric} over {unit}", f"curves-over-{found.cost}", unit, metric)
    pictures += _curves(
        known,
        "profile",
        "performance profile",
        "profiles",
        f"{metric} above",
        "share of runs and categories",
        steps=True,
    )
    if len(found.categories) > 1:
        pictures.append(_categories(found, known, metric))
    pictures += _effects(found, metric)
    if found.matrix is not None:
        pictures.append(_decision(found))
    return pictures + _stages(found)


def blank_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """:param height: inches, as the width"""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(True, color="#cccccc", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT - 1.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def png(figure: Figure, name: str, title: str, alt: str) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return Picture(name, title, alt, file.getvalue())


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _LABEL, break_on_hyphens=True)) or name


def number(value: float) -> str:
    """With three to four digits, without an exponent where that is short."""
    if value == 0 or 0.1 <= abs(value) < 1e5:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
        return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def with_interval(estimate: Estimate, sign: bool = False) -> str:
    """``0.71 (0.55 to 0.83)``."""
    value = ("+" if sign and estimate.value > 0 else "") + number(estimate.value)
    if estimate.interval is None:
        return value
    return f"{value} ({number(estimate.interval[0])} to {number(estimate.interval[1])})"


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """A line for each, the first on top."""
    axes.set_yticks(range(len(names)), [_wrapped(name) for name in names], fontsize=FONT - 1.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")


def _point(axes: Axes, row: float, estimate: Estimate, place: int, label: str | None = None) -> None:
    low, high = estimate.interval or (estimate.value, estimate.value)
    colour = _COLOURS[place % len(_COLOURS)]
    axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot(
        [estimate.value],
        [row],
        _MARKERS[place % len(_MARKERS)],
        color=colour,
        markersize=8,
        markeredgecolor="white",
        label=label,
        linestyle="none",
    )


def _aggregates(found: Comparison, known: Sequence[Level], metric: str) -> Picture:
    figure, axes = blank_figure(1.5 + 0.62 * len(known))
    names = {"iqm": "interquartile mean", "mean": "mean", "median": "median"}
    for row, level in enumerate(known):
        for place, (key, name) in enumerate(names.items()):
            _point(axes, row + 0.24 * (place - 1), level.metric[key], place, name if row == 0 else None)
    _rows(axes, [level.name for level in known])
    axes.set_xlabel(metric, fontsize=FONT)
    figure.legend(loc="outside lower center", ncols=3, fontsize=FONT - 2, frameon=False, handletextpad=0.1)
    alt = f"{metric}, interquartile mean with its {found.confidence:.0%} interval: " + "; ".join(
        f"{level.name} {with_interval(level.metric['iqm'])}" for level in known
    )
    return png(figure, "aggregates", f"{metric}: interquartile mean, mean and median", alt)


def _improvement(found: Comparison) -> Picture:
    first = found.levels[0].name
    pairs = [pair for pair in found.pairs if pair.one == first]
    figure, axes = blank_figure(1.2 + 0.5 * len(pairs))
    for row, pair in enumerate(pairs):
        _point(axes, row, pair.improvement, 0)
    _rows(axes, [pair.other for pair in pairs])
    axes.axvline(0.5, color="black", linewidth=1, linestyle=":")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(textwrap.fill(f"probability that a run of {first} is better", 32), fontsize=FONT)
    alt = f"Probability that a run of {first} is better than one of " + "; ".join(
        f"{pair.other}: {with_interval(pair.improvement)}" for pair in pairs
    )
    return png(figure, "improvement", "probability of improvement", alt)


def _differences(found: Comparison) -> Picture | None:
    first = found.levels[0].name
    pairs = [pair for pair in found.pairs if pair.one == first and pair.difference is not None]
    if not pairs:
        return None
    figure, axes = blank_figure(1.2 + 0.5 * len(pairs))
    for row, pair in enumerate(pairs):
        assert pair.difference is not None
        axes.plot(pair.by_seed, [row] * len(pair.by_seed), "|", color="black", markersize=14, markeredgewidth=1.5)
        _point(axes, row, pair.difference, 1)
    _rows(axes, [pair.other for pair in pairs])
    axes.axvline(0, color="black", linewidth=1, linestyle=":")
    axes.set_xlabel(textwrap.fill(f"{first} minus the other, seed by seed (bars), and the mean", 32), fontsize=FONT)
    alt = f"Difference of {first} to the other levels by seed, mean: " + "; ".join(
        f"{pair.other} {with_interval(pair.difference, sign=True)}" for pair in pairs if pair.difference is not None
    )
    return png(figure, "differences", "paired differences by seed", alt)


def _curves(
    known: Sequence[Level],
    which: str,
    title: str,
    name: str,
    x_label: str,
    y_label: str,
    steps: bool = False,
    others: Mapping[str, Sequence[tuple[list[int], list[float]]]] | None = None,
) -> list[Picture]:
    """
    :param others: level → lines of runs that do not count
    """
    lines: list[tuple[str, Curve]] = [(level.name, getattr(level, which)) for level in known if getattr(level, which)]
    pieces = [lines[first : first + _AT_ONCE] for first in range(0, len(lines), _AT_ONCE)]
    found = []
    for part, piece in enumerate(pieces, 1):
        figure, axes = blank_figure(4.0 + 0.26 * len(piece))
        for place, (level, curve) in enumerate(piece):
            colour = _COLOURS[place]
            drawstyle: Any = "steps-post" if steps else "default"
            shade: dict[str, Any] = {"color": colour, "alpha": 0.12 if len(piece) < 5 else 0.07, "linewidth": 0}
            axes.fill_between(curve.at, curve.low, curve.high, step="post" if steps else None, **shade)
            axes.plot(
                curve.at,
                curve.value,
                color=colour,
                linestyle=_LINES[place],
                marker=_MARKERS[place],
                markevery=max(1, len(curve.at) // 6),
                markersize=6,
                linewidth=1.8,
                drawstyle=drawstyle,
                label=level,
            )
            for at, value in (others or {}).get(level, ()):
                axes.plot(at, value, color=colour, linestyle=_LINES[place], linewidth=0.8)
                axes.plot(at[-1:], value[-1:], "x", color=colour, markersize=8, markeredgewidth=2)
        axes.set_xlabel(x_label, fontsize=FONT)
        axes.set_ylabel(y_label, fontsize=FONT)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if max(curve.at[-1] for _, curve in piece) >= 10_000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.legend(loc="outside lower center", ncols=1, fontsize=FONT - 2, frameon=False, handlelength=4)
        number_of = _part(part, pieces)
        alt = f"{title}{number_of}, with intervals; at the end: " + "; ".join(
            f"{level} {number(curve.value[-1])} ({number(curve.low[-1])} to {number(curve.high[-1])})"
            for level, curve in piece
        )
        if any((others or {}).get(level) for level, _ in piece):
            alt += ". Thin lines that end with a cross: runs that do not count"
            title_of = f"{title}{number_of}; thin, to a cross: runs that do not count"
        else:
            title_of = f"{title}{number_of}"
        if steps:
            alt = f"{title}{number_of}: " + "; ".join(
                f"{level}, half of runs and categories above {number(_half(curve))}" for level, curve in piece
            )
        found.append(png(figure, f"{name}{f'-{part}' if len(pieces) > 1 else ''}", title_of, alt))
    return found


def _not_counted(found: Comparison) -> dict[str, list[tuple[list[int], list[float]]]]:
    """Level → lines over timesteps of its runs that do not count, mean over categories, as far as they have come."""
    lines: dict[str, list[tuple[list[int], list[float]]]] = {}
    for run in found.runs:
        by_category = [dict(points) for points in run.evaluations.values()]
        at = sorted(set(by_category[0]).intersection(*by_category[1:])) if by_category else []
        if at and not run.counted:
            means = [float(np.mean([points[each] for points in by_category])) for each in at]
            lines.setdefault(run.level, []).append((at, means))
    return lines


def _half(curve: Curve) -> float:
    above = [at for at, share in zip(curve.at, curve.value, strict=True) if share >= 0.5]
    return above[-1] if above else curve.at[0]


def _categories(found: Comparison, known: Sequence[Level], metric: str) -> Picture:
    values = np.array([[level.categories[name].value for name in found.categories] for level in known])
    figure, axes = blank_figure(1.6 + 0.5 * len(known))
    low, high = float(values.min()), float(values.max())
    shown = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    axes.imshow(shown, cmap="Greys", vmin=-0.1, vmax=1.25, aspect="auto")
    size = FONT - 1.5 if len(found.categories) <= 6 else FONT - 4
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if shown[row, column] > 0.55 else "black"
        axes.text(column, row, number(value), ha="center", va="center", color=ink, fontsize=size)
    axes.grid(False)
    _rows(axes, [level.name for level in known])
    turned = 90 if len(found.categories) > 6 else 30 if len(found.categories) > 3 else 0
    axes.set_xticks(
        range(len(found.categories)), found.categories, rotation=turned, ha="right" if turned == 30 else "center"
    )
    axes.set_xlabel(f"{metric}, mean over runs", fontsize=FONT)
    alt = f"{metric} by level and category: " + "; ".join(
        f"{level.name}: " + ", ".join(f"{name} {number(level.categories[name].value)}" for name in found.categories)
        for level in known
    )
    return png(figure, "categories", f"{metric} by category", alt)


def _effects(found: Comparison, metric: str) -> list[Picture]:
    """For each factor with exactly one counterpart level, both side by side; pretraining first."""
    pictures = []
    effects = sorted(found.effects, key=lambda effect: not effect.pretraining)
    for effect in effects:
        pairs = _side_by_side(found, effect.factor, effect.level, effect.baseline)
        if len([each for each in effects if each.factor == effect.factor]) > 1 and not effect.pretraining:
            continue
        if not pairs or (len(found.levels) < 3 and not effect.pretraining):
            continue
        figure, axes = blank_figure(1.6 + 0.75 * len(pairs))
        for row, (_, *both) in enumerate(pairs):
            for place, level in enumerate(both):
                estimate = level.metric["mean"]
                at = row + 0.2 * (2 * place - 1)
                axes.barh(
                    at,
                    estimate.value,
                    height=0.36,
                    facecolor=("#ffffff", "#b5c9dd")[place],
                    edgecolor="black",
                    hatch=_HATCHES[place],
                    label=(effect.baseline, effect.level)[place] if row == 0 else None,
                )
                if estimate.interval is not None:
                    axes.plot(estimate.interval, [at, at], color="black", linewidth=2.5)
        _rows(axes, [name for name, *_ in pairs])
        axes.set_xlabel(f"{metric}, mean over runs and categories", fontsize=FONT)
        figure.legend(loc="outside lower center", ncols=2, fontsize=FONT - 2, frameon=False)
        title = f"{effect.factor}: {effect.level} beside {effect.baseline}"
        overall = "unknown" if effect.overall is None else with_interval(effect.overall, sign=True)
        alt = f"{title}; mean difference {overall}; " + "; ".join(
            f"{name}: {effect.baseline} {with_interval(one.metric['mean'])}, "
            f"{effect.level} {with_interval(other.metric['mean'])}"
            for name, one, other in pairs
        )
        pictures.append(png(figure, f"effect-{effect.factor}-{effect.level}", title, alt))
    return pictures


def _side_by_side(found: Comparison, factor: str, level: str, baseline: str) -> list[tuple[str, Level, Level]]:
    by_levels = {tuple(sorted(each.levels.items())): each for each in found.levels if each.metric}
    pairs = []
    for each in found.levels:
        if each.levels.get(factor) != baseline or not each.metric:
            continue
        other = by_levels.get(tuple(sorted({**each.levels, factor: level}.items())))
        if other is not None:
            name = " · ".join(part for part in each.name.split(" · ") if part != baseline) or "all"
            pairs.append((name, each, other))
    return pairs


def _decision(found: Comparison) -> Picture:
    matrix = found.matrix
    assert matrix is not None
    figure, axes = blank_figure(1.6 + 0.55 * len(matrix.totals) + 0.26 * math.ceil(len(matrix.weights) / 2))
    shades = np.linspace(1.0, 0.45, max(2, len(matrix.weights)))
    for row, total in enumerate(matrix.totals):
        start = 0.0
        for place, (criterion, weight) in enumerate(matrix.weights.items()):
            part = weight * matrix.entries[criterion][total.level].utility
            axes.barh(
                row,
                part,
                left=start,
                height=0.6,
                facecolor=str(shades[place]),
                edgecolor="black",
                linewidth=0.8,
                hatch=_HATCHES[place % len(_HATCHES)],
                label=criterion if row == 0 else None,
            )
            start += part
        axes.plot(total.interval, [row, row], color="black", linewidth=3, solid_capstyle="butt")
    _rows(axes, [total.level for total in matrix.totals])
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("weighted sum, 1 is best in everything", fontsize=FONT)
    figure.legend(loc="outside lower center", ncols=2, fontsize=FONT - 2, frameon=False)
    alt = "Weighted sum of the criteria: " + "; ".join(
        f"{total.level} {number(total.value)} ({number(total.interval[0])} to {number(total.interval[1])})"
        for total in matrix.totals
    )
    return png(figure, "decision", "decision matrix", alt)


def _stages(found: Comparison) -> list[Picture]:
    with_stages = [level for level in found.levels if level.stages]
    pieces = [with_stages[first : first + _AT_ONCE] for first in range(0, len(with_stages), _AT_ONCE)]
    pictures = []
    for part, piece in enumerate(pieces, 1):
        figure, axes = blank_figure(3.4 + 0.26 * len(piece))
        for place, level in enumerate(piece):
            for index, points in enumerate(level.stages.values()):
                axes.plot(
                    [at for at, _ in points],
                    [stage + 0.04 * place for _, stage in points],
                    color=_COLOURS[place],
                    linestyle=_LINES[place],
                    drawstyle="steps-post",
                    linewidth=1.5,
                    label=level.name if index == 0 else None,
                )
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("timesteps", fontsize=FONT)
        axes.set_ylabel("stage", fontsize=FONT)
        figure.legend(loc="outside lower center", fontsize=FONT - 2, frameon=False, handlelength=4)
        alt = "Stage of the curriculum over timesteps, a line for each run; at the end: " + "; ".join(
            f"{level.name} {_ends(points[-1][1] for points in level.stages.values())}" for level in piece
        )
        title, name = f"stages of the curriculum{_part(part, pieces)}", f"stages{f'-{part}' if len(pieces) > 1 else ''}"
        pictures.append(png(figure, name, title, alt))
    return pictures


def _part(part: int, pieces: Sequence[object]) -> str:
    return f", part {part} of {len(pieces)}" if len(pieces) > 1 else ""


def _ends(stages: Iterable[float]) -> str:
    return ", ".join(f"{stage:g}" for stage in stages)
