"""The whole state of one environment: taken in mid-episode, put into a fresh one of another process, bit for bit.

An environment is a chain of layers: wrappers, outermost first, and the base. A wrapper's state is its ``__dict__``;
the base's is what one of these state providers makes of it:

========  ==============================================================================================
own       the environment's own ``get_state()`` and ``set_state(state)``
mujoco    MuJoCo's integration state and what the last step derived from it
ale       the Arcade Learning Environment's ``cloneState``, with its generator and the action that it may repeat
pickle    the base's ``__dict__``, or its own ``__getstate__`` and ``__setstate__``
replay    the generators before the last reset, the reset's arguments and the actions since
episode   the generators alone: the next session begins a new episode, which is recorded as not exact
========  ==============================================================================================

That something can be pickled proves nothing (``gymnasium.utils.EzPickle`` stores constructor arguments, and the copy
plays on in another episode), so :func:`choose` takes the first provider that passes a round trip in mid-episode.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import pickle
import random
import sys
import time
import types
import warnings
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import gymnasium
import numpy as np

from train_cloud.envs.parallel import Together, inside
from train_cloud.envs.sticky import StickyALE
from train_cloud.errors import InputError, TrainCloudError

Env: TypeAlias = gymnasium.Env[Any, Any]
MakeEnv: TypeAlias = Callable[[], Env]

#: What user code, or the pickling of its objects, raises when a state cannot be taken, carried or put back: anything,
#: as environments define exceptions of their own. KeyboardInterrupt and SystemExit are none of it.
FAILURES = (Exception,)

#: Attributes of a layer that say how it was made or where it writes: the fresh environment's own are right.
KEPT = frozenset({"env", "spec", "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs",
                  "results_writer", "mujoco_renderer", "parallel", "aec_env"})  # fmt: skip
#: Monitor's records of past episodes grow without end and act on nothing: not worth copying at every reset.
_PAST_EPISODES = ("episode_returns", "episode_lengths", "episode_times")
#: Its lists of plain numbers, as the array module codes them. A snapshot must not take longer the longer a run is.
_MONITOR = "stable_baselines3.common.monitor"
_GROWING = {"rewards": "d", "episode_returns": "d", "episode_lengths": "q", "episode_times": "d"}
#: Their objects hold windows and surfaces; environments make new ones when they find None.
_VIEWERS = ("highway_env.envs.common.graphics", "highway_env.road.graphics", "moviepy", "pyglet",
            "gymnasium.envs.mujoco.mujoco_rendering", "gymnasium.envs.classic_control.rendering")  # fmt: skip

REPLAY_MAX_STEPS = 10_000
#: Steps of the trial: to the end of a first episode, into the second, and on to the end of that one and beyond.
_FIRST_EPISODE, _INTO_EPISODE, _COMPARED, _AFTER_END = 400, 9, 1_500, 12
#: A slow environment's trial is cut short: seconds for each of these parts, but at least so many steps.
_TRIAL_SECONDS, _LEAST_STEPS = 1.0, 3


# ---------------------------------------------------------------------------------------------------- carrying it

_live: ContextVar[Sequence[Env]] = ContextVar("train_cloud_live_environments", default=())


def _live_layer(env: int, layer: int) -> Env:
    return layers(_live.get()[env])[layer]


class Pickler(pickle.Pickler):
    """Pickles states of live environments: what refers back to an environment will refer to the one restored into.

    :param envs: the environments whose states are pickled, in the order in which :func:`loads` gets theirs
    """

    def __init__(self, file: io.BytesIO, envs: Sequence[Env] = ()) -> None:
        super().__init__(file, protocol=5)
        self._layers = {id(layer): (i, j) for i, env in enumerate(envs) for j, layer in enumerate(layers(env))}

    def reducer_override(self, obj: Any) -> Any:
        if id(obj) in self._layers:
            return _live_layer, self._layers[id(obj)]
        module = getattr(type(obj), "__module__", None) or ""  # SWIG's types have none
        if module.startswith(_VIEWERS):
            return type(None), ()
        if module.startswith("pygame"):
            try:
                obj.__reduce_ex__(5)
            except (TypeError, pickle.PickleError):
                return type(None), ()
        return NotImplemented


def dumps(obj: object, envs: Sequence[Env] = ()) -> bytes:
    """One pickle of ``obj``, in which states of ``envs`` may stand anywhere: shared objects stay shared."""
    file = io.BytesIO()
    Pickler(file, envs).dump(obj)
    return file.getvalue()


def loads(blob: bytes, envs: Sequence[Env] = ()) -> Any:
    """The counterpart of :func:`dumps`; ``envs`` are the live environments that the states are for."""
    token = _live.set(envs)
    try:
        return pickle.loads(blob)
    finally:
        _live.reset(token)


# ------------------------------------------------------------------------------------------------------- the layers


class StatefulEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Outermost wrapper that gives and takes its environment's state, also across a ``SubprocVecEnv``'s pipe.

    With the provider ``replay`` it also records, from each reset on, what a replay needs.
    """

    def __init__(self, env: Env, provider: str, *, replay_max_steps: int = REPLAY_MAX_STEPS) -> None:
        super().__init__(env)
        follow(env)
        self.train_cloud_provider = provider
        self.replay_max_steps = replay_max_steps
        self.record: Record | None = None
        # The very dict that a process of SubprocVecEnv keeps, and sends along with every step until the next reset.
        self._reset_info: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self.train_cloud_provider == "replay":
            self.record = Record.begin(self.env, seed, options)
        observation, self._reset_info = self.env.reset(seed=seed, options=options)
        if self.record is not None:
            self.record.seen = _digest(observation)
        return observation, self._reset_info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.record is not None:
            if len(self.record.actions) < self.replay_max_steps:
                self.record.actions.append(action)  # before the step: an environment may scale it in place
            else:
                self.record = None  # nothing to resume from until the next reset
        result = self.env.step(action)
        if self.record is not None:
            self.record.seen = _digest(result[0])
        return result

    def train_cloud_get_state(self) -> bytes:
        """For ``env_method``: the state as bytes, with this worker process's global generators."""
        return dumps((get_state(self), _process_generators(), self._reset_info), [self])

    def train_cloud_set_state(self, blob: bytes) -> Any:
        """For ``env_method``: the counterpart; returns what :func:`set_state` returns."""
        held = self._reset_info
        state, generators, *info = loads(blob, [self])
        observation = set_state(self, state)
        now = [self._reset_info] if observation is not None else info
        if now and now[0] is not held:
            held.clear()
            held.update(now[0])
        self._reset_info = held
        _set_process_generators(generators)
        return observation


