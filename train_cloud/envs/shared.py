"""What a user's classes and modules keep outside of any instance: class attributes, module globals, and variables of
their functions.

Of the code that environments come from, and of every loaded module that neither Python nor an installed package has
brought. A fresh process has them as they were when it began to learn; so what has changed since is carried.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from train_cloud.envs.functions import has_variables
from train_cloud.envs.make import FAILURES, Env
from train_cloud.envs.pickling import dumps, fingerprint, layers
from train_cloud.envs.pieces import Gone, Left, Pieces, Taking, put
from train_cloud.installed import is_installed

#: Their classes keep nothing of a training; they are many, and large.
_LIBRARIES = frozenset({"gymnasium", "numpy", "pettingzoo", "sb3_contrib", "stable_baselines3", "supersuit", "torch",
                        "train_cloud", "typing", "builtins", "abc", "__main__", "__mp_main__",
                        *sys.stdlib_module_names})  # fmt: skip
#: Whose content is themselves.
SCALARS = (int, float, complex, str, bytes, bool, type(None))
_NO_DATA = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, property,
            staticmethod, classmethod, types.MemberDescriptorType, types.GetSetDescriptorType)  # fmt: skip
#: What takes more in a pickle, arrays not counted, is a table of data, and looked at from outside: whether it is
#: another one, or of another length.
_TABLE_BYTES = 4 << 20
#: Module, class in it or "", attribute. Of classes that a function has made, several may have the same name: the second
#: one's has a number behind it.
Key = tuple[str, str, str]


@dataclass
class Shared:
    """The state of such classes and modules in this process.

    :param envs: environments in this process; modules of their layers' packages are looked at
    :ivar left: what has changed since and cannot be carried
    """

    envs: Sequence[Env]
    left: list[Left] = field(default_factory=list)
    _first: dict[Key, Any] = field(default_factory=dict)
    _known: dict[str, bool] = field(default_factory=dict)
    _tables: dict[int, Any] = field(default_factory=dict)
    _modules: int = 0
    _looked_at: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._packages = packages_of(self.envs)
        self._first = {key: self._mark(value) for key, value in self._all()}

    def changed(self) -> dict[Key, Any]:
        """What has another value than when this was made, or is new: references, of some of them pieces."""
        found = {}
        self.left = []
        for key, value in self._all():
            before = self._first.get(key, Gone)
            if isinstance(value, SCALARS):
                if type(value) is not type(before) or value != before:
                    found[key] = value
                continue
            if self._mark(value) == before:
                continue
            taking = Taking(self._pickled)
            path = ".".join(filter(None, key))
            function = isinstance(value, types.FunctionType)
            taken = taking.take_function(value, path) if function else taking.take(value, path)
            self.left += taking.left
            if taken is not Gone.GONE:
                found[key] = taken
        return found

    def _pickled(self, value: object) -> bytes:
        return dumps(value, self.envs)

    def _mark(self, value: Any) -> Any:
        """Equal for equal content."""
        if isinstance(value, SCALARS):
            return value
        if id(value) in self._tables:
            return id(value), len(value) if hasattr(type(value), "__len__") else 0
        if isinstance(value, types.FunctionType):
            return fingerprint(Taking(self._pickled).take_function(value, ""), self.envs)[0]
        try:
            mark, size = fingerprint(value, self.envs)
        except FAILURES:
            taken = Taking(self._pickled).take(value, "")
            if taken is Gone.GONE:
                return id(value)
            mark, size = fingerprint(taken, self.envs)
        if size > _TABLE_BYTES:
            self._tables[id(value)] = value
            return self._mark(value)
        return mark

    def _all(self) -> Iterator[tuple[Key, Any]]:
        if len(sys.modules) != self._modules:
            for name, module in list(sys.modules.items()):
                if name not in self._known:
                    self._known[name] = self._is_looked_at(name, module)
            self._looked_at = [name for name, wanted in self._known.items() if wanted]
            self._modules = len(sys.modules)
        for name in self._looked_at:
            there: Any = sys.modules.get(name)
            for attribute, value in list(vars(there).items()) if there is not None else ():
                if _is_data(attribute, value):
                    yield (name, "", attribute), value
                elif isinstance(value, type) and value.__module__ == name:
                    yield from _of_class(value, value.__qualname__)
        for name, kind in _local_classes(self.envs).items():
            yield from _of_class(kind, name)

    def _is_looked_at(self, name: str, module: Any) -> bool:
        if (
            not isinstance(module, types.ModuleType)
            or name.partition(".")[0] in _LIBRARIES
            or name in ("__main__", "__mp_main__")
        ):
            return False
        if name.partition(".")[0] in self._packages:
            return True
        path = getattr(module, "__file__", None)
        return isinstance(path, str) and not is_installed(path)


def packages_of(envs: Sequence[Env]) -> set[str]:
    """That the layers of environments come from."""
    kinds = (kind for env in envs for layer in layers(env) for kind in type(layer).__mro__)
    return {kind.__module__.partition(".")[0] for kind in kinds} - _LIBRARIES


class OfProcess:
    """The same for environments that have a process to themselves; in the training's own, others see to it."""

    def __init__(self) -> None:
        self._shared: Shared | None = None

    def begin(self, envs: Sequence[Env]) -> None:
        """After the first reset: as far as a session is when it is given the state of another."""
        if self._shared is None and multiprocessing.parent_process() is not None:
            self._shared = Shared(envs)

    def changed(self) -> tuple[dict[Key, Any], list[str]]:
        """:return: as of :meth:`Shared.changed`, and what cannot be saved, in words"""
        if self._shared is None:
            return {}, []
        return self._shared.changed(), [str(left) for left in self._shared.left if not left.harmless]


