"""One pickle of what a learner's objects hold, in which they stay shared.

What exists in a fresh process of the same program as well (:class:`~train_cloud.sb3.objects.Objects` knows these by
their paths) is pickled as a reference, and read as the live object. Tensors and large arrays travel beside the pickle,
as arrays that can be read on any device. Lambdas and local functions, which ``pickle`` refuses, are pickled with their
code; cloudpickle would do that too, but gives each function cells and globals of its own, and what two functions share
is state.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import io
import itertools
import marshal
import pickle
import struct
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeVar

import gymnasium
import numpy as np
import torch

from train_cloud.config.current import artifact_folder, artifact_folders, current
from train_cloud.config.shapes import Section
from train_cloud.envs.pickling import Pickler, Sections, Stream, loads
from train_cloud.snapshot import OF_THE_BLOB, Array

#: Names of arrays that belong to the pickle begin with it; the others are the model's tensors.
OWN = "own|"
#: And those that have no path, in the order in which they were met.
UNNAMED = OF_THE_BLOB
#: What a pickle begins with of which large contents were kept out: then how many, and where in it they belong.
MARK = b"LARGE\n"
_COUNT = struct.Struct("<Q")
#: Classes of what only shows or writes something down. Nothing that is learned depends on it, and a fresh process
#: makes its own.
OUTPUTS = (
    "tqdm", "rich", "wandb", "tensorboard", "tensorboardX", "torch.utils.tensorboard", "mlflow", "neptune", "comet_ml",
    "aim", "logging", "matplotlib", "boto3", "botocore", "IPython", "stable_baselines3.common.logger",
)  # fmt: skip


T = TypeVar("T")


def for_each_class(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Computes it once for each class."""
    return functools.cache(function)