def layers(env: Env) -> list[Env]:
    """The environment's layers, outermost first; our own wrapper is not one of them. Of several agents' environment
    those below :class:`Together` are PettingZoo's.
    """
    found: list[Env] = []
    several = False
    while True:
        if not isinstance(env, StatefulEnv):
            found.append(env)
        several = several or isinstance(env, Together)
        within = env.env if isinstance(env, gymnasium.Wrapper) else inside(env) if several else None
        if within is None:
            return found
        env = within


@dataclass
class Layer:
    """One layer's state; ``how`` names what put it together and therefore takes it apart."""

    how: str
    content: Any


@dataclass
class EnvState:
    """One environment's state: references into it until it is pickled with :func:`dumps`."""

    provider: str
    wrappers: list[Layer]
    base: Any
    spaces: dict[str, Any] = field(default_factory=dict)
    np_random: Any = None


def _has_own(layer: Env) -> bool:
    return callable(getattr(layer, "get_state", None)) and callable(getattr(layer, "set_state", None))


def _own_getstate(layer: Env) -> bool:
    """Whether somebody wrote down how this class is pickled; EzPickle's way is not a state."""
    getstate, setstate = getattr(type(layer), "__getstate__", None), getattr(type(layer), "__setstate__", None)
    theirs = (getattr(object, "__getstate__", None), gymnasium.utils.EzPickle.__getstate__)
    return setstate is not None and getstate is not None and getstate not in theirs


def _is_local_function(value: object) -> bool:
    return isinstance(value, types.FunctionType) and "<" in value.__qualname__


