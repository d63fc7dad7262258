"""compare: an experiment's levels against each other, from what its runs have left in the store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from train_cloud.checkpoint import signing
from train_cloud.config.comparison import CRITERIA, check_metric
from train_cloud.config.experiment import load_experiment
from train_cloud.experiments.comparison import models
from train_cloud.experiments.comparison.analysis import compare
from train_cloud.experiments.comparison.page import page, tables
from train_cloud.experiments.comparison.pages import write_page
from train_cloud.experiments.comparison.pictures import draw
from train_cloud.experiments.comparison.records import Plan, grouped, planned, read
from train_cloud.experiments.comparison.result import Comparison
from train_cloud.run.session import now


def compare_experiment(
    root: str,
    experiment: Path | str,
    *,
    metric: str | None = None,
    overrides: Sequence[str] = (),
    latency: bool = True,
) -> Comparison:
    """Compare what is there, whatever state the runs are in. Reads the store and writes nothing.

    :param root: store root
    :param experiment: its file; or the name that runs have as their ``experiment``
    :param metric: instead of the file's
    :param latency: measure how long the models take here; it loads torch, in a process of its own
    :raises InputError: there is no such experiment, or its evaluations lack the metric
    """
    if isinstance(experiment, Path):
        loaded = load_experiment(experiment, overrides)
        for key in {cell.config.signing_key for cell in loaded.cells}:
            if key is not None and key in os.environ:
                os.environ.setdefault(signing.VARIABLE, key)
        plan = planned(loaded, root)
    else:
        plan = grouped(experiment, root)
    plan = _with_metric(plan, metric)
    runs = read(plan, root, [name for name in plan.settings.criteria if name not in CRITERIA])
    chosen = models.representatives(plan, runs)
    return compare(
        plan,
        runs,
        made=now(),
        parameters=models.parameters(root, chosen),
        latencies=models.latencies(root, chosen) if latency and chosen else {},
    )


def write_comparison(found: Comparison, out: Path, source: str) -> Path:
    """Write page, pictures, tables and ``comparison.json``, and return the page's path. Files of other names stay.

    :param source: where the runs are
    """
    pictures = draw(found)
    return write_page(out, page(found, pictures, source), pictures, tables(found), found, "comparison.json")


def _with_metric(plan: Plan, metric: str | None) -> Plan:
    if metric is None:
        return plan
    check_metric("--metric", metric)
    if metric == plan.settings.metric:
        return plan
    # What the file says of its own metric's values is not for another one's.
    update: dict[str, object] = {
        "metric": metric,
        "direction": None,
        "optimum": None,
        "normalise": {},
        "thresholds": (),
    }
    settings = plan.settings.model_copy(update=update)
    return Plan(plan.experiment, plan.runs, settings, plan.unnamed)