class _Left:
    """Stands in a pickle for what is not kept; whoever reads it leaves what is there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _left, ()

    def __repr__(self) -> str:
        return "not kept"


LEFT = _Left()


def _left() -> _Left:
    return LEFT


class Whole:
    """Stands in a pickle where parts begin, and end, of which nothing may be left out: states of environments, which
    are put back by somebody who knows nothing of :data:`LEFT`.
    """

    def __init__(self, begins: bool) -> None:
        self.begins = begins


class Value:
    """Stands in a pickle for a tensor's value; it is read as a tensor of its own.

    :param path: names it beside the pickle, the same in each session
    """

    def __init__(self, path: str, tensor: torch.Tensor) -> None:
        self.path, self.tensor = path, tensor


class Live(Protocol):
    """Where references lead when a pickle is read."""

    def at(self, path: str, kind: Any) -> Any:
        """The live object of that path.

        :param kind: its class, to make one where there is none; None where nothing can be made
        """

    def array(self, name: str) -> Array:
        """The array that travelled beside the pickle."""

    def beside(self, name: str, device: str) -> Any:
        """The tensor of that name that somebody else saves, and puts back: the very one."""


_live: ContextVar[Live] = ContextVar("train_cloud_live_objects")


# Functions that pickles name: their names and arguments are part of the checkpoint's format.


def _at(path: str, kind: Any) -> Any:
    return _live.get().at(path, kind)


def _array(name: str) -> Any:  # of checkpoints of earlier versions
    return _live.get().array(name).copy()


def _tensor(name: str, dtype: str, device: str, requires_grad: bool, parameter: bool) -> Any:
    array = _live.get().array(name)
    made = torch.from_numpy(array.copy())
    if made.dtype is not getattr(torch, dtype):
        made = made.view(getattr(torch, dtype))
    kind = torch.device(device)
    if kind.type != "cuda" or torch.cuda.is_available():
        made = made.to(kind)
    return torch.nn.Parameter(made, requires_grad) if parameter else made.requires_grad_(requires_grad)


def _beside(name: str, device: str) -> Any:
    return _live.get().beside(name, device)


def _alias(owner: Any, size: Sequence[int], stride: Sequence[int], offset: int, requires_grad: bool) -> Any:
    """A tensor in the memory of another one."""
    if not isinstance(owner, torch.Tensor):
        return owner  # a stand-in, where a state is read without its program
    return owner.detach().as_strided(size, stride, offset).requires_grad_(requires_grad)


def _saved_tensor(blob: bytes) -> Any:
    return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=False)


def _function(code: bytes, module: str, name: str, cells: tuple[Any, ...]) -> Any:
    return types.FunctionType(marshal.loads(code), vars(importlib.import_module(module)), name, None, cells)


def _set_function(function: Any, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        setattr(function, name, value)


def _cell() -> Any:
    return types.CellType()


def _set_cell(cell: Any, content: Sequence[Any]) -> None:
    if content and content[0] is not LEFT:
        cell.cell_contents = content[0]


def _run_file() -> Any:
    return current() or LEFT


def _artifact_path(within: str) -> Any:
    return Path(artifact_folder(), within)


def _lock() -> Any:
    return threading.Lock()


def _rlock() -> Any:
    return threading.RLock()


def _of_main(name: str) -> Any:
    """A class or function of the script that runs; where another program reads, a class that stands for it."""
    found: Any = sys.modules["__main__"]
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        if not isinstance(_live.get(), Nowhere):
            raise
        return _standing_class(f"__main__.{name}", name.rpartition(".")[2])
    return found


def _is_of_main(obj: Any) -> bool:
    if not isinstance(obj, type | types.FunctionType) or obj.__module__ != "__main__":
        return False
    found: Any = sys.modules["__main__"]
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _reference(target: Any) -> Any:
    return weakref.ref(_Gone() if target is None else target)


class _Gone:
    """What a weak reference leads to no more."""


def _reading(path: str, mode: str, encoding: str | None, position: int) -> Any:
    """A file that was open for reading; the next line is the next line."""
    if not Path(path).is_file():
        return LEFT
    file = Path(path).open(mode, encoding=encoding)  # noqa: SIM115 - its holder closes it
    file.seek(position)
    return file


class LearnerPickler(Pickler):
    """Pickles states of a learner and of its environments together.

    :param envs: as for :class:`train_cloud.envs.state.Pickler`
    :param references: id of a live object → its path and what it is, see :meth:`Live.at`
    :param left: classes of which no object is kept
    :param beside: tensors that somebody else saves, by name, see :meth:`Live.beside`
    :param lasting: others that are referred to: what shares its memory with one of all these will again
    """

    def __init__(
        self,
        file: Any,
        envs: Sequence[Any] = (),
        references: Mapping[int, tuple[str, Any]] | None = None,
        left: frozenset[type] = frozenset(),
        beside: Mapping[str, torch.Tensor] | None = None,
        lasting: Iterable[torch.Tensor] = (),
    ) -> None:
        super().__init__(file, envs)
        self._beside = {id(tensor): name for name, tensor in (beside or {}).items()}
        self._lasting = itertools.chain(lasting, (beside or {}).values())
        self._owners: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self._references = references or {}
        self._kept_out = left
        self._whole = False
        self.left: list[Any] = []
        """Objects that were left out."""
        self.tensors: dict[str, torch.Tensor] = {}
        """What travels beside the pickle, by name."""

    def reducer_override(self, obj: Any) -> Any:
        if id(obj) in self._references:
            return _at, self._references[id(obj)]
        if id(obj) in self._beside:
            return _beside, (self._beside[id(obj)], str(obj.device))
        kind = type(obj)
        if kind is np.ndarray:
            return self.reduce_view(obj)
        if _is_of_main(obj):
            return _of_main, (obj.__qualname__,)
        if kind in self._kept_out and not self._whole:
            self.left.append(obj)
            return _left, ()
        rule = _rule_of(kind)
        found = NotImplemented if rule is None else rule(self, obj)
        return super().reducer_override(obj) if found is NotImplemented else found

    def owner_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor that has the whole memory which this one lies in; None where none is known."""
        memory = _memory_of(tensor)
        # Asked for when the first tensor comes: most snapshots have none that is not one of these.
        self._owners |= {_memory_of(one): one for one in self._lasting if _is_dense(one)}
        if memory not in self._owners:
            base = tensor if tensor._base is None else tensor._base
            if base.dtype is tensor.dtype and base.nbytes == base.untyped_storage().nbytes() > 0:
                self._owners[memory] = base
        return self._owners.get(memory)


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def _memory_of(tensor: torch.Tensor) -> tuple[int, torch.dtype]:
    return tensor.untyped_storage().data_ptr(), tensor.dtype


