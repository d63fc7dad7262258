"""What a loop's modules begin with instead of their random parameters: another run's checkpoint, or a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from train_cloud.errors import InputError
from train_cloud.pytorch.export import read_safetensors, tensors_of
from train_cloud.snapshot import Array, Snapshot

_FIELD = "initial_model"
#: Registered name → the tensors of its ``state_dict``; of a file, which has no names, the one key is empty.
Initial = Mapping[str, Mapping[str, torch.Tensor]]
_given: list[tuple[str, Initial]] = []


def from_snapshot(snapshot: Snapshot) -> Initial:
    """All modules of a checkpoint."""
    return {
        name: {key: _tensor(*found) for key, found in tensors_of(snapshot, name).items()}
        for name in snapshot.facts["modules"]
    }


def from_file(source: str, body: bytes) -> Initial:
    """:raises InputError: it is no safetensors file"""
    try:
        found = read_safetensors(body, source)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(_FIELD, source, f"it is no safetensors file: {error}") from error
    return {"": {name: _tensor(*one) for name, one in found.items()}}


@contextlib.contextmanager
def beginning_with(source: str, initial: Initial | None) -> Iterator[None]:
    """While this lasts, a loop that begins a run begins with this; None is nothing."""
    _given.extend([(source, initial)] if initial is not None else [])
    try:
        yield
    finally:
        if initial is not None:
            _given.pop()


def begin(registered: Mapping[str, Any]) -> None:
    """Put what was given into registered modules.

    :raises InputError: it does not fit
    """
    if not _given:
        return
    source, initial = _given[-1]
    modules = {name: one for name, one in registered.items() if isinstance(one, torch.nn.Module)}
    if "" in initial:
        name = "model" if "model" in modules else next(iter(modules), None)
        if name is None:
            raise InputError(_FIELD, source, "no module is registered that could begin with it")
        initial = {name: initial[""]}
    lacking = sorted(initial.keys() - modules)
    if lacking:
        fix = f"it has {', '.join(lacking)}, and registered are {', '.join(modules) or 'no modules'}"
        raise InputError(_FIELD, source, fix)
    for name, tensors in initial.items():
        try:
            modules[name].load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise InputError(_FIELD, source, f"it does not fit {name}: {' '.join(str(error).split())}") from error


def _tensor(kind: str, array: Array) -> torch.Tensor:
    made = torch.from_numpy(array.copy())
    return made.view(getattr(torch, kind)) if str(made.dtype) != f"torch.{kind}" else made
