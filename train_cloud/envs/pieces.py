"""Objects of which not everything can be pickled: what can is taken piece by piece, and put back into a live object of
the same making; what cannot stays there as it is, and is named.
"""

from __future__ import annotations

import concurrent.futures
import enum
import functools
import io
import logging
import multiprocessing.process
import pickle
import subprocess
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from train_cloud.envs import functions
from train_cloud.envs.make import FAILURES
from train_cloud.errors import TrainCloudError

#: What a process makes anew and what acts on nothing that is learned: files, locks, loggers, functions made in place.
HARMLESS: tuple[type, ...] = (
    io.IOBase,
    logging.Handler,
    logging.Logger,
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    type(threading.Lock()),
    type(threading.RLock()),
    types.FunctionType,
    types.ModuleType,
    weakref.ref,
)
#: Likewise; writers of CSV files have a type without a name to import.
_HARMLESS_NAMES = {"_csv.writer", "_csv.Writer"}
#: They stand for something that works beside this process, or in it.
_WORKING = (threading.Thread, subprocess.Popen, multiprocessing.process.BaseProcess, concurrent.futures.Executor)
_DEEPEST, _MOST = 8, 1000


class Gone(enum.Enum):
    """In the place of what could not be taken."""

    GONE = "gone"


@dataclass
class Pieces:
    """What was taken of an object.

    :ivar how: ``dict``, ``list``, ``tuple``, ``object``, ``function``, ``method`` or ``partial``
    :ivar kind: name of its class; of a function what tells its code from another's
    :ivar content: of a dict its items, of an object its attributes, of a function its variables, else items by index;
        some of them pieces, some gone
    :ivar nameless: whether the dict has items besides, whose keys cannot be pickled
    """

    how: str
    kind: str
    content: dict[Any, Any]
    nameless: bool = False


@dataclass(frozen=True)
class Left:
    """What was not taken.

    :ivar path: from the object on
    :ivar kind: its type
    :ivar harmless: nothing that is learned depends on it
    """

    path: str
    kind: str
    harmless: bool

    def __str__(self) -> str:
        return f"{self.path}, a {self.kind}, cannot be saved"


@dataclass
class Taking:
    """Takes objects apart.

    :param pickled: raises where an object cannot be pickled
    :ivar left: what was not taken so far
    """

    pickled: Callable[[object], object]
    left: list[Left] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)
    _functions: dict[int, Pieces] = field(default_factory=dict)

    def take(self, value: Any, path: str, depth: int = 0) -> Any:
        """The value itself where it can be pickled; else pieces of it, or :attr:`Gone.GONE`."""
        if functions.is_local(value):
            return self.take_function(value, path, depth)
        try:
            self.pickled(value)
            return value
        except FAILURES:
            pass
        inner = _inner(value)
        if inner is None or id(value) in self._seen or depth >= _DEEPEST or len(self._seen) >= _MOST:
            self.left.append(Left(path, _kind(value), _is_harmless(value)))
            return Gone.GONE
        self._seen.add(id(value))
        how, content = inner
        named = [(key, item) for key, item in content if how != "dict" or self._can_be_pickled(key)]
        taken = {key: self.take(item, _joined(path, how, key), depth + 1) for key, item in named}
        if nameless := how == "dict" and len(named) < len(value):
            self.left += [
                Left(_joined(path, how, key), _kind(key), _is_constant(key) and _is_constant(item))
                for key, item in content
                if key not in taken
            ]
        if all(item is Gone.GONE for item in taken.values()):
            return Gone.GONE
        return Pieces(how, _kind(value), taken, nameless)

    def take_function(self, function: types.FunctionType, path: str, depth: int = 0) -> Any:
        """A function's variables; also of one that can be pickled, by its name."""
        if id(function) in self._functions:
            return self._functions[id(function)]
        if depth >= _DEEPEST:
            self.left.append(Left(path, _kind(function), True))
            return Gone.GONE
        pieces = self._functions[id(function)] = Pieces("function", functions.code_of(function), {})
        for name, value in functions.variables_of(function).items():
            taken = value if type(value) in functions.PLAIN else self.take(value, f"{path}: {name}", depth + 1)
            if taken is not Gone.GONE:
                pieces.content[name] = taken
        return pieces

    def _can_be_pickled(self, value: object) -> bool:
        try:
            self.pickled(value)
        except FAILURES:
            return False
        return True


