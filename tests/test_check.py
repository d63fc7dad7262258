"""A table of run files that SB3, Gymnasium or the user's own code would refuse, and the field that must be named."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import interrupting  # noqa: F401 - registers its environments before any test looks at the registry
import numpy as np
import pytest
import torch

from train_cloud.config import parse_run_file
from train_cloud.errors import InputError, TrainCloudError
from train_cloud.sb3.check import CheckReport, check
from train_cloud.sb3.resources import check_memory

torch.set_num_threads(1)

CODE = """
    import gymnasium, numpy, os, threading
    from gymnasium import spaces
    from stable_baselines3.common.callbacks import BaseCallback

    class Base(gymnasium.Env):
        observation_space = spaces.Box(-1, 1, (2,), numpy.float32)
        action_space = spaces.Box(-1, 1, (1,), numpy.float32)
        def __init__(self, size=1):
            assert size > 0, "the size must be positive"
            self.steps = 0
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return self.see(), {}
        def step(self, action):
            self.steps += 1
            return self.see(), 1.0, False, self.steps >= 5, {}
        def see(self):
            return self.np_random.uniform(-1, 1, 2).astype(numpy.float32)

    class SimulatorError(Exception):
        pass

    class FailsInReset(Base):
        def reset(self, **_):
            raise SimulatorError("no licence\\nfor the simulator")

    class FailsInStep(Base):
        def step(self, action):
            raise SimulatorError("the car left the planet")

    class WrongShape(Base):
        def see(self):
            return numpy.zeros(3, numpy.float32)

    class NotANumber(Base):
        def step(self, action):
            return super().step(action)[0] * numpy.nan, 1.0, False, False, {}

    class InfiniteReward(Base):
        def step(self, action):
            return self.see(), float("inf"), False, False, {}

    class DictObservation(Base):
        observation_space = spaces.Dict({"a": Base.observation_space})
        def see(self):
            return {"a": super().see()}

    class Nested(DictObservation):
        observation_space = spaces.Dict({"a": DictObservation.observation_space})
        def see(self):
            return {"a": super().see()}

    class Mixed(Base):
        observation_space = spaces.Dict({"a": Base.observation_space, "b": spaces.Discrete(2)})
        def see(self):
            return {"a": super().see(), "b": 1}

    class Unbounded(Base):
        action_space = spaces.Box(-numpy.inf, numpy.inf, (1,), numpy.float32)

    class Image(Base):
        observation_space = spaces.Box(0, 255, (36, 36, 3), numpy.uint8)
        def see(self):
            return self.np_random.integers(0, 255, (36, 36, 3)).astype(numpy.uint8)

    class Goal(Base):
        observation_space = spaces.Dict(
            dict.fromkeys(["observation", "achieved_goal", "desired_goal"], Base.observation_space)
        )
        def see(self):
            return {name: super(Goal, self).see() for name in self.observation_space}
        def compute_reward(self, achieved, desired, infos):
            return -numpy.abs(achieved - desired).sum(axis=-1)

    class Locked(Base):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    class Noisy(Locked):
        def see(self):
            return numpy.random.uniform(-1, 1, 2).astype(numpy.float32)

    class ReadsVariable(Base):
        def __init__(self):
            super().__init__()
            self.size = int(os.environ["SIZE_OF_THE_TRACK"])

    for name, kind in list(globals().items()):
        if isinstance(kind, type) and issubclass(kind, Base):
            gymnasium.register(f"{name}-v0", entry_point=kind)
    gymnasium.register("Timed-v0", entry_point=Goal, max_episode_steps=50)

    class Wrapper(gymnasium.Wrapper):
        pass

    class WrapperWithArguments(gymnasium.Wrapper):
        def __init__(self, env, scale):
            super().__init__(env)

    class Quiet(BaseCallback):
        def _on_step(self):
            return True

    class Needy(Quiet):
        def __init__(self, path):
            super().__init__()

    class Loud(Quiet):
        def _on_step(self):
            raise SimulatorError("no such callback")

    class Holder(Quiet):
        def __init__(self):
            super().__init__()
            self.held = {"lock": threading.Lock(), "numbers": (n for n in range(9))}

    class Plain:
        pass

    def main():
        raise AssertionError("a script is not run to check it")

    number = 3
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("code")
    (folder / "own.py").write_text(textwrap.dedent(CODE))
    (folder / "broken.py").write_text("import own\nown.nothing\n")
    registered = set(gym.registry)
    yield folder
    for name in set(gym.registry) - registered:
        del gym.registry[name]
    for name in ("own", "broken"):
        sys.modules.pop(name, None)