def _attributes(layer: Env, without: Sequence[str] = ()) -> dict[str, Any]:
    """The layer's attributes, less what a fresh one has by itself: settings, and lambdas, which cannot be pickled."""
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in KEPT and name not in without and not _is_local_function(value)
    }


def _set_attributes(layer: Env, content: Mapping[str, Any], without: Sequence[str] = ()) -> None:
    kept = {
        name: value
        for name, value in vars(layer).items()
        if name in KEPT or name in without or (_is_local_function(value) and name not in content)
    }
    vars(layer).clear()
    vars(layer).update(content)
    vars(layer).update(kept)


class Numbers:
    """A list of plain numbers, packed: pickled in one piece, however long it is."""

    def __init__(self, code: str) -> None:
        self.packed = array(code)
        self._followed: list[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"packed": self.packed, "_followed": None}

    def follow(self, numbers: list[Any]) -> Numbers:
        """Take over what was appended since the last call; everything, if it is another list."""
        count = len(self.packed)
        if numbers is not self._followed or count > len(numbers) or (count and self.packed[-1] != numbers[count - 1]):
            del self.packed[:]
        self.packed.extend(numbers[len(self.packed) :])
        self._followed = numbers
        return self


_packed: weakref.WeakKeyDictionary[Env, dict[str, Numbers]] = weakref.WeakKeyDictionary()


def _get_layer(layer: Env, *, own: bool = False) -> Layer:
    if own and _has_own(layer):
        return Layer("own", layer.get_state())  # type: ignore[attr-defined]
    if _own_getstate(layer):
        return Layer("getstate", layer.__getstate__())  # type: ignore[attr-defined,unused-ignore]
    content = _attributes(layer)
    if type(layer).__module__ == _MONITOR:
        packed = _packed.setdefault(layer, {name: Numbers(code) for name, code in _GROWING.items()})
        content |= {name: packed[name].follow(content[name]) for name in _GROWING}
    return Layer("dict", content)


def _set_layer(layer: Env, state: Layer) -> None:
    if state.how == "own":
        layer.set_state(state.content)  # type: ignore[attr-defined]
    elif state.how == "getstate":
        inner = vars(layer).get("env")
        layer.__setstate__(state.content)  # type: ignore[attr-defined]
        if inner is not None:
            vars(layer)["env"] = inner
    else:
        unpacked = {
            name: value.packed.tolist() if isinstance(value, Numbers) else value
            for name, value in state.content.items()
        }
        _set_attributes(layer, unpacked)


# ---------------------------------------------------------------------------------------------------- the providers


class StateProvider(Protocol):
    """How the base environment's state is taken and put back."""

    name: str

    def refuses(self, env: Env) -> str | None:
        """Why this is not for the environment, as far as that shows without stepping it."""

    def get(self, env: Env) -> EnvState:
        """References to the state, to be pickled by :func:`dumps`.

        :raises TrainCloudError: there is nothing to take, and other errors of user code
        """

    def set(self, env: Env, state: EnvState) -> Any:
        """Put it into a fresh, reset environment of the same making.

        :return: None, or the first observation of a new episode where the old one could not be gone on with
        """


class _Layered:
    """Wrappers by their attributes, the base by ``_get`` and ``_set``, its generators besides."""

    name: str
    own = False

    def refuses(self, env: Env) -> str | None:
        return None

    def get(self, env: Env) -> EnvState:
        *wrappers, base = layers(env)
        state = EnvState(self.name, [_get_layer(layer, own=self.own) for layer in wrappers], self._get(base))
        return _with_generators(state, base)

    def set(self, env: Env, state: EnvState) -> Any:
        *wrappers, base = layers(env)
        if len(wrappers) != len(state.wrappers):
            raise TrainCloudError(f"the environment has {len(wrappers)} wrappers, its state {len(state.wrappers)}")
        self._set(base, state.base)
        for layer, content in zip(wrappers, state.wrappers, strict=True):
            _set_layer(layer, content)
        _set_generators(state, base)

    def _get(self, base: Env) -> Any:
        raise NotImplementedError

    def _set(self, base: Env, content: Any) -> None:
        raise NotImplementedError


