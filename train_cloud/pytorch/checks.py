"""What would be lost is refused before the first step, with its name."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from train_cloud.errors import InputError
from train_cloud.pytorch.batches import Batches
from train_cloud.pytorch.capture import can_be_registered
from train_cloud.pytorch.variables import Place

_BATCHES = "its position would be lost: register train_cloud.batches(loader) as data, and take next(data) in the loop"
_LOADER_ITERATORS = (torch.utils.data.dataloader._BaseDataLoaderIter,)


def registered(objects: Mapping[str, Any]) -> None:
    """:raises InputError: an object's state cannot be kept, or an optimiser's parameter is in nothing that is kept"""
    for name, obj in objects.items():
        kind = type(obj).__name__
        if isinstance(obj, (DataLoader, *_LOADER_ITERATORS)):
            raise InputError(f"resumable({name}=)", kind, f"{_BATCHES}")
        if isinstance(obj, types.GeneratorType):
            raise InputError(f"resumable({name}=)", kind, "a generator's state cannot be saved: write a class with it")
        if not can_be_registered(obj):
            fix = "it has no state_dict() and load_state_dict(): give it both"
            raise InputError(f"resumable({name}=)", kind, fix)
    known = {id(tensor) for tensor in _tensors(objects)}
    for name, obj in objects.items():
        if not isinstance(obj, torch.optim.Optimizer):
            continue
        for group_number, group in enumerate(obj.param_groups):
            for number, parameter in enumerate(group["params"]):
                if id(parameter) not in known:
                    where = f"{name}.param_groups[{group_number}]['params'][{number}]"
                    fix = f"no registered module has this parameter of {name}: register the module or the tensor too"
                    raise InputError(where, f"shape {tuple(parameter.shape)}", fix)


def _tensors(objects: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    for obj in objects.values():
        if isinstance(obj, torch.nn.Module):
            yield from obj.parameters()
            yield from obj.buffers()
        elif isinstance(obj, torch.Tensor):
            yield obj


def loop(places: Sequence[Place], entered_at: int, held: Iterator[tuple[str, Any]], known: Sequence[Any]) -> None:
    """
    :param places: the functions that the loop runs in, innermost first
    :param entered_at: offset of the instruction in the outermost one that called ``resumable``
    :param held: what their variables hold
    :param known: objects whose state is kept: what holds them is no reason to refuse
    :raises InputError: the loop's place cannot be found again by a fresh process
    """
    for number, place in enumerate(places):
        outermost = number == len(places) - 1
        line = place.surrounding_loop(entered_at if outermost else -1)
        if line is not None:
            where = f"{Path(place.frame.f_code.co_filename).name}, line {line}"
            fix = "the place of the for loop around run.steps() would be lost: make run.steps() the outermost loop"
            raise InputError("run.steps()", where, fix)
    if places and places[0].reaches("steps"):
        _refuse_second()
    for path, value in held:
        if any(value is one for one in known):
            continue
        if isinstance(value, _LOADER_ITERATORS):
            raise InputError(path, "an iterator of a DataLoader", _BATCHES)
        if isinstance(value, types.GeneratorType):
            fix = "a generator's place in its code cannot be saved: write a class with __next__ and state_dict, or "
            fix += "make it anew in each step"
            raise InputError(path, f"generator {value.__qualname__}", fix)


def _refuse_second() -> None:
    fix = "one run has one loop, that of run.steps(): make a phase of your training a branch of it, or a run of its own"
    raise InputError("run.steps()", "a second loop comes after it", fix)


def entered(place: Place | None) -> None:
    """:param place: where ``resumable`` is called
    :raises InputError: it will be called there again
    """
    if place is not None and place.reaches("resumable"):
        fix = "a run has one: make a phase of your training a branch of its loop, or a run of its own"
        raise InputError("train_cloud.resumable", "it stands in a loop, or another one follows", fix)


def wrapped(steps: Any, kept: Mapping[str, Any]) -> None:
    """:param steps: the iterator of ``run.steps()``
    :param kept: what is registered
    :raises InputError: something that counts or reads along has it, and begins anew in a resumed session
    """
    holders = gc.get_referrers(steps)
    for holder in [*holders]:
        if type(holder) is tuple:
            holders += gc.get_referrers(holder)
    for holder in holders:
        kind = type(holder)
        if kind is enumerate:
            fix = "its count would begin at 0 again: run.steps() gives the step's number itself"
            raise InputError("run.steps()", "enumerate(run.steps())", fix)
        if kind is zip:
            _zipped(holder, steps, kept)
        elif kind.__module__ == "itertools":
            fix = "its place would be lost: take run.steps() itself"
            raise InputError("run.steps()", f"itertools.{kind.__name__}(run.steps())", fix)


def _zipped(holder: Any, steps: Any, kept: Mapping[str, Any]) -> None:
    together = [one for one in gc.get_referents(holder) if type(one) is tuple and any(item is steps for item in one)]
    before = True
    for one in next(iter(together), ()):
        if one is steps:
            before = False
        elif not any(one is other for other in kept.values()):
            fix = f"{_BATCHES}" if isinstance(one, _LOADER_ITERATORS) else "register what has a state_dict(), or index "
            fix += "" if isinstance(one, _LOADER_ITERATORS) else "by the step"
            raise InputError("run.steps()", f"zip with {type(one).__name__}", fix)
        elif before:
            raise InputError("run.steps()", f"zip after {type(one).__name__}", "put run.steps() first in zip()")


def several_workers(objects: Sequence[Any]) -> None:
    """:raises InputError: a loader has workers that outlive an epoch"""
    for obj in objects:
        if isinstance(obj, Batches):
            continue
        if isinstance(obj, DataLoader) and obj.num_workers and obj.persistent_workers:
            fix = "workers that outlive an epoch have generators and caches that nobody can save: leave it False"
            raise InputError("persistent_workers", True, fix)
