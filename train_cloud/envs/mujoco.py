"""What MuJoCo computes with and has computed, as arrays: of its model and of its data.

MuJoCo itself is never imported here: without it no such object exists.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

#: Sized anew at every step by the number of constraints and contacts, and computed before they are read.
_PER_STEP = (
    "efc",
    "iefc",
    "iacc",
    "ifrc",
    "efm",
    "map_",
    "island",
    "tree_",
    "dof_island",
    "ten_wrap",
    "ten_J",
    "wrap_",
)


def is_data(obj: Any) -> bool:
    """Whether it is an ``MjData``."""
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(obj, getattr(mujoco, "MjData", ()))


def compared(obj: Any) -> tuple[Any, ...] | None:
    """What tells an ``MjData`` or an ``MjModel`` from another one; None of anything else. As a pickle has them they
    hold readings of clocks, and memory that nobody has written to.
    """
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and isinstance(obj, getattr(mujoco, "MjModel", ())):
        return get_model(obj)
    return (obj.model, *get_data(obj)) if is_data(obj) else None


def get_data(data: Any) -> tuple[Any, dict[str, Any]]:
    """``mjSTATE_INTEGRATION``, and what the last step derived."""
    mujoco, model = sys.modules["mujoco"], data.model
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    derived = {
        name: value.copy()
        for name in dir(data)
        if not name.startswith(("_", *_PER_STEP)) and isinstance(value := getattr(data, name), np.ndarray)
    }
    return state, derived


def arrays_of(part: Any) -> Iterator[tuple[str, Any]]:
    """Names and arrays of a model or data: what an environment keeps of these is a view, not a copy."""
    for name in dir(part):
        if not name.startswith("_") and isinstance(value := getattr(part, name, None), np.ndarray) and value.size:
            yield name, value


def set_data(data: Any, state: Any, derived: dict[str, Any]) -> None:
    """The counterpart of :func:`get_data`."""
    mujoco = sys.modules["mujoco"]
    mujoco.mj_setState(data.model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, value in derived.items():
        live = getattr(data, name)
        if live.shape == value.shape and live.flags.writeable:
            live[...] = value


def made_data(model: Any, state: Any, derived: dict[str, Any]) -> Any:
    """Data of its own, made from what :func:`get_data` gave. Pickles name this function."""
    mujoco = importlib.import_module("mujoco")
    if not isinstance(model, mujoco.MjModel):
        return state, derived  # the model is a live part, and its program is not alive here
    data = mujoco.MjData(model)
    set_data(data, state, derived)
    return data


#: Name, type, shape and place of each array, and plain values by name; and the arrays' bytes.
Packed = tuple[bytes, np.ndarray[Any, Any]]


def get_model(model: Any) -> Packed:
    """Everything that a program may change in an ``MjModel``: masses, friction, gravity, …"""
    arrays, plain_values = {}, {}
    for prefix, owner in (("", model), ("opt.", model.opt)):
        for name in dir(owner):
            value = None if name.startswith("_") else getattr(owner, name, None)
            if isinstance(value, np.ndarray):
                arrays[prefix + name] = value
            elif prefix and isinstance(value, int | float):
                plain_values[prefix + name] = value
    places, offset = [], 0
    for name, found in arrays.items():
        places.append((name, found.dtype.str, found.shape, offset))
        offset += found.nbytes
    content = np.frombuffer(b"".join(found.tobytes() for found in arrays.values()), np.uint8).copy()
    return pickle.dumps((places, plain_values)), content


def set_model(model: Any, packed: Packed) -> None:
    (places, plain_values), content = pickle.loads(packed[0]), packed[1]
    for name, dtype, shape, offset in places:
        live = _of_model(model, name)
        size = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        value = content[offset : offset + size].view(dtype).reshape(shape)
        if live is not None and live.shape == shape and live.dtype.str == dtype and not np.array_equal(live, value):
            live[...] = value
    for name, number in plain_values.items():
        if _of_model(model, name) not in (None, number):
            setattr(model.opt, name.partition(".")[2], number)


def _of_model(model: Any, name: str) -> Any:
    return getattr(model.opt, name[4:], None) if name.startswith("opt.") else getattr(model, name, None)
