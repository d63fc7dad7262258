"""The section ``search`` of an experiment file: which values of the run file are searched, how, and by what they count.

Imports no Optuna: what is checked here is checked wherever experiment files are read.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from train_cloud.config.comparison import METRICS
from train_cloud.config.shapes import Number, Section, Text, Values, Whole
from train_cloud.errors import InputError, suggestion

#: Fields of the run file that no trial may have for itself, and why.
NOT_SEARCHED: Mapping[str, str] = {
    **dict.fromkeys(("run_id", "experiment"), "runs are named after experiment, trial and seed: remove it"),
    **dict.fromkeys(("seed", "seeds"), "all trials have the same seeds: set seeds and search.seeds_per_trial"),
    "total_timesteps": "trials are compared at equal timesteps: set it in the base",
    "evaluation": "trials are compared by it, so it is the same for all: set it in the base",
    "device": "it is the machine's affair, and what is learned does not depend on it: set it in the base",
    "code": "trials are compared, so they run the same code: set it in the base",
    "data": "trials are compared, so they have the same data: set it in the base",
    **dict.fromkeys(
        (
            *("save_frequency", "max_seconds_at_risk", "limits", "preservation", "reproducibility", "artifacts"),
            *("wandb", "webhook", "secrets", "signing_key"),
        ),
        "what is learned does not depend on it: set it in the base",
    ),
}
_MOST_KEYS, _MOST_CHOICES, _MOST_TRIALS = 100, 1000, 10_000
#: From here on whole numbers such as 1e6 are probably meant to be counts.
_LOOKS_LIKE_A_COUNT = 1000

Bound = Annotated[Number, Field(allow_inf_nan=False)]
Value = Any
"""What is drawn for a key: a number, or one of the choices."""


class Dimension(Section):
    """What may be drawn for one key. A list alone is its ``choices``."""

    low: Bound | None = Field(None, description="The lowest value.")
    high: Bound | None = Field(None, description="The highest value.")
    log: Annotated[bool, Strict()] = Field(False, description="Whether the logarithm is drawn evenly.")
    step: Annotated[Bound, Field(gt=0)] | None = Field(
        None, description="Only `low` and what is a multiple of this above it; null for all between."
    )
    int: Annotated[bool, Strict()] | None = Field(
        None,
        description="Whether only whole numbers are drawn; null for yes where `low`, `high` and `step` are written as "
        "such.",
    )
    choices: Values | None = Field(
        None, max_length=_MOST_CHOICES, description="Values to choose from: text, numbers, `true`, null, lists or maps."
    )

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """Whether numbers were written as whole ones is forgotten once they are floats."""
        if not isinstance(value, dict) or value.get("int") is not None or "choices" in value:
            return value
        written = [value[key] for key in ("low", "high", "step") if value.get(key) is not None]
        if len(written) < 2 or not all(_is_number(number) for number in written):
            return value
        whole = all(float(number).is_integer() for number in written)
        as_whole = all(type(number) is int for number in written)
        if whole and (written[:2] == [0, 1] if as_whole else max(written) >= _LOOKS_LIKE_A_COUNT):
            raise ValueError("write int: true if only whole numbers are to be drawn, and int: false if not")
        return {**value, "int": as_whole}

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        if self.choices is not None:
            _check_choices(self)
        else:
            _check_range(self)
        return self

    @property
    def whole(self) -> bool:
        return bool(self.int)

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values whose check tells whether all can stand in a run file: both bounds, or every choice."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        return (round(self.low), round(self.high)) if self.whole else (self.low, self.high)

    @property
    def grid(self) -> tuple[Value, ...] | None:
        """All values; None where there is no end of them."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        if self.step is None and not self.whole:
            return None
        step = self.step or 1
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        values = (self.low + step * index for index in range(min(count, _MOST_TRIALS + 1)))
        return tuple(round(value) if self.whole else value for value in values)

    def __str__(self) -> str:
        if self.choices is not None:
            return " | ".join(json.dumps(choice) for choice in self.choices)
        low, high = (format(end, "g" if not self.whole else "d") for end in self.ends)
        more = (", log" if self.log else "") + (f", step {self.step:g}" if self.step is not None else "")
        return f"{low} … {high}{' (whole)' if self.whole else ''}{more}"


