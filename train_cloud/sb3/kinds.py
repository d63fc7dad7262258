"""What the state of an object consists of, by its kind; how it is taken, and put back into the very object."""

from __future__ import annotations

import collections
import copyreg
import enum
import functools
import io
import operator
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path, PurePath
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from train_cloud.config.shapes import Section
from train_cloud.installed import is_installed
from train_cloud.sb3.pickling import ATOMIC, LEFT, Value, children, for_each_class, is_output, slots_of

#: Of a callback: links to other objects, and SB3's view of its own local variables, which it renews before each call.
OF_A_CALLBACK = frozenset(
    {"model", "locals", "globals", "parent", "callback", "callbacks", "callback_on_new_best", "verbose"}
)
#: Libraries whose classes are as they are in every session.
_STOCK = ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "numpy", "train_cloud")
#: Of the standard library and others: Python objects around a lock, whose attributes are their state.
_OPEN = (*_STOCK, "threading", "queue", "dataclasses")
SCHEDULES = (FloatSchedule, ConstantSchedule, LinearSchedule)
#: What a process has and a file cannot hold. One of the same kind at the same place does the same.
HANDLES = (io.IOBase, socket.socket, threading.Thread, subprocess.Popen, Executor, type(threading.Lock()),
            type(threading.RLock()))  # fmt: skip
#: SB3's own action distributions: computed anew before each use, but for gSDE's matrices, which the capture knows.
_DERIVED = ("stable_baselines3.common.distributions", "sb3_contrib.common.maskable.distributions")
_GENERATORS = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator, random.Random)
_ITEMS = (collections.deque, collections.OrderedDict, collections.defaultdict, collections.Counter)
LISTS = (list, dict, set)

_OF_TORCH = frozenset(vars(torch.nn.Module())) - {"training"} | {
    "_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights"}  # fmt: skip
_PARTS_OF_A_MODULE = ("_parameters", "_buffers", "_modules")
_HOOKS = tuple(name for name, value in vars(torch.nn.Module()).items() if name.endswith("_hooks") and value is not None)
_OF_AN_OPTIMIZER = frozenset({"state", "param_groups", "defaults"})


WITH_STATE = frozenset({"object", "items", "array", "generator", "tensor", "module", "buffer", "optimizer", "function",
                         "file"})  # fmt: skip
LIST_KINDS = ("list", "dict", "set")


class Changes:
    """An object's own attributes, as they were found.

    :param skipped: attributes that somebody else saves, or that are computed before they are read
    :param all_of_it: whether every attribute is state; of classes of a library, only what differs
    """

    def __init__(self, obj: Any, skipped: frozenset[str], all_of_it: bool) -> None:
        self._dict, self._skipped, self._all = vars(obj), skipped, all_of_it
        names = [name for name in self._dict if name not in skipped]
        self._users = [name for name in names if not all_of_it and is_own(type(self._dict[name]))]
        self._names = [name for name in names if name not in self._users]
        self._count = len(self._dict)
        self._values = [_copied(self._dict[name]) for name in self._names]
        self._get = operator.itemgetter(*self._names, *self._names[:1]) if self._names else lambda values: ()
        self._before = self._get(dict(zip(self._names, self._values, strict=True)))

    def now(self) -> dict[str, Any] | None:
        """The attributes that a fresh one does not have by itself; None where there are none."""
        d = self._dict
        if self._all:
            return {name: value for name, value in d.items() if name not in self._skipped} or None
        try:
            same = len(d) == self._count and self._get(d) == self._before
        except (ValueError, RuntimeError, KeyError):  # arrays and tensors have no one truth value
            same = False
        if same and not self._users:
            return None
        before = dict(zip(self._names, self._values, strict=True))
        found = {
            name: value
            for name, value in d.items()
            if name not in self._skipped and not _is_equal(value, before.get(name, LEFT))
        }
        return found or None


