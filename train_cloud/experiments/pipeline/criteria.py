"""Whether a session that is completed has met its criteria, by its last evaluation."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from pydantic import ValidationError

from train_cloud.config.pipeline import SuccessCriteria, holds
from train_cloud.errors import ObjectMissing
from train_cloud.evaluate.results import Evaluation, metric_of
from train_cloud.run import layout
from train_cloud.store import ObjectStore

_MONITOR = f"{layout.ARTIFACTS}monitor.csv"


@dataclass(frozen=True)
class Judged:
    """What was found."""

    met: bool | None
    """None where it cannot be told."""
    reason: str | None = None
    """What was not met, or is not known."""
    evaluation: Evaluation | None = None


def judge(store: ObjectStore, criteria: SuccessCriteria | None, timesteps: int) -> Judged:
    """
    :param store: of the session's run, which is completed
    :param timesteps: that it has ended at
    """
    found = last_evaluation(store, timesteps)
    if criteria is None:
        return Judged(True, evaluation=found)

    def value(category: str | None, metric: str) -> float | None:
        assert found is not None
        summary = found.overall if category is None else found.categories.get(category)
        return None if summary is None else metric_of(summary, metric)

    for condition in criteria.conditions:
        if found is None:
            why = "its last evaluation is missing: train-cloud evaluate --record plays it again"
            return Judged(None, f"{condition} cannot be judged: {why}")
        if (met := holds(condition, value)) is None:
            return Judged(None, f"{condition} cannot be judged: its evaluation does not tell it", found)
        if not met:
            category, _, metric = condition.split()[0].rpartition(".") if " " in condition else ("", "", "")
            told = value(category or None, metric) if metric else None
            return Judged(False, condition if told is None else f"{condition}: it is {told:g}", found)
    if criteria.min_episodes is not None:
        episodes = trained_episodes(store)
        if episodes is None:
            return Judged(None, "min_episodes cannot be judged: it has left no monitor.csv", found)
        if episodes < criteria.min_episodes:
            return Judged(False, f"min_episodes {criteria.min_episodes}: it has {episodes}", found)
    return Judged(True, evaluation=found)


def last_evaluation(store: ObjectStore, timesteps: int) -> Evaluation | None:
    """Of the model that a run ended with; None where it was not evaluated."""
    try:
        return Evaluation.model_validate_json(bytes(store.get(layout.evaluation_key(timesteps)).body))
    except (ObjectMissing, ValidationError):
        return None


def trained_episodes(store: ObjectStore) -> int | None:
    """How many episodes a run's training has ended; None where nobody has counted."""
    try:
        text = bytes(store.get(_MONITOR).body).decode()
    except ObjectMissing:
        return None
    rows = list(csv.reader(line for line in io.StringIO(text) if not line.startswith("#")))
    return max(0, len(rows) - 1)
