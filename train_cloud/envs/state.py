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
plays on in another episode), so ``train_cloud.envs.trial`` finds the first provider that passes a round trip in
mid-episode.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import pickle
import random
import sys
import weakref
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np

from train_cloud.envs.make import FAILURES as FAILURES
from train_cloud.envs.make import Env, in_words
from train_cloud.envs.mujoco import Packed, get_data, get_model, set_data, set_model
from train_cloud.envs.parallel import Together
from train_cloud.envs.pickling import (
    MADE_WITH,
    Live,
    Outermost,
    Sections,
    check,
    content_of,
    dumps_apart,
    fingerprint,
    has_own_getstate,
    left_of_functions,
    live_layer,
    put_content,
)
from train_cloud.envs.pickling import dumps as dumps
from train_cloud.envs.pickling import layers as layers
from train_cloud.envs.pickling import loads as loads
from train_cloud.envs.pieces import Gone, Left, Taking, put, put_each
from train_cloud.envs.shared import SCALARS, OfProcess, Shared, put_shared
from train_cloud.envs.sticky import StickyALE
from train_cloud.errors import TrainCloudError
from train_cloud.generators import get_unseeded, set_unseeded

#: Besides, attributes that hold the next layer.
_INNER = frozenset({"env", "parallel", "aec_env"})
#: Monitor's records of past episodes grow without end and act on nothing: not worth copying at every reset.
_PAST_EPISODES = ("episode_returns", "episode_lengths", "episode_times")
#: Its lists of plain numbers, as the array module codes them. A snapshot must not take longer the longer a run is.
_MONITOR = "stable_baselines3.common.monitor"
_GROWING = {"rewards": "d", "episode_returns": "d", "episode_lengths": "q", "episode_times": "d"}
#: Where checkpoints of earlier versions look for it.
_live_layer = live_layer

#: Providers that have the base's attributes.
_BY_ATTRIBUTES = ("mujoco", "ale", "pickle")

REPLAY_MAX_STEPS = 10_000
MAKES_GENERATORS = "the environment makes generators without a seed in its step()"
#: Methods that are asked of an environment from outside and change nothing; some are called at every step.
NOT_NOTED = frozenset({"action_masks", "close", "compute_reward", "compute_terminated", "compute_truncated",
                       "get_state", "render", "reset", "step"})  # fmt: skip
#: A call with so much in its arguments is hardly made to change something: what it has changed is noted instead.
_LARGE_CALL_BYTES = 4096

# ------------------------------------------------------------------------------------------------------- the layers


