"""From a run file to a Stable-Baselines3 model with its environments; every refusal names the field it comes from."""

from __future__ import annotations

import atexit
import contextlib
import copy
import importlib.util
import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import psutil
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from train_cloud import child_process
from train_cloud.config import Environment, RunFile
from train_cloud.config.run_file import ALGORITHMS, CONTRIB, ELSEWHERE, MULTIAGENT, SCHEDULED
from train_cloud.envs.known import record
from train_cloud.envs.make import FAILURES, Env, One, close, load_object, refusing, told
from train_cloud.envs.trial import Choice, stateful
from train_cloud.errors import InputError, suggestion
from train_cloud.generators import follow
from train_cloud.safe_text import adopt, guard
from train_cloud.sb3.environment import StateTrial, asked

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Built:
    """A model ready for ``learn``, and how its environments' state is saved."""

    model: BaseAlgorithm
    choice: Choice
    trial: Mapping[str, Any]
    """What there is to know of it in the next session; see ``train_cloud.envs.known``."""

    def close(self) -> None:
        """Close the environments; a worker that has died already is no error."""
        env = self.model.get_env()
        if env is not None and (failure := close(env)) is not None:
            log.warning("the environment: %s", failure)


def build_model(run_file: RunFile, trial: Mapping[str, Any] | None = None, begun: StateTrial | None = None) -> Built:
    """Seed the global generators and make environments and model.

    :param trial: of the environments' state, as :class:`Built` had it in the session before
    :param begun: a new one, if it was begun already
    :raises InputError: a field that Gymnasium, SB3 or the user's own code refuses
    """
    assert run_file.environment is not None and run_file.algorithm is not None
    check_device(run_file.device)
    algorithm, policy = load_algorithm(run_file), load_policy(run_file)
    begun = begun or StateTrial(run_file, trial)
    choice = begun.choice()
    if run_file.algorithm == MULTIAGENT:
        from train_cloud.sb3 import multiagent  # which builds its learners as they are built here

        model: BaseAlgorithm = multiagent.build(run_file, choice)
        env = model.get_env()
        assert env is not None
    else:
        set_random_seed(run_file.seed)
        env = make_vec_env(run_file.environment, run_file.seed, choice)
    try:
        if run_file.algorithm != MULTIAGENT:
            arguments = arguments_of(run_file, algorithm, env.action_space)
            model = construct(run_file, algorithm, policy, env, arguments)
        there, taken = psutil.virtual_memory().total, psutil.Process().memory_info().rss
        check_memory(run_file, buffer_bytes(model), there, "this machine", beside=taken)
        if trial is None or begun.recalled is None:
            trial = record(choice, asked(run_file), _sources(run_file.environment))
    except InputError:
        close(env)
        raise
    return Built(model, choice, trial)


def build_callbacks(run_file: RunFile) -> list[BaseCallback]:
    """The run file's callbacks, made without arguments."""
    made = []
    for reference in run_file.callbacks:
        kind = load_object(reference, "callbacks", BaseCallback)
        with refusing("callbacks", reference, "make it so that it needs no arguments; it raises"):
            made.append(kind())
    return made


# -------------------------------------------------------------------------------------------------------- environments


@dataclass(frozen=True)
class MakeEnv:
    """Makes one environment, here or in a worker process.

    :ivar choice: how its state is saved; None leaves :class:`StatefulEnv` out
    :ivar worker_seed: for the global generators of a worker process of its own; None stays in this process
    :ivar pythonpath: variable for what the environment starts in its turn, in such a process
    """

    environment: Environment
    choice: Choice | None = None
    worker_seed: int | None = None
    pythonpath: str | None = None

    def __call__(self) -> Env:
        if self.worker_seed is not None:
            _enter_worker(self.worker_seed)
            child_process.restore_variables({"PYTHONPATH": self.pythonpath})
        # Outermost, so that it reports what the agent is trained on, and notes ends that wrappers make.
        config = self.environment
        monitored: Env = Monitor(One(config.id, config.module, config.kwargs, config.wrappers)())
        if self.choice is None:
            return monitored
        return stateful(monitored, self.choice)


