"""A run as one HTML page that needs nothing else: what happened, what was learned, what it cost."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.ticker import MaxNLocator

from train_cloud.report.cloned import Cloned, Evaluated, cloned
from train_cloud.report.status import RunStatus, SessionStatus, exactness_in_words
from train_cloud.run.cost import in_words, repeated

Points = Sequence[tuple[int, float]]

#: Bytes of videos and pictures in one page: mail programs and phones stop well above.
MEDIA_BYTES = 25 << 20
_MOST_POINTS = 800
_FIRST = {
    "rollout/ep_rew_mean": "mean return of the last 100 training episodes",
    "rollout/success_rate": "success rate of the last 100 training episodes",
    "rollout/ep_len_mean": "mean length of the last 100 training episodes",
}
#: Curves of the pretraining, whose steps are epochs.
PRETRAIN = "pretrain/"
_RATE = (0.0, 1.0)
_MOST_STAGES, _MOST_NAMES = 40, 8
"""Changes of a curriculum's stage that are marked in curves, and that have their names there."""
_CONSTANT = 1e-6
"""Of its values: a curve that varies by less is shown as a constant, since TensorBoard's floats have 7 digits."""
_NO_UNIT = 1e13
_UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))
_TYPES = {".mp4": "video/mp4", ".png": "image/png"}


@dataclass(frozen=True)
class Medium:
    """A file that is shown: its name, and itself as a data URL."""

    name: str
    data: str


@dataclass(frozen=True)
class _Plot:
    """What the template draws; lengths in per cent, paths in thousandths."""

    title: str
    path: str
    band: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[float]
    stages: list[tuple[float, str]]
    names: list[tuple[float, str]]
    level: float | None = None


@dataclass(frozen=True)
class _Marks:
    """What is marked in the curves.

    :ivar interrupted: timesteps at which sessions were
    :ivar stages: of a curriculum: at how many timesteps which stage began
    """

    interrupted: Sequence[int]
    stages: Sequence[tuple[int, str]] = ()


def page(
    run: RunStatus,
    *,
    run_yaml: str,
    scalars: Mapping[str, Points],
    evaluations: Sequence[Mapping[str, Any]],
    media: Mapping[str, bytes],
    left_out: Sequence[str],
    made: str,
) -> str:
    """The page's HTML.

    :param scalars: as TensorBoard has them, tag to (timesteps, value)
    :param evaluations: as in ``eval_results.json``, by ascending timesteps
    :param media: name to content of videos and pictures
    :param left_out: names of those that were too much
    :param made: when
    """
    interrupted = [session.last_timestep for session in run.sessions[:-1] if session.last_timestep is not None]
    marks = _Marks(interrupted, _stages(run.curriculum))
    evaluation = dict(evaluations[-1]) if evaluations else None
    summaries = [] if evaluation is None else [*evaluation["categories"].items(), ("all", evaluation["overall"])]
    firsts = [
        _plot(title, scalars.get(tag, ()), marks, within=_RATE if tag.endswith("rate") else None)
        for tag, title in _FIRST.items()
    ]
    score = run.score["name"] if run.score is not None else None
    firsts += [] if score is None else [_plot(score, scalars.get(score, ()), marks)]
    plots = [plot for plot in firsts if plot is not None]
    shown = [Medium(name, _data(name, body)) for name, body in sorted(media.items())]
    found: str = _template().render(
        run=run,
        facts=_facts(run),
        bars=_bars(run.sessions),
        span=_span(run.sessions),
        sessions=list(zip(run.sessions, run.cost.sessions, map(exactness_in_words, run.sessions), strict=True)),
        cost_line=_cost_line(run),
        main_plots=[*_evaluated(evaluations, marks), *plots],
        marked=bool(interrupted),
        curriculum=_curriculum(run.curriculum),
        staged=0 < len(marks.stages) <= _MOST_STAGES,
        more_plots=_others({tag: points for tag, points in scalars.items() if tag != score}, marks),
        evaluation=evaluation,
        summaries=[(name, {**each, "success_percent": _percent(each["success_interval"])}) for name, each in summaries],
        evaluations=len(evaluations),
        best=_best(evaluations),
        cloned=_cloned(evaluations),
        videos=[medium for medium in shown if medium.name.endswith(".mp4")],
        pictures=[medium for medium in shown if medium.name.endswith(".png")],
        left_out=left_out,
        run_yaml=run_yaml,
        made=made,
    )
    return found


def _best(evaluations: Sequence[Mapping[str, Any]]) -> int | None:
    """Timesteps of the one with the highest mean return; None where there is no other, or another is as good."""
    means = sorted(((each["overall"]["returns"]["mean"], each["timesteps"]) for each in evaluations), reverse=True)
    return means[0][1] if len(means) > 1 and means[0][0] > means[1][0] else None


