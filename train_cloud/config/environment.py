"""The run file's section about the environment: what is trained on, and what an evaluation may be given besides."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from train_cloud.config.shapes import Arguments, ModuleName, Reference, Section, Text, Whole
from train_cloud.errors import InputError

#: ``stable_baselines3.common.vec_env.VecNormalize``'s own arguments.
NORMALIZE_KEYS = (
    "training",
    "norm_obs",
    "norm_reward",
    "clip_obs",
    "clip_reward",
    "gamma",
    "epsilon",
    "norm_obs_keys",
)


def _normalize(value: object) -> object:
    if isinstance(value, bool):
        return {} if value else None
    return value


class Environment(Section):
    """What is trained on: a Gymnasium id, how it is made, and how many there are."""

    id: Annotated[Text, Field(min_length=1)] = Field(
        description="Registered Gymnasium id, for example `Pendulum-v1`; with `sac_multiagent` `module:function` of "
        "what makes a PettingZoo `ParallelEnv`."
    )
    module: ModuleName | None = Field(None, description="Module imported first, because it registers the id.")
    kwargs: Arguments = Field({}, description="Arguments for `gymnasium.make`.")
    wrappers: tuple[Reference, ...] = Field(
        (), description="`module:Class` of Gymnasium wrappers, the innermost first; called with the environment alone."
    )
    n_envs: Annotated[Whole, Field(ge=1)] = Field(1, description="Number of environments stepped together.")
    vectorization: Literal["dummy", "subproc"] = Field(
        "dummy", description="`dummy` steps them in this process, `subproc` in one process each."
    )
    normalize: Annotated[Arguments | None, BeforeValidator(_normalize)] = Field(
        None, description="Arguments for SB3's `VecNormalize`; `true` for its defaults, null for none."
    )
    frame_stack: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Observations that the agent sees at once, the newest last; null for one."
    )
    state: Literal["auto", "own", "mujoco", "ale", "pickle", "replay", "episode"] = Field(
        "auto",
        description="How the environment's state is saved; `auto` takes the first of `own` (`get_state`/`set_state`), "
        "`mujoco`, `ale`, `pickle`, `replay` that passes a round trip in mid-episode. "
        "`episode` resumes at an episode's start and is recorded as not exact.",
    )

    @model_validator(mode="after")
    def _check(self) -> Environment:
        for key in self.normalize or {}:
            if key not in NORMALIZE_KEYS:
                raise InputError(
                    f"environment.normalize.{key}",
                    (self.normalize or {})[key],
                    f"use one of {', '.join(NORMALIZE_KEYS)}",
                )
        return self
