"""``hyperparameters``: what Stable-Baselines3 and its policies take, checked and made from what a run file can say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule

from train_cloud.config import RunFile
from train_cloud.config.run_file import ELSEWHERE, SCHEDULED
from train_cloud.envs.make import load_object
from train_cloud.errors import InputError, suggestion
from train_cloud.sb3 import architectures

ACTIVATIONS = {
    "elu": torch.nn.ELU,
    "gelu": torch.nn.GELU,
    "leaky_relu": torch.nn.LeakyReLU,
    "leakyrelu": torch.nn.LeakyReLU,
    "mish": torch.nn.Mish,
    "relu": torch.nn.ReLU,
    "selu": torch.nn.SELU,
    "silu": torch.nn.SiLU,
    "tanh": torch.nn.Tanh,
}
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "rmsprop_tf": RMSpropTFLike,
    "rmsproptflike": RMSpropTFLike,
    "sgd": torch.optim.SGD,
}
NOISES: dict[str, Callable[..., ActionNoise]] = {
    "normal": NormalActionNoise,
    "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise,
}
Rule: TypeAlias = tuple[Callable[[Any], bool], str]


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object, least: float, most: float = float("inf")) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _whole_rule(least: int, *also: int) -> Rule:
    extra = "".join(f", or {value}" for value in also)
    return lambda value: _is_whole(value, least) or value in also, f"give a whole number of at least {least}{extra}"


def _is_train_freq(value: object) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and _is_whole(value[0], 1) and value[1] in ("step", "episode")
    return _is_whole(value, 1)


def _is_rate(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and _is_number(value, 0) and value > 0)


_FLAG: Rule = (lambda value: isinstance(value, bool), "give true or false")
_POSITIVE: Rule = (lambda value: _is_number(value, 0) and value > 0, "give a number above 0")
_NOT_NEGATIVE: Rule = (lambda value: _is_number(value, 0), "give a number of at least 0")
_SHARE: Rule = (lambda value: _is_number(value, 0, 1), "give a number from 0 to 1")
#: What SB3 takes without a word and fails on later, or never: a rule and what to write instead, by argument.
RULES: dict[str, Rule] = {
    "learning_rate": (
        _is_rate,
        "give a number above 0, or lin_<number> for a linear fall to 0",
    ),
    "buffer_size": _whole_rule(1),
    "learning_starts": _whole_rule(0),
    "batch_size": _whole_rule(1),
    "tau": (lambda value: _is_number(value, 0, 1) and value > 0, "give a number above 0 and at most 1"),
    "gamma": (lambda value: _is_number(value, 0, 1), "give a number from 0 to 1"),
    "train_freq": (_is_train_freq, "give a whole number of at least 1, or [number, step], or [number, episode]"),
    "gradient_steps": (
        lambda value: _is_whole(value, 1) or value == -1,
        "give a whole number of at least 1, or -1 for as many as steps were taken",
    ),
    "n_steps": _whole_rule(1),
    "target_update_interval": _whole_rule(1),
    "policy_delay": _whole_rule(1),
    "sde_sample_freq": _whole_rule(1, -1),
    "stats_window_size": _whole_rule(1),
    "ent_coef": (
        lambda value: _is_number(value, 0) or bool(isinstance(value, str) and re.fullmatch(r"auto(_.+)?", value)),
        "give a number of at least 0, or auto, or auto_<start value>",
    ),
    "target_entropy": (
        lambda value: value == "auto" or _is_number(value, float("-inf")),
        "give a number, or auto",
    ),
    "use_sde": _FLAG,
    "use_sde_at_warmup": _FLAG,
    "optimize_memory_usage": _FLAG,
    **dict.fromkeys(("normalize_advantage", "use_rms_prop"), _FLAG),
    **dict.fromkeys(("n_epochs", "cg_max_steps", "line_search_max_iter", "n_critic_updates"), _whole_rule(1)),
    **dict.fromkeys(("sub_sampling_factor",), _whole_rule(1)),
    "top_quantiles_to_drop_per_net": _whole_rule(0),
    **dict.fromkeys(("max_grad_norm", "target_kl", "rms_prop_eps"), _POSITIVE),
    **dict.fromkeys(("vf_coef", "cg_damping", "target_policy_noise", "target_noise_clip"), _NOT_NEGATIVE),
    **dict.fromkeys(("gae_lambda", "exploration_initial_eps", "exploration_final_eps"), _SHARE),
    "exploration_fraction": (_SHARE[0], "give the share of all timesteps over which exploration falls, from 0 to 1"),
    "line_search_shrinking_factor": (
        lambda value: _is_number(value, 0, 1) and 0 < value < 1,
        "give a number above 0 and below 1",
    ),
    **dict.fromkeys(
        ("clip_range", "clip_range_vf"),
        (_is_rate, "give a number above 0, or lin_<number> for a linear fall to 0"),
    ),
    "policy_kwargs": (lambda value: isinstance(value, dict), "give a map of the policy's own arguments"),
    "replay_buffer_kwargs": (lambda value: isinstance(value, dict), "give a map of the buffer's own arguments"),
}
WHOLE = (
    "batch_size",
    "buffer_size",
    "gradient_steps",
    "learning_starts",
    "n_epochs",
    "n_steps",
    "target_update_interval",
    "train_freq",
)
#: The same for VecNormalize, which checks nothing at all.
NORMALIZE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("training", "norm_obs", "norm_reward"), _FLAG),
    **dict.fromkeys(("clip_obs", "clip_reward", "epsilon"), _POSITIVE),
    "gamma": RULES["gamma"],
}


def arguments_of(
    run_file: RunFile,
    algorithm: type[BaseAlgorithm],
    action_space: spaces.Space[Any],
    observation_space: spaces.Space[Any],
) -> dict[str, Any]:
    """The run file's hyperparameters as the algorithm takes them: names turned into objects, the architecture included.

    :raises InputError: an argument that it does not have, or a value that it could not work with
    """
    signature = inspect.signature(algorithm.__init__).parameters
    known = tuple(name for name in signature if name not in ("self", *ELSEWHERE))
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.values())
    arguments: dict[str, Any] = {}
    for name, value in run_file.hyperparameters.items():
        field = f"hyperparameters.{name}"
        if name not in known and not open_ended:
            fix = suggestion(name, known) or f"use one of {', '.join(known)}"
            raise InputError(field, value, f"{algorithm.__name__} has no such argument: {fix}")
        if name in WHOLE and isinstance(value, float) and value.is_integer():
            value = int(value)  # YAML reads 1e6 as a float
        if name in RULES and value is not None and not RULES[name][0](value):
            raise InputError(field, value, RULES[name][1])
        arguments[name] = _argument(name, value, field, run_file, action_space)
    of_architecture = {
        key: _policy_argument(key, value, f"architecture.policy_kwargs.{key}", run_file)
        for key, value in architectures.policy_arguments(run_file, observation_space).items()
    }
    if of_architecture:
        arguments["policy_kwargs"] = {**(arguments.get("policy_kwargs") or {}), **of_architecture}
    defaults = {name: parameter.default for name, parameter in signature.items()}
    _check_together(run_file, {**defaults, **arguments})
    return arguments


def _check_together(run_file: RunFile, arguments: Mapping[str, Any]) -> None:
    """What one argument alone does not show. ``sb3.check`` tries a rollout and a batch of another size.

    :param arguments: with the algorithm's defaults
    :raises InputError: naming the one to change
    """
    assert run_file.environment is not None
    if arguments.get("normalize_advantage") and "batch_size" in arguments:
        if arguments["batch_size"] is not None and arguments["batch_size"] < 2:
            fix = "give at least 2, or set normalize_advantage to false: one advantage has no deviation"
            raise InputError("hyperparameters.batch_size", arguments["batch_size"], fix)
        if arguments["n_steps"] * run_file.environment.n_envs < 2:
            fix = "give at least 2, more environments, or set normalize_advantage to false"
            raise InputError("hyperparameters.n_steps", arguments["n_steps"], fix)
    dropped = arguments.get("top_quantiles_to_drop_per_net")
    if isinstance(dropped, int):
        quantiles = (arguments.get("policy_kwargs") or {}).get("n_quantiles", 25)  # sb3-contrib's default
        if _is_whole(quantiles, 1) and dropped >= quantiles:
            fix = f"give less than policy_kwargs.n_quantiles, which is {quantiles}"
            raise InputError("hyperparameters.top_quantiles_to_drop_per_net", dropped, fix)


def _argument(name: str, value: Any, field: str, run_file: RunFile, action_space: spaces.Space[Any]) -> Any:
    if name in SCHEDULED and isinstance(value, str):
        return LinearSchedule(float(value[len("lin_") :]), 0.0, 1.0)
    if name == "train_freq" and isinstance(value, list):
        return tuple(value)
    if name == "action_noise" and value is not None:
        return _noise(value, field, action_space)
    if name == "policy_kwargs" and value is not None:
        return {key: _policy_argument(key, item, f"{field}.{key}", run_file) for key, item in value.items()}
    if name.endswith("_class") and value is not None:
        return _named(value, field, {}, object)
    return value


def _noise(value: Any, field: str, action_space: spaces.Space[Any]) -> ActionNoise:
    if not (isinstance(value, dict) and len(value) == 1 and next(iter(value)) in NOISES):
        raise InputError(field, value, f"write {{name: standard deviation}} with one of {', '.join(NOISES)}")
    if not isinstance(action_space, spaces.Box):
        raise InputError(field, value, f"leave it out: {action_space} has no continuous actions")
    ((name, sigma),) = value.items()
    if not _is_number(sigma, 0):
        raise InputError(f"{field}.{name}", sigma, "give a standard deviation of at least 0")
    shape = action_space.shape
    return NOISES[name](np.zeros(shape), np.full(shape, float(sigma)))


def _policy_argument(name: str, value: Any, field: str, run_file: RunFile) -> Any:
    if name == "net_arch" and ":" not in run_file.chosen_policy:
        parts = value.values() if isinstance(value, dict) else [value]
        if not all(isinstance(part, list) and all(_is_whole(width, 1) for width in part) for part in parts):
            raise InputError(field, value, "give a list of layer widths, or {pi: [widths], qf: [widths]}")
    if name in ("n_quantiles", "n_critics", "lstm_hidden_size", "n_lstm_layers") and not _is_whole(value, 1):
        raise InputError(field, value, "give a whole number of at least 1")
    if name == "activation_fn":
        return _named(value, field, ACTIVATIONS, torch.nn.Module)
    if name == "optimizer_class":
        return _named(value, field, OPTIMIZERS, torch.optim.Optimizer)
    if name == "features_extractor_class" and not isinstance(value, type):
        return _named(value, field, {}, torch.nn.Module)
    return value


def _named(value: Any, field: str, known: Mapping[str, Any], kind: type) -> Any:
    if isinstance(value, str) and ":" in value:
        return load_object(value, field, kind)
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise InputError(field, value, f"use {', '.join([*known, 'module:Class'])}")