class StatefulEnv(Outermost):
    """Outermost wrapper that gives and takes its environment's state, also across a ``SubprocVecEnv``'s pipe.

    With the provider ``replay`` it also records, from each reset on, what a replay needs.

    :param because: why it is not exact to resume with this provider; empty where it is
    :param uncopied: keys of ``info`` whose values cannot be copied, as SB3 would; they are handed on as they are
    """

    def __init__(
        self,
        env: Env,
        provider: str,
        *,
        because: str = "",
        replay_max_steps: int = REPLAY_MAX_STEPS,
        uncopied: Collection[str] = (),
    ) -> None:
        super().__init__(env)
        follow(env)
        self.train_cloud_provider = provider
        self.train_cloud_because = because
        self._uncopied = frozenset(uncopied)
        self.replay_max_steps = replay_max_steps
        self.record: Record | None = None
        self._lasting: Lasting | None = None
        self._outside = Outside(layers(env))
        self._of_process = OfProcess()
        # The very dict that a process of SubprocVecEnv keeps, and sends along with every step until the next reset.
        self._reset_info: dict[str, Any] = {}
        self._own_attributes = frozenset([*vars(self), "_own_attributes"])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        recorded = self.train_cloud_provider == "replay"
        if recorded:
            self.record = Record.begin(self.env, seed, options, self._lasting)
        observation, self._reset_info = self.env.reset(seed=seed, options=options)
        if self.record is not None:
            self.record.see(observation)
            self._outside.look()
        if recorded and self._lasting is None:
            self._lasting = Lasting(self.env)
        self._of_process.begin([self])
        if self._uncopied:
            self._reset_info = Info(self._reset_info, self._uncopied)
        return observation, self._reset_info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        record = self.record
        if record is not None and len(record.actions) >= self.replay_max_steps:
            record = self.record = None  # nothing to resume from until the next reset
        if record is None:
            result = self.env.step(action)
        else:
            self._outside.note_writes(record, self.env)
            record.actions.append(action)  # before the step: an environment may scale it in place
            unseeded = get_unseeded()
            result = self.env.step(action)
            if get_unseeded() != unseeded:  # others in this process may have made some since the reset
                record.lose(MAKES_GENERATORS)
            record.see(result[:4])
            self._outside.look()
        if self._uncopied:
            return (*result[:4], Info(result[4], self._uncopied))
        return result

    def get_wrapper_attr(self, name: str) -> Any:
        """What callbacks get through ``env_method`` and ``get_attr``; a call of a method is noted for a replay."""
        found = super().get_wrapper_attr(name)
        if self.record is None or name in NOT_NOTED or name.startswith("train_cloud_") or not callable(found):
            return found
        return functools.partial(self._call, name, found)

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self.record is None:
            return method(*arguments, **named)
        self._outside.note_writes(self.record, self.env)
        noted = self._outside.note_call(self.record, self.env, name, arguments, named)
        result = method(*arguments, **named)
        if noted:
            self._outside.look()
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, as the trial of a vector environment makes one: with nothing recorded yet."""
        named = {"because": self.train_cloud_because, "replay_max_steps": self.replay_max_steps}
        again = functools.partial(StatefulEnv, **named, uncopied=self._uncopied)  # type: ignore[arg-type]
        return again, (self.env, self.train_cloud_provider)

    def follow_replayed(self, record: Record) -> None:
        """An episode goes on that was played here again."""
        self.record = record
        self._outside.look()

    @property
    def foreign(self) -> dict[str, Any]:
        """Attributes that somebody has set here (``set_attr``)."""
        return {name: value for name, value in vars(self).items() if name not in self._own_attributes}

    def train_cloud_get_state(self, known: Collection[str] = ()) -> tuple[bytes | Sections, list[str], list[str]]:
        """For ``env_method``: the state, with this worker process's global generators, and what classes, modules and
        functions in it have changed.

        :param known: names of large contents that the caller has, see :func:`dumps_apart`
        :return: as of :func:`dumps_apart`, and what cannot be saved, in words
        """
        with undisturbed() as generators:
            shared, left = self._of_process.changed()
            try:
                taken = dumps_apart((get_state(self), generators, self._reset_info, shared), known, [self])
            except FAILURES:
                take_apart(self)
                taken = dumps_apart((get_state(self), generators, Info({}, frozenset()), shared), known, [self])
            return *taken, left

    def train_cloud_set_state(self, blob: bytes | Sections) -> Any:
        """For ``env_method``: the counterpart; returns what :func:`set_state` returns."""
        held = self._reset_info
        state, generators, *rest = loads(blob, [self])
        info, shared = rest[:1], rest[1] if len(rest) > 1 else {}  # which came later
        put_shared(shared, [self])
        anew = set_state(self, state)
        put_shared(shared, [self])  # once more, as a replay goes through its own
        now = [self._reset_info] if anew is not None else info
        if now and now[0] is not held:
            held.clear()
            held.update(now[0])
        self._reset_info = held
        set_process_generators(generators)
        return anew


class Info(dict[str, Any]):
    """An ``info`` of which not everything can be copied, as SB3 does at each step: that is in the copy as it is, and
    stays behind where the info goes to another process.

    :param uncopied: keys of what cannot be copied
    """

    def __init__(self, content: Mapping[str, Any], uncopied: frozenset[str]) -> None:
        super().__init__(content)
        self._uncopied = uncopied

    def __deepcopy__(self, memo: dict[int, Any]) -> Info:
        found = {key: value if key in self._uncopied else copy.deepcopy(value, memo) for key, value in self.items()}
        return Info(found, self._uncopied)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ({key: value for key, value in self.items() if key not in self._uncopied},)


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
    because: str = ""
    """Where a new episode must begin: why."""
    outer: dict[str, Any] | None = None
    """Attributes that somebody has set on the outermost layer, which is ours."""
    shared: dict[Any, Any] | None = None
    """What classes and modules had changed before the reset that a replay begins with."""
    live: Live | None = None
    """Parts of the base whose content is carried beside: what refers to them will refer to the live base's."""

    def __getstate__(self) -> dict[str, Any]:
        return {"live": self.live, **vars(self)}  # pickled before all that may refer to such a part