class ModuleChanges(Changes):
    """A ``torch.nn.Module``: its attributes and what it consists of. Parameters and buffers are tensors like others."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module, _OF_TORCH, not is_stock(type(module)))
        hooks = [name for name in _HOOKS if name in self._dict]
        self._hooks = operator.itemgetter(*hooks, *hooks[:1]) if hooks else lambda values: ()
        self._parts, self._hooked = self._structure(), self._counts()

    def _structure(self) -> list[Any]:
        d = self._dict
        return [*d["_parameters"].values(), *d["_buffers"].values(), *d["_modules"].values()]

    def _counts(self) -> list[int]:
        hooks = self._hooks(self._dict)
        return [*map(len, hooks)] if any(hooks) else []

    def _is_as_found(self) -> bool:
        parts = self._structure()
        same = len(parts) == len(self._parts) and all(map(operator.is_, parts, self._parts))
        return same and len(self._dict) == self._count and self._counts() == self._hooked

    def now(self) -> dict[str, Any] | None:
        found = super().now()
        if self._is_as_found():
            return found
        return {**(found or {}), **{name: dict(self._dict[name]) for name in (*_PARTS_OF_A_MODULE, *_HOOKS)}}


def _copied(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return {key: _copied(item) for key, item in value.items()} if type(value) is dict else value


def _is_equal(left: Any, right: Any) -> bool:
    if left is right:
        return True
    try:
        return type(left) is type(right) and bool(left == right)
    except (ValueError, RuntimeError):
        return False


# ------------------------------------------------------------------------------------------------------------- kinds


def kind_of(obj: Any) -> str | None:
    """What an object's state consists of; ``value`` where only pickling tells, ``through`` where it is that of what it
    holds, None where it has none.
    """
    if isinstance(obj, type):
        return "class" if is_own(obj) and not issubclass(obj, enum.Enum) else None
    if isinstance(obj, io.IOBase) and not isinstance(obj, io.BytesIO | io.StringIO):
        return "handle" if obj.closed or obj.writable() else "file"
    return _kind_of_class(type(obj))


@for_each_class
def _kind_of_class(kind: Any) -> str | None:
    if kind in ATOMIC or issubclass(kind, int | float | str | bytes | complex | enum.Enum | np.generic | PurePath):
        return None
    if kind in LISTS:
        return str(kind.__name__)
    if issubclass(kind, tuple | frozenset | functools.partial | types.MethodType):
        return "through"
    for parents, name in (
        (np.ndarray, "array"),
        (torch.Tensor, "tensor"),
        (torch.nn.Module, "module"),
        (torch.optim.Optimizer, "optimizer"),
        (_GENERATORS, "generator"),
        (types.FunctionType, "function"),
        (VecEnv | gymnasium.Env, "environment"),
        (BaseCallback, "object"),
        (gymnasium.Space, "object"),  # with a generator, which all who have the space draw from
    ):
        if issubclass(kind, parents):
            return name
    if issubclass(kind, io.BytesIO | io.StringIO):
        return "value"
    if issubclass(kind, Section):
        return "configuration"
    if is_output(kind) or issubclass(kind, HANDLES) or kind.__module__ in _DERIVED:
        return "handle"
    if kind in _ITEMS or (issubclass(kind, _ITEMS) and is_own(kind)):
        return "items"
    root = (kind.__module__ or "").split(".")[0]
    return "object" if (is_own(kind) or root in _OPEN) and _plainly_pickled(kind) else "value"


def _plainly_pickled(kind: type) -> bool:
    """Whether a Python class's objects are their attributes and slots, and perhaps items of a list, dict or set, and
    nobody has written down another way to pickle them. EzPickle's way is none.
    """
    easily = gymnasium.utils.EzPickle
    if kind.__flags__ & 1 << 9 == 0 or kind in copyreg.dispatch_table:  # Py_TPFLAGS_HEAPTYPE
        return False
    for name in ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__"):
        own = getattr(kind, name, None)
        if own not in (getattr(object, name, None), getattr(easily, name, None) if issubclass(kind, easily) else None):
            return False
    for parent in kind.__mro__:
        if parent not in (object, *LISTS) and "__module__" not in vars(parent):
            return False  # of an extension: it may have state that no attribute shows
    return not issubclass(kind, BaseException)


@for_each_class
def is_own(kind: Any) -> bool:
    """Whether the class is of the user's own code."""
    return is_own_module(getattr(kind, "__module__", None) or "")


def is_stock(kind: type) -> bool:
    return (kind.__module__ or "").split(".")[0] in _STOCK


_main: list[str] = []


def count_main() -> None:
    """From now on a script that runs as ``__main__`` counts as the user's own code, as the modules that it imports do:
    of a script in one file, classes and global variables are there.
    """
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if isinstance(path, str) and path.endswith(".py") and Path(path).is_absolute() and not is_installed(path):
        _main[:] = [] if Path(path).is_relative_to(Path(__file__).parent.parent) else [path]


def is_own_module(name: str) -> bool:
    """Whether it is of the user's own code; see :func:`count_main`."""
    return bool(_main) if name == "__main__" else _is_own_module(name)


