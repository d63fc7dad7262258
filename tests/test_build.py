"""Models from run files: names become objects, environments live through Ctrl-C, the same seed gives the same model."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from train_cloud.config import RunFile, parse_run_file
from train_cloud.envs.make import load_object
from train_cloud.envs.state import StatefulEnv
from train_cloud.errors import InputError
from train_cloud.sb3 import resources
from train_cloud.sb3.build import Built, build_callbacks, build_model
from train_cloud.sb3.resources import check_device

torch.set_num_threads(1)


def run_file(**changed: Any) -> RunFile:
    values: dict[str, Any] = {
        "run_id": "build",
        "algorithm": "sac",
        "seed": 3,
        "device": "cpu",
        "total_timesteps": 1000,
        "save_frequency": 100,
        "environment": {"id": "Pendulum-v1"},
        "hyperparameters": {"buffer_size": 1000, "learning_starts": 5, "policy_kwargs": {"net_arch": [8, 8]}},
    }
    environment = changed.pop("environment", {})
    hyperparameters = changed.pop("hyperparameters", {})
    return parse_run_file(
        {
            **values,
            **changed,
            "environment": {**values["environment"], **environment},
            "hyperparameters": {**values["hyperparameters"], **hyperparameters},
        }
    )


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with code of the user's, importable, and forgotten again."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "mine.py").write_text(
        textwrap.dedent(
            """
            import gymnasium
            from stable_baselines3 import TD3
            from stable_baselines3.common.callbacks import BaseCallback
            from stable_baselines3.sac.policies import SACPolicy

            class Shift(gymnasium.RewardWrapper):
                def reward(self, reward):
                    return reward + 1000

            def short(env):
                return gymnasium.wrappers.TimeLimit(env, 7)

            class Policy(SACPolicy):
                pass

            class Quiet(BaseCallback):
                def _on_step(self):
                    return True

            class Outer:
                class Inner:
                    pass

            gymnasium.register("Mine-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=9)
            """
        )
    )
    (folder / "broken.py").write_text("x = 1\nraise LookupError('no such simulator')\n")
    (folder / "wrong.py").write_text("def f(:\n")
    (folder / "needy.py").write_text("import numpyy.linalg\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    gym.registry.pop("Mine-v0", None)
    for name in ("mine", "broken", "wrong", "needy"):
        sys.modules.pop(name, None)


def built(**changed: Any) -> Built:
    made = build_model(run_file(**changed))
    made.model.set_logger(Logger(None, []))
    return made


def weights(made: Built) -> bytes:
    return b"".join(parameter.detach().numpy().tobytes() for parameter in made.model.policy.parameters())


def test_a_model_as_the_run_file_says() -> None:
    made = built(hyperparameters={"learning_rate": 2e-3, "train_freq": [1, "episode"], "gradient_steps": -1})
    assert isinstance(made.model, SAC)
    model: Any = made.model
    assert (made.choice.provider, made.choice.exact) == ("pickle", True)
    assert model.lr_schedule(0.5) == 2e-3
    assert model.train_freq == TrainFreq(1, TrainFrequencyUnit.EPISODE)
    assert (model.buffer_size, model.learning_starts, model.seed, str(model.device)) == (1000, 5, 3, "cpu")
    assert [layer.out_features for layer in model.actor.latent_pi if hasattr(layer, "out_features")] == [8, 8]
    env = model.get_env()
    assert isinstance(env, DummyVecEnv)
    assert isinstance(env.envs[0], StatefulEnv)
    made.close()


@pytest.mark.parametrize(("progress", "rate"), [(1.0, 3e-4), (0.5, 1.5e-4), (0.0, 0.0)])
def test_a_schedule_falls_linearly_to_zero(progress: float, rate: float) -> None:
    made = built(hyperparameters={"learning_rate": "lin_3e-4"})
    assert made.model.lr_schedule(progress) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "activation"), [("tanh", torch.nn.Tanh), ("ReLU", torch.nn.ReLU), ("torch.nn:Mish", torch.nn.Mish)]
)
def test_names_of_activations(name: str, activation: type) -> None:
    made = built(hyperparameters={"policy_kwargs": {"net_arch": [8], "activation_fn": name}})
    model: Any = made.model
    assert isinstance(model.actor.latent_pi[1], activation)


@pytest.mark.parametrize(
    ("noise", "kind"),
    [({"normal": 0.1}, NormalActionNoise), ({"ornstein-uhlenbeck": 0.2}, OrnsteinUhlenbeckActionNoise)],
)
def test_names_of_noises(noise: dict[str, float], kind: type[Any]) -> None:
    made: Any = built(hyperparameters={"action_noise": noise}).model.action_noise
    assert made.__class__ is kind
    assert made().shape == (1,)
    assert made._sigma == pytest.approx(next(iter(noise.values())))


def test_whole_numbers_as_yaml_reads_them() -> None:
    model: Any = built(hyperparameters={"buffer_size": 2e3, "train_freq": 2.0}).model
    assert (model.buffer_size, type(model.buffer_size)) == (2000, int)
    assert model.train_freq == TrainFreq(2, TrainFrequencyUnit.STEP)


@pytest.mark.parametrize("transitions", [10**10, 10**15])
def test_a_buffer_larger_than_the_machine(transitions: int) -> None:
    with pytest.raises(InputError) as caught:
        built(hyperparameters={"buffer_size": transitions})
    assert caught.value.field == "hyperparameters.buffer_size"
    assert caught.value.value == transitions


def test_names_of_optimizers() -> None:
    kwargs = {"net_arch": [8], "optimizer_class": "adamw", "optimizer_kwargs": {"weight_decay": 0.5}}
    model: Any = built(hyperparameters={"policy_kwargs": kwargs}).model
    assert isinstance(model.actor.optimizer, torch.optim.AdamW)
    assert model.actor.optimizer.defaults["weight_decay"] == 0.5


def test_the_same_seed_gives_the_same_model_and_the_same_steps() -> None:
    seen = []
    for seed, disturbance in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)
        made = built(seed=seed)
        made.model.learn(40, log_interval=None)  # type: ignore[arg-type]
        model: Any = made.model
        seen.append((weights(made), model.replay_buffer.observations[:40].tobytes()))
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def test_code_of_ones_own(own_code: Path) -> None:
    config = run_file(
        policy="mine:Policy",
        environment={"id": "Mine-v0", "module": "mine", "kwargs": {"g": 1.0}, "wrappers": ["mine:Shift", "mine:short"]},
        callbacks=["mine:Quiet"],
    )
    made = build_model(config)
    assert type(made.model.policy).__name__ == "Policy"
    assert [type(callback).__name__ for callback in build_callbacks(config)] == ["Quiet"]
    env = made.model.get_env()
    assert env is not None
    assert env.get_attr("g") == [1.0]
    env.reset()
    for step in range(1, 8):
        _, rewards, dones, infos = env.step(np.zeros((1, 1)))
        assert rewards[0] > 900
        assert dones[0] == (step == 7), "the wrappers are applied in their order, Monitor outermost"
    assert infos[0]["episode"]["l"] == 7
    assert infos[0]["episode"]["r"] > 6000


def test_an_algorithm_of_ones_own(own_code: Path) -> None:
    made = built(algorithm="mine:TD3")
    assert type(made.model).__name__ == "TD3"


def test_several_environments_normalised() -> None:
    made = built(environment={"n_envs": 3, "normalize": {"gamma": 0.9, "norm_reward": False}})
    env = made.model.get_env()
    assert isinstance(env, VecNormalize)
    assert (env.gamma, env.norm_reward, env.norm_obs, env.num_envs) == (0.9, False, True, 3)
    first = env.reset()
    assert len({row.tobytes() for row in np.asarray(first)}) == 3, "each environment has a seed of its own"


@pytest.mark.slow
def test_workers_ignore_signals_and_give_their_state() -> None:
    made = built(environment={"n_envs": 2, "vectorization": "subproc"})
    env = made.model.get_env()
    assert isinstance(env, SubprocVecEnv)
    try:
        env.reset()
        for process in env.processes:
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGTERM)
        actions = np.full((2, 1), 0.5, np.float32)
        for _ in range(20):
            env.step(actions)
        states = [state for state, *_ in env.env_method("train_cloud_get_state")]
        expected = [np.asarray(env.step(actions)[0]).tobytes() for _ in range(300)]
        for index, state in enumerate(states):
            assert env.env_method("train_cloud_set_state", state, indices=[index]) == [None]
        assert [np.asarray(env.step(actions)[0]).tobytes() for _ in range(300)] == expected
        assert all(process.is_alive() for process in env.processes)
    finally:
        made.close()
    deadline = time.monotonic() + 20
    while any(process.is_alive() for process in env.processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_process_that_forgets_its_workers_ends_all_the_same() -> None:
    """They ignore the SIGTERM that multiprocessing sends at exit, and waits for."""
    script = (
        "from test_build import built;"
        "made = built(environment={'n_envs': 1, 'vectorization': 'subproc'});"
        "print(*[process.pid for process in made.model.get_env().processes], flush=True);"
        "raise SystemExit(5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 5, done.stderr
    assert done.stdout.split()
    for pid in done.stdout.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("reference", "fix"),
    [
        ("nowhere:f", "there is no module nowhere"),
        ("mine.below:f", "there is no module mine.below"),
        ("mine:Shif", "did you mean"),
        ("mine:Shift.x", "mine has no Shift.x"),
        ("broken:f", "LookupError: no such simulator (broken.py, line 2)"),
        ("wrong:f", "SyntaxError: invalid syntax (wrong.py, line 1)"),
        ("needy:f", "importing needy needs numpyy"),
    ],
)
def test_references_that_lead_nowhere(own_code: Path, reference: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        load_object(reference, "entry_point")
    assert (caught.value.field, caught.value.value) == ("entry_point", reference)
    assert fix in caught.value.fix
    assert "\n" not in str(caught.value)


def test_references(own_code: Path) -> None:
    assert load_object("mine:Outer.Inner", "x").__qualname__ == "Outer.Inner"
    assert load_object("stable_baselines3.common.callbacks:CheckpointCallback", "x") is CheckpointCallback
    with pytest.raises(InputError, match=r"name a subclass of gymnasium\.core\.Env"):
        load_object("mine:Quiet", "x", gym.Env)


def test_no_process_is_left() -> None:
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("files", "present"),
    [
        ({}, False),
        ({"0000:00:1e.0": ("0x10de\n", "0x030200\n")}, True),
        ({"0000:00:1e.0": ("0x10DE\n", "0x030000\n")}, True),
        ({"0000:00:1e.0": ("0x10de\n", None)}, True),
        ({"0000:00:1e.1": ("0x10de\n", "0x040300\n")}, False),  # its sound
        ({"0000:00:02.0": ("0x1d0f\n", "0x030000\n"), "0000:00:03.0": ("0x8086\n", "0x020000\n")}, False),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, tuple[str, str | None]], present: bool
) -> None:
    for name, (vendor, kind) in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor)
        if kind is not None:
            (tmp_path / name / "class").write_text(kind)
    monkeypatch.setattr(resources, "PCI", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if present:
        with pytest.raises(InputError, match=r"device: 'auto': torch .* would train on the CPU: .* set device: cpu"):
            built(device="auto")
    else:
        built(device="auto").close()
    built(device="cpu").close()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device("auto")