RUN: dict[str, Any] = {
    "run_id": "check",
    "algorithm": "sac",
    "device": "cpu",
    "total_timesteps": 1000,
    "save_frequency": 100,
    "environment": {"id": "Pendulum-v1"},
}


def try_out(code: Path, **changed: Any) -> CheckReport:
    values: dict[str, Any] = {
        **RUN,
        "environment": {"id": "Pendulum-v1", **changed.pop("environment", {})},
        "hyperparameters": {"policy_kwargs": {"net_arch": [8]}, **changed.pop("hyperparameters", {})},
        "code": {"folder": str(code)},
        **changed,
    }
    if "entry_point" in values:
        for name in ("algorithm", "environment", "hyperparameters"):
            del values[name]
    return check(parse_run_file(values))


def own(name: str) -> dict[str, str]:
    return {"id": f"{name}-v0", "module": "own"}


def hindsight(name: str = "Goal-v0", n_envs: int = 1, learning_starts: int = 100, **arguments: Any) -> dict[str, Any]:
    return {
        "environment": {**own("Goal"), "id": name, "n_envs": n_envs},
        "policy": "MultiInputPolicy",
        "hyperparameters": {
            "replay_buffer_class": "stable_baselines3:HerReplayBuffer",
            "replay_buffer_kwargs": arguments,
            "learning_starts": learning_starts,
        },
    }


#: (what is changed, the field that must be named, what must be said)
BAD: list[tuple[dict[str, Any], str, str]] = [
    # environment
    ({"environment": {"id": "Pendulm-v1"}}, "environment.id", "Did you mean: `Pendulum`"),
    ({"environment": {"id": "Pendulum-v99"}}, "environment.id", "v99"),
    ({"environment": {"id": "Base-v1", "module": "own"}}, "environment.id", "`v1`"),
    ({"environment": {"id": "nowhere:Base-v0"}}, "environment.id", "No module named 'nowhere'"),
    ({"environment": {"id": "Ghost-v0"}}, "environment.id", "environment.module"),
    ({"environment": {**own("Base"), "module": "owm"}}, "environment.module", "there is no module owm"),
    ({"environment": {**own("Base"), "module": "broken"}}, "environment.module", "AttributeError"),
    ({"environment": {"kwargs": {"gravity": 1}}}, "environment.kwargs.gravity", "gravity"),
    ({"environment": {**own("Base"), "kwargs": {"size": 0}}}, "environment.kwargs.size", "must be positive"),
    ({"environment": own("FailsInReset")}, "environment.id", "SimulatorError: no licence for the simulator (own.py"),
    ({"environment": {**own("FailsInReset"), "state": "episode"}}, "environment.id", "no licence"),
    ({"environment": own("FailsInStep")}, "environment.id", "the car left the planet"),
    ({"environment": {**own("FailsInStep"), "state": "episode"}}, "environment.id", "the car left the planet"),
    ({"environment": own("WrongShape")}, "environment.id", "shape"),
    ({"environment": own("NotANumber")}, "environment.id", "it must be finite"),
    ({"environment": own("InfiniteReward")}, "environment.id", "rewards must be finite"),
    ({"environment": own("Nested")}, "environment.id", "Nested observation spaces"),
    ({"environment": own("ReadsVariable")}, "environment.id", "'SIZE_OF_THE_TRACK' (own.py, line"),
    ({"environment": {"wrappers": ["own:Wraper"]}}, "environment.wrappers", "did you mean"),
    ({"environment": {"wrappers": ["own:Plain"]}}, "environment.wrappers", "takes no arguments"),
    ({"environment": {"wrappers": ["own:Quiet"]}}, "environment.wrappers", "subclass of gymnasium.Wrapper"),
    ({"environment": {"wrappers": ["own:number"]}}, "environment.wrappers", "not callable"),
    ({"environment": {"wrappers": ["own:Wrapper", "own:WrapperWithArguments"]}}, "environment.wrappers", "'scale'"),
    ({"environment": {"normalize": {"clip_obs": "much"}}}, "environment.normalize.clip_obs", "above 0"),
    ({"environment": {"normalize": {"norm_obs_keys": ["a"]}}}, "environment.normalize", "norm_obs_keys"),
    (
        {"environment": {**own("Mixed"), "frame_stack": 2}, "policy": "MultiInputPolicy"},
        "environment.frame_stack",
        "only supports Box and Dict",
    ),
    ({"environment": {**own("Locked"), "state": "pickle"}}, "environment.state", "cannot pickle"),
    ({"environment": {"state": "own"}}, "environment.state", "get_state"),
    # algorithm and policy
    ({"environment": {"id": "CartPole-v1"}}, "algorithm", "Discrete(2)"),
    ({"environment": own("Unbounded")}, "algorithm", "finite lower and upper bound"),
    ({"algorithm": "own:Plain"}, "algorithm", "BaseAlgorithm"),
    ({"algorithm": "own:Sac"}, "algorithm", "own has no Sac"),
    ({"algorithm": "nowhere:SAC"}, "algorithm", "there is no module nowhere"),
    ({"policy": "MlpPolcy"}, "policy", "use MlpPolicy"),
    ({"policy": "mlppolicy"}, "policy", "use MlpPolicy"),
    ({"policy": "LstmPolicy"}, "policy", "MlpPolicy, CnnPolicy, MultiInputPolicy"),
    ({"policy": "own:Quiet"}, "policy", "BasePolicy"),
    ({"policy": "CnnPolicy"}, "policy", "use MlpPolicy"),
    ({"environment": own("DictObservation")}, "policy", "use MultiInputPolicy"),
    ({"policy": "MultiInputPolicy"}, "policy", "use MlpPolicy"),
    ({"device": "cuda:7"}, "device", "use auto or cpu"),
    # buffers
    (hindsight("Timed-v0", n_envs=3), "hyperparameters.learning_starts", "at least 150"),
    (hindsight(copy_info_dict=True), "hyperparameters.replay_buffer_kwargs.copy_info_dict", "infos are objects"),
    # callbacks and scripts
    ({"callbacks": ["own:Wrapper"]}, "callbacks", "BaseCallback"),
    ({"callbacks": ["own:Needy"]}, "callbacks", "'path'"),
    ({"callbacks": ["own:Quiet", "own:Loud"]}, "callbacks", "no such callback"),
    ({"callbacks": ["own:Nobody"]}, "callbacks", "own has no Nobody"),
    ({"entry_point": "own:mein"}, "entry_point", "did you mean main?"),
    ({"entry_point": "own:number"}, "entry_point", "name a function"),
    ({"entry_point": "broken:main"}, "entry_point", "broken.py, line 2"),
]