def _with_generators(state: EnvState, base: Env) -> EnvState:
    state.spaces = {name: vars(base)[name] for name in ("action_space", "observation_space") if name in vars(base)}
    state.np_random = vars(base).get(_generator_name(base))
    return state


def _generator_name(base: Env) -> str:
    """Of the attribute with the base's own generator: Gymnasium's, or the one that PettingZoo's environments have."""
    return "_np_random" if isinstance(base, gymnasium.Env) else "np_random"


def _set_generators(state: EnvState, base: Env) -> None:
    # A space is replaced, not changed: SB3's model holds the very object, and gets the same one from the same pickle.
    vars(base).update(state.spaces)
    live = vars(base).get(_generator_name(base))
    if live is not None and state.np_random is not None:
        live.bit_generator.state = state.np_random.bit_generator.state  # in place: the base's parts may hold it
    elif state.np_random is not None:
        vars(base)[_generator_name(base)] = state.np_random


class _Own(_Layered):
    name = "own"
    own = True

    def refuses(self, env: Env) -> str | None:
        return None if _has_own(layers(env)[-1]) else "the environment has no get_state() and set_state(state)"

    def _get(self, base: Env) -> Layer:
        return _get_layer(base, own=True)

    def _set(self, base: Env, content: Layer) -> None:
        _set_layer(base, content)


class _Pickle(_Layered):
    name = "pickle"

    def _get(self, base: Env) -> Layer:
        return _get_layer(base)

    def _set(self, base: Env, content: Layer) -> None:
        _set_layer(base, content)


class _MuJoCo(_Layered):
    """``mjSTATE_INTEGRATION`` is all that the next step computes with. What the last step derived (positions of
    bodies, contact forces) is one integration behind it and read by rewards, so it is carried too.

    MuJoCo documentation, "Simulation: State" (https://mujoco.readthedocs.io/en/stable/computation/index.html#state).
    """

    name = "mujoco"
    #: Sized anew at every step by the number of constraints and contacts, and computed before they are read.
    PER_STEP = ("efc", "iefc", "efm", "map_", "island", "tree_", "dof_island", "ten_wrap", "ten_J", "wrap_")

    def refuses(self, env: Env) -> str | None:
        mujoco = sys.modules.get("mujoco")  # never imported here: without it no environment of its kind exists
        base = env.unwrapped
        model, data = getattr(base, "model", None), getattr(base, "data", None)
        if mujoco is not None and isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData):
            return None
        return "not a MuJoCo environment"

    def _get(self, base: Any) -> Any:
        mujoco, model, data = sys.modules["mujoco"], base.model, base.data
        state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        derived = {
            name: value.copy()
            for name in dir(data)
            if not name.startswith(("_", *self.PER_STEP)) and isinstance(value := getattr(data, name), np.ndarray)
        }
        return state, derived, _attributes(base, without=("model", "data"))

    def _set(self, base: Any, content: Any) -> None:
        mujoco, model, data = sys.modules["mujoco"], base.model, base.data
        state, derived, attributes = content
        mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        for name, value in derived.items():
            live = getattr(data, name)
            if live.shape == value.shape and live.flags.writeable:
                live[...] = value
        _set_attributes(base, attributes, without=("model", "data"))


class _ALE(_Layered):
    """ALE's documentation, "Python interface": ``cloneState(include_rng=True)``, ``restoreState``; what these leave out
    is in :class:`StickyALE`.
    """

    name = "ale"

    def refuses(self, env: Env) -> str | None:
        ale_py = sys.modules.get("ale_py")  # never imported here, as with MuJoCo
        ale = getattr(env.unwrapped, "ale", None)
        if ale_py is not None and isinstance(ale, StickyALE | ale_py.ALEInterface):
            return None
        return "not an environment of the Arcade Learning Environment"

    def follow(self, base: Any) -> StickyALE:
        if not isinstance(base.ale, StickyALE):
            base.ale = StickyALE(base.ale)
        sticky: StickyALE = base.ale
        return sticky

    def _get(self, base: Any) -> Any:
        ale = self.follow(base)
        return ale.cloneState(include_rng=True), _attributes(base, without=("ale",)), ale.windows()

    def _set(self, base: Any, content: Any) -> None:
        machine, attributes, *windows = content  # the windows came later
        self.follow(base).go_on(machine, *windows or ([],))
        _set_attributes(base, attributes, without=("ale",))