def _enter_worker(seed: int) -> None:
    """Ctrl-C reaches the whole process group; the trainer alone decides when its environments end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    adopt()
    guard()
    set_random_seed(seed)  # SB3 seeds this process's global generators nowhere
    follow(seed, "worker")


def make_vec_env(environment: Environment, seed: int, choice: Choice) -> VecEnv:
    """The environments as SB3 wants them: stacked, then normalised, if the run file says so.

    :param choice: how their state is saved
    """
    env: VecEnv
    if environment.vectorization == "subproc":
        seeds = [(seed + rank) % 2**32 for rank in range(environment.n_envs)]
        with refusing("environment.vectorization", "subproc", "a worker did not start, see its messages above;"):
            makers: list[Callable[[], Env]] = [
                MakeEnv(environment, choice, seed, os.environ.get("PYTHONPATH")) for seed in seeds
            ]
            with child_process.starting_workers():
                workers = SubprocVecEnv(makers, start_method=child_process.WORKERS)
        atexit.register(_end_workers, workers.processes)
        env = workers
    else:
        with refusing("environment.id", environment.id, "SB3 cannot take it:"):
            env = DummyVecEnv([MakeEnv(environment, choice)] * environment.n_envs)
    try:
        for name, value in (environment.normalize or {}).items():
            if name in NORMALIZE_RULES and not NORMALIZE_RULES[name][0](value):
                raise InputError(f"environment.normalize.{name}", value, NORMALIZE_RULES[name][1])
        if environment.frame_stack is not None:
            with refusing("environment.frame_stack", environment.frame_stack, "VecFrameStack raises"):
                env = VecFrameStack(env, environment.frame_stack)
        # Outermost: off-policy, SB3 stores the observations that VecNormalize has not normalised yet.
        if environment.normalize is not None:
            with refusing("environment.normalize", environment.normalize, "VecNormalize raises"):
                env = VecNormalize(env, **environment.normalize)
    except InputError:
        close(env)
        raise
    return env


def _end_workers(processes: list[Any]) -> None:
    """Before multiprocessing's own exit, which would send the SIGTERM that they ignore and wait for ever."""
    for process in processes:
        if process.is_alive():
            process.kill()


