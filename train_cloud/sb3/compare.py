"""Whether two runs ended in the same state, bit for bit."""

from __future__ import annotations

import os
import pickle
import re
import struct
import tempfile
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from train_cloud.child_process import code_on_path
from train_cloud.envs import mujoco
from train_cloud.envs.make import FAILURES
from train_cloud.envs.pickling import Sections
from train_cloud.envs.state import dumps, loads
from train_cloud.sb3.pickling import UNNAMED, Nowhere, StandIn, as_numpy, read
from train_cloud.snapshot import Array, Part, Rows, Snapshot

#: Readings of a clock: when something happened, which acts on nothing. And the process's number.
_CLOCKS = re.compile(r"_?pid|t|t_start|episode_times|time_queue|(\w+_)?start_times?")
#: SB3 draws an image from the space, unseeded, to size a network. Where an environment draws from it, its observations
#: show that.
_DRAWN_FROM_ONCE = "observation_space"
_DEEPEST = 40
_SHOWN = 100
#: Keys that are found by what they are, and not by what they hold: an optimiser's state has them.
_BY_IDENTITY = (torch.Tensor, torch.nn.Parameter)


def differences(left: Snapshot, right: Snapshot, code: Path | None = None) -> list[str]:
    """Where two snapshots differ: tensors, optimizer states, replay rows, normaliser, generators, environments, pending
    scalars, callbacks. Clocks and ``time/*`` scalars are left out. Empty means equal bit for bit.

    Reads the rows of both, which can be done once.

    :param code: the run's code folder: states may have objects of its classes
    """
    with code_on_path(code):
        return _differences(left, right)


def _differences(left: Snapshot, right: Snapshot) -> list[str]:
    found = [] if left.timesteps == right.timesteps else [f"timesteps: {left.timesteps} and {right.timesteps}"]
    for name in sorted({*left.parts, *right.parts}):
        if name.rpartition("/")[2] == "model":
            own = [_named(snapshot.parts[name]) if name in snapshot.parts else {} for snapshot in (left, right)]
            found += _compare(f"tensors{name.removesuffix('model')}", *own)
            parts = [snapshot.parts.get(name, Part()) for snapshot in (left, right)]
            if any(part.blob for part in parts):  # of several agents it is in one of the parts, each rank has its own
                found += _states(name.removesuffix("model"), *parts)
    for name in sorted({*left.streams, *right.streams}):
        if name not in left.streams or name not in right.streams:
            found.append(f"rows {name}: only in one")
            continue
        found += _compare(f"rows {name}", _whole(left.streams[name]), _whole(right.streams[name]))
    return found


def _states(prefix: str, left: Part, right: Part) -> list[str]:
    """:param prefix: of the part's name; empty where there is only one"""
    if not left.blob or not right.blob:
        return [f"{prefix}state: only in one"]
    states = [read_state(part) for part in (left, right)]
    for state in states:
        state["objects"] = {path: content for path, _, content in state.get("objects", ())}
        state["logger"] = [
            {name: value for name, value in pending.items() if not name.startswith("time/")}
            for pending in state["logger"]
        ]
    # Lists are there so that the live ones are filled again; what they hold is compared where it is referred to. One
    # that nothing refers to any more is in the state of the session that found it, and in no other's.
    both = set.intersection(*({*state.get("lists", {})} for state in states))
    for state in states:
        state["lists"] = {path: state["lists"][path] for path in both}
    return _compare(f"{prefix}state", *states)


def read_state(part: Part) -> dict[str, Any]:
    """What a part ``model`` has besides the model's tensors, read where its program is not alive: references are
    stand-ins, and so are objects of classes that cannot be imported.
    """
    nowhere = Nowhere(part.arrays)
    state: dict[str, Any] = read(part.blob, AnyEnvironment(), nowhere)
    # Of values that were there when a session began, those that nothing refers to any more are no state.
    values = ("array", "items", "object")
    kept = [(path, kind, one) for path, kind, one in state.get("objects", ()) if kind not in values or path in nowhere]
    return {**state, "objects": kept}


def _named(part: Part) -> dict[str, Array]:
    """Without those that are numbered as they were met; they are compared where the state refers to them."""
    return {name: array for name, array in part.arrays.items() if not name.startswith(UNNAMED)}