class Actions:
    """Actions in the order in which they were played. NumPy's are packed while all are of one kind, so that ten
    thousand of them are pickled in one piece.
    """

    def __init__(self) -> None:
        self._kind: tuple[type, str, tuple[int, ...]] | None = None
        self._packed = bytearray()
        self._others: list[Any] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, action: Any) -> None:
        plain = (type(action) is np.ndarray or isinstance(action, np.generic)) and action.dtype.kind in "biuf"
        kind = (type(action), action.dtype.str, action.shape) if plain else None
        if self._count == 0:
            self._kind = kind
        elif kind != self._kind:
            self._others, self._kind = list(self), None
            self._packed.clear()
        if self._kind is None:
            self._others.append(copy.deepcopy(action))
        else:
            self._packed += action.tobytes()
        self._count += 1

    def __iter__(self) -> Iterator[Any]:
        if self._kind is None:
            yield from copy.deepcopy(self._others)
            return
        kind, dtype, shape = self._kind
        for action in np.frombuffer(bytes(self._packed), dtype).reshape(self._count, *shape):
            yield action.copy() if kind is np.ndarray else action


@dataclass
class Record:
    """What happened since the last reset, and all that was drawn from or counted up before it."""

    before: bytes
    seed: int | None
    options: dict[str, Any] | None
    actions: Actions = field(default_factory=lambda: Actions())
    seen: bytes = b""

    @staticmethod
    def begin(env: Env, seed: int | None, options: dict[str, Any] | None) -> Record:
        *wrappers, base = layers(env)
        states = [_get_layer(layer) for layer in wrappers]
        for state in states:
            if state.how == "dict":
                state.content = {
                    name: value
                    for name, value in state.content.items()
                    if not (name in _PAST_EPISODES and isinstance(value, Numbers))
                }
        before = _with_generators(EnvState("replay", states, None), base)
        return Record(dumps(before, [env]), seed, copy.deepcopy(options))


class _Replay:
    name = "replay"

    def refuses(self, env: Env) -> str | None:
        if not isinstance(env, StatefulEnv):
            return "only an environment that train-cloud made records what a replay needs"
        longest = max((getattr(layer, "_max_episode_steps", None) or 0 for layer in layers(env)), default=0)
        if longest > env.replay_max_steps:
            return f"an episode may exceed replay_max_steps, {env.replay_max_steps}"
        return None

    def get(self, env: Env) -> EnvState:
        record = env.record if isinstance(env, StatefulEnv) else None
        if record is None:
            return _Episode().get(env)  # longer than replay_max_steps, or not reset yet
        *wrappers, base = layers(env)
        state = EnvState(self.name, [_get_layer(layer) for layer in wrappers], record)
        return _with_generators(state, base)

    def set(self, env: Env, state: EnvState) -> Any:
        record = state.base
        if not isinstance(env, StatefulEnv):
            raise TrainCloudError("only an environment that train-cloud made can be replayed into")
        *wrappers, base = layers(env)
        before = loads(record.before, [env])
        for layer, content in zip(wrappers, before.wrappers, strict=True):
            if content.how == "dict":
                past = {name: vars(layer)[name] for name in _PAST_EPISODES if name in vars(layer)}
                content.content = {**past, **content.content}
            _set_layer(layer, content)
        if before.np_random is None and isinstance(base, gymnasium.Env):
            base._np_random = None
        _set_generators(before, base)
        observation, _ = env.env.reset(seed=record.seed, options=copy.deepcopy(record.options))
        for action in record.actions:
            observation = env.env.step(action)[0]
        live = vars(base).get(_generator_name(base))
        if _digest(observation) != record.seen or _generator_state(live) != _generator_state(state.np_random):
            raise TrainCloudError(
                f"replaying {len(record.actions)} steps did not lead to where the episode was saved: "
                "the environment does not do the same twice"
            )
        for layer, content in zip(wrappers, state.wrappers, strict=True):
            _set_layer(layer, content)
        _set_generators(state, base)
        env.record = record


