"""What a snapshot costs the training, and what an environment that begins anew shows to the model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from train_cloud.sb3.capture import Capture, get_generators, set_generators
from train_cloud.sb3.compare import differences
from train_cloud.snapshot import Rows, Snapshot

torch.set_num_threads(1)


def capture_of(model: BaseAlgorithm, provider: str = "pickle") -> Capture:
    return Capture(model, CallbackList([]), None, lambda env: provider)


def rows_of(model: BaseAlgorithm) -> int:
    buffer = getattr(model, "replay_buffer", None)
    return 0 if buffer is None else int(buffer.pos)


def best_of(count: int, *functions: Callable[[], object]) -> list[float]:
    """Seconds of the quickest call of each, called in turn."""
    best = [float("inf")] * len(functions)
    for _ in range(count):
        for index, function in enumerate(functions):
            began = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - began)
    return best


@pytest.mark.parametrize("episodes", [0, 70_000])
@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
def test_a_snapshot_takes_little_longer_than_copying_the_tensors(
    warm: Any, tmp_path: Path, algorithm: str, episodes: int
) -> None:
    """At most three times as long and a millisecond, however many episodes Monitor remembers. In a process that has
    imported no other tests: their modules are code of one's own, which is looked at, too.
    """
    process = warm.Process(target=measure, args=(algorithm, episodes, str(tmp_path / "seconds.json")))
    process.start()
    process.join()
    copying, taking = json.loads((tmp_path / "seconds.json").read_text())
    assert taking <= 3 * copying + 1e-3, f"{1e3 * taking:.2f} ms; the copies alone {1e3 * copying:.2f} ms"


def measure(algorithm: str, episodes: int, out: str) -> None:
    """Write how many seconds it takes to copy the tensors, and to take the whole snapshot."""
    torch.set_num_threads(1)
    arguments: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}, "device": "cpu", "seed": 1}
    if algorithm == "sac":
        model: BaseAlgorithm = SAC("MlpPolicy", "Pendulum-v1", buffer_size=1000, batch_size=16, **arguments)
    else:
        model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=64, n_epochs=1, **arguments)
    model.learn(250)
    env = model.get_env()
    assert isinstance(env, DummyVecEnv)
    monitor = env.envs[0]
    assert isinstance(monitor, Monitor)
    monitor.episode_returns += [-1000.0 - n for n in range(episodes)]
    monitor.episode_lengths += [200] * episodes
    monitor.episode_times += [0.1 * n for n in range(episodes)]
    capture, rows = capture_of(model), rows_of(model)
    first = capture.snapshot(rows)
    tensors = [torch.from_numpy(np.array(a)) for a in first.parts["model"].arrays.values()]
    for _ in range(10):  # a loaded machine has a quiet moment some time
        copying, taking = best_of(40, lambda: [tensor.clone() for tensor in tensors], lambda: capture.snapshot(rows))
        if taking <= 3 * copying + 1e-3:
            break
    Path(out).write_text(json.dumps([copying, taking]))


class Numbered(gymnasium.Env[Any, Any]):
    """Shows the number of its episode in every value; resumes at a new episode."""

    def __init__(self, shown: str) -> None:
        self.episode = 0
        self.shown = shown
        self.action_space = spaces.Discrete(2)
        image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        line = spaces.Box(0, 255, (3,), np.float32)
        both: dict[str, spaces.Space[Any]] = {"image": image, "line": line}
        self.observation_space = spaces.Dict(both) if shown == "dict" else both[shown]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode += 1
        return self.see(), {}

    def step(self, action: Any) -> Any:
        return self.see(), 1.0, False, False, {}

    def see(self) -> Any:
        made = {
            "image": np.full((36, 36, 1), self.episode, np.uint8),
            "line": np.full(3, self.episode, np.float32),
        }
        return made if self.shown == "dict" else made[self.shown]


def stacked(env: VecEnv) -> VecEnv:
    return VecFrameStack(env, 2)


WRAPPINGS: dict[str, Callable[[VecEnv], VecEnv]] = {
    "plain": lambda env: env,
    "normalised": lambda env: VecNormalize(env, training=False),
    "stacked": stacked,
}


@pytest.mark.parametrize(
    ("shown", "wrapping", "policy"),
    [
        ("line", "plain", "MlpPolicy"),
        ("line", "normalised", "MlpPolicy"),
        ("line", "stacked", "MlpPolicy"),
        ("image", "plain", "CnnPolicy"),
        ("dict", "plain", "MultiInputPolicy"),
    ],
)
@pytest.mark.parametrize("kind", [DQN, PPO])
def test_an_environment_that_begins_anew_is_seen(kind: Any, shown: str, wrapping: str, policy: str) -> None:
    """The model is shown the first observation of the new episode, in the form in which it sees any other."""

    def made() -> BaseAlgorithm:
        env = WRAPPINGS[wrapping](DummyVecEnv([lambda: Numbered(shown)] * 2))
        small: dict[str, Any] = {"n_steps": 8, "batch_size": 8} if kind is PPO else {"buffer_size": 50}
        arguments: dict[str, Any] = {"seed": 1, "device": "cpu", "policy_kwargs": {"net_arch": [4]}, **small}
        model: BaseAlgorithm = kind(policy, env, **arguments)
        model.learn(16)
        return model

    model, other = made(), made()
    rows = rows_of(model)
    taken = capture_of(model, "episode").snapshot(rows)
    streams = capture_of(model).rows(0, rows)
    copied = {name: Rows(r.first, r.last, r.capacity, list(r.chunks)) for name, r in streams.items()}
    for _ in range(4):
        other.get_env().reset()  # type: ignore[union-attr]
    other._last_episode_starts = np.zeros(2, bool)
    capture_of(other, "episode").restore(Snapshot(taken.timesteps, taken.parts, copied, taken.facts))
    env = other.get_env()
    assert env is not None
    base = env.unwrapped
    assert isinstance(base, DummyVecEnv)
    number = base.get_attr("episode")[0]
    assert number > 5
    assert other._last_episode_starts.all()
    seen, expected = other._last_obs, {"line": np.full((2, 3), number), "image": np.full((2, 1, 36, 36), number)}
    if wrapping == "normalised":
        expected["line"] = env.normalize_obs(np.full((2, 3), number, np.float32))  # type: ignore[attr-defined]
        assert (other._last_original_obs == number).all()
    if wrapping == "stacked":
        expected["line"] = np.concatenate([np.zeros((2, 3)), expected["line"]], axis=1)
    for name, value in seen.items() if isinstance(seen, dict) else [(shown, seen)]:
        np.testing.assert_array_equal(value, expected[name])
    other.learn(8, reset_num_timesteps=False)


def test_a_console_goes_on_with_the_action_that_it_repeats() -> None:
    """Of an environment of somebody else's making, which nothing follows but the capture."""
    gymnasium.register_envs(pytest.importorskip("ale_py"))

    def made() -> tuple[BaseAlgorithm, Capture]:
        env = DummyVecEnv(
            [lambda: Monitor(gymnasium.make("ALE/Pong-v5", obs_type="ram", repeat_action_probability=0.9))]
        )
        model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=1, device="cpu", policy_kwargs={"net_arch": [4]})
        model.learn(8)
        return model, capture_of(model, "ale")

    model, capture = made()
    for _ in range(3):
        model.learn(24, reset_num_timesteps=False)
        taken = capture.snapshot(0)
        other, others = made()
        others.restore(taken)
        generators = get_generators()
        model.learn(24, reset_num_timesteps=False)
        expected = capture.snapshot(0)
        set_generators(generators)
        other.learn(24, reset_num_timesteps=False)
        assert differences(others.snapshot(0), expected) == []
        told = differences(taken, expected)
        assert any("environments[0].train_cloud[0][2].base[0]" in text for text in told), told