class _AnyLayer(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Has whatever a state refers to: its layer's methods, and what the layer holds."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)


class AnyEnvironment(Sequence[Any]):
    """Stands for the live environments that a state refers to."""

    def __init__(self) -> None:
        self._env: gymnasium.Env[Any, Any] = gymnasium.Env()
        for _ in range(_DEEPEST):
            self._env = _AnyLayer(self._env)

    def __len__(self) -> int:
        return _DEEPEST

    def __getitem__(self, index: Any) -> Any:
        return self._env


def _whole(rows: Rows) -> dict[str, Any]:
    columns: dict[str, list[Array]] = {}
    for _, chunk in rows.chunks:
        for name, column in chunk.items():
            columns.setdefault(name, []).append(column)
    return {"last": rows.last, **{name: np.concatenate(parts) for name, parts in columns.items()}}


def _generator_state(generator: np.random.Generator | np.random.RandomState) -> Any:
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


def _compare(where: str, left: Any, right: Any) -> list[str]:
    return list(_walk(where, left, right, {}))


def _short(value: object) -> str:
    """Of a text or bytes that may be long."""
    text = repr(value[:_SHOWN] if isinstance(value, str | bytes) else value)
    return text + (f" … ({len(value):,})" if isinstance(value, str | bytes) and len(value) > _SHOWN else "")


def _is_pickle(content: bytes) -> bool:
    """Of ours; an array's bytes may begin like one."""
    return content[:2] == pickle.PROTO + b"\x05" and content[-1:] == pickle.STOP


def _is_temporary(left: object, right: object) -> bool:
    """Whether both name a temporary file or folder: each process has its own."""
    folder = tempfile.gettempdir() + os.sep
    return all(isinstance(name, str) and name.startswith(folder) for name in (left, right))


def _is_by_identity(key: Any) -> bool:
    """Whether a key equals no other object, so that two dicts can only be compared in their order."""
    compares: object = type(key).__eq__
    return type(key) in _BY_IDENTITY or compares is object.__eq__


def _in_parts(left: Any, right: Any) -> tuple[Any, Any] | None:
    """What is pickled of two objects that say how."""
    ours = mujoco.compared(left)
    if ours is not None:
        return ours, mujoco.compared(right)
    kind: Any = type(left)
    ways = ("__reduce_ex__", "__reduce__", "__getstate__")
    own = [getattr(kind, name, None) for name in ways if getattr(kind, name, None) is not getattr(object, name, None)]
    if not own or gymnasium.utils.EzPickle.__getstate__ in own or isinstance(left, list | tuple | deque):
        return None
    try:
        return left.__reduce_ex__(5), right.__reduce_ex__(5)
    except FAILURES:
        return None


def _walk(where: str, left: Any, right: Any, seen: dict[tuple[int, int], Any]) -> Iterator[str]:
    if (id(left), id(right)) in seen or isinstance(left, _AnyLayer):
        return
    if isinstance(left, types.ModuleType):
        return
    if isinstance(left, StandIn) or isinstance(right, StandIn):
        if left != right:
            yield f"{where}: {left!r} and {right!r}"
        return
    seen[id(left), id(right)] = left, right  # which stay alive: nothing else gets their numbers
    if type(left) is not type(right):
        yield f"{where}: {type(left).__name__} and {type(right).__name__}"
    elif isinstance(left, torch.Tensor):
        if left.dtype is not right.dtype or left.requires_grad is not right.requires_grad:
            yield f"{where}: {left.dtype} and {right.dtype}, gradients {left.requires_grad} and {right.requires_grad}"
        else:
            one, other = (as_numpy(tensor.detach().cpu()).numpy() for tensor in (left, right))
            yield from _walk(where, one, other, seen)
        return
    elif isinstance(left, np.ndarray):
        if left.shape != right.shape or left.dtype != right.dtype:
            yield f"{where}: {left.dtype}{left.shape} and {right.dtype}{right.shape}"
        elif left.dtype.hasobject:
            yield from _walk(where, left.tolist(), right.tolist(), seen)
        elif left.tobytes() != right.tobytes():
            yield f"{where}: {int((left != right).sum())} of {left.size} values differ"
    elif isinstance(left, float):
        if struct.pack("d", left) != struct.pack("d", right):
            yield f"{where}: {left!r} and {right!r}"
    elif isinstance(left, np.generic):
        if left.tobytes() != right.tobytes():
            yield f"{where}: {left!r} and {right!r}"
    elif isinstance(left, np.random.Generator | np.random.RandomState):
        yield from _walk(where, _generator_state(left), _generator_state(right), seen)
    elif isinstance(left, Mapping) and any(map(_is_by_identity, left)):
        yield from _walk(where, list(left.items()), list(right.items()), seen)
    elif isinstance(left, Mapping):
        for key in sorted({*left, *right}, key=repr):
            if (isinstance(key, str) and _CLOCKS.fullmatch(key)) or key == _DRAWN_FROM_ONCE:
                continue
            if key not in {*left} & {*right}:  # "in" asks a Dict space for its members
                yield f"{where}.{key}: only in one"
            else:
                yield from _walk(f"{where}.{key}", left[key], right[key], seen)
    elif isinstance(left, set | frozenset):
        if left != right:
            yield f"{where}: {left!r} and {right!r}"
    elif isinstance(left, Sections) or (isinstance(left, bytes) and _is_pickle(left) and _is_pickle(right)):
        # an environment's state from its own process, or what a replay begins with: it may hold clocks
        one, other = (loads(blob, AnyEnvironment()) for blob in (left, right))
        yield from _walk(where, one, other, seen)
        return
    elif callable(left):
        pass
    elif isinstance(left, str | bytes | int | type(None)):
        if left != right and not _is_temporary(left, right):
            yield f"{where}: {_short(left)} and {_short(right)}"
    elif callable(equals := getattr(left, "equals", None)) and hasattr(left, "__len__"):
        if len(left) != len(right) or not equals(right):  # a table; a comparison gives as many answers as it has values
            yield f"{where}: the {type(left).__name__} has other values"
        return
    elif (parts := _in_parts(left, right)) is not None:
        yield from _walk(where, *parts, seen)
        return
    elif hasattr(left, "__iter__") and hasattr(left, "__len__"):
        if len(left) != len(right):
            yield f"{where}: {len(left)} and {len(right)} items"
        for index, (one, other) in enumerate(zip(left, right, strict=False)):
            yield from _walk(f"{where}[{index}]", one, other, seen)
    elif not hasattr(left, "__dict__") and dumps(left) != dumps(right):
        yield f"{where}: the {type(left).__name__} of an extension has another state"
    if isinstance(getattr(left, "__dict__", None), dict) and not callable(left):
        yield from _walk(where, vars(left), getattr(right, "__dict__", None), seen)