class _Episode:
    name = "episode"

    def refuses(self, env: Env) -> str | None:
        return None

    def get(self, env: Env) -> EnvState:
        *wrappers, base = layers(env)
        states = []
        for layer in wrappers:
            content = _get_layer(layer)
            try:
                dumps(content, [env])
            except FAILURES:
                content = Layer("fresh", None)
            states.append(content)
        state = EnvState(self.name, states, None)
        # Without the spaces: these may be what cannot be pickled, and a draw more or less makes nothing worse.
        state.np_random = vars(base).get(_generator_name(base))
        return state

    def set(self, env: Env, state: EnvState) -> Any:
        *wrappers, base = layers(env)
        for layer, content in zip(wrappers, state.wrappers, strict=True):
            if content.how != "fresh":
                _set_layer(layer, content)
        _set_generators(state, base)
        return env.reset()[0]


PROVIDERS: dict[str, StateProvider] = {
    provider.name: provider for provider in (_Own(), _MuJoCo(), _ALE(), _Pickle(), _Replay(), _Episode())
}


def follow(env: Env) -> None:
    """Begin to note what the environment itself does not tell when its state is taken; best before its first reset."""
    ale = _ALE()
    if ale.refuses(env) is None:
        ale.follow(env.unwrapped)


def get_state(env: Env, provider: str | None = None) -> EnvState:
    """The environment's state now, as references: pickle it with :func:`dumps` before the next step.

    :param provider: a name in ``PROVIDERS``; None asks the outermost :class:`StatefulEnv`
    """
    if provider is None:
        if not isinstance(env, StatefulEnv):
            raise TrainCloudError("name a state provider: the environment was not made by train-cloud")
        provider = env.train_cloud_provider
    return PROVIDERS[provider].get(env)


def set_state(env: Env, state: EnvState) -> Any:
    """Put a state into a fresh environment of the same making that has been reset.

    :return: None where the saved episode goes on; else the first observation of a new episode, which must take the
        place of the saved one in the model
    """
    return PROVIDERS[state.provider].set(env, state)


# ----------------------------------------------------------------------------------------------- choosing a provider


@dataclass(frozen=True)
class Choice:
    """The provider for an environment, whether resuming with it is exact, and the reason in one clause."""

    provider: str
    exact: bool
    because: str


def choose(
    make_env: MakeEnv, requested: str = "auto", *, recorded: bool = True, replay_max_steps: int = REPLAY_MAX_STEPS
) -> Choice:
    """Find the provider for the environments that ``make_env`` makes, by trying it on instances of its own.

    Global generators are left as they were.

    :param requested: ``auto`` or one provider
    :param recorded: False where no :class:`StatefulEnv` will stand around the environment: replay is impossible
    :raises InputError: ``environment.state``: the requested provider failed; what user code raises in ``reset`` and
        ``step`` of an untouched instance comes through
    """
    if requested != "auto" and requested not in PROVIDERS:
        raise InputError("environment.state", requested, f"use auto or one of {', '.join(PROVIDERS)}")
    if requested == "episode":
        return Choice("episode", False, "environment.state asks for it: a resumed session begins a new episode")
    refused = []
    saved = _process_generators()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training's own instances give them
            for name in PROVIDERS if requested == "auto" else [requested]:
                if name == "episode" or (name == "replay" and not recorded):
                    continue
                try:
                    return Choice(name, True, _round_trip(make_env, name, replay_max_steps))
                except _Refused as refusal:
                    refused.append((name, str(refusal)))
    finally:
        _set_process_generators(saved)
    if requested != "auto":
        reason = refused[0][1] if refused else "the environment was not made by train-cloud"
        raise InputError("environment.state", requested, f"{reason}: use auto")
    told = "; ".join(f"{name}: {reason}" for name, reason in refused if not reason.startswith(_INAPPLICABLE))
    return Choice("episode", False, f"a resumed session begins a new episode, because {told or 'nothing else applies'}")


