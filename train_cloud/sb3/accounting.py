"""Accounts for every attribute of a running training: what an interruption brings back, and what it does not.

The capture (``sb3.capture``) says what it keeps. This module does not ask it. It walks from the algorithm, the
callbacks, the environments, the generators and the modules of the user's own code through all that Python and its
garbage collector can reach, and writes down what is there: once where a checkpoint is taken, and once where a fresh
process has restored it. The two are compared path by path (:func:`account`). An attribute is then one of these:

=============  ========================================================================================
equal          the same after the resume, value and sharing: captured, or built anew from the run file
listed         of a kind that is another one in each process, with the reason (:data:`LISTED`)
named          in ``not_kept``, with the reason: the run itself says that it is not exact
unaccounted    none of these: something was left out, and nobody says so
=============  ========================================================================================

``train-cloud prove`` does that at each commit that it resumes from. What cannot be looked into from here: environments
in processes of their own, of which the proof compares states and outputs.
"""

from __future__ import annotations

import array
import collections
import contextlib
import enum
import fractions
import functools
import gc
import io
import json
import os
import random
import re
import sys
import types
import uuid
import warnings
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from train_cloud.config.current import artifact_folders
from train_cloud.envs.pickling import global_generators
from train_cloud.installed import is_installed
from train_cloud.sb3.pickling import for_each_class

#: What is met and not looked into, by the first words of its class's or a base class's full name → why not.
OF_THE_PROCESS: dict[str, str] = {
    "_thread.": "a lock: free at the start of a rollout, and made by each process",
    "threading.Thread": "a thread of this process",
    "subprocess.": "a process that this one has started",
    "multiprocessing.": "processes, pipes and locks between them: made by each session",
    "concurrent.futures.": "threads or processes of this one",
    "socket.": "a connection of this process",
    "ssl.": "a connection of this process",
    "_io.": "an open file: a session opens its own",
    "logging.": "a log of this process",
    "stable_baselines3.common.logger.KVWriter": "an output for scalars: each session makes its own",
    **dict.fromkeys(
        ("tqdm.", "rich.", "wandb.", "tensorboard.", "tensorboardX.", "torch.utils.tensorboard.", "mlflow.", "neptune.",
         "comet_ml.", "aim.", "matplotlib.", "boto3.", "botocore.", "IPython."),
        "an output: nothing that is learned depends on it, and each session makes its own",
    ),
    "_contextvars.": "a variable of this process's threads",
    "train_cloud.sb3.callback.Checkpoints": "train-cloud's own callback",
    "train_cloud.config.shapes.Section": "of the run file, which each session reads for itself",
}  # fmt: skip

_DISTRIBUTIONS = ("stable_baselines3.common.distributions.Distribution", "sb3_contrib.common.maskable.distributions."
                  "MaskableDistribution")  # fmt: skip