@functools.cache
def _is_own_module(name: str) -> bool:
    """A module that is neither part of Python nor installed, nor ours."""
    root = name.split(".")[0]
    if root in ("builtins", "__main__", "__mp_main__", "train_cloud", "") or root in sys.stdlib_module_names:
        return False
    path = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(path, str) or not Path(path).is_absolute():
        return False
    return root in _of_environments or not is_installed(path)


#: Installed packages whose classes and modules are looked at as the user's own are.
_of_environments: set[str] = set()


def also_own(packages: Collection[str]) -> None:
    """From now on these count as the user's own code: environments come from them."""
    if not _of_environments.issuperset(packages):
        _of_environments.update(packages)
        cached: tuple[Any, ...] = (is_own, _is_own_module, _kind_of_class)
        for function in cached:
            function.cache_clear()


def own_modules() -> list[str]:
    return sorted(name for name in list(sys.modules) if is_own_module(name))


def is_importable(obj: Any) -> bool:
    """Whether it is a class or a function that pickle finds by its name."""
    if not isinstance(obj, type | types.FunctionType):
        return False
    found: Any = sys.modules.get(obj.__module__ or "")
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def has_state(function: types.FunctionType) -> bool:
    """Whether a function has values of its own, which may change."""
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    changing = any(kind_of(value) is not None for value in defaults)
    return changing or bool(vars(function)) or any(name != "__class__" for name in function.__code__.co_freevars)


def function_state(function: types.FunctionType) -> Any:
    cells = [_cell_content(cell) for cell in function.__closure__ or ()]
    return cells, function.__defaults__, function.__kwdefaults__, dict(vars(function))


def variables_of(function: types.FunctionType) -> list[Any]:
    """What :func:`function_state` consists of, in one list."""
    given = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*given, *map(_cell_content, function.__closure__ or ()), *vars(function).values()]


_CODE: tuple[type, ...] = (
    types.ModuleType, types.BuiltinFunctionType, property, staticmethod, classmethod, types.GetSetDescriptorType,
    types.MemberDescriptorType, functools.cached_property, functools._lru_cache_wrapper,
    type(vars(collections.namedtuple("_Pair", "first"))["first"]), np.ufunc, type(np.median), struct.Struct, re.Pattern,
)  # fmt: skip
#: Nothing in an object of these ever changes.
CONSTANT = ATOMIC | {np.ufunc, type(np.median), struct.Struct, re.Pattern}


#: What ``torch.compile`` leaves among the globals of the code that it has compiled.
_OF_THE_COMPILER = re.compile(r"__(compiled_fn|resume_at|builtins_dict|import)_|__\w+_c?\d+$")
#: Modules whose objects are declarations: a type, or what ``from __future__ import annotations`` leaves.
_NO_DATA = ("typing", "__future__")


def is_data(name: str, value: Any) -> bool:
    """Whether a name of a module or a class stands for a value, and not for code."""
    if name.startswith("__") and (name.endswith("__") or _OF_THE_COMPILER.match(name)):
        return False
    if name.startswith("_abc_") or isinstance(value, _CODE) or getattr(value, "__module__", "") in _NO_DATA:
        return False
    return not (isinstance(value, type) and not is_own(value))