def put(live: Any, taken: Any) -> Any:
    """What takes the place of ``live``: what was taken, or ``live`` itself with the pieces put into it.

    :param live: None where there is nothing yet
    """
    if taken is Gone.GONE:
        return live
    if not isinstance(taken, Pieces):
        return taken
    if taken.how == "dict":
        target = live if type(live) is dict else {}
        before = dict(target)
        target.clear()
        if taken.nameless:
            target.update({key: item for key, item in before.items() if not _can_be_named(key)})
        target.update(put_each(before, taken.content))
        return target
    if taken.how == "function":
        return _put_function(live, taken)
    if taken.how in ("method", "partial"):
        return _put_call(live, taken)
    if taken.how == "object":
        if _kind(live) != taken.kind:
            return live  # made in another way now: there is nothing to put them into
        before = dict(vars(live))
        vars(live).clear()
        vars(live).update(put_each(before, taken.content))
        return live
    items = [*put_each(dict(enumerate(live if type(live) in (list, tuple) else ())), taken.content).values()]
    if taken.how == "tuple":
        return tuple(items)
    if type(live) is list:
        live[:] = items
        return live
    return items


def _put_function(live: Any, taken: Pieces) -> Any:
    """Its variables may be others' too: they get new values, and the function stays."""
    found = live.__func__ if isinstance(live, types.MethodType) else live
    if not isinstance(found, types.FunctionType) and not taken.content:
        return live  # made later than a fresh one is restored into
    if not isinstance(found, types.FunctionType) or functions.code_of(found) != taken.kind:
        raise TrainCloudError(f"where {taken.kind.partition(' ')[0]} was, another function is, or none")
    content, taken.content = taken.content, {}  # a function may be among its own variables
    try:
        before = functions.variables_of(found)
        functions.set_variables(found, {name: put(before.get(name), value) for name, value in content.items()})
    finally:
        taken.content = content
    return live


def _put_call(live: Any, taken: Pieces) -> Any:
    """A method of an object, or a function with arguments: what cannot be changed in it is made anew."""
    inner = _inner(live)
    if inner is None or inner[0] != taken.how:
        return live
    before = dict(inner[1])
    now = {**before, **put_each(before, taken.content)}
    if all(now[name] is value for name, value in before.items()):
        return live
    if taken.how == "method":
        return types.MethodType(live.__func__, now["__self__"])
    return functools.partial(now["func"], *now["args"], **now["keywords"])


def put_each(live: Mapping[Any, Any], taken: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same for each item; what is gone and was not there before, is not."""
    return {key: put(live.get(key), item) for key, item in taken.items() if key in live or item is not Gone.GONE}


def _inner(value: Any) -> tuple[str, Iterable[tuple[Any, Any]]] | None:
    if type(value) is dict:
        return "dict", list(value.items())
    if type(value) in (list, tuple):
        return type(value).__name__, enumerate(value)
    if type(value) is functools.partial:
        return "partial", [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if type(value) is types.MethodType:
        return "method", [("__self__", value.__self__), ("__func__", value.__func__)]
    kind: Any = type(value)
    reduced = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    getstate = getattr(kind, "__getstate__", None) in (None, getattr(object, "__getstate__", None))
    if reduced and getstate and hasattr(value, "__dict__") and not isinstance(value, (type, *HARMLESS, *_WORKING)):
        if type(vars(value).get("this")).__name__ == "SwigPyObject":
            return None  # a library's, with nothing of its own in Python
        return "object", list(vars(value).items())
    return None


def _joined(path: str, how: str, key: Any) -> str:
    if how == "object":
        return f"{path}.{key}" if path else str(key)
    return f"{path}[{key!r}]"


def _kind(value: object) -> str:
    kind = type(value)
    module = getattr(kind, "__module__", "builtins")  # SWIG's types have none
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _can_be_named(key: object) -> bool:
    try:
        pickle.dumps(key)
    except FAILURES:
        return False
    return True


def _is_constant(value: object) -> bool:
    return isinstance(value, type) or _is_harmless(value)


def _is_harmless(value: object) -> bool:
    return isinstance(value, HARMLESS) or _kind(value) in _HARMLESS_NAMES
