"""What the commands show of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from train_cloud.cli.experiment_view import show

if TYPE_CHECKING:
    from train_cloud.config.pipeline import PipelineConfig

_COLOURS = {"completed": "green", "running": "cyan", "pending": "dim", "interrupted": "yellow"}


def plan(config: PipelineConfig) -> None:
    """The sessions before any is trained."""
    rows = [
        (
            session.name,
            session.run_id,
            f"{session.config.total_timesteps:,}",
            ", ".join(session.after),
            "" if session.begins_with is None else f"{session.choice} of {session.begins_with}",
            "" if session.criteria is None else _criteria(session.criteria.conditions, session.criteria.retries),
        )
        for session in config.in_order()
    ]
    _table(("session", "run", "timesteps", "after", "begins with", "has to meet"), rows, right=("timesteps",))


def progress(state: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """How far each session is."""
    rows = []
    for one in report["sessions"]:
        colour = _COLOURS.get(one["status"], "red")
        rows.append(
            (
                one["session"],
                one["run_id"],
                f"[{colour}]{one['status']}[/{colour}]",
                f"{one['timesteps']:,} of {one['total_timesteps']:,}",
                _source(one),
                one["error"] or "",
            )
        )
    _table(("session", "run", "", "timesteps", "began with", ""), rows, right=("timesteps",))
    done = f"{report['summary']['completed']} of {report['summary']['total_sessions']} sessions completed"
    show(f"{state['id']}: {state['status']}, {done}")


def results(report: Mapping[str, Any]) -> None:
    """What each session took and found."""
    rows = []
    for one in report["sessions"]:
        found = one["evaluation"] or {}
        rate = found.get("success_rate")
        rows.append(
            (
                one["session"],
                one["status"],
                f"{one['timesteps']:,}",
                _duration(one["duration_seconds"]),
                str(one["boots"]),
                _source(one),
                "" if not found else f"{found['mean_return']:.2f}",
                "" if rate is None else f"{rate:.0%}",
                one["error"] or "",
            )
        )
    names = ("session", "", "timesteps", "time", "starts", "began with", "return", "success", "")
    _table(names, rows, right=("timesteps", "time", "starts", "return", "success"))
    whole = report["summary"]
    done = f"{whole['completed']} of {whole['total_sessions']} sessions completed, {whole['failed']} failed"
    show(f"{report['id']}: {done}, {_duration(whole['total_duration'])} of training")


def _source(one: Mapping[str, Any]) -> str:
    begun = one["begins_with"]
    return "" if begun is None else str(begun["source"]).removeprefix("run:")


def _criteria(conditions: Sequence[str], retries: int) -> str:
    return ", ".join(conditions) + (f" (in {retries + 1} attempts)" if retries else "")


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str]) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    show(table)