def _of_class(kind: type, name: str) -> Iterator[tuple[Key, Any]]:
    for attribute, content in list(vars(kind).items()):
        plain = content.__func__ if isinstance(content, staticmethod | classmethod) else content
        plain = plain.fget if isinstance(plain, property) else plain
        if _is_data(attribute, plain):
            yield (kind.__module__, name, attribute), plain


def _local_classes(envs: Sequence[Env]) -> dict[str, type]:
    """Of the environments' layers, those that functions have made, by name."""
    found: dict[str, type] = {}
    kinds = dict.fromkeys(kind for env in envs for layer in layers(env) for kind in type(layer).__mro__)
    for kind in kinds:
        if "<" in kind.__qualname__ and kind.__module__.partition(".")[0] not in _LIBRARIES - {"__main__"}:
            name, number = kind.__qualname__, 1
            while name in found:
                number += 1
                name = f"{kind.__qualname__} {number}"
            found[name] = kind
    return found


def _is_data(name: str, value: Any) -> bool:
    if isinstance(value, types.FunctionType):
        return has_variables(value) and (value.__module__ or "").partition(".")[0] not in _LIBRARIES - {"__main__"}
    if name.startswith("__") and name.endswith("__"):
        return False
    return not isinstance(value, _NO_DATA) and not name.startswith("_abc_") and not hasattr(type(value), "__set_name__")


def put_shared(changed: Mapping[Key, Any], envs: Sequence[Env] = ()) -> None:
    """The counterpart of :meth:`Shared.changed`, in a process that has loaded the same modules.

    :param envs: as they were given there
    """
    local = _local_classes(envs)
    for (module, kind, name), value in changed.items():
        owner: Any = local.get(kind) if kind else sys.modules.get(module)
        if kind and owner is None:
            owner = sys.modules.get(module)
            for part in kind.split("."):
                owner = getattr(owner, part, None)
        if owner is not None:
            _put(owner, name, value)


def _put(owner: Any, name: str, value: Any) -> None:
    """In place where that is possible: others may have imported the very object."""
    live: Any = vars(owner).get(name)
    if isinstance(value, Pieces):
        if value.how == "function":
            plain = live.__func__ if isinstance(live, staticmethod | classmethod) else live
            put(plain.fget if isinstance(plain, property) else plain, value)
        else:
            setattr(owner, name, put(live, value))
    elif type(live) is not type(value) or not _put_in_place(live, value):
        setattr(owner, name, value)


def _put_in_place(live: Any, value: Any) -> bool:
    if isinstance(value, dict | set):
        live.clear()
        live.update(value)
    elif isinstance(value, list | bytearray):
        live[:] = value
    elif isinstance(value, deque):
        live.clear()
        live.extend(value)
    elif isinstance(value, np.ndarray):
        if live.shape != value.shape or live.dtype != value.dtype or not live.flags.writeable:
            return False
        live[...] = value
    elif isinstance(value, np.random.Generator):
        live.bit_generator.state = value.bit_generator.state
    elif isinstance(value, np.random.RandomState):
        live.set_state(value.get_state())
    elif isinstance(value, random.Random):
        live.setstate(value.getstate())
    else:
        return False
    return True
