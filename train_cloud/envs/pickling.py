"""Environments' states as one pickle: what refers to a live environment there refers to the one restored into."""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium
import numpy as np

from train_cloud.envs.functions import is_local
from train_cloud.envs.make import Env
from train_cloud.envs.mujoco import arrays_of, get_data, is_data, made_data
from train_cloud.envs.parallel import Together, inside
from train_cloud.envs.pieces import Left, Taking, put_each

#: Their objects hold windows and surfaces; environments make new ones when they find None.
_VIEWERS = ("highway_env.envs.common.graphics", "highway_env.road.graphics", "moviepy", "pyglet",
            "gymnasium.envs.mujoco.mujoco_rendering", "gymnasium.envs.classic_control.rendering")  # fmt: skip

#: Attributes that say how an environment was made or where it writes: a fresh environment's own are right.
MADE_WITH = frozenset({"spec", "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs",
                       "results_writer", "mujoco_renderer"})  # fmt: skip
#: Contents of so many bytes and more are told from the pickle that they stand in. A pickler hands over at once what has
#: 64 KiB (an array's memory, a ``bytes``, a text), and all else in frames of 64 to 128 KiB.
LARGE_BYTES = 128 << 10
#: A view goes with the array that it is a view of if that is no larger than this, or than so many times the view.
_MOST_AROUND_BYTES, _TIMES = 1 << 20, 4
#: Environments in attributes of environments in attributes …
_DEEPEST = 8
_CHUNK = 64 << 20

Content: TypeAlias = "bytes | memoryview"