BAD_HYPERPARAMETERS: list[tuple[str, Any, str]] = [
    ("learning_rat", 1e-3, "did you mean learning_rate?"),
    ("n_epochs", 10, "SAC has no such argument"),
    ("learning_rate", -1e-3, "above 0"),
    ("learning_rate", 0, "above 0"),
    ("learning_rate", [1e-3], "above 0"),
    ("learning_rate", True, "above 0"),
    ("batch_size", 0, "at least 1"),
    ("batch_size", -5, "at least 1"),
    ("batch_size", 2.5, "whole number"),
    ("batch_size", "64", "whole number"),
    ("buffer_size", 0, "at least 1"),
    ("buffer_size", 1.5, "whole number"),
    ("learning_starts", -1, "at least 0"),
    ("tau", 0, "above 0"),
    ("tau", 1.5, "at most 1"),
    ("gamma", 1.01, "from 0 to 1"),
    ("gamma", "high", "from 0 to 1"),
    ("train_freq", 0, "at least 1"),
    ("train_freq", [1, "epoch"], "[number, episode]"),
    ("train_freq", [0, "step"], "at least 1"),
    ("train_freq", "episode", "[number, episode]"),
    ("gradient_steps", 0, "-1"),
    ("gradient_steps", -2, "-1"),
    ("n_steps", 0, "at least 1"),
    ("target_update_interval", 0, "at least 1"),
    ("ent_coef", -0.1, "at least 0"),
    ("ent_coef", "automatic", "auto_<start value>"),
    ("ent_coef", "auto_x", "could not convert"),
    ("ent_coef", "auto_0", "greater than 0"),
    ("target_entropy", "low", "or auto"),
    ("use_sde", "yes", "true or false"),
    ("sde_sample_freq", 0, "-1"),
    ("stats_window_size", 0, "at least 1"),
    ("action_noise", 0.1, "normal, ornstein-uhlenbeck"),
    ("action_noise", {"gaussian": 0.1}, "normal, ornstein-uhlenbeck"),
    ("replay_buffer_class", "HerReplayBuffer", "module:Class"),
    ("replay_buffer_class", "own:Plain", "SAC refuses it"),
    ("replay_buffer_kwargs", {"size": 3}, "size"),
    ("optimize_memory_usage", True, "simultaneously"),
    ("policy_kwargs", [64, 64], "give a map"),
]

