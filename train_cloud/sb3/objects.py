"""The objects that callbacks, algorithm, policy and buffers hold, and how their state comes back into them.

At a session's first consistent point the objects that can be reached are written down by their paths, before anything
is restored: the same program has the same ones there in every session. Such an object is pickled as a reference, and
its state beside it, so that a restore changes the very object that closures, wrappers and the script's own variables
refer to. What was made later is pickled by value. What cannot be pickled is left out, and named in
:attr:`Objects.not_kept`.

Modules and classes of the user's own code are state too, as far as they differ from how the session found them.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import operator
import pickle
import sys
import types
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from train_cloud.envs.make import FAILURES
from train_cloud.sb3.contents import Contents
from train_cloud.sb3.kinds import (
    CONSTANT,
    HANDLES,
    LIST_KINDS,
    LISTS,
    SCHEDULES,
    WITH_STATE,
    Changes,
    ModuleChanges,
    content_of,
    function_state,
    has_state,
    is_data,
    is_importable,
    is_own,
    is_stock,
    items_of,
    kind_of,
    made_like,
    make,
    only_shows,
    own_modules,
    set_content,
    set_items,
    structure_of,
    variables_of,
    within,
)
from train_cloud.sb3.pickling import (
    ATOMIC,
    LEFT,
    LearnerPickler,
    StandIn,
    as_numpy,
    children,
    read,
)
from train_cloud.snapshot import Array

#: So many objects are looked at, once a session: about half a second. A clock would not stop at the same one each time.
MOST = 100_000


@dataclasses.dataclass
class Root:
    """Where to look.

    :ivar path: its name for people
    :ivar obj: itself; where its attributes are saved by somebody else, only as what others refer to
    :ivar attributes: what it holds, by name
    :ivar kind: ``root`` where somebody else saves its attributes, ``buffer`` where they are saved here
    :ivar skipped: names of a buffer's attributes that somebody else saves
    """

    path: str
    obj: Any
    attributes: Callable[[], Mapping[str, Any]]
    kind: str = "root"
    skipped: frozenset[str] = frozenset()


@dataclasses.dataclass
class _Found:
    """What a name of a module or a class stood for.

    :ivar mark: of its content; None where that cannot change
    """

    value: Any
    mark: _Mark | None


@dataclasses.dataclass
class _Names:
    """A module or a class of the user's, as it was found.

    :ivar values: of its names, in their order
    :ivar found: by name
    :ivar marked: those whose content may change
    """

    values: list[Any]
    found: dict[str, _Found]
    marked: dict[str, _Found]


@dataclasses.dataclass
class _Mark:
    """A content, as it was found.

    :ivar parts: what it consisted of: as long as these are the same objects, it is the same; None where only a checksum
        tells
    :ivar checksum: equal for equal content; None where it has none
    """

    parts: list[Any] | None
    checksum: int | None


@dataclasses.dataclass
class _Large:
    """A large content that is only compared, as it was found.

    :ivar sign: what tells quickly that it was not changed; None where only the checksum does
    :ivar checksum: the same in a fresh process
    """

    sign: Any
    checksum: int | None


@dataclasses.dataclass
class _Known:
    """A live object.

    :ivar kind: what its state consists of
    :ivar always: whether its state is saved even where it is as it was found
    :ivar before: how it was found
    :ivar values: of a function's variables, as they were found, where each can only be replaced: there is a few dozens
        of these in a module with dataclasses
    """

    path: str
    obj: Any
    kind: str
    always: bool = True
    before: Any = None
    values: list[Any] | None = None


class Objects:
    """All of a session's.

    :param roots: where to look, in an order that is the same in each session
    :param elsewhere: objects that somebody else saves, by name: never looked into
    :param optimizers: whose states are saved by somebody else, as long as they have the same parameters
    :param gradients: whether the gradients of tensors that somebody else saves are state
    :param classes: whose own attributes and functions are looked at besides, as far as they are of the user's code
    :param constants: whether what is large and stays as it was found is only compared: a dataset, which a fresh process
        reads again
    """

    def __init__(
        self,
        roots: Sequence[Root],
        elsewhere: Mapping[str, Any],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        *,
        gradients: bool = False,
        classes: Iterable[type] = (),
        constants: bool = False,
    ) -> None:
        self.roots = list(roots)
        self.not_kept: dict[str, str] = {}
        """Path of what a checkpoint does not keep → why."""
        self.environments: dict[str, VecEnv | gymnasium.Env[Any, Any]] = {}
        """Environments that were found besides the training's own, by path."""
        self.captured: dict[int, Any] = {}
        """After :meth:`dump`: the objects that are in the pickle, by id."""
        self.tensors: dict[str, torch.Tensor] = {}
        """After :meth:`load`: those that the pickle refers to, for whoever puts them back."""
        self.unread: Callable[[str], Collection[str]] = lambda module: ()
        """Names of a module of code that nothing reads before they are set again: they are no state."""
        self._beside: Mapping[str, Array] = {}
        self._known: dict[int, _Known] = {}
        self._paths: dict[str, _Known] = {}
        self._references: dict[int, tuple[str, Any]] = {}
        self._seen: dict[int, Any] = {}
        self._functions: list[tuple[str, types.FunctionType]] = []
        self._left: dict[type, str] = {}
        self._named: set[int] = set()
        self._dropped: list[_Place] = []
        self._missing: list[str] = []
        self._always = True
        self._gradients, self._constants = gradients, constants
        self._constant_now: set[int] = set()
        self._looked_at = 0
        for path, obj in elsewhere.items():
            self._note(path, obj, "elsewhere")
        tensors = [(path, obj) for path, obj in elsewhere.items() if isinstance(obj, torch.Tensor)]
        self._tensors, self._flags = tensors, [tensor.requires_grad for _, tensor in tensors]
        self._optimizers = {id(optimizer) for optimizer in optimizers}
        for root in self.roots:
            self._note(root.path, root.obj, root.kind)
            self._known[id(root.obj)].before = root.skipped
        for root in self.roots:
            for name, value in root.attributes().items() if self._looked_at <= MOST else ():
                self._look(f"{root.path}.{name}", value)
            self._look_at(_classes_of(type(root.obj)))
        self._always = False
        for kind in dict.fromkeys(classes):
            self._look_at(_classes_of(kind))
        for name in own_modules():
            if self._looked_at <= MOST:
                self._look_at_module(name)
        for known in self._known.values():
            known.before = self._found(known)
            if known.kind == "function" and not known.always:
                values = variables_of(known.obj)
                known.values = values if all(map(self._stays, values)) else None

    # ------------------------------------------------------------------------------------------------------ looking

    def _note(self, path: str, obj: Any, kind: str) -> None:
        if id(obj) in self._known:
            return
        known = _Known(path, obj, kind, self._always)
        self._known[id(obj)] = self._paths[path] = known
        # Lists are pickled too often to be asked about each time; what has a name is found by it.
        if type(obj) not in LISTS and not is_importable(obj):
            self._references[id(obj)] = (path, made_like(obj, kind))

    def _look(self, path: str, obj: Any) -> None:
        """Depth first, in the order of attributes; without recursion, as chains of objects may be long."""
        self._look_at([(path, obj)])

    def _look_at(self, waiting: list[tuple[str, Any]]) -> None:
        while waiting:
            path, obj = waiting.pop()
            kind = type(obj)
            if kind in ATOMIC or id(obj) in self._known or id(obj) in self._seen:
                continue
            self._looked_at += 1
            if self._looked_at > MOST:
                self.not_kept[path] = f"there are more than {MOST:,} objects: it and what follows was not looked at"
                return
            how = kind_of(obj)
            if how is None:
                continue
            if self._constants and kind in (*LISTS, tuple) and len(obj) > _MANY:
                self._note(path, obj, "large")
                self._references[id(obj)] = (path, None)
                continue
            if how == "value":
                self._seen[id(obj)] = obj
            elif how == "through":
                self._seen[id(obj)] = obj
                waiting += reversed([(path + label, child) for label, child in children(obj)])
            elif how == "environment":
                self._note(path, obj, how)
                self.environments[path] = obj
            elif how == "function" and not has_state(obj):
                self._seen[id(obj)] = obj
                self._functions.append((path, obj))
            else:
                while how == "class" and path in self._paths:
                    path += "'"  # a function that was called twice has made two of one name
                self._note(path, obj, how)
                waiting += reversed([(path + label, child) for label, child in within(obj, how)])
                if how in ("object", "module"):
                    waiting += _classes_of(kind)

    def _look_at_module(self, name: str) -> None:
        module = sys.modules[name]
        self._note(f"module {name}", module, "module of code")
        for attribute, value in list(vars(module).items()):
            if self._looked_at <= MOST and is_data(attribute, value):
                self._look(f"module {name}.{attribute}", value)

    def _found(self, known: _Known) -> Any:
        """What later states are compared with."""
        if self._constants and (known.kind == "large" or _is_large(known.obj)) and known.kind in _LARGE_KINDS:
            return _Large(_sign_of(known.obj), self._large_checksum(known.obj))
        if id(known.obj) in self._optimizers:
            return structure_of(known.obj)
        if known.kind == "module":
            return ModuleChanges(known.obj)
        if known.kind == "buffer":
            return Changes(known.obj, known.before, not is_stock(type(known.obj)))
        if isinstance(known.obj, SCHEDULES):
            return dict(vars(known.obj))
        if known.kind in ("module of code", "class"):
            found = {name: self._as_found(name, value) for name, value in list(vars(known.obj).items())}
            marked = {name: one for name, one in found.items() if one.mark is not None}
            return _Names([one.value for one in found.values()], found, marked)
        if known.always or known.kind not in WITH_STATE:
            return None
        return self._mark(known.obj if known.kind == "array" else self._content(known))

    def _as_found(self, name: str, value: Any) -> _Found:
        of_its_own = kind_of(value) not in ("value", "through", *LIST_KINDS)  # a state of its own, or none
        if not is_data(name, value) or isinstance(value, type | types.FunctionType) or of_its_own:
            return _Found(value, None)
        return _Found(value, self._mark(value))

    def _mark(self, value: Any) -> _Mark:
        return _Mark(self._parts(value), self._checksum(value))

    def _is_as_found(self, value: Any, found: _Mark) -> bool:
        if found.parts is not None:
            parts = self._parts(value)
            if parts is not None and _are_same(parts, found.parts):
                return True
        return self._checksum(value) == found.checksum

    def _parts(self, value: Any) -> list[Any] | None:
        """The containers and objects of a small value, in an order that stays while nothing in it changes; None of a
        larger one, and where something in it may change that has no state of its own.
        """
        found: list[Any] = []
        seen: dict[int, int] = {}
        waiting = [value]
        while waiting:
            one = waiting.pop()
            kind = type(one)
            if kind in _CONTAINERS:
                found += (kind, len(one), seen.get(id(one)))
                if id(one) not in seen:
                    seen[id(one)] = len(seen)
                    waiting += (*one, *one.values()) if kind is dict else one
            elif self._stays(one):
                found.append(one)
            else:
                return None
            if len(found) + len(waiting) > _FEW:
                return None
        return found

    def _stays(self, one: Any) -> bool:
        """Whether there is nothing in it that may change, or it has a state of its own."""
        if type(one) in CONSTANT or one is LEFT or id(one) in self._references:
            return True
        if type(one) is tuple:
            return all(map(self._stays, one))
        return type(one) is types.FunctionType and (id(one) in self._seen or is_importable(one))

    def _checksum(self, value: Any) -> int | None:
        if type(value) in ATOMIC:
            return hash(value)
        if type(value) is np.ndarray and not value.dtype.hasobject:
            whole = np.ascontiguousarray(value).reshape(-1)
            return zlib.crc32(whole.view(np.uint8).data) if len(whole) else 0
        file = _Checksum()
        pickler = LearnerPickler(file, (), self._references, frozenset(self._left))
        try:
            pickler.dump(value)
        except FAILURES:
            return None
        for tensor in pickler.tensors.values():
            file.write(as_numpy(tensor.detach().cpu()).contiguous().numpy().tobytes())
        return file.checksum

    # ------------------------------------------------------------------------------------------------------- saving

    def states(self) -> dict[str, Any]:
        """What :meth:`restore` is given back: references and copies, to be pickled with :meth:`dump`."""
        found: list[tuple[str, str, Any]] = []
        lists = {}
        self._constant_now = set()
        for known in self._known.values():
            if isinstance(known.before, _Large):
                if self._is_constant(known.obj, known.before):
                    found.append((known.path, "constant", known.before.checksum))
                    self._constant_now.add(id(known.obj))
                elif type(known.obj) in LISTS:  # pickles make copies of them: see relink
                    lists[known.path] = known.obj
                else:
                    found.append((known.path, known.kind, self._content(known)))
            elif known.kind in WITH_STATE:
                if known.values is not None and _are_same(known.values, variables_of(known.obj)):
                    continue
                before = None if known.always else known.before
                if known.kind == "array" and isinstance(before, _Mark) and self._is_as_found(known.obj, before):
                    continue  # looked at where it is, as it may be large
                content = self._content(known)
                if content is not None and not (isinstance(before, _Mark) and self._is_as_found(content, before)):
                    found.append((known.path, known.kind, content))
            elif type(known.obj) in LISTS and known.always:
                lists[known.path] = known.obj
            elif known.kind in ("module of code", "class"):
                changed = self._changed(known)
                if changed:
                    found.append((known.path, known.kind, changed))
        for path, function in self._functions:
            if vars(function):
                self._note(path, function, "function")
                found.append((path, "function", function_state(function)))
        self._functions = [(path, function) for path, function in self._functions if not vars(function)]
        state: dict[str, Any] = {"objects": found, "lists": lists}
        if [tensor.requires_grad for _, tensor in self._tensors] != self._flags:
            state["requires_grad"] = {path: tensor.requires_grad for path, tensor in self._tensors}
        if self._gradients:
            state["gradients"] = {path: tensor.grad for path, tensor in self._tensors if tensor.grad is not None}
        return state

    def _changed(self, known: _Known) -> dict[str, Any]:
        """What a module or a class has under names that stood for something else, or something else in it, before."""
        names, before = vars(known.obj), known.before
        unread = self.unread(known.path.removeprefix("module ")) if known.kind == "module of code" else ()
        changed = {}
        if not _are_same(names.values(), before.values):
            for name, value in list(names.items()):
                found = before.found.get(name)
                if (found is not None and found.value is value) or name in unread:
                    continue
                if is_data(name, value) and not isinstance(value, type | types.FunctionType):
                    changed[name] = value
        for name, found in before.marked.items():
            if name in unread:
                continue
            if names.get(name, LEFT) is found.value and not self._is_as_found(found.value, found.mark):
                changed[name] = found.value
        return changed

    def _content(self, known: _Known) -> Any:
        if isinstance(known.obj, SCHEDULES) and vars(known.obj) == known.before:
            return None
        if known.kind in ("module", "buffer"):
            return known.before.now()
        if id(known.obj) in self._optimizers and structure_of(known.obj) == known.before:
            return None
        if known.kind != "file":
            return content_of(known.path, known.obj, known.kind)
        try:
            return int(known.obj.tell())
        except (OSError, ValueError) as error:
            self.not_kept[known.path] = f"how far it was read cannot be told: {error}"
            return None

    def is_constant(self, value: Any) -> bool:
        """Whether the last :meth:`states` has found it large and as it was, so that a fresh process makes it again."""
        return id(value) in self._constant_now

    def dump(
        self, state: dict[str, Any], envs: Sequence[Any], contents: Contents, beside: Mapping[str, torch.Tensor]
    ) -> tuple[bytes, dict[str, torch.Tensor]]:
        """One pickle of everything; what cannot be in it is left out and named.

        :param state: by name; of ``algorithm``, ``callbacks`` and the like, what a value is in can be told
        :param contents: takes what is large in it
        :param beside: tensors that somebody else saves, by name
        :return: the pickle, and the tensors that travel beside it, by name
        :raises Exception: whatever an object raises that is in none of these
        """
        for _ in range(_TRIES):
            for place in self._dropped:
                place.drop(state)
            stream = contents.begin()
            lasting = (tensor for _, tensor in self._tensors)
            pickler = LearnerPickler(stream, envs, self._references, frozenset(self._left), beside, lasting)
            try:
                pickler.dump(state)
            except FAILURES as error:
                if not self._leave_out(state, envs):
                    raise error
                continue
            if self._name(pickler.left, state):
                continue
            if not self.captured:
                self.captured = {key: obj for key, (_, obj) in pickler.memo.copy().items()}
            return contents.end(stream, pickler.tensors)
        raise pickle.PicklingError(f"more than {_TRIES} kinds of objects cannot be saved")

    def _leave_out(self, state: Mapping[str, Any], envs: Sequence[Any]) -> bool:
        """Find the classes of what cannot be pickled, and leave their objects out from now on.

        :return: whether there are any
        """
        known = len(self._left)
        for place in self._places(state):
            while (why := self._refusal(place.value, envs)) is not None:
                culprit, reason = self._deepest(place.value, envs, why)
                if type(culprit) in self._left or type(culprit) in (dict, list, tuple, set, *ATOMIC):
                    return False
                self._left[type(culprit)] = reason
        return len(self._left) > known

    def _name(self, left: Sequence[Any], state: Mapping[str, Any]) -> bool:
        """Name what was left out. What holds it and was made since the session began is left out with it: half of it
        would be worse than what a fresh session begins with.

        :return: whether there is more to leave out
        """
        unknown = {id(obj) for obj in left if id(obj) not in self._named}
        if not unknown:
            return False
        dropped = len(self._dropped)
        seen: set[int] = set()
        for place in self._places(state):
            waiting: list[tuple[str, Any, bool]] = [(place.path, place.value, False)]
            while waiting:
                path, obj, anew = waiting.pop()
                if id(obj) in unknown:
                    self._named.add(id(obj))
                    if obj is not place.value and place.keys not in [one.keys for one in self._dropped]:
                        self._dropped.append(place)
                    self._say(path, obj, anew, place)
                    continue
                if id(obj) in seen or type(obj) in ATOMIC or id(obj) in self._references:
                    continue
                seen.add(id(obj))
                # A library's object around a handle that was there when the session began: the next one makes its own.
                anew |= id(obj) in self._seen and not is_own(type(obj)) and type(obj).__module__ != "builtins"
                waiting += [(path + label, child, anew) for label, child in children(obj)]
        return len(self._dropped) > dropped

    def _say(self, path: str, obj: Any, anew: bool, place: _Place) -> None:
        reason = self._left.get(type(obj))
        if reason is not None and not (anew and isinstance(obj, HANDLES)):
            self.not_kept[path] = reason
        elif obj is not place.value and not only_shows(place.value):
            self.not_kept[place.path] = f"it holds an open {type(obj).__name__}, which cannot be saved"

    def _places(self, state: Mapping[str, Any]) -> Iterator[_Place]:
        callbacks = [root.path for root in self.roots if isinstance(root.obj, BaseCallback)]
        for name in ("algorithm", "learners", "callbacks", "variables", "stateful", "objects", "lists"):
            value = state.get(name, ())
            if name == "algorithm":
                yield from (_Place(f"algorithm.{key}", child, (name, key)) for key, child in dict(value).items())
            elif name == "learners":
                for learner, content in dict(value).items():
                    for key, child in content["algorithm"].items():
                        path = f"algorithm.learners[{learner!r}].{key}"
                        yield _Place(path, child, (name, learner, "algorithm", key))
            elif name == "callbacks":
                for index, (path, content) in enumerate(zip(callbacks, value, strict=True)):
                    yield from (_Place(f"{path}.{key}", child, (name, index, key)) for key, child in content.items())
            elif name == "objects":
                for path, kind, content in value:
                    if isinstance(content, dict) and kind in ("object", "module", "buffer", "class", "module of code"):
                        yield from (_Place(f"{path}.{key}", one, (name, path, key)) for key, one in content.items())
                    else:
                        yield _Place(path, content, (name, path))
            elif name == "variables":
                for path, content in dict(value).items():
                    yield from (_Place(f"{path}.{key}", child, (name, path, key)) for key, child in content.items())
            else:
                yield from (_Place(path, child, (name, path)) for path, child in dict(value).items())

    def _refusal(self, value: Any, envs: Sequence[Any]) -> str | None:
        try:
            LearnerPickler(_Checksum(), envs, self._references, frozenset(self._left)).dump(value)
        except FAILURES as error:
            return f"{type(error).__name__}: {error}" if not isinstance(error, pickle.PicklingError) else str(error)
        return None

    def _deepest(self, value: Any, envs: Sequence[Any], why: str) -> tuple[Any, str]:
        """The innermost object that cannot be pickled, and why."""
        seen = {id(value)}
        while True:
            for _, child in children(value):
                if id(child) in seen or type(child) in ATOMIC or id(child) in self._references:
                    continue
                seen.add(id(child))
                refusal = self._refusal(child, envs)
                if refusal is not None:
                    value, why = child, refusal
                    break
            else:
                return value, why

    # ---------------------------------------------------------------------------------------------------- restoring

    def at(self, path: str, kind: Any) -> Any:
        """See :class:`~train_cloud.sb3.pickling.Live`."""
        known = self._paths.get(path)
        if known is not None and (kind is None or made_like(known.obj, known.kind) == kind):
            return known.obj
        if path not in self._missing:
            self._missing.append(path)
        made = make(kind)
        if made is not LEFT:
            self._note(path, made, kind_of(made) or "value")
        return made

    def array(self, name: str) -> Array:
        """See :class:`~train_cloud.sb3.pickling.Live`."""
        return self._arrays[name]

    def beside(self, name: str, device: str) -> torch.Tensor:
        """See :class:`~train_cloud.sb3.pickling.Live`."""
        if name not in self.tensors:
            self.tensors[name] = torch.from_numpy(self._beside[name].copy()).to(device)
        return self.tensors[name]

    def load(self, blob: bytes, arrays: Mapping[str, Array], envs: Sequence[Any], beside: Mapping[str, Array]) -> Any:
        """Read a pickle; references lead to the live objects, whose states are as they were.

        :param beside: what somebody else has saved, by the names that :meth:`dump` was given
        """
        self._arrays, self._beside, self.tensors = arrays, beside, {}
        return read(blob, envs, self)

    def relink(self, state: dict[str, Any]) -> None:
        """Lists, dicts and sets that were there before stay the same objects: put them where the pickle has copies."""
        pairs: list[tuple[Any, Any]] = []
        taken: set[int] = set()

        def pair(live: Any, loaded: Any) -> None:
            if type(live) is type(loaded) and type(live) in LISTS and live is not loaded and id(live) not in taken:
                pairs.append((live, loaded))
                taken.add(id(live))

        for path, loaded in state.get("lists", {}).items():
            if path in self._paths:
                pair(self._paths[path].obj, loaded)
        for path, kind, content in state.get("objects", ()):
            if path in self._paths and kind in ("module of code", "class"):
                for name, loaded in content.items():
                    pair(vars(self._paths[path].obj).get(name), loaded)
        if pairs:
            _Relinked({id(loaded): live for live, loaded in pairs}).within(state)
        for live, loaded in pairs:
            set_items(live, items_of(loaded))

    def restore(self, state: Mapping[str, Any], but: Collection[str] = ()) -> None:
        """Put the saved states into the live objects.

        :param but: names of attributes of an algorithm and its buffers that stay as they are
        """
        live = dict(self._functions)
        kept = tuple(f"{root.path}.{name}" for root in self.roots if root.path.startswith("algorithm") for name in but)
        for path, kind, content in state.get("objects", ()):
            if kind == "constant":
                self._compare_constant(path, content)
                continue
            if content is LEFT or (kept and path.startswith(kept)):
                continue
            if kind == "buffer":
                content = {name: value for name, value in content.items() if name not in but}
            if path in live:
                self._note(path, live[path], "function")
            known = self._paths.get(path)
            if known is None or known.kind != kind:
                self._missing.append(path)
                continue
            set_content(known.obj, known.kind, content)
        for path, tensor in self._tensors:
            if path in state.get("requires_grad", ()):
                tensor.requires_grad_(state["requires_grad"][path])
            if "gradients" in state:
                grad = state["gradients"].get(path)
                tensor.grad = None if grad is None else grad.to(tensor.device)

    def _compare_constant(self, path: str, checksum: int | None) -> None:
        known = self._paths.get(path)
        if known is None:
            self._missing.append(path)
        elif not isinstance(known.before, _Large) or known.before.checksum != checksum:
            why = "it is large, no step had changed it, so it was not saved; now it is another one from the start"
            self.not_kept[path] = why

    def _large_checksum(self, value: Any) -> int | None:
        if isinstance(value, torch.Tensor):
            value = as_numpy(value.detach().cpu()).contiguous().numpy()
        return self._checksum(value)

    def _is_constant(self, value: Any, found: _Large) -> bool:
        if found.checksum is None or _sign_of(value) != found.sign:
            return False
        return found.sign is not None or self._large_checksum(value) == found.checksum

    @property
    def reached(self) -> list[Any]:
        """All that was looked at."""
        return [*self._seen.values(), *(known.obj for known in self._known.values())]

    @property
    def missing(self) -> list[str]:
        """Paths that the checkpoint has, and this session's program has not."""
        return list(dict.fromkeys(self._missing))


