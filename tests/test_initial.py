"""A run that begins with what another one learned: what comes along, what begins anew, what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sessions import Rehearsed
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from train_cloud.checkpoint import read_manifest
from train_cloud.cli import main
from train_cloud.config import InitialModel, RunFile, load_run_file, parse_run_file
from train_cloud.errors import InputError
from train_cloud.run import layout
from train_cloud.runtime.initial_model import read_initial
from train_cloud.sb3.build import build_model
from train_cloud.sb3.compare import differences
from train_cloud.sb3.initial import begin_with, from_zip
from train_cloud.store import open_store

torch.set_num_threads(1)

NETWORK = {"net_arch": [8, 8]}
SMALL = {"buffer_size": 500, "learning_starts": 20, "batch_size": 16, "policy_kwargs": NETWORK}


def run_file(**changed: Any) -> RunFile:
    values = {"algorithm": "sac", "environment": {"id": "Pendulum-v1"}, "hyperparameters": SMALL, **changed}
    return parse_run_file({"run_id": "next", "seed": 1, "total_timesteps": 100, "save_frequency": 50, **values})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SAC, Path]:
    """A model that plain SB3 has trained, normalised, and the folder with what it saved."""
    import gymnasium

    folder = tmp_path_factory.mktemp("trained")
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    model = SAC("MlpPolicy", env, seed=5, policy_kwargs={"net_arch": [8, 8]}, learning_starts=20, buffer_size=100)
    model.learn(60)
    model.save(folder / "model.zip")
    env.save(str(folder / "vecnormalize.pkl"))
    return model, folder


def read(folder: Path, *, normalizer: bool = True) -> Any:
    pickled = (folder / "vecnormalize.pkl").read_bytes() if normalizer else None
    return from_zip("model.zip", (folder / "model.zip").read_bytes(), pickled)


def test_parameters_and_normaliser_come_along_and_the_rest_begins_anew(trained: tuple[SAC, Path]) -> None:
    theirs: Any = trained[0]
    folder = trained[1]
    built = build_model(run_file(environment={"id": "Pendulum-v1", "normalize": True}))
    model: Any = built.model
    begin_with(model, read(folder), buffer=False)
    for name, tensor in theirs.policy.state_dict().items():
        assert torch.equal(model.policy.state_dict()[name], tensor), name
    assert torch.equal(model.log_ent_coef, theirs.log_ent_coef) and not torch.equal(model.log_ent_coef, torch.zeros(1))
    ours, normaliser = model.get_vec_normalize_env(), theirs.get_vec_normalize_env()
    assert np.array_equal(ours.obs_rms.mean, normaliser.obs_rms.mean)
    assert ours.ret_rms.var == normaliser.ret_rms.var
    assert (model.num_timesteps, model.replay_buffer.pos) == (0, 0)
    assert all(not optimizer.state for optimizer in (model.actor.optimizer, model.critic.optimizer))
    built.close()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"hyperparameters": {**SMALL, "policy_kwargs": {"net_arch": [8, 16]}}},
            ["policy.actor.latent_pi.2.weight is (8, 8) there, (16, 8) here", "actor.mu.weight is (1, 8) there"],
        ),
        ({"hyperparameters": {**SMALL, "policy_kwargs": {"net_arch": [8]}}}, ["critic.qf0.4.weight is (1, 8) there"]),
        ({"algorithm": "td3"}, ["policy.actor.mu.0.weight is none there, (8, 3) here", "actor.log_std.bias is (1,)"]),
        ({"environment": {"id": "MountainCarContinuous-v0", "normalize": True}},
         ["latent_pi.0.weight is (8, 3) there, (8, 2) here", "the normaliser's observations is (3,) there, (2,) here"]),
        ({"environment": {"id": "Pendulum-v1"}}, ["set environment.normalize"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_by_layer(
    trained: tuple[SAC, Path], changed: dict[str, Any], told: list[str]
) -> None:
    values = {"environment": {"id": "Pendulum-v1", "normalize": True}, **changed}
    built = build_model(run_file(**values))
    before = {name: tensor.clone() for name, tensor in built.model.policy.state_dict().items()}
    with pytest.raises(InputError) as caught:
        begin_with(built.model, read(trained[1]), buffer=False)
    assert caught.value.field == "initial_model"
    for part in told:
        assert part in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in built.model.policy.state_dict().items())
    built.close()


def test_without_statistics_the_normaliser_begins_anew(trained: tuple[SAC, Path]) -> None:
    built = build_model(run_file(environment={"id": "Pendulum-v1", "normalize": True}))
    begin_with(built.model, read(trained[1], normalizer=False), buffer=False)
    normalizer: Any = built.model.get_vec_normalize_env()
    assert not normalizer.obs_rms.mean.any()
    built.close()


def test_what_is_no_model() -> None:
    with pytest.raises(InputError, match=r"initial_model: 'it\.zip': it is no model"):
        from_zip("it.zip", b"no zip at all", None)


def test_from_s3(trained: tuple[SAC, Path], s3_root: str) -> None:
    store = open_store(f"{s3_root}/models")
    wanted = InitialModel(source=f"{s3_root}/models/best.zip")
    with pytest.raises(InputError, match="no such object"):
        read_initial(wanted, s3_root)
    store.put("best.zip", (trained[1] / "model.zip").read_bytes())
    found = read_initial(wanted, s3_root)
    assert found.initial.normalizer is None and set(found.initial.parameters) == {"policy"}
    store.put("vecnormalize.pkl", (trained[1] / "vecnormalize.pkl").read_bytes())
    assert read_initial(wanted, s3_root).initial.normalizer is not None


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nobody has no checkpoint under"):
        read_initial(InitialModel(source="run:nobody"), str(tmp_path))


@pytest.fixture(scope="module")
def first(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """A run that has ended, with checkpoints at 100 and 200 and a ring that lapped."""
    run = {
        "algorithm": "sac",
        "seed": 3,
        "total_timesteps": 200,
        "save_frequency": 100,
        "environment": {"id": "Pendulum-v1", "normalize": True},
        "hyperparameters": {**SMALL, "buffer_size": 150},
    }
    made = Rehearsed(warm, tmp_path_factory.mktemp("first") / "run", run)
    assert made.session() == 0, made.log()
    return made


def following(warm: Any, folder: Path, first: Rehearsed, run_id: str, **changed: Any) -> Rehearsed:
    run = {
        "run_id": run_id,
        "algorithm": "sac",
        "seed": 4,
        "total_timesteps": 300,
        "save_frequency": 100,
        "environment": {"id": "Pendulum-v1", "normalize": True},
        "hyperparameters": {**SMALL, "buffer_size": 150, "learning_starts": 0},
        "initial_model": {"source": "run:a-run", "buffer": True},
        "callbacks": ["interrupting:InterruptAt"],
        **changed,
    }
    made = Rehearsed(warm, folder, run, root=first.root)
    made.store = open_store(layout.run_url(first.root, run_id))
    return made


@pytest.mark.slow
def test_from_another_run_with_its_buffer_and_exact(warm: Any, tmp_path: Path, first: Rehearsed) -> None:
    twin = following(warm, tmp_path / "twin", first, "twin")
    assert twin.session() == 0, twin.log()
    run = following(warm, tmp_path / "run", first, "stopped")
    assert run.session("SIGTERM@57") == 75, run.log()
    at = run.head().manifest
    assert at is not None
    manifest = read_manifest(run.store, at)
    assert (manifest.timesteps, manifest.streams["replay"].last) == (57, 200 + 57)
    assert manifest.facts["initial_model"]["source"] == "run:a-run" and manifest.facts["initial_model"]["digest"]
    assert run.session() == 0, run.log()
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()
    last = run.head().manifest
    assert last is not None
    assert read_manifest(run.store, last).facts["initial_model"] == manifest.facts["initial_model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"hyperparameters": SMALL}, "150 there, 500 here: set hyperparameters.buffer_size"),
        ({"environment": {"id": "Pendulum-v1", "normalize": True, "n_envs": 2}}, "actions: float32(1, 1) there"),
        ({"initial_model": "run:a-run@70"}, "70"),
    ],
)
def test_a_buffer_that_does_not_fit_leaves_no_trace(
    warm: Any, tmp_path: Path, first: Rehearsed, changed: dict[str, Any], told: str
) -> None:
    run = following(warm, tmp_path / "run", first, "misfit", **changed)
    assert run.session() == 64, run.log()
    assert told in run.log()
    assert list(run.store.list()) == []


@pytest.mark.slow
def test_from_a_file_and_forked(
    warm: Any, tmp_path: Path, trained: tuple[SAC, Path], first: Rehearsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    (folder / "code").mkdir(parents=True)
    for name in ("model.zip", "vecnormalize.pkl"):
        (folder / "code" / name).write_bytes((trained[1] / name).read_bytes())
    files = {"code": {"folder": "code"}, "initial_model": "code/model.zip"}
    run = following(warm, folder, first, "from-file", total_timesteps=60, save_frequency=30, **files)
    assert run.session() == 0, run.log()
    assert "begins with" in run.log()
    head = run.head().manifest
    assert head is not None
    facts = read_manifest(run.store, head).facts
    assert set(facts["identity"]["initial_model"]["digests"]) == {"model.zip", "vecnormalize.pkl"}
    monkeypatch.chdir(folder)
    arguments = ["fork", str(run.run_file), "--store", first.root, "--as", "forked", "--set", "total_timesteps=90"]
    assert main(arguments) == 0
    assert load_run_file(folder / "forked.yaml").identity()["initial_model"] == facts["identity"]["initial_model"]
    (folder / "code/model.zip").write_bytes(b"another")
    assert run.session(options=("--set", "total_timesteps=90")) == 64
    assert "initial_model.digests.model.zip" in run.log()


def test_validate_tries_it(first: Rehearsed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "run_id: b\nalgorithm: sac\ntotal_timesteps: 100\nsave_frequency: 50\nenvironment: {id: Pendulum-v1}\n"
        "hyperparameters: {policy_kwargs: {net_arch: [8, 8]}}\ninitial_model: run:a-run\n"
    )
    assert main(["validate", str(path)]) == 0
    assert "begins with   run:a-run (not tried: give --store)" in capsys.readouterr().out
    assert main(["validate", str(path), "--store", first.root]) == 64
    assert "set environment.normalize" in capsys.readouterr().err
    assert main(["validate", str(path), "--store", first.root, "--set", "environment.normalize=true"]) == 0
    assert "run:a-run (fits)" in capsys.readouterr().out


def test_another_algorithms_model_is_told_at_once(tmp_path: Path) -> None:
    DQN("MlpPolicy", "CartPole-v1", buffer_size=10).save(tmp_path / "dqn.zip")
    built = build_model(run_file())
    with pytest.raises(InputError, match=r"policy\.q_net\..*and \d+ more|and \d+ more"):
        begin_with(built.model, from_zip("dqn.zip", (tmp_path / "dqn.zip").read_bytes(), None), buffer=False)
    built.close()
