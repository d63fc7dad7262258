"""Which state provider an environment has: tried out on instances of its own, each in a fresh process.

The first plays into an episode, gives its state, and plays on. The second, in another process, takes the state and does
the same again: equal observations, rewards, ends. What instances of one process share (class attributes, caches, a
library's own tables) is not there, as it will not be there when a run is resumed; and an emulator of which a process
can hold only one is tried like any other.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from train_cloud.envs.fresh import Crashed, Fresh
from train_cloud.envs.make import FAILURES, CodeFailed, Env, MakeEnv, close
from train_cloud.envs.parallel import Together
from train_cloud.envs.pickling import Pickler
from train_cloud.envs.shared import Shared, put_shared
from train_cloud.envs.state import (
    MAKES_GENERATORS,
    PROVIDERS,
    REPLAY_MAX_STEPS,
    StatefulEnv,
    dumps,
    generator_name,
    generator_state,
    kept,
    layers,
    left_out,
    loads,
    plain,
    process_generators,
    set_process_generators,
    take_apart,
)
from train_cloud.errors import InputError, TrainCloudError

#: Steps of the trial: to the end of a first episode, into the second, and on to the end of that one and beyond.
_FIRST_EPISODE, _INTO_EPISODE, _COMPARED, _AFTER_END = 400, 9, 1_500, 12
#: A slow environment's trial is cut short: seconds for each of these parts, but at least so many steps.
_TRIAL_SECONDS, _LEAST_STEPS = 1.0, 3


@dataclass(frozen=True)
class Choice:
    """The provider for an environment, whether resuming with it is exact, and the reason in one clause.

    :ivar notes: what else was noticed, a clause each
    :ivar uncopied: keys of its ``info`` whose values can neither be copied nor sent to another process
    :ivar stages: the same for each stage of a curriculum; empty where there is none
    """

    provider: str
    exact: bool
    because: str
    notes: tuple[str, ...] = ()
    uncopied: tuple[str, ...] = ()
    stages: tuple[Choice, ...] = ()


def stateful(env: Env, choice: Choice) -> StatefulEnv:
    """The environment with our wrapper around it."""
    because = "" if choice.exact else choice.because
    return StatefulEnv(env, choice.provider, because=because, uncopied=choice.uncopied)


class Trial:
    """A trial in the background, so that this process can load what it needs meanwhile.

    :param make_env: makes an environment; a function or object that another process can be given
    :param requested: ``auto`` or one provider
    :param folder: of the user's code; other processes find its modules first
    :param by: finds the provider, as :func:`choose` does
    """

    def __init__(
        self,
        make_env: Any,
        requested: str = "auto",
        *,
        folder: str | None = None,
        by: Callable[..., Choice] | None = None,
    ) -> None:
        self._choice: Choice | None = None
        self._error: Exception | None = None
        self._by = by or choose
        path = [*([folder] if folder is not None and folder not in sys.path else []), *sys.path]
        start = functools.partial(Fresh, path, dict(os.environ))  # as they are now, whenever one is needed
        self._thread = threading.Thread(target=self._run, args=(make_env, requested, start), daemon=True)
        self._thread.start()

    def _run(self, make_env: Any, requested: str, start: Callable[[], Fresh]) -> None:
        try:
            self._choice = self._by(make_env, requested, start=start)
        except FAILURES as error:
            self._error = error

    def choice(self) -> Choice:
        """Wait for it. Raises what :func:`choose` raises."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._choice is not None
        return self._choice