BAD_POLICY_ARGUMENTS: list[tuple[str, Any, str]] = [
    ("net_arh", [64], "net_arh"),
    ("net_arch", "big", "layer widths"),
    ("net_arch", [64, 0], "layer widths"),
    ("net_arch", [64, "64"], "layer widths"),
    ("net_arch", 64, "layer widths"),
    ("net_arch", {"pi": [64]}, "qf"),
    ("activation_fn", "tanhh", "tanh"),
    ("activation_fn", "torch.nn:Tanhh", "did you mean"),
    ("activation_fn", "torch.nn.functional:tanh", "torch.nn.modules.module.Module"),
    ("optimizer_class", "adamm", "adam"),
    ("features_extractor_class", "CNN", "module:Class"),
    ("n_critics", 0, "at least 1"),
    ("optimizer_kwargs", {"momentum": 0.9}, "momentum"),
]


_PPO = ("ppo", "Pendulum-v1", "MlpPolicy")
_LSTM = ("recurrent_ppo", "Pendulum-v1", "MlpLstmPolicy")
_TRPO = ("trpo", "Pendulum-v1", "MlpPolicy")
_DQN = ("dqn", "CartPole-v1", "MlpPolicy")
_QRDQN = ("qrdqn", "CartPole-v1", "MlpPolicy")
_TQC = ("tqc", "Pendulum-v1", "MlpPolicy")
_TD3 = ("td3", "Pendulum-v1", "MlpPolicy")
_CROSSQ = ("crossq", "Pendulum-v1", "MlpPolicy")