class Outermost(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Our own wrapper, which is not one of an environment's layers."""


def layers(env: Env) -> list[Env]:
    """The environment's layers, outermost first; our own wrapper is not one of them. Of several agents' environment
    those below :class:`Together` are PettingZoo's.
    """
    found: list[Env] = []
    several = False
    while True:
        if not isinstance(env, Outermost):
            found.append(env)
        several = several or isinstance(env, Together)
        within = env.env if isinstance(env, gymnasium.Wrapper) else inside(env) if several else None
        if within is None:
            return found
        env = within


@dataclass(frozen=True)
class Live:
    """Stands in a pickle before all else: parts of a layer that are pickled as references from here on.

    :param names: of the layer's attributes
    """

    layer: Any
    names: tuple[str, ...]


def has_own_getstate(layer: Env) -> bool:
    """Whether somebody wrote down how this class is pickled; EzPickle's way is not a state."""
    getstate, setstate = getattr(type(layer), "__getstate__", None), getattr(type(layer), "__setstate__", None)
    theirs = (getattr(object, "__getstate__", None), gymnasium.utils.EzPickle.__getstate__)
    return setstate is not None and getstate is not None and getstate not in theirs


_live: ContextVar[Sequence[Env]] = ContextVar("train_cloud_live_environments", default=())


def live_layer(env: int, layer: int) -> Env:
    return layers(_live.get()[env])[layer]


def content_of(holder: Any, stays: Collection[str]) -> dict[str, Any]:
    """Its attributes, less those that stay. Of functions that no module has, and that ``pickle`` refuses, it has the
    variables: a fresh one has the same functions.
    """
    taking = Taking(lambda value: check(value, [holder]))
    return {
        name: taking.take_function(value, name) if is_local(value) else value
        for name, value in vars(holder).items()
        if name not in stays
    }


def left_of_functions(holder: Any, stays: Collection[str]) -> list[Left]:
    """Variables of such functions that cannot be pickled either."""
    taking = Taking(lambda value: check(value, [holder]))
    for name, value in vars(holder).items():
        if name not in stays and is_local(value):
            taking.take_function(value, f"{type(holder).__qualname__}.{name}")
    return taking.left


def put_content(holder: Any, content: Mapping[str, Any], stays: Collection[str]) -> None:
    """The counterpart of :func:`content_of`: what was left out there stays as it is."""
    own = {
        name: value
        for name, value in vars(holder).items()
        if name in stays or (is_local(value) and name not in content)
    }
    vars(holder).clear()
    vars(holder).update(content)
    vars(holder).update(own)


# Functions that pickles name: their names and arguments are part of the checkpoint's format.


def _live_part(env: int, layer: int, name: str) -> Any:
    return getattr(live_layer(env, layer), name, None)  # none where a state is read without its program


def _live_array(env: int, layer: int, part: str, name: str, *how: Any) -> Any:
    whole = getattr(_live_part(env, layer, part), name, None)
    return _view(whole, *how)


def _view(whole: Any, offset: int, shape: Any, strides: Any, dtype: Any, writeable: bool) -> Any:
    """An array in the memory of another one."""
    if not isinstance(whole, np.ndarray):
        return whole  # a stand-in, where a state is read without its program
    made: Any = np.ndarray(shape, dtype, whole if whole.flags.c_contiguous else whole.T, offset, strides)
    if not writeable:
        made.flags.writeable = False
    return made


def _nested(env: int, layer: int, path: tuple[str, ...], kind: Any) -> Any:
    """An environment that a layer holds as an attribute; a new one where the live layer has none of its kind there."""
    found: Any = live_layer(env, layer)
    for name in path:
        found = vars(found).get(name) if hasattr(found, "__dict__") else None
    return found if type(found) is kind else kind.__new__(kind)


def _set_nested(env: Any, content: dict[str, Any]) -> None:
    put_content(env, put_each(dict(vars(env)), content), MADE_WITH)


def _set_plainly(obj: Any, state: Any) -> None:
    """As ``pickle`` does where there is no ``__setstate__``, without looking for one."""
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        object.__getattribute__(obj, "__dict__").update(attributes)
    for name, value in (slots or {}).items():
        object.__setattr__(obj, name, value)


def _generator(name: str) -> Any:
    """A generator of which a process has one: what it is at, is saved elsewhere."""
    return next(found for known, found in global_generators() if known == name)


def global_generators() -> Iterator[tuple[str, Any]]:
    """Those of which a process has one, by name."""
    yield "numpy", np.random.mtrand._rand
    yield "numpy.bits", np.random.mtrand._rand._bit_generator
    yield "python", vars(random)["_inst"]
    torch = sys.modules.get("torch")  # not imported here: where it is not, nothing refers to its generator
    if torch is not None:
        yield "torch", torch.default_generator


_asking: dict[Any, bool] = {}


def _asks_others(kind: Any) -> bool:
    """Whether objects of a class, when they are made anew, would be asked for a ``__setstate__`` before they have
    anything: what hands on all questions to another object, which it does not have yet, asks itself for ever.
    """
    if kind in _asking:
        return _asking[kind]
    plainly = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    asks = hasattr(kind, "__getattr__") and not hasattr(kind, "__setstate__")
    _asking[kind] = plainly and asks and not issubclass(kind, type)
    return _asking[kind]


class Pickler(pickle.Pickler):
    """Pickles states of live environments: what refers back to an environment will refer to the one restored into.

    :param envs: the environments whose states are pickled, in the order in which :func:`loads` gets theirs
    """

    def __init__(self, file: Any, envs: Sequence[Env] = ()) -> None:
        super().__init__(file, protocol=5)
        self._layers = {id(layer): (i, j) for i, env in enumerate(envs) for j, layer in enumerate(layers(env))}
        self._parts: dict[int, tuple[int, int, str]] = {}
        self._generators = {id(found): name for name, found in global_generators()}
        self._memory: list[tuple[int, int, tuple[int, int, str, str]]] = []
        self._nested: dict[int, tuple[int, int, tuple[str, ...], type]] = {}
        for i, env in enumerate(envs):
            for j, layer in enumerate(layers(env)):
                self._find_nested((i, j), layer, ())

    def _find_nested(self, place: tuple[int, int], holder: Any, path: tuple[str, ...]) -> None:
        for name, value in vars(holder).items():
            known = id(value) in self._layers or id(value) in self._nested
            if isinstance(value, gymnasium.Env) and not known and not isinstance(value, Outermost):
                if has_own_getstate(value):
                    continue
                self._nested[id(value)] = (*place, (*path, name), type(value))
                if len(path) < _DEEPEST:
                    self._find_nested(place, value, (*path, name))

    def reducer_override(self, obj: Any) -> Any:
        if id(obj) in self._layers:
            return live_layer, self._layers[id(obj)]
        if id(obj) in self._parts:
            return _live_part, self._parts[id(obj)]
        if id(obj) in self._generators:
            return _generator, (self._generators[id(obj)],)
        if type(obj) is Live:
            if id(obj.layer) not in self._layers:
                return type(None), ()
            place = self._layers[id(obj.layer)]
            for name in obj.names:
                part = getattr(obj.layer, name)
                self._parts[id(part)] = (*place, name)
                for inner, array in arrays_of(part):
                    if array.flags.c_contiguous:
                        start = _address(array)
                        self._memory.append((start, start + array.nbytes, (*place, name, inner)))
            return type(None), ()
        if type(obj) is np.ndarray:
            return self.reduce_view(obj)
        if id(obj) in self._nested:
            return _nested, self._nested[id(obj)], content_of(obj, MADE_WITH), None, None, _set_nested
        if is_data(obj):  # its own way of being pickled has more in it than what it computes with
            return made_data, (obj.model, *get_data(obj))
        module = getattr(type(obj), "__module__", None) or ""  # SWIG's types have none
        if module.startswith(_VIEWERS):
            return type(None), ()
        if module.startswith("pygame"):
            try:
                obj.__reduce_ex__(5)
            except (TypeError, pickle.PickleError):
                return type(None), ()
        if _asks_others(type(obj)):
            make, arguments, state, *items = obj.__reduce_ex__(5)
            return make, arguments, state, *(*items, None, None)[:2], _set_plainly
        return NotImplemented

    def reduce_view(self, array: Any) -> Any:
        """What is written into the one shows in the other: a view stays one."""
        whole = array.base
        if array.flags.owndata or array.dtype.hasobject or array.size == 0:
            return NotImplemented
        how = array.shape, array.strides, array.dtype, array.flags.writeable
        address = _address(array)
        for start, end, place in self._memory:
            if start <= address < end:
                return _live_array, (*place, address - start, *how)
        if type(whole) is not np.ndarray or whole.dtype.hasobject:
            return NotImplemented
        if not whole.flags.owndata and type(getattr(whole.base, "obj", None)) not in (bytearray, bytes):
            return NotImplemented  # nor was it restored, which leaves it such a memory
        if whole.nbytes > max(_MOST_AROUND_BYTES, _TIMES * array.nbytes) or not whole.flags.forc:
            return NotImplemented
        return _view, (whole, address - _address(whole), *how)


def _address(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class Stream:
    """A file that a pickler writes to, which keeps large contents out of the pickle.

    :param take: called with the content of each large object, which may change as soon as it returns; only ``bytes``
        never do. What it returns is kept in its place.
    :ivar at: where in the pickle the contents belong
    :ivar large: what ``take`` has returned for each
    """

    def __init__(self, take: Callable[[Content], Any]) -> None:
        self._rest = io.BytesIO()
        self._take = take
        self.at: list[int] = []
        self.large: list[Any] = []

    def write(self, data: Any) -> int:
        size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        if size < LARGE_BYTES:
            return self._rest.write(data)
        self.at.append(self._rest.tell())
        if isinstance(data, bytes):
            self.large.append(self._take(data))
        else:
            # Given back at once: memory that somebody looks at cannot grow, as the environment's next step may want.
            with pickle.PickleBuffer(data).raw() as content:
                self.large.append(self._take(content))
        return size

    def rest(self) -> bytes:
        """The pickle without large contents."""
        return self._rest.getvalue()


@dataclass(frozen=True)
class Sections:
    """A pickle of which large contents were kept out.

    :ivar rest: the pickle without them
    :ivar at: where in it they belong
    :ivar large: they themselves
    """

    rest: bytes
    at: Sequence[int]
    large: Sequence[Any]

    def whole(self) -> list[Any]:
        """What the pickle is the sequence of."""
        found: list[Any] = []
        begin, rest = 0, memoryview(self.rest)
        for end, content in zip(self.at, self.large, strict=True):
            found += rest[begin:end], content
            begin = end
        return [*found, rest[begin:]]


def dumps(obj: object, envs: Sequence[Env] = ()) -> bytes:
    """One pickle of ``obj``, in which states of ``envs`` may stand anywhere: shared objects stay shared."""
    file = io.BytesIO()
    Pickler(file, envs).dump(obj)
    return file.getvalue()


def dumps_apart(obj: object, known: Collection[str], envs: Sequence[Env] = ()) -> tuple[bytes | Sections, list[str]]:
    """The same, for another process that has some large contents already.

    :param known: names of these
    :return: the pickle; where something in it is large, None in the place of what is known, or comes twice; and the
        names of what is large in it, in order
    """
    names: list[str] = []

    def take(content: Content) -> bytes | None:
        name = content_name(content)
        again = name in known or name in names
        names.append(name)
        return None if again else bytes(content)

    stream = Stream(take)
    Pickler(stream, envs).dump(obj)
    return (Sections(stream.rest(), stream.at, stream.large) if names else stream.rest()), names


def check(obj: object, envs: Sequence[Env] = ()) -> None:
    """Whether it can be pickled, without copies of what is large.

    :raises Exception: it cannot
    """
    Pickler(Stream(len), envs).dump(obj)


def fingerprint(obj: object, envs: Sequence[Env] = ()) -> tuple[bytes, int]:
    """Equal for equal content, as far as a pickle tells, and the size of that pickle without large contents, which are
    only read.
    """
    stream = Stream(checksum)
    Pickler(stream, envs).dump(obj)
    rest = stream.rest()
    marks = b"".join(mark.to_bytes(8, "little") for mark in stream.large)
    return hashlib.blake2b(rest + marks, digest_size=16).digest(), len(rest)


def checksum(content: Content) -> int:
    """CRC-64/NVME: 30 GB/s."""
    from awscrt import checksums

    value, whole = 0, memoryview(content)
    for start in range(0, whole.nbytes, _CHUNK):
        value = checksums.crc64nvme(whole[start : start + _CHUNK], value)
    return value


def content_name(content: Content) -> str:
    """The same for equal contents, and for others that meet by accident in one of 2 to the 64 cases."""
    return f"{checksum(content):016x}-{memoryview(content).nbytes}"


class _Joined(io.RawIOBase):
    """A file of several contents."""

    def __init__(self, contents: Sequence[Any]) -> None:
        self._left = [memoryview(content).cast("B") for content in reversed(contents) if len(content)]

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        if not self._left:
            return 0
        content = self._left.pop()
        count = min(len(target), len(content))
        target[:count] = content[:count]
        if count < len(content):
            self._left.append(content[count:])
        return count


def loads(blob: bytes | Sections, envs: Sequence[Env] = ()) -> Any:
    """The counterpart of :func:`dumps`; ``envs`` are the live environments that the states are for. All arrays have
    memory of their own.
    """
    token = _live.set(envs)
    try:
        if isinstance(blob, Sections):
            return pickle.load(io.BufferedReader(_Joined(blob.whole())))
        return pickle.loads(blob)
    finally:
        _live.reset(token)
