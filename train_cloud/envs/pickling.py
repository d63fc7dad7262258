"""Environments' states as one pickle: what refers to a live environment there refers to the one restored into."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import gymnasium

from train_cloud.envs.make import Env
from train_cloud.envs.parallel import Together, inside

#: Their objects hold windows and surfaces; environments make new ones when they find None.
_VIEWERS = ("highway_env.envs.common.graphics", "highway_env.road.graphics", "moviepy", "pyglet",
            "gymnasium.envs.mujoco.mujoco_rendering", "gymnasium.envs.classic_control.rendering")  # fmt: skip

LARGE_BYTES = 64 << 10
_CHUNK = 64 << 20


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


_live: ContextVar[Sequence[Env]] = ContextVar("train_cloud_live_environments", default=())


def live_layer(env: int, layer: int) -> Env:
    return layers(_live.get()[env])[layer]


class Pickler(pickle.Pickler):
    """Pickles states of live environments: what refers back to an environment will refer to the one restored into.

    :param envs: the environments whose states are pickled, in the order in which :func:`loads` gets theirs
    """

    def __init__(
        self,
        file: io.BytesIO,
        envs: Sequence[Env] = (),
        buffer_callback: Callable[[pickle.PickleBuffer], object] | None = None,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._layers = {id(layer): (i, j) for i, env in enumerate(envs) for j, layer in enumerate(layers(env))}

    def reducer_override(self, obj: Any) -> Any:
        if id(obj) in self._layers:
            return live_layer, self._layers[id(obj)]
        module = getattr(type(obj), "__module__", None) or ""  # SWIG's types have none
        if module.startswith(_VIEWERS):
            return type(None), ()
        if module.startswith("pygame"):
            try:
                obj.__reduce_ex__(5)
            except (TypeError, pickle.PickleError):
                return type(None), ()
        return NotImplemented


def dumps(obj: object, envs: Sequence[Env] = (), large: list[memoryview] | None = None) -> bytes:
    """One pickle of ``obj``, in which states of ``envs`` may stand anywhere: shared objects stay shared.

    :param large: takes the content of arrays of ``LARGE_BYTES`` and more, as it is in memory now; it is not in the
        pickle then
    """
    file = io.BytesIO()

    def keep_out(buffer: pickle.PickleBuffer) -> bool:
        assert large is not None
        raw = buffer.raw()
        if raw.nbytes < LARGE_BYTES:
            return True
        large.append(raw)
        return False

    Pickler(file, envs, None if large is None else keep_out).dump(obj)
    return file.getvalue()


def fingerprint(obj: object, envs: Sequence[Env] = ()) -> tuple[bytes, int]:
    """Equal for equal content, as far as a pickle tells, and the size of that pickle without large arrays, which are
    only read.
    """
    large: list[memoryview] = []
    blob = dumps(obj, envs, large)
    marks = b"".join(checksum(content).to_bytes(8, "little") for content in large)
    return hashlib.blake2b(blob + marks, digest_size=16).digest(), len(blob)


def checksum(content: memoryview) -> int:
    """CRC-64/NVME: 20 GB/s and more."""
    from awscrt import checksums

    value = 0
    for start in range(0, content.nbytes, _CHUNK):
        value = checksums.crc64nvme(content[start : start + _CHUNK], value)
    return value


def loads(blob: bytes, envs: Sequence[Env] = (), large: Iterable[Any] = ()) -> Any:
    """The counterpart of :func:`dumps`; ``envs`` are the live environments that the states are for.

    :param large: the content of large arrays, in order, which the arrays will use as their own
    """
    token = _live.set(envs)
    try:
        return pickle.loads(blob, buffers=large)
    finally:
        _live.reset(token)
