"""Several agents: the loop, what is refused, and that an interrupted run ends where the uninterrupted one ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sessions import Rehearsed
from stable_baselines3 import SAC

from train_cloud.config import RunFile
from train_cloud.envs.parallel import Together
from train_cloud.envs.trial import choose
from train_cloud.errors import InputError, NotYet
from train_cloud.operations.export import export
from train_cloud.run.session import read_sessions
from train_cloud.sb3.build import Built, build_model
from train_cloud.sb3.check import check
from train_cloud.sb3.compare import differences
from train_cloud.sb3.multiagent import MultiAgent

SPREAD = {"id": "mpe2.simple_spread_v3:parallel_env", "kwargs": {"N": 2, "continuous_actions": True, "max_cycles": 20}}
TAG = {"id": "mpe2.simple_tag_v3:parallel_env", "kwargs": {"continuous_actions": True, "max_cycles": 20}}
WALKERS: dict[str, Any] = {"id": "several_agents:walkers"}
SMALL: dict[str, Any] = {
    "learning_starts": 60,
    "batch_size": 16,
    "buffer_size": 400,
    "policy_kwargs": {"net_arch": [16, 16]},
}
CNN = {"net_arch": [16], "features_extractor_kwargs": {"features_dim": 16}}


def several(
    environment: dict[str, Any] | None = None, total: int = 400, policy: str = "MlpPolicy", **hyperparameters: Any
) -> dict[str, Any]:
    return {
        "algorithm": "sac_multiagent",
        "policy": policy,
        "seed": 3,
        "device": "cpu",
        "total_timesteps": total,
        "save_frequency": 120,
        "environment": environment or WALKERS,
        "hyperparameters": {**SMALL, **hyperparameters},
    }


def built(run: dict[str, Any]) -> Built:
    return build_model(RunFile(run_id="a", **run))


def model(run: dict[str, Any]) -> MultiAgent:
    made = built(run).model
    assert isinstance(made, MultiAgent)
    return made


# ---------------------------------------------------------------------------------------------------------------- exact


def windy(**kwargs: Any) -> dict[str, Any]:
    return {**WALKERS, "wrappers": ["several_agents:Gust"], "kwargs": kwargs}


RUNS = {
    "MPE2, two agents": several(SPREAD, 270),
    "MPE2, four agents of two kinds": several(TAG, 270, gradient_steps=2, train_freq=3),
    "agents that end early, wrapped, rings lap": several(windy(count=3), 270, buffer_size=100, train_freq=2),
    "one learner for all": several(windy(), 270, share_parameters=True, buffer_size=250, train_freq=2),
    "gSDE, noise, a schedule, n steps": several(
        total=270,
        use_sde=True,
        sde_sample_freq=4,
        train_freq=8,
        action_noise={"normal": 0.1},
        learning_rate="lin_1e-3",
        n_steps=3,
    ),
    "images": several(
        {**WALKERS, "kwargs": {"shown": "image"}}, 270, policy="CnnPolicy", policy_kwargs=CNN, train_freq=16
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_interrupted_twice_it_ends_where_the_uninterrupted_run_ends(warm: Any, tmp_path: Path, name: str) -> None:
    given = {**RUNS[name], "save_frequency": 80, "callbacks": ["interrupting:InterruptAt"]}
    twin, run = (Rehearsed(warm, tmp_path / kind, given) for kind in ("twin", "run"))
    assert twin.session() == 0, twin.log()
    assert run.session("SIGTERM@127") == 75, run.log()
    assert run.session("SIGKILL@223") == -9, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
    sessions = read_sessions(run.store)
    assert [session.end and session.end["ended_by"] for session in sessions] == ["signal", None, "completed"]
    assert sessions[0].end is not None
    assert sessions[0].end["last_timestep"] == sessions[0].end["committed_timesteps"], "a stop repeats nothing"


@pytest.mark.slow
def test_each_agent_has_parts_rows_curves_and_a_model_of_its_own(warm: Any, tmp_path: Path) -> None:
    run = Rehearsed(warm, tmp_path, several(SPREAD, total=300))
    assert run.session() == 0, run.log()
    final = run.final()
    agents = ("agent_0", "agent_1")
    assert {f"{name}/model" for name in agents} <= final.parts.keys()
    assert {name: rows.last for name, rows in final.streams.items()} == {f"{name}/replay": 300 for name in agents}
    scalars = run.scalars()
    for name in agents:
        assert {f"{name}/rollout/ep_rew_mean", f"{name}/train/critic_loss"} <= scalars.keys()
    assert "rollout/ep_rew_mean" in scalars
    folder = export(run.root, "a-run", out=tmp_path / "out")
    stored = {info.key for info in run.store.list("artifacts/final/")}
    for name in agents:
        assert f"artifacts/final/{name}/model.zip" in stored
        loaded, arrays = SAC.load(folder / name / "model.zip", device="cpu"), final.parts[f"{name}/model"].arrays
        assert loaded.num_timesteps == 300
        for key, tensor in loaded.policy.state_dict().items():
            assert np.array_equal(tensor.numpy(), arrays[f"policy|{key}"]), f"{name} {key}"
    played = subprocess.run([sys.executable, str(folder / "play.py"), "1"], capture_output=True, text=True, timeout=120)
    assert played.returncode == 0 and "agent_1" in played.stdout, played.stderr


# ------------------------------------------------------------------------------------------------------------- the loop


def test_who_has_ended_adds_no_rows_and_a_time_out_is_no_end() -> None:
    torch.set_num_threads(1)
    trained = model(several(total=200, learning_starts=1000))
    trained.learn(200)
    for name, learner in trained.learners.items():
        rows, buffer = trained.rows[name], learner.replay_buffer
        assert buffer is not None and buffer.pos == rows < 200, "it did not live in every step"
        ended = np.flatnonzero(buffer.dones[:rows, 0])
        gaps = buffer.next_observations[:rows, 0, 0]
        there = np.abs(gaps[ended]) < 0.3
        assert there.any() and not there.all(), "both kinds of ends are in the trial"
        assert (buffer.timeouts[ended, 0] == ~there).all()
        assert not (np.abs(gaps[np.setdiff1d(np.arange(rows), ended)]) < 0.3).any(), "no row after an end"
        begins = ended[:-1] + 1
        assert not np.allclose(buffer.observations[begins, 0], buffer.next_observations[ended[:-1], 0])
    assert sum(trained.rows.values()) > 200


def test_arrays_that_an_environment_fills_again_are_copied_at_once() -> None:
    """Each row's observation is the one that was acted on, whatever the environment does to its array in the step."""
    torch.set_num_threads(1)
    columns = []
    for reused in (False, True):
        trained = model(several({**WALKERS, "kwargs": {"reused": reused}}, total=120, learning_starts=1000))
        trained.learn(120)
        buffers = {name: learner.replay_buffer for name, learner in trained.learners.items()}
        columns.append(
            {name: (buffer.observations, buffer.next_observations) for name, buffer in buffers.items() if buffer}
        )
    assert len(columns[0]) == 2
    for name, (observations, after) in columns[0].items():
        assert not np.array_equal(observations, after)
        assert np.array_equal(observations, columns[1][name][0]) and np.array_equal(after, columns[1][name][1])


