"""The run file's section ``curriculum``: stages of one environment, and when a run goes from one to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, create_model, model_validator

from train_cloud.config.evaluation import METHOD, NAME, Condition
from train_cloud.config.shapes import Arguments, Number, Section, Text, Values, Whole
from train_cloud.errors import InputError

_MOST_EPISODES = 10_000
_MOST_STAGES = 100

Rate = Annotated[Number, Field(ge=0, le=1)]
Episodes = Annotated[Whole, Field(ge=1, le=_MOST_EPISODES)]


class Result(NamedTuple):
    """Of an episode that has ended.

    :ivar success: None where nothing tells
    """

    success: bool | None
    episode_return: float


class Stage(Section):
    """What the episodes of a stage are played in."""

    name: Annotated[Text, NAME] = Field(
        description="Shown in `status`, curves and the report; the evaluation's category of this stage is called so."
    )
    kwargs: Arguments = Field({}, description="Arguments for `gymnasium.make`, on top of `environment.kwargs`.")
    method: Annotated[Text, METHOD] | None = Field(
        None,
        description="Instead of `kwargs`: method of the environment or one of its wrappers, called before each reset.",
    )
    args: Values = Field((), description="With `method`: what it is called with, a list.")

    @model_validator(mode="after")
    def _check(self) -> Stage:
        if self.method is not None and self.kwargs:
            raise ValueError(f"{self.name} has kwargs and method: a stage is one of them")
        if self.args and self.method is None:
            raise ValueError(f"{self.name} has args, and no method that is called with them: name it")
        return self


_FIELDS: dict[str, Any] = {
    "success": (Rate | None, Field(None, description="Share of the window's episodes that succeed, from 0 to 1.")),
    "return": (
        Annotated[Number, Field(allow_inf_nan=False)] | None,
        Field(None, description="Mean return of the window's episodes; with `success` too, both must hold."),
    ),
}
# Made so because a field is called `return`: in the file, in overrides and in the run's identity alike.
_Thresholds: Any = create_model("_Thresholds", __base__=Section, **_FIELDS)


class Regress(_Thresholds):
    """When a run goes a stage back: where the results are no better than this."""


class Advance(_Thresholds):
    """When a run goes to the next stage: where the results are at least as good as this."""

    window: Episodes = Field(100, description="The last so many episodes of the present stage count.")
    min_episodes: Episodes | None = Field(
        None, description="Nothing is decided before the present stage has so many; null for half of `window`."
    )


class Mix(Section):
    """Episodes that play another stage than the present one, so that what was learned is not forgotten."""

    share: Annotated[Number, Field(gt=0, lt=1)] = Field(description="Of all episodes, above 0 and below 1.")
    all_stages: bool = Field(
        False, description="Whether they may play later stages too; otherwise each plays one of the earlier ones."
    )


def _mix(value: object) -> object:
    return {"share": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Curriculum(Section):
    """Trains on stages of one environment, one after the other."""

    stages: tuple[Stage, ...] = Field(description="The stages, the first ones first; see below.")
    start: Annotated[Whole, Field(ge=0)] = Field(0, description="Number of the stage to begin with; the first is 0.")
    success: Condition = Field(
        "info.is_success", description="When a training episode has succeeded: as `evaluation.success`."
    )
    advance: Advance = Field(description="When the next stage begins; see below.")
    regress: Regress | None = Field(None, description="When a run goes a stage back; see below. null for never.")
    mix: Annotated[Mix | None, BeforeValidator(_mix)] = Field(
        None, description="Episodes of other stages; see below. A number is their `share`."
    )

    @model_validator(mode="after")
    def _check(self) -> Curriculum:
        self._check_stages()
        if self.start >= len(self.stages):
            fix = f"there are {len(self.stages)} stages: give 0 to {len(self.stages) - 1}"
            raise InputError("curriculum.start", self.start, fix)
        advance = self.advance
        if thresholds(advance) == {}:
            fix = "give success, a rate such as 0.7, or return, a mean such as 450"
            raise InputError("curriculum.advance", advance.model_dump(exclude_defaults=True), fix)
        if advance.min_episodes is not None and advance.min_episodes > advance.window:
            fix = f"give at most curriculum.advance.window, which is {advance.window}"
            raise InputError("curriculum.advance.min_episodes", advance.min_episodes, fix)
        if self.regress is not None:
            back = thresholds(self.regress)
            if not back:
                fix = "give success, a rate such as 0.3, or return, a mean such as 100; or leave regress out"
                raise InputError("curriculum.regress", {}, fix)
            for name, value in back.items():
                ahead = thresholds(advance).get(name)
                if ahead is not None and value >= ahead:
                    fix = f"give less than curriculum.advance.{name}, which is {ahead:g}"
                    raise InputError(f"curriculum.regress.{name}", value, fix)
        return self

    def _check_stages(self) -> None:
        names = self.names
        if not 2 <= len(names) <= _MOST_STAGES:
            fix = f"give 2 to {_MOST_STAGES}; with one stage leave curriculum out, and use environment.kwargs"
            raise InputError("curriculum.stages", list(names), fix)
        for index, stage in enumerate(self.stages):
            field = f"curriculum.stages.{index}"
            if stage.name == "overall":
                raise InputError(f"{field}.name", stage.name, "an evaluation's summary is called so: take another name")
            if stage.name in names[:index]:
                raise InputError(f"{field}.name", stage.name, "two stages are called so: take another name")
            if (stage.method is None) != (self.stages[0].method is None):
                how = "kwargs" if self.stages[0].method is None else "a method"
                fix = f"stage {names[0]} has {how}: give kwargs to all stages, or a method to all"
                raise InputError(field, stage.name, fix)
            for earlier in self.stages[:index]:
                if (earlier.kwargs, earlier.method, earlier.args) == (stage.kwargs, stage.method, stage.args):
                    fix = f"it is the same as stage {earlier.name}: give other arguments, or leave one out"
                    raise InputError(field, stage.name, fix)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the stages."""
        return tuple(stage.name for stage in self.stages)

    @property
    def calls(self) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        """Method and arguments of each stage; empty where stages are made of arguments."""
        return tuple((stage.method, stage.args) for stage in self.stages if stage.method is not None)

    @property
    def min_episodes(self) -> int:
        """Before which nothing is decided."""
        return self.advance.min_episodes or -(-self.advance.window // 2)


def thresholds(criterion: Advance | Regress) -> dict[str, float]:
    """``success`` and ``return``, as far as they are given."""
    found = {name: getattr(criterion, name) for name in ("success", "return")}
    return {name: value for name, value in found.items() if value is not None}


def measured(window: Sequence[Result]) -> dict[str, float]:
    """``success`` and ``return`` of the window's episodes; what none of them tells is not there."""
    told = [result.success for result in window if result.success is not None]
    found = {}
    if told:
        found["success"] = sum(told) / len(told)
    if window:
        found["return"] = math.fsum(result.episode_return for result in window) / len(window)
    return found


def next_stage(curriculum: Curriculum, stage: int, window: Sequence[Result]) -> int:
    """The stage that follows from the results: a function of nothing else.

    :param stage: the present one
    :param window: the newest results of its episodes, ``advance.window`` at most
    """
    if len(window) < curriculum.min_episodes:
        return stage
    found = measured(window)
    if stage + 1 < len(curriculum.stages) and _holds(thresholds(curriculum.advance), found, at_least=True):
        return stage + 1
    back = thresholds(curriculum.regress) if curriculum.regress is not None else {}
    if stage > 0 and back and _holds(back, found, at_least=False):
        return stage - 1
    return stage


def _holds(wanted: Mapping[str, float], found: Mapping[str, float], *, at_least: bool) -> bool:
    return all(
        name in found and (found[name] >= value if at_least else found[name] <= value) for name, value in wanted.items()
    )