def choose(
    make_env: MakeEnv,
    requested: str = "auto",
    *,
    recorded: bool = True,
    replay_max_steps: int = REPLAY_MAX_STEPS,
    start: Callable[[], Fresh] = Fresh,
) -> Choice:
    """Find the provider for the environments that ``make_env`` makes.

    :param requested: ``auto`` or one provider
    :param recorded: False where no :class:`StatefulEnv` will stand around the environment: replay is impossible
    :param start: starts a process for an instance
    :raises InputError: ``environment.state``: the requested provider failed; or a field of the environment's
    :raises CodeFailed: what user code raised in ``reset`` and ``step`` of an untouched instance
    :raises Crashed: the process of an untouched instance ended
    """
    if requested != "auto" and requested not in PROVIDERS:
        raise InputError("environment.state", requested, f"use auto or one of {', '.join(PROVIDERS)}")
    names = [name for name in PROVIDERS if name != "episode" and (recorded or name != "replay")]
    if requested != "auto":
        names = [name for name in names if name == requested]
    try:
        first, refused = _try(make_env, names, replay_max_steps, start)
    except (InputError, CodeFailed, Crashed):
        raise
    except TrainCloudError as error:
        first, refused = First(), {name: str(error) for name in names}
    passed = next((name for name in names if name not in refused), None)
    found: dict[str, Any] = {"notes": tuple(first.notes), "uncopied": tuple(first.uncopied)}
    reasons: dict[str, list[str]] = {}
    for name, reason in refused.items():
        if not reason.startswith(_INAPPLICABLE):
            reasons.setdefault(reason, []).append(name)
    why = "; ".join(f"{' and '.join(names)}: {reason}" for reason, names in reasons.items())
    if passed is not None:
        return Choice(passed, True, first.compared() + (f" (not by {why})" if why else ""), **found)
    if requested == "episode":
        asked = "environment.state asks for it: a resumed session begins a new episode"
        return Choice("episode", False, asked, **found)
    if requested != "auto":
        reason = next(iter(refused.values()), "the environment was not made by train-cloud")
        raise InputError("environment.state", requested, f"{reason}: use auto")
    because = f"a resumed session begins a new episode, because {why or 'nothing else applies'}"
    return Choice("episode", False, because, **found)


def choose_for(env: Env, *, recorded: bool = False) -> Choice:
    """The provider for an environment that somebody else made, tried on instances made like it.

    :param recorded: whether a :class:`StatefulEnv` stands around it from the first reset on
    """
    try:
        return choose(Alike(env), recorded=recorded)
    except TrainCloudError as error:
        provider = "own" if PROVIDERS["own"].refuses(env) is None else "episode"
        because = f"saving its state could not be tried, as no second one could be made: {error}"
        return Choice(provider, False, because)


def _try(
    make_env: MakeEnv, names: Sequence[str], replay_max_steps: int, start: Callable[[], Fresh]
) -> tuple[First, dict[str, str]]:
    """Play the first instance, then others, until one provider brings its state back.

    :return: what the first did, and why providers before that one are not taken
    """
    with contextlib.ExitStack() as started:

        def fresh() -> Fresh:
            process = start()
            started.callback(process.close)
            return process

        one, other = fresh(), fresh() if names else None
        first: First = one.call(play_first, make_env, names, replay_max_steps)
        refused = dict(first.refused)
        for name, state in first.states.items():
            try:
                reason = (other or fresh()).call(play_second, make_env, name, state, first, replay_max_steps)
            except CodeFailed as error:
                reason = f"another one could not be made: {error}"
            except (InputError, Crashed) as error:
                reason = f"another one could not be made: {error}"
            other = None
            if reason is None:
                break
            refused[name] = reason
        return first, refused


# ------------------------------------------------------------------------------------------- what the processes do


@dataclass
class First:
    """What the first instance did, for another one to do again.

    :ivar states: by provider, at the same moment
    :ivar refused: why a provider is not for it
    :ivar inputs: after that moment: an action in a one-tuple, or None for a reset
    :ivar outputs: what they led to, in a form in which equal content is equal
    :ivar generators: the process's, at that moment
    :ivar shared: what classes and modules had changed until then
    :ivar drawn: state of the environment's own generator at the end
    """

    states: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    inputs: list[tuple[Any] | None] = field(default_factory=list)
    outputs: list[tuple[Any, ...]] = field(default_factory=list)
    ended: bool = False
    generators: Mapping[str, Any] = field(default_factory=dict)
    shared: bytes = b""
    drawn: Any = None
    notes: list[str] = field(default_factory=list)
    uncopied: list[str] = field(default_factory=list)

    def compared(self) -> str:
        """What was found equal."""
        ends = "through an episode's end" if self.ended else "through a reset"
        return f"restored in mid-episode, another instance did the same for {len(self.outputs)} steps, {ends}"