@dataclass(frozen=True)
class Anew:
    """A new episode was begun, as the old one could not be gone on with.

    :ivar observation: the first one, which must take the place of the saved one in the model
    :ivar because: in one clause
    """

    observation: Any
    because: str


def _has_own(layer: Env) -> bool:
    return callable(getattr(layer, "get_state", None)) and callable(getattr(layer, "set_state", None))


def kept(layer: Env) -> frozenset[str]:
    """Names of attributes that stay as the fresh layer has them. An environment that a base holds is no layer."""
    base = isinstance(layer, gymnasium.Env) and not isinstance(layer, gymnasium.Wrapper | Together)
    return MADE_WITH if base else MADE_WITH | _INNER


def attributes(layer: Env, without: Sequence[str] = ()) -> dict[str, Any]:
    """The layer's attributes, less what a fresh one has by itself: settings, and lambdas, which cannot be pickled."""
    return content_of(layer, kept(layer).union(without))


def _set_attributes(layer: Env, content: Mapping[str, Any], without: Sequence[str] = ()) -> None:
    put_content(layer, put_each(dict(vars(layer)), content), kept(layer).union(without))


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


#: Wrappers with something in their attributes that cannot be pickled.
_in_pieces: weakref.WeakSet[Env] = weakref.WeakSet()


def take_apart(env: Env) -> None:
    """From now on take the state of those wrappers in pieces that cannot be pickled as a whole."""
    for layer in layers(env)[:-1]:
        try:
            dumps(_get_layer(layer), [env])
        except FAILURES:
            _in_pieces.add(layer)


def left_out(env: Env, provider: str) -> list[Left]:
    """What of such wrappers, and of functions that layers hold, is not taken: it stays as a fresh one has it."""
    taking = Taking(lambda value: dumps(value, [env]))
    *wrappers, base = layers(env)
    for layer in wrappers:
        for name, value in attributes(layer).items() if layer in _in_pieces else ():
            taking.take(value, f"{type(layer).__qualname__}.{name}")
    for layer in [*wrappers, base] if provider in _BY_ATTRIBUTES else wrappers:
        taking.left += left_of_functions(layer, kept(layer))
    return taking.left


def _get_layer(layer: Env, *, own: bool = False) -> Layer:
    if own and _has_own(layer):
        return Layer("own", layer.get_state())  # type: ignore[attr-defined]
    if has_own_getstate(layer):
        return Layer("getstate", layer.__getstate__())  # type: ignore[attr-defined,unused-ignore]
    content = attributes(layer)
    if layer in _in_pieces:
        taking = Taking(lambda value: dumps(value, [layer]))
        content = {name: taking.take(value, name) for name, value in content.items()}
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

    def set(self, env: Env, state: EnvState) -> Anew | None:
        """Put it into a fresh, reset environment of the same making.

        :return: None where the saved episode goes on
        :raises TrainCloudError: that is not possible; and other errors of user code
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

    def set(self, env: Env, state: EnvState) -> Anew | None:
        *wrappers, base = layers(env)
        if len(wrappers) != len(state.wrappers):
            raise TrainCloudError(f"the environment has {len(wrappers)} wrappers, its state {len(state.wrappers)}")
        self._set(base, state.base)
        for layer, content in zip(wrappers, state.wrappers, strict=True):
            _set_layer(layer, content)
        _set_generators(state, base)
        return None

    def _get(self, base: Env) -> Any:
        raise NotImplementedError

    def _set(self, base: Env, content: Any) -> None:
        raise NotImplementedError


def _with_generators(state: EnvState, base: Env) -> EnvState:
    state.spaces = {name: vars(base)[name] for name in ("action_space", "observation_space") if name in vars(base)}
    state.np_random = vars(base).get(generator_name(base))
    return state


def generator_name(base: Env) -> str:
    """Of the attribute with the base's own generator: Gymnasium's, or the one that PettingZoo's environments have."""
    return "_np_random" if isinstance(base, gymnasium.Env) else "np_random"