_Rule = Callable[[LearnerPickler, Any], Any]


@for_each_class
def _rule_of(kind: Any) -> _Rule | None:
    """How objects of a class are pickled that ``pickle`` cannot pickle, or not well enough; None for all others."""
    if is_output(kind):
        return _reduce_output
    return next((rule for parent, rule in _RULES if issubclass(kind, parent)), None)


def is_output(kind: type) -> bool:
    """Whether the class is one of :data:`OUTPUTS`, however it is derived."""
    return any(_within(parent.__module__, OUTPUTS) for parent in kind.__mro__ if parent is not object)


def _within(module: object, names: Sequence[str]) -> bool:
    return isinstance(module, str) and any(module == name or module.startswith(name + ".") for name in names)


def _reduce_whole(pickler: LearnerPickler, whole: Whole) -> Any:
    pickler._whole = whole.begins
    return _left, ()


def _reduce_output(pickler: LearnerPickler, output: Any) -> Any:
    if pickler._whole:
        return NotImplemented
    pickler.left.append(output)
    return _left, ()


def _reduce_value(pickler: LearnerPickler, value: Value) -> Any:
    return _reduce_tensor(pickler, value.tensor.detach(), OWN + value.path)


def _reduce_tensor(pickler: LearnerPickler, tensor: torch.Tensor, name: str | None = None) -> Any:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not (tensor.is_conj() or tensor.is_neg())
    if not _is_dense(tensor) or not plain:
        file = io.BytesIO()
        torch.save(tensor, file)
        return _saved_tensor, (file.getvalue(),)
    # What `detach()`, `.data` or `state_dict()` gave is another tensor with the same memory.
    owner = pickler.owner_of(tensor) if name is None else None
    if owner is not None and owner is not tensor:
        place = tuple(tensor.size()), tensor.stride(), tensor.storage_offset()
        return _alias, (owner, *place, tensor.requires_grad and tensor.is_leaf)
    name = name or f"{UNNAMED}t{len(pickler.tensors)}"
    pickler.tensors[name] = tensor
    dtype = str(tensor.dtype).removeprefix("torch.")
    parameter = isinstance(tensor, torch.nn.Parameter)
    # A tensor with a history is a value from here on: the graph that it came from is not kept.
    return _tensor, (name, dtype, str(tensor.device), tensor.requires_grad and tensor.is_leaf, parameter)


def as_numpy(tensor: torch.Tensor) -> torch.Tensor:
    """The same bytes in a type that NumPy has."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16)
    if str(tensor.dtype).startswith("torch.float8"):
        return tensor.view(torch.uint8)
    return tensor


def _in_parts(reduced: Any) -> tuple[Any, ...]:
    return tuple(reduced)


def _reduce_optimizer(pickler: LearnerPickler, optimizer: torch.optim.Optimizer) -> Any:
    """With attributes that torch knows nothing of; its own are made anew."""
    if type(optimizer).__getstate__ is not torch.optim.Optimizer.__getstate__:
        return NotImplemented
    make, arguments, state, *rest = _in_parts(optimizer.__reduce_ex__(4))
    added = {name: value for name, value in vars(optimizer).items() if name[0] != "_" and name not in (*state, "step")}
    return make, arguments, {**state, **added}, *rest


def _reduce_function(pickler: LearnerPickler, function: types.FunctionType) -> Any:
    module, name = function.__module__, function.__qualname__
    with contextlib.suppress(ImportError, AttributeError):
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        if found is function:
            return NotImplemented  # by its name
    state: dict[str, Any] = {"__defaults__": function.__defaults__, "__kwdefaults__": function.__kwdefaults__}
    state |= {"__qualname__": name, "__dict__": dict(vars(function))}
    arguments = (marshal.dumps(function.__code__), module, function.__name__, function.__closure__ or ())
    return _function, arguments, state, None, None, _set_function


def _reduce_configuration(pickler: LearnerPickler, found: Section) -> Any:
    """The run file that is trained is the session's own: it tells folders of this machine."""
    return (_run_file, ()) if found is current() else NotImplemented


