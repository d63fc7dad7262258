"""How a group of runs stands together: the mean of what they reach, and how sure it is."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from train_cloud.report.status import RunStatus

#: Student's t, 97.5 %, by degrees of freedom from 1 on; the normal distribution's beyond (NIST/SEMATECH e-Handbook of
#: Statistical Methods, 1.3.6.7.2).
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
_NORMAL = 1.960


class ExperimentStatus(BaseModel):
    """An experiment, as far as its runs have come."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    runs: list[str]
    completed: int
    returns: dict[str, float]
    """Mean return of a run's last 100 episodes at its newest checkpoint; without runs that ended no episode yet."""
    mean: float | None
    """Over the runs; None where they have several levels (what stands before ``-s<seed>`` in a run id), whose mean
    would stand for none of them."""
    interval: float | None
    """Half of the 95 % confidence interval of the mean (Student's t); None for fewer than two runs."""


def experiments(runs: Iterable[RunStatus]) -> list[ExperimentStatus]:
    """The groups among these runs, by name; runs without an experiment are in none."""
    groups: dict[str, list[RunStatus]] = {}
    for run in runs:
        if run.experiment is not None:
            groups.setdefault(run.experiment, []).append(run)
    return [_status(name, members) for name, members in sorted(groups.items())]


def _status(name: str, members: list[RunStatus]) -> ExperimentStatus:
    returns = {run.run_id: run.episode_return for run in members if run.episode_return is not None}
    values = list(returns.values())
    interval = None
    alike = len({re.sub(r"-s\d+$", "", name) for name in returns}) == 1
    if alike and len(values) > 1:
        freedom = len(values) - 1
        quantile = _T[freedom - 1] if freedom <= len(_T) else _NORMAL
        interval = quantile * statistics.stdev(values) / len(values) ** 0.5
    return ExperimentStatus(
        experiment=name,
        runs=[run.run_id for run in members],
        completed=sum(run.state == "completed" for run in members),
        returns=returns,
        mean=statistics.fmean(values) if alike else None,
        interval=interval,
    )
