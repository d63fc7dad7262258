"""The whole state of a loop of one's own, captured and put back at the top of an iteration.

What is registered has names in the checkpoint that people can read: tensors of modules and optimisers. All else is
found: what the loop's variables, the modules' attributes and the modules of the user's own code hold is kept by default
(``sb3.objects``), and what cannot be kept is named. Objects that a fresh process of the same program has too are put
back into these very objects.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from train_cloud.envs.make import FAILURES
from train_cloud.envs.state import dumps, undisturbed
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.pytorch import graphs
from train_cloud.pytorch.rows import Appended, rows_of, take_rows
from train_cloud.pytorch.variables import Place
from train_cloud.sb3.capture import copied, cuda_generators, set_generators
from train_cloud.sb3.contents import Contents, size_of
from train_cloud.sb3.kinds import WITH_STATE, count_main, kind_of
from train_cloud.sb3.objects import Objects, Root
from train_cloud.sb3.pickling import LEFT, OWN, as_numpy
from train_cloud.sb3.vectorized import choice_of, get_single, get_vecenv, set_single, set_vecenv
from train_cloud.snapshot import Array, Part, Snapshot

KIND = "pytorch"
_KEPT_AS_FOUND = ("list", "dict", "set")
#: Settings of the process that a loop may change while it runs.
_SETTINGS: Mapping[str, tuple[Any, Any]] = {
    "grad_enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "cudnn.benchmark": (
        lambda: torch.backends.cudnn.benchmark,
        lambda value: setattr(torch.backends.cudnn, "benchmark", value),
    ),
    "cudnn.deterministic": (
        lambda: torch.backends.cudnn.deterministic,
        lambda value: setattr(torch.backends.cudnn, "deterministic", value),
    ),
}


class _Holder:
    """Stands where a walk begins."""


class Capture:
    """:param registered: by name, as ``resumable`` was given them
    :param rows: append-only buffers by name
    :param places: the functions that the loop runs in, innermost first
    :param own: objects of ours, by name
    """

    def __init__(
        self,
        registered: Mapping[str, Any],
        rows: Mapping[str, Appended],
        places: Sequence[Place],
        own: Mapping[str, Any],
    ) -> None:
        count_main()
        self._registered, self._buffers, self._places = dict(registered), dict(rows), list(places)
        self._modules = {name: one for name, one in registered.items() if isinstance(one, torch.nn.Module)}
        self._optimizers = {name: one for name, one in registered.items() if isinstance(one, torch.optim.Optimizer)}
        self._tensors = {name: one for name, one in registered.items() if isinstance(one, torch.Tensor)}
        self._stateful = {name: one for name, one in registered.items() if _speaks_for_itself(one)}
        self._contents = Contents()
        self._submitted: frozenset[str] = frozenset()
        self._bytes = 0
        self._tried: set[str] = set()
        self._lost: list[str] = []
        self._graphs: list[str] = []
        self._described: tuple[tuple[str, ...], dict[str, Any]] | None = None
        self.begun_anew: list[str] = []
        elsewhere: dict[str, Any] = {**own}
        elsewhere |= self._stateful
        elsewhere |= {f"rows {name}": one for name, one in rows.items()}
        elsewhere |= {name: tensor for name, tensor in self._named_tensors() if isinstance(tensor, torch.Tensor)}
        holders = {name: _Holder() for name in ("", *self._paths())}
        roots = [Root("", holders[""], lambda: self._registered)]
        for path, place in zip(self._paths(), self._places, strict=True):
            if not place.is_module:  # its variables are the module's
                roots.append(Root(path, holders[path], place.variables))
        for name, one in self._stateful.items():
            if callable(holds := getattr(one, "train_cloud_holds", None)):
                holders[f"holds {name}"] = _Holder()
                roots.append(Root(f"{name}.loader", holders[f"holds {name}"], holds))
        self._holders = holders
        self.objects = Objects(roots, elsewhere, list(self._optimizers.values()), gradients=True, constants=True)
        self.objects.unread = self._unread

    def _paths(self) -> list[str]:
        """Of the places, each another one."""
        found: list[str] = []
        for place in self._places:
            path = place.path
            while path in found:
                path += "'"
            found.append(path)
        return found

    def _unread(self, module: str) -> frozenset[str]:
        for place in self._places:
            if place.is_module and place.frame.f_globals.get("__name__") == module:
                return place.unread()
        return frozenset()

    # ------------------------------------------------------------------------------------------------ what is there

    def reached(self) -> list[Any]:
        """Objects of libraries that the loop holds."""
        return self.objects.reached

    def apart(self) -> list[Any]:
        """Objects that say by themselves what their state is."""
        return [*self._stateful.values(), *self._buffers.values()]

    def roots(self) -> dict[str, Any]:
        """Where all that is state can be reached from."""
        return {
            **{name: one for name, one in self._registered.items() if name not in self._stateful},
            **{f"{name}.state_dict()": one.state_dict() for name, one in self._stateful.items()},
            **{
                path: place.variables()
                for path, place in zip(self._paths(), self._places, strict=True)
                if not place.is_module
            },
        }

    def held(self) -> Iterator[tuple[str, Any]]:
        """What the loop's variables hold directly, with their paths."""
        for path, place in zip(self._paths(), self._places, strict=True):
            for name, value in place.variables().items():
                yield f"{path}.{name}", value

    @property
    def not_kept(self) -> list[str]:
        """What a checkpoint does not keep, and what this session lacks: each with its path and the reason."""
        found = [
            *(f"{path.lstrip('.')}: {reason}" for path, reason in self.objects.not_kept.items()),
            *(f"{path.lstrip('.')}: the checkpoint has it, this session has not" for path in self.objects.missing),
            *(f"environments: new episodes were begun: {why}" for why in self.begun_anew),
        ]
        return list(dict.fromkeys([*self._lost, *found, *self._graphs]))

    # ------------------------------------------------------------------------------------------------------ saving

    def snapshot(self, step: int) -> Snapshot:
        """Copies of everything but rows: all that the loop waits for.

        :param step: iterations that are done
        """
        for place in self._places:
            place.move()
        self._graphs = [
            f"{path}.{name}: {graphs.WHY}"
            for path, place in zip(self._paths(), self._places, strict=True)
            for name in graphs.within(place.read_in_the_loop())
        ]
        tensors, rests = self._tensors_and_rests()
        dtypes = {name: _dtype(one) for name, one in tensors.items() if as_numpy(one) is not one}
        beside = {f"/{name}": one for name, one in tensors.items() if "|state|" in name}
        with undisturbed() as generators:
            states = self.objects.states()
            state = {
                "rest": rests,
                "dtypes": dtypes,
                "settings": {name: get() for name, (get, _) in _SETTINGS.items()},
                "generators": {**generators, **cuda_generators()},
                "others": self._environments(),
                "stateful": {name: one.state_dict() for name, one in self._stateful.items()},
                "variables": {
                    path: {
                        name: LEFT if self.objects.is_constant(value) else value
                        for name, value in place.variables().items()
                    }
                    for path, place in zip(self._paths(), self._places, strict=True)
                    if not place.is_module
                },
                "logger": [],
                **states,
            }
            try:
                blob, own = self.objects.dump(state, [*self._environments_here()], self._contents, beside)
            except FAILURES as error:
                raise TrainCloudError(f"the loop's state cannot be saved: {type(error).__name__}: {error}") from error
        plain = {name: as_numpy(one.detach()) for name, one in tensors.items()}
        arrays = copied({**plain, **own}, self._contents.arrays)
        part = Part(arrays, blob, self._contents.names)
        self._bytes = len(blob) + sum(one.nbytes for one in plain.values()) + sum(one.nbytes for one in own.values())
        streams = {name: rows_of(buffer, self._last_rows.get(name, 0)) for name, buffer in self._buffers.items()}
        return Snapshot(step, {"model": part}, streams, {"kind": KIND, **self._description(tensors)})

    _last_rows: Mapping[str, int] = types.MappingProxyType({})

    def submitted(self, snapshot: Snapshot) -> None:
        """It is on its way: the next one has the rows after its own."""
        self._submitted = frozenset(self._contents.names.values())
        self._last_rows = {name: rows.last for name, rows in snapshot.streams.items()}

    def sent_bytes(self) -> int:
        """About what the next checkpoint sends."""
        return self._bytes + size_of(set(self._contents.names.values()) - self._submitted)

    def _tensors_and_rests(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All tensors that have names of their own, and what else modules and optimisers say of themselves."""
        tensors: dict[str, torch.Tensor] = {}
        rests: dict[str, Any] = {}
        seen: dict[tuple[Any, ...], str] = {}
        for name, tensor in self._named_tensors():
            if torch.nn.parameter.is_lazy(tensor):
                continue
            if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
                rests[name] = ("tensor", tensor.detach())
                continue
            key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
            if tensor.numel() and key in seen:
                rests[name] = ("same", seen[key])
                continue
            seen[key] = name
            tensors[name] = tensor
        for name, module in self._modules.items():
            for path, inner in module.named_modules():
                if type(inner).get_extra_state is not torch.nn.Module.get_extra_state:
                    rests[f"{name}|{path}|extra"] = ("extra", inner.get_extra_state())
        for name, optimizer in self._optimizers.items():
            saved = dict(optimizer.state_dict())
            state: dict[Any, dict[str, Any]] = {}
            for index, values in saved.pop("state", {}).items():
                state[index] = {}
                for key, value in values.items() if isinstance(values, dict) else ():
                    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                        tensors[f"{name}|state|{index}|{key}"] = value
                    else:
                        state[index][key] = value
            rests[f"{name}|optimizer"] = ("optimizer", {"state": state, **saved})
        return tensors, rests

    def _named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, module in self._modules.items():
            for path, parameter in module.named_parameters(remove_duplicate=False):
                yield f"{name}|{path}", parameter
            for path, buffer in module.named_buffers(remove_duplicate=False):
                yield f"{name}|{path}", buffer
        for name, tensor in self._tensors.items():
            yield f"{name}|", tensor

    def _description(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """For readers; the same as long as there are the same tensors."""
        names = tuple(tensors)
        if self._described is None or self._described[0] != names:
            self._described = names, self._description_of(tensors)
        return self._described[1]

    def _description_of(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        modules = {}
        for name, module in self._modules.items():
            kind = type(getattr(module, "_orig_mod", module))
            kept = list(module.state_dict()) if not _is_lazy(module) else []
            modules[name] = {
                "class": f"{kind.__module__}:{kind.__qualname__}",
                "tensors": {
                    path: tensor_name
                    for path in kept
                    if (tensor_name := self._stored_as(f"{name}|{path}", tensors)) is not None
                },
            }
        return {
            "algorithm": {"class": KIND},
            "modules": modules,
            "dtypes": {name: _dtype(one) for name, one in tensors.items() if as_numpy(one) is not one},
            "registered": {
                name: f"{type(one).__module__}:{type(one).__qualname__}" for name, one in self._registered.items()
            },
        }

    def _stored_as(self, name: str, tensors: Mapping[str, torch.Tensor]) -> str | None:
        if name in tensors:
            return name
        owner, _, path = name.partition("|")
        found: Any = self._modules[owner]
        try:
            for part in path.split("."):
                found = getattr(found, part)
        except AttributeError:
            return None
        if not isinstance(found, torch.Tensor):
            return None
        return next((other for other, one in tensors.items() if one is found or _is_same(one, found)), None)

    # ------------------------------------------------------------------------------------------------ environments

    def _environments_here(self) -> Iterator[gymnasium.Env[Any, Any]]:
        for env in self.objects.environments.values():
            if isinstance(env, gymnasium.Env):
                yield env

    def _environments(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, env in self.objects.environments.items():
            if path in self.objects.not_kept:
                continue
            try:
                provider = _provider_of
                found[path] = get_vecenv(env, provider) if isinstance(env, VecEnv) else get_single(env, provider)
                if path not in self._tried:
                    dumps(found[path], [*self._environments_here()])
                    self._tried.add(path)
                    if not isinstance(env, VecEnv) and not choice_of(env).exact:
                        self._lost.append(f"{path.lstrip('.')}: {choice_of(env).because}")
            except FAILURES as error:
                self.objects.not_kept[path] = f"{type(error).__name__}: {error}"
                found.pop(path, None)
        return found

    # --------------------------------------------------------------------------------------------------- restoring

    def restore(self, snapshot: Snapshot) -> None:
        """Overwrite everything with what the snapshot has; called at the same place of the same program.

        :raises InputError: what is registered, or its shapes, are others
        """
        part = snapshot.parts["model"]
        self._check(snapshot)
        beside = {f"/{name}": array for name, array in part.arrays.items() if not name.startswith(OWN)}
        objects = self.objects
        state = objects.load(part.blob, part.arrays, [*self._environments_here()], beside)
        self._contents.restored(part)
        self._submitted = frozenset(part.contents.values())
        self._lost = list(snapshot.facts.get("not_kept", ()))
        with torch.no_grad():
            for name, live in self._named_tensors():
                if torch.nn.parameter.is_lazy(live) and name in part.arrays:
                    value = _tensor(part.arrays[name], state["dtypes"].get(name))
                    live.materialize(value.shape, dtype=value.dtype)
        objects.relink(state)
        objects.restore(state)
        tensors = {
            name: objects.tensors.get(f"/{name}", _tensor(array, state["dtypes"].get(name)))
            for name, array in part.arrays.items()
            if not name.startswith(OWN)
        }
        self._set_tensors(tensors, state["rest"])
        for name, one in self._stateful.items():
            if state["stateful"].get(name, LEFT) is not LEFT:
                one.load_state_dict(state["stateful"][name])
        self._set_environments(state["others"])
        objects.restore(state)  # what a load_state_dict of the user's may have changed besides
        self._set_tensors(tensors, state["rest"])
        for name, buffer in self._buffers.items():
            take_rows(name, buffer, snapshot.streams[name])
        self._last_rows = {name: rows.last for name, rows in snapshot.streams.items()}
        for path, place in zip(self._paths(), self._places, strict=True):
            if not place.is_module:
                self._set_variables(path, place, state["variables"].get(path))
        for name, (_, put) in _SETTINGS.items():
            with contextlib.suppress(RuntimeError):
                put(state["settings"][name])
        set_generators(state["generators"])

    def _set_variables(self, path: str, place: Place, saved: Mapping[str, Any] | None) -> None:
        if saved is None:
            self._lost.append(f"{path}: the checkpoint was made in another function")
            return
        live = place.frame.f_locals
        place.put(
            {name: value for name, value in saved.items() if value is not LEFT and live.get(name, LEFT) is not value}
        )

    def _check(self, snapshot: Snapshot) -> None:
        saved = snapshot.facts.get("registered", {})
        if snapshot.facts.get("kind") != KIND:
            raise InputError("entry_point", snapshot.facts["algorithm"]["class"], "this run is Stable-Baselines3's")
        if saved.keys() != self._registered.keys():
            lacks, new = sorted(saved.keys() - self._registered), sorted(self._registered.keys() - saved)
            words = [f"without {', '.join(new)}"] if new else []
            words += [f"with {', '.join(lacks)}"] if lacks else []
            raise InputError("resumable", sorted(self._registered), f"this run was begun {' and '.join(words)}")
        arrays = snapshot.parts["model"].arrays
        for name, tensor in self._named_tensors():
            array = arrays.get(name)
            if array is None or torch.nn.parameter.is_lazy(tensor) or tensor.layout is not torch.strided:
                continue
            if tuple(array.shape) != tuple(tensor.shape):
                was, now = tuple(array.shape), tuple(tensor.shape)
                shown = name.replace("|", ".").rstrip(".")
                if not _may_grow(self._registered[name.partition("|")[0]], name):
                    raise InputError(shown, now, f"the checkpoint has the shape {was}: it is another model")

    def _set_tensors(self, tensors: Mapping[str, torch.Tensor], rests: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, live in self._named_tensors():
                value = tensors.get(name)
                if value is None and name in rests and rests[name][0] == "tensor":
                    live.data = rests[name][1].to(live.device)
                elif value is None:
                    continue
                elif live.shape == value.shape and live.dtype is value.dtype:
                    live.copy_(value)
                else:
                    live.data = value.to(live.device)
        for name, module in self._modules.items():
            for path, inner in module.named_modules():
                kind, content = rests.get(f"{name}|{path}|extra", ("", None))
                if kind and content is not LEFT:
                    inner.set_extra_state(content)
        for name, optimizer in self._optimizers.items():
            self._set_optimizer(name, optimizer, tensors, rests[f"{name}|optimizer"][1])

    def _set_optimizer(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        tensors: Mapping[str, torch.Tensor],
        saved: Mapping[str, Any],
    ) -> None:
        """torch gives a state the type of its parameter; here each tensor has the type that it had."""
        state: dict[Any, dict[str, Any]] = {index: dict(values) for index, values in saved["state"].items()}
        for key, value in tensors.items():
            if key.startswith(f"{name}|state|"):
                index, _, inner = key.removeprefix(f"{name}|state|").partition("|")
                state.setdefault(int(index) if index.lstrip("-").isdigit() else index, {})[inner] = value
        optimizer.load_state_dict({**saved, "state": state})
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, values in state.items():
            if not isinstance(index, int) or not 0 <= index < len(parameters):
                continue
            live: Any = optimizer.state.get(parameters[index])
            for inner, value in values.items() if isinstance(live, dict) else ():
                if isinstance(value, torch.Tensor) and isinstance(live.get(inner), torch.Tensor):
                    live[inner] = value.to(live[inner].device)

    def _set_environments(self, states: Mapping[str, Any]) -> None:
        for path, state in states.items():
            env = self.objects.environments.get(path)
            if env is None:
                self.objects.at(path, None)
            elif isinstance(env, VecEnv):
                self.begun_anew += [one.because for one in set_vecenv(env, state).values()]
            elif (anew := set_single(env, state)) is not None:
                self.begun_anew.append(f"{path.lstrip('.')}: {anew.because}")


def _provider_of(env: gymnasium.Env[Any, Any]) -> str:
    return choice_of(env).provider


def _speaks_for_itself(obj: Any) -> bool:
    """Whether its own ``state_dict`` is asked. torch's own classes are looked into: a scheduler's has no lambdas."""
    if isinstance(obj, torch.nn.Module | torch.optim.Optimizer | torch.Tensor):
        return False
    if type(obj).__module__.split(".")[0] == "torch" and kind_of(obj) == "object":
        return False
    return callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None))


def can_be_registered(obj: Any) -> bool:
    """Whether its state can be taken and put back."""
    if isinstance(obj, torch.nn.Module | torch.optim.Optimizer | torch.Tensor) or _speaks_for_itself(obj):
        return True
    kind = kind_of(obj)
    return kind in WITH_STATE or kind in _KEPT_AS_FOUND


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tensor(array: Array, dtype: str | None) -> torch.Tensor:
    made = torch.from_numpy(np.array(array))
    return made if dtype is None else made.view(getattr(torch, dtype))


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        not torch.nn.parameter.is_lazy(other)
        and other.layout is torch.strided
        and one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype is other.dtype
    )


def _is_lazy(module: torch.nn.Module) -> bool:
    tensors = [*module.parameters(), *module.buffers()]
    return any(torch.nn.parameter.is_lazy(tensor) for tensor in tensors)


def _may_grow(module: Any, name: str) -> bool:
    """Whether a tensor is a buffer, which code may replace by one of another shape while it trains."""
    path = name.partition("|")[2]
    return not isinstance(module, torch.nn.Module) or path in dict(module.named_buffers(remove_duplicate=False))