#: ((algorithm, environment, policy), hyperparameters, the field that must be named, what must be said)
BAD_ELSEWHERE: list[tuple[tuple[str, str, str], dict[str, Any], str, str]] = [
    (("tqc", "CartPole-v1", "MlpPolicy"), {}, "algorithm", "Discrete(2)"),
    (("crossq", "CartPole-v1", "MlpPolicy"), {}, "algorithm", "Discrete(2)"),
    (("qrdqn", "Pendulum-v1", "MlpPolicy"), {}, "algorithm", "Box(-2.0"),
    (("dqn", "Pendulum-v1", "MlpPolicy"), {}, "algorithm", "Box(-2.0"),
    (("maskable_ppo", "CartPole-v1", "MlpPolicy"), {}, "environment.id", "action_masks()"),
    (("recurrent_ppo", "Pendulum-v1", "MlpPolicy"), {}, "policy", "use MlpLstmPolicy"),
    (("recurrent_ppo", "Pendulum-v1", "CnnLstmPolicy"), {}, "policy", "use MlpLstmPolicy"),
    (("ppo", "Pendulum-v1", "MlpLstmPolicy"), {}, "policy", "use MlpPolicy"),
    (("crossq", "Pendulum-v1", "CnnPolicy"), {}, "policy", "use MlpPolicy"),
    (("ppo", "CartPole-v1", "MlpPolicy"), {"use_sde": True}, "hyperparameters.use_sde", "continuous actions"),
    (_CROSSQ, {"tau": 0.1}, "hyperparameters.tau", "CrossQ has no such argument"),
    (_TRPO, {"clip_range": 0.2}, "hyperparameters.clip_range", "TRPO has no such argument"),
    (_DQN, {"action_noise": {"normal": 0.1}}, "hyperparameters.action_noise", "DQN has no such argument"),
    (_LSTM, {"policy_kwargs": {"lstm_hidden_size": 0}}, "hyperparameters.policy_kwargs.lstm_hidden_size", "at least 1"),
    (_LSTM, {"policy_kwargs": {"n_lstm_layers": 1.5}}, "hyperparameters.policy_kwargs.n_lstm_layers", "whole number"),
    (_LSTM, {"policy_kwargs": {"shared_lstm": True}}, "hyperparameters.policy_kwargs.shared_lstm", "must choose"),
    (_TQC, {"policy_kwargs": {"n_quantiles": 0}}, "hyperparameters.policy_kwargs.n_quantiles", "at least 1"),
    (_QRDQN, {"policy_kwargs": {"n_quantiles": -1}}, "hyperparameters.policy_kwargs.n_quantiles", "at least 1"),
    (_TQC, {"top_quantiles_to_drop_per_net": 25}, "hyperparameters.top_quantiles_to_drop_per_net", "less than"),
    (_TQC, {"top_quantiles_to_drop_per_net": -1}, "hyperparameters.top_quantiles_to_drop_per_net", "at least 0"),
    (_TRPO, {"cg_max_steps": 0}, "hyperparameters.cg_max_steps", "at least 1"),
    (_TRPO, {"cg_damping": -0.1}, "hyperparameters.cg_damping", "at least 0"),
    (_TRPO, {"target_kl": -1}, "hyperparameters.target_kl", "above 0"),
    (_TRPO, {"sub_sampling_factor": 0}, "hyperparameters.sub_sampling_factor", "at least 1"),
    (_TRPO, {"line_search_shrinking_factor": 1}, "hyperparameters.line_search_shrinking_factor", "below 1"),
    (_TRPO, {"line_search_max_iter": 0}, "hyperparameters.line_search_max_iter", "at least 1"),
    (_TRPO, {"n_critic_updates": 0}, "hyperparameters.n_critic_updates", "at least 1"),
    (_QRDQN, {"exploration_fraction": 2}, "hyperparameters.exploration_fraction", "from 0 to 1"),
    (_DQN, {"exploration_final_eps": -1}, "hyperparameters.exploration_final_eps", "from 0 to 1"),
    (_DQN, {"exploration_initial_eps": "x"}, "hyperparameters.exploration_initial_eps", "from 0 to 1"),
    (_DQN, {"max_grad_norm": 0}, "hyperparameters.max_grad_norm", "above 0"),
    (_PPO, {"batch_size": 1}, "hyperparameters.batch_size", "normalize_advantage"),
    (_LSTM, {"batch_size": 1}, "hyperparameters.batch_size", "normalize_advantage"),
    (_PPO, {"n_steps": 1}, "hyperparameters.n_steps", "more environments"),
    (_PPO, {"n_epochs": 0}, "hyperparameters.n_epochs", "at least 1"),
    (_PPO, {"clip_range": -1}, "hyperparameters.clip_range", "above 0"),
    (_PPO, {"clip_range_vf": -1}, "hyperparameters.clip_range_vf", "above 0"),
    (_PPO, {"gae_lambda": 2}, "hyperparameters.gae_lambda", "from 0 to 1"),
    (_PPO, {"target_kl": "x"}, "hyperparameters.target_kl", "above 0"),
    (_PPO, {"vf_coef": -1}, "hyperparameters.vf_coef", "at least 0"),
    (_PPO, {"ent_coef": "auto"}, "hyperparameters.ent_coef", "PPO refuses it"),
    (_PPO, {"normalize_advantage": "no"}, "hyperparameters.normalize_advantage", "true or false"),
    (_TD3, {"policy_delay": 0}, "hyperparameters.policy_delay", "at least 1"),
    (_TD3, {"target_policy_noise": -1}, "hyperparameters.target_policy_noise", "at least 0"),
    (_TD3, {"target_noise_clip": "x"}, "hyperparameters.target_noise_clip", "at least 0"),
    (_TD3, {"action_noise": {"normal": -1}}, "hyperparameters.action_noise.normal", "at least 0"),
]