def _cloned(evaluations: Sequence[Mapping[str, Any]]) -> Cloned | None:
    spreads = ((each["timesteps"], each["overall"]["returns"]) for each in evaluations)
    return cloned(Evaluated(at, returns["mean"], returns["interval"]) for at, returns in spreads)


def _percent(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [100 * end for end in interval]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["repeated"] = repeated
    environment.filters["number"] = lambda value: "?" if value is None else f"{value:,}"
    return environment.from_string((Path(__file__).parent / "html_report.html").read_text(encoding="utf-8"))


def _facts(run: RunStatus) -> list[tuple[str, str]]:
    total = f" of {run.total_timesteps:,}" if run.total_timesteps else ""
    facts = [(f"{run.unit}{total}", f"{run.timesteps:,}"), ("sessions", str(len(run.sessions)))]
    again = in_words(run.repeated_timesteps, run.repeated_at_most)
    facts += [("interruptions", str(run.interruptions)), (f"{run.unit} done again", again)]
    facts.append(("exact", run.exact_evidence or "not known yet"))
    if run.curriculum is not None:
        stage, names = run.curriculum["stage"], run.curriculum["names"]
        facts.append((f"stage {stage + 1} of {len(names)}", names[stage]))
    if run.evaluation and "mean_return" in run.evaluation:
        facts.append(("mean return, evaluated", f"{run.evaluation['mean_return']:,.2f}"))
        if run.evaluation.get("success_rate") is not None:
            facts.append(("success rate, evaluated", f"{run.evaluation['success_rate']:.0%}"))
    if run.cost.dollars is not None:
        facts.append(("cost", f"${run.cost.dollars:,.2f}"))
    if run.cost.saved_dollars is not None:
        facts.append(("less than on demand", f"${run.cost.saved_dollars:,.2f}"))
    facts.append(("machine hours", f"{run.cost.hours:,.2f}"))
    return facts


def _stages(curriculum: Mapping[str, Any] | None) -> list[tuple[int, str]]:
    """Where another stage began."""
    if curriculum is None:
        return []
    return [(at, curriculum["names"][stage]) for at, stage in curriculum["changes"] if at > 0]


def _curriculum(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A row for each stage."""
    rows = []
    for stage, name in enumerate(found["names"] if found is not None else ()):
        assert found is not None
        played = found["played"][stage] if found["played"] else None
        succeeded = found["succeeded"][stage] if found["succeeded"] else None
        rows.append(
            {
                "name": name,
                "present": stage == found["stage"],
                "began": [at for at, which in found["changes"] if which == stage],
                "played": played,
                "rate": 100 * succeeded / played if played and succeeded is not None else None,
            }
        )
    return rows


def _cost_line(run: RunStatus) -> str:
    if not any(session.instance_type for session in run.sessions):
        return "On a machine of one's own: no cost is counted."
    missing = ", ".join(map(str, run.cost.unknown))
    line = "Machines, their volumes and public addresses, at the price of each session's start; without traffic and S3."
    unknown = {"price": missing}
    unknown |= {"volume's price": ", ".join(map(str, run.cost.without_volume))}
    unknown |= {"address's price": ", ".join(map(str, run.cost.without_address))}
    missed = [f"The {what} is unknown for session {which}." for what, which in unknown.items() if which]
    return " ".join([line, *missed])


def _times(sessions: Sequence[SessionStatus]) -> list[tuple[datetime, datetime]]:
    found = []
    for session in sessions:
        began = datetime.fromisoformat(session.started) if session.started else None
        ended = datetime.fromisoformat(session.ended) if session.ended else None
        known = [time for time in (began, ended) if time is not None]
        if not known:
            return []
        found.append((min(known), max(known)))
    return found


def _bars(sessions: Sequence[SessionStatus]) -> list[dict[str, Any]]:
    times = _times(sessions)
    if not times:
        return []
    first, last = min(began for began, _ in times), max(ended for _, ended in times)
    whole = max((last - first).total_seconds(), 1e-9)
    return [
        {
            "left": round(100 * (began - first).total_seconds() / whole, 3),
            "width": round(100 * (ended - began).total_seconds() / whole, 3),
            "kind": session.ended_by if session.ended_by in ("notice", "lost") else "",
            "title": f"session {session.session}: {session.ended_by or 'at work'}",
        }
        for session, (began, ended) in zip(sessions, times, strict=True)
    ]


def _span(sessions: Sequence[SessionStatus]) -> tuple[str, str] | None:
    times = _times(sessions)
    if not times:
        return None
    first, last = min(began for began, _ in times), max(ended for _, ended in times)
    return f"{first:%Y-%m-%d %H:%M} UTC", f"{last:%Y-%m-%d %H:%M} UTC"


def _evaluated(evaluations: Sequence[Mapping[str, Any]], marks: _Marks) -> list[_Plot]:
    found = []
    spreads = [(each["timesteps"], each["overall"]["returns"]) for each in evaluations]
    rates = [
        (each["timesteps"], each["overall"]) for each in evaluations if each["overall"]["success_rate"] is not None
    ]
    points = [(at, spread["mean"]) for at, spread in spreads]
    band = [(at, *(spread["interval"] or (spread["mean"],) * 2)) for at, spread in spreads]
    begun = _cloned(evaluations)
    level = begun.mean_return if begun is not None else None
    found.append(_plot("mean return in evaluations, with its 95 % interval", points, marks, band, level=level))
    points = [(at, overall["success_rate"]) for at, overall in rates]
    band = [(at, *overall["success_interval"]) for at, overall in rates]
    found.append(_plot("success rate in evaluations, with its 95 % interval", points, marks, band, _RATE))
    return [plot for plot in found if plot is not None]


def _others(scalars: Mapping[str, Points], marks: _Marks) -> list[tuple[str, list[_Plot]]]:
    """All other curves, by the first part of their tag."""
    groups: dict[str, list[_Plot]] = {}
    for tag in sorted(scalars):
        if tag in _FIRST or tag.startswith("eval/"):
            continue
        plot = _plot(tag, scalars[tag], _Marks(()) if tag.startswith(PRETRAIN) else marks)  # whose steps are epochs
        if plot is not None:
            groups.setdefault(tag.split("/")[0], []).append(plot)
    return list(groups.items())


def _plot(
    title: str,
    points: Points,
    marks: _Marks,
    band: Sequence[tuple[int, float, float]] = (),
    within: tuple[float, float] | None = None,
    level: float | None = None,
) -> _Plot | None:
    """None where there are no two points to join.

    :param within: what the values can be, which the axis then shows
    :param level: a value that is marked over the whole width
    """
    points = [(at, value) for at, value in points if math.isfinite(value)]
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    stride = -(-len(points) // _MOST_POINTS)
    points = [*points[:-1:stride], points[-1]]
    left, right = points[0][0], points[-1][0]
    ends = [value for _, value in points] + [end for _, low, high in band for end in (low, high)]
    low, high = (min(ends), max(ends)) if within is None else (min(within[0], *ends), max(within[1], *ends))
    if high - low <= _CONSTANT * max(abs(low), abs(high)):  # from 0 on, the line in the middle
        low, high = min(0.0, 2 * low), max(0.0, 2 * high)
    if high == low:
        low, high = 0.0, 1.0
    ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, high)]
    if within is not None:
        ticks = [tick for tick in ticks if low <= tick <= high]
    low, high = min(ticks[0], low), max(ticks[-1], high)

    def x(at: float) -> float:
        return round(1000 * (at - left) / (right - left), 1)

    def y(value: float) -> float:
        return round(1000 - 1000 * (value - low) / (high - low), 1)

    stages = [(x(at), name) for at, name in marks.stages if left < at < right]
    upper = [f"{x(at)} {y(top)}" for at, _, top in band]
    lower = [f"{x(at)} {y(bottom)}" for at, bottom, _ in reversed(band)]
    return _Plot(
        title=title,
        path="M" + "L".join(f"{x(at)} {y(value)}" for at, value in points),
        band=f"M{'L'.join([*upper, *lower])}Z" if len(band) > 1 else "",
        x_ticks=list(zip((0.0, 50.0, 100.0), _labels([left, (left + right) / 2, right]), strict=True)),
        y_ticks=[(round(100 - y(tick) / 10, 2), label) for tick, label in zip(ticks, _labels(ticks), strict=True)],
        marks=[x(at) for at in marks.interrupted if left < at < right],
        stages=stages if len(marks.stages) <= _MOST_STAGES else [],
        names=[(at / 10, name) for at, name in stages] if len(marks.stages) <= _MOST_NAMES else [],
        level=None if level is None else y(level),
    )


def _labels(values: Sequence[float]) -> list[str]:
    """In one unit, with as many digits as tell them apart, about six characters each."""
    size = max(map(abs, values))
    unit, scale = next(((unit, scale) for unit, scale in _UNITS if size >= 10 * scale), ("", 1.0))
    if size >= _NO_UNIT:
        unit, scale = "", 1.0
    for digits in (4, 5, 6, 8):
        labels = [f"{value / scale:.{digits}g}{unit if value else ''}" for value in values]
        if len(set(labels)) == len(set(values)):
            break
    return labels


def _data(name: str, body: bytes) -> str:
    return f"data:{_TYPES[Path(name).suffix]};base64,{base64.b64encode(body).decode()}"