def within(obj: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """What is looked at next, in an object of a kind."""
    if kind in ("array", "handle", "file", "generator", "environment", "set"):
        return
    if kind == "configuration":  # frozen, but for what the user's own code finds in it and may change
        yield from ((f".{name}", value) for name, value in vars(obj).items() if isinstance(value, dict | Section))
        return
    if kind == "class":
        for name, value in list(vars(obj).items()):
            plain = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
            plain = plain.fget if isinstance(plain, property) else plain
            if isinstance(plain, types.FunctionType) or is_data(name, plain):
                yield f".{name}", plain
    elif kind == "tensor":
        return
    elif kind == "module":
        own = not is_stock(type(obj))
        for name, value in list(vars(obj).items()):
            if name in _OF_TORCH:
                continue
            if own or is_own(type(value)) or isinstance(value, torch.nn.Module | torch.optim.Optimizer | torch.Tensor):
                yield f".{name}", value
        for part in _PARTS_OF_A_MODULE:
            for name, value in vars(obj)[part].items():
                yield f".{name}", value
        for name in _HOOKS:
            for position, value in enumerate(vars(obj).get(name, {}).values()):
                yield f".{name}[{position}]", value
    elif kind == "optimizer":
        for name, value in list(vars(obj).items()):
            if name not in _OF_AN_OPTIMIZER and not (isinstance(value, dict) and not value):
                yield f".{name}", value
        for i, group in enumerate(obj.param_groups):
            for j, parameter in enumerate(group["params"]):
                yield f".param_groups[{i}]['params'][{j}]", parameter
    elif isinstance(obj, BaseCallback):
        for name, value in list(vars(obj).items()):
            if name not in OF_A_CALLBACK or not isinstance(value, BaseCallback | dict | list):
                yield f".{name}", value
    else:
        yield from children(obj)


def _attributes(obj: Any) -> dict[str, Any]:
    found = dict(getattr(obj, "__dict__", {}))
    for name in slots_of(type(obj)):
        if hasattr(obj, name):
            found[name] = getattr(obj, name)
    if isinstance(obj, BaseCallback):
        return {name: value for name, value in found.items() if name not in OF_A_CALLBACK}
    return found


def items_of(obj: Any) -> list[Any]:
    return list(obj.items()) if isinstance(obj, dict) else list(obj)


def _cell_content(cell: types.CellType) -> Any:
    try:
        content = cell.cell_contents
    except ValueError:
        return LEFT
    return LEFT if isinstance(content, type) else content


def only_shows(value: Any) -> bool:
    """Whether there is nothing in it but outputs and names."""
    waiting, seen = [value], set()
    while waiting:
        obj = waiting.pop()
        if is_output(type(obj)) or isinstance(obj, str | Path | None) or kind_of(obj) == "handle" or id(obj) in seen:
            continue
        seen.add(id(obj))
        if type(obj) in ATOMIC:
            return False
        waiting += [child for _, child in children(obj)]
    return True


# --------------------------------------------------------------------------------------------- making and setting one


def content_of(path: str, obj: Any, kind: str) -> Any:
    """The state of an object of a kind with state: references and copies; :func:`set_content` puts it back.

    :param path: the object's
    :return: None where there is none
    """
    if kind == "object":
        state = _attributes(obj)
        return (state, items_of(obj)) if isinstance(obj, LISTS) else state
    if kind == "items":
        return dict(vars(obj)) if hasattr(obj, "__dict__") else None, items_of(obj)
    if kind == "array":
        return obj.copy() if obj.flags.writeable else None
    if kind == "generator":
        return _get_generator(obj)
    if kind == "tensor":
        return {"requires_grad": obj.requires_grad, "value": Value(path, obj), "grad": obj.grad}
    if kind == "optimizer":
        return {
            "groups": [dict(group) for group in obj.param_groups],
            "state": [
                (parameter, {name: _valued(f"{path}[{index}].{name}", value) for name, value in state.items()})
                for index, (parameter, state) in enumerate(obj.state.items())
            ],
            "attributes": {name: value for name, value in vars(obj).items() if name not in _OF_AN_OPTIMIZER},
        }
    assert kind == "function"
    return function_state(obj)


def made_like(obj: Any, kind: str) -> Any:
    """What it takes to make an object that a fresh process lacks, as far as that can be told; see :func:`make`."""
    if kind == "array":
        return ("array", obj.shape, obj.dtype.str) if not obj.dtype.hasobject else None
    if kind == "tensor":
        return ("tensor", tuple(obj.shape), str(obj.dtype), type(obj) is torch.nn.Parameter)
    if kind == "class":
        return "class", obj.__name__
    if kind in ("object", "items", "optimizer") or (kind == "module" and isinstance(obj, torch.nn.Module)):
        return type(obj) if is_importable(type(obj)) else None
    return None


def make(kind: Any) -> Any:
    if isinstance(kind, type):
        try:
            return kind() if issubclass(kind, _ITEMS) else kind.__new__(kind)
        except TypeError:
            return LEFT
    if isinstance(kind, tuple) and kind[0] == "array":
        return np.empty(kind[1], np.dtype(kind[2]))
    if isinstance(kind, tuple) and kind[0] == "tensor":
        made = torch.empty(kind[1], dtype=getattr(torch, kind[2].removeprefix("torch.")))
        return torch.nn.Parameter(made, made.is_floating_point()) if kind[3] else made
    return LEFT


def set_content(obj: Any, kind: str, content: Any) -> None:
    """Put a state into a live object of the same kind; what is :data:`~train_cloud.sb3.pickling.LEFT` stays."""
    if kind == "object":
        state, items = content if isinstance(content, tuple) else (content, None)
        _set_attributes(obj, state)
        if items is not None:
            set_items(obj, items)
    elif kind == "items":
        state, items = content
        if state:
            _set_attributes(obj, state)
        set_items(obj, items)
    elif kind == "file":
        obj.seek(content)
    elif kind == "array":
        if obj.shape == content.shape and obj.dtype == content.dtype and obj.flags.writeable:
            obj[...] = content
    elif kind == "generator":
        _set_generator(obj, content)
    elif kind == "tensor":
        _set_tensor(obj, content)
    elif kind in ("module", "buffer", "class", "module of code"):
        _set_names(obj, content)
    elif kind == "optimizer":
        _set_optimizer(obj, content)
    elif kind == "function":
        cells, obj.__defaults__, obj.__kwdefaults__, attributes = content
        for cell, value in zip(obj.__closure__ or (), cells, strict=True):
            if value is not LEFT:
                cell.cell_contents = value
        vars(obj).update({name: value for name, value in attributes.items() if value is not LEFT})


def _set_attributes(obj: Any, state: Mapping[str, Any]) -> None:
    slots = slots_of(type(obj))
    live = getattr(obj, "__dict__", {})
    if not isinstance(obj, BaseCallback):
        for name in [name for name in live if name not in state]:
            del live[name]
    for name, value in state.items():
        if value is LEFT:
            continue
        if name in slots:
            object.__setattr__(obj, name, value)
        else:
            live[name] = value


def set_items(obj: Any, items: list[Any]) -> None:
    items = [item for item in items if item is not LEFT]
    # By the base class: what a subclass does when something is added has been done.
    kind: Any = next(base for base in (collections.OrderedDict, collections.deque, *LISTS) if isinstance(obj, base))
    kind.clear(obj)
    if isinstance(obj, dict):
        for key, value in items:
            kind.__setitem__(obj, key, value)
    elif isinstance(obj, set):
        set.update(obj, items)
    else:
        kind.extend(obj, items)


def _set_tensor(tensor: torch.Tensor, content: Mapping[str, Any]) -> None:
    value = content["value"]
    if tensor.is_leaf:
        tensor.requires_grad_(content["requires_grad"]) if tensor.is_floating_point() else None
    with torch.no_grad():
        expanded = any(stride == 0 < size - 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.shape == value.shape and tensor.dtype is value.dtype and not expanded:
            tensor.copy_(value)
        else:
            tensor.data = value.to(tensor.device)
    grad = content["grad"]
    tensor.grad = None if grad is None else grad.to(tensor.device)


def _set_names(obj: Any, content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if value is LEFT:
            continue
        if isinstance(obj, type):
            setattr(obj, name, value)
        elif isinstance(obj, torch.nn.Module) and (name in _PARTS_OF_A_MODULE or name in _HOOKS):
            live = vars(obj)[name]
            live.clear()
            live.update(value)
        else:
            vars(obj)[name] = value


def _valued(path: str, value: Any) -> Any:
    return Value(path, value) if isinstance(value, torch.Tensor) else value


def structure_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Its parameters, by group, and how many hooks it has."""
    hooks = [len(value) for name, value in vars(optimizer).items() if name.endswith("_hooks")]
    return [*hooks, *([id(parameter) for parameter in group["params"]] for group in optimizer.param_groups)]


def _set_optimizer(optimizer: torch.optim.Optimizer, content: Mapping[str, Any]) -> None:
    groups = content["groups"]
    for live, saved in zip(optimizer.param_groups, groups, strict=False):
        live.clear()
        live.update(saved)
    optimizer.param_groups[len(groups) :] = []
    optimizer.param_groups.extend(groups[len(optimizer.param_groups) :])
    optimizer.state.clear()
    for parameter, state in content["state"]:
        optimizer.state[parameter] = {
            name: value.to(parameter.device) if isinstance(value, torch.Tensor) and value.dim() else value
            for name, value in state.items()
        }
    vars(optimizer).update({name: value for name, value in content["attributes"].items() if value is not LEFT})


def _get_generator(generator: Any) -> Any:
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    if isinstance(generator, np.random.Generator):
        return _get_generator(generator.bit_generator)
    if isinstance(generator, np.random.BitGenerator):
        return generator.state, generator.seed_seq  # which counts the generators that it has spawned
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().copy()
    return generator.getstate()


def _set_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        _set_generator(generator.bit_generator, state)
    elif isinstance(generator, np.random.BitGenerator):
        numbers, seeds = state if isinstance(state, tuple) else (state, None)  # without one in older checkpoints
        if seeds is not None and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            generator.__setstate__((numbers, seeds))  # type: ignore[attr-defined, unused-ignore]
        else:
            generator.state = numbers
    elif isinstance(generator, torch.Generator):
        generator.set_state(torch.from_numpy(state.copy()))
    else:
        generator.setstate(state)
