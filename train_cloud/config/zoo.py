"""Run files from rl-baselines3-zoo's hyperparameters: one YAML file per algorithm, with an entry per environment.

Format: rl_zoo3, ``ExperimentManager`` (``read_hyperparameters`` and what follows it). There, texts such as
``"dict(net_arch=[64, 64], activation_fn=nn.ReLU)"`` are evaluated as Python; here they are parsed as literals, and
nothing in them is ever called.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train_cloud.config.load import dump_run_file, parse_run_file, read_yaml
from train_cloud.config.run_file import SUPPORTED, RunFile
from train_cloud.config.zoo_environments import find
from train_cloud.errors import InputError, NotYet

#: The zoo's names where they differ from ours.
_ALGORITHMS = {"ppo_lstm": "recurrent_ppo", "ppo_mask": "maskable_ppo", "her": "sac"}
#: Names that stand in the zoo's texts, and what they are in a run file.
_NAMES = {"HerReplayBuffer": "stable_baselines3:HerReplayBuffer", "RMSpropTFLike": "rmsprop_tf"}
_MODULES = {"nn": "torch.nn", "th.nn": "torch.nn", "torch.nn": "torch.nn", "th.optim": "torch.optim",
            "torch.optim": "torch.optim", "optim": "torch.optim"}  # fmt: skip
_TEXTS = ("policy_kwargs", "replay_buffer_kwargs", "replay_buffer_class", "env_kwargs", "normalize")
_NOISES = ("ornstein-uhlenbeck", "normal")
#: Arguments that SB3 has not any more.
_GONE = {"online_sampling", "max_episode_length"}
_ATARI, _DEFAULT = "atari", "default"
#: Checkpoints over a whole run, where the zoo has no word for it.
_COMMITS = 20


@dataclass(frozen=True)
class Imported:
    """One entry of a zoo file.

    :ivar name: the environment's
    :ivar run_file: None where the entry cannot be carried over
    :ivar left_out: what was not carried over: (key, why), both for people
    :ivar notes: what is another thing than in the zoo, or has to be installed
    """

    name: str
    run_file: RunFile | None
    left_out: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)

    def text(self, folder: Path, source: str) -> str:
        """The run file's text, with what was left out as comments."""
        assert self.run_file is not None
        told = "".join(f"\n# {note}" for note in self.notes)
        told += "".join(f"\n# not carried over: {key}: {why}" for key, why in self.left_out)
        return dump_run_file(self.run_file, folder, f"{self.name} of {source}, rl-baselines3-zoo{told}")