@pytest.mark.parametrize(("what", "hyperparameters", "field", "told"), BAD_ELSEWHERE)
def test_refused_by_another_algorithm(
    code: Path, what: tuple[str, str, str], hyperparameters: dict[str, Any], field: str, told: str
) -> None:
    algorithm, environment, policy = what
    with pytest.raises(InputError) as caught:
        try_out(
            code, algorithm=algorithm, environment={"id": environment}, policy=policy, hyperparameters=hyperparameters
        )
    assert caught.value.field == field, caught.value
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_installed_is_named(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sb3_contrib" else there(name))
    for algorithm in ("tqc", "sb3_contrib:TQC"):
        with pytest.raises(InputError, match=r"algorithm: .*pip install sb3-contrib"):
            try_out(code, algorithm=algorithm)
    try_out(code)


@pytest.mark.parametrize(("changed", "field", "told"), BAD)
def test_refused(code: Path, changed: dict[str, Any], field: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        try_out(code, **{name: dict(value) if isinstance(value, dict) else value for name, value in changed.items()})
    assert caught.value.field == field, caught.value
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value", "told"), BAD_HYPERPARAMETERS)
def test_refused_hyperparameter(code: Path, name: str, value: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        try_out(code, hyperparameters={name: value})
    assert caught.value.field in (f"hyperparameters.{name}", f"hyperparameters.{name}.size"), caught.value
    assert told in str(caught.value)
    assert caught.value.value == value


@pytest.mark.parametrize(("name", "value", "told"), BAD_POLICY_ARGUMENTS)
def test_refused_policy_argument(code: Path, name: str, value: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        try_out(code, hyperparameters={"policy_kwargs": {"share_features_extractor": False, name: value}})
    assert caught.value.field == f"hyperparameters.policy_kwargs.{name}", caught.value
    assert told in str(caught.value)
    assert caught.value.value == value


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"environment": own("DictObservation"), "policy": "MultiInputPolicy"},
        {"environment": own("Image"), "policy": "CnnPolicy"},
        {"environment": {"n_envs": 4, "normalize": True}},
        {"environment": {"n_envs": 8, "vectorization": "subproc"}},
        {"environment": {**own("ReadsVariable"), "wrappers": ["own:Wrapper"]}, "env": {"SIZE_OF_THE_TRACK": "4"}},
        {"callbacks": ["own:Quiet"]},
        {"hyperparameters": {"buffer_size": 1e6, "batch_size": 4096.0}},
        {"hyperparameters": {"train_freq": [3, "episode"], "gradient_steps": -1, "learning_starts": 1e9}},
        {"hyperparameters": {"use_sde": True, "sde_sample_freq": 4, "ent_coef": "auto_0.1", "n_steps": 3}},
        {"hyperparameters": {"policy_kwargs": {"net_arch": {"pi": [4], "qf": [8]}}, "action_noise": {"normal": 0.1}}},
        {"hyperparameters": {"learning_rate": "lin_1e-3", "target_entropy": -2, "gamma": 1, "tau": 1}},
        hindsight(goal_selection_strategy="final"),
        hindsight("Timed-v0", n_envs=3, learning_starts=150),
        {
            "hyperparameters": {
                "optimize_memory_usage": True,
                "replay_buffer_kwargs": {"handle_timeout_termination": False},
            }
        },
        {"algorithm": "stable_baselines3:TD3"},
        {"algorithm": "stable_baselines3:PPO"},
        {"algorithm": "tqc", "hyperparameters": {"top_quantiles_to_drop_per_net": 24, "train_freq": 2}},
        {"algorithm": "crossq", "environment": {"n_envs": 2}},
        {"algorithm": "trpo", "hyperparameters": {"target_kl": 0.02, "cg_max_steps": 5}},
        {"algorithm": "recurrent_ppo", "policy": "MlpLstmPolicy", "hyperparameters": {"clip_range": "lin_0.2"}},
        {"algorithm": "qrdqn", "environment": {"id": "CartPole-v1", "frame_stack": 3}},
        {
            "algorithm": "maskable_ppo",
            "environment": {"id": "MaskedWalk-v0", "module": "interrupting", "kwargs": {"discrete": True}, "n_envs": 2},
        },
        {"algorithm": "ppo", "hyperparameters": {"batch_size": 1, "normalize_advantage": False, "clip_range_vf": None}},
        {"environment": {"frame_stack": 4, "normalize": True, "n_envs": 2}},
        {"environment": {**own("DictObservation"), "frame_stack": 2}, "policy": "MultiInputPolicy"},
    ],
)
def test_accepted(code: Path, changed: dict[str, Any]) -> None:
    report = try_out(code, **{name: dict(v) if isinstance(v, dict) else v for name, v in changed.items()})
    assert report.choice is not None
    assert report.choice.exact, report.choice.because


def test_what_is_reported(code: Path) -> None:
    report = try_out(code, hyperparameters={"buffer_size": 1000})
    assert report.choice is not None
    assert (report.choice.provider, report.choice.exact) == ("pickle", True)
    assert report.observation_space == gym.make("Pendulum-v1").observation_space
    assert report.action_space == gym.spaces.Box(-2, 2, (1,), np.float32)
    # two observations of 3 float32, an action, a reward, done and timeout
    assert report.buffer_bytes == 1000 * 4 * (3 + 3 + 1 + 1 + 1 + 1)
    arguments = hindsight()
    arguments["hyperparameters"]["buffer_size"] = 1000
    # three observations and their successors of 2 float32, and an episode's start and length and an info
    assert try_out(code, **arguments).buffer_bytes == 1000 * (4 * (6 * 2 + 1 + 1 + 1 + 1) + 3 * 8 + sys.getsizeof({}))


@pytest.mark.parametrize("n_envs", [1, 5])
def test_sizes_are_estimated(code: Path, n_envs: int) -> None:
    """By the trial's small buffer and two environments at most, for all of them."""
    report = try_out(code, environment={"n_envs": n_envs}, hyperparameters={"buffer_size": 5000, "n_steps": 3})
    assert report.row_bytes == 4 * (3 + 1 + 1 + 1 + 1), "the next observation is the next row's"
    assert (report.capacity, report.buffer_bytes) == (5000, 5000 * 4 * (3 + 3 + 1 + 1 + 1 + 1))
    assert 10_000 < report.parts_bytes < 200_000
    assert 2**30 < report.beside_bytes < 8 * 2**30
    kept = {"last": 4, "every": 100, "best": True}
    run_file = parse_run_file({**RUN, "total_timesteps": 2000, "save_frequency": 50, "preservation": kept})
    assert report.stored_bytes(run_file) == 2000 * 28 + (4 + 20 + 1) * report.parts_bytes
    longer = parse_run_file({**RUN, "total_timesteps": 10**6, "save_frequency": 50})
    assert report.stored_bytes(longer) == (5000 + 3 * 50) * 28 + 3 * report.parts_bytes


def test_a_rollout_is_estimated(code: Path) -> None:
    report = try_out(code, algorithm="ppo", environment={"n_envs": 3}, hyperparameters={"n_steps": 64})
    assert (report.capacity, report.row_bytes) == (0, 0)
    # observation, action, reward, return, episode start, value, log probability, advantage
    assert report.buffer_bytes == 3 * 64 * 4 * (3 + 1 + 1 + 1 + 1 + 1 + 1 + 1)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({}, "hyperparameters.buffer_size"),
        ({"algorithm": "ppo"}, "hyperparameters.n_steps"),
    ],
)
def test_what_does_not_fit_names_what_to_lessen(changed: dict[str, Any], field: str) -> None:
    run_file = parse_run_file({**RUN, **changed})
    check_memory(run_file, 3 << 30, 5 << 30, "a machine", beside=2 << 30)
    with pytest.raises(
        InputError, match=r"the buffer would take 3\.0 GiB, all else 2\.5; a machine has 5\.0"
    ) as caught:
        check_memory(run_file, 3 << 30, 5 << 30, "a machine", beside=5 << 29)
    assert caught.value.field == field


