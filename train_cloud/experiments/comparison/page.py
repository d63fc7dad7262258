"""A comparison as one HTML page that needs nothing else, and as tables."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from train_cloud.config.comparison import METRICS, SCORE
from train_cloud.experiments.comparison.decision import Change, Matrix
from train_cloud.experiments.comparison.pages import csv_text, template
from train_cloud.experiments.comparison.pictures import Picture, number, with_interval
from train_cloud.experiments.comparison.result import Comparison, Curve, Level, RunRow

_NONE = "-"
_MOST_PAIRS = 30


def page(found: Comparison, pictures: Sequence[Picture], source: str) -> str:
    """The page's HTML.

    :param source: where the runs are
    """
    level_columns, level_rows = levels_table(found)
    text: str = template("comparison.html").render(
        found=found,
        source=source,
        metric=found.metric.replace("_", " "),
        counted=sum(run.counted for run in found.runs),
        percent=f"{100 * found.confidence:g} %",
        wrong=f"{50 * (1 - found.confidence):.2g} %",
        headline=headline(found),
        reason=reason(found),
        level_columns=level_columns,
        level_rows=level_rows,
        effect_columns=("factor", "level minus baseline", "within", "difference", "seeds", "p"),
        effect_rows=_effects(found),
        pair_columns=("better", "other", "P(better)", "difference by seed", "seeds", "p"),
        pair_rows=_pairs(found)[:_MOST_PAIRS],
        pairs_left_out=max(0, len(found.pairs) - _MOST_PAIRS),
        matrix=None if found.matrix is None else _matrix(found, found.matrix),
        run_columns=("run", "level", "state", "timesteps", "evaluated at", found.metric.replace("_", " "), "counts"),
        run_rows=[_run(run) for run in found.runs],
        pictures=[
            {
                "title": picture.title,
                "alt": picture.alt,
                "data": f"data:image/png;base64,{base64.b64encode(picture.body).decode()}",
            }
            for picture in pictures
        ],
    )
    return text


def headline(found: Comparison) -> str:
    """Who won, in a few words."""
    verdict = found.verdict
    if verdict.winner is not None:
        words = f"{verdict.winner} wins"
    else:
        words = "No winner" + (f"; {_who_leads(found)}" if verdict.leading and len(found.levels) > 1 else "")
    return f"So far: {words}" if verdict.provisional else words


def _who_leads(found: Comparison) -> str:
    values = [level.metric["iqm"].value for level in found.levels if level.metric]
    equal = values.count(values[0])
    return f"{found.verdict.leading} leads" if equal == 1 else f"{equal} levels have the same interquartile mean"


def reason(found: Comparison) -> str:
    """Why."""
    verdict = found.verdict
    text = verdict.because
    if verdict.leading is not None:
        leading = next(level for level in found.levels if level.name == verdict.leading)
        text += f". Its interquartile mean: {with_interval(leading.metric['iqm'])}, over {leading.counted} runs"
    return text[:1].upper() + text[1:] + "."


def levels_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows; columns that nothing is known for are left out."""
    columns = [
        "level",
        "runs",
        f"{found.metric.replace('_', ' ')} (IQM)",
        "mean",
        "optimality gap",
        "steps/s",
        "hours",
        "dollars",
        "parameters",
        "ms per action p50",
        "p99",
    ]
    rows = [[level.name, f"{level.counted} of {level.planned}", *_figures(level)] for level in found.levels]
    kept = [at for at in range(len(columns)) if at < 3 or any(row[at] != _NONE for row in rows)]
    return [columns[at] for at in kept], [[row[at] for at in kept] for row in rows]


def _figures(level: Level) -> list[str]:
    metrics = [
        with_interval(level.metric[key]) if key in level.metric else _NONE for key in ("iqm", "mean", "optimality_gap")
    ]
    costs = [
        number(level.costs[key].value) if key in level.costs else _NONE
        for key in ("steps_per_second", "hours", "dollars")
    ]
    parameters = _NONE if level.parameters is None else f"{level.parameters:,}"
    latency = [_NONE, _NONE] if level.latency is None else [number(level.latency.p50), number(level.latency.p99)]
    return [*metrics, *costs, parameters, *latency]


