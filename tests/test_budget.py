"""A run goes on beyond its total: it ends where one long run ends, or says why it cannot."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed

from train_cloud.run.session import read_sessions
from train_cloud.sb3.compare import differences

pytestmark = pytest.mark.slow

OFF_POLICY = {"learning_starts": 100, "batch_size": 32, "buffer_size": 5000}
SMALL = {"policy_kwargs": {"net_arch": [16, 16]}}


def run(algorithm: str, environment: dict[str, Any], total: int, **hyperparameters: Any) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "seed": 3,
        "total_timesteps": total,
        "save_frequency": 150,
        "environment": environment,
        "hyperparameters": {**SMALL, **hyperparameters},
        "callbacks": ["interrupting:Rollouts", "interrupting:InterruptAt"],
    }


PENDULUM = {"id": "Pendulum-v1"}
#: The long run, and the total at which the other one is completed before.
LONG: dict[str, tuple[dict[str, Any], int]] = {
    "sac": (run("sac", PENDULUM, 700, **OFF_POLICY), 400),
    "sac, gSDE, two environments": (
        run("sac", {**PENDULUM, "n_envs": 2, "normalize": {}}, 720, **OFF_POLICY, use_sde=True, train_freq=12),
        350,
    ),
    "sac, episodes": (run("sac", PENDULUM, 1000, **OFF_POLICY, train_freq=[1, "episode"], gradient_steps=20), 300),
    "ppo": (run("ppo", {**PENDULUM, "n_envs": 2}, 768, n_steps=64, batch_size=32), 300),
    "ppo, gSDE": (run("ppo", PENDULUM, 640, n_steps=64, batch_size=32, use_sde=True), 256),
    "a2c, between two logs": (run("a2c", {"id": "CartPole-v1"}, 1200), 330),
    "a schedule over the long run": (
        {**run("sac", PENDULUM, 600, **OFF_POLICY, learning_rate="lin_1e-3"), "schedule_total": 600},
        300,
    ),
    "ppo, a schedule over the long run": (
        {**run("ppo", PENDULUM, 512, n_steps=64, batch_size=32, learning_rate="lin_1e-3"), "schedule_total": 512},
        256,
    ),
    "dqn, its exploration over the long run": (
        {**run("dqn", {"id": "CartPole-v1"}, 600, **OFF_POLICY), "schedule_total": 600},
        300,
    ),
}


#: So that CI's time is enough.
FULL = {"sac, episodes", "ppo, gSDE", "a schedule over the long run", "dqn, its exploration over the long run"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] if n in FULL else []) for n in LONG])
def test_a_completed_run_goes_on_as_one_long_run(warm: Any, tmp_path: Path, name: str) -> None:
    long, total = LONG[name]
    twin, short = (Rehearsed(warm, tmp_path / folder, long) for folder in ("twin", "short"))
    assert twin.session() == 0, twin.log()
    assert short.session("SIGTERM@120", options=("--set", f"total_timesteps={total}")) == 75, short.log()
    assert short.session(options=("--set", f"total_timesteps={total}")) == 0, short.log()
    reached = short.head().timesteps
    assert short.head().outcome == "completed" and total <= reached < long["total_timesteps"]
    assert short.session(options=("--set", f"total_timesteps={reached}")) == 64, "there is nothing left to do"
    assert short.session(f"SIGKILL@{reached + 100}") == -9, short.log()
    assert short.head().outcome is None
    assert short.session() == 0, short.log()
    assert differences(short.final(), twin.final()) == []
    assert short.scalars() == twin.scalars()
    progress = [session.progress for session in read_sessions(short.store)]
    assert all(found and found["exact"] for found in progress), "nothing of it is inexact"


@pytest.fixture
def scheduled(warm: Any, tmp_path: Path) -> Rehearsed:
    """Completed at 256 with a learning rate that has fallen to 0 there."""
    content = run("ppo", PENDULUM, 256, n_steps=64, batch_size=32, learning_rate="lin_1e-3")
    made = Rehearsed(warm, tmp_path, content)
    assert made.session() == 0, made.log()
    return made


def test_with_a_schedule_another_total_is_refused_until_somebody_says_what_becomes_of_it(scheduled: Rehearsed) -> None:
    before = scheduled.head()
    assert scheduled.final().facts["episode_return"] == pytest.approx(scheduled.scalars()["rollout/ep_rew_mean"][-1][1])
    assert scheduled.session(options=("--set", "total_timesteps=500")) == 64
    said = scheduled.log()
    assert "total_timesteps: 500: learning_rate would run over 500 timesteps from here on, after 256" in said
    assert "schedule_total" in said and scheduled.head() == before
    for total, schedule, rate in ((384, 256, 0.0), (640, 1024, 1e-3 * (1 - 576 / 1024))):
        options = ("--set", f"total_timesteps={total}", "--schedule-total", str(schedule))
        assert scheduled.session(options=options) == 0, scheduled.log()
        at, found = scheduled.scalars()["train/learning_rate"][-1]
        assert at == total and found == pytest.approx(rate)
    sessions = read_sessions(scheduled.store)
    assert [session.progress and session.progress["exact"] for session in sessions] == [True, True, False]
    told = sessions[-1].progress
    assert told is not None and "learning_rate would run over 1024 timesteps" in told["exact_because"]


def test_dqn_explores_by_a_schedule_and_an_equal_one_is_none(warm: Any, tmp_path: Path) -> None:
    cartpole = {"id": "CartPole-v1"}
    constant = {"exploration_initial_eps": 0.1, "exploration_final_eps": 0.1}
    for name, arguments, code in (("falling", {}, 64), ("constant", constant, 0)):
        made = Rehearsed(warm, tmp_path / name, run("dqn", cartpole, 200, **OFF_POLICY, **arguments))
        assert made.session() == 0, made.log()
        assert made.session(options=("--set", "total_timesteps=250")) == code, made.log()
        assert ("exploration_schedule would run over 250" in made.log()) == (code == 64)


def test_a_model_can_be_saved_by_other_callbacks(warm: Any, tmp_path: Path) -> None:
    """Nothing of ours clings to it."""
    content = run("ppo", PENDULUM, 256, n_steps=64, batch_size=32)
    made = Rehearsed(warm, tmp_path, {**content, "callbacks": ["interrupting:Saves"]})
    assert made.session(env={"SAVE_TO": str(tmp_path / "model.zip")}) == 0, made.log()
    with zipfile.ZipFile(tmp_path / "model.zip") as saved:
        assert "Steered" not in saved.read("data").decode() and saved.getinfo("data").file_size < 100_000
    from stable_baselines3 import PPO

    assert PPO.load(tmp_path / "model.zip").num_timesteps >= 128