def test_learners_are_independent_and_train_in_fixed_order() -> None:
    trained = model(several(total=120))
    order: list[str] = []

    def told(name: str, train: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def tell(gradient_steps: int, batch_size: int = 64) -> None:
            order.append(name)
            train(gradient_steps, batch_size)

        return tell

    for name, learner in trained.learners.items():
        learner.train = told(name, learner.train)  # type: ignore[assignment, method-assign]
    weights = [learner.policy.state_dict()["actor.mu.weight"].clone() for learner in trained.learners.values()]
    trained.learn(64)
    assert order == ["walker_0", "walker_1"] * 4, "after each step beyond learning_starts"
    assert not torch.equal(weights[0], weights[1]), "each has a seed of its own"
    buffers = [learner.replay_buffer for learner in trained.learners.values()]
    assert buffers[0] is not buffers[1]
    assert [learner.seed for learner in trained.learners.values()] == [3, 4]


def test_the_same_as_a_single_sac_where_there_is_one_agent() -> None:
    """One agent, deterministic environment: what plain SB3 learns from the same draws."""
    trained = model(several({**WALKERS, "kwargs": {"count": 1}}, total=150))
    trained.learn(150)
    (learner,) = trained.learners.values()
    buffer = learner.replay_buffer
    assert buffer is not None and learner._n_updates == 90
    assert learner.env is not None
    stock = SAC("MlpPolicy", learner.env, seed=3, device="cpu", learning_starts=60, batch_size=16,
                buffer_size=400, policy_kwargs={"net_arch": [16, 16]})  # fmt: skip
    before = model(several({**WALKERS, "kwargs": {"count": 1}}, total=150)).learners["walker_0"]
    for key, tensor in before.policy.state_dict().items():
        assert torch.equal(tensor, stock.policy.state_dict()[key]), "it begins as SAC begins with this seed"


def test_one_learner_for_all_has_the_rows_of_all() -> None:
    trained = model(several(total=120, share_parameters=True))
    trained.learn(100)
    assert list(trained.learners) == ["shared"]
    alone = model(several(total=120, learning_starts=1000, share_parameters=True))
    alone.learn(100)
    assert 100 < trained.rows["shared"] <= 200
    assert trained.learners["shared"]._n_updates == 40


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("environment", "hyperparameters", "field", "words"),
    [
        ({"kwargs": {"discrete": ["walker_1"]}}, {}, "environment.id", "walker_1 has the action space Discrete(3)"),
        ({"id": "Pendulum-v1"}, {}, "environment.id", "module:function"),
        ({"id": "several_agents:walker"}, {}, "environment.id", "did you mean walkers?"),
        ({"id": "several_agents:np.float64"}, {}, "environment.id", "module:function"),
        ({"id": "several_agents:Any"}, {}, "environment.kwargs", "raises"),
        ({"kwargs": {"count": 0}}, {}, "environment.id", "at least one agent"),
        ({"kwargs": {"counts": 2}}, {}, "environment.kwargs", "counts"),
        ({"n_envs": 2}, {}, "environment.n_envs", "leave it 1"),
        ({"vectorization": "subproc"}, {}, "environment.vectorization", "leave it dummy"),
        ({"normalize": {}}, {}, "environment.normalize", "leave it null"),
        ({}, {"train_freq": [2, "episode"]}, "hyperparameters.train_freq", "whole number"),
        ({}, {"share_parameters": "yes"}, "hyperparameters.share_parameters", "true or false"),
        ({"kwargs": {"differing": True}}, {"share_parameters": True}, "hyperparameters.share_parameters", "walker_1"),
        ({}, {"share_parameters": True, "n_steps": 3}, "hyperparameters.n_steps", "remove it"),
        ({}, {"learning_rat": 1e-3}, "hyperparameters.learning_rat", "did you mean learning_rate?"),
        ({}, {"policy_kwargs": {"net_arhc": [8]}}, "hyperparameters.policy_kwargs.net_arhc", "refuses"),
    ],
)
def test_refused_with_the_field(
    environment: dict[str, Any], hyperparameters: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InputError) as refused:
        check(RunFile(run_id="a", **several({**WALKERS, **environment}, **hyperparameters)))
    assert str(refused.value).startswith(field) and words in str(refused.value)


