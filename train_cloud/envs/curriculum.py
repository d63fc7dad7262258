"""The environments of a curriculum: one for each stage that is made with arguments of its own, or one whose method is
called before each reset; and which level each of their episodes plays.

=================  =====================================================================================
:class:`AtStage`   makes the environment of one stage, with the run file's wrappers and nothing of ours but
:class:`AtLevel`   a wrapper that calls the stage's method before each reset: a layer like any other,
                   whose state is saved with the others'
:class:`Staged`    outermost: holds the environments that each have a :class:`StatefulEnv` around them, and
                   plays each episode in one of them
=================  =====================================================================================

Which level an episode plays is a function of seed, environment, episode and stage (:meth:`Levels.of`), so what is saved
of it is the stage and a count.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium

from train_cloud.envs.fresh import Fresh
from train_cloud.envs.make import FAILURES, Env, One, close, refusing
from train_cloud.envs.pickling import Outermost, Sections, dumps_apart, layers, loads
from train_cloud.envs.shared import OfProcess, put_shared
from train_cloud.envs.state import (
    PROVIDERS,
    Anew,
    EnvState,
    Info,
    StatefulEnv,
    get_state,
    set_process_generators,
    set_state,
    take_apart,
    undisturbed,
)
from train_cloud.envs.trial import Choice, choose
from train_cloud.errors import InputError, suggestion

Calls = tuple[tuple[str, tuple[Any, ...]], ...]
ProviderOf = Callable[[Env], str]

# ---------------------------------------------------------------------------------------------------------- a level


@dataclass(frozen=True)
class Levels:
    """Which level the episodes of a training play: the present stage, or another one for a share of them.

    :ivar seed: of the run
    :ivar count: of stages
    :ivar share: of the episodes that play another level
    :ivar all_stages: whether that may be a later stage too
    """

    seed: int
    count: int
    share: float = 0.0
    all_stages: bool = False

    def of(self, env: int, episode: int, stage: int) -> int:
        """Of one episode.

        :param env: number of the environment in its vector
        :param episode: how many began there before
        :param stage: the present one
        """
        others = [level for level in range(self.count if self.all_stages else stage) if level != stage]
        if not others or not self.share:
            return stage
        drawn = hashlib.blake2b(f"{self.seed} {env} {episode} {stage}".encode(), digest_size=16).digest()
        if int.from_bytes(drawn[:8], "little") / 2**64 >= self.share:
            return stage
        return others[int.from_bytes(drawn[8:], "little") % len(others)]


def _seed_of(seed: int, place: int) -> int:
    """Of the environment of another stage than the first one that is played."""
    drawn = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=4).digest()
    return int.from_bytes(drawn, "little") % 2**31


class AtLevel(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Calls a method of the environment before each reset.

    :param calls: method and arguments of each level
    :param fields: of the run file, for errors
    """

    def __init__(self, env: Env, calls: Calls, level: int, fields: Sequence[str]) -> None:
        super().__init__(env)
        self.calls, self.level, self.fields = calls, level, tuple(fields)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        name, arguments = self.calls[self.level]
        method = method_of(self.env, name, self.fields[self.level])
        with refusing(self.fields[self.level], name, f"calling it with {list(arguments)} raises"):
            method(*copy.deepcopy(arguments))
        return self.env.reset(seed=seed, options=options)


def method_of(env: Env, name: str, field: str) -> Callable[..., Any]:
    """A method of an environment or of one of its wrappers.

    :param field: of the run file, for errors
    :raises InputError: there is none of this name
    """
    found = env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None
    if found is None or not callable(found):
        known = tuple(each for each in dir(env.unwrapped) if not each.startswith("_"))
        near = suggestion(name, known)
        fix = f"neither {type(env.unwrapped).__name__} nor one of its wrappers has such a method"
        raise InputError(field, name, f"{fix}{': ' + near if near else ''}")
    method: Callable[..., Any] = found
    return method


@dataclass(frozen=True)
class AtStage:
    """Makes the environment of one stage.

    :ivar one: makes it without a curriculum
    :ivar index: of the stage
    :ivar kwargs: what the stage adds to its arguments
    :ivar calls: of all stages; empty where they are made with arguments
    """

    one: One
    index: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    calls: Calls = ()

    def __call__(self) -> Env:
        """:raises InputError: a field that Gymnasium or the user's own code refuses"""
        at = f"curriculum.stages.{self.index}"
        try:
            made = replace(self.one, kwargs={**self.one.kwargs, **self.kwargs})()
        except InputError as error:
            name = error.field.removeprefix("environment.kwargs.")
            if self.kwargs and name in self.kwargs:
                raise InputError(f"{at}.kwargs.{name}", error.value, error.fix) from error
            raise
        if not self.calls:
            return made
        fields = [f"curriculum.stages.{index}.method" for index in range(len(self.calls))]
        for (name, _), where in zip(self.calls, fields, strict=True):
            method_of(made, name, where)
        return AtLevel(made, self.calls, self.index, fields)


