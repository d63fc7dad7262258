"""What the commands show of an experiment: a live table while it is trained, lines where nobody looks at a terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from train_cloud.cli.terminal import echo

if TYPE_CHECKING:
    from rich.console import RenderableType

    from train_cloud.config import Experiment
    from train_cloud.experiments.engine import Row
    from train_cloud.experiments.estimate import Estimate

_LINE_SECONDS = 30.0
_DRAW_SECONDS = 0.25
#: Runs that are over are shown as far as there is room; how many there are stands below.
_MOST_ROWS = 30
_COLOURS = {"completed": "green", "training": "cyan", "stopping": "yellow", "failed": "red", "fenced": "red"}


@contextmanager
def showing() -> Iterator[Callable[[Sequence[Row]], None]]:
    """Give what is to be called with all runs, again and again."""
    if not sys.stderr.isatty():
        yield _Lines().changed
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=False) as live:
        drawn = 0.0

        def changed(rows: Sequence[Row]) -> None:
            nonlocal drawn
            if time.monotonic() - drawn >= _DRAW_SECONDS:
                live.update(table(rows), refresh=True)
                drawn = time.monotonic()

        last: list[Sequence[Row]] = []

        def remembered(rows: Sequence[Row]) -> None:
            last[:] = [rows]
            changed(rows)

        yield remembered
        if last:
            live.update(table(last[0]), refresh=True)


class _Lines:
    """A line when a run begins and when it ends, and how far all are twice a minute."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, bool]] = {}
        self._said = time.monotonic()

    def changed(self, rows: Sequence[Row]) -> None:
        for row in rows:
            run_id = row.cell.run_id
            before = self._known.get(run_id, ("waiting", False))
            self._known[run_id] = now = (row.doing, row.delay is not None)
            if now != before:
                echo(f"{time.strftime('%H:%M:%S')} {run_id}: {in_words(row)}", err=True)
        if time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            echo(f"{time.strftime('%H:%M:%S')} {summary(rows)}", err=True)


def in_words(row: Row) -> str:
    """How one run stands."""
    if row.delay is not None:
        return (
            f"{row.doing}, at {row.timesteps:,} of {row.total:,} timesteps; cannot save, and tries again: {row.delay}"
        )
    if row.doing == "training":
        return f"trains from {row.timesteps:,} of {row.total:,} timesteps"
    if row.doing == "queued":
        return "waits for a node that has room for it"
    if row.doing == "elsewhere":
        return "another process trains it here: waiting for that"
    because = f": {row.reason}" if row.reason and row.doing not in ("completed", "interrupted") else ""
    return f"{row.doing} at {row.timesteps:,} of {row.total:,} timesteps{because}"


def summary(rows: Sequence[Row]) -> str:
    """How many are in which state, and how far all are together."""
    counts = Counter(row.doing for row in rows)
    delays = [row.delay for row in rows if row.delay is not None]
    done = sum(min(row.timesteps, row.total) for row in rows) / max(1, sum(row.total for row in rows))
    words = f"{', '.join(f'{count} {doing}' for doing, count in counts.items())} of {len(rows)} runs, {done:.0%}"
    return f"{words}; {len(delays)} cannot save, and try again: {delays[0]}" if delays else words


def table(rows: Sequence[Row]) -> RenderableType:
    """A bar for each run that is trained or has ended; what waits is counted."""
    from rich.console import Group
    from rich.markup import escape
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    shown = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("run", "", "timesteps", "steps/s", "left", ""):
        shown.add_column(name, justify="right" if name in ("timesteps", "steps/s", "left") else "left", no_wrap=True)
    over = [row for row in rows if row.doing not in ("waiting", "queued", "training", "stopping", "elsewhere")]
    busy = [row for row in rows if row.doing in ("training", "stopping", "elsewhere")]
    for row in [*over[max(0, len(over) - max(5, _MOST_ROWS - len(busy))) :], *busy]:
        pace = row.steps_per_second
        left = timedelta(seconds=round(max(0, row.total - row.timesteps) / pace)) if pace else ""
        colour = _COLOURS.get(row.doing, "yellow")
        because = f": {escape(row.reason[:80])}" if row.reason and row.doing not in ("completed", "training") else ""
        because = ", cannot save" if row.delay is not None else because
        shown.add_row(
            row.cell.run_id,
            ProgressBar(total=row.total, completed=min(row.timesteps, row.total), width=24),
            f"{row.timesteps:,} of {row.total:,}",
            f"{pace:,.0f}" if pace else "",
            str(left),
            f"[{colour}]{row.doing}[/{colour}]{because}",
        )
    return Group(shown, summary(rows))


def show(view: RenderableType) -> None:
    """Print a table."""
    from rich.console import Console

    # Into a file or a pipe it keeps its full width: nobody scrolls there, and programs cut at columns.
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(view)


def plan(experiment: Experiment, found: Sequence[Estimate], machine: str) -> RenderableType:
    """The runs of an experiment, and what is known of what they will take.

    :param machine: that this is known of, in words
    """
    from rich.console import Group
    from rich.table import Table

    shown = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("run", *experiment.vary, "seed", "timesteps", "state", "time", "$"):
        shown.add_column(name, justify="right" if name in ("seed", "timesteps", "time", "$") else "left", no_wrap=True)
    for one in found:
        cell = one.standing.cell
        state = (
            one.standing.state if one.standing.timesteps == 0 else f"{one.standing.state} at {one.standing.timesteps:,}"
        )
        shown.add_row(
            cell.run_id,
            *cell.levels.values(),
            str(cell.seed),
            f"{cell.config.total_timesteps:,}",
            state,
            _duration(one.hours),
            "unknown" if one.dollars is None else f"{one.dollars:.2f}",
        )
    timesteps = sum(one.standing.cell.config.total_timesteps for one in found)
    hours, dollars = ([getattr(one, name) for one in found] for name in ("hours", "dollars"))
    told = f"{len(found)} runs, {timesteps:,} timesteps; on {machine}, one after the other: time "
    return Group(shown, f"{told}{_sum(hours, _duration)}, dollars {_sum(dollars, lambda value: f'{value:.2f}')}")


def _duration(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    return str(timedelta(seconds=round(hours * 3600)))


def _sum(values: Sequence[float | None], words: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "unknown"
    left = len(values) - len(known)
    return words(sum(known)) + (f" and what {left} unknown ones take" if left else "")