def _classes_of(kind: type) -> list[tuple[str, type]]:
    """A class and those that it is derived from, as far as they are of the user's own code: functions make classes,
    too, which no module shows.
    """
    return [(f"class {parent.__module__}.{parent.__qualname__}", parent) for parent in kind.__mro__ if is_own(parent)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Place:
    """Where a value stands in the state, and its path for people."""

    path: str
    value: Any
    keys: tuple[Any, ...]

    def drop(self, state: dict[str, Any]) -> None:
        """Leave the value out."""
        if self.keys[0] == "lists":
            state["lists"].pop(self.keys[1], None)
        elif self.keys[0] == "objects":
            for position, (path, kind, content) in enumerate(state["objects"]):
                if path == self.keys[1]:
                    shown = {**content, self.keys[2]: LEFT} if len(self.keys) > 2 else LEFT
                    state["objects"][position] = (path, kind, shown)
        else:
            within: Any = state
            for key in self.keys[:-1]:
                within = within[key]
            if self.keys[-1] in within:
                within[self.keys[-1]] = LEFT


def _are_same(left: Collection[Any], right: Collection[Any]) -> bool:
    return len(left) == len(right) and all(map(operator.is_, left, right))


_TRIES = 50
#: What is larger, or has more items, may be only compared.
_LARGE_BYTES, _MANY = 1 << 20, 10_000
_LARGE_KINDS = ("tensor", "array", "large")


def _is_large(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        plain = value.layout is torch.strided and not value.is_quantized and not value.is_meta
        return plain and not value.requires_grad and value.nbytes >= _LARGE_BYTES
    return isinstance(value, np.ndarray) and not value.dtype.hasobject and value.nbytes >= _LARGE_BYTES


def _sign_of(value: Any) -> Any:
    """What changes with a large value; None where nothing shows it."""
    if isinstance(value, torch.Tensor):
        return value._version, value.data_ptr(), tuple(value.shape)
    return None


_CONTAINERS = (list, tuple, dict, set, frozenset)
#: Parts of a value up to which looking at each is quicker than pickling it.
_FEW = 60


class _Checksum(io.RawIOBase):
    """A file that keeps only a checksum of what is written."""

    def __init__(self) -> None:
        self.checksum = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        return memoryview(data).nbytes


class _Relinked:
    """Replaces objects in what a pickle has given.

    :param same: id of an object of the pickle → the live one
    """

    def __init__(self, same: Mapping[int, Any]) -> None:
        self._same = same
        self._done: dict[int, Any] = {}

    def within(self, value: Any) -> Any:
        """The value, or what takes its place."""
        kind = type(value)
        if kind in ATOMIC or isinstance(value, StandIn):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        self._done[id(value)] = self._same.get(id(value), value)
        if kind is dict:
            for key, item in list(value.items()):
                value[key] = self.within(item)
        elif kind is list:
            value[:] = [self.within(item) for item in value]
        elif kind is tuple:
            items = tuple(self.within(item) for item in value)
            if any(new is not old for new, old in zip(items, value, strict=True)):
                self._done[id(value)] = items
        elif isinstance(value, collections.deque):
            for position, item in enumerate(list(value)):
                value[position] = self.within(item)
        elif kind_of(value) in ("object", "value") and isinstance(getattr(value, "__dict__", None), dict):  # no class
            for name, item in list(vars(value).items()):
                vars(value)[name] = self.within(item)
        return self._done[id(value)]