# --------------------------------------------------------------------------------------------------- what is trained on


class Staged(Outermost):
    """One environment of the training, which plays each episode at its level.

    :param envs: of each stage; or one alone, which has an :class:`AtLevel` in it
    :param index: its number in the vector
    :param start: the stage to begin with
    :raises InputError: their spaces differ
    """

    def __init__(self, envs: Sequence[StatefulEnv], levels: Levels, index: int, start: int) -> None:
        same_spaces(envs)
        self._home = envs[start if len(envs) > 1 else 0]
        super().__init__(self._home)
        self.env: StatefulEnv = self._home
        self.train_cloud_envs = list(envs)
        self._levels, self._index = levels, index
        self._called = next((layer for layer in layers(self._home) if isinstance(layer, AtLevel)), None)
        self._stage = self._level = start
        self._episode = 0
        self._seed: int | None = None
        self._begun = [False] * len(envs)
        self._of_process = OfProcess()
        self._own_attributes = frozenset([*vars(self), "_own_attributes"])

    @property  # type: ignore[misc]
    def observation_space(self) -> Any:  # type: ignore[override]
        return self._home.observation_space

    @property  # type: ignore[misc]
    def action_space(self) -> Any:  # type: ignore[override]
        return self._home.action_space

    @property
    def train_cloud_because(self) -> str:
        """Why it is not exact to resume with it; empty where it is."""
        return next(filter(None, (env.train_cloud_because for env in self.train_cloud_envs)), "")

    def train_cloud_set_stage(self, stage: int) -> None:
        """For ``env_method``: of the episodes that begin from now on."""
        self._stage = stage

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._level = self._levels.of(self._index, self._episode, self._stage)
        self._episode += 1
        place = self._place()
        self.env._reset_info = {}  # nobody asks for it any more
        self._enter()
        if seed is not None:
            self._seed, self._begun = seed, [False] * len(self._begun)
        elif not self._begun[place] and self._seed is not None:
            seed = _seed_of(self._seed, place)
        self._begun[place] = True
        shown = self.env.reset(seed=seed, options=options)
        self._of_process.begin(self.train_cloud_envs)
        return shown

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        if (result[2] or result[3]) and "episode" in result[4]:
            result[4]["episode"]["stage"] = self._level
        return result

    def close(self) -> None:
        """:raises Exception: what the first one raises that does"""
        failures = []
        for env in self.train_cloud_envs:
            try:
                env.close()
            except FAILURES as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _place(self) -> int:
        return self._level if len(self.train_cloud_envs) > 1 else 0

    def _enter(self) -> None:
        self.env = self.train_cloud_envs[self._place()]
        if self._called is not None:
            self._called.level = self._level

    # ------------------------------------------------------------------------------------------------------- its state

    def get_states(self, provider_of: ProviderOf) -> StagedState:
        """References, as :func:`train_cloud.envs.state.get_state` gives them; its layers are those of
        ``train_cloud_envs``.
        """
        mine = (self._stage, self._level, self._episode, self._seed, list(self._begun))
        foreign = {name: value for name, value in vars(self).items() if name not in self._own_attributes}
        envs = [
            get_state(env, provider_of(env)) if begun else None
            for env, begun in zip(self.train_cloud_envs, self._begun, strict=True)
        ]
        return StagedState(mine, foreign, envs)

    def set_states(self, state: StagedState) -> Anew | None:
        """As :func:`train_cloud.envs.state.set_state`. Where the environment of any stage cannot go on, neither can its
        generator: a new episode begins.
        """
        vars(self).update(state.outer)
        held, begun_here = self.env._reset_info, self._begun
        self._stage, self._level, self._episode, self._seed, begun = state.mine
        self._begun = list(begun)
        self._enter()
        lost = None
        for place, (env, content) in enumerate(zip(self.train_cloud_envs, state.envs, strict=True)):
            if content is None:
                continue
            if not begun_here[place]:  # its first episode, to which a replay compares, is what it was
                env.reset(seed=_seed_of(self._seed or 0, place))
            anew = set_state(env, content)
            if anew is not None and (lost is None or env is self.env):
                lost = anew if env is self.env else Anew(None, anew.because)
        if lost is not None and lost.observation is None:
            lost = Anew(self.env.reset()[0], lost.because)
        if lost is not None:
            held.clear()
            held.update(self.env._reset_info)
        for env in self.train_cloud_envs:
            env._reset_info = held if env is self.env else {}  # that dict is the vector's, until the next reset
        return lost

    def train_cloud_get_state(self, known: Collection[str] = ()) -> tuple[bytes | Sections, list[str], list[str]]:
        """As :meth:`StatefulEnv.train_cloud_get_state`."""

        def taken(info: dict[str, Any]) -> tuple[bytes | Sections, list[str], list[str]]:
            state = self.get_states(_provider), generators, info, shared
            return *dumps_apart(state, known, self.train_cloud_envs), left

        with undisturbed() as generators:
            shared, left = self._of_process.changed()
            try:
                return taken(self.env._reset_info)
            except FAILURES:
                for env in self.train_cloud_envs:
                    take_apart(env)
                return taken(Info({}, frozenset()))

    def train_cloud_set_state(self, blob: bytes | Sections) -> Any:
        """As :meth:`StatefulEnv.train_cloud_set_state`."""
        state, generators, info, *rest = loads(blob, self.train_cloud_envs)
        shared = rest[0] if rest else {}  # which came later
        put_shared(shared, self.train_cloud_envs)
        anew = self.set_states(state)
        put_shared(shared, self.train_cloud_envs)  # once more, as a replay goes through its own
        if anew is None:
            self.env._reset_info.clear()
            self.env._reset_info.update(info)
        set_process_generators(generators)
        return anew