def import_zoo(path: Path, environments: Iterable[str] = (), algorithm: str | None = None) -> list[Imported]:
    """The entries of a zoo file as run files.

    :param environments: ids of the wanted ones, which may also be an Atari game's, or one that only the file's entry
        ``default`` is for; by default all that the file names
    :param algorithm: the zoo's name or ours; by default the file's name says it
    :raises InputError: the file, the algorithm or an environment is not to be found, or has another form
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("FILE", str(path), f"name a readable YAML file: {error}") from error
    content = read_yaml(text, path.name)
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise InputError("FILE", str(path), "it must map environments to their hyperparameters")
    for name in content:
        if not isinstance(name, str):
            raise InputError("FILE", str(path), f"the environment {name!r} is not text: put it in quotes")
    named = algorithm or path.stem
    known = _ALGORITHMS.get(named, named)
    if named == "ars":
        fix = f"not in this version: ARS has neither rollouts nor a replay buffer; there are {', '.join(SUPPORTED)}"
        raise NotYet("--algorithm" if algorithm else "FILE", named, fix)
    if known not in SUPPORTED:
        field = "--algorithm" if algorithm else "FILE"
        raise InputError(field, named, f"name the algorithm with --algorithm, one of {', '.join(SUPPORTED)}")
    wanted = list(environments) or [name for name in content if name not in (_ATARI, _DEFAULT)]
    return [_import(name, _entry(content, name, path), known) for name in wanted]


def _entry(content: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    if name in (_ATARI, _DEFAULT):
        raise InputError("--env", name, "name an environment that this entry is for")
    if name in content:
        found: Mapping[str, Any] = content[name]
        return found
    if _ATARI in content and re.search(r"^(ale_py:)?ALE/|NoFrameskip-v", name):
        shared: Mapping[str, Any] = content[_ATARI]
        return shared
    if _DEFAULT in content:  # as the zoo does
        others: Mapping[str, Any] = content[_DEFAULT]
        return others
    raise InputError("--env", name, f"{path.name} has {', '.join(content)}")


class _LeftOut(Exception):
    """Why a value is not carried over."""


def _import(name: str, entry: Mapping[str, Any], algorithm: str) -> Imported:
    left_out: list[tuple[str, str]] = []
    place = find(name)
    former = entry.get("model_class") if isinstance(entry.get("model_class"), str) else None
    algorithm = former if former in SUPPORTED else algorithm
    values: dict[str, Any] = {
        "run_id": _run_id(name, algorithm),
        "algorithm": algorithm,
        "environment": {"id": place.environment},
        "hyperparameters": {},
    }
    if place.module is not None:
        values["environment"]["module"] = place.module
    if name.startswith(("ALE/", "ale_py:")):
        values["environment"]["kwargs"] = {"frameskip": 1}  # AtariWrapper skips
    parsed = dict(entry)
    for key in _TEXTS:
        if isinstance(parsed.get(key), str):
            try:
                parsed[key] = literal(parsed[key])
            except _LeftOut as error:
                left_out.append((key, str(error)))
                del parsed[key]
    for key, value in parsed.items():
        if value is None and key != "clip_range_vf":
            continue
        try:
            _FIELDS.get(key, _hyperparameter(key))(values, value, parsed)
        except _LeftOut as error:
            left_out.append((key, str(error)))
        except (AttributeError, OverflowError, TypeError, ValueError):
            left_out.append((key, f"{value!r} is none of the zoo's forms for it"))
    _drop_what_is_gone(values, left_out)
    notes = [*place.notes, *_packages(values)]
    if "total_timesteps" not in values:
        why = ("n_timesteps", "it is missing, and nothing says how long to train")
        return Imported(name, None, [*left_out, why], notes)
    try:
        return Imported(name, parse_run_file(values, extra={}), left_out, notes)
    except InputError as error:
        return Imported(name, None, [*left_out, (error.field, f"{error.value!r}: {error.fix}")], notes)


def _packages(values: Mapping[str, Any]) -> list[str]:
    """What wrappers and callbacks are imported from, beside what is always there."""
    named = [*values["environment"].get("wrappers", ()), *values.get("callbacks", ())]
    packages = {reference.partition(":")[0].partition(".")[0] for reference in named}
    return [
        f"{package} is imported by it: install it, on a worker by code.requirements, or have it below code.folder"
        for package in sorted(packages - {"gymnasium", "stable_baselines3", "sb3_contrib"})
    ]


def _run_id(name: str, algorithm: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.split(":")[-1].removeprefix("ALE/").lower()).strip("-")
    ending = f"-{algorithm.replace('_', '-')}"
    return plain[: 40 - len(ending)].strip("-") + ending


# ---------------------------------------------------------------------------------------------------------- the fields


_Field = Callable[[dict[str, Any], Any, Mapping[str, Any]], None]


def _hyperparameter(key: str) -> _Field:
    def put(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
        values["hyperparameters"][key] = value

    return put


def _timesteps(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
    total = int(float(value))
    values["total_timesteps"] = total
    values["save_frequency"] = max(1, total // _COMMITS)


def _policy(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
    values["policy"] = _reference(value) if "." in value else value


def _in_environment(key: str) -> _Field:
    def put(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
        values["environment"][key] = value

    return put


def _kwargs(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
    values["environment"]["kwargs"] = {**values["environment"].get("kwargs", {}), **value}


def _normalize(values: dict[str, Any], value: Any, entry: Mapping[str, Any]) -> None:
    if not value:
        return
    arguments = dict(value) if isinstance(value, dict) else {}
    if "gamma" in entry:  # as the zoo does
        arguments["gamma"] = entry["gamma"]
    values["environment"]["normalize"] = arguments or True


def _wrappers(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
    kept, dropped = _references(value)
    if kept:
        values["environment"]["wrappers"] = kept
    if dropped:
        why = "wrappers are called with the environment alone: write a function that gives it its arguments"
        raise _LeftOut(f"{', '.join(dropped)} with arguments: {why}, and name it in environment.wrappers")


def _callbacks(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
    kept, dropped = _references(value)
    if kept:
        values["callbacks"] = kept
    if dropped:
        raise _LeftOut(f"{', '.join(dropped)} with arguments: name a subclass that needs none in callbacks")


def _noise(values: dict[str, Any], value: Any, entry: Mapping[str, Any]) -> None:
    name = next((known for known in _NOISES if known in str(value)), None)
    if name is None or "noise_std" not in entry:
        raise _LeftOut(f"{value!r} is no noise with a standard deviation")
    values["hyperparameters"]["action_noise"] = {name: entry["noise_std"]}


def _hindsight(key: str) -> _Field:
    """Of HER, from when it was an algorithm of its own (Stable-Baselines3 before 1.1)."""

    def put(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
        values["policy"] = "MultiInputPolicy"
        values["hyperparameters"]["replay_buffer_class"] = _NAMES["HerReplayBuffer"]
        values["hyperparameters"].setdefault("replay_buffer_kwargs", {})[key] = value

    return put


def _nothing(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
    """Said by another key."""


def _unknown(why: str) -> _Field:
    def put(values: dict[str, Any], value: Any, _: Mapping[str, Any]) -> None:
        raise _LeftOut(why)

    return put


_FIELDS: dict[str, _Field] = {
    "n_timesteps": _timesteps,
    "policy": _policy,
    "n_envs": _in_environment("n_envs"),
    "frame_stack": _in_environment("frame_stack"),
    "env_kwargs": _kwargs,
    "normalize": _normalize,
    "env_wrapper": _wrappers,
    "callback": _callbacks,
    "noise_type": _noise,
    "noise_std": _nothing,
    "model_class": _nothing,
    "n_sampled_goal": _hindsight("n_sampled_goal"),
    "goal_selection_strategy": _hindsight("goal_selection_strategy"),
    **{key: _unknown("Stable-Baselines3 does not have it any more") for key in sorted(_GONE)},
    "vec_env_wrapper": _unknown("wrappers of all environments together are not known: wrap each environment instead"),
    "monitor_kwargs": _unknown("Monitor is made without arguments"),
    "eval_env_kwargs": _unknown("evaluation has a section of its own"),
    "device": lambda values, value, _: values.update(device=value),
    "seed": lambda values, value, _: values.update(seed=value),
}


def _references(value: Any) -> tuple[list[str], list[str]]:
    """Classes as ``module:Class``: those that need no arguments, and those that do."""
    kept: list[str] = []
    dropped: list[str] = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            kept.append(_reference(one))
        elif isinstance(one, dict):
            for name, arguments in one.items():
                (dropped if arguments else kept).append(_reference(name))
    return kept, dropped


def _reference(path: str) -> str:
    module, _, name = path.rpartition(".")
    return f"{module.replace('gym.', 'gymnasium.') if module.startswith('gym.') else module}:{name}"


def _drop_what_is_gone(values: dict[str, Any], left_out: list[tuple[str, str]]) -> None:
    inner = values["hyperparameters"].get("replay_buffer_kwargs")
    if isinstance(inner, dict):
        for name in sorted(_GONE & inner.keys()):
            left_out.append((f"replay_buffer_kwargs.{name}", "Stable-Baselines3 does not have it any more"))
            del inner[name]
        if not inner:
            del values["hyperparameters"]["replay_buffer_kwargs"]
    network = values["hyperparameters"].get("policy_kwargs")
    if isinstance(network, dict):
        arch = network.get("net_arch")
        if isinstance(arch, list) and len(arch) == 1 and isinstance(arch[0], dict):
            network["net_arch"] = arch[0]  # as SB3 1 wanted it


# -------------------------------------------------------------------------------------------------------------- texts


def literal(text: str) -> Any:
    """A Python literal as run files write it: ``dict(…)`` is a map, ``nn.ReLU`` is ``torch.nn:ReLU``.

    :raises _LeftOut: anything that would have to be run
    """
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _LeftOut(f"{text!r} is no Python expression: {error}") from error
    return _value(tree)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand)
        if isinstance(inner, int | float):
            return -inner
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {
            str(key.value): _value(item)
            for key, item in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        if None not in named:
            return {str(name): _value(item) for name, item in named.items()}
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.Attribute):
        module, _, name = ast.unparse(node).rpartition(".")
        if module in _MODULES:
            return f"{_MODULES[module]}:{name}"
    raise _LeftOut(f"{ast.unparse(node)!r} would have to be run: write it into the run file by hand")
