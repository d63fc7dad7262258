"""Networks by name: what a run file's ``architecture`` stands for.

:mod:`observations` says what an observation of ours consists of, :mod:`dense` has graph layers in plain torch,
:mod:`extractors` and :mod:`hgt` the features extractors that are known by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from train_cloud import extras
from train_cloud.config import RunFile
from train_cloud.config.architecture import ARCHITECTURES, EXTRACTOR, Architecture
from train_cloud.envs.make import load_object, refusing
from train_cloud.errors import InputError, suggestion

_FIELD = "architecture"
#: What reads indices and masks: none of these may be scaled or stacked.
_GRAPH = "graph"


def load(architecture: Architecture) -> type[BaseFeaturesExtractor] | None:
    """The features extractor; None where the architecture is a policy with arguments.

    :raises InputError: there is no such class
    :raises NotInstalled: it needs an extra of the package
    """
    if architecture.reference is None:
        return None
    if architecture.extra == "graphs":
        extras.need("torch_geometric", f"the architecture {architecture.name}")
    found: type[BaseFeaturesExtractor] = load_object(architecture.reference, _FIELD, BaseFeaturesExtractor)
    return found


def policy_arguments(run_file: RunFile, space: spaces.Space[Any]) -> dict[str, Any]:
    """The arguments of SB3's policy that the run file's architecture stands for; empty without one.

    :param space: of the observations
    :raises InputError: a class or an argument that does not exist, or observations that it cannot see
    """
    architecture = run_file.architecture
    if architecture is None:
        return {}
    kind, arguments = load(architecture), architecture.policy_arguments()
    if kind is None:
        return arguments
    _check_kwargs(kind, architecture.kwargs)
    refuse = getattr(kind, "refusal", None)
    if architecture.name in ARCHITECTURES and refuse is not None:
        why = refuse(space)
        if why is not None:
            raise InputError(_FIELD, architecture.name, f"it does not fit the observations: {why}")
        if _GRAPH in getattr(kind, "sees", ()):
            _check_untouched(run_file)
    with refusing(_FIELD, architecture.name, f"making it for {_briefly(space)} raises"):
        kind(space, **architecture.kwargs)
    return {**arguments, EXTRACTOR: kind}


def _check_kwargs(kind: type[BaseFeaturesExtractor], kwargs: Mapping[str, Any]) -> None:
    known = dict(inspect.signature(kind.__init__).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    names = tuple(name for name in known if name not in ("self", "observation_space"))
    for name, value in kwargs.items():
        if name not in names:
            fix = suggestion(name, names) or f"use one of {', '.join(names)}"
            raise InputError(f"{_FIELD}.kwargs.{name}", value, f"{kind.__name__} has no such argument: {fix}")


def _check_untouched(run_file: RunFile) -> None:
    """:raises InputError: indices and masks would arrive as other numbers"""
    environment, architecture = run_file.environment, run_file.architecture
    assert environment is not None and architecture is not None
    if environment.frame_stack is not None:
        fix = f"{architecture.name} reads a graph, whose indices cannot be stacked: leave it null"
        raise InputError("environment.frame_stack", environment.frame_stack, fix)
    normalize = environment.normalize
    if normalize is None or not normalize.get("norm_obs", True):
        return
    keys = normalize.get("norm_obs_keys")
    if keys is None or any(str(key).startswith(f"{_GRAPH}_") for key in keys):
        fix = f"{architecture.name} reads indices and masks: add norm_obs_keys: [state], or norm_obs: false"
        raise InputError("environment.normalize", dict(normalize), fix)


def _briefly(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{name} {part.shape}' for name, part in space.items())})"
    return str(space)
