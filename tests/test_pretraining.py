"""Behaviour cloning as a run's first phase: each algorithm learns from demonstrations, and a kill changes nothing."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sessions import Rehearsed

from train_cloud.checkpoint import read_manifest
from train_cloud.config import Environment, RunFile, parse_run_file
from train_cloud.envs.demonstrations import read
from train_cloud.errors import InputError
from train_cloud.evaluate.record import Chosen, Expert, record
from train_cloud.run.session import read_sessions
from train_cloud.runtime.pretraining import CLONED, FIGURES
from train_cloud.sb3.build import build_model
from train_cloud.sb3.callback import IdleHost, learn
from train_cloud.sb3.compare import differences
from train_cloud.snapshot import PRETRAINING, Snapshot
from train_cloud.trainer import TrainingStopped

torch.set_num_threads(1)

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}}
ON: dict[str, Any] = {"n_steps": 64, **SMALL}
OFF: dict[str, Any] = {"buffer_size": 400, "learning_starts": 20, "batch_size": 16, **SMALL}
PICTURES: dict[str, Any] = {"net_arch": [16], "features_extractor_kwargs": {"features_dim": 16}}


def demonstrations(folder: Path, expert: str, episodes: int, **environment: Any) -> Path:
    """A file, recorded once a test run."""
    section = Environment.model_validate(environment)
    path = folder / f"{abs(hash(json.dumps(environment, sort_keys=True)))}-{expert}-{episodes}.npz"
    if not path.exists():
        from train_cloud.envs.demonstrations import write

        found, env = record(section, Expert(f"demonstrating:{expert}"), Chosen(episodes, None), 0)
        write(found, env, {"id": section.id, "kwargs": dict(section.kwargs)}, path)
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("recorded")
    return lambda expert, episodes, **environment: demonstrations(folder, expert, episodes, **environment)


def run(path: Path, algorithm: str, environment: Mapping[str, Any], **changed: Any) -> RunFile:
    learned = {
        "demonstrations": str(path),
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 3e-3,
        **changed.pop("pretraining", {}),
    }
    return parse_run_file(
        {
            "run_id": "cloned",
            "algorithm": algorithm,
            "seed": 3,
            "device": "cpu",
            "total_timesteps": 64,
            "save_frequency": changed.get("total_timesteps", 64),
            "environment": dict(environment),
            "code": {"folder": str(path.parent)},
            "pretraining": learned,
            **changed,
        }
    )


class Kept(IdleHost):
    """Keeps what would be committed.

    :param stop_after: commits, after which somebody wants it to stop
    """

    def __init__(self, config: RunFile, restored: Snapshot | None = None, stop_after: int = 1 << 30) -> None:
        super().__init__(config.total_timesteps, restored=restored)
        self.commits: list[Snapshot] = []
        self.epochs: list[Mapping[str, float]] = []
        self.policy: bytes | None = None
        self._stop_after = stop_after
        self.batches = 0

    def submit(self, snapshot: Snapshot) -> None:
        self.commits.append(snapshot)

    def phase(self, name: str) -> None:
        self.batches += name == "pretrain"

    def stop_deadline(self) -> float | None:
        return float("inf") if self.batches > self._stop_after else None

    def pretrained(self, epochs: Any, policy: bytes | None = None) -> bool:
        self.epochs, self.policy = list(epochs), policy or self.policy
        return True


def trained(config: RunFile, restored: Snapshot | None = None, stop_after: int = 1 << 30) -> tuple[Any, Kept]:
    """A model, after its pretraining and its timesteps."""
    from train_cloud.runtime.pretraining import pretraining_of

    built = build_model(config)
    try:
        host = Kept(config, restored, stop_after)
        pretraining = pretraining_of(config, built.model, restored.facts if restored is not None else {})
        try:
            learn(built.model, host, [], built.choice, pretraining)
        except TrainingStopped:
            assert host.batches > stop_after
        return built.model, host
    finally:
        built.close()


REACH = {"id": "Reach-v0", "module": "demonstrating"}


def reach(shown: str = "box", actions: str = "box", **more: Any) -> dict[str, Any]:
    return {**REACH, "kwargs": {"shown": shown, "actions": actions}, **more}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ppo, box": ("ppo", reach(), {"hyperparameters": ON}),
    "ppo, box, mse": ("ppo", reach(), {"hyperparameters": ON, "pretraining": {"loss": "mse"}}),
    "ppo, gSDE, squashed": (
        "ppo",
        reach(),
        {"hyperparameters": {**ON, "use_sde": True, "policy_kwargs": {"net_arch": [16], "squash_output": True}}},
    ),
    "ppo, discrete": ("ppo", reach(actions="discrete"), {"hyperparameters": ON}),
    "ppo, multi": ("ppo", reach(actions="multi"), {"hyperparameters": ON}),
    "ppo, binary": ("ppo", reach(actions="binary"), {"hyperparameters": ON}),
    "ppo, pictures": (
        "ppo",
        reach("image", "discrete", frame_stack=2),
        {"policy": "CnnPolicy", "hyperparameters": {**ON, "policy_kwargs": PICTURES}},
    ),
    "ppo, dict": ("ppo", reach("dict", "discrete"), {"policy": "MultiInputPolicy", "hyperparameters": ON}),
    "a2c, box": ("a2c", reach(), {"hyperparameters": ON}),
    "a2c, discrete": ("a2c", reach(actions="discrete"), {"hyperparameters": ON}),
    "sac": ("sac", reach(), {"hyperparameters": OFF}),
    "sac, normalised, stacked": ("sac", reach(normalize={}, frame_stack=2), {"hyperparameters": OFF}),
    "sac, gSDE, dict": (
        "sac",
        reach("dict"),
        {"policy": "MultiInputPolicy", "hyperparameters": {**OFF, "use_sde": True}},
    ),
    "td3": ("td3", reach(), {"hyperparameters": OFF}),
    "ddpg": ("ddpg", reach(), {"hyperparameters": OFF}),
    "dqn": ("dqn", reach(actions="discrete"), {"hyperparameters": OFF}),
    "dqn, pictures": (
        "dqn",
        reach("image", "discrete"),
        {"policy": "CnnPolicy", "hyperparameters": {**OFF, "policy_kwargs": PICTURES}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_algorithm_learns_what_was_held_out(recorded: Any, name: str) -> None:
    algorithm, environment, more = CASES[name]
    bare = {key: environment[key] for key in ("id", "module", "kwargs")}
    path = recorded("reach", 250, **bare)
    model, host = trained(run(path, algorithm, environment, **more))
    first, last = host.epochs[0], host.epochs[-1]
    assert [figures["epoch"] for figures in host.epochs] == [1, 2, 3, 4]
    if "gSDE" not in name:  # whose spread grows with what its features say
        assert last["held_out_loss"] < first["held_out_loss"]
    if "held_out_accuracy" in last:
        assert last["held_out_accuracy"] >= max(0.6, first["held_out_accuracy"])
    else:
        assert last["held_out_error"] < min(0.1, first["held_out_error"]), "of a variance of 0.5"
    assert last["value_loss"] < first["value_loss"] or last["value_loss"] < 0.5
    cloned = torch.load(io.BytesIO(host.policy or b""), weights_only=True)
    assert cloned.keys() == model.policy.state_dict().keys()
    finished = [commit for commit in host.commits if commit.facts[PRETRAINING]["finished"]]
    assert finished[0].timesteps == 0 and finished[0].facts["evaluate"]
    for key, tensor in cloned.items():
        saved = finished[0].parts["model"].arrays[f"policy|{key}"]
        assert np.array_equal(saved, tensor.numpy()), "the file is the policy that RL begins with"


STOPPED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ppo, kept near": (
        "ppo",
        reach(actions="discrete", normalize={}),
        {"hyperparameters": ON, "total_timesteps": 192, "pretraining": {"keep": {"weight": 0.5, "until": 150}}},
    ),
    "sac, kept near": (
        "sac",
        reach(normalize={}),
        {"hyperparameters": OFF, "total_timesteps": 50, "pretraining": {"keep": {"weight": 1.0, "until": 40}}},
    ),
    "td3, kept near": (
        "td3",
        reach("dict"),
        {
            "policy": "MultiInputPolicy",
            "hyperparameters": OFF,
            "total_timesteps": 50,
            "pretraining": {"keep": {"weight": 1.0, "until": 60}},
        },
    ),
    "ppo, gSDE, kept near": (
        "ppo",
        reach(),
        {
            "hyperparameters": {**ON, "use_sde": True, "sde_sample_freq": 4},
            "total_timesteps": 128,
            "pretraining": {"keep": {"weight": 0.5, "until": 1000}},
        },
    ),
    "dqn": ("dqn", reach(actions="discrete"), {"hyperparameters": OFF, "total_timesteps": 50}),
    "dropout": (
        "a2c",
        reach(),
        {
            "hyperparameters": {
                **ON,
                "policy_kwargs": {"features_extractor_class": "demonstrating:Forgets", "net_arch": [8]},
            },
        },
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_stopped_at_a_batch_and_between_epochs_it_ends_the_same(recorded: Any, name: str) -> None:
    algorithm, environment, more = STOPPED[name]
    bare = {key: environment[key] for key in ("id", "module", "kwargs")}
    config = run(recorded("reach", 20, **bare), algorithm, environment, **more)
    _, twin = trained(config)
    per_epoch = (twin.batches - 1) // config.pretraining.epochs if config.pretraining else 0
    begun = None
    for stop_after in (2, per_epoch, per_epoch + 1, 1):
        _, host = trained(config, begun, stop_after)
        begun = host.commits[-1]
        assert not begun.facts[PRETRAINING]["finished"]
    _, host = trained(config, begun)
    assert host.epochs == twin.epochs
    # And from the cloned policy on, and from a checkpoint during RL.
    finished = next(commit for commit in twin.commits if commit.facts[PRETRAINING]["finished"])
    for end in (host, trained(config, finished)[1]):
        assert differences(end.commits[-1], twin.commits[-1]) == []


def with_extractor(name: str) -> dict[str, Any]:
    return {
        **ON,
        "n_steps": 16,
        "policy_kwargs": {"features_extractor_class": f"demonstrating:{name}", "net_arch": [8]},
    }


def test_the_cloned_policy_is_saved_with_what_no_state_dict_has(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "save_frequency", 16)
    learned = {"keep": {"weight": 1.0, "until": 100}, "validation": 0}
    config = run(
        recorded("reach", 20, **reach()), "ppo", reach(), hyperparameters=with_extractor("Centres"), pretraining=learned
    )
    _, twin = trained(config)
    learning = [commit for commit in twin.commits[:-1] if commit.timesteps]
    assert [commit.timesteps for commit in learning] == [16, 32, 48]
    for begun in learning:
        assert differences(trained(config, begun)[1].commits[-1], twin.commits[-1]) == []
    assert twin.commits[-1].facts["exact"]


def test_a_policy_that_cannot_be_kept_whole_is_refused_before_it_learns(recorded: Any) -> None:
    path, settings = recorded("reach", 20, **reach()), with_extractor("Parametrized")
    trained(run(path, "ppo", reach(), hyperparameters=settings))
    learned = {"keep": {"weight": 1.0, "until": 100}}
    with pytest.raises(InputError, match=r"pretraining.keep: .*extractor.linear is parametrized"):
        trained(run(path, "ppo", reach(), hyperparameters=settings, pretraining=learned))


def test_a_last_batch_of_one_step_joins_the_one_before(recorded: Any) -> None:
    path = recorded("reach", 20, **reach())
    learned = {"batch_size": len(read(path, "")) - 1, "validation": 0}
    settings = with_extractor("Normalizes")
    _, host = trained(run(path, "ppo", reach(), hyperparameters=settings, pretraining=learned))
    assert len(host.epochs) == 4 and host.batches == 1 + 4


def test_by_seconds_at_risk_it_is_committed_within_epochs(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run(recorded("reach", 20, **reach()), "a2c", reach(), hyperparameters=ON)
    monkeypatch.setattr(Kept, "max_seconds_at_risk", 0.0)
    _, host = trained(config)
    begun = [commit for commit in host.commits if not commit.facts[PRETRAINING]["finished"]]
    places = [json.loads(commit.parts[PRETRAINING].blob) for commit in begun]
    assert len({(place["epoch"], place["batch"]) for place in places}) == host.batches - 1
    assert all(commit.timesteps == 0 and commit.facts["rollouts"] == 0 for commit in begun)
    _, end = trained(config, begun[1])
    assert differences(end.commits[-1], host.commits[-1]) == []


def test_kept_near_the_cloned_policy_it_moves_less(recorded: Any) -> None:
    path = recorded("reach", 20, **reach(actions="discrete"))
    moved = []
    for weight in (None, 0.01, 3.0):
        keep = None if weight is None else {"weight": weight, "until": 10_000}
        config = run(
            path,
            "ppo",
            reach(actions="discrete"),
            hyperparameters={**ON, "learning_rate": 3e-3},
            total_timesteps=256,
            pretraining={"keep": keep, "epochs": 8},
        )
        model, host = trained(config)
        observations = torch.as_tensor(read(path, "").observations, dtype=torch.float32)
        with torch.no_grad():
            after = model.policy.get_distribution(observations).distribution.probs
            model.policy.load_state_dict(torch.load(io.BytesIO(host.policy or b""), weights_only=True))
            before = model.policy.get_distribution(observations).distribution.probs
        moved.append(float((before - after).abs().mean()))
    assert moved[2] < 0.7 * moved[0]
    assert moved[2] < moved[1]


def test_the_normaliser_knows_the_demonstrations_and_nothing_else(recorded: Any) -> None:
    path = recorded("balance", 6, id="CartPole-v1")
    config = run(path, "ppo", {"id": "CartPole-v1", "normalize": {}}, hyperparameters=ON, total_timesteps=64)
    _, host = trained(config)
    finished = next(commit for commit in host.commits if commit.facts[PRETRAINING]["finished"])
    normalizer = pickle.loads(finished.parts["normalizer"].blob)
    there = read(path, "")
    assert isinstance(there.observations, np.ndarray)
    precise = there.observations.astype(np.float64)
    assert np.allclose(normalizer.obs_rms.mean, precise.mean(axis=0))
    assert np.allclose(normalizer.obs_rms.var, precise.var(axis=0))
    assert normalizer.obs_rms.count == len(there)
    assert normalizer.ret_rms.var > 100, "of discounted sums of rewards of 1"


# ------------------------------------------------------------------------------------------------- whole runs, killed


@pytest.fixture(scope="module")
def cartpole(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rehearsed, dict[str, Any]]:
    """A run that was never interrupted, and its file."""
    folder = tmp_path_factory.mktemp("cartpole")
    (folder / "code").mkdir()
    demonstrations(folder / "code", "balance", 6, id="CartPole-v1")
    values: dict[str, Any] = {
        "algorithm": "ppo",
        "seed": 3,
        "total_timesteps": 384,
        "save_frequency": 64,
        "environment": {"id": "CartPole-v1", "normalize": {}, "n_envs": 2},
        "hyperparameters": {
            "n_steps": 32,
            "batch_size": 32,
            "policy_kwargs": {"net_arch": [32], "features_extractor_class": "demonstrating:Interrupted"},
        },
        "callbacks": ["interrupting:InterruptAt"],
        "code": {"folder": str(folder / "code")},
        "pretraining": {
            "demonstrations": str(next((folder / "code").glob("*.npz"))),
            "epochs": 3,
            "learning_rate": 3e-3,
            "keep": {"weight": 0.5, "until": 300},
        },
        "evaluation": {"episodes": 3},
    }
    twin = Rehearsed(warm, folder / "twin", values)
    assert twin.session() == 0, twin.log()
    return twin, values


def left(run: Rehearsed) -> tuple[Any, Any, dict[str, Any]]:
    """Figures, cloned policy, and what was evaluated: model and mean return, by timesteps."""
    figures = json.loads(bytes(run.store.get(f"artifacts/{FIGURES}").body))
    policy = torch.load(io.BytesIO(run.store.get(f"artifacts/{CLONED}").body), weights_only=True)
    found = [json.loads(bytes(run.store.get(info.key).body)) for info in run.store.list("evaluations/")]
    evaluated = {str(each["timesteps"]): (each["model"], each["overall"]["returns"]["mean"]) for each in found}
    return figures, {name: tensor.tolist() for name, tensor in policy.items()}, evaluated


def curves(run: Rehearsed) -> dict[str, list[tuple[int, float]]]:
    return {tag: points for tag, points in run.scalars(shown=True).items() if not tag.startswith("eval/")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "interruptions",
    [
        # In the middle of epochs 1 and 2, and during RL; an epoch has 43 updates.
        [("SIGTERM", 10, 0), ("SIGKILL", 60, 0), ("SIGKILL", 0, 230)],
        [("SIGKILL", 5, 0), ("SIGTERM", 129, 0), ("SIGTERM", 0, 100)],
    ],
)
def test_a_run_that_is_killed_ends_where_the_uninterrupted_one_ends(
    warm: Any, cartpole: tuple[Rehearsed, dict[str, Any]], tmp_path: Path, interruptions: list[tuple[str, int, int]]
) -> None:
    twin, values = cartpole
    killed = Rehearsed(warm, tmp_path, values)
    for name, update, step in interruptions:
        asked = {"AT_UPDATE": f"{name}@{update}"} if update else {}
        code = killed.session(f"{name}@{step}" if step else "", env=asked)
        assert code == (75 if name == "SIGTERM" else -9), killed.log()
    assert killed.session() == 0, killed.log()
    assert differences(killed.final(), twin.final()) == []
    assert left(killed) == left(twin)
    assert curves(killed) == curves(twin)
    exact = [(session.progress or {}).get("exact") for session in read_sessions(killed.store)]
    assert False not in exact, killed.log()


@pytest.mark.slow
def test_the_first_evaluation_is_the_cloned_policys(cartpole: tuple[Rehearsed, dict[str, Any]]) -> None:
    twin, _ = cartpole
    figures, _, evaluated = left(twin)
    assert sorted(evaluated, key=int)[0] == "0" and len(evaluated) == 2
    assert evaluated["0"][1] >= 400, "a random policy has 20"
    assert figures["epochs"][-1]["held_out_accuracy"] > 0.85
    scalars = twin.scalars()
    assert [step for step, _ in scalars["pretrain/loss"]] == [1, 2, 3]
    found = {tag for tag in scalars if tag.startswith("pretrain/")}
    assert found == {f"pretrain/{name}" for name in ("loss", "value_loss", "held_out_loss", "held_out_accuracy")}
    kept = [(each.timesteps, each.rows) for each in read_manifest(twin.store, twin.head().manifest).kept]  # type: ignore[arg-type]
    assert len({timesteps for timesteps, _ in kept}) == len(kept), "of all at timesteps 0 at most one stays"


@pytest.mark.slow
def test_killed_before_its_first_epoch_it_begins_again(
    warm: Any, cartpole: tuple[Rehearsed, dict[str, Any]], tmp_path: Path
) -> None:
    """And what it learns from may not be exchanged in the middle of it."""
    _, values = cartpole
    folder = tmp_path / "code"
    folder.mkdir()
    path = demonstrations(folder, "balance", 3, id="CartPole-v1")
    changed = {**values, "code": {"folder": str(folder)}, "evaluation": None, "total_timesteps": 64}
    changed["pretraining"] = {"demonstrations": str(path), "epochs": 3, "batch_size": 32}
    run = Rehearsed(warm, tmp_path / "run", changed)
    assert run.session(env={"AT_UPDATE": "SIGTERM@20"}) == 75, run.log()
    facts = read_manifest(run.store, run.head().manifest).facts[PRETRAINING]  # type: ignore[arg-type]
    assert (facts["finished"], facts["epoch"]) == (False, 0)
    path.write_bytes(demonstrations(tmp_path, "balance", 2, id="CartPole-v1").read_bytes())
    assert run.session() == 64, run.log()
    assert "pretraining.demonstrations" in run.log()