@dataclass
class StagedState:
    """Of a :class:`Staged`: references, until it is pickled.

    :ivar mine: stage, level, episodes begun, seed, and which environments have had their seed
    :ivar outer: attributes that somebody has set on it
    :ivar envs: the environments' own; None of one that no episode was played in
    """

    mine: tuple[Any, ...]
    outer: dict[str, Any]
    envs: list[EnvState | None]


def _provider(env: Env) -> str:
    assert isinstance(env, StatefulEnv)
    return env.train_cloud_provider


def same_spaces(envs: Sequence[Env]) -> None:
    """:raises InputError: of two stages"""
    first = envs[0]
    for index, env in enumerate(envs):
        for name in ("observation_space", "action_space"):
            one, other = getattr(first, name), getattr(env, name)
            if one != other:
                raise _differing(index, name, one, other)


def _differing(index: int, name: str, first: Any, found: Any) -> InputError:
    what = "observations" if name == "observation_space" else "actions"
    fix = f"its {what} are {found}, and those of the first stage {first}: one model is trained, make them equal"
    return InputError(f"curriculum.stages.{index}", what, fix)


# ------------------------------------------------------------------------------------------------------------ the trial


def check_together(makers: Sequence[AtStage]) -> None:
    """Make the environments of all stages in this process, as a training does, and reset each.

    :raises InputError: one of them cannot be made, or has other spaces
    """
    made: list[Env] = []
    try:
        for maker in makers if not makers[0].calls else makers[:1]:
            made.append(maker())
        same_spaces(made)
        if not makers[0].calls:
            return
        env = made[0]
        first = {name: copy.deepcopy(getattr(env, name)) for name in ("observation_space", "action_space")}
        assert isinstance(env, AtLevel)
        for level in range(len(makers)):
            env.level = level
            env.reset(seed=0)
            for name, space in first.items():
                if getattr(env, name) != space:
                    raise _differing(level, name, space, getattr(env, name))
    finally:
        for env in made:
            close(env)


def choose_all(makers: Sequence[AtStage], requested: str, *, start: Callable[[], Fresh] = Fresh) -> Choice:
    """How the state of each stage's environment is saved (:func:`train_cloud.envs.trial.choose`): tried at each stage.
    An environment whose method is called has one provider for all stages.

    :return: whether all are exact, and in ``stages`` each of them
    :raises InputError: a stage cannot be made, or has other spaces
    """
    process = start()
    try:
        process.call(check_together, list(makers))
    finally:
        process.close()
    choices = [choose(maker, requested, start=start) for maker in makers]
    if makers[0].calls and len({choice.provider for choice in choices}) > 1:
        order = list(PROVIDERS)
        for provider in order[max(order.index(choice.provider) for choice in choices) :]:
            try:
                choices = [choose(maker, provider, start=start) for maker in makers]
                break
            except InputError:
                continue  # not for every stage
    inexact = [f"stage {index}: {choice.because}" for index, choice in enumerate(choices) if not choice.exact]
    return Choice(
        choices[0].provider,
        not inexact,
        "; ".join(dict.fromkeys(inexact)) or choices[0].because,
        tuple(dict.fromkeys(note for choice in choices for note in choice.notes)),
        tuple(dict.fromkeys(key for choice in choices for key in choice.uncopied)),
        tuple(choices),
    )
