"""The section ``compare`` of an experiment file: by what its levels are compared, and how much each of it weighs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from train_cloud.config.shapes import Number, Section, Text, Whole
from train_cloud.errors import InputError, suggestion

Direction = Literal["larger", "smaller"]

#: What evaluations record for each category, and which of two values is the better one where the file says nothing.
METRICS: Mapping[str, Direction] = {
    "success_rate": "larger",
    "mean_return": "larger",
    "length": "smaller",
    "efficiency": "larger",
    "collisions": "smaller",
}
#: What else is known of a run: what it took, and what its model takes.
COSTS: Mapping[str, Direction] = {
    "inference_ms": "smaller",
    "inference_p99_ms": "smaller",
    "parameters": "smaller",
    "dollars": "smaller",
    "hours": "smaller",
    "steps_per_second": "larger",
}
CRITERIA: Mapping[str, Direction] = {**METRICS, **COSTS}

#: What loops of the user's own are compared by: what their run files name under ``score``, as it was logged.
SCORE = "score"

COMMON = "common"
_MOST_LEVELS = 1000


class Criterion(Section):
    """One line of the decision matrix. A number alone is its weight."""

    weight: Annotated[Number, Field(gt=0, allow_inf_nan=False)] = Field(
        description="How much it counts; only the proportion to the other weights matters."
    )
    direction: Direction | None = Field(
        None, description="Which of two values is better; null for what is known of the name. Required for a tag."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"weight": float(value)}
        return value


def _timesteps(value: object) -> object:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == int(value)
    if value is not None and value != COMMON and not whole:
        raise ValueError(f"give a number of timesteps, or {COMMON}")
    return value


class Compare(Section):
    """How ``train-cloud compare`` compares the experiment's levels."""

    metric: Text | None = Field(
        None,
        description=f"What decides: {', '.join(f'`{name}`' for name in METRICS)}, of each run's last evaluation; "
        "or `score`, what a PyTorch loop has logged last under the name of the run file's `score`. Null for `score` "
        "where only such loops ran, `success_rate` where every run's evaluation tells it, else `mean_return`.",
    )
    direction: Direction | None = Field(
        None, description="Which of two values of `metric` is better; null for what is known of it."
    )
    timesteps: Annotated[Whole | Literal["common"] | None, BeforeValidator(_timesteps)] = Field(
        None,
        description="Which evaluation of a run counts: null for its last one; a number for the one there; `common` for "
        "the one where the run with the fewest timesteps has its last.",
    )
    criteria: dict[Text, Criterion] = Field(
        {},
        description="Name to weight, or to `{weight, direction}`, for the decision matrix: "
        f"{', '.join(f'`{name}`' for name in CRITERIA)}, or a TensorBoard tag such as `train/entropy_loss`, whose last "
        "value counts and which needs a direction. Empty for none but `metric`.",
    )
    confidence: Annotated[Number, Field(ge=0.5, lt=1)] = Field(
        0.95, description="Of all intervals; a false winner is named with a probability of at most 1 minus this."
    )
    repetitions: Annotated[Whole, Field(ge=100, le=1_000_000)] = Field(10_000, description="Of the bootstrap.")
    random_seed: Annotated[Whole, Field(ge=0, lt=2**32)] = Field(
        0, description="Of the bootstrap: the same evaluations have the same intervals."
    )
    thresholds: tuple[Annotated[Number, Field(allow_inf_nan=False)], ...] = Field(
        (),
        max_length=_MOST_LEVELS,
        description="Values of `metric` at which performance profiles are computed; empty for 101 from the lowest to "
        "the highest.",
    )
    optimum: Annotated[Number, Field(allow_inf_nan=False)] | None = Field(
        None,
        description="The value of `metric` beyond which nothing is gained, for the optimality gap; null for 1 with "
        "`success_rate` or `normalise`, else no gap is given.",
    )
    normalise: dict[Text, tuple[Number, Number]] = Field(
        {},
        description="Category to two values of `metric` that count as 0 and as 1, as a random and an expert policy's. "
        "Name every category or none.",
    )

    @model_validator(mode="after")
    def _check(self) -> Compare:
        if self.metric is not None:
            check_metric("compare.metric", self.metric)
        if self.direction is not None and self.metric is None:
            raise InputError("compare.direction", self.direction, "name the metric that it is for")
        for name, criterion in self.criteria.items():
            _check_criterion(name, criterion)
        for name, (low, high) in self.normalise.items():
            if not (abs(high - low) > 0 and abs(high - low) < float("inf")):
                raise InputError(f"compare.normalise.{name}", [low, high], "give two different finite numbers")
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise InputError("compare.thresholds", list(self.thresholds), "give each once, in ascending order")
        return self


def check_metric(field: str, metric: str) -> None:
    """:raises InputError: nothing is compared by it"""
    known = (*METRICS, SCORE)
    if metric not in known:
        raise InputError(field, metric, suggestion(metric, known) or f"use one of {', '.join(known)}")


def better(name: str, given: Direction | None = None) -> Direction:
    """Which of two values of a metric or criterion is the better one."""
    return given if given is not None else CRITERIA[name]


def _check_criterion(name: str, criterion: Criterion) -> None:
    field = f"compare.criteria.{name}"
    if name in CRITERIA or name == SCORE:
        return
    if "/" not in name:
        fix = suggestion(name, tuple(CRITERIA)) or f"use one of {', '.join(CRITERIA)}, or a TensorBoard tag as a/b"
        raise InputError(field, criterion.weight, fix)
    if criterion.direction is None:
        fix = "whether larger or smaller is better is not known of a tag: write {weight: 1, direction: larger}"
        raise InputError(field, criterion.weight, fix)