def play_first(make_env: MakeEnv, names: Sequence[str], replay_max_steps: int) -> First:
    """Play an episode and a bit, give the state, play on."""
    warnings.simplefilter("ignore")  # the training's own instances give them
    done = First()
    env = StatefulEnv(make_env(), "replay" if "replay" in names else "episode", replay_max_steps=replay_max_steps)
    try:
        for name in names:
            if reason := PROVIDERS[name].refuses(env):
                done.refused[name] = reason
        env.reset(seed=1)
        shared = Shared([env])
        space = copy.deepcopy(env.action_space)
        space.seed(2)
        env.reset()  # one reset more than the other instance will have seen: counters of episodes must be carried
        generators = process_generators()
        if not _play(env, space, _FIRST_EPISODE, First()).ended:
            env.reset()
        _play(env, space, _INTO_EPISODE, done)
        done.inputs.clear()
        done.outputs.clear()
        done.ended = False
        for name in names:
            if name not in done.refused:
                try:
                    done.states[name] = _taken(env, name)
                except FAILURES as error:
                    done.refused[name] = f"taking the state: {_in_words(error)}"
        done.generators = process_generators()
        done.shared = dumps(shared.changed(), [env])
        done.notes += [str(left) for left in shared.left if not left.harmless]
        _play(env, space, _COMPARED, done, beyond_end=True)
        if "replay" in done.states and not _equal(_global(generators), _global(process_generators())):
            done.refused["replay"] = "the environment draws from Python's, NumPy's or torch's global generator"
            del done.states["replay"]
        if "replay" in done.states and env.record is not None and env.record.lost == MAKES_GENERATORS:
            done.refused["replay"] = MAKES_GENERATORS
            del done.states["replay"]
        done.drawn = plain(generator_state(_np_random(env)))
        return done
    finally:
        if (failure := close(env)) is not None:
            done.notes.append(failure)


def _global(generators: Mapping[str, Any]) -> dict[str, Any]:
    """Without what begins those that are made without a seed: a replay begins with the same."""
    return {name: state for name, state in generators.items() if name != "unseeded"}


def _taken(env: Env, name: str) -> bytes:
    try:
        state = dumps(PROVIDERS[name].get(env), [env])
    except FAILURES:
        take_apart(env)
        state = dumps(PROVIDERS[name].get(env), [env])
    for left in left_out(env, name):
        if not left.harmless:
            raise TrainCloudError(str(left))
    return state


def play_second(make_env: MakeEnv, name: str, state: bytes, first: First, replay_max_steps: int) -> str | None:
    """Take the state into another instance and do the same.

    :return: why the provider is not for this environment; None if it is
    """
    warnings.simplefilter("ignore")
    env = StatefulEnv(make_env(), name, replay_max_steps=replay_max_steps)
    try:
        env.reset(seed=3)
        if "torch" in first.generators and "torch" not in sys.modules:
            importlib.import_module("torch")
        set_process_generators(first.generators)
        found = First()
        try:
            shared = loads(first.shared, [env])
            put_shared(shared, [env])
            PROVIDERS[name].set(env, loads(state, [env]))
            put_shared(shared, [env])  # once more, as a replay has gone through its own
            for what in first.inputs:
                _go(env, what, found)
                differs = difference(first.outputs[len(found.outputs) - 1], found.outputs[-1])
                if differs:
                    at = len(found.outputs)
                    return f"the restored environment went another way at step {at}: {differs}"
        except FAILURES as error:
            return f"restoring the state: {_in_words(error)}"
        if plain(generator_state(_np_random(env))) != first.drawn:
            return "the restored environment drew otherwise from its generator"
        return None
    finally:
        close(env)


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, TrainCloudError) else f"{type(error).__name__}: {error}"