def _effects(found: Comparison) -> list[list[str]]:
    rows = []
    for effect in found.effects:
        against = f"{effect.level} minus {effect.baseline}"
        overall = _NONE if effect.overall is None else with_interval(effect.overall, sign=True)
        rows.append([effect.factor, against, "all", overall, str(effect.seeds), _p(effect.p)])
        if len(effect.within) > 1:
            rows += [
                [effect.factor, against, name, with_interval(estimate, sign=True), _NONE, _NONE]
                for name, estimate in effect.within.items()
            ]
    return rows


def _pairs(found: Comparison) -> list[list[str]]:
    return [
        [
            pair.one,
            pair.other,
            with_interval(pair.improvement),
            _NONE if pair.difference is None else with_interval(pair.difference, sign=True),
            str(len(pair.seeds)),
            _p(pair.p),
        ]
        for pair in found.pairs
    ]


def _p(p: float | None) -> str:
    return _NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _matrix(found: Comparison, matrix: Matrix) -> dict[str, Any]:
    columns = ["level", "total"]
    columns += [f"{name} ({weight:.0%}, {matrix.directions[name]})" for name, weight in matrix.weights.items()]
    rows = []
    for total in matrix.totals:
        low, high = total.interval
        row = [total.level, f"{total.value:.2f} ({low:.2f} to {high:.2f})"]
        for name in matrix.weights:
            entry = matrix.entries[name][total.level]
            row.append(f"{number(entry.value)}{'' if entry.separable else ' ≈'}")
        rows.append(row)
    return {
        "columns": columns,
        "rows": rows,
        "sentence": decision(found),
        "changes": sensitivity(matrix),
    }


def decision(found: Comparison) -> str:
    """What the matrix says, in a sentence."""
    matrix = found.matrix
    if matrix is None:
        return ""
    first, *others = matrix.totals
    unclear = [total.level for total in others if not total.separable]
    few = [level.name for level in found.levels if level.counted < 3]
    sentence = f"With these weights {first.level} is first"
    if few:
        return f"{sentence}, but fewer than three runs of {', '.join(few)} count: nothing is decided."
    if unclear:
        return f"{sentence}, but not separable from {', '.join(unclear)}: the intervals of the totals overlap."
    return f"{sentence}, and the intervals of the totals part from all others." if others else f"{sentence}."


def sensitivity(matrix: Matrix) -> list[str]:
    """What changes with half of a weight, or half as much again."""
    now = tuple(total.level for total in matrix.totals)
    found = [f"With {_weight(change)}, {change.first} is first." for change in matrix.changes if change.differs]
    behind = [_weight(change) for change in matrix.changes if not change.differs and change.order != now]
    if behind:
        found.append(f"Only the order behind {now[0]} changes with {'; '.join(behind)}.")
    return found or ["Half of any weight, or half as much again, changes nothing in the order."]


def _weight(change: Change) -> str:
    return f"{'half' if change.factor < 1 else '1.5 times'} the weight of {change.criterion}"


def _run(run: RunRow) -> list[str]:
    counts = "yes" if run.counted else "no"
    return [
        run.run_id,
        run.level,
        run.state,
        f"{run.timesteps:,}",
        _NONE if run.evaluated_at is None else f"{run.evaluated_at:,}",
        _NONE if run.metric is None else number(run.metric),
        f"{counts}: {run.because}" if run.because else counts,
    ]