def _reduce_path(pickler: LearnerPickler, path: PurePath) -> Any:
    """A path into the session's folder of artifacts leads into the next session's."""
    for folder in artifact_folders():
        if path.is_relative_to(folder):
            return _artifact_path, (str(path.relative_to(folder)),)
    return NotImplemented


def _reduce_cell(pickler: LearnerPickler, cell: types.CellType) -> Any:
    try:
        content = [cell.cell_contents]
    except ValueError:
        content = []  # its variable has no value yet
    return _cell, (), content, None, None, _set_cell


def _reduce_module(pickler: LearnerPickler, module: types.ModuleType) -> Any:
    return importlib.import_module, (module.__name__,)


def _reduce_lock(pickler: LearnerPickler, lock: Any) -> Any:
    if not lock.acquire(blocking=False):
        raise pickle.PicklingError("the lock is held")
    lock.release()
    return (_rlock if isinstance(lock, _RLOCK) else _lock), ()


def _reduce_weak_reference(pickler: LearnerPickler, reference: Any) -> Any:
    return _reference, (reference(),)


def _reduce_file(pickler: LearnerPickler, file: Any) -> Any:
    if pickler._whole:
        return NotImplemented
    if file.closed or file.writable():
        return _reduce_output(pickler, file)
    return _reading, (str(file.name), file.mode, getattr(file, "encoding", None), file.tell())


def _reduce_memory(pickler: LearnerPickler, file: Any) -> Any:
    return NotImplemented


_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_RULES: tuple[tuple[Any, _Rule], ...] = (
    (Whole, _reduce_whole),
    (Value, _reduce_value),
    (Section, _reduce_configuration),
    (Path, _reduce_path),
    (torch.Tensor, _reduce_tensor),
    (torch.optim.Optimizer, _reduce_optimizer),
    (types.FunctionType, _reduce_function),
    (types.CellType, _reduce_cell),
    (types.ModuleType, _reduce_module),
    (_LOCK, _reduce_lock),
    (_RLOCK, _reduce_lock),
    (weakref.ref, _reduce_weak_reference),
    (io.BytesIO, _reduce_memory),
    (io.StringIO, _reduce_memory),
    (io.IOBase, _reduce_file),
)


# ---------------------------------------------------------------------------------------------------------- reading


class Nowhere:
    """Reads a pickle where nothing of its program is alive: references become stand-ins with their paths.

    :param arrays: that travelled beside it
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays
        self._standing: dict[str, Any] = {}

    def at(self, path: str, kind: Any) -> Any:
        if path not in self._standing:
            local = isinstance(kind, tuple) and kind[0] == "class"
            self._standing[path] = _standing_class(path, kind[1]) if local else StandIn(path)
        return self._standing[path]

    def array(self, name: str) -> Array:
        return self._arrays[name]

    def beside(self, name: str, device: str) -> Any:
        return StandIn(name)

    def __contains__(self, path: object) -> bool:
        """Whether it was referred to."""
        return path in self._standing


@functools.cache
def _standing_class(path: str, name: str) -> type:
    """For a local class, of which a pickle has objects."""
    return type(name, (), {"__doc__": path})


class StandIn:
    """For an object that is alive in the program only.

    :ivar path: the object's
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"<{self.path}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StandIn) and other.path == self.path

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("__") or name == "path":
            raise AttributeError(name)
        return StandIn(f"{self.path}.{name}")

    def __call__(self, *arguments: Any, **named: Any) -> StandIn:
        """Where the pickle calls what it refers to."""
        return self