#: Attributes that are another one in each process, or whose content decides nothing: full name of a class, or of one
#: that it is derived from, and the attribute → why.
LISTED: dict[str, str] = {
    "stable_baselines3.common.base_class.BaseAlgorithm.start_time": "a clock",
    "stable_baselines3.common.base_class.BaseAlgorithm._num_timesteps_at_start": "for the speed that is shown",
    "stable_baselines3.common.base_class.BaseAlgorithm._total_timesteps": "of the learn() call: from the run file",
    "stable_baselines3.common.callbacks.BaseCallback.locals": "SB3's view of its variables, renewed at each step",
    "stable_baselines3.common.callbacks.BaseCallback.globals": "SB3's own module",
    **dict.fromkeys(
        (
            f"{parent}.{name}"
            for parent in _DISTRIBUTIONS
            for name in ("distribution", "gaussian_actions", "log_std", "_latent_sde", "weights_dist")
        ),
        "computed anew before each use",
    ),
    **dict.fromkeys(
        (
            f"torch.optim.optimizer.Optimizer.{name}"
            for name in ("step", "_opt_called", "_warned_capturable_if_run_uncaptured")
        ),
        "torch's own notes of what it has warned about",
    ),
    **dict.fromkeys(
        (
            f"sb3_contrib.common.recurrent.buffers.{kind}.{name}"
            for kind in ("RecurrentRolloutBuffer", "RecurrentDictRolloutBuffer")
            for name in ("pad", "pad_and_flatten", "seq_start_indices", "seq_end_indices")
        ),
        "how the last rollout was cut: made anew before the buffer is read",
    ),
    "train_cloud.envs.state.StatefulEnv._of_process": "what classes are compared with: made by each session",
    "train_cloud.envs.curriculum.Staged._of_process": "what classes are compared with: made by each session",
    "gymnasium.core.Env.metadata": "how an environment can be shown: of its class",
    "stable_baselines3.common.vec_env.base_vec_env.VecEnv.metadata": "how an environment can be shown: of its class",
    "gymnasium.core.Env.spec": "how the environment was made: a session makes it so again",
    "gymnasium.core.Wrapper._cached_spec": "computed from how the environment was made",
    "stable_baselines3.common.vec_env.base_vec_env.VecEnv.buf_infos": "of the last step: filled anew at each",
    "stable_baselines3.common.logger.Logger.dir": "a folder of this session's",
    "stable_baselines3.common.logger.Logger.output_formats": "outputs for scalars: each session makes its own",
    "stable_baselines3.common.monitor.Monitor.t_start": "a clock",
    "stable_baselines3.common.monitor.Monitor.episode_times": "readings of a clock",
    "stable_baselines3.common.monitor.Monitor.results_writer": "a file of this session's",
}
#: The same by the end of the whole path.
_LISTED_PATHS: tuple[tuple[str, str], ...] = (
    (r"ep_info_buffer\[\d+\]\['t'\]", "a reading of a clock"),
    (r"_infos?\[\d+\]\['episode'\]\['t'\]", "a reading of a clock"),
)

#: Moments: where a checkpoint is taken, where one was restored, and after the last update.
SNAPSHOT, RESTORED, END = "snapshot", "restored", "end"
_MOST = 500_000
_LONG = 60
#: Of a large array so many bytes are looked at, in rows that are spread over it.
_LOOKED_AT_BYTES = 64 << 20

_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), range, slice, np.dtype,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, date, time, timedelta, tzinfo, Decimal,
    fractions.Fraction, uuid.UUID, re.Pattern, types.CodeType, types.GenericAlias,
)  # fmt: skip
_CALLED_BY_C = (
    types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType,
)  # fmt: skip
_PARTS = ("_parameters", "_buffers", "_modules")


@dataclass
class Graph:
    """What was reached.

    :ivar entries: path → what is there, equal for equal content
    :ivar listed: path → why it was not looked into
    """

    entries: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Account:
    """Two graphs of one training, path by path.

    :ivar equal: number of paths
    :ivar listed: path → reason
    :ivar named: path → reason, of what is in ``not_kept``
    :ivar unaccounted: ``path: what was there, what is there``
    """

    equal: int
    listed: dict[str, str]
    named: dict[str, str]
    unaccounted: list[str]


# ----------------------------------------------------------------------------------------------------------- the walk


def walk(
    roots: Mapping[str, Any], names: Mapping[str, Any], cleared: Sequence[torch.Tensor] = (), apart: Sequence[Any] = ()
) -> Graph:
    """Look at all that can be reached, breadth first, so that what has several paths gets the shortest.

    :param roots: path → where to begin
    :param names: path → an object that has this path wherever it is met
    :param cleared: tensors whose gradients are gone before they are added up again
    :param apart: objects that say by themselves what their state is
    """
    return _Walk(names, cleared, apart).walk(roots)


