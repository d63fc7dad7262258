"""An interrupted run ends bit for bit where the uninterrupted one ends: real processes, real signals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed

from train_cloud.run.session import read_sessions
from train_cloud.sb3.compare import differences

pytestmark = pytest.mark.slow

#: Shares of a run at which it is stopped and killed: beside what it commits at. Those who learn at each step are dear:
#: their runs are short.
STOP, KILL = 0.345, 0.615
SMALL = {"learning_starts": 45, "batch_size": 32, "policy_kwargs": {"net_arch": [16, 16]}, "buffer_size": 5000}
#: Several episodes in each run.
PENDULUM: dict[str, Any] = {"id": "Pendulum-v1", "kwargs": {"max_episode_steps": 80}}


def sac(total: int = 200, save: int = 45, environment: dict[str, Any] | None = None, **hyperparameters: Any) -> Any:
    return {
        "algorithm": "sac",
        "seed": 3,
        "total_timesteps": total,
        "save_frequency": save,
        "environment": {**PENDULUM, **(environment or {})},
        "hyperparameters": {**SMALL, **hyperparameters},
        "callbacks": ["interrupting:InterruptAt"],
    }


def other(algorithm: str, environment: dict[str, Any], total: int, save: int, **hyperparameters: Any) -> Any:
    return {
        **sac(total, save),
        "algorithm": algorithm,
        "environment": environment,
        "hyperparameters": {"policy_kwargs": {"net_arch": [16, 16]}, **hyperparameters},
    }


def walk(shown: str, algorithm: str = "sac", policy: str = "MlpPolicy", n_envs: int = 1, **hyperparameters: Any) -> Any:
    """A ring that laps, on observations of another kind."""
    kwargs = {"shown": shown, "discrete": algorithm == "dqn"}
    environment = {"id": "Walk-v0", "module": "interrupting", "kwargs": kwargs, "n_envs": n_envs}
    small = {"learning_starts": 70, "batch_size": 16, "buffer_size": 140}
    return {**other(algorithm, environment, 310, 70, **{**small, **hyperparameters}), "policy": policy}


OFF = {name: SMALL[name] for name in ("learning_starts", "batch_size", "buffer_size")}

OPTIMISED: dict[str, Any] = {
    "optimize_memory_usage": True,
    "replay_buffer_kwargs": {"handle_timeout_termination": False},
}
CNN = {"net_arch": [16], "features_extractor_kwargs": {"features_dim": 16}}

RUNS: dict[str, dict[str, Any]] = {
    "plain": sac(),
    "ring laps": sac(total=260, buffer_size=60),
    "before learning starts": sac(learning_starts=150),
    "schedule": sac(learning_rate="lin_1e-3"),
    "n-step": sac(n_steps=3),
    "action noise": sac(action_noise={"ornstein-uhlenbeck": 0.2}),
    "wrapper with a state": sac(environment={"wrappers": ["interrupting:Wind"]}),
    "td3": other("td3", PENDULUM, 200, 45, **OFF, action_noise={"normal": 0.1}),
    "ddpg": other("stable_baselines3:DDPG", PENDULUM, 200, 45, **OFF),
    "dqn": other("dqn", {"id": "CartPole-v1"}, 310, 70, **OFF, target_update_interval=60),
    "hindsight": walk("goal", "sac", "MultiInputPolicy", 2, replay_buffer_class="stable_baselines3:HerReplayBuffer"),
    "dict observations of float16": walk("dict", "td3", "MultiInputPolicy"),
    "float64, memory optimised": walk("float64", **OPTIMISED),
    "images, memory optimised": walk("image", "dqn", "CnnPolicy", policy_kwargs=CNN, train_freq=4, **OPTIMISED),
    "processes": sac(environment={"n_envs": 2, "vectorization": "subproc"}),
    # Rollouts, several episodes and time take more steps.
    "by seconds at risk": {**sac(460), "save_frequency": None, "max_seconds_at_risk": 0.5},
    "two environments, normalised, gSDE": sac(
        700, 150, {"n_envs": 2, "normalize": {}}, use_sde=True, sde_sample_freq=8, train_freq=16, gradient_steps=4
    ),
    "episodes": sac(420, 90, train_freq=[1, "episode"], gradient_steps=20),
    "replayed environment": sac(520, 150, {"id": "Unpicklable-v0", "module": "interrupting"}, train_freq=4),
    "ppo": other("ppo", {**PENDULUM, "n_envs": 2, "normalize": {}}, 768, 128, n_steps=64, batch_size=32),
    "a2c": other("a2c", {"id": "CartPole-v1"}, 700, 150),
    "ppo, gSDE": other("ppo", PENDULUM, 768, 128, n_steps=64, batch_size=32, use_sde=True),
}


@pytest.fixture(scope="module")
def twins(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run of each kind, made once."""
    made: dict[str, Rehearsed] = {}

    def twin(name: str) -> Rehearsed:
        if name not in made:
            made[name] = Rehearsed(warm, tmp_path_factory.mktemp("twin") / "run", RUNS[name])
            assert made[name].session() == 0, made[name].log()
        return made[name]

    return twin


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends(
    warm: Any, twins: Any, tmp_path: Path, name: str
) -> None:
    twin = twins(name)
    run = Rehearsed(warm, tmp_path, RUNS[name])
    total = RUNS[name]["total_timesteps"]
    stop, kill = int(STOP * total), int(KILL * total)
    assert run.session(f"SIGTERM@{stop}") == 75, run.log()
    assert run.session(f"SIGKILL@{kill}") == -9, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
    sessions = read_sessions(run.store)
    assert [session.end and session.end["ended_by"] for session in sessions] == ["signal", None, "completed"]
    assert sessions[0].end is not None
    assert sessions[0].end["last_timestep"] == sessions[0].end["committed_timesteps"], "a stop repeats nothing"


def test_out_of_time_the_rollout_is_computed_again_exactly(warm: Any, tmp_path: Path) -> None:
    environment = {**PENDULUM, "wrappers": ["interrupting:Slow"]}
    slow = other("ppo", environment, 320, 64, n_steps=64, batch_size=32)
    twin = Rehearsed(warm, tmp_path / "twin", slow)
    assert twin.session() == 0, twin.log()
    run = Rehearsed(warm, tmp_path / "run", slow)
    assert run.session("SIGTERM@150", env={"TRAIN_CLOUD_STOP_SECONDS": "0"}) == 75, run.log()
    end = read_sessions(run.store)[0].end
    assert end is not None and (end["last_timestep"], end["committed_timesteps"]) == (150, 128)
    assert run.session("SIGTERM@170", env={"TRAIN_CLOUD_STOP_SECONDS": "60"}) == 75, run.log()
    end = read_sessions(run.store)[1].end
    assert end is not None and (end["last_timestep"], end["committed_timesteps"]) == (192, 192), "there was time"
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
