"""The learning curve of a rehearsal as a picture: sessions, interruptions, and the control run beneath."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Points = Sequence[tuple[int, float]]


def draw(
    path: Path, title: str, curve: Points, control: Points, sessions: Sequence[dict[str, Any]], label: str
) -> None:
    """Write a PNG.

    :param curve: (timesteps, value) of the interrupted run
    :param control: the same of the uninterrupted one
    :param sessions: with ``first_timestep``, ``last_timestep``, ``ended_by``, as in the report
    :param label: what the values are
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), dpi=120, layout="constrained")
    axes.plot(*_columns(control), color="0.75", linewidth=7, solid_capstyle="round", label="uninterrupted control run")
    for number, session in enumerate(sessions):
        first, last = session["first_timestep"], session["last_timestep"]
        stretch = [point for point in curve if first < point[0] <= last]
        joint = [point for point in curve if point[0] <= first][-1:]
        axes.plot(*_columns([*joint, *stretch]), color=f"C{number % 10}", linewidth=2, label=f"session {number + 1}")
    top = axes.get_ylim()[1]
    for session in sessions[:-1]:
        axes.axvline(session["last_timestep"], color="crimson", linestyle=":", linewidth=1.2)
        axes.annotate(
            f"{session['ended_by']} at {session['last_timestep']:,}",
            (session["last_timestep"], top),
            xytext=(-5, -4),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            color="crimson",
            fontsize=9,
        )
    axes.set_title(title)
    axes.set_xlabel("timesteps")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", frameon=False)
    figure.savefig(path)
    pyplot.close(figure)


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [timesteps for timesteps, _ in points], [value for _, value in points]