class _Walk:
    def __init__(self, names: Mapping[str, Any], cleared: Sequence[torch.Tensor], apart: Sequence[Any]) -> None:
        self._apart = {id(obj) for obj in apart}
        self._names = {id(obj): path for path, obj in names.items()}
        self._cleared = {id(tensor) for tensor in cleared}
        self._alive: list[Any] = [*names.values(), *cleared]  # ids are those of objects that are alive
        self._seen: dict[int, str] = {}
        self._memory: dict[int, str] = {}
        self._waiting: collections.deque[tuple[str, Any]] = collections.deque()
        self._graph = Graph()

    def walk(self, roots: Mapping[str, Any]) -> Graph:
        for path, obj in roots.items():
            self._meet(path, obj)
        while self._waiting and len(self._graph.entries) < _MOST:
            self._look(*self._waiting.popleft())
        for path, _ in self._waiting:
            self._graph.listed[path] = f"more than {_MOST:,} attributes: not looked into"
        return self._graph

    def _meet(self, path: str, obj: Any, why_not: str = "") -> None:
        why_not = why_not or next((why for end, why in _LISTED_PATHS if re.search(end + "$", path)), "")
        why_not = why_not or _of_the_process(type(obj)) or _of_outputs(obj)
        why_not = why_not or ("what it says of itself is its state" if id(obj) in self._apart else "")
        if why_not:
            self._graph.listed[path] = why_not
            return
        plain = _atom(obj)
        if plain is not None:
            self._graph.entries[path] = plain
            return
        own = self._names.get(id(obj), f"class {_name(obj)}" if isinstance(obj, type) else path)
        if id(obj) in self._seen:
            if self._seen[id(obj)] != path:
                self._graph.entries[path] = f"the same as {self._seen[id(obj)]}"
            return
        if own != path:
            self._graph.entries[path] = f"the same as {own}"
        self._seen[id(obj)] = own
        self._alive.append(obj)
        self._waiting.append((own, obj))

    def _look(self, path: str, obj: Any) -> None:
        kind = type(obj)
        if isinstance(obj, np.ndarray | torch.Tensor):
            self._look_at_numbers(path, obj)
        elif isinstance(obj, np.random.BitGenerator):
            self._put(path, f"{_name(kind)} {_digest(repr(_plain(obj.state)))}")
            self._meet(f"{path}.seed_seq", getattr(obj, "seed_seq", None))
        elif isinstance(obj, np.random.SeedSequence):
            state = [obj.entropy, obj.spawn_key, obj.pool_size, obj.n_children_spawned]
            self._put(path, f"{_name(kind)} {_digest(repr(state))}")
        elif isinstance(obj, np.random.Generator):
            self._put(path, _name(kind))
            self._meet(f"{path}.bit_generator", obj.bit_generator)
        elif isinstance(obj, np.random.RandomState):
            self._put(path, f"{_name(kind)} {_digest(repr(_plain(obj.get_state(legacy=False))))}")
        elif isinstance(obj, torch.Generator):
            self._put(path, f"{_name(kind)} {zlib.crc32(obj.get_state().numpy().tobytes()):08x}")
        elif isinstance(obj, random.Random):
            self._put(path, f"{_name(kind)} {_digest(repr(obj.getstate()))}")
            self._attributes(path, obj)
        elif isinstance(obj, types.FunctionType):
            self._look_at_function(path, obj)
        elif isinstance(obj, types.MethodType | types.BuiltinFunctionType):
            self._put(path, f"bound {obj.__qualname__}")
            self._meet(f"{path}.__self__", obj.__self__)
            self._meet(f"{path}.__func__", getattr(obj, "__func__", None))
        elif isinstance(obj, types.CellType):
            self._put(path, "variable")
            with contextlib.suppress(ValueError):  # it has no value yet
                self._meet(f"{path}.cell_contents", obj.cell_contents)
        elif isinstance(obj, types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType):
            frame = getattr(obj, "gi_frame", None) or getattr(obj, "cr_frame", None) or getattr(obj, "ag_frame", None)
            self._put(path, f"{obj.__qualname__} at {frame.f_lasti if frame is not None else 'its end'}")
            for name, value in sorted(frame.f_locals.items()) if frame is not None else ():
                self._meet(f"{path}.{name}", value)
        elif isinstance(obj, weakref.ref):
            self._put(path, "weak reference")
            self._meet(f"{path}()", obj())
        elif isinstance(obj, type):
            self._look_at_class(path, obj)
        else:
            self._look_at_object(path, obj)

    def _put(self, path: str, text: str) -> None:
        self._graph.entries[path] = text

    def _look_at_numbers(self, path: str, obj: Any) -> None:
        if isinstance(obj, torch.Tensor):
            text, memory = _tensor_text(obj)
            why_not = "SB3's train() begins with none" if id(obj) in self._cleared else ""
            self._meet(f"{path}.grad", obj.grad if obj.is_leaf else None, why_not)
            if not obj.is_leaf:
                self._graph.listed[f"{path}.grad_fn"] = "what a tensor was computed from is not kept: it is a value"
        else:
            text, memory = _array_text(obj)
            if obj.dtype.hasobject:
                for position, value in enumerate(obj.ravel().tolist()):
                    self._meet(f"{path}.flat[{position}]", value)
        shared = self._memory.setdefault(memory, path) if memory else path
        self._put(path, text + (f", memory of {shared}" if shared != path else ""))
        self._attributes(path, obj)

    def _look_at_function(self, path: str, function: types.FunctionType) -> None:
        self._put(path, f"{function.__module__}.{function.__qualname__} {zlib.crc32(function.__code__.co_code):08x}")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                self._meet(f"{path}.{name}", cell)
        for position, value in enumerate(function.__defaults__ or ()):
            self._meet(f"{path}.__defaults__[{position}]", value)
        for name, value in sorted((function.__kwdefaults__ or {}).items()):
            self._meet(f"{path}.__kwdefaults__[{name!r}]", value)
        self._attributes(path, function)

    def _look_at_class(self, path: str, kind: type) -> None:
        self._put(path, f"class {_name(kind)}")
        if not is_of_the_user(kind.__module__):
            return
        for name, value in sorted(vars(kind).items()):
            plain = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            plain = plain.fget if isinstance(plain, property) else plain
            if not (name.startswith("__") and name.endswith("__")) and not name.startswith("_abc_"):
                self._meet(f"{path}.{name}", plain)

    def _look_at_object(self, path: str, obj: Any) -> None:
        kind = type(obj)
        text, looked_into = _name(kind), True
        if isinstance(obj, Mapping):
            text += self._items(path, obj)
        elif isinstance(obj, collections.deque):
            text += f"({len(obj)} of {obj.maxlen})"
            self._sequence(path, list(obj))
        elif isinstance(obj, list | tuple):
            text += f"({len(obj)})"
            self._sequence(path, list(obj))
        elif isinstance(obj, set | frozenset):
            plain = [_atom(item) for item in obj]
            text += f"({len(obj)}) {_digest(repr(sorted(one for one in plain if one is not None)))}"
            self._sequence(path, [item for item, one in zip(obj, plain, strict=True) if one is None])
        elif isinstance(obj, array.array | bytearray | memoryview):
            text += f"({len(obj)}) {zlib.crc32(bytes(obj)):08x}"
        elif isinstance(obj, io.BytesIO | io.StringIO):
            text += f" at {obj.tell()} {_digest(repr(obj.getvalue()))}"
        elif isinstance(obj, functools.partial):
            for name, value in (("func", obj.func), ("args", obj.args), ("keywords", obj.keywords)):
                self._meet(f"{path}.{name}", value)
        elif isinstance(obj, torch.nn.Module):
            text += "".join(f" {name[1:]} {list(vars(obj)[name])}" for name in _PARTS)
        elif isinstance(obj, BaseException):
            self._meet(f"{path}.args", obj.args)
        elif hasattr(obj, "cache_info") and hasattr(obj, "__wrapped__"):
            self._graph.listed[f"{path}.cache"] = "what functools.lru_cache has kept is computed anew"
        elif isinstance(obj, property | staticmethod | classmethod | functools.cached_property):
            for index, held in enumerate(gc.get_referents(obj)):
                self._meet(f"{path}.<{index}>", held)
        else:
            looked_into = False
        self._put(path, text)
        shown = self._attributes(path, obj)
        if not looked_into and _is_of_an_extension(kind) and not (shown and kind.__module__ == "builtins"):
            self._look_behind(path, obj)
        if kind.__flags__ & 1 << 9 and is_of_the_user(kind.__module__):  # Py_TPFLAGS_HEAPTYPE
            for parent in kind.__mro__:
                if is_of_the_user(parent.__module__):
                    self._meet(f"class {_name(parent)}", parent)

    def _look_behind(self, path: str, obj: Any) -> None:
        """An object of an extension, whose state is in no attribute: what pickling shows, or the garbage collector."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shown = obj.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 - whatever an extension raises: it does not want to be pickled
            shown = None
        if isinstance(shown, tuple):
            held = [part if not isinstance(part, Iterator) else list(part) for part in shown[1:]]
            self._meet(f"{path}.<state>", [part for part in held if part is not None])
            return
        # The dict of attributes was looked at.
        referents = [one for one in gc.get_referents(obj) if one is not type(obj) and one is not vars_of(obj)]
        for index, one in enumerate(referents):
            self._meet(f"{path}.<{index}>", one)

    def _attributes(self, path: str, obj: Any) -> bool:
        """:return: whether there are any"""
        found = dict(vars_of(obj) or {})
        for name in _slots(type(obj)):
            with contextlib.suppress(AttributeError):
                found[name] = getattr(obj, name)
        if isinstance(obj, torch.nn.Module):
            for part in _PARTS:
                for name, value in found.pop(part).items():
                    self._meet(f"{path}.{name}", value)
        for name, value in sorted(found.items(), key=lambda item: str(item[0])):
            if name == "__wrapped__" and isinstance(obj, types.FunctionType):
                continue  # the closure has it
            kind: Any = type(obj)
            self._meet(f"{path}.{name}", value, _listed(kind, str(name)))
        return bool(found)

    def _items(self, path: str, found: Mapping[Any, Any]) -> str:
        """A dict's order is state too."""
        keys = list(found)
        texts = []
        for position, key in enumerate(keys):
            plain = _atom(key)
            if plain is not None and len(plain) <= _LONG:
                texts.append(plain)
                self._meet(f"{path}[{key!r}]" if isinstance(key, str | int) else f"{path}[{plain}]", found[key])
            else:
                texts.append("")
                self._meet(f"{path}.keys[{position}]", key)
                self._meet(f"{path}.values[{position}]", found[key])
        if path.rpartition(".")[2].startswith("param_groups["):
            texts.sort()  # torch itself loads an optimiser's state in another order
        return f"({len(keys)}) {_short(', '.join(texts))}"

    def _sequence(self, path: str, items: Sequence[Any]) -> None:
        for position, value in enumerate(items):
            self._meet(f"{path}[{position}]", value)


