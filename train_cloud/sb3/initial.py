"""A training that begins with what another one learned: parameters, normaliser, replay buffer. Timesteps, optimisers,
generators and environments begin anew.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from train_cloud.child_process import code_on_path
from train_cloud.config import RunFile
from train_cloud.envs.make import FAILURES
from train_cloud.errors import InputError
from train_cloud.sb3.capture import REPLAY, parameters_of, tensors_in
from train_cloud.sb3.compare import read_state
from train_cloud.sb3.replay import Ring
from train_cloud.snapshot import Array, Rows, Snapshot

_FIELD = "initial_model"
#: Mismatches that are told; a network of another kind has hundreds.
_TOLD = 20


@dataclass(frozen=True)
class Initial:
    """What a training begins with.

    :ivar named: where it comes from, as the run file says
    :ivar parameters: of the networks, by their names in SB3's ``get_parameters``; without optimisers
    :ivar variables: tensors outside of networks, SAC's ``log_ent_coef``
    :ivar normalizer: a pickled ``VecNormalize``
    :ivar rows: of the replay buffer
    :ivar replay: what is in no row, see ``Ring.state``
    """

    named: str
    parameters: Mapping[str, Mapping[str, torch.Tensor]]
    variables: Mapping[str, torch.Tensor]
    normalizer: bytes | None = None
    rows: Rows | None = None
    replay: Mapping[str, Any] | None = None


def from_zip(named: str, model: bytes, normalizer: bytes | None) -> Initial:
    """What ``model.save`` wrote, and ``VecNormalize.save`` beside it.

    :raises InputError: not such a file
    """
    try:
        _, parameters, variables = load_from_zip_file(io.BytesIO(model), device="cpu", load_data=False)
    except FAILURES as error:
        raise InputError(_FIELD, named, f"it is no model that Stable-Baselines3 has saved: {error}") from error
    return Initial(named, _networks(parameters), variables or {}, normalizer)


def from_snapshot(named: str, snapshot: Snapshot) -> Initial:
    """A checkpoint of a run, with its replay buffer where its streams were read."""
    if "learners" in snapshot.facts:
        raise InputError(_FIELD, named, "it has several learners: name a run with one")
    part = snapshot.parts["model"]
    tensors = tensors_in(part)
    parameters, variables = parameters_of(tensors, {})
    normalizer = snapshot.parts["normalizer"].blob if "normalizer" in snapshot.parts else None
    initial = Initial(named, _networks(parameters), variables, normalizer)
    if not snapshot.streams:
        return initial
    state = read_state(part)
    return replace(initial, rows=snapshot.streams.get(REPLAY), replay=state["replay"])


def begin_with(model: BaseAlgorithm, initial: Initial, *, buffer: bool) -> None:
    """Put it into a model that was just built.

    :param buffer: whether the replay buffer comes along
    :raises InputError: naming each layer whose shape differs
    """
    if not isinstance(getattr(model, "policy", None), torch.nn.Module):
        raise InputError(_FIELD, initial.named, f"{type(model).__name__} has no policy of its own to put it into")
    ours = _networks(model.get_parameters())
    found = [
        *_differences(initial.parameters, ours),
        *_normalizer_differences(model.get_vec_normalize_env(), initial.normalizer),
    ]
    if found:
        more = f"; and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
        raise InputError(_FIELD, initial.named, f"it does not fit this run: {'; '.join(found[:_TOLD])}{more}")
    parameters: dict[str, Any] = {**model.get_parameters(), **initial.parameters}
    model.set_parameters(parameters, exact_match=True, device=model.device)
    for name in model._get_torch_save_params()[1]:
        variable = getattr(model, name, None)
        if isinstance(variable, torch.Tensor) and name in initial.variables:
            variable.data.copy_(initial.variables[name])
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and initial.normalizer is not None:
        theirs = pickle.loads(initial.normalizer)
        normalizer.obs_rms, normalizer.ret_rms = copy.deepcopy((theirs.obs_rms, theirs.ret_rms))
    if buffer:
        _load_rows(model, initial)


def check_fit(source: RunFile, run_file: RunFile) -> None:
    """Whether a run could begin with what another one will have learned: both are built, and nothing is trained.

    :raises InputError: naming each layer whose shape differs
    """
    from train_cloud.sb3.build import build_model

    with code_on_path(source.code.folder):
        built = build_model(source)
        try:
            parameters, variables = built.model.get_parameters(), built.model._get_torch_save_params()[1]
            normalizer = built.model.get_vec_normalize_env()
            initial = Initial(
                f"run:{source.run_id}",
                copy.deepcopy(_networks(parameters)),
                {name: getattr(built.model, name) for name in variables},
                None if normalizer is None else pickle.dumps(normalizer),
            )
        finally:
            built.close()
    with code_on_path(run_file.code.folder):
        built = build_model(run_file)
        try:
            begin_with(built.model, initial, buffer=False)
        finally:
            built.close()


def _networks(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, torch.Tensor]]:
    return {name: state for name, state in parameters.items() if "param_groups" not in state}


def _differences(
    theirs: Mapping[str, Mapping[str, torch.Tensor]], ours: Mapping[str, Mapping[str, torch.Tensor]]
) -> Iterator[str]:
    for network in sorted({*theirs, *ours}):
        there, here = theirs.get(network, {}), ours.get(network, {})
        for layer in [*here, *(name for name in there if name not in here)]:
            shapes = [str(tuple(of[layer].shape)) if layer in of else "none" for of in (there, here)]
            if shapes[0] != shapes[1]:
                yield f"{network}.{layer} is {shapes[0]} there, {shapes[1]} here"


def _normalizer_differences(ours: VecNormalize | None, theirs: bytes | None) -> Iterator[str]:
    if theirs is None:
        return  # it saw observations as they are, or nobody kept the statistics: they begin anew
    if ours is None:
        yield "it saw normalised observations: set environment.normalize"
        return
    there, here = (_statistics(normalizer) for normalizer in (pickle.loads(theirs), ours))
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            yield f"the normaliser's {name} is {there.get(name, 'none')} there, {here.get(name, 'none')} here"


def _statistics(normalizer: VecNormalize) -> dict[str, str]:
    if not normalizer.norm_obs:
        return {}
    statistics = normalizer.obs_rms
    by_key = statistics if isinstance(statistics, dict) else {"observations": statistics}
    return {name: str(one.mean.shape) for name, one in by_key.items()}


def _load_rows(model: BaseAlgorithm, initial: Initial) -> None:
    field = f"{_FIELD}.buffer"
    live = getattr(model, "replay_buffer", None)
    if live is None:
        raise InputError(field, True, f"{type(model).__name__} has no replay buffer")
    if initial.rows is None or initial.replay is None:
        raise InputError(field, True, f"{initial.named} has none: leave it out")
    ring, rows = Ring(live), initial.rows
    chunks = iter(rows.chunks)
    first: tuple[int, Mapping[str, Array]] | None = next(chunks, None)
    if first is None:
        return
    told = ring.mismatches(first[1])
    if rows.capacity != ring.capacity:
        told.append(f"{rows.capacity} there, {ring.capacity} here: set hyperparameters.buffer_size")
    if told:
        raise InputError(field, True, f"its rows do not fit this run: {'; '.join(told)}")
    ring.load(replace(rows, chunks=itertools.chain([first], chunks)), initial.replay)