def _set_generators(state: EnvState, base: Env) -> None:
    # A space is replaced, not changed: SB3's model holds the very object, and gets the same one from the same pickle.
    vars(base).update(state.spaces)
    live = vars(base).get(generator_name(base))
    if live is not None and state.np_random is not None:
        live.bit_generator.state = state.np_random.bit_generator.state  # in place: the base's parts may hold it
    elif state.np_random is not None:
        vars(base)[generator_name(base)] = state.np_random


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

    def refuses(self, env: Env) -> str | None:
        mujoco = sys.modules.get("mujoco")  # never imported here: without it no environment of its kind exists
        base = env.unwrapped
        model, data = getattr(base, "model", None), getattr(base, "data", None)
        if mujoco is not None and isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData):
            return None
        return "not a MuJoCo environment"

    def get(self, env: Env) -> EnvState:
        state = super().get(env)
        state.live = Live(env.unwrapped, ("model", "data"))
        return state

    def _get(self, base: Any) -> Any:
        return *get_data(base.data), attributes(base, without=("model", "data")), self._model(base)

    def _set(self, base: Any, content: Any) -> None:
        state, derived, attributes, *made_of = content  # the model came later
        for packed in made_of:
            set_model(base.model, packed)
        set_data(base.data, state, derived)
        _set_attributes(base, attributes, without=("model", "data"))

    _models: ClassVar[weakref.WeakKeyDictionary[Any, tuple[Any, Packed]]] = weakref.WeakKeyDictionary()

    def _model(self, base: Any) -> Packed:
        """The same object as the last time where the model is the same: there are five hundred arrays."""
        mujoco, model = sys.modules["mujoco"], base.model
        whole = np.empty(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, whole)
        known = self._models.get(base)
        if known is None or not np.array_equal(known[0], whole):
            known = self._models[base] = whole, get_model(model)
        return known[1]


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
        return ale.cloneState(include_rng=True), attributes(base, without=("ale",)), ale.windows()

    def _set(self, base: Any, content: Any) -> None:
        machine, attributes, *windows = content  # the windows came later
        self.follow(base).resume(machine, *windows or ([],))
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
    """Of all that the episode has shown so far; of its last observation alone where not ``chained``."""
    chained: bool = False
    outside: list[tuple[int, bytes]] = field(default_factory=list)
    """What was changed from outside: after how many actions, and how (:class:`Outside`)."""
    unseeded: tuple[str, int] | None = None
    """Before the reset, which may make generators without a seed: what such a one begins with."""
    lost: str = ""
    """Why the episode cannot be played again: a change that cannot be carried."""

    def lose(self, why: str) -> None:
        """It cannot be played again."""
        self.lost = self.lost or why

    def see(self, shown: Any) -> None:
        """Take note of what a reset or a step gave."""
        if not self.chained:
            self.seen = _digest(shown[0] if isinstance(shown, tuple) else shown)
        elif isinstance(shown, tuple) and type(shown[0]) is np.ndarray and not shown[0].dtype.hasobject:
            rest = repr(shown[1:]).encode()
            self.seen = hashlib.blake2b(self.seen + shown[0].tobytes() + rest, digest_size=16).digest()
        else:
            self.seen = _digest((self.seen, shown))

    @staticmethod
    def begin(env: Env, seed: int | None, options: dict[str, Any] | None, lasting: Lasting | None) -> Record:
        try:
            before = Record._before(env, lasting)
        except FAILURES:
            take_apart(env)
            before = Record._before(env, lasting)
        return Record(before, seed, copy.deepcopy(options), chained=True, unseeded=get_unseeded())

    @staticmethod
    def _before(env: Env, lasting: Lasting | None) -> bytes:
        *wrappers, base = layers(env)
        states = [_get_layer(layer) for layer in wrappers]
        for state in states:
            if state.how == "dict":
                state.content = {
                    name: value
                    for name, value in state.content.items()
                    if not (name in _PAST_EPISODES and isinstance(value, Numbers))
                }
        changed = lasting.changed() if lasting is not None else None
        begun = _with_generators(EnvState("replay", states, changed), base)
        begun.shared = lasting.changed_outside() if lasting is not None else None
        return dumps(begun, [env])