def vars_of(obj: Any) -> dict[str, Any] | None:
    """An object's own ``__dict__``, past what its class answers to ``getattr``."""
    if isinstance(obj, type):
        return None
    try:
        found = object.__getattribute__(obj, "__dict__")
    except (AttributeError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _atom(obj: Any) -> str | None:
    """What nothing can change, in words; None for everything else."""
    kind = type(obj)
    if isinstance(obj, types.ModuleType):
        return f"module {obj.__name__}"
    if isinstance(obj, enum.Enum):
        return f"{_name(kind)}.{obj.name}"
    if isinstance(obj, np.generic):
        return f"{kind.__name__} {obj.item()!r}" if not isinstance(obj, np.void) else f"void {obj.tobytes().hex()}"
    if isinstance(obj, PurePath):
        return f"path {_from_the_session(obj)}"
    if isinstance(obj, _ATOMS) and (kind in _ATOMS or kind.__module__ in ("builtins", "datetime", "torch", "numpy")):
        return _short(repr(obj)) if not isinstance(obj, types.CodeType) else f"code {obj.co_name}"
    if isinstance(obj, np.dtype):
        return _short(repr(obj))
    if isinstance(obj, np.ufunc):
        return f"ufunc {obj.__name__}"
    if isinstance(obj, _CALLED_BY_C) and getattr(obj, "__self__", None) is None:
        return f"{kind.__name__} {getattr(obj, '__qualname__', '')}"
    if isinstance(obj, types.BuiltinFunctionType) and isinstance(obj.__self__, types.ModuleType | type):
        return f"{kind.__name__} {getattr(obj, '__qualname__', '')}"
    if isinstance(obj, type) and not is_of_the_user(obj.__module__):
        return f"class {_name(obj)}"
    if kind is tuple or kind is frozenset:
        plain = [_atom(item) if not isinstance(item, tuple | frozenset) else None for item in obj]
        if all(one is not None for one in plain):
            return f"{kind.__name__} {_short(repr(sorted(map(str, plain)) if kind is frozenset else plain))}"
        return None
    if isinstance(obj, types.FunctionType) and _is_plain_function(obj):
        return f"function {obj.__module__}.{obj.__qualname__}"
    return None


def _from_the_session(path: PurePath) -> PurePath:
    """Where it lies in the session's folder of artifacts, which is another one in each."""
    within = (path.relative_to(folder) for folder in artifact_folders() if path.is_relative_to(folder))
    return next(within, path)


def _is_plain_function(function: types.FunctionType) -> bool:
    """A library's, or one of the user's own that has no variables of its own."""
    if function.__closure__ or vars(function):
        return False
    if not is_of_the_user(function.__module__ or ""):
        return True
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return all(_atom(value) is not None for value in defaults)


@for_each_class
def _of_the_process(kind: Any) -> str:
    if issubclass(kind, io.BytesIO | io.StringIO):
        return ""
    names = [_name(parent) for parent in kind.__mro__]
    return next((why for begin, why in OF_THE_PROCESS.items() if any(name.startswith(begin) for name in names)), "")


def _of_outputs(obj: Any) -> str:
    """The same of a container that holds nothing else."""
    if type(obj) not in (list, tuple, dict) or not obj:
        return ""
    reasons = [_of_the_process(type(item)) for item in (obj.values() if isinstance(obj, dict) else obj)]
    return reasons[0] if all(reasons) else ""


@functools.cache
def _listed(kind: Any, attribute: str) -> str:
    return next((why for parent in kind.__mro__ if (why := LISTED.get(f"{_name(parent)}.{attribute}"))), "")


@for_each_class
def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@for_each_class
def _slots(kind: Any) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(
            name
            for parent in kind.__mro__
            if "__slots__" in vars(parent)
            for name, value in vars(parent).items()
            if isinstance(value, types.MemberDescriptorType)
        )
    )


