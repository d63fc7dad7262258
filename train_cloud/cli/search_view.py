"""What the commands show of a search: its space, its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from train_cloud.config import Experiment
    from train_cloud.experiments.search.study import Trial


def space(experiment: Experiment) -> RenderableType:
    """What is searched, and how."""
    from rich.console import Group

    search = experiment.search
    assert search is not None
    shown = _table("key", "values")
    for key, dimension in search.space.items():
        shown.add_row(key, str(dimension))
    how = f"{search.most_trials} trials by {search.sampler}"
    pruner = "none is pruned" if search.pruner == "none" else f"pruned by {search.pruner}"
    return Group(shown, f"{how}, {pruner}; {'maximize' if search.maximize else 'minimize'} {search.metric}")


def examples(experiment: Experiment, first: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The first trials, which are drawn while nothing is known of any."""
    assert experiment.search is not None
    shown = _table("trial", *_short(tuple(experiment.search.space)))
    for number, values in enumerate(first):
        shown.add_row(f"t{number}", *(number_or_text(value) for value in values.values()))
    return shown


def trials(experiment: Experiment, found: Sequence[Trial]) -> RenderableType:
    """All trials that were drawn, and the best."""
    from rich.console import Group
    from rich.markup import escape

    search = experiment.search
    assert search is not None
    shown = _table("trial", "state", *_short(tuple(search.space)), search.metric, "")
    for trial in found:
        values = (number_or_text(trial.values[key]) if key in trial.values else "" for key in search.space)
        value = "" if trial.value is None else number_or_text(trial.value)
        shown.add_row(f"t{trial.number}", trial.state, *map(escape, values), value, escape((trial.reason or "")[:100]))
    complete = [trial for trial in found if trial.state == "complete" and trial.value is not None]
    counts = {
        state: sum(trial.state == state for trial in found) for state in dict.fromkeys(one.state for one in found)
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    line = f"{len(found)} of {search.most_trials} trials: {told}" if found else "no trial is drawn yet"
    if complete:
        best = (max if search.maximize else min)(complete, key=lambda trial: trial.value or 0.0)
        line += f"; best: t{best.number}, {search.metric} {number_or_text(best.value)}"
    return Group(shown, line)


def number_or_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or all of it where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)]


def _table(*names: str) -> Table:
    from rich.table import Table

    shown = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in names:
        shown.add_column(name)
    return shown