def choose_for(env: Env, *, recorded: bool = False) -> Choice:
    """The provider for an environment that somebody else made, tried on instances made like it.

    :param recorded: whether a :class:`StatefulEnv` stands around it from the first reset on
    """
    generators = _process_generators()
    make = _like(env)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make().close()
    except FAILURES as error:
        provider = "own" if PROVIDERS["own"].refuses(env) is None else "pickle"
        return Choice(provider, False, f"saving its state could not be tried, as no second one could be made: {error}")
    finally:
        _set_process_generators(generators)
    return choose(make, recorded=recorded)


#: They record and show what is played, also what is played in a trial.
_RECORDERS = ("RecordVideo", "HumanRendering", "RenderCollection")


def _like(env: Env) -> MakeEnv:
    """How to make another environment of the same kind: by its specification, or by its class and known arguments."""
    *wrappers, base = layers(env)

    def make() -> Env:
        if base.spec is not None:
            made = gymnasium.make(base.spec).unwrapped
        else:
            arguments, named = vars(base).get("_ezpickle_args", ()), vars(base).get("_ezpickle_kwargs", {})
            made = type(base)(*arguments, **named)
        for wrapper in reversed(wrappers):
            if type(wrapper).__name__ not in _RECORDERS:
                made = _wrapper_like(wrapper, made)
        return made

    return make


def _wrapper_like(wrapper: Env, inner: Env) -> Env:
    kind: Any = type(wrapper)
    if isinstance(wrapper, gymnasium.utils.RecordConstructorArgs):
        return kind(inner, **copy.deepcopy(wrapper._saved_kwargs))  # type: ignore[no-any-return]
    # Its constructor's arguments are not known: a copy does as well, as it will be played on before it is tried.
    made: Env = kind.__new__(kind)
    vars(made).update(loads(dumps(_attributes(wrapper), [wrapper]), [inner]))
    vars(made).update({name: value for name, value in vars(wrapper).items() if _is_local_function(value)})
    vars(made).update(env=inner, _cached_spec=None, results_writer=None)
    return made


class _Refused(TrainCloudError):
    """Why a provider is not taken."""


_INAPPLICABLE = ("not a", "the environment has no get_state")


@contextlib.contextmanager
def _refusing(doing: str) -> Iterator[None]:
    try:
        yield
    except _Refused:
        raise
    except FAILURES as error:
        own = isinstance(error, TrainCloudError)
        raise _Refused(str(error) if own else f"{doing}: {type(error).__name__}: {error}") from error


def _round_trip(make_env: MakeEnv, name: str, replay_max_steps: int) -> str:
    """Play an episode and a bit, save, play on; then restore into another instance and play the same.

    :return: what was found equal
    :raises _Refused: the provider is not for this environment
    """
    first = StatefulEnv(make_env(), name, replay_max_steps=replay_max_steps)
    second: StatefulEnv | None = None
    try:
        if reason := PROVIDERS[name].refuses(first):
            raise _Refused(reason)
        with _refusing("recording a reset") if name == "replay" else contextlib.nullcontext():
            first.reset(seed=1)
        space = copy.deepcopy(first.action_space)
        space.seed(2)
        first.reset()  # one reset more than the other instance will have seen: counters of episodes must be carried
        generators = _process_generators()
        lead_in = _play(first, space, _FIRST_EPISODE)
        if not lead_in.ended:
            first.reset()
        _play(first, space, _INTO_EPISODE)
        if name == "replay" and not _equal(generators, _process_generators()):
            raise _Refused("the environment draws from Python's, NumPy's or torch's global generator")
        with _refusing("taking the state"):
            blob = dumps(PROVIDERS[name].get(first), [first])
        generators = _process_generators()
        expected = _play(first, space, _COMPARED, beyond_end=True)
        if name == "replay" and not _equal(generators, _process_generators()):
            raise _Refused("the environment draws from Python's, NumPy's or torch's global generator")

        second = StatefulEnv(make_env(), name, replay_max_steps=replay_max_steps)
        second.reset(seed=3)
        _set_process_generators(generators)
        with _refusing("restoring the state"):
            PROVIDERS[name].set(second, loads(blob, [second]))
            found = _Played()
            for what in expected.inputs:
                found.go(second, what)
                difference = _difference(expected.outputs[len(found.outputs) - 1], found.outputs[-1])
                if difference:
                    raise _Refused(
                        f"the restored environment went another way at step {len(found.outputs)}: {difference}"
                    )
            if not _equal(_generator_state(_np_random(first)), _generator_state(_np_random(second))):
                raise _Refused("the restored environment drew otherwise from its generator")
        ends = "through an episode's end" if expected.ended else "through a reset"
        return f"restored in mid-episode, another instance did the same for {len(found.outputs)} steps, {ends}"
    finally:
        first.close()
        if second is not None:
            second.close()


