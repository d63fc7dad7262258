"""The run file's section ``evaluation``: when the model is tried, on what, and what is kept of it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, model_validator

from train_cloud.config.environment import Environment
from train_cloud.config.shapes import REFERENCE, Arguments, Number, Section, Text, Values, Whole, matching
from train_cloud.errors import InputError

Flag = Annotated[bool, Strict()]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**31)]

_CONDITION = re.compile(r"(return|length|info\.\w+)\s*(>=|<=|==|>|<)\s*(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
METHOD = matching(re.compile(r"[A-Za-z_]\w*"), "write the name of a method of the environment, for example set_level")
NAME = matching(re.compile(r"[a-z0-9]([a-z0-9_-]{0,38}[a-z0-9])?"), "use lower-case letters, digits, _ and -")


def _condition(value: str) -> str:
    if not (_CONDITION.fullmatch(value) or re.fullmatch(r"info\.\w+", value) or REFERENCE.fullmatch(value)):
        raise ValueError("write info.<key>, or a comparison such as return >= 200, or module:function")
    return value


def _key_or_reference(value: str) -> str:
    if not (re.fullmatch(r"info\.\w+", value) or REFERENCE.fullmatch(value)):
        raise ValueError("write info.<key>, or module:function of an environment")
    return value


Condition = Annotated[Text, AfterValidator(_condition)]
Source = Annotated[Text, AfterValidator(_key_or_reference)]


def compare(condition: str, episode_return: float, length: int, info: Mapping[str, Any]) -> bool | None:
    """Whether a comparison such as ``return >= 200`` or ``info.laps >= 2`` holds, or what ``info.<key>`` says.

    :param info: of the episode's last step
    :return: None where ``info`` lacks the key
    """
    found = _CONDITION.fullmatch(condition)
    name = found[1] if found else condition
    value = {"return": episode_return, "length": length}.get(name, info.get(name.removeprefix("info.")))
    if value is None:
        return None
    return _COMPARISONS[found[2]](float(value), float(found[3])) if found else bool(value)


class Category(Section):
    """A named set of episodes: the run's environment with other arguments, chosen seeds, or a folder of levels."""

    kwargs: Arguments = Field({}, description="Arguments for `gymnasium.make`, on top of `environment.kwargs`.")
    seeds: tuple[Seed, ...] = Field((), description="One episode for each; by default `evaluation.seed` and upwards.")
    method: Annotated[Text, METHOD] | None = Field(
        None, description="Method of the environment or one of its wrappers, called before each reset."
    )
    args: Values = Field((), description="With `method`: what it is called with, a list.")
    levels: Path | None = Field(
        None, description="Folder below `code.folder` whose files or folders are levels, played in turn."
    )
    argument: Text | None = Field(
        None, description="With `levels`: the argument of the environment that takes the path."
    )

    @model_validator(mode="after")
    def _check(self) -> Category:
        if (self.levels is None) != (self.argument is None):
            raise ValueError("give levels and argument together: a folder, and the argument that takes a level's path")
        if self.args and self.method is None:
            raise ValueError("args are for a method: name it under method, or remove them")
        return self


class Video(Section):
    """Episodes as H.264 MP4 files, from ``render_mode="rgb_array"``."""

    per_category: Count = Field(1, description="How many episodes of each category, the first ones.")
    fps: Annotated[Whole, Field(ge=1, le=240)] | None = Field(
        None, description="Frames per second; null for what the environment says, else 30."
    )
    rotate: Literal[0, 90, 180, 270] = Field(0, description="Degrees, clockwise.")
    max_steps: Count = Field(2000, description="A longer episode's video ends there.")


class Routes(Section):
    """Where the agent went, for environments that report a position."""

    position: Source = Field(
        "info.position",
        description="`info.<key>` with x and y, or `module:function`, called with the environment and the last info.",
    )
    speed: Source | None = Field(
        None, description="The same for the speed that colours the path; null to take it from positions, per step."
    )
    centreline: Source | Path | None = Field(
        None,
        description="CSV file below `code.folder` whose first two columns are x and y, or `module:function`, "
        "called with the environment.",
    )
    map: Path | None = Field(
        None, description="ROS map (YAML with image, resolution, origin) below `code.folder`, drawn beneath."
    )
    per_category: Count = Field(3, description="How many episodes of each category, the first ones.")


class Evaluation(Section):
    """Tries the model on episodes of its own, in a process of its own, from a committed checkpoint."""

    every: Count | None = Field(None, description="Timesteps from one to the next; null for one at the end only.")
    episodes: Annotated[Whole, Field(ge=1, le=10_000)] = Field(5, description="For each category without `seeds`.")
    seed: Seed = Field(10_000, description="Of a category's first episode; the next ones follow.")
    deterministic: Flag = Field(True, description="Whether actions are the policy's most probable ones.")
    max_steps: Count | None = Field(None, description="An episode that is longer counts as truncated there.")
    max_minutes: Annotated[Number, Field(gt=0, allow_inf_nan=False)] = Field(
        60.0, description="An evaluation that takes longer is given up, with a warning."
    )
    mode: Literal["process", "inline"] = Field(
        "process",
        description="`inline` evaluates inside the training's process: it may draw from its random generators, so "
        "the run is recorded as not exact.",
    )
    success: Condition = Field(
        "info.is_success",
        description="`info.<key>` of the last step, a comparison (`return >= 200`, `length >= 500`, `info.laps >= 2`), "
        "or `module:function`, called with return, length and the last info.",
    )
    collisions: Source | None = Field(
        None, description="`info.<key>`: true at a step of collision, or their number; null for the usual names."
    )
    separate: Flag = Field(
        False, description="A process for each category, for environments whose first instance decides for all."
    )
    environment: Environment | None = Field(
        None, description="Environment of the evaluation; null for the run's own. Scripts must give it."
    )
    categories: dict[Annotated[Text, NAME], Category] = Field(
        {"default": Category()}, description="Name to category; by default one, `default`, that changes nothing."
    )
    video: Video | None = Field(None, description="Videos of some episodes; null for none.")
    routes: Routes | None = Field(None, description="Pictures of where the agent went; null for none.")

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if not self.categories:
            raise InputError("evaluation.categories", {}, "name at least one, or leave it out")
        if "overall" in self.categories:
            raise InputError("evaluation.categories.overall", "overall", "the summary is called so: take another name")
        if self.environment is not None and self.environment.n_envs != 1:
            fix = "leave it out: an evaluation plays one episode after the other"
            raise InputError("evaluation.environment.n_envs", self.environment.n_envs, fix)
        return self


def level_paths(category: Category, folder: Path | None, name: str) -> tuple[Path, ...]:
    """A category's levels in alphabetical order; empty where it has none.

    :param folder: the run file's ``code.folder``
    :param name: the category's, for errors
    :raises InputError: there is no such folder, or nothing in it
    """
    if category.levels is None:
        return ()
    field = f"evaluation.categories.{name}.levels"
    found = sorted(path for path in below(folder, category.levels, field).glob("*") if not path.name.startswith("."))
    if not found:
        raise InputError(field, str(category.levels), "put a file or a folder for each level into it")
    return tuple(found)


def below(folder: Path | None, path: Path, field: str) -> Path:
    """Where a file or folder that the run file names lies: the worker has nothing but ``code.folder``.

    :raises InputError: it lies elsewhere, or does not exist
    """
    if folder is None:
        raise InputError(field, str(path), "set code.folder, and name something below it")
    found = (folder / path).resolve()
    if not found.is_relative_to(folder.resolve()) or not found.exists():
        raise InputError(field, str(path), f"name something that exists below code.folder, {folder}")
    return found
