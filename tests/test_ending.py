"""A callback that ends a training before its total has ended the run: nobody trains on who was not asked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from early import At250, Enough
from sessions import Rehearsed
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)

from train_cloud.checkpoint import read_manifest
from train_cloud.cli import main
from train_cloud.operations.relaunch import write_continued
from train_cloud.operations.rollback import rollback
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.head import reopen
from train_cloud.run.session import read_sessions
from train_cloud.sb3.ending import stopped_by, watch

SAC: dict[str, Any] = {
    "algorithm": "sac",
    "seed": 3,
    "total_timesteps": 600,
    "save_frequency": 100,
    "environment": {"id": "Pendulum-v1"},
    "hyperparameters": {"learning_starts": 50, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}},
    "preservation": {"last": 9},
    "callbacks": ["early:At250"],
}
ON_POLICY: dict[str, Any] = {
    **SAC,
    "algorithm": "ppo",
    "environment": {"id": "Pendulum-v1", "n_envs": 2},
    "hyperparameters": {"n_steps": 50, "batch_size": 50, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}},
}


class Goes(BaseCallback):
    def _on_step(self) -> bool:
        return True


def test_who_has_ended_it_is_known_by_name() -> None:
    root = CallbackList([Goes(), At250(), CallbackList([Enough()])])
    watch(root)
    assert stopped_by(root) is None
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs={"net_arch": [2]}, device="cpu")
    root.init_callback(model)
    model.num_timesteps = 250
    assert not root.on_step()
    assert stopped_by(root) == "At250 (Enough), CallbackList (Enough)"
    watch(root)
    assert stopped_by(root) is None, "of the learn before"
    threshold, stale = StopTrainingOnRewardThreshold(1.0), StopTrainingOnNoModelImprovement(1)
    judge = EvalCallback(gymnasium.make("CartPole-v1"), callback_on_new_best=threshold, callback_after_eval=stale)
    from train_cloud.sb3.ending import _named

    assert _named(judge) == "EvalCallback (StopTrainingOnNoModelImprovement or StopTrainingOnRewardThreshold)"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SAC, ON_POLICY], ids=["sac", "ppo"])
def test_an_early_end_is_an_end(warm: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = Rehearsed(warm, tmp_path, settings)
    assert run.session() == 0, run.log()
    reason = "At250 (Enough) ended it at 250 of 600 timesteps"
    head = run.head()
    assert (head.outcome, head.timesteps, head.reason) == ("completed", 250, reason)
    end = read_sessions(run.store)[0].end
    assert end is not None and end["ended_by"] == "callback"
    found = run_status(run.root, "a-run")
    assert (found.state, found.reason, found.sessions[0].ended_by) == ("completed", reason, "callback")
    assert "artifacts/final_model.zip" in {info.key for info in run.store.list(layout.ARTIFACTS)}
    page = tmp_path / "page.html"
    assert main(["report", "a-run", "--store", run.root, "--out", str(page)]) == 0 and reason in page.read_text()

    assert run.session() == 64, "the same command"
    assert "--continue trains on" in run.log() and run.head() == head
    assert len(read_sessions(run.store)) == 1
    if settings is ON_POLICY:
        write_continued(run.store, head)  # as relaunch --continue does
        reopen(run.store)
        assert run.session() == 0, run.log()
        assert run.head().reason == "At250 (Enough) ended it at 500 of 600 timesteps"
        return
    # As if the machine had died between the last commit and the outcome: nothing is trained, and it is said again.
    reopen(run.store)
    assert run.session() == 0, run.log()
    again = run.head()
    assert (again.outcome, again.timesteps, again.reason, again.manifest) == ("completed", 250, reason, head.manifest)

    assert run.session(options=("--continue",)) == 0, run.log()
    assert run.head().reason == "At250 (Enough) ended it at 500 of 600 timesteps"
    assert run.session(options=("--set", "total_timesteps=700")) == 0, run.log()
    head = run.head()
    assert (head.outcome, head.timesteps, head.reason) == ("completed", 700, None)
    assert head.manifest is not None and "ended_early" not in read_manifest(run.store, head.manifest).facts
    # Who goes back to where it ended goes on from there.
    rollback(run.root, "a-run", 500)
    assert run.session("SIGTERM@600", outside=True, options=("--set", "total_timesteps=900")) in (0, 75)
    assert run.head().timesteps > 500
    assert json.loads(bytes(run.store.get(layout.RUN_JSON).body))["run_id"] == "a-run"