@for_each_class
def _is_of_an_extension(kind: Any) -> bool:
    """Whether the class, or one that it is derived from, was not written in Python: it may hold what no attribute
    shows.
    """
    return any(parent is not object and not parent.__flags__ & 1 << 9 for parent in kind.__mro__) or (
        kind.__flags__ & 1 << 9 == 1 << 9 and any("__module__" not in vars(parent) for parent in kind.__mro__[:-1])
    )


_OURS = str(Path(__file__).parent.parent)


@functools.cache
def is_of_the_user(module: str) -> bool:
    """Whether a module is neither Python's nor installed nor ours. Not what ``sb3.kinds`` says of it, which decides
    what is saved: that is to be accounted for here.
    """
    path = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(path, str) or not Path(path).is_absolute() or module in ("__main__", "__mp_main__"):
        return False
    return not is_installed(path) and not path.startswith(_OURS)


def _digest(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='replace')):08x}"


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}… {len(text)} {_digest(text)}"


def _plain(state: Any) -> Any:
    """A generator's state whose arrays are written out whole."""
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def _array_text(found: np.ndarray[Any, Any]) -> tuple[str, int]:
    """What is in an array, and where its memory begins."""
    root: Any = found
    while isinstance(root.base, np.ndarray):
        root = root.base
    text = f"{type(found).__name__} {found.dtype}{found.shape}"
    if not found.flags.writeable:
        text += " read-only"
    if not found.dtype.hasobject:
        text += f" {_crc(found)}"
    return text, int(root.__array_interface__["data"][0]) if found.nbytes else 0