@dataclass
class _Played:
    """A stretch of play. An input is an action in a one-tuple, or None for a reset."""

    inputs: list[tuple[Any] | None] = field(default_factory=list)
    outputs: list[tuple[Any, ...]] = field(default_factory=list)
    ended: bool = False

    def go(self, env: Env, what: tuple[Any] | None) -> bool:
        self.inputs.append(what)
        output: tuple[Any, ...] = env.reset() if what is None else env.step(copy.deepcopy(what[0]))
        self.outputs.append(copy.deepcopy(output))
        return what is not None and bool(output[2] or output[3])


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


def _play(env: Env, space: gymnasium.Space[Any], steps: int, *, beyond_end: bool = False) -> _Played:
    """Random actions until an episode ends, and reset it; ``beyond_end`` resets by force and goes on for a while."""
    played = _Played()
    for _ in _patiently(steps):
        if played.go(env, (_allowed(env, space),)):
            played.ended = True
            break
    if played.ended or beyond_end:
        played.go(env, None)
    for _ in _patiently(_AFTER_END if beyond_end else 0):
        if played.go(env, (_allowed(env, space),)):
            played.go(env, None)
    return played


def _patiently(steps: int) -> Iterator[int]:
    deadline = time.monotonic() + _TRIAL_SECONDS
    for step in range(steps):
        if step >= _LEAST_STEPS and time.monotonic() > deadline:
            return
        yield step


def _np_random(env: Env) -> Any:
    base = layers(env)[-1]
    return vars(base).get(_generator_name(base))


def _generator_state(generator: Any) -> Any:
    return None if generator is None else generator.bit_generator.state


def _digest(observation: Any) -> bytes:
    return hashlib.sha256(pickle.dumps(_plain(observation), protocol=5)).digest()


def _plain(value: Any) -> Any:
    """Equal for equal content: arrays by their bytes, so that NaN equals itself and -0.0 is not 0.0."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        content = [_plain(item) for item in array.ravel().tolist()] if array.dtype.hasobject else array.tobytes()
        return (str(array.dtype), array.shape, content)
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return [(_plain(key), _plain(item)) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bytes | int):
        return value
    return type(value).__qualname__  # an object without a value of its own to compare


def _equal(left: Any, right: Any) -> bool:
    return bool(_plain(left) == _plain(right))


def _is_clock(key: object) -> bool:
    name = str(key).lower()
    return name in ("t", "fps") or "time" in name.split("_") or "clock" in name


def _without_clocks(info: Any) -> Any:
    if isinstance(info, Mapping):
        return {
            key: _without_clocks(value)
            for key, value in info.items()
            if not (_is_clock(key) and isinstance(value, float | np.floating))
        }
    return info


def _difference(expected: Sequence[Any], found: Sequence[Any]) -> str | None:
    if len(expected) == 2:  # nobody learns from a reset's info; highway-env puts a random action into it
        return None if _equal(expected[0], found[0]) else "first observation of the next episode"
    *left, left_info = expected
    *right, right_info = found
    for name, one, other in zip(("observation", "reward", "terminated", "truncated"), left, right, strict=True):
        if not _equal(one, other):
            return name
    return None if _equal(_without_clocks(left_info), _without_clocks(right_info)) else "info"


# ------------------------------------------------------------------------------------------- the process's generators


def _process_generators() -> dict[str, Any]:
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}
    torch = sys.modules.get("torch")  # not imported here: what is not imported was not drawn from
    if torch is not None:
        state["torch"] = torch.get_rng_state().numpy().copy()
    return state


def _set_process_generators(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in state:
        torch.set_rng_state(torch.from_numpy(state["torch"].copy()))