def _sources(environment: Environment) -> list[str]:
    """Modules that the environment comes from."""
    entry: Any = None
    with contextlib.suppress(gymnasium.error.Error):  # registered in its own processes alone
        entry = gymnasium.spec(environment.id).entry_point
    made = entry.split(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", None)
    before = environment.id.partition(":")[0] if ":" in environment.id else None
    named = [environment.module, made, before, *(wrapper.split(":")[0] for wrapper in environment.wrappers)]
    return [name for name in named if name is not None]


# ------------------------------------------------------------------------------------------------ algorithm and policy


#: Where Linux lists what is on the PCI bus (Linux, Documentation/ABI/testing/sysfs-bus-pci).
PCI = Path("/sys/bus/pci/devices")


def gpu_present() -> bool:
    """Whether this machine has a display controller (class 03) of NVIDIA's, whatever torch makes of it."""
    for device in PCI.glob("*") if PCI.is_dir() else ():
        with contextlib.suppress(OSError):
            if (device / "vendor").read_text().strip().lower() == "0x10de":
                kind = device / "class"
                if not kind.exists() or kind.read_text().startswith("0x03"):
                    return True
    return False


def check_device(device: str) -> None:
    """:raises InputError: a GPU is asked for and torch has none; none is asked for and the one here cannot be used"""
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError("device", device, f"torch finds {count} GPUs here: use auto or cpu")
    if device == "auto" and not torch.cuda.is_available() and gpu_present():
        fix = f"torch {torch.__version__} cannot use the NVIDIA GPU here, and would train on the CPU"
        raise InputError("device", device, f"{fix}: mend the driver, install torch with CUDA, or set device: cpu")


def buffer_bytes(model: BaseAlgorithm, transitions: int | None = None) -> int:
    """Memory that the replay or rollout buffer takes once it is full.

    :param transitions: of a buffer of this size instead of the model's own
    """
    learners: Mapping[str, BaseAlgorithm] = getattr(model, "learners", {})
    if learners:
        return sum(buffer_bytes(learner, transitions) for learner in learners.values())
    buffer: Any = getattr(model, "replay_buffer", None) or getattr(model, "rollout_buffer", None)
    if buffer is None:
        return 0
    own = buffer.buffer_size * buffer.n_envs
    arrays = [
        array
        for value in vars(buffer).values()
        for array in (value.values() if isinstance(value, dict) else [value])
        if isinstance(array, np.ndarray) and len(array) in (buffer.buffer_size, own)  # a rollout's are flattened
    ]
    infos = sum(array.size for array in arrays if array.dtype.hasobject)  # hindsight has an empty dict for each row
    total = sum(array.nbytes for array in arrays) + infos * sys.getsizeof({})
    return total if transitions is None else total * transitions // own


def check_memory(run_file: RunFile, buffer: int, there: int, where: str, *, beside: int) -> None:
    """NumPy gets a buffer's memory page by page as it fills: too much of it ends the training after hours, not now.

    :param buffer: bytes of the full buffer
    :param there: bytes that a training may use
    :param beside: bytes that it takes without the buffer
    :raises InputError: ``where`` has less
    """
    if buffer + beside <= there:
        return
    argument = "n_steps" if issubclass(load_algorithm(run_file), OnPolicyAlgorithm) else "buffer_size"
    takes = f"the buffer would take {buffer / 2**30:.1f} GiB, all else {beside / 2**30:.1f}"
    value = run_file.hyperparameters.get(argument, "the default")
    fix = f"{takes}; {where} has {there / 2**30:.1f} for them: give less"
    raise InputError(f"hyperparameters.{argument}", value, fix)


def load_algorithm(run_file: RunFile) -> type[BaseAlgorithm]:
    assert run_file.algorithm is not None
    if "contrib" in run_file.extras and importlib.util.find_spec(CONTRIB) is None:
        fix = "it is part of sb3-contrib, which is not installed: pip install sb3-contrib"
        raise InputError("algorithm", run_file.algorithm, fix)
    reference = ALGORITHMS.get(run_file.algorithm, run_file.algorithm)
    loaded: type[BaseAlgorithm] = load_object(reference, "algorithm", BaseAlgorithm)
    return loaded


def load_policy(run_file: RunFile) -> str | type[BasePolicy]:
    if ":" in run_file.policy:
        loaded: type[BasePolicy] = load_object(run_file.policy, "policy", BasePolicy)
        return loaded
    aliases = tuple(load_algorithm(run_file).policy_aliases)
    if run_file.policy not in aliases:
        raise InputError("policy", run_file.policy, f"use {', '.join(aliases)} or module:Class")
    return run_file.policy


def construct(
    run_file: RunFile,
    algorithm: type[BaseAlgorithm],
    policy: str | type[BasePolicy],
    env: VecEnv,
    arguments: Mapping[str, Any],
) -> BaseAlgorithm:
    """:raises InputError: naming the argument without which SB3 would have taken the rest"""

    def attempt(policy: str | type[BasePolicy], arguments: Mapping[str, Any]) -> BaseAlgorithm:
        # SB3 writes into policy_kwargs
        return algorithm(policy=policy, env=env, seed=run_file.seed, device=run_file.device, **copy.deepcopy(arguments))

    with explaining(run_file, algorithm, policy, arguments, lambda *changed: attempt(*changed)):
        return attempt(policy, arguments)


@contextlib.contextmanager
def explaining(
    run_file: RunFile,
    algorithm: type[BaseAlgorithm],
    policy: str | type[BasePolicy],
    arguments: Mapping[str, Any],
    attempt: Callable[[str | type[BasePolicy], Mapping[str, Any]], object],
) -> Iterator[None]:
    """What SB3 raises inside becomes an InputError of the field that makes the difference.

    SB3's exceptions name no argument. So each is left out in turn: the first without which ``attempt`` goes well is it.
    """
    try:
        yield
    except InputError:
        raise
    except FAILURES as error:

        def goes_well(policy: str | type[BasePolicy], arguments: Mapping[str, Any]) -> bool:
            try:
                attempt(policy, {"buffer_size": 64, **arguments} if "buffer_size" in known else arguments)
            except FAILURES:
                return False
            return True

        known = inspect.signature(algorithm.__init__).parameters
        for field, value, changed in _left_out(run_file.hyperparameters, arguments):
            if goes_well(policy, changed):
                raise InputError(field, value, f"{algorithm.__name__} refuses it: {told(error)}") from error
        for other in algorithm.policy_aliases:
            if other != policy and goes_well(other, arguments):
                raise InputError("policy", run_file.policy, f"{told(error)}: use {other}") from error
        what = run_file.environment.id if run_file.environment else "the environment"
        raise InputError("algorithm", run_file.algorithm, f"it refuses {what}: {told(error)}") from error


def _left_out(written: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """``(field, value as written, the other arguments)`` for each argument, and for each within policy_kwargs."""
    inner = arguments.get("policy_kwargs") or {}
    for name in inner:
        fewer = {key: value for key, value in inner.items() if key != name}
        value = written["policy_kwargs"][name]
        yield f"hyperparameters.policy_kwargs.{name}", value, {**arguments, "policy_kwargs": fewer}
    for name in written:
        yield f"hyperparameters.{name}", written[name], {k: value for k, value in arguments.items() if k != name}


# ----------------------------------------------------------------------------------------------------- hyperparameters


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


def arguments_of(run_file: RunFile, algorithm: type[BaseAlgorithm], action_space: spaces.Space[Any]) -> dict[str, Any]:
    """The run file's hyperparameters as the algorithm takes them: names turned into objects.

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
    defaults = {name: parameter.default for name, parameter in signature.items()}
    _check_together(run_file, {**defaults, **arguments})
    return arguments


def _check_together(run_file: RunFile, arguments: Mapping[str, Any]) -> None:
    """What one argument alone does not show. ``learn.check`` tries a rollout and a batch of another size.

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
    if name == "net_arch" and ":" not in run_file.policy:
        parts = value.values() if isinstance(value, dict) else [value]
        if not all(isinstance(part, list) and all(_is_whole(width, 1) for width in part) for part in parts):
            raise InputError(field, value, "give a list of layer widths, or {pi: [widths], qf: [widths]}")
    if name in ("n_quantiles", "n_critics", "lstm_hidden_size", "n_lstm_layers") and not _is_whole(value, 1):
        raise InputError(field, value, "give a whole number of at least 1")
    if name == "activation_fn":
        return _named(value, field, ACTIVATIONS, torch.nn.Module)
    if name == "optimizer_class":
        return _named(value, field, OPTIMIZERS, torch.optim.Optimizer)
    if name == "features_extractor_class":
        return _named(value, field, {}, torch.nn.Module)
    return value


def _named(value: Any, field: str, known: Mapping[str, Any], kind: type) -> Any:
    if isinstance(value, str) and ":" in value:
        return load_object(value, field, kind)
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise InputError(field, value, f"use {', '.join([*known, 'module:Class'])}")