def test_what_no_checkpoint_keeps_is_named(code: Path) -> None:
    assert try_out(code, callbacks=["own:Quiet"]).not_kept == ()
    (told,) = try_out(code, callbacks=["own:Holder"]).not_kept
    assert told == "callbacks[0] Holder.held['numbers']: TypeError: cannot pickle 'generator' object"


def test_a_state_that_will_be_lost_is_reported(code: Path) -> None:
    report = try_out(code, environment=own("Noisy"))
    assert report.choice is not None
    assert (report.choice.provider, report.choice.exact) == ("episode", False)
    assert "global generator" in report.choice.because


def test_a_script_is_found_and_not_run(code: Path) -> None:
    assert try_out(code, entry_point="own:main") == CheckReport()


@pytest.mark.parametrize("changed", [{}, {"hyperparameters": {"ent_coef": "auto_x"}}, {"environment": own("Noisy")}])
def test_nothing_is_left_behind(
    code: Path, changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    path, variables = sys.path.copy(), dict(os.environ)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.random(), torch.rand(1).item())
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    try:
        try_out(code, env={"SIZE_OF_THE_TRACK": "4"}, **{name: dict(value) for name, value in changed.items()})
    except TrainCloudError:
        assert "hyperparameters" in changed
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert (sys.path, dict(os.environ)) == (path, variables)
    assert list(tmp_path.iterdir()) == []