def marked(stream: Stream) -> bytes:
    """What was written to it, without large contents; as it is where there are none."""
    count = len(stream.at)
    return MARK + struct.pack(f"<{count + 1}Q", count, *stream.at) + stream.rest() if count else stream.rest()


def _sections(blob: bytes, live: Live) -> Sections:
    """The inverse of :func:`marked`."""
    (count,) = _COUNT.unpack_from(blob, len(MARK))
    begins = len(MARK) + (count + 1) * _COUNT.size
    at = struct.unpack_from(f"<{count}Q", blob, len(MARK) + _COUNT.size)
    return Sections(blob[begins:], at, [live.array(f"{UNNAMED}{number}") for number in range(count)])


def read(blob: bytes, envs: Sequence[gymnasium.Env[Any, Any]], live: Live) -> Any:
    """The counterpart of a dump with :class:`LearnerPickler`.

    :param envs: the live environments that states in it are for
    """
    token = _live.set(live)
    try:
        return loads(_sections(blob, live) if blob.startswith(MARK) else blob, envs)
    finally:
        _live.reset(token)


def children(obj: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, with how that is written behind its path: as far as Python code can reach it."""
    kind = type(obj)
    if isinstance(obj, Mapping):
        for key, value in list(obj.items()):
            yield f"[{key!r}]", value
    elif isinstance(obj, types.FunctionType):
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):
                yield f".{name}", cell.cell_contents
        for position, value in enumerate(obj.__defaults__ or ()):
            yield f".__defaults__[{position}]", value
        for name, value in (obj.__kwdefaults__ or {}).items():
            yield f".__kwdefaults__[{name!r}]", value
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, functools.partial):
        yield ".func", obj.func
        for position, value in enumerate(obj.args):
            yield f".args[{position}]", value
        for name, value in obj.keywords.items():
            yield f".keywords[{name!r}]", value
    elif isinstance(obj, np.ndarray):
        if obj.dtype.hasobject:
            for position, value in enumerate(obj.ravel().tolist()):
                yield f".flat[{position}]", value
    elif isinstance(obj, list | tuple | set | frozenset | deque):
        for position, value in enumerate(list(obj)):
            yield f"[{position}]", value
    if not isinstance(obj, type):
        for name, value in list(getattr(obj, "__dict__", {}).items()):
            yield f".{name}", value
    for name in slots_of(kind):
        with contextlib.suppress(AttributeError):
            yield f".{name}", getattr(obj, name)


@for_each_class
def slots_of(kind: Any) -> tuple[str, ...]:
    """Names of a Python class's slots that hold values."""
    found = []
    for parent in kind.__mro__:
        names = vars(parent).get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            private = name.startswith("__") and not name.endswith("__")
            own = f"_{parent.__name__.lstrip('_')}{name}" if private else name
            if own not in ("__dict__", "__weakref__") and isinstance(vars(parent).get(own), types.MemberDescriptorType):
                found.append(own)
    return tuple(dict.fromkeys(found))


#: Values that nothing can change, so that it makes no difference who holds them.
ATOMIC: frozenset[type] = frozenset(
    (int, float, str, bytes, bool, complex, type(None), type(Ellipsis), type(NotImplemented), range, slice,
     builtins.property, types.BuiltinFunctionType, types.CodeType, types.ModuleType, types.MappingProxyType,
     types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType,
     types.MethodDescriptorType, types.ClassMethodDescriptorType, types.GenericAlias,
     torch.dtype, torch.device, torch.Size)
)  # fmt: skip