def test_an_evaluation_of_several_agents_is_not_there_yet() -> None:
    with pytest.raises(NotYet, match="evaluation"):
        check(RunFile(run_id="a", **several(), evaluation={"every": 240}))


def test_validate_says_what_it_will_take() -> None:
    report = check(RunFile(run_id="a", **several(windy(count=3))))
    assert report.choice is not None and report.choice.exact
    one = check(RunFile(run_id="a", **several(windy(count=1))))
    assert report.buffer_bytes == 3 * one.buffer_bytes
    assert report.row_bytes == 3 * one.row_bytes
    assert report.capacity == 400


# ---------------------------------------------------------------------------------------------- the environment's state


@pytest.mark.parametrize("module", ["simple_spread_v3", "simple_tag_v3", "simple_speaker_listener_v4"])
def test_pettingzoo_environments_go_on_in_mid_episode(module: str) -> None:
    make = __import__(f"mpe2.{module}", fromlist=["parallel_env"]).parallel_env
    choice = choose(lambda: Together(make(continuous_actions=True, max_cycles=20)))
    assert choice.exact, choice


# ---------------------------------------------------------------------------------------------------------- highway-env


def test_each_vehicle_has_its_own_reward_and_end() -> None:
    from train_cloud.envs.highway import parallel_env

    env = parallel_env("racetrack-v0", 2, {"duration": 20, "other_vehicles": 0})
    observations, _ = env.reset(seed=1)
    assert [env.observation_space(name).shape for name in env.agents] == [(2, 12, 12)] * 2
    assert env.action_space("vehicle_0") is not env.action_space("vehicle_1")
    ends, lives = {}, {"vehicle_0": 0, "vehicle_1": 0}
    while env.agents:
        actions = {name: np.array([1.0 if name == "vehicle_1" else 0.0], np.float32) for name in env.agents}
        observations, rewards, terminations, truncations, infos = env.step(actions)
        assert observations.keys() == rewards.keys() == infos.keys() == actions.keys()
        for name in actions:
            lives[name] += 1
            if terminations[name] or truncations[name]:
                ends[name] = rewards[name]
        if len(actions) == 2:
            assert rewards["vehicle_0"] != rewards["vehicle_1"]
    assert lives["vehicle_1"] < lives["vehicle_0"], "who turns all the time is off the road first"
    assert ends["vehicle_1"] == 0.0, "off the road nothing is earned"


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [({"vehicles": 1}, "environment.kwargs.vehicles"), ({"id": "parking-v9"}, "environment.kwargs")],
)
def test_what_highway_env_has_not_is_refused(kwargs: dict[str, Any], field: str) -> None:
    environment = {"id": "train_cloud.envs.highway:parallel_env", "kwargs": kwargs}
    with pytest.raises(InputError, match=field):
        check(RunFile(run_id="a", **several(environment)))


@pytest.mark.slow
def test_vehicles_of_highway_env_go_on_exactly(warm: Any, tmp_path: Path) -> None:
    environment = {
        "id": "train_cloud.envs.highway:parallel_env",
        "kwargs": {"vehicles": 2, "config": {"duration": 4, "other_vehicles": 1, "simulation_frequency": 5}},
    }
    given = {**several(environment, total=90, learning_starts=40), "callbacks": ["interrupting:InterruptAt"]}
    given["save_frequency"] = 30
    twin, run = (Rehearsed(warm, tmp_path / kind, given) for kind in ("twin", "run"))
    assert twin.session() == 0, twin.log()
    assert run.session("SIGTERM@47") == 75, run.log()
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