def tables(found: Comparison) -> dict[str, str]:
    """CSV files, name to content: every number of the comparison, unrounded."""
    files = {
        "runs.csv": csv_text(_run_rows(found)),
        "evaluations.csv": csv_text(
            {
                "run_id": run.run_id,
                "level": run.level,
                "counted": run.counted,
                "category": name,
                "timesteps": at,
                found.metric: value,
            }
            for run in found.runs
            for name, points in run.evaluations.items()
            for at, value in points
        ),
        "levels.csv": csv_text(_level_rows(found)),
        "categories.csv": csv_text(
            {"level": level.name, "category": name, **_ends(estimate)}
            for level in found.levels
            for name, estimate in level.categories.items()
        ),
        "pairs.csv": csv_text(
            {
                "better": pair.one,
                "other": pair.other,
                **_ends(pair.improvement, "probability"),
                **_ends(pair.difference, "difference"),
                "seeds": " ".join(map(str, pair.seeds)),
                "by_seed": " ".join(map(repr, pair.by_seed)),
                "p": pair.p,
            }
            for pair in found.pairs
        ),
        "effects.csv": csv_text(
            {
                "factor": effect.factor,
                "level": effect.level,
                "baseline": effect.baseline,
                "within": name,
                **_ends(estimate, "difference"),
                "p": effect.p if name == "all" else None,
            }
            for effect in found.effects
            for name, estimate in {**effect.within, "all": effect.overall}.items()
        ),
        "curves.csv": csv_text(
            {"level": level.name, **point}
            for level in found.levels
            for name, curve in (("timesteps", level.over_timesteps), (found.cost, level.over_cost))
            for point in _points(name, curve)
        ),
        "profiles.csv": csv_text(
            {"level": level.name, **point} for level in found.levels for point in _points("threshold", level.profile)
        ),
        "stages.csv": csv_text(
            {"level": level.name, "run_id": run_id, "timesteps": at, "stage": stage}
            for level in found.levels
            for run_id, points in level.stages.items()
            for at, stage in points
        ),
    }
    if found.matrix is not None:
        files["matrix.csv"] = csv_text(_matrix_rows(found.matrix))
        files["weights.csv"] = csv_text(
            {
                "criterion": change.criterion,
                "factor": change.factor,
                "first": change.first,
                "differs": change.differs,
                "order": " > ".join(change.order),
            }
            for change in found.matrix.changes
        )
    return {name: text for name, text in files.items() if text}


def _run_rows(found: Comparison) -> list[dict[str, Any]]:
    levels = {level.name: level.levels for level in found.levels}
    rows = []
    for run in found.runs:
        told_of = run.model_dump(exclude={"scores", "evaluations", "metrics"})
        scores = {f"{found.metric} in {name}": run.scores.get(name) for name in found.categories}
        factors = _apart(levels[run.level], (*told_of, *METRICS, SCORE))
        rows.append({**told_of, **factors, **run.metrics, **scores})
    return rows


def _apart(levels: Mapping[str, str], columns: Collection[str]) -> dict[str, str]:
    """Factor → level, where a factor may be called as another column is."""
    return {f"factor {factor}" if factor in columns else factor: level for factor, level in levels.items()}


def _level_rows(found: Comparison) -> list[dict[str, Any]]:
    rows = []
    for level in found.levels:
        row: dict[str, Any] = {"planned": level.planned, "counted": level.counted}
        for key, estimate in {**level.metric, **level.costs}.items():
            row |= _ends(estimate, key)
        row |= {"parameters": level.parameters, "evaluation_inference_ms": level.inference_ms}
        if level.latency is not None:
            row |= {"inference_ms_p50": level.latency.p50, "inference_ms_p99": level.latency.p99}
        rows.append({"level": level.name, **_apart(level.levels, ("level", *row)), **row})
    return rows


def _matrix_rows(matrix: Matrix) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "level": total.level,
            "criterion": name,
            "weight": weight,
            "direction": matrix.directions[name],
            "value": matrix.entries[name][total.level].value,
            "low": matrix.entries[name][total.level].interval[0],
            "high": matrix.entries[name][total.level].interval[1],
            "utility": matrix.entries[name][total.level].utility,
            "separable": matrix.entries[name][total.level].separable,
        }
        for total in matrix.totals
        for name, weight in matrix.weights.items()
    ]
    rows += [
        {
            "level": total.level,
            "criterion": "total",
            "weight": 1.0,
            "direction": "larger",
            "value": total.value,
            "low": total.interval[0],
            "high": total.interval[1],
            "utility": total.value,
            "separable": total.separable,
        }
        for total in matrix.totals
    ]
    return rows


def _ends(estimate: Any, name: str = "value") -> dict[str, float | None]:
    low, high = (None, None) if estimate is None or estimate.interval is None else estimate.interval
    return {name: None if estimate is None else estimate.value, f"{name}_low": low, f"{name}_high": high}


def _points(name: str, curve: Curve | None) -> Iterable[dict[str, Any]]:
    if curve is None:
        return
    for at, value, low, high in zip(curve.at, curve.value, curve.low, curve.high, strict=True):
        yield {"over": name, "at": at, "value": value, "low": low, "high": high}