class Lasting:
    """Which attributes of a replayed environment's base last over its episodes and have changed since its first one
    began, so that a fresh instance, at the beginning of its first, lacks them.

    What has not changed stays as the fresh instance has it: a port, a handle, a process's number are its own.
    """

    def __init__(self, env: Env) -> None:
        self._env = env
        self._base = layers(env)[-1]
        self._shared = Shared([env])
        self._hopeless: dict[str, type] = {}
        self._first = {name: mark for name, (_, mark) in self._taken().items()}

    def changed(self) -> dict[str, Any]:
        """By name, as references; of what cannot be pickled the pieces that can."""
        return {name: value for name, (value, mark) in self._taken().items() if mark != self._first.get(name)}

    def changed_outside(self) -> dict[Any, Any]:
        """Likewise of classes and modules."""
        return self._shared.changed()

    def _taken(self) -> dict[str, tuple[Any, Any]]:
        """By name, with a mark that is equal for equal content."""
        found: dict[str, tuple[Any, Any]] = {}
        without = ("action_space", "observation_space", generator_name(self._base))
        for name, value in attributes(self._base, without=without).items():
            if isinstance(value, SCALARS):
                found[name] = value, (type(value), value)
            elif self._hopeless.get(name) is not type(value):
                try:
                    found[name] = value, fingerprint(value, [self._env])[0]
                except FAILURES:
                    taken = Taking(self._pickled).take(value, name)
                    if taken is Gone.GONE:
                        self._hopeless[name] = type(value)  # nor will the next one of its kind be
                    else:
                        found[name] = taken, fingerprint(taken, [self._env])[0]
        return found

    def _pickled(self, value: object) -> None:
        check(value, [self._env])

    @staticmethod
    def put(base: Env, changed: Mapping[str, Any] | None) -> None:
        """Into an instance that is to play an episode again, before its reset."""
        for name, value in (changed or {}).items():
            vars(base)[name] = put(vars(base).get(name), value)