_INAPPLICABLE = ("not a", "the environment has no get_state")


def _go(env: Env, what: tuple[Any] | None, into: First) -> bool:
    """:return: whether an episode ended"""
    output: tuple[Any, ...] = env.reset() if what is None else env.step(copy.deepcopy(what[0]))
    into.inputs.append(what)
    info = output[-1]
    if isinstance(info, Mapping):
        into.uncopied += [str(key) for key in info if str(key) not in into.uncopied and not _can_be_copied(info[key])]
    into.outputs.append((*map(plain, output[:-1]), plain(shown(info))))
    return what is not None and bool(output[2] or output[3])


def _can_be_copied(value: Any) -> bool:
    if value is None or isinstance(value, int | float | str | np.ndarray | np.generic):
        return True
    try:
        copy.deepcopy(value)
        pickle.dumps(value)
    except FAILURES:
        return False
    return True


def sample(space: gymnasium.Space[Any], mask: Any = None) -> Any:
    """A random action, of those that ``mask`` allows.

    :param mask: truth values as an environment's ``action_masks()`` returns them (sb3-contrib, "Maskable PPO"): one for
        each action, those of a MultiDiscrete space end to end
    """
    if mask is None or not isinstance(space, gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete):
        return space.sample()
    allowed = np.asarray(mask, np.int8).ravel()
    if isinstance(space, gymnasium.spaces.Discrete):
        return space.sample(allowed)
    return space.sample(tuple(np.split(allowed, np.cumsum(space.nvec.ravel())[:-1])))


def _allowed(env: Env, space: gymnasium.Space[Any]) -> Any:
    of: Callable[[], Any] | None = None
    with contextlib.suppress(AttributeError):
        of = env.get_wrapper_attr("action_masks")
    masks = of() if of is not None else None
    return sample(space, masks)


def _play(env: Env, space: gymnasium.Space[Any], steps: int, into: First, *, beyond_end: bool = False) -> First:
    """Random actions until an episode ends, and reset it; ``beyond_end`` resets by force and goes on for a while."""
    for _ in _in_time(steps):
        if _go(env, (_allowed(env, space),), into):
            into.ended = True
            break
    if into.ended or beyond_end:
        _go(env, None, into)
    for _ in _in_time(_AFTER_END if beyond_end else 0):
        if _go(env, (_allowed(env, space),), into):
            _go(env, None, into)
    return into


def _in_time(steps: int) -> Iterator[int]:
    deadline = time.monotonic() + _TRIAL_SECONDS
    for step in range(steps):
        if step >= _LEAST_STEPS and time.monotonic() > deadline:
            return
        yield step


def _np_random(env: Env) -> Any:
    base = layers(env)[-1]
    return vars(base).get(generator_name(base))


def _equal(left: Any, right: Any) -> bool:
    return bool(plain(left) == plain(right))


def _is_clock(key: object) -> bool:
    name = str(key).lower()
    return name in ("t", "fps") or "time" in name.split("_") or "clock" in name


def shown(info: Any) -> Any:
    """An ``info`` without readings of clocks."""
    if isinstance(info, Mapping):
        return {
            key: shown(value)
            for key, value in info.items()
            if not (_is_clock(key) and isinstance(value, float | np.floating))
        }
    return info


def difference(expected: Sequence[Any], found: Sequence[Any]) -> str | None:
    """The first thing in which two outputs of a step, or two first observations, differ."""
    if len(expected) == 2:  # nobody learns from a reset's info; highway-env puts a random action into it
        return None if expected[0] == found[0] else "first observation of the next episode"
    names: tuple[str, ...] = ("observation", "reward", "done", "info")
    if len(expected) > len(names):
        names = ("observation", "reward", "terminated", "truncated", "info")
    return next((name for name, one, other in zip(names, expected, found, strict=True) if one != other), None)