def _choices(value: object) -> object:
    return {"choices": value} if isinstance(value, list | tuple) else value


def _no_pruner(value: object) -> object:
    return "none" if value is None else value


class Search(Section):
    """A search of the run file's values by trials, each of which is a run, or one for each seed."""

    space: dict[Text, Annotated[Dimension, BeforeValidator(_choices)]] = Field(
        description="Key of the run file, dotted, to `{low, high}`, with `log`, `step`, `int` where wanted, or to a "
        "list of choices.",
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe",
        description="How values are chosen: `tpe` by what trials before have reached (Optuna's tree-structured Parzen "
        "estimator), `random`, or `grid`, every combination, the last key's values first.",
    )
    pruner: Annotated[Literal["median", "asha", "none"], BeforeValidator(_no_pruner)] = Field(
        "none",
        description="Which trials end early, as `stopped`: `median` those whose best evaluation so far is worse than "
        "the median of the others' at the same timesteps, `asha` all but the best of each rung (asynchronous "
        "successive halving). Needs `evaluation.every`.",
    )
    trials: Annotated[Whole, Field(ge=1, le=_MOST_TRIALS)] | None = Field(
        None, description="How many are drawn, those that are pruned or fail included. Null only for all of a `grid`."
    )
    seeds_per_trial: Annotated[Whole, Field(ge=1, le=1000)] | None = Field(
        None,
        description="Runs of each trial, whose mean counts; null for as many as `seeds` has, else 1. Their seeds are "
        "the first of `seeds`, or the base's seed and those that follow.",
    )
    metric: Text = Field(
        "mean_return",
        description=f"What counts: {', '.join(f'`{name}`' for name in METRICS)}, over all categories of a run's last "
        "evaluation.",
    )
    direction: Literal["maximize", "minimize"] | None = Field(
        None, description="Of `metric`; null for what is known of it."
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = Field(
        0, description="Of the sampler: trial number and seed decide what is drawn after the same results."
    )
    startup_trials: Annotated[Whole, Field(ge=0, le=_MOST_TRIALS)] = Field(
        10, description="So many trials are drawn at random before `tpe` begins, and completed before `median` prunes."
    )
    warmup_timesteps: Annotated[Whole, Field(ge=0)] = Field(0, description="No trial is pruned before.")
    reduction_factor: Annotated[Whole, Field(ge=2, le=1000)] = Field(
        3, description="Of `asha`: of each rung one in so many goes on, and the next one is so many times as far."
    )

    @model_validator(mode="after")
    def _check(self) -> Search:
        if not 1 <= len(self.space) <= _MOST_KEYS:
            fix = f"name 1 to {_MOST_KEYS} keys of the run file, for example hyperparameters.learning_rate"
            raise InputError("search.space", list(self.space), fix)
        for key in self.space:
            _check_key(key, self.space)
        if self.metric not in METRICS:
            fix = suggestion(self.metric, tuple(METRICS)) or f"use one of {', '.join(METRICS)}"
            raise InputError("search.metric", self.metric, fix)
        if self.sampler == "grid":
            for key, dimension in self.space.items():
                if dimension.grid is None:
                    raise InputError(f"search.space.{key}", str(dimension), "a grid needs choices, int: true or a step")
            if (count := math.prod(len(dimension.grid or ()) for dimension in self.space.values())) > _MOST_TRIALS:
                fix = f"the grid has {count:,} combinations, at most {_MOST_TRIALS:,}: give fewer values"
                raise InputError("search.space", list(self.space), fix)
        elif self.trials is None:
            raise InputError("search.trials", None, "it is required: say how many are drawn, for example 50")
        return self

    @property
    def maximize(self) -> bool:
        return (self.direction or ("maximize" if METRICS[self.metric] == "larger" else "minimize")) == "maximize"

    @property
    def most_trials(self) -> int:
        """How many trials there will be."""
        every = math.prod(len(dimension.grid or ()) for dimension in self.space.values())
        if self.sampler != "grid":
            assert self.trials is not None
            return self.trials
        return every if self.trials is None else min(every, self.trials)

    def combination(self, number: int) -> dict[str, Value]:
        """Of a grid, in its order; the last key's values first."""
        values = (dimension.grid or () for dimension in self.space.values())
        return dict(zip(self.space, next(itertools.islice(itertools.product(*values), number, None)), strict=True))

    def tried(self) -> Iterator[tuple[str, dict[str, Value]]]:
        """A few combinations that have each bound and choice at least once, and the key that each is about."""
        first = {key: dimension.ends[0] for key, dimension in self.space.items()}
        yield next(iter(self.space)), first
        for key, dimension in self.space.items():
            for end in dimension.ends[1:]:
                yield key, {**first, key: end}

    def definition(self) -> dict[str, Any]:
        """What decides which trials are drawn and what they count, as JSON values."""
        values = self.model_dump(mode="json", include={"space", "sampler", "metric", "seed"})
        return {**values, "direction": "maximize" if self.maximize else "minimize"}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_choices(dimension: Dimension) -> None:
    given = [key for key in ("low", "high", "step", "int") if getattr(dimension, key) is not None]
    if given or dimension.log:
        raise ValueError(f"give choices, or {given[0] if given else 'log'} and a range, not both")
    assert dimension.choices is not None
    if len(dimension.choices) < 2:
        raise ValueError("give at least two choices; what does not vary stands in the base")
    texts = [json.dumps(choice, sort_keys=True) for choice in dimension.choices]
    for at, text in enumerate(texts):
        if text in texts[:at]:
            raise ValueError(f"{text} stands there twice: give each choice once")


def _check_range(dimension: Dimension) -> None:
    low, high, step = dimension.low, dimension.high, dimension.step
    if low is None or high is None:
        missing = "low" if low is None else "high"
        raise ValueError(f"give low and high, or a list of choices: {missing} is missing")
    if not low < high:
        raise ValueError("give a low that is below high; what does not vary stands in the base")
    if dimension.log and low <= 0:
        raise ValueError("a logarithm needs a low above 0")
    if dimension.log and step is not None:
        raise ValueError("give log or step, not both")
    if dimension.int and not all(number.is_integer() for number in (low, high, step or 1.0)):
        raise ValueError("with int: true, give whole numbers")
    if step is not None and step > high - low:
        raise ValueError("give a step that is at most high - low")


def _check_key(key: str, space: Mapping[str, object]) -> None:
    names = key.split(".")
    value = str(space[key])
    for depth in range(1, len(names)):
        if (above := ".".join(names[:depth])) in space:
            raise InputError(
                f"search.space.{key}", value, f"{above} is searched too, and replaces it: keep one of them"
            )
    if not all(names):
        raise InputError(f"search.space.{key}", value, "write key or key.sub, as in the run file")


def check_field(key: str, value: object, fields: Sequence[str], aliases: Mapping[str, str]) -> None:
    """Whether a key is one that a trial may have a value of its own for.

    :param fields: of the run file
    :param aliases: other names of some
    :raises InputError: it is not
    """
    first = key.split(".")[0]
    field = aliases.get(first, first)
    if field in NOT_SEARCHED:
        raise InputError(f"search.space.{key}", value, NOT_SEARCHED[field])
    if field not in fields:
        known = [name for name in fields if name not in NOT_SEARCHED]
        fix = suggestion(first, (*known, *aliases)) or f"use one of {', '.join(known)}"
        raise InputError(f"search.space.{key}", value, f"unknown key: {fix}")