class Outside:
    """What callbacks do to a replayed environment between its steps: calls of its methods (``env_method``), and
    attributes of its layers that have another value than the last step or reset has left there.

    :param layers: of the environment
    """

    def __init__(self, layers: Sequence[Env]) -> None:
        self._layers = layers
        self._left: list[dict[str, Any]] = []

    def look(self) -> None:
        """What there is now is the environment's own doing."""
        self._left = [dict(vars(layer)) for layer in self._layers]

    def note_writes(self, record: Record, env: Env) -> None:
        for number, (layer, left) in enumerate(zip(self._layers, self._left, strict=True)):
            try:
                if vars(layer) == left:
                    continue
            except FAILURES:  # arrays, among others, cannot be compared so
                pass
            for name, value in vars(layer).items():
                if value is left.get(name) or name in kept(layer):
                    continue
                try:
                    self._note(record, dumps(("set", number, name, value), [env]))
                except FAILURES as error:
                    if left.get(name) is not None:  # what was made just now, a window perhaps, was not there before
                        where = f"{type(layer).__qualname__}.{name}"
                        record.lose(f"{where} was changed from outside, and cannot be carried: {in_words(error)}")

    def note_call(
        self, record: Record, env: Env, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> bool:
        """:return: whether it is called again in a replay; what a large call changes is seen as writes"""
        try:
            noted = dumps(("call", name, arguments, dict(named)), [env])
        except FAILURES as error:
            record.lose(f"{name}() was called from outside, and its arguments cannot be carried: {in_words(error)}")
            return False
        if len(noted) > _LARGE_CALL_BYTES:
            return False
        self._note(record, noted)
        return True

    def _note(self, record: Record, noted: bytes) -> None:
        record.outside.append((len(record.actions), noted))

    @staticmethod
    def again(env: Env, outside: list[tuple[int, bytes]], number: int) -> None:
        """Do what was done after so many actions, and take it out of the list."""
        while outside and outside[0][0] <= number:
            what, *how = loads(outside.pop(0)[1], [env])
            if what == "call":
                name, arguments, named = how
                env.get_wrapper_attr(name)(*arguments, **named)
            else:
                layer, name, value = how
                vars(layers(env)[layer])[name] = value


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
        if record is None or record.lost:
            state = _Episode().get(env)
            state.because = "it has become longer than replay_max_steps" if record is None else record.lost
            return state
        *wrappers, base = layers(env)
        state = EnvState(self.name, [_get_layer(layer) for layer in wrappers], record)
        return _with_generators(state, base)

    def set(self, env: Env, state: EnvState) -> Anew | None:
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
        Lasting.put(base, before.base)
        put_shared(before.shared or {}, [env])
        _set_generators(before, base)
        set_unseeded(getattr(record, "unseeded", None))  # which came later; the process's own is put back at the end
        again = Record(b"", None, None, chained=record.chained)
        again.see(env.env.reset(seed=record.seed, options=copy.deepcopy(record.options))[0])
        outside = list(getattr(record, "outside", ()))  # which came later
        for number, action in enumerate(record.actions):
            Outside.again(env.env, outside, number)
            again.see(env.env.step(action)[:4])
        Outside.again(env.env, outside, len(record.actions))
        live = vars(base).get(generator_name(base))
        if again.seen != record.seen or generator_state(live) != generator_state(state.np_random):
            raise TrainCloudError(
                f"replaying {len(record.actions)} steps did not lead to where the episode was saved: "
                "the environment does not do the same twice"
            )
        for layer, content in zip(wrappers, state.wrappers, strict=True):
            _set_layer(layer, content)
        _set_generators(state, base)
        env.follow_replayed(record)
        return None


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
        state.np_random = vars(base).get(generator_name(base))
        return state

    def set(self, env: Env, state: EnvState) -> Anew | None:
        *wrappers, base = layers(env)
        for layer, content in zip(wrappers, state.wrappers, strict=True):
            if content.how != "fresh":
                _set_layer(layer, content)
        _set_generators(state, base)
        return Anew(env.reset()[0], state.because)


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
    state = PROVIDERS[provider].get(env)
    state.outer = env.foreign if isinstance(env, StatefulEnv) else None
    return state


def set_state(env: Env, state: EnvState) -> Anew | None:
    """Put a state into a fresh environment of the same making that has been reset.

    :return: None where the saved episode goes on; else what began in its place, also where the state does not lead to
        where it was taken
    """
    as_it_was = [(layer, dict(vars(layer))) for layer in layers(env)]
    vars(env).update(state.outer or {})
    try:
        return PROVIDERS[state.provider].set(env, state)
    except FAILURES as error:
        because = str(error) if isinstance(error, TrainCloudError) else f"restoring its state raises {in_words(error)}"
    for layer, attributes_before in as_it_was:
        vars(layer).clear()
        vars(layer).update(attributes_before)
    *wrappers, base = layers(env)
    for layer, content in zip(wrappers, state.wrappers, strict=False):
        with contextlib.suppress(*FAILURES):
            _set_layer(layer, content)
    with contextlib.suppress(*FAILURES):
        _set_generators(state, base)
    return Anew(env.reset()[0], because)


def generator_state(generator: Any) -> Any:
    return None if generator is None else generator.bit_generator.state


def _digest(observation: Any) -> bytes:
    return hashlib.sha256(pickle.dumps(plain(observation), protocol=5)).digest()


def plain(value: Any) -> Any:
    """Equal for equal content: arrays by their bytes, so that NaN equals itself and -0.0 is not 0.0."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        content = [plain(item) for item in array.ravel().tolist()] if array.dtype.hasobject else array.tobytes()
        return (str(array.dtype), array.shape, content)
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return [(plain(key), plain(item)) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bytes | int):
        return value
    return type(value).__qualname__  # an object without a value of its own to compare


# ------------------------------------------------------------------------------------------- the process's generators


def process_generators() -> dict[str, Any]:
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}
    state["unseeded"] = get_unseeded()
    torch = sys.modules.get("torch")  # not imported here: what is not imported was not drawn from
    if torch is not None:
        state["torch"] = torch.get_rng_state().numpy().copy()
    return state


@contextlib.contextmanager
def undisturbed() -> Iterator[dict[str, Any]]:
    """Leaves these generators as they are: what users' code draws while its state is taken changes no training.

    :return: their state
    """
    before = process_generators()
    try:
        yield before
    finally:
        set_process_generators(before)


def set_process_generators(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    set_unseeded(state.get("unseeded"))  # which came later
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in state:
        torch.set_rng_state(torch.from_numpy(state["torch"].copy()))