def _crc(found: np.ndarray[Any, Any]) -> str:
    if found.nbytes > _LOOKED_AT_BYTES and found.ndim:
        found = found[:: -(-found.nbytes // _LOOKED_AT_BYTES)]
    whole = np.ascontiguousarray(found).reshape(-1)
    return f"{zlib.crc32(whole.view(np.uint8).data) if whole.nbytes else 0:08x}"


def _tensor_text(found: torch.Tensor) -> tuple[str, int]:
    text = f"{type(found).__name__} {found.dtype}{tuple(found.shape)} {found.device}"
    text += " trained" if found.requires_grad and found.is_leaf else ""
    if found.is_meta or found.layout is not torch.strided or found.is_quantized:
        file = io.BytesIO()
        torch.save(found, file)
        return f"{text} {zlib.crc32(file.getvalue()):08x}", 0
    plain = found.detach().cpu().contiguous()
    text += f" {_crc(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else 'empty'}"
    return text, int(found.untyped_storage().data_ptr()) if found.numel() else 0


# ------------------------------------------------------------------------------------------------------- the account


def account(before: Graph, after: Graph, not_kept: Sequence[str] = ()) -> Account:
    """Compare two graphs of the same moment of a training.

    :param not_kept: ``path: reason``, as a checkpoint's facts have it
    """
    reasons = {entry.partition(": ")[0]: entry.partition(": ")[2] for entry in not_kept}
    listed, named, unaccounted, equal = {**before.listed, **after.listed}, {}, [], 0
    alone: dict[str, str] = {}
    for path in dict.fromkeys([*before.entries, *after.entries]):
        one, other = before.entries.get(path), after.entries.get(path)
        if one == other:
            equal += 1
        elif (reason := _within(path, reasons) or _holding(path, reasons)) is not None:
            named[path] = reason
        elif _within(path, listed) is None and _within(path, alone) is None:
            unaccounted.append(f"{path}: {one or 'nothing'}, and {other or 'nothing'} after the resume")
            if one is None or other is None:
                alone[path] = "what it holds cannot be on both sides"
    return Account(equal, listed, named, unaccounted)


def _within(path: str, of: Mapping[str, str]) -> str | None:
    """What is said of a path or of one that it begins with."""
    if path in of:
        return of[path]
    cuts = (match.start() for match in re.finditer(r"[.\[(]", path))
    return next((of[path[:cut]] for cut in cuts if path[:cut] in of), None)


def _holding(path: str, reasons: Mapping[str, str]) -> str | None:
    """Where a part of it is not kept, an object is another one than it was."""
    return next(
        (why for named, why in reasons.items() if re.fullmatch(r"[.\[][^.\[]+", named.removeprefix(path))), None
    )


# --------------------------------------------------------------------------------------------------- in a training


_folder: Path | None = None


def record_to(folder: Path | None) -> None:
    """From now on this process's training writes its graphs to ``folder``, a file for each moment; None ends that."""
    global _folder
    _folder = folder


def note(moment: str, timesteps: int, model: Any, callback: Any, names: Mapping[str, Any]) -> None:
    """Write down what there is at a moment, if anybody wants it.

    :param callback: the outermost one
    :param names: see :func:`walk`
    """
    if _folder is None:
        return
    learners = [model, *getattr(model, "learners", {}).values()]
    cleared = [
        parameter
        for learner in learners
        if _is_of_a_library(getattr(type(learner), "train", None))
        for group in _optimizers(learner)
        for parameter in group["params"]
    ]
    roots = {"algorithm": model, "callbacks": callback, **_of_the_program()}
    _write(moment, timesteps, walk(roots, names, cleared))


def note_reached(moment: str, timesteps: int, roots: Mapping[str, Any], apart: Sequence[Any]) -> None:
    """The same for a loop of the user's own.

    :param roots: path → where its state begins
    :param apart: objects that are not looked into
    """
    if _folder is not None:
        _write(moment, timesteps, walk({**roots, **_of_the_program()}, {}, apart=apart))


def _write(moment: str, timesteps: int, graph: Graph) -> None:
    assert _folder is not None
    _folder.mkdir(parents=True, exist_ok=True)
    (_folder / f"{moment}-{timesteps}.json").write_text(json.dumps({"entries": graph.entries, "listed": graph.listed}))


def _is_of_a_library(function: Any) -> bool:
    return not is_of_the_user(getattr(function, "__module__", "") or "")


def _optimizers(learner: Any) -> Iterator[Mapping[str, Any]]:
    """Groups of parameters that an algorithm's own ``train`` clears the gradients of."""
    for holder in (learner, *(getattr(learner, name, None) for name in ("policy", "actor", "critic"))):
        for name in ("optimizer", "ent_coef_optimizer"):
            yield from getattr(getattr(holder, name, None), "param_groups", ())


def read(folder: Path, moment: str) -> dict[int, Graph]:
    """What was noted, by timesteps."""
    found = {}
    for path in sorted(folder.glob(f"{moment}-*.json")):
        content = json.loads(path.read_text())
        found[int(path.stem.rpartition("-")[2])] = Graph(content["entries"], content["listed"])
    return found


def _of_the_program() -> dict[str, Any]:
    """Where a walk begins besides the learning: global generators, variables of the process, the user's own modules."""
    own = sorted(name for name in list(sys.modules) if is_of_the_user(name))
    modules = {
        f"module {name}.{key}": value
        for name in own
        for key, value in sorted(vars(sys.modules[name]).items())
        if not (key.startswith("__") and key.endswith("__"))
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", "") != "typing"
    }
    caches = ("TORCHINDUCTOR_", "TRITON_")  # folders that torch names when it first loads its compiler
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("TRAIN_CLOUD_", *caches))}
    return {
        "generators": dict(global_generators()),
        "variables": variables,
        **modules,
    }
