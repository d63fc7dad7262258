"""Several processes on one run: they stay equal, come to what one comes to, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from paths import PYTHONPATH, SUPPORT
from sessions import Rehearsed, forking
from stable_baselines3.common.running_mean_std import RunningMeanStd
from until import until

from train_cloud.config import parse_run_file
from train_cloud.errors import InputError
from train_cloud.runtime.ranks import prefix_of
from train_cloud.sb3.compare import differences
from train_cloud.sb3.ranks import _without

SAC: dict[str, Any] = {
    "algorithm": "sac",
    "seed": 3,
    "device": "cpu",
    "environment": {"id": "Pendulum-v1", "n_envs": 2, "normalize": {"norm_reward": True}},
    "hyperparameters": {"learning_starts": 40, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    "callbacks": ["interrupting:InterruptRank"],
    "data_parallel": 2,
    "total_timesteps": 400,
    "save_frequency": 100,
}
PPO: dict[str, Any] = {
    **SAC,
    "algorithm": "ppo",
    "environment": {"id": "CartPole-v1", "n_envs": 2, "normalize": True},
    "hyperparameters": {"n_steps": 16, "batch_size": 16, "target_kl": 0.01, "policy_kwargs": {"net_arch": [16]}},
    "total_timesteps": 640,
    "save_frequency": 128,
}


@pytest.mark.slow
def test_two_ranks_with_the_same_data_are_one_and_with_their_own_stay_equal(tmp_path: Path) -> None:
    """Ten algorithms, each by itself, with equal seeds, with two seeds."""
    command = [sys.executable, str(SUPPORT / "equal_ranks.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    other = subprocess.Popen([*command, "1"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        first = subprocess.run([*command, "0"], env=environment, capture_output=True, text=True, timeout=900)
        assert first.returncode == 0, first.stderr[-3000:]
        assert first.stdout == ""
        assert other.wait(60) == 0
    finally:
        other.kill()


@pytest.fixture(scope="module")
def ranked() -> Iterator[Any]:
    with forking("train_cloud.runtime.rank") as context:
        yield context


@pytest.fixture(scope="module", params=["sac", "ppo"])
def uninterrupted(ranked: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    values = {"sac": SAC, "ppo": PPO}[request.param]
    run = Rehearsed(ranked, tmp_path_factory.mktemp(request.param), values)
    run.values = values  # type: ignore[attr-defined]
    assert run.session() == 0, run.log()
    return run


@pytest.mark.slow
def test_whichever_rank_is_interrupted_the_run_ends_the_same(
    ranked: Any, uninterrupted: Rehearsed, tmp_path: Path
) -> None:
    """Killed, the whole group ends with the reason; asked to stop, all commit at one point."""
    values: dict[str, Any] = uninterrupted.values  # type: ignore[attr-defined]
    run = Rehearsed(ranked, tmp_path, values)
    reached = 0
    for name, rank, at in [("SIGKILL", 1, 150), ("SIGTERM", 1, 190), ("SIGKILL", 0, 280), ("SIGTERM", 0, 330)]:
        code = run.session(f"{name}@{at}", env={"INTERRUPT_RANK": str(rank)})
        expected = {("SIGKILL", 0): -9, ("SIGKILL", 1): 1}.get((name, rank), 75)
        assert code == expected, run.log()
        head = run.head()
        assert head.timesteps >= reached
        if name == "SIGTERM" and values["algorithm"] == "sac":
            assert head.timesteps - at <= 2 * 2, "at the step that follows"
        reached = head.timesteps
        assert name == "SIGTERM" or rank == 0 or "rank 1 was ended by SIGKILL" in run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), uninterrupted.final()) == []
    assert prefix_of(1) + "model" in run.final().parts
    if values["algorithm"] == "ppo":  # SAC logs at the end of episodes, and there is none
        logged = (run.folder / "state" / "artifacts" / "progress.csv").read_text()
        assert "time/exchange_ms" in logged and "time/exchanged_mb" in logged


@pytest.mark.slow
def test_a_rank_that_stands_still_ends_the_group(ranked: Any, tmp_path: Path) -> None:
    run = Rehearsed(ranked, tmp_path, {**SAC, "total_timesteps": 100_000, "save_frequency": 1000})
    process = run.start()
    try:
        until(lambda: _timesteps(run) > 100, "the training", told=run.log)
        [rank] = [one for one in psutil.Process(process.pid).children() if "train_cloud.runtime.rank" in one.cmdline()]
        rank.send_signal(signal.SIGSTOP)
        process.join(60)
        assert process.exitcode == 1, run.log()
        assert "rank 1 stands still" in run.log()
        assert not rank.is_running()
    finally:
        process.kill()


@pytest.mark.slow
def test_a_callback_of_one_rank_ends_all_and_all_train_on_when_asked(ranked: Any, tmp_path: Path) -> None:
    run = Rehearsed(ranked, tmp_path, {**PPO, "callbacks": ["interrupting:EndInRank1"], "total_timesteps": 512})
    assert run.session() == 0, run.log()
    assert run.head().outcome == "completed" and 200 <= run.head().timesteps < 210, run.log()
    assert run.session(options=("--continue",), env={"END_NOWHERE": "1"}) == 0, run.log()
    assert 512 <= run.head().timesteps < 512 + 64, "to the end of the rollout that reaches the total"


def _timesteps(run: Rehearsed) -> int:
    from train_cloud.runtime.heartbeat import read_timesteps

    path = run.folder / "state" / "timesteps"
    return read_timesteps(path.parent) if path.exists() else 0


@pytest.mark.slow
def test_a_resume_needs_as_many_ranks(ranked: Any, uninterrupted: Rehearsed) -> None:
    run = Rehearsed(
        ranked,
        uninterrupted.folder,
        {**uninterrupted.values, "data_parallel": 3, "total_timesteps": 10_000},  # type: ignore[attr-defined]
    )
    assert run.session() != 0
    assert "data_parallel" in run.log()


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        ({"algorithm": "trpo", "environment": {"id": "CartPole-v1"}}, "data_parallel", "update searches along a line"),
        ({"algorithm": "crossq"}, "data_parallel", "batch normalisation"),
        ({"hyperparameters": {"train_freq": [1, "episode"]}}, "hyperparameters.train_freq", "give train_freq in steps"),
        ({"data_parallel": 0}, "data_parallel", ""),
        ({"data_parallel": "two"}, "data_parallel", ""),
        (
            {
                "curriculum": {
                    "stages": [{"name": "a"}, {"name": "b", "kwargs": {"g": 5.0}}],
                    "advance": {"success": 0.7, "window": 5, "min_episodes": 5},
                }
            },
            "data_parallel",
            "not together with curriculum",
        ),
    ],
)
def test_what_several_ranks_cannot_train_is_refused(changes: dict[str, Any], field: str, why: str) -> None:
    values = {"run_id": "a-run", **SAC, "hyperparameters": {}, **changes}
    with pytest.raises(InputError) as refused:
        parse_run_file(values)
    assert field in str(refused.value) and why in str(refused.value)


def test_what_was_added_to_statistics_is_found_again() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(3, 2, (1000, 4)), generator.normal(-1, 5, (37, 4))
    together, base = RunningMeanStd(shape=(4,)), RunningMeanStd(shape=(4,))
    together.update(first)
    base.update(first)
    together.update(second)
    mean, squares, count = _without(together, (base.mean, base.var, base.count))
    assert count == pytest.approx(37)
    np.testing.assert_allclose(mean, second.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(squares / count, second.var(axis=0), rtol=1e-9)