# ----------------------------------------------------------------------------------------- made by somebody else


#: They record and show what is played, also what is played in a trial.
_RECORDERS = ("RecordVideo", "HumanRendering", "RenderCollection")


class Alike:
    """Makes environments like one that is there: by its specification, by its class and known arguments, or, where
    these are not known, as a copy: it will be played on before it is tried.

    :raises TrainCloudError: none of it can be handed to another process
    """

    def __init__(self, env: Env) -> None:
        import cloudpickle

        *wrappers, base = layers(env)
        if isinstance(env.unwrapped, Together):  # PettingZoo's layers are made in ways of their own
            wrappers, base = [], env
        self._wrappers = [_Wrapping(wrapper) for wrapper in wrappers if type(wrapper).__name__ not in _RECORDERS]
        self._bases: list[bytes] = []
        arguments = vars(base).get("_ezpickle_args"), vars(base).get("_ezpickle_kwargs")
        if getattr(base, "spec", None) is not None:
            ways: list[tuple[Any, ...]] = [(_made_by_spec, base.spec)]
        elif arguments != (None, None):
            ways = [(_made_by_class, type(base), *arguments)]
        else:
            ways = [(_as_it_is, base), (_made_by_class, type(base), (), {})]
        for way in ways:
            with contextlib.suppress(*FAILURES):
                self._bases.append(cloudpickle.dumps(way))

    def __call__(self) -> Env:
        error: Exception | None = None
        for way in self._bases:
            try:
                function, *arguments = pickle.loads(way)
                made = function(*arguments)
                for wrap in reversed(self._wrappers):
                    made = wrap(made)
                return made  # type: ignore[no-any-return]
            except FAILURES as failure:
                error = failure
        raise error or TrainCloudError("neither it nor its class can be handed to another process")


def _made_by_spec(spec: gymnasium.envs.registration.EnvSpec) -> Env:
    return gymnasium.make(spec).unwrapped


def _made_by_class(kind: Any, arguments: Sequence[Any] | None, named: Mapping[str, Any] | None) -> Env:
    made: Env = kind(*(arguments or ()), **(named or {}))
    return made


def _as_it_is(env: Env) -> Env:
    return env


class _Wrapping:
    """Makes a wrapper like one that is there around another environment."""

    def __init__(self, wrapper: Env) -> None:
        self._kind: Any = type(wrapper)
        self._arguments: dict[str, Any] | None = None
        self._content: bytes | None = None
        if isinstance(wrapper, gymnasium.utils.RecordConstructorArgs):
            self._arguments = copy.deepcopy(wrapper._saved_kwargs)
        else:
            with contextlib.suppress(*FAILURES):
                self._content = _with_functions(wrapper)

    def __call__(self, inner: Env) -> Env:
        if self._content is None:
            made: Env = self._kind(inner, **(self._arguments or {}))
            return made
        # Its constructor's arguments are not known: a copy does as well, as it will be played on before it is tried.
        made = self._kind.__new__(self._kind)
        vars(made)["env"] = inner
        vars(made).update(loads(self._content, [made]))
        vars(made).update(env=inner, _cached_spec=None, results_writer=None)
        return made


def _with_functions(wrapper: Env) -> bytes:
    """Its attributes, also functions that no module has: ``ActionMasker(env, lambda env: …)`` is made with one."""
    import cloudpickle

    class Whole(Pickler, cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            found = super().reducer_override(obj)
            return cloudpickle.Pickler.reducer_override(self, obj) if found is NotImplemented else found

    stays = kept(wrapper)
    file = io.BytesIO()
    Whole(file, [wrapper]).dump({name: value for name, value in vars(wrapper).items() if name not in stays})
    return file.getvalue()
