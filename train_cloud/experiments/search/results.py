"""What a search has found: its trials, which keys mattered, pictures, tables, a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from pydantic import BaseModel, ConfigDict

from train_cloud.config import Experiment
from train_cloud.errors import InputError
from train_cloud.experiments.comparison.pages import csv_text, template, write_page
from train_cloud.experiments.comparison.pictures import Picture, number
from train_cloud.experiments.search.study import State, Study, Trial, quiet
from train_cloud.experiments.search.trials import drawn
from train_cloud.run.session import now

#: With fewer complete trials nothing is said of what mattered.
_LEAST = 4


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True)


class TrialRow(_Found):
    """A trial, as it stands."""

    number: int
    state: State
    values: dict[str, Any]
    value: float | None
    steps: dict[int, float]
    """Timesteps → the metric there."""
    reason: str | None
    run_ids: list[str]


class SearchResults(_Found):
    """A search, as far as it has come."""

    experiment: str
    made: str
    metric: str
    maximize: bool
    sampler: str
    pruner: str
    planned: int
    """Trials that there are to be."""
    trials: list[TrialRow]
    best: int | None
    """Number of the best complete trial."""
    importances: dict[str, float] | None
    """Key → its share of what tells the best tenth of the complete trials from all, by PED-ANOVA (Watanabe, Bansal and
    Hutter, PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces, 2023); None where too
    few are complete, or all are equal."""

    @property
    def complete(self) -> list[TrialRow]:
        return [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]


def search_results(experiment: Experiment, root: str) -> SearchResults:
    """Of what the store has by now. Nothing is written.

    :raises InputError: no trial has been drawn
    """
    search = experiment.search
    assert search is not None
    trials = drawn(experiment, root)
    if not trials:
        raise InputError("experiment", experiment.experiment, f"no trial of this search has been drawn under {root}")
    rows = [_row(experiment, trial) for trial in trials]
    complete = [row for row in rows if row.state == "complete" and row.value is not None]
    sign = 1.0 if search.maximize else -1.0
    best = max(complete, key=lambda row: (sign * (row.value or 0.0), -row.number), default=None)
    return SearchResults(
        experiment=experiment.experiment,
        made=now(),
        metric=search.metric,
        maximize=search.maximize,
        sampler=search.sampler,
        pruner=search.pruner,
        planned=search.most_trials,
        trials=rows,
        best=best.number if best is not None else None,
        importances=_importances(Study(experiment, root).optuna_study(), complete),
    )


def write_search(found: SearchResults, pictures: Sequence[Picture], out: Path, source: str) -> Path:
    """Write page, pictures, tables and ``search.json``, and return the page's path. Files of other names stay.

    :param pictures: of ``search_pictures.draw``
    :param source: where the runs are
    """
    return write_page(out, page(found, pictures, source), pictures, tables(found), found, "search.json")


def headline(found: SearchResults) -> str:
    """What came out, in one sentence."""
    counts: dict[str, int] = {}
    for trial in found.trials:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    line = f"{len(found.trials)} of {found.planned} trials: {told}."
    best = _best(found)
    if best is None or best.value is None:
        return f"{line} None is complete, so there is no best one."
    words = ", ".join(
        f"{short_names(list(best.values))[key]} {told_value(value)}" for key, value in best.values.items()
    )
    return f"{line} Best: t{best.number}, {found.metric.replace('_', ' ')} {number(best.value)}, with {words}."


def caution() -> str:
    """What the best value does not mean."""
    return (
        "The best of many trials is partly luck: its value is higher than what the same values would reach again. "
        "Train it with other seeds, in an experiment that varies levels, before you believe it."
    )


def tables(found: SearchResults) -> dict[str, str]:
    """CSV files by name."""
    trials = [
        {
            "trial": trial.number,
            "state": trial.state,
            **{
                key: json.dumps(value) if isinstance(value, list | dict) else value
                for key, value in trial.values.items()
            },
            found.metric: trial.value,
            "reason": trial.reason,
            "runs": " ".join(trial.run_ids),
        }
        for trial in found.trials
    ]
    steps = [
        {"trial": trial.number, "timesteps": timesteps, found.metric: value}
        for trial in found.trials
        for timesteps, value in trial.steps.items()
    ]
    importances = [{"key": key, "importance": value} for key, value in (found.importances or {}).items()]
    written: dict[str, list[dict[str, Any]]] = {
        "trials.csv": trials,
        "evaluations.csv": steps,
        "importances.csv": importances,
    }
    return {name: csv_text(rows) for name, rows in written.items() if rows}


def page(found: SearchResults, pictures: Sequence[Picture], source: str) -> str:
    """HTML; its pictures lie beside it."""
    names = short_names(searched(found))
    rows = [
        [
            f"t{trial.number}",
            trial.state,
            *(told_value(trial.values[key]) if key in trial.values else "" for key in names),
            "" if trial.value is None else number(trial.value),
            trial.reason or "",
        ]
        for trial in found.trials
    ]
    columns = ["trial", "state", *names.values(), found.metric, "why"]
    return template("search.html").render(
        found=found,
        headline=headline(found),
        caution=caution(),
        columns=columns,
        rows=rows,
        pictures=pictures,
        files=sorted(tables(found)),
        source=source,
    )


def _importances(study: optuna.Study, complete: Sequence[TrialRow]) -> dict[str, float] | None:
    if len(complete) < _LEAST or len({trial.value for trial in complete}) == 1:
        return None
    with quiet():
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    whole = sum(found.values())
    return {key: value / whole for key, value in found.items()} if whole > 0 else None


def _row(experiment: Experiment, trial: Trial) -> TrialRow:
    cells = {cell.run_id for cell in experiment.cells if cell.levels.get("trial") == f"t{trial.number}"}
    return TrialRow(
        number=trial.number,
        state=trial.state,
        values=dict(trial.values),
        value=trial.value,
        steps=dict(trial.steps),
        reason=trial.reason,
        run_ids=sorted(cells),
    )


def _best(found: SearchResults) -> TrialRow | None:
    return next((trial for trial in found.trials if trial.number == found.best), None)


def searched(found: SearchResults) -> list[str]:
    """The keys of which there are values."""
    return list(dict.fromkeys(key for trial in found.trials for key in trial.values))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Key → its last part, or all of it where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)}


def told_value(value: object) -> str:
    """A value that was drawn, in short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
